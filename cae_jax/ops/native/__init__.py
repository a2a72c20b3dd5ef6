"""The convolutional autoencoder in one native call, for the CPU.

`Kernel` computes what `models.ConvAutoencoder` does, from its parameters, in C++ behind JAX's
foreign function interface. Results do not depend on the number of threads, bit for bit. JAX cannot
differentiate the calls; `cae_jax.ops.backend` defines their derivative.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.ops.native.build import Sizes, UnavailableError, register

__all__ = ["MAX_LANES", "Kernel", "Sizes", "UnavailableError"]

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
        _check(self._image_shape, inputs, targets)
        flat, unravel = _ravel(params)
        results = (_floats(()), _floats(flat.shape))
        value, gradient = self._call(entry, results, flat, _rows(inputs), _rows(targets), weights_N)
        return value, unravel(gradient)

    bce_and_grad = functools.partialmethod(_value_and_grad, "bce_and_grad")
    mse_and_grad = functools.partialmethod(_value_and_grad, "mse_and_grad")

    def losses(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Binary cross-entropy and mean squared error of each image: ``[N]`` each."""
        _check(self._image_shape, inputs, targets)
        flat, _ = _ravel(params)
        results = (_floats(inputs.shape[:1]), _floats(inputs.shape[:1]))
        bce_N, mse_N = self._call("losses", results, flat, _rows(inputs), _rows(targets))
        return bce_N, mse_N

    def encode(self, params: nnx.State, images: jax.Array) -> jax.Array:
        """Images to codes ``[N, *code_shape]``."""
        _check(self._image_shape, images)
        flat, _ = _ravel(params)
        result = _floats((images.shape[0], *self._code_shape))
        return self._call("encode", result, flat, _rows(images))

    def decode(self, params: nnx.State, codes: jax.Array) -> jax.Array:
        """Float32 codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        _check(self._code_shape, codes, dtypes=("float32",))
        flat, _ = _ravel(params)
        result = _floats((codes.shape[0], *self._image_shape))
        return self._call("decode", result, flat, _rows(codes))

    def _call(self, entry: str, results, *arrays: jax.Array):
        # vmap over models runs them one after another; each call keeps all threads busy.
        name = f"{register(self._sizes)}_{entry}"
        return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*arrays)


def _rows(images: jax.Array) -> jax.Array:
    """One row per image: XLA copies a gathered batch slowly if it keeps the images' shape."""
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def _check(
    shape: tuple[int, ...], *arrays: jax.Array, dtypes: tuple[str, ...] = ("uint8", "float32")
) -> None:
    # The kernel trusts the shapes that it is given.
    for array in arrays:
        fits = array.shape[1:] == shape and array.dtype in dtypes
        if not fits or array.shape[0] != arrays[0].shape[0]:
            raise TypeError(
                f"arrays are {[f'{a.dtype}{list(a.shape)}' for a in arrays]}; the native kernel "
                f"takes {' or '.join(dtypes)} [N, {', '.join(map(str, shape))}]"
            )


def _ravel(params: nnx.State) -> tuple[jax.Array, Callable[[jax.Array], nnx.State]]:
    """The parameters as one vector, layer by layer, and its inverse."""
    leaves, structure = jax.tree.flatten(params)  # conv1, conv10, conv2: in the order of the names
    layers = len(leaves) // 2
    names = sorted(range(1, layers + 1), key=str)
    places = [2 * names.index(layer) + i for layer in range(1, layers + 1) for i in (0, 1)]
    ordered = [leaves[place] for place in places]
    ends = np.cumsum([leaf.size for leaf in ordered])[:-1]

    def unravel(flat: jax.Array) -> nnx.State:
        parts: list[Any] = [None] * len(leaves)
        for place, part in zip(places, jnp.split(flat, ends), strict=True):
            parts[place] = part.reshape(leaves[place].shape)
        return jax.tree.unflatten(structure, parts)

    return jnp.concatenate([leaf.ravel() for leaf in ordered]), unravel


def _floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
