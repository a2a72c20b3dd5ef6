"""The arrays of a kernel that computes the whole network: rows of values, and flat parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def rows(images: jax.Array) -> jax.Array:
    """One row per image: XLA copies a gathered batch slowly if it keeps the images' shape."""
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def check(
    shape: tuple[int, ...], *arrays: jax.Array, dtypes: tuple[str, ...] = ("uint8", "float32")
) -> None:
    """Refuses arrays that are not as many images or codes of a shape, which a kernel trusts."""
    for array in arrays:
        fits = array.shape[1:] == shape and array.dtype in dtypes
        if not fits or array.shape[0] != arrays[0].shape[0]:
            raise TypeError(
                f"arrays are {[f'{a.dtype}{list(a.shape)}' for a in arrays]}; the kernel "
                f"takes {' or '.join(dtypes)} [N, {', '.join(map(str, shape))}]"
            )


def ordered(params: nnx.State) -> tuple[list[jax.Array], Callable[[jax.Array], nnx.State]]:
    """Bias and kernel of each layer, one layer after the other.

    Returns:
        The arrays, and what makes parameters of a vector of their values.
    """
    leaves, structure = jax.tree.flatten(params)  # conv1, conv10, conv2: in the order of the names
    layers = len(leaves) // 2
    names = sorted(range(1, layers + 1), key=str)
    places = [2 * names.index(layer) + i for layer in range(1, layers + 1) for i in (0, 1)]
    arrays = [leaves[place] for place in places]
    ends = np.cumsum([leaf.size for leaf in arrays])[:-1]

    def unravel(flat: jax.Array) -> nnx.State:
        parts: list[Any] = [None] * len(leaves)
        for place, part in zip(places, jnp.split(flat, ends), strict=True):
            parts[place] = part.reshape(leaves[place].shape)
        return jax.tree.unflatten(structure, parts)

    return arrays, unravel
