"""What training minimises, the binary cross-entropy of a model's reconstructions, and how to judge.

Inputs and targets are uint8, or float32 in [0, 1]: ``[N, 28, 28, 1]``.
"""

from collections.abc import Callable

import jax
from flax import nnx

from cae_jax.models import autoencoders
from cae_jax.ops import native
from cae_jax.training import metrics

Losses = tuple[jax.Array, jax.Array]


def make_losses(graphdef: nnx.GraphDef) -> Callable[..., Losses]:
    """``losses(params, inputs, targets)``, the losses of each image.

    Returns:
        a function that gives ``(bce_N, mse_N)``: binary cross-entropy and mean squared error.
    """

    def reference(params: nnx.State, inputs: jax.Array, targets: jax.Array) -> Losses:
        logits, targets = nnx.merge(graphdef, params)(inputs), autoencoders.scale(targets)
        return metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets)

    def losses(params: nnx.State, inputs: jax.Array, targets: jax.Array) -> Losses:
        if autoencoders.is_fused(nnx.merge(graphdef, params)):
            return native.differentiable(native.losses, reference, params, inputs, targets)
        return reference(params, inputs, targets)

    return losses


def make_loss(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """``loss(params, inputs, targets, weights_N)``: the weighted mean of the images' losses."""
    losses = make_losses(graphdef)

    def reference(params, inputs, targets, weights_N):
        bce_N, _ = losses(params, inputs, targets)
        return (bce_N * weights_N).sum() / weights_N.sum()

    # The native step gives the gradient by the parameters together with the loss. The compiler
    # drops the other derivatives where, as in training, nobody asks for them.
    @jax.custom_vjp
    def native_loss(params, *arrays):
        return native.value_and_grad(params, *arrays)[0]

    def forward(params, *arrays):
        value, grads = native.value_and_grad(params, *arrays)
        return value, (grads, params, arrays)

    def backward(residuals, dy):
        grads, params, arrays = residuals
        _, vjp = jax.vjp(lambda *arrays: reference(params, *arrays), *arrays)
        return jax.tree.map(lambda grad: grad * dy, grads), *vjp(dy)

    native_loss.defvjp(forward, backward)

    def loss(
        params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> jax.Array:
        fused_model = autoencoders.is_fused(nnx.merge(graphdef, params))
        return (native_loss if fused_model else reference)(params, inputs, targets, weights_N)

    return loss
