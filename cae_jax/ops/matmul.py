"""Polyphase decomposition: every convolution, with pooling or upsampling, as one matmul.

A 2x2 max pooling reads four *phases* of a convolution's output (even or odd row, even or odd
column), and a 2x nearest-neighbour upsampling followed by a convolution produces four. All four
phases of a pixel depend on the same small window of the input. A layer therefore gathers the
windows, multiplies them by one matrix whose four column blocks are the phases, and combines the
blocks. The matrix is linear in the 3x3 kernel, which stays the only parameter; autodiff gives its
gradient. Upsampling to few features works in reverse: multiply the pixels, then combine the
neighbours.

The result equals ``lax.conv_general_dilated`` with ``lax.reduce_window`` or ``jnp.repeat`` up to
rounding, because the order of summation differs. At ties the first maximum of a window gets the
gradient, as there. XLA sees no convolution; on the CPU, its gradient of a convolution is several
times slower inside a loop than outside (https://github.com/jax-ml/jax/issues/12868).

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
    """Convolves with 'same' padding, adds the bias and max-pools 2x2 windows with 'same' padding.

    For an odd size the last window is partial (7 -> 4). A ReLU commutes with the maximum, so it
    may be applied to the result.

    Returns:
        ``[B, ceil(H / 2), ceil(W / 2), F]``.
    """
    odd_rows, odd_columns = x_BxHxWxC.shape[1] % 2, x_BxHxWxC.shape[2] % 2
    # Padding of 1 for the convolution, and 1 more at the end of an odd size.
    x = _pad(x_BxHxWxC, 1, (1 + odd_rows, 1 + odd_columns))
    # Phase (a, b) applies the 3x3 kernel at offset (a, b) of the 4x4 window.
    phases = [
        jnp.pad(kernel_3x3xCxF, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
        for a in (0, 1)
        for b in (0, 1)
    ]
    matrix = jnp.stack(phases, axis=3).reshape(-1, 4 * bias_F.size)
    y00, y01, y10, y11 = jnp.split(_matmul(_windows(x, 4, stride=2), matrix), 4, axis=-1)
    if odd_columns:  # mask phases beyond the image
        y01, y11 = _mask_last(y01, axis=2), _mask_last(y11, axis=2)
    if odd_rows:
        y10, y11 = _mask_last(y10, axis=1), _mask_last(y11, axis=1)
    return _first_max(_first_max(y00, y01), _first_max(y10, y11)) + _channel(bias_F)


# _TAPS[a, i, k] = 1 where tap k of the kernel, at output phase a, reads low-resolution pixel i.
_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


def upsample_conv(
    x_BxHxWxC: jax.Array,
    kernel_3x3xCxF: jax.Array,
    bias_F: jax.Array,
    *,
    padding: str | tuple[str, str] = "same",
) -> jax.Array:
    """Upsamples by two (nearest neighbour), convolves and adds the bias.

    Args:
        x_BxHxWxC: low-resolution input.
        kernel_3x3xCxF: kernel of the convolution.
        bias_F: bias.
        padding: of the convolution, ``"same"`` or ``"valid"``, or a pair for rows and columns.

    Returns:
        ``[B, 2 H, 2 W, F]`` for ``"same"``, ``[B, 2 H - 2, 2 W - 2, F]`` for ``"valid"``.

    Raises:
        ValueError: another padding.
    """
    edges = same_edges(padding)
    channels, features = kernel_3x3xCxF.shape[2:]
    # Both forms are exact and need one large array: 2x2 windows before the matmul, or 3x3 taps
    # after it. Take the smaller array.
    if 4 * channels <= 9 * features:
        return _upsample_conv_windows(x_BxHxWxC, kernel_3x3xCxF, edges) + _channel(bias_F)
    return _upsample_conv_taps(x_BxHxWxC, kernel_3x3xCxF, edges) + _channel(bias_F)


def _upsample_conv_windows(x: jax.Array, kernel: jax.Array, edges: tuple[int, int]) -> jax.Array:
    # A zero at low resolution is two at high resolution: with 'same' padding the result is one
    # pixel too wide on each side, and every output still depends on a 2x2 window.
    rows, columns = edges
    x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    matrix = jnp.einsum("aik,bjl,klcf->ijcabf", _TAPS, _TAPS, kernel)
    y = _matmul(_windows(x, 2, stride=1), matrix.reshape(-1, 4 * kernel.shape[-1]))
    y = _depth_to_space(y)
    return _inner(y, rows, columns)


def _upsample_conv_taps(x: jax.Array, kernel: jax.Array, edges: tuple[int, int]) -> jax.Array:
    # The matmul multiplies every pixel by every tap. In one direction, outputs 2p and 2p + 1 both
    # add the middle tap of pixel p; 2p also adds the last tap of p and the first of p - 1, and
    # 2p + 1 the first tap of p and the last of p + 1.
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
    """Crops `rows` and `columns` pixels on each side."""
    return y[:, rows : y.shape[1] - rows, columns : y.shape[2] - columns]


def _even_and_odd(
    first: jax.Array, middle: jax.Array, last: jax.Array, *, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Combines the products of the three taps with each pixel p into outputs 2p and 2p + 1."""
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
    # Contracts the rows of x and dy. Autodiff contracts columns, for which XLA on the CPU first
    # transposes the B H W rows of dy: 2 to 3 times slower.
    x, matrix = residuals
    rows = tuple(range(x.ndim - 1))
    return dy @ matrix.T, lax.dot_general(x, dy, ((rows, rows), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _windows(x: jax.Array, size: int, *, stride: int) -> jax.Array:
    """Gathers all square windows: ``[B, H, W, C] -> [B, h, w, size * size * C]``."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    pixels = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(pixels, axis=-1)


def _pad(x: jax.Array, before: int, after: int | tuple[int, int]) -> jax.Array:
    """Pads with zeros; `after` may differ between rows and columns."""
    rows, columns = after if isinstance(after, tuple) else (after, after)
    return jnp.pad(x, ((0, 0), (before, rows), (before, columns), (0, 0)))


def _depth_to_space(x: jax.Array) -> jax.Array:
    """Rearranges four channel blocks into 2x2 pixels: ``[B, h, w, 4 F] -> [B, 2 h, 2 w, F]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def _channel(bias_F: jax.Array) -> jax.Array:
    return bias_F[None, None, None, :]


def _first_max(x: jax.Array, y: jax.Array) -> jax.Array:
    """The maximum; a tie passes the gradient to `x`, where `jnp.maximum` splits it."""
    # Keeps a NaN in x. A NaN in y alone is impossible, because the phases share a window.
    return jnp.where(x < y, y, x)


def _mask_last(y: jax.Array, *, axis: int) -> jax.Array:
    """Sets the last row or column to minus infinity."""
    inside = lax.broadcasted_iota(jnp.int32, y.shape, axis) < y.shape[axis] - 1
    return jnp.where(inside, y, -jnp.inf)
