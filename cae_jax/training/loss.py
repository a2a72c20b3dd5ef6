"""The loss that training minimises.

Inputs and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``. A loss for a rate adds
the bits of the code, per value of the image. Training replaces the rounding of the code by uniform
noise, with which the density of a latent is that of the whole numbers (Balle, Laparra and
Simoncelli 2017).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cae_jax.config import Loss
from cae_jax.models.autoencoders import Model, scale
from cae_jax.models.density import Density
from cae_jax.ops.backend import MATMUL, Backend
from cae_jax.training import metrics

Losses = tuple[jax.Array, ...]


def make_losses(graphdef: nnx.GraphDef, backend: Backend = MATMUL) -> Callable[..., Losses]:
    """Makes ``losses(params, inputs, targets)``, which returns ``(bce_N, mse_N)``.

    They are the binary cross-entropy in nats and the mean squared error of each image, means over
    the pixels. Of a quantised network it returns ``(bce_N, mse_N, bits_N)``, the last of the
    rounded code; a key as a fourth argument draws uniform noise in place of the rounding.
    """

    def reference(params: nnx.State, inputs: jax.Array, targets: jax.Array, *key: Any) -> Losses:
        model: Model = nnx.merge(graphdef, params)
        if model.density is None:
            logits, bits = model(inputs, backend.layers), ()
        else:
            logits, *bits = _with_bits(model, model.density, inputs, backend, *key)
        targets = scale(targets)
        return metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets), *bits

    return lambda *args: backend.call("losses", reference, *args)


def _with_bits(
    model: Model, density: Density, inputs: jax.Array, backend: Backend, key: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The logits of inputs, and the bits of their codes: rounded, or with noise in training."""
    code = model.latents(inputs, backend.layers)
    if key is None:
        code = jnp.round(code)
    else:
        code += jax.random.uniform(key, code.shape, minval=-0.5, maxval=0.5)
    bits = density.bits(code.reshape(-1, code.shape[-1])).reshape(code.shape)
    return model.decode(code, backend.layers), bits.sum(axis=range(1, code.ndim))


def select_loss(losses: Losses, kind: Loss, rate: float = 0.0, values: int = 1) -> jax.Array:
    """The losses that training minimises.

    Args:
        losses: as `make_losses` returns them.
        kind: of the distortion.
        rate: `TrainConfig.rate`.
        values: of an image: pixels times channels.
    """
    bce, mse, *bits = losses
    distortion = bce if kind == "bce" else mse
    return distortion + rate / values * bits[0] if bits else distortion


def make_loss(
    graphdef: nnx.GraphDef, backend: Backend = MATMUL, kind: Loss = "bce", rate: float = 0.0
) -> Callable[..., jax.Array]:
    """Makes ``loss(params, inputs, targets, weights_N)``, a weighted mean over the images.

    With a `rate` it takes the key of the uniform noise as a fifth argument.
    """
    losses = make_losses(graphdef, backend)

    def loss(
        params: nnx.State,
        inputs: jax.Array,
        targets: jax.Array,
        weights_N: jax.Array,
        *key: jax.Array,
    ) -> jax.Array:
        values = math.prod(targets.shape[1:])
        losses_N = select_loss(losses(params, inputs, targets, *key), kind, rate, values)
        return (losses_N * weights_N).sum() / weights_N.sum()

    return backend.with_gradient(loss, kind)
