"""The learned density against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cae_jax.models.density import Density

CHANNELS = 3


@pytest.fixture(scope="module")
def density():
    """A density whose parameters have moved from their start."""
    density = Density(CHANNELS, rngs=nnx.Rngs(0))
    params = nnx.state(density, nnx.Param)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params)
    nnx.update(density, moved)
    return density


def cumulative(density, x):
    """Appendix 6.1 of Balle et al. 2018, for the values ``[N]`` in each channel: ``[C, N]``."""
    found = []
    for c in range(CHANNELS):
        y = x[None]
        for i in range(1, 5):
            kernel = np.asarray(getattr(density, f"kernel{i}")[...][c], np.float64)
            bias = np.asarray(getattr(density, f"bias{i}")[...][c], np.float64)
            y = np.log1p(np.exp(kernel)) @ y + bias[:, None]
            if i < 4:
                factor = np.asarray(getattr(density, f"factor{i}")[...][c], np.float64)
                y = y + np.tanh(factor)[:, None] * np.tanh(y)
        found.append(1 / (1 + np.exp(-y[0])))
    return np.array(found)


def test_the_bits_are_those_of_the_mass_around_each_number(density):
    x = np.arange(-40, 41, dtype=np.float64)
    mass = cumulative(density, x + 0.5) - cumulative(density, x - 0.5)
    ours = np.asarray(density.bits(jnp.tile(x.astype(np.float32)[:, None], (1, CHANNELS))))
    likely = mass > 1e-9  # where the difference of the sigmoids has digits in float64
    np.testing.assert_allclose(ours.T[likely], -np.log2(mass[likely]), rtol=1e-4, atol=1e-5)


def test_the_masses_of_all_numbers_add_up_to_one(density):
    x = jnp.tile(jnp.arange(-2000.0, 2001)[:, None], (1, CHANNELS))
    np.testing.assert_allclose(jnp.exp2(-density.bits(x)).sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -500.0, 500.0, 1e6])
def test_a_value_far_out_has_finite_bits_and_gradients(density, value):
    graphdef, params = nnx.split(density, nnx.Param)

    def bits(params, code):
        return nnx.merge(graphdef, params).bits(code).sum()

    code = jnp.full((2, CHANNELS), value)
    found = jax.value_and_grad(bits, argnums=(0, 1))(params, code)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    if abs(value) == 500:  # further out float32 does not tell neighbours apart
        assert (np.sign(found[1][1]) == np.sign(value)).all()
