"""Convolution, convolution + max pooling and upsampling + convolution as exact matmuls.

A 2x2 max pooling looks at four *phases* of a convolution's output (even or odd row, even or odd
column), and a nearest 2x upsampling followed by a convolution produces four. All four phases of
a pixel read the same small window of the input, so a layer is: gather the windows, multiply by
one matrix whose four column blocks are the phases, combine the blocks. The matrix is linear in
the 3x3 kernel, which stays the only parameter, and gradients reach it by autodiff. Upsampling to
few features goes the other way round: multiply the pixels, then combine the neighbours.

The result is that of ``lax.conv_general_dilated`` with ``lax.reduce_window`` or ``jnp.repeat`` up
to the rounding of a sum taken in another order; at ties the first maximum of a window gets the
gradient, as it does there. Nothing here is a convolution for XLA, which on the CPU runs the
gradient of a convolution inside a loop several times slower than outside
(https://github.com/jax-ml/jax/issues/12868).

Shapes: B images, H x W pixels, C channels in, F features out; a, b are the row and column phase.
Kernels have the layout of Flax and Keras: row, column, in, out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cae_jax.ops.xla import same_edges


def conv(x_BxHxWxC: jax.Array, kernel_3x3xCxF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """Convolves with 'same' padding and adds the bias: ``[B, H, W, C] -> [B, H, W, F]``."""
    matrix = kernel_3x3xCxF.reshape(-1, bias_F.size)
    return _matmul(_windows(_pad(x_BxHxWxC, 1, 1), 3, stride=1), matrix) + _channel(bias_F)


def conv_pool(x_BxHxWxC: jax.Array, kernel_3x3xCxF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """Convolves with 'same' padding, adds the bias, takes the maximum over 2x2 windows.

    Odd sizes are pooled with 'same' padding too: the last window holds what is left (7 -> 4). A
    ReLU commutes with the maximum, so it may be applied to the result.

    Returns:
        ``[B, ceil(H / 2), ceil(W / 2), F]``.
    """
    odd_rows, odd_columns = x_BxHxWxC.shape[1] % 2, x_BxHxWxC.shape[2] % 2
    # The convolution's padding of 1, and one more at the end where the size is odd.
    x = _pad(x_BxHxWxC, 1, (1 + odd_rows, 1 + odd_columns))
    # Phase (a, b) sees the 3x3 kernel at offset (a, b) of the 4x4 window.
    phases = [
        jnp.pad(kernel_3x3xCxF, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
        for a in (0, 1)
        for b in (0, 1)
    ]
    matrix = jnp.stack(phases, axis=3).reshape(-1, 4 * bias_F.size)
    y00, y01, y10, y11 = jnp.split(_matmul(_windows(x, 4, stride=2), matrix), 4, axis=-1)
    if odd_columns:  # phases beyond the image must not win
        y01, y11 = _mask_last(y01, axis=2), _mask_last(y11, axis=2)
    if odd_rows:
        y10, y11 = _mask_last(y10, axis=1), _mask_last(y11, axis=1)
    return _first_max(_first_max(y00, y01), _first_max(y10, y11)) + _channel(bias_F)


# _TAPS[a, i, k] = 1 where tap k of the kernel, at output phase a, lands on low-resolution pixel i.
_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


def upsample_conv(
    x_BxHxWxC: jax.Array,
    kernel_3x3xCxF: jax.Array,
    bias_F: jax.Array,
    *,
    padding: str | tuple[str, str] = "same",
) -> jax.Array:
    """Repeats every pixel 2x2 times, convolves, adds the bias.

    Args:
        x_BxHxWxC: input at the low resolution.
        kernel_3x3xCxF: kernel.
        bias_F: one value per output feature.
        padding: of the convolution, ``"same"`` or ``"valid"``; a pair for rows and columns.

    Returns:
        ``[B, 2 H, 2 W, F]`` for ``"same"``, ``[B, 2 H - 2, 2 W - 2, F]`` for ``"valid"``.
    """
    edges = same_edges(padding)
    channels, features = kernel_3x3xCxF.shape[2:]
    # Two exact ways, one large array each: 2x2 windows before the matmul, or 3x3 taps after it.
    if 4 * channels <= 9 * features:
        return _upsample_conv_windows(x_BxHxWxC, kernel_3x3xCxF, edges) + _channel(bias_F)
    return _upsample_conv_taps(x_BxHxWxC, kernel_3x3xCxF, edges) + _channel(bias_F)


def _upsample_conv_windows(x: jax.Array, kernel: jax.Array, edges: tuple[int, int]) -> jax.Array:
    # One zero at the low resolution is two at the high one, so with 'same' the result is one
    # pixel too wide on each side, and every output still needs no more than a 2x2 window.
    rows, columns = edges
    x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    matrix = jnp.einsum("aik,bjl,klcf->ijcabf", _TAPS, _TAPS, kernel)
    y = _matmul(_windows(x, 2, stride=1), matrix.reshape(-1, 4 * kernel.shape[-1]))
    y = _depth_to_space(y)
    return _inner(y, rows, columns)


def _upsample_conv_taps(x: jax.Array, kernel: jax.Array, edges: tuple[int, int]) -> jax.Array:
    # The matmul multiplies every pixel by every tap. In one direction, output 2p and 2p + 1 then
    # both get the middle tap of pixel p; beside it, 2p gets the last tap of p and the first of
    # p - 1, and 2p + 1 the first tap of p and the last of p + 1.
    channels, features = kernel.shape[2:]
    taps = _matmul(x, kernel.transpose(2, 0, 1, 3).reshape(channels, 9 * features))
    taps = taps.reshape(*taps.shape[:3], 3, 3, features)
    rows = jnp.stack(_even_and_odd(taps[:, :, :, 0], taps[:, :, :, 1], taps[:, :, :, 2], axis=1))
    even, odd = _even_and_odd(rows[..., 0, :], rows[..., 1, :], rows[..., 2, :], axis=3)
    y = jnp.stack([even, odd], axis=-2)  # row phase, B, H, W, column phase, F
    batch, height, width = x.shape[:3]
    y = y.transpose(1, 2, 0, 3, 4, 5).reshape(batch, 2 * height, 2 * width, features)
    return _inner(y, 1 - edges[0], 1 - edges[1])


def _inner(y: jax.Array, rows: int, columns: int) -> jax.Array:
    """Drops pixels at each side."""
    return y[:, rows : y.shape[1] - rows, columns : y.shape[2] - columns]


def _even_and_odd(
    first: jax.Array, middle: jax.Array, last: jax.Array, *, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Outputs 2p and 2p + 1 from the products of the three taps with pixel p, along an axis."""
    size = middle.shape[axis]
    zero = jnp.zeros_like(lax.slice_in_dim(middle, 0, 1, axis=axis))
    before = jnp.concatenate([zero, lax.slice_in_dim(first, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(last, 1, size, axis=axis), zero], axis)
    return middle + last + before, middle + first + after


@jax.custom_vjp
def _matmul(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """``x @ matrix``: ``[B, H, W, K], [K, N] -> [B, H, W, N]``."""
    return x @ matrix


def _matmul_forward(x, matrix):
    return x @ matrix, (x, matrix)


def _matmul_backward(residuals, dy):
    # The derivative by the matrix as rows times rows. Autodiff writes it as columns times columns,
    # for which XLA on the CPU first transposes the B H W rows of dy: 2 to 3 times slower.
    x, matrix = residuals
    rows = tuple(range(x.ndim - 1))
    return dy @ matrix.T, lax.dot_general(x, dy, ((rows, rows), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _windows(x: jax.Array, size: int, *, stride: int) -> jax.Array:
    """All windows of ``size x size`` pixels: ``[B, H, W, C] -> [B, h, w, size * size * C]``."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    pixels = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(pixels, axis=-1)


def _pad(x: jax.Array, before: int, after: int | tuple[int, int]) -> jax.Array:
    """Zeros around the image; `after` may differ between rows and columns."""
    rows, columns = after if isinstance(after, tuple) else (after, after)
    return jnp.pad(x, ((0, 0), (before, rows), (before, columns), (0, 0)))


def _depth_to_space(x: jax.Array) -> jax.Array:
    """Four channel blocks become 2x2 pixels: ``[B, h, w, 4 F] -> [B, 2 h, 2 w, F]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def _channel(bias_F: jax.Array) -> jax.Array:
    return bias_F[None, None, None, :]


def _first_max(x: jax.Array, y: jax.Array) -> jax.Array:
    """The maximum; at a tie the gradient goes to the first, where `jnp.maximum` would halve it."""
    # "not less", so that a NaN in x stays; one in y alone cannot be, the phases share a window.
    return jnp.where(x < y, y, x)


def _mask_last(y: jax.Array, *, axis: int) -> jax.Array:
    """Minus infinity in the last row or column."""
    inside = lax.broadcasted_iota(jnp.int32, y.shape, axis) < y.shape[axis] - 1
    return jnp.where(inside, y, -jnp.inf)
