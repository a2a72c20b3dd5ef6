"""The convolutional autoencoder in one native call, for the CPU.

`Kernel` computes what `models.ConvAutoencoder` does, from its parameters, in C++ behind JAX's
foreign function interface. Results do not depend on the number of threads, bit for bit. JAX cannot
differentiate the calls; `cae_jax.ops.backend` gives them the derivative of another form.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree

from cae_jax.ops.native.build import Sizes, UnavailableError, target

__all__ = ["Kernel", "Sizes", "UnavailableError"]


class Kernel:
    """The compiled kernel of one network.

    Images and targets are uint8, or float32 in [0, 1]: ``[N, *image_shape]``, N at least 1.

    Args:
        sizes: compile-time constants of the kernel, by name.
        image_shape: ``(height, width, channels)``.
        code_shape: shape of one image's code.

    Raises:
        UnavailableError: the kernel cannot be compiled or loaded here.
    """

    def __init__(
        self, sizes: Sizes, image_shape: tuple[int, ...], code_shape: tuple[int, ...]
    ) -> None:
        self._sizes, self._image_shape, self._code_shape = sizes, image_shape, code_shape
        target("losses", sizes)  # compiles

    def value_and_grad(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
    ) -> tuple[jax.Array, nnx.State]:
        """The mean binary cross-entropy weighted by `weights_N`, and its gradient by `params`."""
        _check(self._image_shape, inputs, targets)
        flat, unravel = ravel_pytree(params)
        results = (_floats(()), _floats(flat.shape))
        value, gradient = self._call("value_and_grad", results)(flat, inputs, targets, weights_N)
        return value, unravel(gradient)

    def losses(
        self, params: nnx.State, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Binary cross-entropy and mean squared error of each image: ``[N]`` each."""
        _check(self._image_shape, inputs, targets)
        flat, _ = ravel_pytree(params)
        results = (_floats(inputs.shape[:1]), _floats(inputs.shape[:1]))
        bce_N, mse_N = self._call("losses", results)(flat, inputs, targets)
        return bce_N, mse_N

    def encode(self, params: nnx.State, images: jax.Array) -> jax.Array:
        """Images to codes ``[N, *code_shape]``."""
        _check(self._image_shape, images)
        flat, _ = ravel_pytree(params)
        result = _floats((images.shape[0], *self._code_shape))
        return self._call("encode", result)(flat, images)

    def decode(self, params: nnx.State, codes: jax.Array) -> jax.Array:
        """Float32 codes ``[N, *code_shape]`` to logits ``[N, *image_shape]``."""
        _check(self._code_shape, codes, dtypes=("float32",))
        flat, _ = ravel_pytree(params)
        result = _floats((codes.shape[0], *self._image_shape))
        return self._call("decode", result)(flat, codes)

    def _call(self, entry: str, results):
        # vmap over models runs them one after another; each call keeps all threads busy.
        return jax.ffi.ffi_call(target(entry, self._sizes), results, vmap_method="sequential")


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


def _floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# For models that do not hold a backend yet.


def value_and_grad(params, *arrays):
    return _kernel(params).value_and_grad(params, *arrays)


def losses(params, *arrays):
    return _kernel(params).losses(params, *arrays)


def encode(params, images):
    return _kernel(params).encode(params, images)


def decode(params, codes):
    return _kernel(params).decode(params, codes)


def differentiable(native, reference, params, *arrays):
    call = jax.custom_vjp(native)
    call.defvjp(
        lambda *args: (native(*args), args), lambda args, dy: jax.vjp(reference, *args)[1](dy)
    )
    return call(params, *arrays)


def _kernel(params):
    leaves = jax.tree.leaves(params)
    return of_features((leaves[0].size, leaves[2].size, leaves[4].size))


def of_features(features):
    from cae_jax.models import topology

    network = topology.convolutional(topology.IMAGE_SHAPE, features)
    assert network.native_sizes is not None
    return Kernel(network.native_sizes, network.image_shape, network.code_shape)
