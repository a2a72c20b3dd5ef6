"""Losses and quality measures, one value per image.

Images and logits are ``[N, 28, 28, 1]``; targets and reconstructions lie in [0, 1].
"""

import dm_pix
import jax
import jax.numpy as jnp
import optax


def bce(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy from logits, in nats, mean over the pixels: ``[N]``.

    Finite for every finite logit. Grey targets keep it above the mean entropy of their pixels.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=(1, 2, 3))


def mse(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error over the pixels: ``[N]``."""
    return jnp.square(images - targets).mean(axis=(1, 2, 3))


def psnr(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB at a peak of 1; infinite for equal images: ``[N]``."""
    return -10 * jnp.log10(mse(images, targets))


def ssim(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Structural similarity, at most 1: ``[N]``.

    Wang et al. 2004, with the paper's 11 x 11 Gaussian window of standard deviation 1.5.
    """
    return jnp.asarray(dm_pix.ssim(images, targets))
