"""Spreads a training over several devices, with the same bits for any number of them.

A batch is cut into microbatches of one size, whose number belongs to the run. Each device computes
whole microbatches, one after the other by the same code. A gather, which only copies, brings their
gradients to all devices, which add them in one order and take the same step. The models of a group
are spread whole and never meet.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from cae_jax.config import TrainConfig
from cae_jax.training.step import Gradient

_DATA, _MEMBERS = "data", "members"  # axes of a mesh


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a training, and how its arrays lie on them.

    Where methods take an axis, it is the one along which arrays are spread, or None for a copy on
    each device; a pytree of axes is a prefix of that of the arrays.

    Attributes:
        mesh: of one axis, over which microbatches or the models of a group are spread; None for the
            default device alone.
        microbatches: of a batch.
    """

    mesh: Mesh | None = None
    microbatches: int = 1

    @classmethod
    def of(cls, devices: Sequence[Any], config: TrainConfig, members: int) -> "Devices":
        """The devices that train a group; at most one for each of its models or microbatches."""
        if members > 1:
            some = devices[:members]
            mesh = Mesh(np.array(some), (_MEMBERS,)) if len(some) > 1 else None
        else:
            some = devices[: config.microbatches]
            mesh = Mesh(np.array(some), (_DATA,)) if config.microbatches > 1 else None
        return cls(mesh, config.microbatches)

    @property
    def _over_data(self) -> bool:
        return self.mesh is not None and self.mesh.axis_names == (_DATA,)

    @property
    def member_axis(self) -> int | None:
        """The axis of the models of a group, if they are spread."""
        return None if self.mesh is None or self._over_data else 0

    @property
    def count(self) -> int:
        """The number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    def places(self, members: int) -> int:
        """The models of a group and those that are added to have as many on each device."""
        if self.mesh is None or self._over_data:
            return members
        return -(-members // self.count) * self.count

    def put(self, arrays: Any, axes: Any = None) -> Any:
        """Puts arrays, which all processes have, on the devices."""
        if self.mesh is None:
            return jax.device_put(arrays)
        return along(axes, self._put, arrays)

    def _put(self, axis: int | None, array: Any) -> jax.Array:
        sharding = self._sharding(axis)
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            data = self._put(axis, jax.random.key_data(array))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    def describe(self, arrays: Any, axes: Any) -> Any:
        """`jax.ShapeDtypeStruct` of arrays that `put` has put there."""
        if self.mesh is None:
            return arrays
        return along(axes, lambda axis, x: x.update(sharding=self._sharding(axis)), arrays)

    def spread(self, function: Callable[..., Any], axes: Any, results: Any) -> Callable[..., Any]:
        """A function that each device computes for its part of the arguments.

        Args:
            function: of arrays.
            axes: of the arguments.
            results: axes of what it returns.
        """
        if self.mesh is None:
            return function
        into, out = jax.tree.map(self._spec, (axes, results), is_leaf=_is_none)
        # The rules of other people's calls, such as those of the native kernel, are unknown.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=into, out_specs=out, check_vma=False
        )

    def local(self, arrays: Any) -> Any:
        """The copies of arrays on the default device."""
        if not self._over_data:
            return arrays
        return jax.tree.map(lambda x: x.addressable_data(0), arrays)

    def cut(self, batches: Any, padding: int) -> Any:
        """Batches of indices ``[..., B]`` cut into microbatches ``[..., G, B / G]``, put.

        Padding is at the end, and in the places of devices that have fewer microbatches.
        """
        if self.mesh is None and self.microbatches == 1:
            return self.put(batches)
        batches = np.asarray(batches)
        if self.microbatches > 1:
            size = -(-batches.shape[-1] // self.microbatches)
            wide = [(0, 0)] * (batches.ndim - 1)
            wide.append((0, self._microbatch_places() * size - batches.shape[-1]))
            batches = np.pad(batches, wide, constant_values=padding)
            batches = batches.reshape(*batches.shape[:-1], -1, size)
        return self.put(batches, self.member_axis)

    def cut_shape(self, shape: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Of batches ``[S, B]``, int32, see `cut`."""
        steps, batch = shape
        if self.microbatches > 1:
            cut = self._microbatch_places(), -(-batch // self.microbatches)
            return jax.ShapeDtypeStruct((steps, *cut), jnp.int32)
        return jax.ShapeDtypeStruct((steps, batch), jnp.int32)

    def _microbatch_places(self) -> int:
        count = self.count if self._over_data else 1
        return -(-self.microbatches // count) * count

    def own(self, batch: int) -> np.ndarray:
        """Which images of a batch devices of this process compute: bool ``[B]``."""
        if self.mesh is None or not self.mesh.is_multi_process:
            return np.ones(batch, bool)
        size = -(-batch // self.microbatches) * (self._microbatch_places() // self.count)
        here = [each.process_index == jax.process_index() for each in self.mesh.devices.flat]
        return np.array(here)[np.arange(batch) // size]

    def over_all(self, gradient: Gradient) -> Gradient:
        """The gradient of a batch of microbatches from that of one."""
        if self.microbatches == 1:
            return gradient

        def mean(params, images_NxHxWxC, batches_GxB, key, *numbers):
            there_G = (batches_GxB < images_NxHxWxC.shape[0]).sum(1)
            size = sum(leaf.size for leaf in jax.tree.leaves(params))

            def add(g, rows_GxP):
                loss, vector = gradient(params, images_NxHxWxC, batches_GxB[g], key, *numbers, g)
                row = jnp.concatenate([jnp.ones(1), loss[None], vector]) * there_G[g]
                return rows_GxP.at[g].set(row)

            # As many as have images. XLA would unroll a loop whose number is known, and compile one
            # microbatch to other code than several.
            count, each = (there_G > 0).sum(), len(there_G)
            first, last = 0, count
            if self._over_data:
                each //= self.count
                first = each * jax.lax.axis_index(_DATA)
                last = jnp.minimum(first + each, count)
            rows_GxP = jnp.zeros((len(there_G), 2 + size), jnp.float32)
            rows_GxP = jax.lax.fori_loop(first, last, add, rows_GxP)
            if self._over_data:
                own = jax.lax.dynamic_slice_in_dim(rows_GxP, first, each)
                rows_GxP = _gather(own)
            rows_GxP = jax.lax.optimization_barrier(rows_GxP)
            count, loss, *vector = jnp.split(_sum(rows_GxP[: self.microbatches]), [1, 2])
            # A division of a vector is another one where XLA's passes come in another order.
            share = 1 / count[0]
            return loss[0] * share, vector[0] * share

        return mean

    def _spec(self, axis: int | None) -> PartitionSpec:
        assert self.mesh is not None
        return PartitionSpec(*[] if axis is None else [*[None] * axis, *self.mesh.axis_names])

    def _sharding(self, axis: int | None) -> Sharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, self._spec(axis))


def of_first(arrays: Any) -> Any:
    """The arrays that process 0 has, on the host of each process."""
    # As bytes, and by a gather: a sum would lose the sign of a zero.
    hosted = jax.tree.map(np.atleast_1d, arrays)
    gathered = multihost_utils.process_allgather(jax.tree.map(lambda x: x.view(np.uint8), hosted))

    def first(x: Any, all_bytes: np.ndarray) -> np.ndarray:
        return np.array(all_bytes[0]).view(x.dtype).reshape(np.shape(x))

    return jax.tree.map(first, arrays, gathered)


def along(axes: Any, function: Callable[[int | None, Any], Any], arrays: Any) -> Any:
    """``function(axis, array)`` of arrays and their axes, which are a prefix of their pytree."""

    def each(axis: int | None, part: Any) -> Any:
        return jax.tree.map(lambda x: function(axis, x), part)

    return jax.tree.map(each, axes, arrays, is_leaf=_is_none)


def _is_none(axis: Any) -> bool:
    return axis is None


def _gather(rows: jax.Array) -> jax.Array:
    """The rows of all devices, bit by bit."""
    # As integers: of many rows XLA makes a sum with zeros, which loses the sign of a zero.
    words = jax.lax.bitcast_convert_type(rows, jnp.uint32)
    gathered = jax.lax.all_gather(words, _DATA, tiled=True)
    return jax.lax.bitcast_convert_type(gathered, jnp.float32)


def _sum(rows: jax.Array) -> jax.Array:
    """The sum of rows in an order that their number alone decides: of pairs, and of these."""
    while len(rows) > 1:
        if len(rows) % 2:
            rows = jnp.pad(rows, ((0, 1), (0, 0)))
        rows = rows[::2] + rows[1::2]
    return rows[0]
