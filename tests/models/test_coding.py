"""Codes as bytes: exact, near the entropy, and the same bytes in every version."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cae_jax.models import autoencoders, coding
from cae_jax.models.coding import Tables
from tests.training.test_rate import RATED

# Two channels: numbers from -1 on, with 65536 in all; the last of each stands for all others.
TABLES = Tables(
    5,
    np.array([-1, 0], np.int32),
    np.array([3, 2], np.int32),
    np.array([16384, 32768, 16000, 384, 65000, 500, 36], np.int32),
)


@pytest.mark.parametrize("quality", [3, 5, 7])
def test_tables_have_the_probabilities_of_the_density(quality):
    """With a step of 2 a number has the mass of an interval of 2, and so on."""
    model = autoencoders.build(RATED, nnx.Rngs(0))
    tables = Tables.of(model, quality)
    assert tables.is_valid()
    numbers, step = np.arange(-1024, 1025), {3: 2, 5: 1, 7: 0.5}[quality]
    edges = np.tile(step * (np.arange(-1024, 1026)[:, None] - 0.5), (1, 6)).astype(np.float32)
    cumulative = np.asarray(nnx.sigmoid(model.density._logits(edges)), np.float64)
    masses = np.diff(cumulative, axis=0)
    for c, (low, frequencies) in enumerate(zip(tables.low_C, tables.by_channel, strict=True)):
        there = (numbers >= low) & (numbers < low + len(frequencies) - 1)
        expected = np.append(masses[there, c], 1 - masses[there, c].sum())
        assert (masses[~there, c] < 2**-16).all()
        # Each has at least 1 of 65536, which the others lack.
        atol = 2 * len(frequencies) / 65536
        np.testing.assert_allclose(frequencies / 65536, expected, atol=atol)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-40000, 40000), st.integers(-3, 3)), max_size=20))
def test_any_codes_come_back(values):
    codes = np.array(values, np.int64).reshape(-1, 2)
    content = coding.encode(codes, TABLES)
    found = coding.decode(content, codes.shape, TABLES)
    np.testing.assert_array_equal(found, np.clip(codes, -32768, 32767))  # of 16 bits


def test_places_of_a_code_share_the_table_of_their_channel():
    codes = np.random.default_rng(0).integers(-1, 2, (5, 4, 3, 2))
    np.testing.assert_array_equal(
        coding.decode(coding.encode(codes, TABLES), codes.shape, TABLES), codes
    )


@pytest.mark.parametrize("count", [1, 10, 5000])
def test_bytes_are_close_to_the_information_of_the_codes(count):
    rng = np.random.default_rng(count)
    one = rng.choice([-1, 0, 1], count, p=[0.25, 0.5, 0.25])
    other = rng.choice([0, 1], count, p=[0.99, 0.01])
    bits = -np.log2(np.array([16384, 32768, 16000])[one + 1] / 65536).sum()
    bits += -np.log2(np.array([65000, 500])[other] / 65536).sum()
    content = coding.encode(np.stack([one, other], axis=1), TABLES)
    assert bits / 8 - 1 <= len(content) <= bits / 8 + 2


def test_the_costs_are_the_information_of_each_number():
    costs, others = TABLES.bits()
    np.testing.assert_allclose(costs[0], [2, 1, -np.log2(16000 / 65536)], rtol=1e-6)
    np.testing.assert_allclose(others, 16 - np.log2([384 / 65536, 36 / 65536]), rtol=1e-6)
    np.testing.assert_allclose(costs[1, 2], others[1])  # padded


def test_bytes_do_not_change_between_versions_and_machines():
    codes = np.array([[0, 0], [1, 0], [-1, 1], [0, 0], [7, 0], [0, -2], [1, 1], [0, 0]])
    content = bytes.fromhex("a5da27bb9464fbed7675")
    assert coding.encode(codes, TABLES) == content
    np.testing.assert_array_equal(coding.decode(content, codes.shape, TABLES), codes)


def test_the_identity_depends_on_parameters_and_tables():
    model = autoencoders.build(RATED, nnx.Rngs(0))
    other = autoencoders.build(dataclasses.replace(RATED, rate=0.1), nnx.Rngs(1))
    tables = Tables.of(model)
    moved = tables._replace(low_C=tables.low_C + 1)
    found = {coding.identity(*each) for each in [(model, tables), (other, tables), (model, moved)]}
    assert len(found) == 3
    assert coding.identity(model, tables) in found


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes_C": np.array([2, 2], np.int32)},
        {"low_C": np.array([0], np.int32)},
        {"low_C": np.array([0.0, 1.0])},
        {"frequencies": TABLES.frequencies + 1},
    ],
)
def test_tables_that_do_not_belong_together_are_known(wrong):
    assert TABLES.is_valid()
    assert not TABLES._replace(**wrong).is_valid()
