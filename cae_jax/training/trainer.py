"""The arrays of one training on the device, and its compiled programs."""

import copy
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from cae_jax.config import TrainConfig
from cae_jax.models.autoencoders import Model
from cae_jax.ops.backend import Backend
from cae_jax.training import metrics, programs, step
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.programs import all_steps, steps_per_epoch
from cae_jax.training.step import TrainState
from cae_jax.training.validation import Validation


class Chunk(NamedTuple):
    """The result of dispatching some steps.

    Attributes:
        state: after the steps, on the device.
        losses_S: ``state.losses_S`` on the host.
        finite: whether all parameters are finite.
    """

    state: TrainState
    losses_S: np.ndarray
    finite: bool


def initial_state(config: TrainConfig, model: Model, examples: int) -> TrainState:
    """The state before the first step; also the structure that a checkpoint is restored into."""
    optimizer = build_optimizer(config, all_steps(config, examples))
    return step.init_state(model, optimizer, steps_per_epoch(config, examples))


class Trainer:
    """Trains and evaluates one model; all its programs are compiled on construction.

    Args:
        config: the training.
        model: the model, whose structure counts; the parameters are part of the state.
        backend: computes the network.
        train_images, test_images: uint8 ``[N, *image_shape]``.

    Attributes:
        steps: steps in an epoch.
        validation: evaluates the model on the test images.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        backend: Backend,
        train_images: np.ndarray,
        test_images: np.ndarray,
    ) -> None:
        self.config = config
        self.examples = len(train_images)
        self.steps = steps_per_epoch(config, self.examples)
        self.train_images = jax.device_put(train_images)
        self._keys = step.make_keys(config.seed)
        self._compile(model, backend)
        self.validation = Validation(config, model, backend, test_images)

    def _compile(self, model: Model, backend: Backend) -> None:
        number = np.int32(0)
        sizes = {"examples": self.examples, "batch_size": self.config.batch_size}
        self._order = step.epoch_batches.lower(self._keys.order, number, **sizes).compile()
        run_chunk = programs.training(self.config, model, backend, self.examples)
        self._run_chunk = run_chunk.compile()

    def with_seed(self, seed: int) -> "Trainer":
        """The same programs for another seed; `validation` stays, and has its own `with_seed`."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, seed=seed)
        other._keys = step.make_keys(seed)
        return other

    def order(self, epoch: int) -> jax.Array:
        """The batches of an epoch, counted from 1: int32 indices ``[S, B]``."""
        return self._order(self._keys.order, np.int32(epoch))

    def run(self, state: TrainState, batches_SxB: jax.Array, start: int, stop: int) -> Chunk:
        """Takes the steps ``start <= i < stop`` of an epoch and waits for them.

        `state` stays valid.
        """
        state, finite = self._run_chunk(
            state,
            self.train_images,
            batches_SxB,
            self._keys.noise,
            np.int32(start),
            np.int32(stop),
        )
        return Chunk(state, np.array(state.losses_S), bool(finite))

    def epoch_loss(self, losses_S: np.ndarray) -> float:
        """Mean loss over the training images in an epoch, each as its step saw it."""
        return metrics.epoch_loss(losses_S, self.examples, self.config.batch_size)


def device_name() -> str:
    """Platform and kind of the default device."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"
