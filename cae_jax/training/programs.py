"""The programs of a training and of its model, ready to be compiled without any array.

`Trainer` and `Validation` compile them for the device that is there, and ``cae-jax compile`` for
one that is not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.autoencoders import Model
from cae_jax.ops import cuda_graphs
from cae_jax.ops.backend import Backend
from cae_jax.training import step
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer


class Program(NamedTuple):
    """A function with the shapes and types of its arguments.

    Attributes:
        function: jitted.
        arguments: pytrees of `jax.ShapeDtypeStruct`.
    """

    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def lower(self, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Lowered:
        """Traces the function, for the default device or for that of `sharding`."""

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return self.function.lower(*jax.tree.map(place, self.arguments))

    def compile(self, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Compiled:
        """Compiles the function, for the default device or for that of `sharding`."""
        device = next(iter(sharding.device_set)) if sharding else jax.devices()[0]
        return cuda_graphs.compile_loop(self.lower(sharding), device)


def steps_per_epoch(config: TrainConfig, examples: int) -> int:
    """Number of steps in which an epoch takes each of the examples once."""
    return -(-examples // config.batch_size)


def all_steps(config: TrainConfig, examples: int) -> int:
    """Number of steps of a training.

    Raises:
        UserError: there are more than an int32 counts.
    """
    steps = steps_per_epoch(config, examples)
    if steps * config.epochs >= 2**31:
        raise UserError(f"`epochs` is {config.epochs}; it takes at most {(2**31 - 1) // steps}")
    return steps * config.epochs


def training(config: TrainConfig, model: Model, backend: Backend, examples: int) -> Program:
    """Some steps of an epoch; not donated, so that an interrupted training keeps its state.

    Returns:
        ``run_chunk(state, images_NxHxWxC, batches_SxB, noise_key, start, stop)``, which returns
        the state after the steps and whether all parameters are finite.
    """
    steps = steps_per_epoch(config, examples)
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = build_optimizer(config, all_steps(config, examples))

    def init(params: nnx.State) -> step.TrainState:
        return step.init_state(nnx.merge(graphdef, params), optimizer, steps)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    batches = jax.ShapeDtypeStruct((steps, config.batch_size), jnp.int32)
    state = jax.eval_shape(init, params)
    images = _images(model, examples, jnp.uint8)
    run_chunk = jax.jit(make_run_chunk(config, graphdef, backend, examples))
    return Program(run_chunk, (state, images, batches, _key(), number, number))


def make_run_chunk(
    config: TrainConfig, graphdef: nnx.GraphDef, backend: Backend, examples: int
) -> Callable[..., tuple[step.TrainState, jax.Array]]:
    """The function of `training`, to be jitted."""
    optimizer = build_optimizer(config, all_steps(config, examples))
    corrupt = build_corruption(config.noise, config.noise_level)
    run_steps = step.make_run_steps(graphdef, optimizer, corrupt, backend, config.loss)

    def run_chunk(*arguments):
        state = run_steps(*arguments)
        leaves = jax.tree.leaves(state.params)
        return state, jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()

    return run_chunk


def evaluation(config: TrainConfig, model: Model, backend: Backend, examples: int) -> Program:
    """``evaluate(params, inputs_NxHxWxC, targets_NxHxWxC)``, see `step.make_evaluate`."""
    graphdef, params = nnx.split(model, nnx.Param)
    inputs = _images(model, examples, jnp.uint8 if config.noise == "none" else jnp.float32)
    targets = _images(model, examples, jnp.uint8)
    return Program(step.make_evaluate(graphdef, backend), (params, inputs, targets))


def noise(config: TrainConfig, model: Model, examples: int) -> Program | None:
    """``corrupt(key, images_NxHxWxC)``, which returns noisy images; None without noise."""
    corrupt = build_corruption(config.noise, config.noise_level)
    if corrupt is None:
        return None
    return Program(jax.jit(corrupt), (_key(), _images(model, examples, jnp.float32)))


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


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: step.make_keys(0).noise)
