"""The convolutional autoencoder in one native call, for the CPU.

`value_and_grad`, `losses`, `encode` and `decode` compute what `models.ConvAutoencoder` does, from
its parameters, in the C++ of ``step.cpp`` behind JAX's foreign function interface. Results do not
depend on the number of threads, bit for bit. JAX cannot differentiate them; `differentiable` gives
them the derivative of another form.

Images and targets are uint8, or float32 in [0, 1]: ``[N, 28, 28, 1]``, any N of at least 1. The
features of the encoder are read off the parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree

from cae_jax.ops.native.build import UnavailableError, target

__all__ = ["UnavailableError", "decode", "differentiable", "encode", "losses", "value_and_grad"]


def value_and_grad(
    params: nnx.State, inputs: jax.Array, targets: jax.Array, weights_N: jax.Array
) -> tuple[jax.Array, nnx.State]:
    """The mean binary cross-entropy weighted by `weights_N`, and its gradient by `params`."""
    _check(inputs, targets)
    flat, unravel = ravel_pytree(params)
    results = (_floats(()), _floats(flat.shape))
    value, gradient = _call("value_and_grad", params, results)(flat, inputs, targets, weights_N)
    return value, unravel(gradient)


def losses(params: nnx.State, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy and mean squared error of each image, over its pixels: ``[N]`` each."""
    _check(inputs, targets)
    flat, _ = ravel_pytree(params)
    results = (_floats(inputs.shape[:1]), _floats(inputs.shape[:1]))
    bce_N, mse_N = _call("losses", params, results)(flat, inputs, targets)
    return bce_N, mse_N


def encode(params: nnx.State, images: jax.Array) -> jax.Array:
    """Images to codes ``[N, 4, 4, F]``."""
    _check(images)
    flat, _ = ravel_pytree(params)
    result = _floats((images.shape[0], 4, 4, _features(params)[2]))
    return _call("encode", params, result)(flat, images)


def decode(params: nnx.State, codes: jax.Array) -> jax.Array:
    """Codes ``[N, 4, 4, F]``, float32, to logits ``[N, 28, 28, 1]``."""
    _check(codes, shape=(4, 4, _features(params)[2]), dtypes=("float32",))
    flat, _ = ravel_pytree(params)
    return _call("decode", params, _floats((codes.shape[0], 28, 28, 1)))(flat, codes)


def differentiable(
    native: Callable, reference: Callable, params: nnx.State, *arrays: jax.Array
) -> Any:
    """``native(params, *arrays)``, with the derivative of ``reference(params, *arrays)``."""
    call = jax.custom_vjp(native)
    call.defvjp(
        lambda *args: (native(*args), args), lambda args, dy: jax.vjp(reference, *args)[1](dy)
    )
    return call(params, *arrays)


def _call(entry: str, params: nnx.State, results):
    # Populations of models come one after the other; each call keeps all threads busy by itself.
    return jax.ffi.ffi_call(target(entry, _features(params)), results, vmap_method="sequential")


def _check(
    *arrays: jax.Array,
    shape: tuple[int, ...] = (28, 28, 1),
    dtypes: tuple[str, ...] = ("uint8", "float32"),
) -> None:
    # The native step reads memory as it is told.
    for array in arrays:
        fits = array.shape[1:] == shape and array.dtype in dtypes
        if not fits or array.shape[0] != arrays[0].shape[0]:
            raise TypeError(
                f"arrays are {[f'{a.dtype}{list(a.shape)}' for a in arrays]}; the native step "
                f"takes {' or '.join(dtypes)} [N, {', '.join(map(str, shape))}]"
            )


def _features(params: nnx.State) -> tuple[int, int, int]:
    leaves = jax.tree.leaves(params)  # for each layer its bias, then its kernel
    return leaves[0].size, leaves[2].size, leaves[4].size


def _floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
