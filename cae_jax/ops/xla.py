"""XLA's convolutions, with max pooling or upsampling: the reference for the other backends.

`cae_jax.ops.matmul` has the same three functions and explains the shape letters.

The convolution has explicit derivatives. Those of autodiff swap batch and channels through
dimension numbers. On the CPU, XLA converts these to a layout with a fast routine, but not inside
loops (https://github.com/jax-ml/jax/issues/12868). Explicit transposes give that layout everywhere.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cae_jax.ops.precision import convolve, dot_general


class Weights(NamedTuple):
    """Kernel and bias of a layer: ``[3, 3, C, F]`` and ``[F]``, and its `TrainConfig.precision`."""

    kernel: jax.Array
    bias: jax.Array
    precision: str


def prepare(
    layers: Sequence[tuple[str, jax.Array, jax.Array]], precision: str = "float32"
) -> list[Weights]:
    """The weights of several layers, each given by name, kernel and bias."""
    return [Weights(kernel, bias, precision) for _, kernel, bias in layers]


def conv(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves with 'same' padding and adds the bias: ``[B, H, W, C] -> [B, H, W, F]``."""
    y = _convolve(_pad(x_BxHxWxC), weights.kernel, weights.precision)
    return y + weights.bias[None, None, None, :]


def conv_pool(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves with 'same' padding, adds the bias and max-pools 2x2 windows with 'same' padding.

    Returns:
        ``[B, ceil(H / 2), ceil(W / 2), F]``.
    """
    y = conv(x_BxHxWxC, weights)
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def upsample_conv(
    x_BxHxWxC: jax.Array, weights: Weights, *, padding: str | tuple[str, str] = "same"
) -> jax.Array:
    """Upsamples by two (nearest neighbour), convolves and adds the bias.

    Args:
        x_BxHxWxC: low-resolution input.
        weights: kernel and bias of the convolution.
        padding: of the convolution, ``"same"`` or ``"valid"``, or a pair for rows and columns.

    Returns:
        ``[B, 2 H, 2 W, F]`` for padding ``"same"``, ``[B, 2 H - 2, 2 W - 2, F]`` for ``"valid"``.

    Raises:
        ValueError: another padding.
    """
    x = jnp.repeat(jnp.repeat(x_BxHxWxC, 2, axis=1), 2, axis=2)
    y = _convolve(_pad(x, same_edges(padding)), weights.kernel, weights.precision)
    return y + weights.bias[None, None, None, :]


def same_edges(padding: str | tuple[str, str]) -> tuple[int, int]:
    """Pixels of padding on each side, for rows and columns: 1 for 'same', 0 for 'valid'."""
    rows, columns = (padding, padding) if isinstance(padding, str) else padding
    for name in (rows, columns):
        if name not in ("same", "valid"):
            raise ValueError(f"padding is {name!r}; it takes 'same' or 'valid'")
    return int(rows == "same"), int(columns == "same")


def dense(
    x_BxC: jax.Array, kernel: jax.Array, bias: jax.Array, precision: str = "float32"
) -> jax.Array:
    """Multiplies by a kernel ``[C, F]`` and adds the bias: ``[B, C] -> [B, F]``."""
    return _multiply(x_BxC, kernel, precision) + bias.reshape(1, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x: jax.Array, kernel: jax.Array, precision: str) -> jax.Array:
    return dot_general(x, kernel, (((1,), (0,)), ((), ())), precision)


def _multiply_forward(x, kernel, precision):
    return _multiply(x, kernel, precision), (x, kernel)


def _multiply_backward(precision, residuals, dy):
    x, kernel = residuals
    dkernel = dot_general(dy, x, (((0,), (0,)), ((), ())), precision).T
    return dot_general(dy, kernel, (((1,), (1,)), ((), ())), precision), dkernel


_multiply.defvjp(_multiply_forward, _multiply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, precision: str) -> jax.Array:
    """'valid' convolution: ``[B, H, W, C], [h, w, C, F] -> [B, H - h + 1, W - w + 1, F]``."""
    return convolve(x, kernel, precision)


def _convolve_forward(x, kernel, precision):
    return _convolve(x, kernel, precision), (x, kernel)


def _convolve_backward(precision, residuals, dy):
    x, kernel = residuals
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    edges = (kernel.shape[0] - 1, kernel.shape[1] - 1)
    dx = _convolve(_pad(dy, edges), flipped, precision)
    # Convolves the channels of x and dy with each other, summing over the images. The one with
    # fewer channels is the input: a kernel with a single feature is slow inside loops.
    if x.shape[-1] <= dy.shape[-1]:
        dkernel = _convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), precision)
        return dx, dkernel.transpose(1, 2, 0, 3)
    dy = _pad(dy, edges).transpose(3, 1, 2, 0)
    dkernel = _convolve(dy, x.transpose(1, 2, 0, 3), precision)
    return dx, dkernel[:, ::-1, ::-1].transpose(1, 2, 3, 0)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _pad(x: jax.Array, edges: tuple[int, int] = (1, 1)) -> jax.Array:
    rows, columns = edges
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
