"""Evaluates a model on the test images, with the noise that its training has."""

import copy
import functools

import jax
import numpy as np
from flax import nnx

from cae_jax.config import Loss, TrainConfig
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops.backend import Backend
from cae_jax.training import metrics, programs, step
from cae_jax.training.loss import select_loss


class Validation:
    """Evaluates one model on the test images; its program is compiled on construction.

    Args:
        config: the training.
        model: the model, whose structure counts.
        backend: computes the network.
        test_images: uint8 ``[N, *image_shape]``.
    """

    def __init__(
        self, config: TrainConfig, model: Model, backend: Backend, test_images: np.ndarray
    ) -> None:
        self.images = jax.device_put(test_images)
        self._noise = programs.noise(config, model, len(test_images))
        self._seed = config.seed
        self._loss: Loss = config.loss
        evaluate = programs.evaluation(config, model, backend, len(test_images))
        self._evaluate = evaluate.compile()

    def with_seed(self, seed: int) -> "Validation":
        """The same images with the noise of another seed."""
        other = copy.copy(self)
        other._seed = seed
        vars(other).pop("inputs", None)
        vars(other).pop("psnr_input", None)
        return other

    @functools.cached_property
    def inputs(self) -> jax.Array:
        """The test images, with noise if the config has any."""
        return noisy(self._noise, self.images, self._seed)

    @functools.cached_property
    def psnr_input(self) -> float | None:
        """Mean PSNR in dB of the noisy test images themselves; None without noise."""
        if self._noise is None:
            return None
        return _mean(metrics.psnr(self.inputs, scale(self.images)))

    def evaluate(self, params: nnx.State) -> tuple[float, float]:
        """Means over the test images: of the loss that training minimises, and of PSNR in dB."""
        losses = self._evaluate(params, self.inputs, self.images)
        return _mean(select_loss(losses, self._loss)), _mean(metrics.psnr_of_mse(losses[1]))


def noisy(noise: programs.Program | None, images: jax.Array, seed: int) -> jax.Array:
    """Test images with the noise of a seed, drawn by `programs.noise`; as they are without one."""
    if noise is None:
        return images
    return noise.function(step.make_keys(seed).test_noise, scale(images))


def _mean(values: jax.Array) -> float:
    return float(np.asarray(values, np.float64).mean())
