"""Quality of trained models on test images."""

from typing import NamedTuple

import jax
import numpy as np

from cae_jax import metrics
from cae_jax.inference import MAX_BATCH, Autoencoder, prepare_images


class Quality(NamedTuple):
    """One value per image, each float64 ``[N]``: nats, squared intensity, dB, at most 1."""

    bce: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


@jax.jit
def _measure(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    images = jax.nn.sigmoid(logits)
    return {
        "bce": metrics.bce(logits, targets),
        "mse": metrics.mse(images, targets),
        "psnr": metrics.psnr(images, targets),
        "ssim": metrics.ssim(images, targets),
    }


def evaluate(autoencoder: Autoencoder, images: np.ndarray) -> Quality:
    """How well a model reconstructs images.

    Args:
        autoencoder: a trained model.
        images: as `Autoencoder.reconstruct` takes them, N at least 1.

    Raises:
        UserError: images that a model does not take.
    """
    targets = prepare_images(images)
    parts = [
        _measure(autoencoder.logits(batch), batch)
        for batch in (targets[i : i + MAX_BATCH] for i in range(0, len(targets), MAX_BATCH))
    ]
    return Quality(
        **{
            name: np.concatenate([part[name] for part in parts]).astype(np.float64)
            for name in Quality._fields
        }
    )
