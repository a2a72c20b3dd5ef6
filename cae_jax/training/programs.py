"""The programs that train and evaluate models, ready to be compiled without any array.

`Trainer` and `Validation` compile them for the default device, ``cae-jax compile`` for others.

One program trains a group of models that differ in their seed and in numbers of the optimizer,
since a small network leaves most of a GPU or TPU idle: `jax.vmap` over the states of the members.
The state of a group is a `TrainState` whose arrays have a first axis for the members, M; they share
its ``step``. A group of one has no such axis: its programs are those of a single model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.config import PAIRS, TrainConfig, check_used
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops import cuda_graphs, settings
from cae_jax.ops.backend import MATMUL, Backend, device_memory
from cae_jax.training import metrics, step
from cae_jax.training.devices import Devices, along
from cae_jax.training.noise import build_corruption, targets
from cae_jax.training.optimizer import as_arguments, build_optimizer

# Fields in which the members of a group may differ: the seed, and arguments of its program.
VARYING = ("seed", "learning_rate", "b1", "b2", "eps", "rho", "momentum", "weight_decay")
_EVALUATED = 8  # members that are evaluated at a time
_AXES = step.TrainState(cast(Any, 0), cast(Any, 0), cast(Any, None), cast(Any, 0))


class Program(NamedTuple):
    """A function with the shapes and types of its arguments.

    Attributes:
        function: jitted.
        arguments: pytrees of `jax.ShapeDtypeStruct`.
    """

    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def lower(self, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Lowered:
        """Traces the function, for its own devices or for that of `sharding`."""

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or sharding)

        with settings.ours():
            return self.function.lower(*jax.tree.map(place, self.arguments))

    def compile(self, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Compiled:
        """Compiles the function, for its own devices or for that of `sharding`."""
        there = [x.sharding for x in jax.tree.leaves(self.arguments) if x.sharding] or [sharding]
        device = next(iter(there[0].device_set)) if there[0] else jax.local_devices()[0]
        return cuda_graphs.compile_loop(self.lower(sharding), device)

    def compile_here(self) -> jax.stages.Compiled:
        """Compiles the function for devices of this machine.

        Raises:
            UserError: the program needs more memory than the device has.
        """
        compiled, there, most = self.compile(), device_memory(), _most_bytes()
        memory = compiled.memory_analysis()
        # Not its arguments: a CPU reads the images from a file that is mapped to memory.
        if memory is not None and (needed := memory.temp_size_in_bytes) > most:
            raise UserError(
                f"training needs {needed / 1e9:,.1f} GB for the layers, and of {there / 1e9:,.1f} "
                f"GB it takes {most / 1e9:,.1f}; lower `image_size`, `features` or `batch_size`"
            )
        return compiled


def _most_bytes() -> int:
    """The memory of the device that programs and images may take."""
    # What a CPU has in all is also for other programs, whose needs were up to as much again when
    # measured.
    there = device_memory()
    return there // 2 if jax.default_backend() == "cpu" else there


def steps_per_epoch(config: TrainConfig, examples: int) -> int:
    """Number of steps in an epoch."""
    return -(-examples // config.batch_size)


def all_steps(config: TrainConfig, examples: int) -> int:
    """Number of steps of a training; raises a `UserError` if it exceeds an int32."""
    steps = steps_per_epoch(config, examples)
    if steps * config.epochs >= 2**31:
        raise UserError(f"`epochs` is {config.epochs}; it takes at most {(2**31 - 1) // steps}")
    return steps * config.epochs


def check_members(configs: Sequence[TrainConfig]) -> None:
    """Refuses members that cannot be trained by one program.

    Raises:
        UserError: names the field in which they differ, or which the optimizer does not use.
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
    check_used(configs[0], swept(configs))
    if len(set(configs)) < len(configs):
        raise UserError(
            "two members have the same config; change `seed` or another field in one of them"
        )


def swept(configs: Sequence[TrainConfig]) -> list[str]:
    """The fields in which some configs differ, without the seed."""
    return [name for name in _differing(configs) if name != "seed"]


def _differing(configs: Sequence[TrainConfig]) -> list[str]:
    names = (field.name for field in dataclasses.fields(TrainConfig))
    return [name for name in names if len({getattr(config, name) for config in configs}) > 1]


def order(members: Sequence[TrainConfig], examples: int) -> Program:
    """The batches of an epoch.

    Returns:
        ``order(key, epoch)``, see `step.epoch_batches`; for several members
        ``order(keys_M, epoch)``, with a first axis for the members.
    """
    batches = partial(step.epoch_batches, examples=examples, batch_size=members[0].batch_size)
    if len(members) == 1:
        return Program(jax.jit(batches), (_key(), _number()))

    def each(keys_M, epoch):
        return jax.lax.map(lambda key: batches(key, epoch), keys_M)

    return Program(jax.jit(each), (_stacked(len(members), _key()), _number()))


def training(
    members: Sequence[TrainConfig],
    model: Model,
    backend: Backend,
    examples: int,
    fields: Sequence[str] = (),
    rows: int | None = None,
    devices: Devices | None = None,
) -> Program:
    """Some steps of an epoch; not donated, so that an interrupted training keeps its state.

    Args:
        members: at least one, see `check_members`.
        model: the model; only its structure is used.
        backend: computes the network.
        examples: N, number of training images.
        fields: of the config, in which several members may differ.
        rows: number of images on the device, if those of some steps are there at a time.
        devices: over which the members or their batches are spread.

    Returns:
        ``run_chunk(state, images_NxHxWxC, batches_SxB, noise_key, numbers, start, stop)``, which
        returns the state after the steps and whether all parameters are finite; for `numbers` see
        the function of that name. For several members batches, keys, numbers and results have a
        first axis M. Batches are those that `Devices.cut` returns.
    """
    config, count = members[0], len(members)
    devices = devices or Devices(None, config.microbatches)
    steps = steps_per_epoch(config, examples)
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = build_optimizer(config, all_steps(config, examples))

    def init(params: nnx.State) -> step.TrainState:
        return step.init_state(nnx.merge(graphdef, params), optimizer, steps)

    batches = devices.cut_shape((steps, config.batch_size))
    state = jax.eval_shape(init, params)
    images = _stored(config, model, rows or examples, jnp.uint8)
    varying = _shapes(numbers(members, fields))

    def run_chunk(state, images, batches_SxB, key, numbers, start, stop):
        run = _make_run_chunk(config, graphdef, backend, examples, devices, numbers)
        return run(state, images, batches_SxB, key, start, stop)

    if count == 1:
        axes = (None,) * 7
        arguments = (state, images, batches, _key(), varying, _number(), _number())
        function = devices.spread(run_chunk, axes, None)
        return Program(jax.jit(function), devices.describe(arguments, axes))

    def run_chunks(state, images, batches_MxSxB, keys_M, numbers, start, stop):
        def one(state, batches_SxB, key, numbers):
            return run_chunk(state, images, batches_SxB, key, numbers, start, stop)

        together = jax.vmap if len(keys_M) > 1 else _of_one
        arguments = (state, batches_MxSxB, keys_M, numbers)
        return together(one, (_AXES, 0, 0, 0), (_AXES, 0))(*arguments)

    own = devices.member_axis
    states = _stacked(count, state)._replace(step=state.step)
    batches, keys = _stacked(count, (batches, _key()))
    arguments = (states, images, batches, keys, varying, _number(), _number())
    axes = (state_axes(devices), None, own, own, own, None, None)
    function = devices.spread(run_chunks, axes, (axes[0], own))
    return Program(jax.jit(function), devices.describe(arguments, axes))


def state_axes(devices: Devices) -> Any:
    """The axes along which the state of a group is spread."""
    return None if devices.member_axis is None else _AXES


def _of_one(function: Callable[..., Any], axes: Any, results: Any) -> Callable[..., Any]:
    """As `jax.vmap`, of the only member of a device, by the program of a single model."""

    def mapped(*arguments: Any) -> Any:
        alone = along(axes, lambda axis, x: x if axis is None else x[0], arguments)
        return along(results, lambda axis, x: x if axis is None else x[None], function(*alone))

    return mapped


def numbers(members: Sequence[TrainConfig], fields: Sequence[str]) -> dict[str, Any]:
    """The numbers of the optimizer that are arguments of a program: float32 by field.

    Of one member as `as_arguments`, with which its bits are those of a program for its
    config alone; of several, ``[M]``.
    """
    if len(members) == 1:
        return as_arguments(members[0], fields)
    columns = {name: [getattr(each, name) for each in members] for name in fields}
    return {name: np.array(values, np.float32) for name, values in columns.items()}


def _make_run_chunk(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    backend: Backend,
    examples: int,
    devices: Devices,
    numbers: Mapping[str, Any],
) -> Callable[..., tuple[step.TrainState, jax.Array]]:
    """The function of `training` for one model; `numbers` as of `build_optimizer`."""
    soap = getattr(backend.kernel, "soap", None)
    optimizer = build_optimizer(config, all_steps(config, examples), numbers, soap)
    corrupt = build_corruption(config.noise, config.noise_level)
    run_steps = step.make_run_steps(
        graphdef, optimizer, corrupt, backend, config.loss, devices.over_all, config.rate
    )

    def run_chunk(*arguments):
        state = run_steps(*arguments)
        leaves = jax.tree.leaves(state.params)
        return state, jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()

    return run_chunk


def evaluation(
    members: Sequence[TrainConfig],
    model: Model,
    backend: Backend,
    examples: int,
    key: jax.ShapeDtypeStruct | None = None,
    devices: Devices | None = None,
) -> Program:
    """The losses of test images.

    Args:
        members, model, backend: as of `training`.
        examples: number of images.
        key: has the type of those in `keys_M`, if it is not Threefry's.
        devices: over which the members are spread.

    Returns:
        ``evaluate(params, inputs_NxHxWxC, targets_NxHxWxC)``, see `step.make_evaluate`; for several
        members ``evaluate(params, keys_M, images_NxHxWxC)``, which draws the noise of each, to save
        memory, and returns ``(bce_MxN, mse_MxN, mse_inputs_MxN)`` and the bits, if any.
    """
    config, count = members[0], len(members)
    graphdef, params = nnx.split(model, nnx.Param)
    losses = step.make_evaluate(graphdef, backend)
    images = _images(model, examples, jnp.uint8)
    if count == 1:
        inputs = images if config.noise == "none" else _images(model, examples, jnp.float32)
        return Program(losses, (params, inputs, images))
    corrupt = build_corruption(config.noise, config.noise_level)

    def evaluate(params, keys_M, images):
        clean = targets(corrupt, images)
        # Scaled apart, as those of a single model are: a fusion with the noise rounds otherwise.
        floats = jax.lax.optimization_barrier(scale(images))

        def one(member):
            params, key = member
            inputs = images if corrupt is None else corrupt(key, floats)
            mse_inputs = metrics.mse(scale(inputs), targets(corrupt, floats))
            bce, mse, *bits = losses(params, inputs, clean)
            return bce, mse, mse_inputs, *bits

        if len(keys_M) == 1:
            return _of_one(one, 0, 0)((params, keys_M))
        return jax.lax.map(one, (params, keys_M), batch_size=_EVALUATED)

    devices = devices or Devices()
    axes = devices.member_axis, devices.member_axis, None
    images = _stored(config, model, examples, jnp.uint8)
    arguments = (*_stacked(count, (params, key or _key())), images)
    function = devices.spread(evaluate, axes, axes[0])
    return Program(jax.jit(function), devices.describe(arguments, axes))


def free_bytes(members: Sequence[TrainConfig], model: Model, examples: int) -> int:
    """Estimates the memory of the device that a group leaves for images."""
    return max(0, _most_bytes() - len(members) * sum(needed_bytes(members[0], model, examples)))


def evaluated_bytes(members: Sequence[TrainConfig], model: Model) -> int:
    """Estimates the bytes that the evaluation of an image takes, apart from the network's."""
    config = members[0]
    values = _stored(config, model, 1, jnp.uint8).size
    if config.noise in ("none", PAIRS):
        return values
    # The image as float, the noisy one, and the random numbers with their indices.
    return values * (1 + 16 * min(len(members), _EVALUATED))


def needed_bytes(config: TrainConfig, model: Model, examples: int) -> tuple[int, int]:
    """Estimates the device memory that a member of a group takes.

    Returns:
        permanent bytes (the state before and after a chunk, and the order of the images), and
        further bytes while steps are computed (the state, and `Topology.training_bytes`).
    """
    state, _, batches, *_ = training([config], model, MATMUL, examples).arguments
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    order = batches.size * batches.dtype.itemsize
    return 2 * held + order, held + model.topology.training_bytes(config.batch_size)


def noise(config: TrainConfig, model: Model, examples: int) -> Program | None:
    """``corrupt(key, images_NxHxWxC)``, which returns noisy images; None without noise."""
    corrupt = build_corruption(config.noise, config.noise_level)
    if corrupt is None:
        return None
    return Program(jax.jit(corrupt), (_key(), _stored(config, model, examples, jnp.float32)))


def inference(model: Model, backend: Backend) -> dict[str, Program]:
    """The functions of a trained model by name, for as many images as go into one call."""
    graphdef, params = nnx.split(model, nnx.Param)
    passes = autoencoders.make_passes(graphdef, backend)
    codes = (backend.max_batch, *model.topology.code_shape)
    inputs = {
        "encode": _images(model, backend.max_batch, jnp.float32),
        "decode": jax.ShapeDtypeStruct(codes, jnp.float32),
        "reconstruct": _images(model, backend.max_batch, jnp.float32),
    }
    return {
        name: Program(jax.jit(getattr(passes, name)), (params, x)) for name, x in inputs.items()
    }


def _images(model: Model, examples: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((examples, *model.image_shape), dtype)


def _stored(config: TrainConfig, model: Model, examples: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """Images as data sets have them: those of pairs have the channels of target and input."""
    images = _images(model, examples, dtype)
    *size, channels = images.shape
    return images.update(shape=(*size, 2 * channels)) if config.noise == PAIRS else images


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: step.make_keys(0).noise)


def _number() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jnp.int32)


def _shapes(arrays: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def _stacked(members: int, shapes: Any) -> Any:
    """Shapes with a first axis for the members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), shapes)
