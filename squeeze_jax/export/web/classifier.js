// The network of this folder, run by ONNX Runtime Web. It can be used without the page:
//
//   import {Classifier} from "./classifier.js";
//   const classifier = await Classifier.open();
//   const {image, logits} = await classifier.classify(file);

import * as ort from "./onnxruntime-web.js";
import {readImage} from "./pixels.js";

const here = (name) => new URL(name, import.meta.url);

export class Classifier {
  static async open() {
    ort.env.wasm.numThreads = 1; // more need headers that a static server does not send
    ort.env.wasm.wasmPaths = {wasm: here("ort-wasm-simd-threaded.wasm").href};
    const [network, model] = await Promise.all([fetched("network.json"), fetched("model.onnx")]);
    const session = await ort.InferenceSession.create(await model.arrayBuffer(), {executionProviders: ["wasm"]});
    return new Classifier(await network.json(), session);
  }

  constructor(network, session) {
    this.network = network;
    this.session = session;
  }

  // Returns the image that the network saw, {pixels, width, height, channels}; the logits; the probabilities; and
  // the feature map of the head, {data, rows, columns}, with the classes first.
  async classify(file) {
    const {image_shape, crop, head, head_margin} = this.network;
    const image = await readImage(file, image_shape, crop);
    const {pixels, width, height, channels} = image;
    const input = new Uint8Array(pixels.length); // channels first
    for (let i = 0; i < pixels.length; i++) input[(i % channels) * width * height + Math.floor(i / channels)] = pixels[i];
    const tensor = new ort.Tensor("uint8", input, [1, channels, height, width]);
    const outputs = await this.session.run({[this.session.inputNames[0]]: tensor});
    const logits = outputs.logits.data;
    const largest = logits.reduce((a, b) => Math.max(a, b));
    const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
    const sum = exponentials.reduce((a, b) => a + b);
    const [, , rows, columns] = outputs[head].dims;
    const maps = {data: outputs[head].data, rows, columns, margin: head_margin};
    return {image, logits, probabilities: exponentials.map((value) => value / sum), maps};
  }
}

// Returns the class activation map (Zhou et al. 2016, arXiv 1512.04150) of one class, {values, rows, columns}.
export function activationMap({data, rows, columns, margin}, index) {
  const values = [];
  for (let row = margin; row < rows - margin; row++) {
    for (let column = margin; column < columns - margin; column++) {
      values.push(data[(index * rows + row) * columns + column]);
    }
  }
  return {values, rows: rows - 2 * margin, columns: columns - 2 * margin};
}

async function fetched(name) {
  const response = await fetch(here(name));
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}).`);
  return response;
}
