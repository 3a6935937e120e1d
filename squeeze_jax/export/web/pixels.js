// Reads photographs pixel by pixel as squeeze_jax does with Pillow: without color management, without the orientation
// in EXIF data, without transparency, and resized by Pillow's bilinear filter, which averages over the covered pixels.

export class ImageError extends Error {}

const LARGEST_IMAGE = 100e6; // pixels
const TILE = 1024; // rows and columns that are read at a time; every GPU has textures of this size
const AS_STORED = {premultiplyAlpha: "none", colorSpaceConversion: "none"};
const PRECISION = 22; // bits of Pillow's fixed-point coefficients (src/libImaging/Resample.c)

// Returns {pixels, width, height, channels} of an image file: uint8, channels last, resized and cropped.
export async function readImage(file, imageShape, crop) {
  const [height, width, channels] = imageShape;
  const bitmap = await decode(file);
  const stored = [bitmap.width, bitmap.height];
  const size = crop ? resizedSize(crop, ...stored) : stored;
  if (!crop && (size[0] !== width || size[1] !== height)) {
    bitmap.close();
    throw new ImageError(`The image has ${size[0]} x ${size[1]} pixels; this network takes ${width} x ${height}.`);
  }
  const resized = resize(await readPixels(bitmap, channels).finally(() => bitmap.close()), channels, stored, size);
  const left = roundHalfEven((size[0] - width) / 2), top = roundHalfEven((size[1] - height) / 2);
  const pixels = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * size[0] + left) * channels;
    pixels.set(resized.subarray(start, start + width * channels), y * width * channels);
  }
  return {pixels, width, height, channels};
}

async function decode(file) {
  const blob = withoutMetadata(new Uint8Array(await file.arrayBuffer()));
  const [width, height] = await imageSize(blob, file.name);
  if (width * height > LARGEST_IMAGE) {
    const megapixels = (width * height / 1e6).toFixed(0);
    throw new ImageError(`${file.name} has ${megapixels} megapixels; at most ${LARGEST_IMAGE / 1e6} are supported.`);
  }
  try {
    return await createImageBitmap(blob, AS_STORED);
  } catch {
    throw new ImageError(`${file.name} is damaged, or too large for this browser (${width} x ${height} pixels).`);
  }
}

// Returns [width, height] without decoding the pixels.
async function imageSize(blob, name) {
  const url = URL.createObjectURL(blob);
  try {
    return await new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
      image.onerror = () => reject(new ImageError(`${name} is not an image that this browser can read.`));
      image.src = url;
    });
  } finally {
    URL.revokeObjectURL(url);
  }
}

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const PNG_DROPPED = ["eXIf", "iCCP", "sRGB", "gAMA", "cHRM", "cICP", "tRNS"];
const [APP1, APP2, SOS] = [0xe1, 0xe2, 0xda]; // markers of JPEG: EXIF, color profile, start of the pixels

// Returns a JPEG or PNG file without orientation, color profile and transparent colors; any other file unchanged.
function withoutMetadata(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const parts = [];
  let position = 0;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    parts.push(bytes.subarray(0, 2));
    position = 2;
    while (position + 4 <= bytes.length && bytes[position] === 0xff && bytes[position + 1] !== SOS) {
      if (bytes[position + 1] === 0xff) { // padding
        position++;
        continue;
      }
      const end = position + 2 + view.getUint16(position + 2);
      if (bytes[position + 1] !== APP1 && bytes[position + 1] !== APP2) parts.push(bytes.subarray(position, end));
      position = end;
    }
  } else if (PNG.every((byte, i) => bytes[i] === byte)) {
    if (bytes[24] === 16 && (bytes[25] & 2) === 0) {
      throw new ImageError("The image has more than 8 bits per pixel; convert it to 8 bits first.");
    }
    parts.push(bytes.subarray(0, 8));
    position = 8;
    while (position + 12 <= bytes.length) {
      const end = position + 12 + view.getUint32(position);
      const type = String.fromCharCode(...bytes.subarray(position + 4, position + 8));
      if (!PNG_DROPPED.includes(type)) parts.push(bytes.subarray(position, end));
      position = end;
    }
  }
  return new Blob([...parts, bytes.subarray(position)]);
}

function resizedSize({resize, keep_aspect}, width, height) {
  if (Array.isArray(resize)) return [resize[1], resize[0]];
  if (!keep_aspect) return [resize, resize];
  const short = Math.min(width, height);
  return [Math.trunc(resize * width / short), Math.trunc(resize * height / short)];
}

function roundHalfEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor & 1) : Math.round(x);
}

// Resizes as Pillow does, along one axis after the other, rounded to whole pixel values after each. The order is that of
// Pillow 13: columns first if their length shrinks by more than twice what the rows lose. Older ones begin with the rows.
function resize(pixels, channels, [width, height], [newWidth, newHeight]) {
  const across = (image, rows) => {
    const cells = coefficients(width, newWidth);
    const result = new Uint8Array(rows * newWidth * channels);
    for (let row = 0; row < rows; row++) {
      weigh(cells, channels, image, row * width * channels, result, row * newWidth * channels);
    }
    return result;
  };
  const down = (image, columns) => {
    const result = new Uint8Array(newHeight * columns * channels);
    weigh(coefficients(height, newHeight), columns * channels, image, 0, result, 0);
    return result;
  };
  const isDownFirst = newHeight < height && height - newHeight > 2 * (width - newWidth);
  return isDownFirst ? across(down(pixels, width), newHeight) : down(across(pixels, height), newWidth);
}

// For each output cell, the first input cell and the fixed-point weights of it and its successors.
function coefficients(before, after) {
  if (before === after) return Array.from({length: after}, (_, i) => [i, [1 << PRECISION]]);
  const scale = before / after, reach = Math.max(scale, 1);
  return Array.from({length: after}, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(before, Math.trunc(center + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(Math.max(0, 1 - Math.abs((x - center + 0.5) * (1 / reach))));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((weight) => Math.trunc(weight / sum * (1 << PRECISION) + 0.5))];
  });
}

// Writes the weighted sums along one axis, on which each cell has `length` values.
function weigh(cells, length, source, from, target, to) {
  for (const [first, weights] of cells) {
    for (let i = 0; i < length; i++) {
      let sum = 1 << (PRECISION - 1);
      let position = from + first * length + i;
      for (let k = 0; k < weights.length; k++, position += length) sum += source[position] * weights[k];
      target[to++] = Math.min(255, sum >> PRECISION);
    }
  }
}

// Returns all pixels, with the channels last.
async function readPixels(bitmap, channels) {
  const {width, height} = bitmap;
  const pixels = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y += TILE) {
    for (let x = 0; x < width; x += TILE) {
      const columns = Math.min(TILE, width - x), rows = Math.min(TILE, height - y);
      const rgba = await readTile(bitmap, x, y, columns, rows);
      for (let row = 0; row < rows; row++) {
        let to = ((y + row) * width + x) * channels;
        for (let i = 4 * row * columns; i < 4 * (row + 1) * columns; i += 4) {
          if (channels === 1 && (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2])) {
            throw new ImageError("The image is in color; this network takes gray images.");
          }
          for (let channel = 0; channel < channels; channel++) pixels[to++] = rgba[i + channel];
        }
      }
    }
  }
  return pixels;
}

let canvas, context;

async function readTile(bitmap, x, y, width, height) {
  canvas ??= new OffscreenCanvas(TILE, TILE);
  context ??= canvas.getContext("2d", {willReadFrequently: true});
  context.clearRect(0, 0, width, height);
  context.drawImage(bitmap, x, y, width, height, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  for (let i = 3; i < rgba.length; i += 4) {
    if (rgba[i] !== 255) return readTransparentTile(bitmap, x, y, width, height);
  }
  return rgba;
}

// A 2-D canvas stores colors multiplied by alpha, which loses the colors of transparent pixels; a texture does not.
async function readTransparentTile(bitmap, x, y, width, height) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl) throw new ImageError("Transparent images need WebGL, which this browser does not have.");
  const tile = await createImageBitmap(bitmap, x, y, width, height, AS_STORED);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, tile);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const rgba = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // a browser keeps only a few contexts
  tile.close();
  return rgba;
}
