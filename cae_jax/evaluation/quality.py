"""Quality of trained models on test images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cae_jax.data.images import prepare_images, scale
from cae_jax.models.inference import Autoencoder
from cae_jax.models.topology import IMAGE_SHAPE
from cae_jax.ops.backend import MATMUL
from cae_jax.training import metrics


class Quality(NamedTuple):
    """One value per image, each float64 ``[N]``: nats, squared intensity, dB, at most 1."""

    bce: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def evaluate(
    autoencoder: Autoencoder, images: np.ndarray, inputs: np.ndarray | None = None
) -> Quality:
    """How well a model reconstructs images, from themselves or from noisy ones.

    Args:
        autoencoder: a trained model.
        images: as `Autoencoder.reconstruct` takes them, N at least 1.
        inputs: what the model gets instead of them.

    Raises:
        UserError: images that a model does not take.
    """
    logits = autoencoder.logits(images if inputs is None else inputs)
    return _batched(_of_logits, logits, prepare_images(images, autoencoder.topology.image_shape))


def measure(pictures: np.ndarray, images: np.ndarray) -> Quality:
    """The quality of pictures that no model of this package made.

    Args:
        pictures: floats ``[N, 28, 28, 1]`` in [0, 1], N at least 1. For the binary cross-entropy,
            which is infinite for a black pixel that should not be black, they are clipped to
            [1e-7, 1 - 1e-7], as Keras does.
        images: what they should be, as `Autoencoder.reconstruct` takes them.
    """
    both = (prepare_images(each, IMAGE_SHAPE) for each in (pictures, images))
    return _batched(_of_pictures, *both)


@jax.jit
def _of_logits(logits: jax.Array, targets: jax.Array) -> Quality:
    targets = scale(targets)
    return _quality(metrics.bce(logits, targets), jax.nn.sigmoid(logits), targets)


@jax.jit
def _of_pictures(pictures: jax.Array, targets: jax.Array) -> Quality:
    targets = scale(targets)
    p = jnp.clip(pictures, 1e-7, 1 - 1e-7)
    return _quality(metrics.bce(jnp.log(p) - jnp.log1p(-p), targets), pictures, targets)


def _quality(bce: jax.Array, pictures: jax.Array, targets: jax.Array) -> Quality:
    values: Any = (  # arrays of the device, which `_batched` brings over
        bce,
        metrics.mse(pictures, targets),
        metrics.psnr(pictures, targets),
        metrics.ssim(pictures, targets),
    )
    return Quality(*values)


def _batched(function: Callable, values: np.ndarray, targets: np.ndarray) -> Quality:
    parts = [
        function(values[i : i + MATMUL.max_batch], targets[i : i + MATMUL.max_batch])
        for i in range(0, len(targets), MATMUL.max_batch)
    ]
    return Quality(*(np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True)))
