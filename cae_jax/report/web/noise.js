// The noises of cae_jax/corruption.py. Images are Float32Arrays in [0, 1], and so are noisy ones.
"use strict";

// Random numbers from 0 to below 1 that a seed determines (Mulberry32 by Tommy Ettinger), so that
// another level scales the same noise and does not draw anew.
function makeUniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Box and Muller 1958: a standard normal number from two uniform ones.
function normal(uniform) {
  return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// How many terms of the distribution function lie below a uniform number (Devroye 1986, X.3.3).
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

// One noisy pixel from a clean one, the level and random numbers.
const PIXEL_NOISES = {
  gaussian: (value, std, uniform) => value + std * normal(uniform),
  salt_and_pepper: (value, fraction, uniform) => {
    const u = uniform();
    return u < fraction / 2 ? 0 : u >= 1 - fraction / 2 ? 1 : value;
  },
  masking: (value, fraction, uniform) => (uniform() < fraction ? 0 : value),
  speckle: (value, std, uniform) => value * (1 + std * normal(uniform)),
  poisson: (value, photons, uniform) => poisson(value * photons, uniform) / photons,
};

// A black square, whole within the image, every place equally likely.
function occlude(image, side, uniform) {
  const top = Math.floor(uniform() * (SIDE - side + 1));
  const left = Math.floor(uniform() * (SIDE - side + 1));
  const noisy = image.slice();
  for (let row = top; row < top + side; row++) {
    noisy.fill(0, row * SIDE + left, row * SIDE + left + side);
  }
  return noisy;
}

// The image with noise of a kind and level; the same seed gives the same noise.
function corrupt(image, kind, level, seed) {
  const uniform = makeUniform(seed);
  if (kind === "occlusion") return occlude(image, level, uniform);
  const noisy = (value) => PIXEL_NOISES[kind](value, level, uniform);
  return image.map((value) => Math.min(Math.max(noisy(value), 0), 1));
}
