"""The arrays of a group of models on the device, and the compiled programs that train them."""

import copy
from collections.abc import Sequence
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
    """The result of some steps.

    Attributes:
        state: after the steps, on the device.
        losses_MxS: losses of the members on the host, see `TrainState.losses_S`.
        finite_M: whether all parameters of a member are finite.
    """

    state: TrainState
    losses_MxS: np.ndarray
    finite_M: np.ndarray


def initial_state(config: TrainConfig, model: Model, examples: int) -> TrainState:
    """The state of one model before the first step."""
    optimizer = build_optimizer(config, all_steps(config, examples))
    return step.init_state(model, optimizer, steps_per_epoch(config, examples))


def stack(states: Sequence[TrainState]) -> TrainState:
    """The state of a group, on the host, from the states of its members at the same step."""
    if len(states) == 1:
        return states[0]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    return stacked._replace(step=np.asarray(states[0].step))


def member(state: TrainState, k: int, members: int) -> TrainState:
    """The state of member `k` of a group of `members`; inverts `stack`."""
    if members == 1:
        return state
    alone = jax.tree.map(lambda leaf: leaf[k], state._replace(step=None))
    return alone._replace(step=state.step)


class Trainer:
    """Trains and evaluates a group of models; all programs are compiled on construction.

    Args:
        members: configs of the group, at least one; see `programs.check_members`.
        model: the model; only its structure is used.
        backend: computes the network.
        train_images, test_images: uint8 ``[N, *image_shape]``; those on the device stay there.
        fields: of the config, in which members of this or later groups (`with_members`) differ.

    Attributes:
        members: as given.
        steps: steps in an epoch.
        examples: number of training images.
        validation: evaluates the members on the test images.
    """

    def __init__(
        self,
        members: Sequence[TrainConfig],
        model: Model,
        backend: Backend,
        train_images: np.ndarray | jax.Array,
        test_images: np.ndarray | jax.Array,
        fields: Sequence[str] = (),
    ) -> None:
        self.examples, self._fields = len(train_images), fields
        self.steps = steps_per_epoch(members[0], self.examples)
        self.train_images = jax.device_put(train_images)
        self._take(members)
        self._compile(model, backend)
        self.validation = Validation(members, model, backend, test_images)

    def _compile(self, model: Model, backend: Backend) -> None:
        arguments = (self.members, model, backend, self.examples, self._fields)
        self._order = programs.order(self.members, self.examples).compile_here()
        self._run_chunk = programs.training(*arguments).compile_here()

    def _take(self, members: Sequence[TrainConfig]) -> None:
        """Sets the members; their keys and numbers are arguments of the programs."""
        self.members = tuple(members)
        self._keys = step.make_keys(*(config.seed for config in members))
        self._numbers = programs.numbers(members, self._fields)

    def with_members(self, members: Sequence[TrainConfig]) -> "Trainer":
        """The same programs for as many other members, which differ in seed and `fields`."""
        other = copy.copy(self)
        other._take(members)
        other.validation = self.validation.with_members(members)
        return other

    def order(self, epoch: int) -> jax.Array:
        """The batches of an epoch, counted from 1: int32 indices ``[S, B]`` or ``[M, S, B]``."""
        return self._order(self._keys.order, np.int32(epoch))

    def run(self, state: TrainState, batches: jax.Array, start: int, stop: int) -> Chunk:
        """Takes the steps ``start <= i < stop`` of an epoch; `batches` are those of `order`."""
        varying, bounds = (self._keys.noise, self._numbers), (np.int32(start), np.int32(stop))
        state, finite = self._run_chunk(state, self.train_images, batches, *varying, *bounds)
        return Chunk(state, self.losses(state), np.array(finite).reshape(-1))

    def losses(self, state: TrainState) -> np.ndarray:
        """The losses of a state on the host, ``[M, S]``."""
        return np.array(state.losses_S).reshape(len(self.members), -1)

    def epoch_loss(self, losses_S: np.ndarray) -> float:
        """Mean loss over the training images in an epoch, each as its step saw it."""
        return metrics.epoch_loss(losses_S, self.examples, self.members[0].batch_size)


def device_name() -> str:
    """Platform and kind of the default device."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"
