"""The training step, the epoch as one compiled loop over it, and the evaluation.

Everything here is pure and compiled; `cae_jax.runs` calls it and deals with files and time.

The images live on the device as uint8. An epoch is a permutation of their indices, cut into
batches, and a loop on the device that gathers, scales and steps. The loop's bounds are arguments:
one compiled program serves an epoch in one piece or in any number of chunks, so the result cannot
depend on the chunk length.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from cae_jax.config import Loss
from cae_jax.models.autoencoders import Model, scale
from cae_jax.ops.backend import MATMUL, Backend
from cae_jax.training.loss import Losses, make_loss, make_losses
from cae_jax.training.noise import Corruption, targets

# ``gradient(params, images_NxHxWxC, batch_B, noise_key, *numbers)``: the mean loss of a batch of
# indices, of which those from N on are padding, and its gradient as a vector; `numbers` are folded
# into the key.
Gradient = Callable[..., tuple[jax.Array, jax.Array]]

# Test images in a step of the evaluation: few enough for their activations to stay in the cache.
EVAL_BATCH = 250
_CODE = 1  # folded into the noise key of a step, for the noise of the code


class TrainState(NamedTuple):
    """The state of training; a pytree.

    Attributes:
        params: parameters of the model, an `nnx.State`.
        opt_state: state of the optimizer.
        step: int32 scalar, steps since the start of training.
        losses_S: loss of each step of the current epoch, of the previous epoch for steps to come;
            not finite where loss or gradient was not.
    """

    params: nnx.State
    opt_state: optax.OptState
    step: jax.Array
    losses_S: jax.Array


class Keys(NamedTuple):
    """The root keys of a run.

    Attributes:
        init: initialises the parameters.
        order: shuffles the images; folded with the epoch.
        noise: draws the training noise; folded with the step, whatever the chunks.
        test_noise: draws the noise on the test images, once for all epochs and models of a seed.
    """

    init: jax.Array
    order: jax.Array
    noise: jax.Array
    test_noise: jax.Array


def make_keys(*seeds: int) -> Keys:
    """Splits a seed into the root keys of a run; several seeds give keys with a first axis."""
    # Not JAX's default generator, which users can set: a run is reproduced by its config.
    roots = [jax.random.key(seed, impl="threefry2x32") for seed in seeds]
    keys = [jax.random.split(root, len(Keys._fields)) for root in roots]
    return Keys(*keys[0]) if len(keys) == 1 else Keys(*map(jnp.stack, zip(*keys, strict=True)))


def init_state(model: Model, optimizer: optax.GradientTransformation, steps: int) -> TrainState:
    """The state before the first step; `steps` is the number of steps in an epoch."""
    params = nnx.state(model, nnx.Param)
    return TrainState(
        params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros(steps, jnp.float32)
    )


@partial(jax.jit, static_argnames=("examples", "batch_size"))
def epoch_batches(key: jax.Array, epoch: jax.Array, *, examples: int, batch_size: int) -> jax.Array:
    """Shuffles the images of one epoch and cuts them into batches.

    Args:
        key: `Keys.order`.
        epoch: number of the epoch.
        examples: N, number of training images.
        batch_size: B.

    Returns:
        int32 indices ``[ceil(N / B), B]``: every index below N once, the last batch padded with N.
    """
    indices = jnp.arange(examples, dtype=jnp.int32)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), indices)
    steps = -(-examples // batch_size)
    order = jnp.pad(order, (0, steps * batch_size - examples), constant_values=examples)
    return order.reshape(steps, batch_size)


def make_run_steps(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    corrupt: Corruption | None = None,
    backend: Backend = MATMUL,
    kind: Loss = "bce",
    over_all: Callable[[Gradient], Gradient] = lambda gradient: gradient,
    rate: float = 0.0,
) -> jax.stages.Wrapped:
    """Makes the compiled loop over training steps that minimise the loss `kind`.

    `corrupt` adds noise to the inputs only, or takes pairs apart. `over_all` makes the gradient of
    a batch from that of its parts, see `cae_jax.training.devices`. `rate` is the weight of the
    bits, see `cae_jax.training.loss`.

    Returns:
        ``run_steps(state, images_NxHxWxC, batches_SxB, noise_key, start, stop)``, which takes the
        steps ``start <= i < stop`` of an epoch and returns the new state. The state is donated.
    """
    gradient = over_all(_make_gradient(graphdef, corrupt, backend, kind, rate))

    def train_step(i, state, unravel, images_NxHxWxC, batch_B, noise_key) -> TrainState:
        params = unravel(state.params)
        loss, vector = gradient(params, images_NxHxWxC, batch_B, noise_key, state.step)
        # A loss or gradient that is not finite marks the step's loss and the whole gradient, so
        # that the losses name the step and the optimizer can skip it.
        vector = jax.lax.optimization_barrier(vector)
        finite = jnp.isfinite(loss + vector.sum())
        grads = unravel(jnp.where(finite, vector, jnp.nan))
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = state.params + ravel_pytree(updates)[0]
        loss = jnp.where(finite, loss, jnp.nan)
        losses_S = jax.lax.dynamic_update_slice(
            state.losses_S, loss[None], (i,), allow_negative_indices=False
        )
        return TrainState(params, opt_state, state.step + 1, losses_S)

    @partial(jax.jit, donate_argnames=("state",))
    def run_steps(state, images_NxHxWxC, batches_SxB, noise_key, start, stop):
        # One vector of all parameters: few device kernels however many layers there are.
        vector, unravel = ravel_pytree(state.params)
        shape = batches_SxB.shape[1:]

        def body(i, state):
            batch_B = jax.lax.dynamic_slice(
                batches_SxB, (i, *[0] * len(shape)), (1, *shape), allow_negative_indices=False
            )[0]
            return train_step(i, state, unravel, images_NxHxWxC, batch_B, noise_key)

        state = jax.lax.fori_loop(start, stop, body, state._replace(params=vector))
        return state._replace(params=unravel(state.params))

    return run_steps


def _make_gradient(
    graphdef: nnx.GraphDef, corrupt: Corruption | None, backend: Backend, kind: Loss, rate: float
) -> Gradient:
    value_and_grad = jax.value_and_grad(make_loss(graphdef, backend, kind, rate))
    of_batch = getattr(backend.kernel, f"{kind}_of_batch", None)
    if of_batch is not None and corrupt is None and not rate:

        def of_indices(params, images_NxHxWxC, batch_B, noise_key, *numbers):
            del noise_key, numbers
            loss, grads = of_batch(params, images_NxHxWxC, batch_B)
            return loss, ravel_pytree(grads)[0]

        return of_indices

    def gradient(params, images_NxHxWxC, batch_B, noise_key, *numbers):
        # The last batch is padded; mask the padding.
        weights_B = (batch_B < images_NxHxWxC.shape[0]).astype(jnp.float32)
        images_BxHxWxC = images_NxHxWxC.at[batch_B].get(mode="clip")
        inputs_BxHxWxC = targets_BxHxWxC = targets(corrupt, images_BxHxWxC)
        key = reduce(jax.random.fold_in, numbers, noise_key)
        if corrupt is not None:
            inputs_BxHxWxC = corrupt(key, scale(images_BxHxWxC))
        arguments = [params, inputs_BxHxWxC, targets_BxHxWxC, weights_B]
        if rate:
            arguments.append(jax.random.fold_in(key, _CODE))  # not the key of the images' noise
        loss, grads = value_and_grad(*arguments)
        return loss, ravel_pytree(grads)[0]

    return gradient


def eval_batch(backend: Backend) -> int:
    """Test images in a step of the evaluation, of which more would take memory."""
    return min(EVAL_BATCH, backend.max_batch)


def make_evaluate(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> jax.stages.Wrapped:
    """Makes the compiled ``evaluate(params, inputs_NxHxWxC, targets_NxHxWxC)``.

    It returns ``(bce_N, mse_N)``, and the bits of a quantised code, see
    `cae_jax.training.loss.make_losses`.
    """
    losses = make_losses(graphdef, backend)

    @jax.jit
    def evaluate(
        params: nnx.State, inputs_NxHxWxC: jax.Array, targets_NxHxWxC: jax.Array
    ) -> Losses:
        images = (inputs_NxHxWxC, targets_NxHxWxC)
        size = eval_batch(backend)
        whole = len(inputs_NxHxWxC) // size * size
        batches = [x[:whole].reshape(-1, size, *x.shape[1:]) for x in images]
        most = jax.lax.map(lambda batch: losses(params, *batch), batches)
        rest = losses(params, *(x[whole:] for x in images))
        return jax.tree.map(lambda a, b: jnp.concatenate([a.reshape(-1), b]), most, rest)

    return evaluate
