"""Applies a convolutional network to a picture of any size, in tiles that overlap.

The kernels fit every size, but sizes differ in the padding of the layers: of 28 pixels one
upsampling is followed by a 'valid' convolution, which moves all by two pixels, and of 32 none. The
weights fit sizes that differ from the trained one by a multiple of 2 ** poolings. A picture is
therefore extended to such a size, at the right and at the bottom, by its mirror image.

A tile begins at a multiple of the same number. Of its output those pixels are kept that do not
depend on what lies beyond it, so that they equal those of the whole picture up to rounding. The
tiles along the border of the picture end there: its pixels are padded as in training.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.errors import UserError
from cae_jax.models.autoencoders import ConvAutoencoder, scale
from cae_jax.models.topology import Topology
from cae_jax.ops import settings
from cae_jax.ops.backend import XLA

# Values of the first convolution's output in a tile: smaller ones overlap more, larger ones leave
# the cache.
_VALUES = 2**22
_AT_A_TIME = 2  # tiles that are computed
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow's gray (ITU-R BT.601)


def check(network: Topology) -> None:
    """Refuses a fully connected network, whose size is in its weights."""
    if network.model != "conv":
        height, width, _ = network.image_shape
        raise UserError(
            f"the fully connected model {network.model} takes {height} x {width} pixels only; "
            "`full_size` takes a convolutional one: leave it out, or pass `resize=True` instead"
        )


class Tile(NamedTuple):
    """A range of rows or columns that is computed, and the part that is kept."""

    start: int
    stop: int
    kept_start: int
    kept_stop: int


def reach(network: Topology, axis: int) -> tuple[int, int]:
    """How many pixels before and after a range of its output the network reads.

    The range begins and ends at multiples of the size that all poolings reduce to a pixel.
    """
    start = stop = 0
    for layer in reversed(network.layers):
        if layer.kind == "conv":
            before, after = (1, 1) if layer.padding[axis] == "same" else (0, 2)
            start, stop = start - before, stop + after
        elif layer.kind == "upsample":
            start, stop = start // 2, -(-stop // 2)
        elif layer.kind == "pool":
            start, stop = 2 * start, 2 * stop
    return -start, stop


def along(network: Topology, axis: int, size: int) -> list[Tile]:
    """The tiles of `size` rows (axis 0) or columns (axis 1), all of the same length.

    Args:
        network: of the trained size.
        axis: 0 or 1.
        size: of the picture, at least 1; the tiles end after it, see the module.
    """
    grid, trained = 2 ** len(network.features), network.image_shape[axis]
    before, after = reach(network, axis)
    whole = size + (trained - size) % grid
    side = max(math.isqrt(_VALUES // network.features[0]), 4 * (before + after))
    side += (trained - side) % grid
    if whole <= side:
        return [Tile(0, whole, 0, size)]
    before, stop = -(-before // grid) * grid, (side - after) // grid * grid
    starts = [*range(0, whole - side, stop - before), whole - side]
    stops = [*(start + stop for start in starts[:-1]), size]
    return [
        Tile(start, start + side, *kept)
        for start, *kept in zip(starts, [0, *stops], stops, strict=False)
    ]


@settings.ours()
def reconstruct(
    network: Topology,
    params: nnx.State,
    precision: str,
    picture: np.ndarray,
    progress: Callable[..., Iterable[None]] = lambda tiles, total: tiles,
) -> np.ndarray:
    """Encodes and decodes a picture of any size and number of channels.

    A gray picture passes a network of colors as a color, and comes back as its luminance; a color
    picture passes a gray network channel by channel. Transparency passes networks that have it, and
    stays as it is in others.

    Args:
        network: of the trained size, convolutional.
        params: its parameters.
        precision: `TrainConfig.precision`.
        picture: uint8, or float32 in [0, 1], ``[height, width, 1, 3 or 4]``.
        progress: wraps an iterator over `total` tiles, to show a bar.

    Returns:
        type and shape of `picture`.
    """
    ranges = [along(network, axis, size) for axis, size in enumerate(picture.shape[:2])]
    places = [
        np.pad(np.arange(size), (0, tiles[-1].stop - size), mode="reflect")
        for tiles, size in zip(ranges, picture.shape[:2], strict=True)
    ]
    shape = [tiles[0].stop for tiles in ranges]
    shape = (*shape, network.image_shape[2])
    program = _program(network.features, shape, network.quantised, precision)
    output = np.empty_like(picture)

    @settings.ours()
    def compute(rows: Tile, columns: Tile) -> None:
        tile = picture[places[0][rows.start : rows.stop]]
        result = program(params, tile[:, places[1][columns.start : columns.stop]])
        kept = [slice(x.kept_start, x.kept_stop) for x in (rows, columns)]
        own = [slice(x.kept_start - x.start, x.kept_stop - x.start) for x in (rows, columns)]
        output[*kept] = np.asarray(result)[*own]

    # Half of a program keeps one core busy only.
    with ThreadPoolExecutor(_AT_A_TIME) as executor:
        both = list(itertools.product(*ranges))
        for _ in progress(executor.map(lambda tile: compute(*tile), both), total=len(both)):
            pass
    return output


@functools.lru_cache
def _program(
    features: tuple[int, ...], image_shape: tuple[int, int, int], quantised: bool, precision: str
) -> Callable[..., Any]:
    """``reconstruct(params, tile_HxWxC)`` for tiles of one size and any number of channels."""
    model = nnx.eval_shape(
        lambda: ConvAutoencoder(features, image_shape, quantised, rngs=nnx.Rngs(0))
    )
    # Its convolutions are faster here than the backends for training, which compile for long.
    graphdef, layers = nnx.graphdef(model), XLA.with_precision(precision).layers

    @jax.jit
    def program(params: nnx.State, tile_HxWxC: jax.Array) -> jax.Array:
        planes_NxHxWxC = _planes(scale(tile_HxWxC), image_shape[2])
        outputs_NxHxWxC = nnx.sigmoid(nnx.merge(graphdef, params)(planes_NxHxWxC, layers))
        result = _picture(outputs_NxHxWxC, scale(tile_HxWxC))
        return jnp.rint(result * 255).astype(jnp.uint8) if tile_HxWxC.dtype == jnp.uint8 else result

    return program


def _planes(picture_HxWxC: jax.Array, channels: int) -> jax.Array:
    """A picture as images of a network with some channels, ``[N, H, W, channels]``."""
    colors, alpha = picture_HxWxC[..., :3], picture_HxWxC[..., 3:]
    if channels == 1:
        return jnp.moveaxis(colors, -1, 0)[..., None]
    colors = jnp.broadcast_to(colors, (*colors.shape[:2], 3))
    opaque = alpha if alpha.size else jnp.ones_like(colors[..., :1])
    return jnp.concatenate([colors, opaque], axis=-1)[None, ..., :channels]


def _picture(outputs_NxHxWxC: jax.Array, picture_HxWxC: jax.Array) -> jax.Array:
    """The picture of the outputs for `_planes`, with the channels of the one that they are of."""
    color, alpha = picture_HxWxC.shape[2] > 1, picture_HxWxC[..., 3:]
    if outputs_NxHxWxC.shape[-1] == 1:
        colors = jnp.moveaxis(outputs_NxHxWxC[..., 0], 0, -1)
    else:
        colors = outputs_NxHxWxC[0, ..., :3]
        if not color:
            return colors @ jnp.array(_LUMINANCE)[:, None]
        alpha = outputs_NxHxWxC[0, ..., 3:] if outputs_NxHxWxC.shape[-1] == 4 else alpha
    return jnp.concatenate([colors, alpha], axis=-1)[..., : picture_HxWxC.shape[2]]
