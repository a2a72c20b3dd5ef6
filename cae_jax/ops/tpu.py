"""XLA's convolutions in the form that its cost model favours on a TPU.

`cae_jax.ops.xla` has the same functions. There the derivatives are written out for a CPU; here XLA
derives them, and pooling and upsampling are part of the convolutions. The four phases of a pooling
(see `cae_jax.ops.matmul`) are features of a convolution by a 4x4 kernel with stride 2. Nearest
neighbour upsampling by two, then a 3x3 kernel, is a convolution of the input with zeros in between
by the 4x4 kernel that sums the 3x3 kernel at four offsets.
"""

import jax
import jax.numpy as jnp

from cae_jax.ops.matmul import max_of_phases, phase_kernel
from cae_jax.ops.precision import convolve
from cae_jax.ops.xla import Weights, dense, prepare, same_edges

__all__ = ["conv", "conv_pool", "dense", "prepare", "upsample_conv"]


def conv(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves with 'same' padding and adds the bias: ``[B, H, W, C] -> [B, H, W, F]``."""
    y = convolve(x_BxHxWxC, weights.kernel, weights.precision, ((1, 1), (1, 1)))
    return y + _channel(weights.bias)


def conv_pool(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves and max-pools: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), F]``."""
    odd = x_BxHxWxC.shape[1] % 2, x_BxHxWxC.shape[2] % 2
    edges = (1, 1 + odd[0]), (1, 1 + odd[1])
    kernel = phase_kernel(weights.kernel)
    y = convolve(x_BxHxWxC, kernel, weights.precision, edges, stride=2)
    return max_of_phases(y, *odd) + _channel(weights.bias)


def upsample_conv(
    x_BxHxWxC: jax.Array, weights: Weights, *, padding: str | tuple[str, str] = "same"
) -> jax.Array:
    """Upsamples and convolves; arguments, shapes and errors of `cae_jax.ops.xla.upsample_conv`."""
    corners = [
        jnp.pad(weights.kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
        for a in (0, 1)
        for b in (0, 1)
    ]
    edges = tuple((1 + same, 1 + same) for same in same_edges(padding))
    kernel = jnp.stack(corners).sum(axis=0)
    y = convolve(x_BxHxWxC, kernel, weights.precision, edges, dilation=2)
    return y + _channel(weights.bias)


def _channel(bias: jax.Array) -> jax.Array:
    return bias[None, None, None, :]
