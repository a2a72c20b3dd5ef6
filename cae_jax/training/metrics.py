"""Losses and quality measures, one value per image.

Images and logits are ``[N, 28, 28, 1]``; targets and reconstructions lie in [0, 1].
"""

import math

import dm_pix
import jax
import jax.numpy as jnp


def bce(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy from logits, in nats, mean over the pixels: ``[N]``.

    Finite for every finite logit. Grey targets keep it above the mean entropy of their pixels.
    """
    # -t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z)) with one logarithm instead of two
    return _pixel_mean(jax.nn.softplus(logits) - logits * targets)


def mse(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error over the pixels: ``[N]``."""
    return _pixel_mean(jnp.square(images - targets))


def psnr(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB at a peak of 1, at most 100: ``[N]``."""
    return psnr_of_mse(mse(images, targets))


def psnr_of_mse(mse: jax.Array) -> jax.Array:
    """The same from mean squared errors.

    Equal images have an infinite ratio, and noise may leave some as they are: black ones when it
    is multiplied, say. At 100 dB, far above what 8-bit pixels tell apart, a mean stays a number.
    """
    return -10 * jnp.log10(jnp.maximum(mse, 1e-10))


def ssim(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Structural similarity, at most 1: ``[N]``.

    Wang et al. 2004, with the paper's 11 x 11 Gaussian window of standard deviation 1.5.
    """
    return jnp.asarray(dm_pix.ssim(images, targets))


def _pixel_mean(values: jax.Array) -> jax.Array:
    # As a product with ones: XLA on the CPU adds the pixels of an image one after another, which
    # takes longer than a layer.
    pixels = math.prod(values.shape[1:])
    sums = jnp.dot(values.reshape(len(values), pixels), jnp.ones(pixels), precision="highest")
    return sums / pixels
