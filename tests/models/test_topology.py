"""The table of layers for any image, against sizes worked out by hand."""

import itertools
import math
import re
import subprocess
import tokenize
from pathlib import Path

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
    model = autoencoders.ConvAutoencoder(features, (height, width, 1), rngs=nnx.Rngs(0))
    images = jax.ShapeDtypeStruct((2, height, width, 1), jnp.float32)
    for ops in (xla, matmul):
        codes = jax.eval_shape(lambda x, ops=ops: model.encode(x, ops), images)
        assert codes.shape[1:] == model.topology.code_shape
        decoded = jax.eval_shape(lambda x, ops=ops: model.decode(x, ops), codes)
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


def test_image_sizes_stand_in_the_topology_and_the_data_sources_alone():
    """28, 14, 7 and 784 as numbers of the code; comments and texts may mention them."""
    files = subprocess.run(
        ["git", "ls-files", "cae_jax"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    facts = {"cae_jax/models/topology.py", "cae_jax/config.py"}  # config.py: IMAGE_SHAPES
    found = {}
    for name in files:
        if Path(name).suffix in (".py", ".h", ".cc", ".js") and name not in facts:
            found[name] = [number for _, number in numbers_in_code(ROOT / name)]
    found = {name: numbers for name, numbers in found.items() if numbers}
    # Numbers that mean something else.
    assert found == {
        "cae_jax/cli/benchmark.py": ["7"],  # timed epochs
        "cae_jax/data/conversion.py": ["7"],  # an orientation of EXIF
        "cae_jax/evaluation/baselines.py": ["14", "7", "7"],  # settings of the denoisers
        "cae_jax/figures.py": ["7", "7"],  # inches
        "cae_jax/interop/onnx.py": ["7"],  # version of the format
        "cae_jax/report/web/curves.js": ["7"],  # ticks
        "cae_jax/report/web/noise.js": ["7", "14"],  # shifts of the random generator
        "cae_jax/training/noise.py": ["7"],  # standard deviations
    }


def numbers_in_code(path):
    """Lines and numbers equal to an image size of the tutorial, outside of comments and texts."""
    text = path.read_text()
    if path.suffix == ".py":
        with path.open("rb") as file:
            return [
                (token.start[0], token.string)
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NUMBER and token.string in ("28", "14", "7", "784")
            ]
    lines = (re.sub(r"//.*", "", line) for line in text.splitlines())
    number = re.compile(r"(?<![\w.])(28|14|7|784)(?![\w.])")
    return [(i, each) for i, line in enumerate(lines, start=1) for each in number.findall(line)]
