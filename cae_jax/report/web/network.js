// The autoencoders of cae_jax/models.py, in straight loops over the trained weights.
//
// An image is a Float32Array of 784 values in [0, 1], row by row. What flows between convolutions
// is a "map": {size, channels, values}, size x size pixels with the channels of a pixel side by
// side. A layer holds its kernel as one Float32Array in the order of its shape: [row, column,
// channel in, channel out] of a convolution, [in, out] of a fully connected layer.
"use strict";

const SIDE = 28;

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Little-endian float32, the byte order of every machine that runs a browser today.
function floatsOf(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

// A network with its weights unpacked: {model, codeSize, layers by name}.
function readNetwork(packed) {
  const layers = {};
  for (const [name, layer] of Object.entries(packed.layers)) {
    layers[name] = {
      shape: layer.shape,
      kernel: floatsOf(layer.kernel),
      bias: floatsOf(layer.bias),
    };
  }
  return { model: packed.model, codeSize: packed.code_size, layers };
}

// Image to code.
function encode(network, image) {
  const layers = network.layers;
  if (network.model === "conv") {
    let map = { size: SIDE, channels: 1, values: image };
    map = relu(maxPool(convolve(map, layers.conv1, "same"))); // 28 -> 14
    map = relu(maxPool(convolve(map, layers.conv2, "same"))); // 14 -> 7
    map = relu(maxPool(convolve(map, layers.conv3, "same"))); // 7 -> 4
    return map.values;
  }
  const depth = Object.keys(layers).length / 2;
  let values = image;
  for (let i = 1; i <= depth; i++) values = reluOf(dense(values, layers[`dense${i}`]));
  return values;
}

// Code to image.
function decode(network, code) {
  const layers = network.layers;
  if (network.model === "conv") {
    let map = { size: 4, channels: code.length / 16, values: code };
    map = relu(convolve(map, layers.conv4, "same")); // 4
    map = relu(convolve(upsample(map), layers.conv5, "same")); // 4 -> 8
    map = relu(convolve(upsample(map), layers.conv6, "valid")); // 8 -> 16 -> 14
    map = convolve(upsample(map), layers.conv7, "same"); // 14 -> 28
    return map.values.map(sigmoid);
  }
  const count = Object.keys(layers).length;
  let values = code;
  for (let i = count / 2 + 1; i < count; i++) values = reluOf(dense(values, layers[`dense${i}`]));
  return dense(values, layers[`dense${count}`]).map(sigmoid);
}

function reconstruct(network, image) {
  return decode(network, encode(network, image));
}

// 3x3 convolution. "same" takes pixels beyond the border as 0 and keeps the size, "valid" stays
// inside and loses a pixel on each side.
function convolve(map, layer, padding) {
  const [rows, columns, channels, features] = layer.shape;
  const edge = padding === "same" ? 1 : 0;
  const size = map.size - rows + 1 + 2 * edge;
  const values = new Float32Array(size * size * features);
  const sums = new Float64Array(features);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      sums.set(layer.bias);
      for (let row = 0; row < rows; row++) {
        const fromY = y + row - edge;
        if (fromY < 0 || fromY >= map.size) continue;
        for (let column = 0; column < columns; column++) {
          const fromX = x + column - edge;
          if (fromX < 0 || fromX >= map.size) continue;
          const pixel = (fromY * map.size + fromX) * channels;
          const weights = (row * columns + column) * channels * features;
          for (let channel = 0; channel < channels; channel++) {
            const value = map.values[pixel + channel];
            const start = weights + channel * features;
            for (let f = 0; f < features; f++) sums[f] += value * layer.kernel[start + f];
          }
        }
      }
      values.set(sums, (y * size + x) * features);
    }
  }
  return { size, channels: features, values };
}

// The maximum of each 2x2 window; an odd size leaves narrower windows at the right and the bottom.
function maxPool(map) {
  const size = Math.ceil(map.size / 2);
  const values = new Float32Array(size * size * map.channels).fill(-Infinity);
  for (let y = 0; y < map.size; y++) {
    for (let x = 0; x < map.size; x++) {
      const from = (y * map.size + x) * map.channels;
      const to = ((y >> 1) * size + (x >> 1)) * map.channels;
      for (let c = 0; c < map.channels; c++) {
        values[to + c] = Math.max(values[to + c], map.values[from + c]);
      }
    }
  }
  return { size, channels: map.channels, values };
}

// Every pixel 2x2 times.
function upsample(map) {
  const size = 2 * map.size;
  const values = new Float32Array(size * size * map.channels);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const from = ((y >> 1) * map.size + (x >> 1)) * map.channels;
      const pixel = map.values.subarray(from, from + map.channels);
      values.set(pixel, (y * size + x) * map.channels);
    }
  }
  return { size, channels: map.channels, values };
}

// Fully connected layer: each input adds its multiple of one row of the kernel.
function dense(inputs, layer) {
  const [countIn, countOut] = layer.shape;
  const sums = Float64Array.from(layer.bias);
  for (let i = 0; i < countIn; i++) {
    const start = i * countOut;
    for (let j = 0; j < countOut; j++) sums[j] += inputs[i] * layer.kernel[start + j];
  }
  return Float32Array.from(sums);
}

function relu(map) {
  return { ...map, values: reluOf(map.values) };
}

function reluOf(values) {
  return values.map((value) => Math.max(value, 0));
}

function sigmoid(logit) {
  return 1 / (1 + Math.exp(-logit));
}

// The way from one code or image to another: a at t = 0, b at t = 1.
function blend(a, b, t) {
  return a.map((value, i) => (1 - t) * value + t * b[i]);
}

// Peak signal-to-noise ratio in dB at a peak of 1, at most 100, as in cae_jax/metrics.py.
function psnr(image, target) {
  let sum = 0;
  for (let i = 0; i < target.length; i++) sum += (image[i] - target[i]) ** 2;
  return -10 * Math.log10(Math.max(sum / target.length, 1e-10));
}
