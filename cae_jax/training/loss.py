"""The loss that training minimises: the binary cross-entropy of a model's reconstructions.

Inputs and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``.
"""

from collections.abc import Callable

import jax
from flax import nnx

from cae_jax.models.autoencoders import scale
from cae_jax.ops.backend import MATMUL, Backend
from cae_jax.training import metrics

Losses = tuple[jax.Array, jax.Array]


def make_losses(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> Callable[..., Losses]:
    """Makes ``losses(params, inputs, targets)``, the losses of each image.

    Returns:
        a function that returns ``(bce_N, mse_N)``: binary cross-entropy in nats and mean squared
        error, means over the pixels.
    """

    def reference(params: nnx.State, inputs: jax.Array, targets: jax.Array) -> Losses:
        logits = nnx.merge(graphdef, params)(inputs, backend.layers)
        targets = scale(targets)
        return metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets)

    return lambda *args: backend.call("losses", reference, *args)


def make_loss(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> Callable[..., jax.Array]:
    """Makes ``loss(params, inputs, targets, weights_N)``, the weighted mean of the images' BCE."""
    losses = make_losses(graphdef, backend)

    def loss(
        params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> jax.Array:
        bce_N, _ = losses(params, inputs, targets)
        return (bce_N * weights_N).sum() / weights_N.sum()

    return backend.with_gradient(loss)
