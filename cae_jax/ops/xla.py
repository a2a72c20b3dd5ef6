"""Convolution, convolution + max pooling and upsampling + convolution as XLA has them.

The same three functions as `phase`, written as one would write them first: the reference
that the other methods are tested and timed against. Shapes are explained there.

Only the derivatives of the convolution are spelled out. The ones that autodiff writes exchange
batch and channels by dimension numbers; XLA on the CPU turns those into a layout that it has a
fast routine for, but only outside of loops (https://github.com/jax-ml/jax/issues/12868). With
explicit transposes they have that layout everywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax


def conv(x_BxHxWxC: jax.Array, kernel_3x3xCxF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """Convolves with 'same' padding and adds the bias: ``[B, H, W, C] -> [B, H, W, F]``."""
    return _convolve(_pad(x_BxHxWxC), kernel_3x3xCxF) + bias_F[None, None, None, :]


def conv_pool(x_BxHxWxC: jax.Array, kernel_3x3xCxF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """Convolves with 'same' padding, adds the bias, takes the maximum over 2x2 windows.

    Returns:
        ``[B, ceil(H / 2), ceil(W / 2), F]``.
    """
    y = conv(x_BxHxWxC, kernel_3x3xCxF, bias_F)
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


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
        ``[B, 2 H, 2 W, F]`` for padding ``"same"``, ``[B, 2 H - 2, 2 W - 2, F]`` for ``"valid"``.
    """
    x = jnp.repeat(jnp.repeat(x_BxHxWxC, 2, axis=1), 2, axis=2)
    return _convolve(_pad(x, same_edges(padding)), kernel_3x3xCxF) + bias_F[None, None, None, :]


def same_edges(padding: str | tuple[str, str]) -> tuple[int, int]:
    """Pixels that a padding adds on each side of rows and columns: 1 for 'same', 0 for 'valid'."""
    rows, columns = (padding, padding) if isinstance(padding, str) else padding
    for name in (rows, columns):
        if name not in ("same", "valid"):
            raise ValueError(f"padding is {name!r}; it takes 'same' or 'valid'")
    return int(rows == "same"), int(columns == "same")


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """'valid' convolution: ``[B, H, W, C], [h, w, C, F] -> [B, H - h + 1, W - w + 1, F]``."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _convolve_backward(residuals, dy):
    x, kernel = residuals
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    edges = (kernel.shape[0] - 1, kernel.shape[1] - 1)
    dx = _convolve(_pad(dy, edges), turned)
    # Channels of one convolved with the other as the kernel, summed over the images. The one with
    # fewer channels is convolved: a kernel of a single feature is slow inside loops.
    if x.shape[-1] <= dy.shape[-1]:
        dkernel = _convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3))
        return dx, dkernel.transpose(1, 2, 0, 3)
    dkernel = _convolve(_pad(dy, edges).transpose(3, 1, 2, 0), x.transpose(1, 2, 0, 3))
    return dx, dkernel[:, ::-1, ::-1].transpose(1, 2, 3, 0)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _pad(x: jax.Array, edges: tuple[int, int] = (1, 1)) -> jax.Array:
    rows, columns = edges
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
