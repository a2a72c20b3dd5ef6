"""The table of layers for any image, against sizes worked out by hand."""

import itertools
import math
import re
import tokenize

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cae_jax.models import autoencoders, topology
from cae_jax.ops import matmul, xla
from tests.conftest import ROOT


def sizes(height, width=None, stages=3):
    """Rows and columns of every layer."""
    table = topology.convolutional((height, width or height, 1), (2,) * stages)
    return [layer.shape[:2] for layer in table.layers]


def test_the_tutorials_sizes():
    assert [rows for rows, _ in sizes(28)] == [28, 28, 14, 14, 7, 7, 4, 4, 8, 8, 16, 14, 28, 28]


@pytest.mark.parametrize(
    ("side", "back"),
    [
        (30, [4, 8, 8, 16, 16, 32, 30]),  # 30, 15, 8, 4
        (29, [4, 8, 8, 16, 16, 32, 30, 29]),  # 29, 15, 8, 4, and a cropped row
        (32, [4, 8, 8, 16, 16, 32, 32]),  # 32, 16, 8, 4
        (25, [4, 8, 8, 16, 14, 28, 26, 25]),  # 25, 13, 7, 4: valid twice, and a cropped row
    ],
)
def test_the_way_back_by_hand(side, back):
    assert [rows for rows, _ in sizes(side)][7:] == back


def test_rows_and_columns_have_their_own_padding():
    table = topology.convolutional((28, 32, 3), (16, 8, 8))
    paddings = [layer.padding for layer in table.decoder if layer.kernel]
    assert paddings == [("same", "same")] * 2 + [("valid", "same"), ("same", "same")]


@hypothesis.given(
    st.integers(1, 256),
    st.integers(1, 256),
    st.integers(1, 4),
    st.lists(st.integers(1, 64), min_size=1, max_size=6),
)
def test_any_network_closes(height, width, channels, features):
    image_shape = (height, width, channels)
    table = topology.convolutional(image_shape, features)
    assert table.layers[-1].shape == image_shape
    assert table.layers[-1].activation == "sigmoid"
    assert table.code_shape == (
        math.ceil(height / 2 ** len(features)),
        math.ceil(width / 2 ** len(features)),
        features[-1],
    )
    *_, last = (layer for layer in table.layers if layer.kind != "crop")
    assert 0 <= last.shape[0] - height <= 1
    assert 0 <= last.shape[1] - width <= 1
    widths = [channels, *features, features[-1], *features[-2::-1], channels]
    pairs = itertools.pairwise(widths)
    assert table.parameters == sum(9 * n_in * n_out + n_out for n_in, n_out in pairs)


@hypothesis.given(
    st.integers(1, 20), st.integers(1, 20), st.lists(st.integers(1, 3), min_size=1, max_size=3)
)
@hypothesis.settings(max_examples=10, deadline=None)
def test_the_model_has_the_shapes_of_its_table(height, width, features):
    images = jax.ShapeDtypeStruct((2, height, width, 1), jnp.float32)
    table = topology.convolutional(images.shape[1:], features)
    for ops in (xla, matmul):

        def passes(x, ops=ops):
            model = autoencoders.ConvAutoencoder(features, x.shape[1:], rngs=nnx.Rngs(0))
            codes = model.encode(x, ops)
            return codes, model.decode(codes, ops)

        codes, decoded = jax.eval_shape(passes, images)
        assert codes.shape[1:] == table.code_shape
        assert decoded.shape == images.shape


def test_mixed_padding_is_the_inner_part_of_same():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(3, 3, 4, 3))
    x, kernel, bias = (jnp.asarray(a, jnp.float32) for a in (x, kernel, np.zeros(3)))
    for ops in (xla, matmul):
        (weights,) = ops.prepare([("upsample_conv", kernel, bias)])
        same = ops.upsample_conv(x, weights, padding="same")
        mixed = ops.upsample_conv(x, weights, padding=("valid", "same"))
        np.testing.assert_allclose(mixed, same[:, 1:-1], atol=1e-5)


def test_flops_by_hand():
    conv = topology.convolutional((28, 28, 1), (16, 8, 8))
    # places times weights of the seven layers
    products = [28**2 * 144, 14**2 * 1152, 7**2 * 576, 4**2 * 576]
    products += [8**2 * 576, 14**2 * 1152, 28**2 * 144]
    assert [layer.flops for layer in conv.weighted] == [2 * n for n in products]
    assert conv.training_flops == 6 * sum(products) - 2 * products[0]
    assert topology.dense((28, 28, 1), "simple").training_flops == 10 * 784 * 32


def test_image_sizes_stand_in_the_topology_and_the_config_alone():
    """28 and 784 as numbers of the code; comments and texts may mention them."""
    found = []
    for path in (ROOT / "cae_jax").rglob("*.*"):
        numbers = []
        if path.suffix == ".py":
            with path.open("rb") as file:
                tokens = list(tokenize.tokenize(file.readline))
            numbers = [token.string for token in tokens if token.type == tokenize.NUMBER]
        elif path.suffix in (".h", ".cc", ".js"):
            code = re.sub(r"//.*", "", path.read_text("utf-8"))
            numbers = re.findall(r"(?<![\w.])\d+(?![\w.])", code)
        found += [path.name] if {"28", "784"} & set(numbers) else []
    assert sorted(found) == ["config.py", "topology.py"]
