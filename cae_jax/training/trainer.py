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
from cae_jax.training.devices import Devices
from cae_jax.training.feed import Images, Order, Plan, Resident, Streamed
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.programs import all_steps, steps_per_epoch
from cae_jax.training.step import TrainState
from cae_jax.training.validation import Score, Validation


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


def hosted(state: TrainState, members: int) -> TrainState:
    """The state of a group on the host, without the models that were added to it."""
    state = jax.tree.map(np.asarray, state)
    if members == 1:
        return state
    own = jax.tree.map(lambda leaf: leaf[:members], state._replace(step=None))
    return own._replace(step=state.step)


class Trainer:
    """Trains and evaluates a group of models; all programs are compiled on construction.

    Args:
        members: configs of the group, at least one; see `programs.check_members`.
        model: the model; only its structure is used.
        backend: computes the network.
        train_images, test_images: uint8 ``[N, *image_shape]``; those on the device stay there. With
            a `plan` sources of them.
        fields: of the config, in which members of this or later groups (`with_members`) differ.
        plan: how the images share the memory of the device; None if all fit.
        devices: that train the group; by default one.

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
        train_images: Images,
        test_images: Images,
        fields: Sequence[str] = (),
        plan: Plan | None = None,
        devices: Devices | None = None,
    ) -> None:
        self.examples, self._fields = train_images.shape[0], fields
        config = members[0]
        if devices is None:
            devices = Devices.of(jax.local_devices()[:1], config, len(members))
        self._devices = devices
        self.steps = steps_per_epoch(config, self.examples)
        self._take(members)
        count = len(self._placed)
        rows = plan and count * plan.steps * config.batch_size
        order = self._compile(model, backend, rows)
        if isinstance(train_images, (np.ndarray, jax.Array)):
            self._feed = Resident(train_images, order, self._order_key, devices)
        else:
            assert plan is not None
            shape, epochs = (count, self.steps, config.batch_size), config.epochs
            self._feed = Streamed(
                train_images, order, self._order_key, shape, plan.steps, epochs, devices
            )
        evaluated = plan and plan.evaluated
        self.validation = Validation(self._placed, model, backend, test_images, evaluated, devices)

    def _compile(self, model: Model, backend: Backend, rows: int | None) -> Order:
        arguments = (self._placed, model, backend, self.examples, self._fields, rows)
        self._run_chunk = programs.training(*arguments, self._devices).compile_here()
        return programs.order(self._placed, self.examples).compile_here()

    def _take(self, members: Sequence[TrainConfig]) -> None:
        """Sets the members; their keys and numbers are arguments of the programs."""
        self.members = tuple(members)
        # As many on each device; what is added is trained and dropped.
        added = self._devices.places(len(members)) - len(members)
        self._placed = (*members, *[members[-1]] * added)
        keys = step.make_keys(*(config.seed for config in self._placed))
        varying = keys.noise, programs.numbers(self._placed, self._fields)
        self._order_key = keys.order
        self._varying = self._devices.put(varying, self._devices.member_axis)

    def put(self, state: TrainState) -> TrainState:
        """The state of the group on its devices."""
        added = len(self._placed) - len(self.members)
        if added:
            every = [member(state, k, len(self.members)) for k in range(len(self.members))]
            state = stack([*every, *every[-1:] * added])
        return self._devices.put(state, programs.state_axes(self._devices))

    def with_members(self, members: Sequence[TrainConfig]) -> "Trainer":
        """The same programs for as many other members, which differ in seed and `fields`."""
        other = copy.copy(self)
        other._take(members)
        other._feed = self._feed.with_key(other._order_key)
        other.validation = self.validation.with_members(other._placed)
        return other

    def run(self, state: TrainState, epoch: int, start: int, stop: int) -> Chunk:
        """Takes the steps ``start <= i < stop``, at least one, of an epoch, counted from 1.

        Raises:
            UserError: the images cannot be read any more.
        """
        finite = np.True_
        for images, batches, first, last in self._feed.parts(epoch, start, stop):
            bounds = np.int32(first), np.int32(last)
            state, finite = self._run_chunk(state, images, batches, *self._varying, *bounds)
            del images  # the memory is for those that follow
            jax.block_until_ready(state)
        finite_M = np.array(finite).reshape(-1)[: len(self.members)]
        return Chunk(state, self.losses(state), finite_M)

    def evaluate(self, state: TrainState) -> list[Score]:
        """The quality of each member on the test images."""
        return self.validation.evaluate(state.params)[: len(self.members)]

    def losses(self, state: TrainState) -> np.ndarray:
        """The losses of a state on the host, ``[M, S]``."""
        losses_MxS = np.array(state.losses_S).reshape(-1, self.steps)
        return losses_MxS[: len(self.members)]

    def epoch_loss(self, losses_S: np.ndarray) -> float:
        """Mean loss over the training images in an epoch, each as its step saw it."""
        return metrics.epoch_loss(losses_S, self.examples, self.members[0].batch_size)


def device_name() -> str:
    """Platform and kind of the default device."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"
