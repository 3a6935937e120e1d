import {Classifier, activationMap} from "./classifier.js";
import {ImageError} from "./pixels.js";

const BEST = 5; // classes
const SIDE = 336; // pixels of a picture, at least
const OPACITY = 0.6; // of the map
const NO_MAP = "No class activation map is shown, because the last feature map of this network has a single cell: it " +
  "does not tell places apart.";
// Matplotlib's inferno at nine equidistant points.
const COLORS = ["000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4"].map(
  (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

const element = (id) => document.getElementById(id);
const input = element("file"), drop = element("drop");
let classifier;
let waiting = 0; // the number of the newest photograph

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function classify(file) {
  const number = ++waiting;
  say(`Reading ${file.name} ...`);
  await new Promise((resolve) => setTimeout(resolve)); // shows the message
  try {
    const start = performance.now();
    const result = await classifier.classify(file);
    if (number !== waiting) return;
    show(result);
    say(`${file.name}: ${(performance.now() - start).toFixed(0)} ms`);
  } catch (error) {
    if (number !== waiting) return;
    element("result").hidden = true;
    say(error instanceof ImageError ? error.message : `${file.name} cannot be classified: ${error.message}`, true);
  }
}

function show({image, probabilities, maps}) {
  const best = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, BEST);
  const buttons = best.map((index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = classifier.network.class_names[index];
    button.addEventListener("click", () => select(index));
    return button;
  });

  function select(index) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(best[i] === index)));
    const name = classifier.network.class_names[index], map = activationMap(maps, index);
    const isMap = map.values.length > 1;
    drawImage("canvas", image);
    if (isMap) drawMap(map);
    element("canvas").hidden = !isMap;
    element("caption").textContent = isMap ? `Class activation map of ${name}` : NO_MAP;
    element("canvas").setAttribute("aria-label", `The photograph with the class activation map of ${name}`);
  }

  element("classes").replaceChildren(...best.map((index, i) => {
    const row = document.createElement("tr");
    row.insertCell().append(buttons[i]);
    const cell = row.insertCell(), bar = document.createElement("progress");
    cell.className = "probability";
    bar.value = probabilities[index];
    bar.setAttribute("aria-hidden", "true");
    cell.append(bar, ` ${(100 * probabilities[index]).toFixed(1)} %`);
    return row;
  }));
  drawImage("photograph", image);
  element("result").hidden = false;
  select(best[0]);
}

// Draws what the network saw, enlarged by a whole number.
function drawImage(id, {pixels, width, height, channels}) {
  const rgba = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let k = 0; k < 3; k++) rgba.data[4 * i + k] = pixels[i * channels + (channels === 1 ? 0 : k)];
    rgba.data[4 * i + 3] = 255;
  }
  const canvas = element(id), factor = Math.max(1, Math.round(SIDE / Math.max(width, height)));
  canvas.width = width * factor;
  canvas.height = height * factor;
  drawScaled(canvas, rgba, 1, factor < 4);
}

// Draws a map over the image, from its smallest to its largest value.
function drawMap({values, rows, columns}) {
  const low = Math.min(...values), range = Math.max(...values) - low || 1;
  const rgba = new ImageData(columns, rows);
  values.forEach((value, i) => {
    const place = (value - low) / range * (COLORS.length - 1);
    const before = Math.min(Math.floor(place), COLORS.length - 2), share = place - before;
    for (let k = 0; k < 3; k++) {
      rgba.data[4 * i + k] = Math.round((1 - share) * COLORS[before][k] + share * COLORS[before + 1][k]);
    }
    rgba.data[4 * i + 3] = 255;
  });
  drawScaled(element("canvas"), rgba, OPACITY, true);
}

function drawScaled(canvas, rgba, opacity, smooth) {
  const small = new OffscreenCanvas(rgba.width, rgba.height);
  small.getContext("2d").putImageData(rgba, 0, 0);
  const context = canvas.getContext("2d");
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = smooth;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

input.addEventListener("change", () => input.files.length && classify(input.files[0]));
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (!classifier) return;
  if (file) classify(file);
  else say("That was not a file.", true);
});

say("Loading the network ...");
try {
  classifier = await Classifier.open();
  input.disabled = false;
  say("Ready.");
} catch (error) {
  say(`The network cannot be loaded: ${error.message}`, true);
}
