"""The convolutional autoencoder in two kernels, for an NVIDIA GPU.

`Kernel` computes what `models.ConvAutoencoder` does, from its parameters: one block of threads an
image, and one more kernel that sums the gradients of the images in a written order. The same arrays
give the same bits on every GPU of one kind. JAX cannot differentiate the calls;
`cae_jax.ops.backend` defines their derivative.

It is tested on a CPU, for which the same source is compiled, and was not run on a GPU yet.
"""

import functools
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.ops import compiler, flat
from cae_jax.ops.cuda.agreement import TOLERANCE, difference
from cae_jax.ops.cuda.build import Compiled, register

__all__ = ["MEASURED", "Compiled", "Kernel", "disagrees", "register", "soap"]

logger = logging.getLogger(__name__)

# Compute capabilities on which a measurement in docs/benchmarks shows it right and faster.
MEASURED: frozenset[str] = frozenset()
# Blocks that compute gradients: each image has its own up to this number, and a block adds those of
# its images. It is not the device's number of multiprocessors, on which the bits would depend.
MOST_BLOCKS = 512
_COLUMNS = 32  # that a block of the kernel `sum` adds, with 16 partial sums of each


class Kernel:
    """The compiled kernels of one network.

    Images and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``, N at least 1.

    Args:
        compiled: the kernels.
        image_shape: ``(height, width, channels)``.
        code_shape: shape of one image's code.
        soap: as the function of that name here.
    """

    def __init__(
        self,
        compiled: Compiled,
        image_shape: tuple[int, ...],
        code_shape: tuple[int, ...],
        soap: Callable[[tuple[tuple[int, ...], ...]], Any],
    ) -> None:
        self._compiled, self._image_shape, self._code_shape = compiled, image_shape, code_shape
        self.soap = soap

    def bce_and_grad(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        """The mean cross-entropy of images weighted by `weights_N`; its gradient by `params`."""
        return self._value_and_grad("bce_and_grad", params, inputs, targets, weights_N)

    def mse_and_grad(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        """As `bce_and_grad`, of the mean squared error."""
        return self._value_and_grad("mse_and_grad", params, inputs, targets, weights_N)

    def bce_of_batch(
        self, params: nnx.State, images: jax.Array, batch_B: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        """As `bce_and_grad`, of some of the images as inputs and targets.

        Args:
            params: of the network.
            images: ``[N, *image_shape]``.
            batch_B: int32 indices, of which those from N on are padding and have no weight.
        """
        return self._of_batch("bce_of_batch", params, images, batch_B)

    def mse_of_batch(
        self, params: nnx.State, images: jax.Array, batch_B: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        """As `bce_of_batch`, of the mean squared error."""
        return self._of_batch("mse_of_batch", params, images, batch_B)

    @property
    def key(self) -> str:
        """A digest of everything that the kernels depend on."""
        return self._compiled.key

    def _value_and_grad(self, entry: str, params: nnx.State, *arrays: jax.Array) -> Any:
        inputs, targets, weights_N = arrays
        flat.check(self._image_shape, inputs, targets)
        images = _rows(inputs), _rows(targets), weights_N[None, :, None]
        return self._sum(entry, params, len(inputs), *images)

    def _of_batch(self, entry: str, params: nnx.State, images: jax.Array, batch: jax.Array) -> Any:
        flat.check(self._image_shape, images)
        return self._sum(entry, params, len(batch), _rows(images), batch[None, :, None])

    def _sum(self, entry: str, params: nnx.State, count: int, *arrays: jax.Array) -> Any:
        """The weighted mean of losses of images, and its gradient: by blocks, and their sum."""
        layers, unravel = flat.ordered(params)
        values = 1 + sum(layer.size for layer in layers)
        blocks = min(count, MOST_BLOCKS)
        partial = self._call(entry, blocks, (blocks, values), _pack(layers), *arrays)
        # With the shared memory that it needs, for several blocks on a multiprocessor.
        small = self._compiled._replace(shared=4 * 16 * _COLUMNS)
        (total,) = _launch(small, "sum", -(-values // _COLUMNS), [(1, values)], [partial])
        value, gradient = jnp.split(total.reshape(-1), [1])
        return value[0], unravel(gradient)

    def losses(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Binary cross-entropy and mean squared error of each image: ``[N]`` each."""
        flat.check(self._image_shape, inputs, targets)
        found = self._of_each("losses_of", params, (2, len(inputs)), inputs, targets)
        bce_N, mse_N = found.reshape(2, -1)
        return bce_N, mse_N

    def encode(self, params: nnx.State, images: jax.Array) -> jax.Array:
        """Images to codes ``[N, *code_shape]``."""
        flat.check(self._image_shape, images)
        shape = (len(images), math.prod(self._code_shape))
        codes = self._of_each("encode_images", params, shape, images)
        return codes.reshape(len(images), *self._code_shape)

    def decode(self, params: nnx.State, codes: jax.Array) -> jax.Array:
        """Float32 codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        flat.check(self._code_shape, codes, dtypes=("float32",))
        shape = (len(codes), math.prod(self._image_shape))
        logits = self._of_each("decode_codes", params, shape, codes)
        return logits.reshape(len(codes), *self._image_shape)

    def _of_each(
        self, kernel: str, params: nnx.State, shape: tuple[int, int], *images: jax.Array
    ) -> jax.Array:
        """What a kernel computes of each image, in a block of its own."""
        if not len(images[0]):
            return jnp.zeros(shape, jnp.float32)
        layers, _ = flat.ordered(params)
        return self._call(kernel, len(images[0]), shape, _pack(layers), *map(_rows, images))

    def _call(
        self, kernel: str, blocks: int, shape: tuple[int, int], *arrays: jax.Array
    ) -> jax.Array:
        return _launch(self._compiled, kernel, blocks, [shape], arrays)[0]


def _launch(
    compiled: Compiled,
    kernel: str,
    blocks: int,
    shapes: Sequence[tuple[int, int]],
    arrays: Sequence[jax.Array],
    aliases: dict[int, int] | None = None,
) -> list[jax.Array]:
    """Calls a kernel; arrays and results are ``[1, rows, values]``, results float32."""
    results = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
    # jax.vmap over models puts an axis before the others, from which the launcher takes their
    # number: one launch computes all of them.
    call = jax.ffi.ffi_call(
        compiled.target, results, vmap_method="expand_dims", input_output_aliases=aliases
    )
    found = call(
        *arrays,
        key=compiled.key,
        kernel=kernel,
        blocks=np.int64(blocks),
        threads=np.int64(compiled.threads),
        shared=np.int64(compiled.shared),
    )
    return list(found)


@functools.cache
def soap(sides: tuple[tuple[int, ...], ...], capability: str) -> Callable[..., Any] | None:
    """The update of `cae_jax.training.soap` by a kernel.

    Args:
        sides: the three of each convolution's kernel.
        capability: of the GPU.

    Returns:
        ``update(numbers, *arrays)``, which returns the direction and the state of the next step;
        None where it cannot be compiled, or a GPU does not hold it. Numbers are ``[9]``, in the
        order of soap.cu; arrays the gradient ``[K, *sides]`` of all kernels, padded to the largest,
        and the state: mean and square like it, factors and bases ``[K, n, n]`` for each side.
    """
    try:
        compiled = register("soap.cu", soap_sizes(sides), capability)
    except compiler.UnavailableError as error:
        logger.info("SOAP is computed by XLA: %s", error)
        return None
    return functools.partial(update_by, compiled)


def soap_sizes(sides: Iterable[tuple[int, ...]]) -> compiler.Sizes:
    """The constants of soap.cu, which has all kernels padded to the largest."""
    return (("SIDES", ",".join(str(max(each)) for each in zip(*sides, strict=True))),)


def update_by(compiled: Compiled, numbers: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """See `soap`; the kernel is compiled."""
    rows = [x.reshape(1, len(x), -1) for x in arrays]
    shapes = [(x.shape[1], x.shape[2]) for x in rows]
    # The state is replaced in its place.
    aliases = {1 + i: i for i in range(1, len(rows))}
    inputs = [numbers[None, None], *rows]
    results = _launch(compiled, "soap", len(arrays[0]), shapes, inputs, aliases)
    return [x.reshape(y.shape) for x, y in zip(results, arrays, strict=True)]


def _rows(images: jax.Array) -> jax.Array:
    return flat.rows(images)[None]


def _pack(layers: Sequence[jax.Array]) -> jax.Array:
    """The weights as the kernels take them: ``[1, 1, W]``, see network.cu.

    Args:
        layers: bias and kernel ``[3, 3, C, F]`` of each layer, see `flat.ordered`.
    """
    depth, parts = len(layers) // 4, []
    for i, array in enumerate(layers):
        upsamples = i // 2 > depth and array.ndim > 1
        part = (_sums(_sums(array, 0), 1) if upsamples else array).ravel()
        parts.append(jnp.pad(part, (0, -part.size % 4)))
    return jnp.concatenate(parts)[None, None]


def _sums(kernel: jax.Array, axis: int) -> jax.Array:
    """The sums of neighbouring weights of an axis that meet one pixel before the upsampling.

    The even output takes the first weight for the pixel before, and both others for its own; the
    odd one takes the first two for its own, and the last for the pixel after.
    """
    a, b, c = jnp.moveaxis(kernel, axis, 0)
    return jnp.stack([a, b + c, a + b, c], axis)


def disagrees(kernel: Kernel, network: Any, layers: Any) -> str:
    """What is wrong with the numbers of the kernels on this device, or nothing.

    One batch is computed by the kernels and by other `layers` at the first use of a device's kind,
    and the result is kept in the user's cache folder.

    Args:
        kernel, network, layers: as of `agreement.difference`.
    """
    device = re.sub(r"[^a-z0-9]+", "-", jax.local_devices()[0].device_kind.lower())

    def compare(path: Path) -> None:
        path.write_text(repr(measure()))

    def measure() -> float:
        found = difference(kernel, network, layers)
        # Where two values are nearly equal, rounding decides which is the maximum: by other ones.
        return found if found <= TOLERANCE else difference(kernel, network, layers, seed=1)

    try:
        kept = compiler.keep(f"cuda-{kernel.key}-{device}.difference", compare)
        found = float(kept.read_bytes()[:-32])
    except OSError:  # without a cache folder
        found = measure()
    return "" if found <= TOLERANCE else f"differs from matmul by {found:.1e} on this GPU"
