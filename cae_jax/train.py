"""The training step, the epoch as one compiled loop over it, and the evaluation.

Everything here is pure and compiled; `cae_jax.loop` calls it and deals with files and time.

The images live on the device as uint8. An epoch is a permutation of their indices, cut into
batches, and a loop on the device that gathers, scales and steps. The loop's bounds are arguments:
one compiled program serves an epoch in one piece or in any number of chunks, so that the result
cannot depend on the chunk length.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cae_jax import metrics
from cae_jax.models import Model

# Test images in a step of the evaluation: few enough for their activations to stay in the cache.
EVAL_BATCH = 250


class TrainState(NamedTuple):
    """All that a step changes; a pytree.

    Attributes:
        params: parameters of the model, an `nnx.State`.
        opt_state: state of the optimizer.
        step: int32 scalar, steps done since the start of training.
    """

    params: nnx.State
    opt_state: optax.OptState
    step: jax.Array


def init_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = nnx.state(model, nnx.Param)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def scale(images: jax.Array) -> jax.Array:
    """uint8 pixels 0..255 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


@partial(jax.jit, static_argnames=("examples", "batch_size"))
def epoch_batches(key: jax.Array, epoch: jax.Array, *, examples: int, batch_size: int) -> jax.Array:
    """The order of one epoch: a permutation of all indices, cut into batches.

    Args:
        key: root of the order, the same for all epochs.
        epoch: number of the epoch.
        examples: N, number of training images.
        batch_size: B.

    Returns:
        int32 ``[ceil(N / B), B]``; every index below N once, the last batch filled up with N.
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    steps = -(-examples // batch_size)
    order = jnp.pad(order, (0, steps * batch_size - examples), constant_values=examples)
    return order.reshape(steps, batch_size)


def make_loss(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """``loss(params, inputs, targets, weights_B)``: the weighted mean binary cross-entropy."""

    def loss(
        params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_B: jax.Array
    ) -> jax.Array:
        logits = nnx.merge(graphdef, params)(inputs)
        return (metrics.bce(logits, targets) * weights_B).sum() / weights_B.sum()

    return loss


def make_run_steps(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> jax.stages.Wrapped:
    """The compiled loop over training steps.

    Returns:
        ``run_steps(state, losses_S, images_NxHxWxC, batches_SxB, start, stop)``, which takes the
        steps ``start <= i < stop`` of an epoch and gives the new state and the losses with entries
        start..stop-1 filled in. State and losses are donated.
    """
    value_and_grad = jax.value_and_grad(make_loss(graphdef))

    def train_step(
        state: TrainState, images_NxHxWxC: jax.Array, batch_B: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        # Places of the last batch that hold no image get a weight of 0.
        weights_B = (batch_B < images_NxHxWxC.shape[0]).astype(jnp.float32)
        x_BxHxWxC = scale(images_NxHxWxC.at[batch_B].get(mode="clip"))
        loss, grads = value_and_grad(state.params, x_BxHxWxC, x_BxHxWxC, weights_B)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        assert isinstance(params, nnx.State)
        return TrainState(params, opt_state, state.step + 1), loss

    @partial(jax.jit, donate_argnames=("state", "losses_S"))
    def run_steps(state, losses_S, images_NxHxWxC, batches_SxB, start, stop):
        def body(i, carry):
            state, losses_S = carry
            state, loss = train_step(state, images_NxHxWxC, batches_SxB[i])
            return state, losses_S.at[i].set(loss)

        return jax.lax.fori_loop(start, stop, body, (state, losses_S))

    return run_steps


def make_evaluate(graphdef: nnx.GraphDef) -> jax.stages.Wrapped:
    """``evaluate(params, images_NxHxWxC)``: the binary cross-entropy of each image, ``[N]``."""

    @jax.jit
    def evaluate(params: nnx.State, images_NxHxWxC: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params)

        def batch_bce(images: jax.Array) -> jax.Array:
            x = scale(images)
            return metrics.bce(model(x), x)

        whole, rest = jnp.split(images_NxHxWxC, [len(images_NxHxWxC) // EVAL_BATCH * EVAL_BATCH])
        batches = whole.reshape(-1, EVAL_BATCH, *whole.shape[1:])
        return jnp.concatenate([jax.lax.map(batch_bce, batches).reshape(-1), batch_bce(rest)])

    return evaluate


def epoch_loss(losses_S: np.ndarray, examples: int, batch_size: int) -> float:
    """The mean over an epoch's examples of the losses that its steps saw, as Keras reports it."""
    weights_S = np.full(len(losses_S), batch_size)
    weights_S[-1] = examples - batch_size * (len(losses_S) - 1)
    return float(np.average(losses_S.astype(np.float64), weights=weights_S))
