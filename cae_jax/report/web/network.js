// Computes the networks of cae_jax/models/topology.py, in plain loops over the trained weights.
//
// A network is {layers, code}: the layers in order, of which the first is the input, and the index
// of the layer whose output is the code. A layer has a kind, the shape of its output, [height,
// width, channels] or [size], and an activation; a layer with parameters also has the shape of its
// kernel, the weights in that order and the bias. Values are Float32Arrays in the order of a shape.
"use strict";

// A network of the report data with its weights decoded.
function readNetwork({ layers, code }) {
  const unpack = (layer) =>
    layer.kernel === null
      ? layer
      : { ...layer, weights: floatsOf(layer.weights), bias: floatsOf(layer.bias) };
  return { layers: layers.map(unpack), code };
}

// Image to code.
function encode(network, image) {
  return compute(network.layers.slice(0, network.code + 1), image);
}

// Code to image.
function decode(network, code) {
  return compute(network.layers.slice(network.code), code);
}

function reconstruct(network, image) {
  return decode(network, encode(network, image));
}

const OPERATIONS = { conv: convolve, pool: maxPool, upsample, crop, dense };
const ACTIVATIONS = {
  relu: (value) => Math.max(value, 0),
  sigmoid: (logit) => 1 / (1 + Math.exp(-logit)),
  round: (value) => Math.round(value),
};

// The output of the last layer for the output of the first one.
function compute([first, ...layers], values) {
  let shape = first.shape;
  for (const layer of layers) {
    values = OPERATIONS[layer.kind](values, shape, layer);
    if (layer.activation !== null) values = values.map(ACTIVATIONS[layer.activation]);
    shape = layer.shape;
  }
  return values;
}

// Convolution. "same" padding puts zeros around the image and keeps its size, "valid" adds none;
// rows and columns have one of these each.
function convolve(values, [height, width, channels], layer) {
  const [outHeight, outWidth, features] = layer.shape;
  const [rows, columns] = layer.kernel;
  const [top, left] = layer.padding.map((padding, axis) =>
    padding === "same" ? (layer.kernel[axis] - 1) / 2 : 0,
  );
  const result = new Float32Array(outHeight * outWidth * features);
  const sums = new Float64Array(features);
  for (let y = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      sums.set(layer.bias);
      for (let row = 0; row < rows; row++) {
        const fromY = y + row - top;
        if (fromY < 0 || fromY >= height) continue;
        for (let column = 0; column < columns; column++) {
          const fromX = x + column - left;
          if (fromX < 0 || fromX >= width) continue;
          const pixel = (fromY * width + fromX) * channels;
          const weights = (row * columns + column) * channels * features;
          for (let channel = 0; channel < channels; channel++) {
            const value = values[pixel + channel];
            const start = weights + channel * features;
            for (let f = 0; f < features; f++) sums[f] += value * layer.weights[start + f];
          }
        }
      }
      result.set(sums, (y * outWidth + x) * features);
    }
  }
  return result;
}

// The maximum of each 2x2 window; an odd size leaves narrower windows at the right and the bottom.
function maxPool(values, [height, width, channels], layer) {
  const [outHeight, outWidth] = layer.shape;
  const result = new Float32Array(outHeight * outWidth * channels).fill(-Infinity);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (y * width + x) * channels;
      const to = ((y >> 1) * outWidth + (x >> 1)) * channels;
      for (let c = 0; c < channels; c++) {
        result[to + c] = Math.max(result[to + c], values[from + c]);
      }
    }
  }
  return result;
}

// Repeats each row and each column.
function upsample(values, shape, layer) {
  return gather(values, shape, layer, (index) => index >> 1);
}

// Drops rows at the bottom and columns at the right.
function crop(values, shape, layer) {
  return gather(values, shape, layer, (index) => index);
}

// Copies the pixel at (source(y), source(x)) to each (y, x).
function gather(values, [, width, channels], layer, source) {
  const [outHeight, outWidth] = layer.shape;
  const result = new Float32Array(outHeight * outWidth * channels);
  for (let y = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      const from = (source(y) * width + source(x)) * channels;
      result.set(values.subarray(from, from + channels), (y * outWidth + x) * channels);
    }
  }
  return result;
}

// Fully connected layer: each input adds its multiple of one row of the kernel.
function dense(values, _shape, layer) {
  const [inputs, outputs] = layer.kernel;
  const sums = Float64Array.from(layer.bias);
  for (let i = 0; i < inputs; i++) {
    const start = i * outputs;
    for (let j = 0; j < outputs; j++) sums[j] += values[i] * layer.weights[start + j];
  }
  return Float32Array.from(sums);
}

// Linear interpolation of codes or images: a at t = 0, b at t = 1.
function blend(a, b, t) {
  return a.map((value, i) => (1 - t) * value + t * b[i]);
}

// Peak signal-to-noise ratio in dB at a peak of 1, at most 100, as in cae_jax/training/metrics.py.
function psnr(image, target) {
  let sum = 0;
  for (let i = 0; i < target.length; i++) sum += (image[i] - target[i]) ** 2;
  return -10 * Math.log10(Math.max(sum / target.length, 1e-10));
}
