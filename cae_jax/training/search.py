"""Finds codes that cost less than those of the encoder, by trying whole numbers one by one.

The encoder of a network was trained to be good on average, and with noise in place of rounding. The
decoder and the tables are known where an image is compressed, and the cost of any code can be
computed: distortion plus rate times bits, the loss of the training. A sweep raises and lowers each
number of the code by one and keeps what lowers the cost. Whoever decompresses needs nothing new.
"""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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
    latents, sweep = _make_programs(autoencoder, tables)
    sweeps = sweeps if autoencoder.config.noise == "none" else 0
    found = [np.zeros((0, *autoencoder.code_shape), np.int32)]
    for start in progress(range(0, len(images), size)):
        batch = images[start : start + size]
        wide = [(0, size - len(batch))] + [(0, 0)] * (images.ndim - 1)
        padded = jnp.asarray(np.pad(batch, wide))
        code = jnp.round(latents(autoencoder.params, padded) / tables.step)
        for _ in range(sweeps):
            code = sweep(autoencoder.params, padded, code)
        found.append(np.asarray(code)[: len(batch)].astype(np.int32))
    return np.concatenate(found)


def _make_programs(
    autoencoder: Autoencoder, tables: Tables
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """``latents(params, images_BxHxWxC)``, and ``sweep(params, images_BxHxWxC, code)``.

    The second one returns a code that costs no more.
    """
    graphdef = nnx.graphdef(autoencoder.model)
    config, shape = autoencoder.config, autoencoder.code_shape
    layers = MATMUL.with_precision(config.precision).layers
    weight = config.rate * tables.step**2 / math.prod(autoencoder.topology.image_shape)
    costs_CxN, others_C = map(jnp.asarray, tables.bits())
    low_C, length = jnp.asarray(tables.low_C), costs_CxN.shape[1]

    @jax.jit
    def latents(params: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params).latents(images, layers)

    @jax.jit
    def sweep(params: nnx.State, images: jax.Array, code: jax.Array) -> jax.Array:
        targets = scale(images)
        model: Model = nnx.merge(graphdef, params)

        def distortion(code_BxD: jax.Array) -> jax.Array:
            logits = model.decode(tables.step * code_BxD.reshape(-1, *shape), layers)
            losses = metrics.bce(logits, targets), metrics.mse(nnx.sigmoid(logits), targets)
            return select_loss(losses, config.loss)

        def bits(values_B: jax.Array, channel: jax.Array) -> jax.Array:
            place_B = values_B.astype(jnp.int32) - low_C[channel]
            inside_B = (place_B >= 0) & (place_B < length)
            there_B = costs_CxN[channel, jnp.clip(place_B, 0, length - 1)]
            return weight * jnp.where(inside_B, there_B, others_C[channel])

        def visit(best: tuple[jax.Array, jax.Array], d: jax.Array):
            for change in (-1, 1):
                code_BxD, cost_B = best
                tried_BxD = code_BxD.at[:, d].add(change)
                channel = d % shape[-1]
                spent_B = bits(tried_BxD[:, d], channel) - bits(code_BxD[:, d], channel)
                lost_B = distortion(tried_BxD)
                better_B = lost_B + spent_B < cost_B
                best = (
                    jnp.where(better_B[:, None], tried_BxD, code_BxD),
                    jnp.where(better_B, lost_B, cost_B),
                )
            return best, None

        code_BxD = code.reshape(len(code), -1)
        best = code_BxD, distortion(code_BxD)
        (code_BxD, _), _ = jax.lax.scan(visit, best, jnp.arange(code_BxD.shape[1]))
        return code_BxD.reshape(code.shape)

    return latents, sweep
