"""Evaluates a group of models on validation images, with the noise that their training has."""

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops.backend import Backend
from cae_jax.training import metrics, programs, step
from cae_jax.training.loss import select_loss
from cae_jax.training.noise import build_corruption, targets


class Score(NamedTuple):
    """The quality of a model after an epoch: means over the validation images.

    Attributes:
        val_loss: the loss that training minimises, with noise if the config has any.
        val_psnr: PSNR of the reconstructions in dB, against the clean images.
        val_psnr_input: PSNR of the noisy images themselves in dB; None without noise.
    """

    val_loss: float
    val_psnr: float
    val_psnr_input: float | None


class Validation:
    """Evaluates a group of models on validation images; its program is compiled on construction.

    Args:
        members: configs of the group, see `programs.check_members`.
        model: the model; only its structure is used.
        backend: computes the network.
        test_images: uint8 ``[N, *image_shape]``.
    """

    def __init__(
        self,
        members: Sequence[TrainConfig],
        model: Model,
        backend: Backend,
        test_images: np.ndarray | jax.Array,
    ) -> None:
        self._stored = jax.device_put(test_images)
        self.images = targets(build_corruption(members[0].noise), self._stored)
        self._members = members
        self._noise = programs.noise(members[0], model, len(test_images))
        program = programs.evaluation(members, model, backend, len(test_images))
        self._evaluate = program.compile_here()

    def with_members(self, members: Sequence[TrainConfig]) -> "Validation":
        """The same images and program for other members, with the noise of their seeds."""
        other = copy.copy(self)
        other._members = members
        for name in ("_inputs", "_psnr_input"):
            vars(other).pop(name, None)
        return other

    def inputs(self, k: int = 0) -> jax.Array:
        """The validation images with the noise of member `k`, if any."""
        return self._inputs if len(self._members) == 1 else self._noisy(self._members[k])

    @functools.cached_property
    def _inputs(self) -> jax.Array:
        return self._noisy(self._members[0])

    @functools.cached_property
    def _psnr_input(self) -> float | None:
        if self._noise is None:
            return None
        return _mean(metrics.psnr(self._inputs, scale(self.images)))

    def _noisy(self, config: TrainConfig) -> jax.Array:
        if self._noise is None:
            return self.images
        return self._noise.function(step.make_keys(config.seed).test_noise, scale(self._stored))

    def evaluate(self, params: nnx.State) -> list[Score]:
        """The quality of each member of a group with these parameters."""
        kind = self._members[0].loss
        if len(self._members) == 1:
            losses = self._evaluate(params, self._inputs, self.images)
            psnr = _mean(metrics.psnr_of_mse(losses[1]))
            return [Score(_mean(select_loss(losses, kind)), psnr, self._psnr_input)]
        keys = step.make_keys(*(config.seed for config in self._members))
        bce_MxN, mse_MxN, noisy_MxN = self._evaluate(params, keys.test_noise, self._stored)
        losses_MxN = select_loss((bce_MxN, mse_MxN), kind)
        columns = (losses_MxN, *map(metrics.psnr_of_mse, (mse_MxN, noisy_MxN)))
        scores = [Score(*map(_mean, row)) for row in zip(*map(np.asarray, columns), strict=True)]
        if self._noise is None:
            scores = [score._replace(val_psnr_input=None) for score in scores]
        return scores


def _mean(values: jax.Array | np.ndarray) -> float:
    return float(np.asarray(values, np.float64).mean())
