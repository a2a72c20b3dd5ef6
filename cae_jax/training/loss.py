"""The loss that training minimises.

Inputs and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``.
"""

from collections.abc import Callable

import jax
from flax import nnx

from cae_jax.config import Loss
from cae_jax.models.autoencoders import scale
from cae_jax.ops.backend import MATMUL, Backend
from cae_jax.training import metrics

Losses = tuple[jax.Array, jax.Array]


def make_losses(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> Callable[..., Losses]:
    """Makes ``losses(params, inputs, targets)``, which returns ``(bce_N, mse_N)``.

    They are the binary cross-entropy in nats and the mean squared error of each image, means over
    the pixels.
    """

    def reference(params: nnx.State, inputs: jax.Array, targets: jax.Array) -> Losses:
        logits = nnx.merge(graphdef, params)(inputs, backend.layers)
        targets = scale(targets)
        return metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets)

    return lambda *args: backend.call("losses", reference, *args)


def select_loss(losses: Losses, kind: Loss) -> jax.Array:
    """The losses that training minimises."""
    bce, mse = losses
    return bce if kind == "bce" else mse


def make_loss(
    graphdef: nnx.GraphDef, backend: Backend = MATMUL, kind: Loss = "bce"
) -> Callable[..., jax.Array]:
    """Makes ``loss(params, inputs, targets, weights_N)``, a weighted mean over the images."""
    losses = make_losses(graphdef, backend)

    def loss(
        params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> jax.Array:
        losses_N = select_loss(losses(params, inputs, targets), kind)
        return (losses_N * weights_N).sum() / weights_N.sum()

    return backend.with_gradient(loss, kind)
