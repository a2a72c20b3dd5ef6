// The kinds of noise of cae_jax/training/noise.py; noisy images lie in [0, 1] too.
"use strict";

// Uniform random numbers in [0, 1) from a seed (Mulberry32 by Tommy Ettinger): with the same seed,
// another level scales the same noise instead of drawing a new one.
function makeUniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

// A standard normal number from two uniform ones (Box and Muller 1958).
function normal(uniform) {
  return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// A Poisson number by inversion of the distribution function (Devroye 1986, X.3.3).
function poisson(rate, uniform) {
  const u = uniform();
  let term = Math.exp(-rate);
  let below = term;
  let count = 0;
  while (u >= below && term > 0) {
    count += 1;
    term *= rate / count;
    below += term;
  }
  return count;
}

// Noise of a sensor: one noisy value from a clean one, the level and a source of random numbers.
const SENSOR_NOISES = {
  gaussian: (value, std, uniform) => value + std * normal(uniform),
  speckle: (value, std, uniform) => value * (1 + std * normal(uniform)),
  poisson: (value, photons, uniform) => poisson(value * photons, uniform) / photons,
};

// Noise that replaces pixels: the value of one in all channels; null leaves the pixel.
const REPLACEMENTS = {
  salt_and_pepper: (fraction, uniform) => {
    const u = uniform();
    return u < fraction / 2 ? 0 : u >= 1 - fraction / 2 ? 1 : null;
  },
  masking: (fraction, uniform) => (uniform() < fraction ? 0 : null),
};

function replacePixels(image, replacement, level, uniform) {
  const noisy = image.slice();
  for (let start = 0; start < noisy.length; start += CHANNELS) {
    const value = replacement(level, uniform);
    if (value !== null) noisy.fill(value, start, start + CHANNELS);
  }
  return noisy;
}

// A black square entirely inside the image, at a uniformly random position.
function occlude(image, side, uniform) {
  const top = Math.floor(uniform() * (HEIGHT - side + 1));
  const left = Math.floor(uniform() * (WIDTH - side + 1));
  const noisy = image.slice();
  for (let row = top; row < top + side; row++) {
    const start = (row * WIDTH + left) * CHANNELS;
    noisy.fill(0, start, start + side * CHANNELS);
  }
  return noisy;
}

// Adds noise of a kind and level to an image; the same seed gives the same noise.
function corrupt(image, kind, level, seed) {
  const uniform = makeUniform(seed);
  if (kind === "occlusion") return occlude(image, level, uniform);
  if (kind in REPLACEMENTS) return replacePixels(image, REPLACEMENTS[kind], level, uniform);
  const noisy = (value) => SENSOR_NOISES[kind](value, level, uniform);
  return image.map((value) => Math.min(Math.max(noisy(value), 0), 1));
}
