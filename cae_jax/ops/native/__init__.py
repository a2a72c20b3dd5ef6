"""The convolutional autoencoder in one native call, for the CPU.

`Kernel` computes what `models.ConvAutoencoder` does, from its parameters, and SOAP's update, in C++
behind JAX's foreign function interface. Results do not depend on the number of threads, bit for
bit. JAX cannot differentiate the calls; `cae_jax.ops.backend` defines their derivative.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.ops import flat
from cae_jax.ops.compiler import Sizes
from cae_jax.ops.native.build import register

# The most images that a thread computes together: with AVX-512.
MAX_LANES = 16


class Kernel:
    """The compiled kernel of one network.

    Images and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``, N at least 1.

    Args:
        sizes: compile-time constants of the kernel, by name.
        image_shape: ``(height, width, channels)``.
        code_shape: shape of one image's code.

    Raises:
        UnavailableError: the kernel cannot be compiled or loaded on this machine.
    """

    def __init__(
        self, sizes: Sizes, image_shape: tuple[int, ...], code_shape: tuple[int, ...]
    ) -> None:
        self._sizes, self._image_shape, self._code_shape = sizes, image_shape, code_shape
        register(sizes)  # compiles

    def _value_and_grad(
        self,
        entry: str,
        params: nnx.State,
        inputs: jax.Array,
        targets: jax.Array,
        weights_N: jax.Array,
    ) -> tuple[jax.Array, nnx.State]:
        """The mean loss of the images weighted by `weights_N`, and its gradient by `params`."""
        flat.check(self._image_shape, inputs, targets)
        vector, unravel = _ravel(params)
        results = (_floats(()), _floats(vector.shape))
        value, gradient = self._call(
            entry, results, vector, flat.rows(inputs), flat.rows(targets), weights_N
        )
        return value, unravel(gradient)

    bce_and_grad = functools.partialmethod(_value_and_grad, "bce_and_grad")
    mse_and_grad = functools.partialmethod(_value_and_grad, "mse_and_grad")

    def losses(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Binary cross-entropy and mean squared error of each image: ``[N]`` each."""
        flat.check(self._image_shape, inputs, targets)
        vector, _ = _ravel(params)
        results = (_floats(inputs.shape[:1]), _floats(inputs.shape[:1]))
        bce_N, mse_N = self._call("losses", results, vector, flat.rows(inputs), flat.rows(targets))
        return bce_N, mse_N

    def encode(self, params: nnx.State, images: jax.Array) -> jax.Array:
        """Images to codes ``[N, *code_shape]``."""
        flat.check(self._image_shape, images)
        vector, _ = _ravel(params)
        result = _floats((images.shape[0], *self._code_shape))
        return self._call("encode", result, vector, flat.rows(images))

    def decode(self, params: nnx.State, codes: jax.Array) -> jax.Array:
        """Float32 codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        flat.check(self._code_shape, codes, dtypes=("float32",))
        vector, _ = _ravel(params)
        result = _floats((codes.shape[0], *self._image_shape))
        return self._call("decode", result, vector, flat.rows(codes))

    def soap(self, sides: Sequence[Sequence[int]]) -> Callable[..., Any]:
        """The update of `cae_jax.training.soap` in one call, see `cae_jax.ops.cuda.soap`."""

        def update(numbers: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
            results = [_floats(x.shape) for x in arrays]
            aliases = {1 + i: i for i in range(len(arrays))}  # all are replaced in their place
            flat_sides = np.array(sides).ravel()
            return self._call("soap", results, numbers, *arrays, aliases=aliases, sides=flat_sides)

        return update

    def _call(self, entry: str, results, *arrays: jax.Array, aliases=None, **attributes: Any):
        # vmap over models runs them one after another; each call keeps all threads busy.
        name = f"{register(self._sizes)}_{entry}"
        call = jax.ffi.ffi_call(
            name, results, vmap_method="sequential", input_output_aliases=aliases
        )
        return call(*arrays, **attributes)


def _ravel(params: nnx.State) -> tuple[jax.Array, Callable[[jax.Array], nnx.State]]:
    """The parameters as one vector, and its inverse."""
    arrays, unravel = flat.ordered(params)
    return jnp.concatenate([array.ravel() for array in arrays]), unravel


def _floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
