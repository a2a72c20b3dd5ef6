"""Many trainings at once, whose members differ in their seed and in numbers of the optimizer.

A small network leaves most of a GPU or TPU idle: there one program computes the members together,
`jax.vmap` over their states. A CPU is busy with one model: there the members take turns, each by
the program of a training alone and so to the same bits.

The state of all members is a `TrainState` whose arrays have a first axis for the members, M; they
share its ``step``.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.config import Loss, TrainConfig
from cae_jax.errors import UserError
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops.backend import MATMUL, Backend
from cae_jax.training import metrics, programs, step
from cae_jax.training.loss import select_loss
from cae_jax.training.noise import build_corruption
from cae_jax.training.step import Keys, TrainState
from cae_jax.training.trainer import Trainer

# What members may differ in: the seed, and numbers that a program takes as arguments.
VARYING = ("seed", "learning_rate", "b1", "b2", "eps", "rho", "momentum", "weight_decay")
# Members whose validation is computed together.
_EVALUATED = 8
_AXES = TrainState(cast(Any, 0), cast(Any, 0), cast(Any, None), cast(Any, 0))


class Chunk(NamedTuple):
    """The result of dispatching some steps.

    Attributes:
        states: after the steps, one for each program that ran.
        losses_MxS: ``losses_S`` of each member, on the host.
        finite_M: whether all parameters of a member are finite.
    """

    states: list[TrainState]
    losses_MxS: np.ndarray
    finite_M: np.ndarray


class Score(NamedTuple):
    """Means over the test images: of the loss that training minimises, and of PSNR in dB.

    Attributes:
        psnr_input: of the noisy test images themselves; None without noise.
    """

    loss: float
    psnr: float
    psnr_input: float | None


class Population(Protocol):
    """Members on the device and their compiled programs.

    Attributes:
        steps: in an epoch.
    """

    steps: int

    def put(self, members: TrainState) -> list[TrainState]:
        """The state of all members, from the host, as the other functions take it."""
        ...

    def get(self, states: list[TrainState]) -> TrainState:
        """Inverts `put`."""
        ...

    def orders(self, epoch: int) -> list[jax.Array]:
        """The batches of an epoch, counted from 1."""
        ...

    def run(
        self, states: list[TrainState], orders: list[jax.Array], start: int, stop: int
    ) -> Chunk:
        """Takes the steps ``start <= i < stop`` of an epoch and waits for them."""
        ...

    def evaluate(self, states: list[TrainState]) -> list[Score]:
        """The quality of each member, with the noise of its seed."""
        ...


def check_members(configs: Sequence[TrainConfig]) -> None:
    """Refuses members that cannot share a program.

    Raises:
        UserError: naming the field in which they differ.
    """
    if not configs:
        raise UserError("`configs` is empty; give at least one")
    for name in _differing(configs):
        if name not in VARYING:
            values = dict.fromkeys(getattr(config, name) for config in configs)
            raise UserError(
                f"`{name}` differs among the members ({', '.join(map(str, values))}), which share "
                f"a program and may differ in {', '.join(VARYING)}; train it in other runs"
            )
    if len(set(configs)) < len(configs):
        raise UserError("two members are equal; give each another `seed` or another number")


def stack(members: Sequence[TrainState]) -> TrainState:
    """The state of several members at the same step, on the host."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return stacked._replace(step=np.asarray(members[0].step))


def member(states: TrainState, k: int) -> TrainState:
    """The state of one member, as of a training alone; inverts `stack`."""
    alone = jax.tree.map(lambda leaf: leaf[k], states._replace(step=None))
    return alone._replace(step=states.step)


def needed_bytes(config: TrainConfig, model: Model, examples: int) -> int:
    """Estimates the device memory that a member takes while it is computed, besides `held_bytes`.

    Its state once more, and what `Topology.training_bytes` counts.
    """
    state = programs.training(config, model, MATMUL, examples).arguments[0]
    copy = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return copy + model.topology.training_bytes(config.batch_size)


def held_bytes(config: TrainConfig, model: Model, examples: int) -> int:
    """Estimates the device memory that a member takes while others are computed.

    Its state before and after a chunk, and the order of its images.
    """
    state, _, batches, *_ = programs.training(config, model, MATMUL, examples).arguments
    return sum(x.size * x.dtype.itemsize for x in [*jax.tree.leaves(state)] * 2 + [batches])


def state_shapes(config: TrainConfig, model: Model, examples: int, members: int) -> TrainState:
    """The state of some members as `jax.ShapeDtypeStruct`."""
    alone = programs.training(config, model, MATMUL, examples).arguments[0]
    return _states(members, alone)


class InTurn:
    """A `Population` whose members are computed one after the other.

    Args:
        configs: of the members.
        model: whose structure counts.
        backend: computes the network.
        train_images, test_images: uint8 ``[N, *image_shape]``; the device holds them once.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        model: Model,
        backend: Backend,
        train_images: np.ndarray,
        test_images: np.ndarray,
    ) -> None:
        images = jax.device_put(train_images), jax.device_put(test_images)
        compiled: dict[TrainConfig, Trainer] = {}
        self._trainers: list[Trainer] = []
        for config in configs:
            program = dataclasses.replace(config, seed=0)  # the seed is no part of a program
            if program not in compiled:
                compiled[program] = Trainer(config, model, backend, *images)
            self._trainers.append(compiled[program].with_seed(config.seed))
        self.steps = self._trainers[0].steps

    def put(self, members: TrainState) -> list[TrainState]:
        return [jax.device_put(member(members, k)) for k in range(len(self._trainers))]

    def get(self, states: list[TrainState]) -> TrainState:
        return stack([jax.tree.map(np.asarray, state) for state in states])

    def orders(self, epoch: int) -> list[jax.Array]:
        return [trainer.order(epoch) for trainer in self._trainers]

    def run(
        self, states: list[TrainState], orders: list[jax.Array], start: int, stop: int
    ) -> Chunk:
        chunks = [
            trainer.run(state, order, start, stop)
            for trainer, state, order in zip(self._trainers, states, orders, strict=True)
        ]
        return Chunk(
            [chunk.state for chunk in chunks],
            np.stack([chunk.losses_S for chunk in chunks]),
            np.array([chunk.finite for chunk in chunks]),
        )

    def evaluate(self, states: list[TrainState]) -> list[Score]:
        scores = []
        for trainer, state in zip(self._trainers, states, strict=True):
            # Noise drawn each time: kept, that of all members would take more than all else.
            validation = trainer.validation.with_seed(trainer.config.seed)
            scores.append(Score(*validation.evaluate(state.params), validation.psnr_input))
        return scores


class Together:
    """A `Population` in groups, each computed by one program; arguments as of `InTurn`.

    Args:
        size: the most members of a group.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        model: Model,
        backend: Backend,
        train_images: np.ndarray,
        test_images: np.ndarray,
        size: int,
    ) -> None:
        images = jax.device_put(train_images), jax.device_put(test_images)
        fields = swept(configs)
        compiled: dict[int, _Programs] = {}
        self._groups: list[_Group] = []
        for part in np.array_split(np.arange(len(configs)), -(-len(configs) // size)):
            members = [configs[k] for k in part.tolist()]
            if len(members) not in compiled:
                compiled[len(members)] = _Programs(members, fields, model, backend, *images)
            self._groups.append(_Group(int(part[0]), members, fields, compiled[len(members)]))
        self.steps = programs.steps_per_epoch(configs[0], len(train_images))

    def put(self, members: TrainState) -> list[TrainState]:
        states, arrays = [], members._replace(step=None)
        for group in self._groups:
            first, last = group.first, group.first + group.size
            part = jax.tree.map(lambda x, a=first, b=last: jax.device_put(x[a:b]), arrays)
            states.append(part._replace(step=jnp.asarray(members.step)))
        return states

    def get(self, states: list[TrainState]) -> TrainState:
        hosted = [jax.tree.map(np.asarray, state._replace(step=None)) for state in states]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *hosted)
        return joined._replace(step=np.asarray(states[0].step))

    def orders(self, epoch: int) -> list[jax.Array]:
        return [group.orders(epoch) for group in self._groups]

    def run(
        self, states: list[TrainState], orders: list[jax.Array], start: int, stop: int
    ) -> Chunk:
        results = [
            group.run(state, order, start, stop)
            for group, state, order in zip(self._groups, states, orders, strict=True)
        ]
        return Chunk(
            [state for state, _ in results],
            np.concatenate([np.asarray(state.losses_S) for state, _ in results]),
            np.concatenate([np.asarray(finite) for _, finite in results]),
        )

    def evaluate(self, states: list[TrainState]) -> list[Score]:
        return [
            score
            for group, state in zip(self._groups, states, strict=True)
            for score in group.evaluate(state)
        ]


def swept(configs: Sequence[TrainConfig]) -> list[str]:
    """The fields in which some configs differ, without the seed."""
    return [name for name in _differing(configs) if name != "seed"]


def training(
    members: Sequence[TrainConfig],
    fields: Sequence[str],
    model: Model,
    backend: Backend,
    examples: int,
) -> programs.Program:
    """Some steps of an epoch of a group; see `programs.training`.

    Args:
        members: of the group.
        fields: of the config that are arguments of the program.
        model: whose structure counts.
        backend: computes the network.
        examples: number of training images.

    Returns:
        ``run(state, images, batches_MxSxB, keys_M, numbers, start, stop)``, which returns the state
        and whether all parameters of a member are finite; `numbers` has an array ``[M]`` for each
        of `fields`.
    """
    graphdef, _ = nnx.split(model, nnx.Param)

    @jax.jit
    def run(state, images, batches_MxSxB, keys_M, numbers, start, stop):
        def one(state, batches_SxB, key, numbers):
            # The fields of a config, some of them traced.
            own = cast(TrainConfig, types.SimpleNamespace(**{**vars(members[0]), **numbers}))
            run_chunk = programs.make_run_chunk(own, graphdef, backend, examples)
            return run_chunk(state, images, batches_SxB, key, start, stop)

        together = jax.vmap(one, in_axes=(_AXES, 0, 0, 0), out_axes=(_AXES, 0))
        return together(state, batches_MxSxB, keys_M, numbers)

    alone = programs.training(members[0], model, backend, examples)
    state, images, batches, key, number, _ = alone.arguments
    count = len(members)
    states = _states(count, state)
    numbers = {name: jax.ShapeDtypeStruct((count,), jnp.float32) for name in fields}
    batches, keys = _several(count, (batches, key))
    return programs.Program(run, (states, images, batches, keys, numbers, number, number))


def evaluation(
    config: TrainConfig, model: Model, backend: Backend, examples: int, members: int
) -> programs.Program:
    """``evaluate(params, keys_M, images)`` of a group: ``(bce_MxN, mse_MxN, mse_inputs_MxN)``.

    The noise of a member is drawn each time: kept, that of all members would take more memory than
    all else.
    """
    alone = programs.evaluation(config, model, backend, examples)
    corrupt = build_corruption(config.noise, config.noise_level)
    params, _, images = alone.arguments

    @jax.jit
    def evaluate(params, keys_M, images):
        clean = scale(images)

        def one(member):
            params, key = member
            inputs = images if corrupt is None else corrupt(key, clean)
            return *alone.function(params, inputs, images), metrics.mse(scale(inputs), clean)

        return jax.lax.map(one, (params, keys_M), batch_size=_EVALUATED)

    key = jax.eval_shape(lambda: step.make_keys(0).test_noise)
    return programs.Program(evaluate, (*_several(members, (params, key)), images))


class _Programs:
    """The compiled programs of groups of one size."""

    def __init__(
        self,
        members: Sequence[TrainConfig],
        fields: Sequence[str],
        model: Model,
        backend: Backend,
        train_images: jax.Array,
        test_images: jax.Array,
    ) -> None:
        config, examples = members[0], len(train_images)
        self.train_images, self.test_images = train_images, test_images
        run = training(members, fields, model, backend, examples)
        evaluate = evaluation(config, model, backend, len(test_images), len(members))
        self.run, self.evaluate = run.compile(), evaluate.compile()

        @jax.jit
        def orders(keys_M, epoch):
            sizes = {"examples": examples, "batch_size": config.batch_size}
            return jax.lax.map(lambda key: step.epoch_batches(key, epoch, **sizes), keys_M)

        self.orders = orders


class _Group:
    """Members that one program computes; `first` is the index of the first of them."""

    def __init__(
        self, first: int, members: Sequence[TrainConfig], fields: Sequence[str], compiled: _Programs
    ) -> None:
        self.first = first
        self.size, self._compiled = len(members), compiled
        self._noisy = members[0].noise != "none"
        self._loss: Loss = members[0].loss
        keys = [step.make_keys(config.seed) for config in members]
        self._keys = Keys(*(jnp.stack(each) for each in zip(*keys, strict=True)))
        self._numbers = {
            name: jnp.array([getattr(config, name) for config in members], jnp.float32)
            for name in fields
        }

    def orders(self, epoch: int) -> jax.Array:
        return self._compiled.orders(self._keys.order, np.int32(epoch))

    def run(
        self, state: TrainState, order: jax.Array, start: int, stop: int
    ) -> tuple[TrainState, jax.Array]:
        numbers, bounds = self._numbers, (np.int32(start), np.int32(stop))
        images, keys = self._compiled.train_images, self._keys.noise
        return self._compiled.run(state, images, order, keys, numbers, *bounds)

    def evaluate(self, state: TrainState) -> list[Score]:
        bce_MxN, mse_MxN, noisy_MxN = self._compiled.evaluate(
            state.params, self._keys.test_noise, self._compiled.test_images
        )
        losses_MxN = select_loss((bce_MxN, mse_MxN), self._loss)
        columns = [losses_MxN, metrics.psnr_of_mse(mse_MxN), metrics.psnr_of_mse(noisy_MxN)]
        means = (np.asarray(column, np.float64).mean(axis=1).tolist() for column in columns)
        return [
            Score(loss, psnr, psnr_input if self._noisy else None)
            for loss, psnr, psnr_input in zip(*means, strict=True)
        ]


def _differing(configs: Sequence[TrainConfig]) -> list[str]:
    names = (field.name for field in dataclasses.fields(TrainConfig))
    return [name for name in names if len({getattr(config, name) for config in configs}) > 1]


def _states(members: int, alone: TrainState) -> TrainState:
    return _several(members, alone)._replace(step=alone.step)


def _several(members: int, shapes: Any) -> Any:
    """Shapes with a first axis for the members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), shapes)
