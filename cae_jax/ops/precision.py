"""Products of layers in the precision of a run, see `TrainConfig.precision`.

Arrays are float32 in every precision. ``"bf16"`` rounds both operands of a product to bfloat16 and
adds in float32. ``"tf32"`` asks for JAX's precision "tensorfloat32", and ``"float32"`` leaves the
choice to JAX's default. docs/performance.md has what devices make of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxlib.version import __version_info__

_PRECISIONS = {"float32": None, "tf32": lax.Precision.HIGH, "bf16": None}
# XLA before jaxlib 0.8.2 fails to multiply some arrays of bfloat16 on a CPU.
_LACKS_BF16 = __version_info__ < (0, 8, 2)
Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def dot_general(x: jax.Array, y: jax.Array, dimensions: Dimensions, precision: str) -> jax.Array:
    """`jax.lax.dot_general`; the result has the type of `x`."""
    options = {"precision": _PRECISIONS[precision], "preferred_element_type": x.dtype}

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot_general(*_operands(x, y, precision), dimensions, **options)

    def rounded(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = (lax.reduce_precision(each, 8, 7) for each in (x, y))
        return lax.dot_general(x, y, dimensions, **options)

    if precision == "bf16" and _LACKS_BF16:
        return lax.platform_dependent(x, y, cpu=rounded, default=product)
    return product(x, y)


def convolve(
    x_BxHxWxC: jax.Array,
    kernel: jax.Array,
    precision: str,
    edges: str | Sequence[tuple[int, int]] = "VALID",
    *,
    stride: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """Convolves with a kernel ``[h, w, C, F]``, with `dilation` - 1 zeros between the pixels.

    The result has the type of the images, in ``"bf16"`` rounded to bfloat16: XLA has no kernel for
    NVIDIA GPUs that convolves bfloat16 to float32, and would convolve float32 instead.
    """
    x, kernel = _operands(x_BxHxWxC, kernel, precision)
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        edges,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_PRECISIONS[precision],
    )
    return y.astype(x_BxHxWxC.dtype)


def _operands(x: jax.Array, y: jax.Array, precision: str) -> tuple[jax.Array, jax.Array]:
    return (x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)) if precision == "bf16" else (x, y)
