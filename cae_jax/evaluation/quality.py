"""Measures the quality of reconstructions: BCE, MSE, PSNR and SSIM of each image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cae_jax.data.images import prepare_images
from cae_jax.models.autoencoders import scale
from cae_jax.models.inference import Autoencoder
from cae_jax.ops.backend import MATMUL, limit_batch
from cae_jax.training import metrics


class Quality(NamedTuple):
    """One value per image, each float64 ``[N]``.

    Attributes:
        bce: binary cross-entropy in nats, mean over the pixels.
        mse: mean squared error over the pixels.
        psnr: peak signal-to-noise ratio in dB, at most 100.
        ssim: structural similarity, at most 1.
    """

    bce: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def evaluate_model(
    autoencoder: Autoencoder, images: np.ndarray, inputs: np.ndarray | None = None
) -> Quality:
    """Evaluates a model's reconstructions of images.

    Args:
        autoencoder: the trained model.
        images: clean images in a format that `Autoencoder.reconstruct` accepts, N at least 1.
        inputs: noisy images to reconstruct them from. Default: `images`.

    Raises:
        UserError: images that the model does not accept.
    """
    logits = autoencoder.logits(images if inputs is None else inputs)
    targets = prepare_images(images, autoencoder.topology.image_shape)
    return _batched(_logit_quality, logits, targets)


def evaluate_images(outputs: np.ndarray, images: np.ndarray) -> Quality:
    """Evaluates images that no model of this package has produced.

    Args:
        outputs: floats ``[N, H, W, C]`` in [0, 1], N at least 1. For the binary cross-entropy only,
            which would be infinite for some black or white pixels, they are clipped to
            [1e-7, 1 - 1e-7], as in Keras.
        images: clean images in a format that `Autoencoder.reconstruct` accepts.

    Raises:
        UserError: images of another shape or type.
    """
    both = (prepare_images(each, outputs.shape[1:]) for each in (outputs, images))
    return _batched(_image_quality, *both)


@jax.jit
def _logit_quality(logits: jax.Array, targets: jax.Array) -> Quality:
    targets = scale(targets)
    return _quality(metrics.bce(logits, targets), jax.nn.sigmoid(logits), targets)


@jax.jit
def _image_quality(outputs: jax.Array, targets: jax.Array) -> Quality:
    targets = scale(targets)
    p = jnp.clip(outputs, 1e-7, 1 - 1e-7)
    return _quality(metrics.bce(jnp.log(p) - jnp.log1p(-p), targets), outputs, targets)


def _quality(bce: jax.Array, outputs: jax.Array, targets: jax.Array) -> Quality:
    values: Any = (  # device arrays; `_batched` copies them to the host
        bce,
        metrics.mse(outputs, targets),
        metrics.psnr(outputs, targets),
        metrics.ssim(outputs, targets),
    )
    return Quality(*values)


def _batched(function: Callable, values: np.ndarray, targets: np.ndarray) -> Quality:
    size = limit_batch(MATMUL, targets.shape[1:]).max_batch
    parts = [
        function(values[i : i + size], targets[i : i + size]) for i in range(0, len(targets), size)
    ]
    return Quality(*(np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True)))
