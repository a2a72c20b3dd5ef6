// The report data that Python has embedded in the page, with arrays and images decoded.
//
// An image is a Float32Array of values in [0, 1], row by row, the channels of a pixel side by side.
"use strict";

const reportData = JSON.parse(document.getElementById("report-data").textContent);
const [HEIGHT, WIDTH, CHANNELS] = reportData.image_shape;
const runs = reportData.runs;
const images = split(Float32Array.from(bytesOf(reportData.images), (pixel) => pixel / 255));
// The class of each image; "" where the data have none.
const classes = images.map((_, i) => reportData.classes[i] ?? "");
const imageNames = classes.map((name, i) => `image ${i + 1}${name && `: ${name}`}`);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Little-endian float32, the byte order of every machine that runs a browser today.
function floatsOf(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

// The images of one long array.
function split(values) {
  const size = HEIGHT * WIDTH * CHANNELS;
  const count = values.length / size;
  return Array.from({ length: count }, (_, i) => values.slice(i * size, (i + 1) * size));
}
