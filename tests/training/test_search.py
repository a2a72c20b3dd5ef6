"""The search for codes against a search by hand."""

import dataclasses
import math

import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders
from cae_jax.models.coding import Tables
from cae_jax.ops.backend import MATMUL
from cae_jax.training.search import search
from tests.training.test_rate import RATED


@pytest.fixture(scope="module")
def autoencoder():
    return cae_jax.Autoencoder(RATED, autoencoders.build(RATED, nnx.Rngs(0)), MATMUL)


def cost(autoencoder, tables, images, codes, step):
    """Mean squared error plus rate times bits per pixel, of each image."""
    pixels = autoencoder.decode(step * codes.astype(np.float32)).astype(np.float64)
    costs, others = tables.bits()
    place = codes - tables.low_C
    inside = (place >= 0) & (place < costs.shape[1])
    channels = np.arange(codes.shape[1])
    bits = np.where(inside, costs[channels, np.clip(place, 0, costs.shape[1] - 1)], others)
    mse = np.square(pixels - images / 255).mean((1, 2, 3))
    return mse + 0.02 * step**2 * bits.sum(1) / math.prod(images.shape[1:])


@pytest.mark.parametrize(("quality", "step"), [(5, 1), (7, 0.5)])
def test_a_sweep_takes_what_costs_less(autoencoder, test_images, quality, step):
    images, tables = test_images[:3], Tables.of(autoencoder.model, quality)
    latents = np.asarray(autoencoder.model.latents(images))
    codes = np.rint(latents / step).astype(np.int32)
    best = cost(autoencoder, tables, images, codes, step)
    first = best
    for d in range(codes.shape[1]):
        for change in (-1, 1):
            tried = codes.copy()
            tried[:, d] += change
            now = cost(autoencoder, tables, images, tried, step)
            better = now < best
            codes, best = np.where(better[:, None], tried, codes), np.where(better, now, best)
    found = search(autoencoder, tables, images, 1)
    np.testing.assert_allclose(cost(autoencoder, tables, images, found, step), best, rtol=1e-5)
    assert (best < first).all()


def test_no_sweep_and_no_image(autoencoder, test_images):
    tables = Tables.of(autoencoder.model)
    found = search(autoencoder, tables, test_images[:300], 0)
    np.testing.assert_array_equal(found, autoencoder.encode(test_images[:300]))
    assert search(autoencoder, tables, test_images[:0], 1).shape == (0, 6)
    noisy = autoencoder.with_params(
        dataclasses.replace(RATED, noise="gaussian"), autoencoder.params
    )
    np.testing.assert_array_equal(search(noisy, tables, test_images[:300], 1), found)
