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
gradient in both. XLA sees no convolution; on the CPU, its gradient of a convolution is several
times slower inside a loop than outside (https://github.com/jax-ml/jax/issues/12868).

Shapes: B images, H x W pixels, C channels in, F features out; a, b are the row and column phase.
Kernels have the layout of Flax and Keras: row, column, in, out.
"""

import functools
import types
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cae_jax.ops.precision import dot_general
from cae_jax.ops.xla import dense, same_edges


class Weights(NamedTuple):
    """A layer's kernel and bias in the form that it multiplies by.

    Attributes:
        matrix: G times the same ``[K, N]``, see `prepare`.
        bias: ``[F]`` to be added to the output; None if it is the last row of the matrix.
        features: F.
        precision: `TrainConfig.precision` of the product.
    """

    matrix: jax.Array
    bias: jax.Array | None
    features: int
    precision: str


def prepare(
    layers: Sequence[tuple[str, jax.Array, jax.Array]],
    groups: int = 1,
    precision: str = "float32",
) -> list[Weights]:
    """The weights of several layers.

    Args:
        layers: name of the layer's function here, kernel ``[3, 3, C, F]`` and bias ``[F]``.
        groups: more than 1 for a device with many cores, where fewer kernels are faster. The
            gradient of a matrix is then summed within each group of images, and over the groups
            for all layers at once, instead of splitting each long sum. The bias becomes the last
            row of the matrix, so its gradient needs no kernel of its own.
        precision: of the products.
    """
    matrices = [_MATRICES[name](kernel) for name, kernel, _ in layers]
    if groups == 1:
        return [
            Weights(matrix[None], bias, bias.size, precision)
            for matrix, (_, _, bias) in zip(matrices, layers, strict=True)
        ]
    for i, (name, kernel, bias) in enumerate(layers):
        matrices[i] = jnp.concatenate([matrices[i], _bias_row(name, kernel, bias)[None]])
    vector = jnp.concatenate([matrix.ravel() for matrix in matrices])
    vectors = jnp.broadcast_to(vector, (groups, vector.size))
    parts = jnp.split(vectors, np.cumsum([matrix.size for matrix in matrices])[:-1], axis=1)
    return [
        Weights(part.reshape(groups, *matrix.shape), None, bias.size, precision)
        for part, matrix, (_, _, bias) in zip(parts, matrices, layers, strict=True)
    ]


def _bias_row(name: str, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The row of a matrix that adds the bias to each output once."""
    channels, features = kernel.shape[2:]
    if name == "conv":
        return bias
    if name == "upsample_conv" and not _windows_are_smaller(channels, features):
        return jnp.pad(bias, (4 * features, 4 * features))  # each output has one middle tap
    return jnp.tile(bias, 4)  # the phases


def conv(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves with 'same' padding and adds the bias: ``[B, H, W, C] -> [B, H, W, F]``."""
    return _add(_multiply(_windows(_pad(x_BxHxWxC), 3, stride=1), weights), weights)


def conv_pool(x_BxHxWxC: jax.Array, weights: Weights) -> jax.Array:
    """Convolves and max-pools: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), F]``.

    For an odd size the last window is partial (7 -> 4). A ReLU commutes with the maximum, so it
    may be applied to the result.
    """
    odd = x_BxHxWxC.shape[1] % 2, x_BxHxWxC.shape[2] % 2
    x = _pad(x_BxHxWxC, more=odd)
    return _add(max_of_phases(_multiply(_windows(x, 4, stride=2), weights), *odd), weights)


def phase_kernel(kernel_3x3xCxF: jax.Array) -> jax.Array:
    """The kernel ``[4, 4, C, 4 F]`` that gives the four phases of a convolution.

    Phase (a, b) applies the 3x3 kernel at offset (a, b) of the 4x4 window.
    """
    phases = [
        jnp.pad(kernel_3x3xCxF, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
        for a in (0, 1)
        for b in (0, 1)
    ]
    return jnp.concatenate(phases, axis=3)


def max_of_phases(y_BxHxWx4F: jax.Array, odd_rows: int, odd_columns: int) -> jax.Array:
    """The maximum of the four phases: ``[B, H, W, 4 F] -> [B, H, W, F]``.

    Args:
        y_BxHxWx4F: phases, see `phase_kernel`.
        odd_rows, odd_columns: whether the last row or column of phases 1 is beyond the image.
    """
    y00, y01, y10, y11 = jnp.split(y_BxHxWx4F, 4, axis=-1)
    if odd_columns:
        y01, y11 = _mask_last(y01, axis=2), _mask_last(y11, axis=2)
    if odd_rows:
        y10, y11 = _mask_last(y10, axis=1), _mask_last(y11, axis=1)
    return _first_max(_first_max(y00, y01), _first_max(y10, y11))


def upsample_conv(
    x_BxHxWxC: jax.Array, weights: Weights, *, padding: str | tuple[str, str] = "same"
) -> jax.Array:
    """Upsamples and convolves; arguments, shapes and errors of `cae_jax.ops.xla.upsample_conv`."""
    edges = same_edges(padding)
    if _windows_are_smaller(x_BxHxWxC.shape[-1], weights.features):
        return _add(_upsample_conv_windows(x_BxHxWxC, weights, edges), weights)
    return _add(_upsample_conv_taps(x_BxHxWxC, weights, edges), weights)


def _windows_are_smaller(channels: int, features: int) -> bool:
    """Whether the windows of an upsampling layer are smaller than its taps.

    Both forms are exact and need one large array: 2x2 windows before the matmul, or 3x3 taps
    after it.
    """
    return 4 * channels <= 9 * features


def _upsample_conv_matrix(kernel: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    if _windows_are_smaller(channels, features):
        # Phase (a, b), pixel (i, j) of the window. Phase 0 reads the first pixel by two taps.
        rows = [[kernel[0] + kernel[1], kernel[2]], [kernel[0], kernel[1] + kernel[2]]]
        phases = [
            [[[k[0] + k[1], k[2]], [k[0], k[1] + k[2]]] for k in row]  # [a][i][b][j]
            for row in rows
        ]
        matrix = jnp.stack(
            [
                jnp.stack([phases[a][i][b][j] for a in (0, 1) for b in (0, 1)], axis=1)
                for i in (0, 1)
                for j in (0, 1)
            ]
        )  # window, channel, phase, feature
        return matrix.reshape(4 * channels, 4 * features)
    return kernel.transpose(2, 0, 1, 3).reshape(channels, 9 * features)


_MATRICES = {
    "conv": lambda kernel: kernel.reshape(-1, kernel.shape[-1]),
    "conv_pool": lambda kernel: phase_kernel(kernel).reshape(-1, 4 * kernel.shape[-1]),
    "upsample_conv": _upsample_conv_matrix,
}


def _upsample_conv_windows(x: jax.Array, weights: Weights, edges: tuple[int, int]) -> jax.Array:
    # A zero at low resolution is two at high resolution: with 'same' padding the result is one
    # pixel too wide on each side, and every output still depends on a 2x2 window.
    rows, columns = edges
    x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    y = _depth_to_space(_multiply(_windows(x, 2, stride=1), weights))
    return _inner(y, rows, columns)


def _upsample_conv_taps(x: jax.Array, weights: Weights, edges: tuple[int, int]) -> jax.Array:
    # The matmul multiplies every pixel by every tap. In one direction, outputs 2p and 2p + 1 both
    # add the middle tap of pixel p; 2p also adds the last tap of p and the first of p - 1, and
    # 2p + 1 the first tap of p and the last of p + 1.
    taps = _multiply(x, weights)
    taps = taps.reshape(*taps.shape[:3], 3, 3, weights.features)
    rows = jnp.stack(_even_and_odd(taps[:, :, :, 0], taps[:, :, :, 1], taps[:, :, :, 2], axis=1))
    even, odd = _even_and_odd(rows[..., 0, :], rows[..., 1, :], rows[..., 2, :], axis=3)
    y = jnp.stack([even, odd], axis=-2)  # row phase, B, H, W, column phase, F
    batch, height, width = x.shape[:3]
    y = y.transpose(1, 2, 0, 3, 4, 5).reshape(batch, 2 * height, 2 * width, weights.features)
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


def _multiply(x: jax.Array, weights: Weights) -> jax.Array:
    """Multiplies windows or pixels by a layer's matrix: ``[B, H, W, K] -> [B, H, W, N]``."""
    if weights.bias is None:
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    return _matmul(x, weights.matrix, weights.precision)


def _add(y: jax.Array, weights: Weights) -> jax.Array:
    """Adds the bias, unless it is part of the matrix."""
    return y if weights.bias is None else y + weights.bias[None, None, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, matrix: jax.Array, precision: str) -> jax.Array:
    """``x @ matrix``: ``[B, H, W, K], G times the same [K, N] -> [B, H, W, N]``."""
    return dot_general(x, matrix[0], (((x.ndim - 1,), (0,)), ((), ())), precision)


def _matmul_forward(x, matrix, precision):
    return _matmul(x, matrix, precision), (x, matrix)


def _matmul_backward(precision, residuals, dy):
    # Contracts the rows of x and dy. Autodiff contracts columns, for which XLA on the CPU first
    # transposes the B H W rows of dy: 2 to 3 times slower.
    x, matrix = residuals
    groups, last = len(matrix), x.ndim - 1
    dx = dot_general(dy, matrix[0].T, (((last,), (0,)), ((), ())), precision)
    if groups == 1 or len(x) % groups:
        rows = tuple(range(last))
        dmatrix = dot_general(x, dy, ((rows, rows), ((), ())), precision)
        return dx, jnp.pad(dmatrix[None], ((0, groups - 1), (0, 0), (0, 0)))
    x, dy = (a.reshape(groups, -1, a.shape[-1]) for a in (x, dy))
    return dx, dot_general(x, dy, (((1,), (1,)), ((0,), (0,))), precision)


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


def _pad(x: jax.Array, more: tuple[int, int] = (0, 0)) -> jax.Array:
    """Pads each side with a pixel for the convolution; the last row and column with `more`."""
    return jnp.pad(x, ((0, 0), (1, 1 + more[0]), (1, 1 + more[1]), (0, 0)))


def _depth_to_space(x: jax.Array) -> jax.Array:
    """Rearranges four channel blocks into 2x2 pixels: ``[B, h, w, 4 F] -> [B, 2 h, 2 w, F]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def _first_max(x: jax.Array, y: jax.Array) -> jax.Array:
    """The maximum; a tie passes the gradient to `x`, where `jnp.maximum` splits it."""
    # Keeps a NaN in x. A NaN in y alone is impossible, because the phases share a window.
    return jnp.where(x < y, y, x)


def _mask_last(y: jax.Array, *, axis: int) -> jax.Array:
    """Sets the last row or column to minus infinity."""
    inside = lax.broadcasted_iota(jnp.int32, y.shape, axis) < y.shape[axis] - 1
    return jnp.where(inside, y, -jnp.inf)


# For devices with many cores, where the number of kernels counts.
grouped = types.SimpleNamespace(
    prepare=functools.partial(prepare, groups=32),
    conv=conv,
    conv_pool=conv_pool,
    upsample_conv=upsample_conv,
    dense=dense,
)
