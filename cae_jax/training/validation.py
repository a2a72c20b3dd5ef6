"""Evaluates a group of models on validation images, with the noise that their training has."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops.backend import Backend
from cae_jax.training import metrics, programs, step
from cae_jax.training.devices import Devices
from cae_jax.training.feed import Images
from cae_jax.training.loss import select_loss
from cae_jax.training.noise import build_corruption, has_rows, targets
from cae_jax.training.rows import from_row


class Score(NamedTuple):
    """The quality of a model after an epoch: means over the validation images.

    Attributes:
        val_loss: the loss that training minimises, with noise if the config has any.
        val_psnr: PSNR of the reconstructions in dB, against the clean images.
        val_psnr_input: PSNR of the noisy images themselves in dB; None without noise.
        val_bits: of the code, by its learned density; None without a `rate`.
    """

    val_loss: float
    val_psnr: float
    val_psnr_input: float | None
    val_bits: float | None = None


class Validation:
    """Evaluates a group of models on validation images; its programs are compiled on construction.

    Images that do not fit on the device are evaluated in slices, to the same bits.

    Args:
        members: configs of the group, see `programs.check_members`.
        model: the model; only its structure is used.
        backend: computes the network.
        test_images: uint8 ``[N, *image_shape]``, or a source of them.
        most: images on the device at a time; None for all.
        devices: over which the members are spread, see `programs.evaluation`. A single model is
            evaluated on the default device.
    """

    def __init__(
        self,
        members: Sequence[TrainConfig],
        model: Model,
        backend: Backend,
        test_images: Images,
        most: int | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._members, examples = members, test_images.shape[0]
        self._devices = devices or Devices()
        self._bounds = slices(examples, most, step.eval_batch(backend))
        whole = len(self._bounds) == 1
        self._images = _on_device(test_images, 0, examples) if whole else test_images
        if whole and self._devices.member_axis is not None:
            self._images = self._devices.put(self._images)  # once, and not at each evaluation
        self._image_shape = model.image_shape
        self._corrupt = build_corruption(members[0].noise)
        self._noise = programs.noise(members[0], model, examples)
        key = None if whole else jax.eval_shape(lambda: self._keys(members[:1], 0))
        self._evaluate = {
            count: programs.evaluation(members, model, backend, count, key, devices).compile_here()
            for count in {stop - start for start, stop in self._bounds}
        }

    def with_members(self, members: Sequence[TrainConfig]) -> "Validation":
        """The same images and programs for other members, with the noise of their seeds."""
        other = copy.copy(self)
        other._members = members
        for name in ("_all_inputs", "_psnr_input"):
            vars(other).pop(name, None)
        return other

    def first(self, count: int, k: int = 0) -> tuple[jax.Array, jax.Array]:
        """The first images, and those with the noise of member `k`, if any."""
        start, stored = next(self._slices())
        inputs = self._inputs(start, stored, k)
        return targets(self._corrupt, stored)[:count], inputs[:count]

    def _slices(self) -> Iterator[tuple[int, jax.Array]]:
        """The index of the first image of each slice, and the images as they are stored."""
        for start, stop in self._bounds:
            yield start, _on_device(self._images, start, stop)

    def _keys(self, members: Sequence[TrainConfig], start: int) -> jax.Array:
        """Keys that draw the noise of the images from `start` on."""
        keys = step.make_keys(*(config.seed for config in members)).test_noise
        return keys if len(self._bounds) == 1 else from_row(keys, start)

    @functools.cached_property
    def _all_inputs(self) -> jax.Array:
        return self._noisy(*next(self._slices()), 0)

    def _inputs(self, start: int, stored: jax.Array, k: int = 0) -> jax.Array:
        """Images with the noise of member `k`, if any."""
        if len(self._bounds) == len(self._members) == 1:
            return self._all_inputs
        return self._noisy(start, stored, k)

    def _noisy(self, start: int, stored: jax.Array, k: int) -> jax.Array:
        if self._noise is None:
            return targets(self._corrupt, stored)
        return self._noise.function(self._keys(self._members[k : k + 1], start), scale(stored))

    @functools.cached_property
    def _psnr_input(self) -> float | None:
        if self._noise is None:
            return None
        values = [
            metrics.psnr(self._inputs(start, stored), scale(targets(self._corrupt, stored)))
            for start, stored in self._slices()
        ]
        return _mean(_joined(values))

    def evaluate(self, params: nnx.State) -> list[Score]:
        """The quality of each member of a group with these parameters."""
        config, values = self._members[0], math.prod(self._image_shape)
        parts = [self._losses(params, *each) for each in self._slices()]
        losses = tuple(_joined(each) for each in zip(*parts, strict=True))
        if len(self._members) == 1:
            loss = _mean(select_loss(losses, config.loss, config.rate, values))
            psnr, bits = _mean(metrics.psnr_of_mse(losses[1])), (_mean(x) for x in losses[2:])
            return [Score(loss, psnr, self._psnr_input, *bits)]
        bce_MxN, mse_MxN, noisy_MxN, *bits = losses
        loss_MxN = select_loss((bce_MxN, mse_MxN, *bits), config.loss, config.rate, values)
        columns = (loss_MxN, *map(metrics.psnr_of_mse, (mse_MxN, noisy_MxN)), *bits)
        scores = [Score(*map(_mean, row)) for row in zip(*map(np.asarray, columns), strict=True)]
        if self._noise is None:
            scores = [score._replace(val_psnr_input=None) for score in scores]
        return scores

    def _losses(self, params: nnx.State, start: int, stored: jax.Array) -> tuple[jax.Array, ...]:
        """What the program for a slice returns, see `programs.evaluation`."""
        program = self._evaluate[len(stored)]
        if len(self._members) > 1:
            arguments = self._keys(self._members, start), stored
            axes = self._devices.member_axis, None
            return program(params, *self._devices.put(arguments, axes))
        params = self._devices.local(params)
        return program(params, self._inputs(start, stored), targets(self._corrupt, stored))


def slices(examples: int, most: int | None, batch: int) -> list[tuple[int, int]]:
    """The bounds of slices of at most `most` images, the last of which has the rest.

    Each has several whole batches, as all images have together: XLA compiles a loop over one batch
    to other code. A multiple of 8 keeps the place of an image in the vectors of its row sums.
    """
    if most is None or most >= examples:
        return [(0, examples)]
    size = max(1, most // 2 // (8 * batch)) * 8 * batch
    inner = [size * k for k in range(1, examples // size)]
    return [*itertools.pairwise([0, *inner, examples])]


def least_images(config: TrainConfig, backend: Backend, examples: int) -> int:
    """The fewest images that are evaluated at a time; all if their noise is drawn together."""
    sliced = has_rows(config.noise, config.noise_level)
    return min(examples, 16 * step.eval_batch(backend)) if sliced else examples


def _on_device(images: Images, start: int, stop: int) -> jax.Array:
    """The images ``start <= i < stop`` on the device."""
    if not isinstance(images, (np.ndarray, jax.Array)):
        rows = np.arange(start, stop)
        images = images.read(rows, rows - start, len(rows))
    elif stop - start < len(images):
        images = images[start:stop]
    return jax.device_put(images)


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    """Values of all images from those of slices, with the images as the last axis."""
    if len(parts) == 1:
        return parts[0]
    return jax.device_put(np.concatenate([np.asarray(part) for part in parts], axis=-1))


def _mean(values: jax.Array | np.ndarray) -> float:
    return float(np.asarray(values, np.float64).mean())
