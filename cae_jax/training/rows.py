"""Draws random numbers for some of the images of an array, as they are drawn for all of them.

Threefry computes each number of a draw from the key and the number's index. A key of `from_row`
adds to the index what lies before the images, so that a few of them have their numbers without
those of the others.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random

_HALF = 0xFFFF


def is_possible() -> bool:
    """Whether a number of a draw depends on its index only, which is JAX's default."""
    return bool(jax.config.values["jax_threefry_partitionable"])


def from_row(keys: jax.Array, row: int) -> jax.Array:
    """Keys whose draws for N images are those of `keys` for the images ``row <= i < row + N``."""
    data = jax.random.key_data(keys)
    rows = jnp.full((*data.shape[:-1], 1), row, jnp.uint32)
    return jax.random.wrap_key_data(jnp.concatenate([data, rows], -1), impl=_FROM_ROW)


def _bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each index, whose first axis begins at the row of the key."""
    if bit_width != 32:
        raise NotImplementedError(f"{bit_width} bits")
    high, low = _product(key[2], math.prod(shape[1:]))
    indices = low + jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    highs = high + (indices < low).astype(jnp.uint32)  # the carry
    one, other = random.threefry2x32_p.bind(
        *(jnp.broadcast_to(word, shape) for word in key[:2]), highs, indices
    )
    return one ^ other


def _product(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """The high and the low 32 bits of a product of two numbers of 32 bits."""
    (a1, a0), (b1, b0) = (a >> 16, a & _HALF), map(jnp.uint32, divmod(b, _HALF + 1))
    low = a0 * b0
    one = a1 * b0 + (low >> 16)
    other = a0 * b1 + (one & _HALF)
    return a1 * b1 + (one >> 16) + (other >> 16), (other << 16) | (low & _HALF)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    data = jax.random.key_data(jax.random.split(_threefry(key), shape))
    return jnp.concatenate([data, jnp.broadcast_to(key[2], (*shape, 1))], -1)


def _fold_in(key: jax.Array, value: Any) -> jax.Array:
    data = jax.random.key_data(jax.random.fold_in(_threefry(key), value))
    return jnp.concatenate([data, key[2:]])


def _threefry(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key[:2], impl="threefry2x32")


def _seed(_: Any) -> jax.Array:
    raise NotImplementedError("keys are made by `from_row`")


_FROM_ROW = random.define_prng_impl(
    key_shape=(3,),
    seed=_seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="cae_jax_from_row",
    tag="row",
)
