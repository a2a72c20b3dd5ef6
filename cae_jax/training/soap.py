"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners.

Vyas et al. 2024, arXiv:2409.11321, algorithm 3, for tensors of any rank: a kernel
``[3, 3, in, out]`` becomes ``[9, in, out]``, with a preconditioner and a basis for each side;
vectors (biases) get Adam's update. All convolutions are computed together, padded to the largest,
so that the number of operations does not depend on the number of layers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LIMIT = 256  # A longer side has no preconditioner: its eigenbasis would cost more than the step.
DECAY = 0.95  # Of the running means of the preconditioners.
EVERY = 10  # Steps between two refreshments of the bases.

# For each group an array [K, *sides] of K kernels.
Groups = list[jax.Array]
# For each group and side n a matrix [K, n, n]; None for a side above LIMIT.
Matrices = list[list[jax.Array | None]]


class SoapState(NamedTuple):
    """The state of `scale_by_soap` for kernels; a pytree.

    Attributes:
        step: int32 scalar, steps so far.
        mean: M, the running mean of the gradient, in the eigenbases.
        square: V, the running mean of the squared gradient in the eigenbases.
        factors: L and R, the running means of the preconditioners.
        bases: Q_L and Q_R, their eigenvectors as columns.
    """

    step: jax.Array
    mean: Groups
    square: Groups
    factors: Matrices
    bases: Matrices


def scale_by_soap(
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    kernel: Callable[[tuple[tuple[int, ...], ...]], Any] | None = None,
) -> optax.GradientTransformation:
    """Rescales gradients by SOAP; the sign and the learning rate are left to Optax.

    Args:
        b1, b2, eps: as in `optax.scale_by_adam`.
        kernel: ``kernel(sides)``, with the three sides of each convolution, returns their update as
            one call of the backend, or None; see `cae_jax.ops.cuda.soap`.
    """

    def kind(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "vector", params)

    kernels = optax.GradientTransformation(_init, _make_update(b1, b2, eps, kernel))
    vectors = optax.flatten(optax.scale_by_adam(b1, b2, eps))
    return optax.partition({"kernel": kernels, "vector": vectors}, kind)


def _init(params: optax.Params) -> Any:
    kernels = _group(params)
    mean, square = (jax.tree.map(jnp.zeros_like, kernels) for _ in range(2))  # to be donated
    factors: Matrices = [
        [jnp.zeros((len(x), n, n)) if n <= LIMIT else None for n in x.shape[1:]] for x in kernels
    ]
    bases = jax.tree.map(lambda x: jnp.broadcast_to(jnp.eye(x.shape[1]), x.shape), factors)
    return SoapState(jnp.zeros((), jnp.int32), mean, square, factors, bases)


def _make_update(b1: float, b2: float, eps: float, kernel: Any) -> optax.TransformUpdateFn:
    @jax.default_matmul_precision("highest")
    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        grads, step = _group(updates), state.step + 1
        sides = tuple(_sides(leaf) for leaf in jax.tree.leaves(updates))
        convolutions = len(grads) == 1 and grads[0].ndim == 4 and max(map(max, sides)) <= LIMIT
        if kernel and convolutions and (fused := kernel(sides)):
            decays = [DECAY, b1 * jnp.ones(()), 1 - b1, b2 * jnp.ones(()), 1 - b2, eps]
            due = step % EVERY == 0
            numbers = jnp.stack([*map(jnp.float32, decays), 1 - b1**step, 1 - b2**step, due])
            arrays, structure = jax.tree.flatten([grads, *state[1:]])
            direction, *new = structure.unflatten(fused(numbers, *arrays))
            return _ungroup(direction, updates), SoapState(step, *new)
        factors = jax.tree.map(  # L = decay L + (1 - decay) G G'
            lambda old, new: DECAY * old + (1 - DECAY) * new,
            state.factors,
            list(map(_outer_products, grads, state.factors)),
        )
        rotated = list(map(_rotate, grads, state.bases))  # G' = Q_L' G Q_R
        mean = optax.tree.update_moment(rotated, state.mean, b1, 1)
        square = optax.tree.update_moment(rotated, state.square, b2, 2)
        scaled = jax.tree.map(  # N' = M' / (sqrt(V) + eps), unbiased as in Adam
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mean, b1, step),
            optax.tree.bias_correction(square, b2, step),
        )
        inverses = jax.tree.map(lambda q: q.swapaxes(1, 2), state.bases)
        direction = _ungroup(list(map(_rotate, scaled, inverses)), updates)  # N = Q_L N' Q_R'
        mean, bases = _refresh_if(step % EVERY == 0, mean, state.bases, factors)
        return direction, SoapState(step, mean, square, factors, bases)

    return update


@jax.custom_batching.custom_vmap
def _refresh_if(
    due: jax.Array, mean: Groups, bases: Matrices, factors: Matrices
) -> tuple[Groups, Matrices]:
    """`_refresh` in the steps in which it is due."""
    return jax.lax.cond(due, _refresh, lambda *old: old[:2], mean, bases, factors)


@_refresh_if.def_vmap
def _refresh_any(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
    """Several models at once: `jax.vmap` of a branch would refresh all models in each step."""
    due, *old = jax.tree.map(
        lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape)),
        arguments,
        tuple(batched),
    )

    def refresh(mean: Groups, bases: Matrices, factors: Matrices) -> tuple[Groups, Matrices]:
        new = jax.vmap(_refresh)(mean, bases, factors)
        select = jax.vmap(jnp.where)
        return jax.tree.map(lambda new, old: select(due, new, old), new, (mean, bases))

    updated = jax.lax.cond(due.any(), refresh, lambda *old: old[:2], *old)
    return updated, jax.tree.map(lambda _: True, updated)


def _refresh(mean: Groups, bases: Matrices, factors: Matrices) -> tuple[Groups, Matrices]:
    """One power iteration of each basis, Q = QR(L Q); the running mean turns with it."""
    new = jax.tree.map(lambda factor, q: jnp.linalg.qr(factor @ q)[0], factors, bases)
    turns = jax.tree.map(lambda old, new: old.swapaxes(1, 2) @ new, bases, new)
    return list(map(_rotate, mean, turns)), new


def _outer_products(x: jax.Array, factors: list[jax.Array | None]) -> list[jax.Array | None]:
    """For each side with a factor, G G' of the gradient as a matrix with the rows of this side."""
    products: list[jax.Array | None] = []
    for side, factor in enumerate(factors):
        others = [axis for axis in range(len(factors)) if axis != side]
        product = jax.vmap(lambda g, others=others: jnp.tensordot(g, g, (others, others)))
        products.append(None if factor is None else product(x))
    return products


def _rotate(x: jax.Array, matrices: list[jax.Array | None]) -> jax.Array:
    """Multiplies each side of kernels ``[K, *sides]`` by its matrix, from the right."""
    for matrix in matrices:  # the first side each time, which becomes the last one
        if matrix is None:
            x = jnp.moveaxis(x, 1, -1)
        else:
            x = jax.vmap(lambda x, q: jnp.tensordot(x, q, (0, 0)))(x, matrix)
    return x


def _group(tree: optax.Params) -> Groups:
    """Stacks kernels, padded with zeros, which stay zero in every array of the state."""
    leaves = jax.tree.leaves(tree)
    groups = []
    for members in _members(leaves):
        kernels = [leaves[i].reshape(_sides(leaves[i])) for i in members]
        sides = [max(lengths) for lengths in zip(*(x.shape for x in kernels), strict=True)]
        pads = [[(0, n - m) for n, m in zip(sides, x.shape, strict=True)] for x in kernels]
        groups.append(jnp.stack(list(map(jnp.pad, kernels, pads))))
    return groups


def _ungroup(groups: Groups, like: optax.Params) -> optax.Params:
    """Inverts `_group` into a pytree of the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    for group, members in zip(groups, _members(leaves), strict=True):
        for x, i in zip(group, members, strict=True):
            inside = tuple(map(slice, _sides(leaves[i])))
            leaves[i] = x[inside].reshape(leaves[i].shape)
    return structure.unflatten(leaves)


def _members(leaves: list[jax.Array]) -> list[list[int]]:
    """Indices of the kernels of each group: all convolutions, and dense kernels of one shape."""
    groups: dict[object, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.shape if leaf.ndim == 2 else leaf.ndim, []).append(i)
    return list(groups.values())


def _sides(kernel: jax.Array) -> tuple[int, ...]:
    """The sides of a kernel: of a convolution its window, in and out."""
    *window, n_in, n_out = kernel.shape
    return (math.prod(window), n_in, n_out) if window else (n_in, n_out)
