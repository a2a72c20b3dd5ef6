"""Finds codes that cost less than those of the encoder, by trying whole numbers one by one.

The encoder of a network was trained to be good on average, and with noise in place of rounding. The
decoder and the tables are known where an image is compressed, and the cost of any code can be
computed: distortion plus rate times bits, the loss of the training. A sweep raises and lowers each
number of the code by one and keeps what lowers the cost. Whoever decompresses needs nothing new.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig
from cae_jax.models.autoencoders import Model, scale
from cae_jax.models.coding import Tables
from cae_jax.models.inference import Autoencoder
from cae_jax.ops import settings
from cae_jax.ops.backend import MATMUL, limit_batch
from cae_jax.training import metrics
from cae_jax.training.loss import select_loss


@settings.ours()
def search(
    autoencoder: Autoencoder,
    tables: Tables,
    images: np.ndarray,
    sweeps: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> np.ndarray:
    """The codes of images after some sweeps; without any those of the encoder.

    The rate is that of the training times the square of the step, with which the distortion grows.

    Args:
        autoencoder: of a quantised network, computed as matmuls.
        tables: of the network, which have the step.
        images: uint8, or float32 in [0, 1], ``[N, *image_shape]``.
        sweeps: at least 0; each computes the decoder twice for each number of a code. A network
            that removes noise takes none: its target, the clean image, is unknown.
        progress: wraps the range of the first images of batches.

    Returns:
        int32 ``[N, *code_shape]``.
    """
    # Of one size, which is compiled once; where images are few, of theirs.
    size = min(limit_batch(MATMUL, images.shape[1:]).max_batch, max(1, len(images)))
    network = nnx.graphdef(autoencoder.model), autoencoder.config
    params, prices = autoencoder.params, _prices(tables)
    sweeps = sweeps if autoencoder.config.noise == "none" else 0
    found = [np.zeros((0, *autoencoder.code_shape), np.int32)]
    for start in progress(range(0, len(images), size)):
        batch = images[start : start + size]
        wide = [(0, size - len(batch))] + [(0, 0)] * (images.ndim - 1)
        padded = jnp.asarray(np.pad(batch, wide))
        code = jnp.round(_latents(*network, params, padded) / tables.step)
        for _ in range(sweeps):
            code = _sweep(*network, params, prices, padded, code)
        found.append(np.asarray(code)[: len(batch)].astype(np.int32))
    return np.concatenate(found)


class _Prices(NamedTuple):
    """What numbers cost, in bits: see `Tables`."""

    step: jax.Array
    low_C: jax.Array
    costs_CxN: jax.Array
    others_C: jax.Array

    def of(self, values_B: jax.Array, channel: jax.Array) -> jax.Array:
        """The bits of whole numbers in a channel: ``[B]``."""
        length = self.costs_CxN.shape[1]
        place_B = values_B.astype(jnp.int32) - self.low_C[channel]
        inside_B = (place_B >= 0) & (place_B < length)
        there_B = self.costs_CxN[channel, jnp.clip(place_B, 0, length - 1)]
        return jnp.where(inside_B, there_B, self.others_C[channel])


def _prices(tables: Tables) -> _Prices:
    """Those of some tables, padded to a power of two: a few programs serve all qualities."""
    costs_CxN, others_C = tables.bits()
    count = costs_CxN.shape[1]
    padding = np.tile(others_C[:, None], (1, (1 << (count - 1).bit_length()) - count))
    arrays = np.float32(tables.step), tables.low_C, np.hstack([costs_CxN, padding]), others_C
    return _Prices(*map(jnp.asarray, arrays))


def _layers(config: TrainConfig) -> Any:
    return MATMUL.with_precision(config.precision).layers


@partial(jax.jit, static_argnums=(0, 1))
def _latents(
    graphdef: nnx.GraphDef, config: TrainConfig, params: nnx.State, images: jax.Array
) -> jax.Array:
    return nnx.merge(graphdef, params).latents(images, _layers(config))


@partial(jax.jit, static_argnums=(0, 1))
def _sweep(
    graphdef: nnx.GraphDef,
    config: TrainConfig,
    params: nnx.State,
    prices: _Prices,
    images_BxHxWxC: jax.Array,
    code: jax.Array,
) -> jax.Array:
    """A code that costs no more."""
    targets, shape = scale(images_BxHxWxC), code.shape
    model: Model = nnx.merge(graphdef, params)
    weight = config.rate * prices.step**2 / math.prod(targets.shape[1:])

    def distortion(code_BxD: jax.Array) -> jax.Array:
        logits = model.decode(prices.step * code_BxD.reshape(shape), _layers(config))
        losses = metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets)
        return select_loss(losses, config.loss)

    def visit(best: tuple[jax.Array, jax.Array], d: jax.Array):
        for change in (-1, 1):
            code_BxD, cost_B = best
            tried_BxD, channel = code_BxD.at[:, d].add(change), d % shape[-1]
            spent_B = prices.of(tried_BxD[:, d], channel) - prices.of(code_BxD[:, d], channel)
            lost_B = distortion(tried_BxD)
            better_B = lost_B + weight * spent_B < cost_B
            best = (
                jnp.where(better_B[:, None], tried_BxD, code_BxD),
                jnp.where(better_B, lost_B, cost_B),
            )
        return best, None

    code_BxD = code.reshape(len(code), -1)
    best = code_BxD, distortion(code_BxD)
    (code_BxD, _), _ = jax.lax.scan(visit, best, jnp.arange(code_BxD.shape[1]))
    return code_BxD.reshape(shape)
