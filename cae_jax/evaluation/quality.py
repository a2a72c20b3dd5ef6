"""Measures the quality of reconstructions: BCE, MSE, PSNR and SSIM of each image."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cae_jax.data.images import prepare_images
from cae_jax.evaluation.lazy import Images, parts
from cae_jax.models.autoencoders import scale
from cae_jax.models.inference import Autoencoder
from cae_jax.ops.backend import MATMUL, limit_batch
from cae_jax.training import metrics

_VALUES = 2**24  # of the images in memory at a time, as floats 64 MB


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
    autoencoder: Autoencoder, images: Images, inputs: Images | None = None
) -> Quality:
    """Evaluates a model's reconstructions of images, of which some are in memory at a time.

    Args:
        autoencoder: the trained model.
        images: clean images in a format that `Autoencoder.reconstruct` accepts, N at least 1.
        inputs: noisy images to reconstruct them from. Default: `images`.

    Raises:
        UserError: images that the model does not accept.
    """
    inputs = images if inputs is None else inputs
    found = []
    for part in parts(len(images), _size(images, autoencoder.max_batch)):
        logits = autoencoder.logits(inputs[part])
        targets = prepare_images(images[part], autoencoder.topology.image_shape)
        found.append(_batched(_logit_quality, logits, targets))
    return _joined(found)


def evaluate_images(outputs: Images, images: Images) -> Quality:
    """Evaluates images that no model of this package has produced; some at a time.

    Args:
        outputs: floats ``[N, H, W, C]`` in [0, 1], N at least 1. For the binary cross-entropy only,
            which would be infinite for some black or white pixels, they are clipped to
            [1e-7, 1 - 1e-7], as in Keras.
        images: clean images in a format that `Autoencoder.reconstruct` accepts.

    Raises:
        UserError: images of another shape or type.
    """
    height, width, channels = outputs.shape[1:]
    found = []
    for part in parts(len(images), _size(images, limit_batch(MATMUL, outputs.shape[1:]).max_batch)):
        both = (prepare_images(each[part], (height, width, channels)) for each in (outputs, images))
        found.append(_batched(_image_quality, *both))
    return _joined(found)


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


def _size(images: Images, batch: int) -> int:
    """How many images are in memory at a time: whole batches."""
    return max(1, _VALUES // math.prod(images.shape[1:]) // batch) * batch


def _batched(function: Callable, values: np.ndarray, targets: np.ndarray) -> Quality:
    size = limit_batch(MATMUL, targets.shape[1:]).max_batch
    return _joined([function(values[i], targets[i]) for i in parts(len(targets), size)])


def _joined(found: list[Quality]) -> Quality:
    return Quality(*(np.concatenate(part).astype(np.float64) for part in zip(*found, strict=True)))
