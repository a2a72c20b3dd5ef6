"""Losses and quality measures, one value per image.

Images and logits are ``[N, height, width, channels]``; targets and reconstructions lie in [0, 1].
"""

import math

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

# Side and standard deviation of the window of SSIM in pixels.
_SSIM_SIDE, _SSIM_SIGMA = 11, 1.5


def bce(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy from logits in nats, averaged over the pixels: ``[N]``.

    Finite for every finite logit. Its minimum is the mean entropy of the target pixels.
    """
    # -t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z)) with one logarithm instead of two
    return _pixel_mean(jax.nn.softplus(logits) - logits * targets)


def mse(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared error over the pixels: ``[N]``."""
    return _pixel_mean(jnp.square(images - targets))


def psnr(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio in dB for a peak of 1, at most 100: ``[N]``."""
    return psnr_of_mse(mse(images, targets))


def psnr_of_mse(mse: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio of mean squared errors, as `psnr`.

    Noise can leave an image unchanged, whose ratio is infinite. The cap of 100 dB, far above the
    resolution of 8-bit pixels, keeps means finite.
    """
    return -10 * jnp.log10(jnp.maximum(mse, 1e-10))


def ssim(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the structural similarity, at most 1, the mean over pixels and channels: ``[N]``.

    Wang et al. 2004, with the paper's 11 x 11 Gaussian window of standard deviation 1.5. For images
    with a side below 11, the largest odd window that fits, scaled in proportion.
    """
    side = min(*images.shape[1:3], _SSIM_SIDE)
    side -= 1 - side % 2
    sigma = _SSIM_SIGMA * side / _SSIM_SIDE
    return jnp.asarray(dm_pix.ssim(images, targets, filter_size=side, filter_sigma=sigma))


def _pixel_mean(values: jax.Array) -> jax.Array:
    # On a CPU a product with ones: XLA's reduction there adds the pixels of an image sequentially,
    # which takes longer than a layer.
    pixels = math.prod(values.shape[1:])
    values = values.reshape(len(values), pixels)
    return (
        jax.lax.platform_dependent(
            values,
            cpu=lambda x: jnp.dot(x, jnp.ones(pixels, x.dtype), precision="highest"),
            default=lambda x: x.sum(axis=1),
        )
        / pixels
    )


def epoch_loss(losses_S: np.ndarray, examples: int, batch_size: int) -> float:
    """The training loss of an epoch as Keras reports it: the mean over its examples.

    Steps with a loss that is not finite are left out; NaN if none is left.
    """
    weights_S = np.full(len(losses_S), batch_size)
    weights_S[-1] = examples - batch_size * (len(losses_S) - 1)
    finite_S = np.isfinite(losses_S)
    if not finite_S.any():
        return math.nan
    return float(np.average(losses_S[finite_S].astype(np.float64), weights=weights_S[finite_S]))
