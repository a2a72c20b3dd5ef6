"""Layers, programs and runs in bfloat16 and TF32, against products by hand."""

import dataclasses
import functools
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from jax import export as jax_export

import cae_jax
from cae_jax.cli.configs import load_config
from cae_jax.config import from_dict, to_dict
from cae_jax.interop import export
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.models.topology import from_config
from cae_jax.ops import tpu
from cae_jax.ops.backend import MATMUL, XLA, choose
from cae_jax.ops.precision import _LACKS_BF16
from cae_jax.training import programs
from cae_jax.training.loss import make_loss
from tests.conftest import DENSE, SMALL
from tests.helpers import draw_parameters, nested, numpy_conv, numpy_pool

WHOLE: Any = {"train_examples": None, "test_examples": None, "batch_size": 32}
BF16 = dataclasses.replace(DENSE, precision="bf16", **WHOLE)
TINY = dataclasses.replace(SMALL, features=(4,), image_shape=(8, 8, 1))
# Sums of at most 144 products in float32, of which each rounding is 6e-8.
TOLERANCE: Any = {"rtol": 1e-5, "atol": 2e-5}
# A result that is rounded to the 8 bits of bfloat16, to either side where it lies between two.
ROUNDED: Any = {"rtol": 2**-7, "atol": 1e-5}


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def layer():
    """Images, kernel, bias and the derivative of the output."""
    random, shapes = np.random.default_rng(0), [(2, 6, 7, 4), (3, 3, 4, 5), (5,), (2, 6, 7, 5)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def with_gradients(ops, x, kernel, bias, dy):
    """The output of a convolution, and its derivatives by images, kernel and bias."""

    @jax.jit
    def both(*layer):
        conv = lambda x, *weights: ops.conv(x, ops.prepare([("conv", *weights)])[0])  # noqa: E731
        y, vjp = jax.vjp(conv, *layer)
        return y, *vjp(dy)

    return map(np.asarray, both(x, kernel, bias))


# The layers of each module, of which only those of matmul have products that stay float32.
@pytest.mark.parametrize(
    ("layers", "tolerance"),
    [(MATMUL, TOLERANCE), (XLA, ROUNDED), (XLA._replace(layers=tpu), ROUNDED)],
    ids=["matmul", "xla", "tpu"],
)
def test_convolutions_multiply_what_is_rounded(layers, tolerance):
    ops, (x, kernel, bias, dy) = layers.with_precision("bf16").layers, layer()

    def pooled(x, kernel, bias):
        return ops.conv_pool(x, ops.prepare([("conv_pool", kernel, bias)])[0])

    y, dx, dkernel, dbias = with_gradients(ops, x, kernel, bias, dy)
    expected = numpy_conv(rounded(x), rounded(kernel), 0)
    np.testing.assert_allclose(y - bias, expected, **tolerance)
    assert np.abs(y - numpy_conv(x, kernel, bias)).max() > 1e-3  # not float32
    maximum = np.asarray(jax.jit(pooled)(x, kernel, bias))
    np.testing.assert_allclose(maximum - bias, numpy_pool(expected), **tolerance)
    windows = np.pad(rounded(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(windows, (3, 3), axis=(1, 2))
    expected = np.einsum("nhwcij,nhwf->ijcf", windows, rounded(dy))
    np.testing.assert_allclose(dkernel, expected, **tolerance)
    flipped = rounded(kernel)[::-1, ::-1].transpose(0, 1, 3, 2)
    np.testing.assert_allclose(dx, numpy_conv(rounded(dy), flipped, 0), **tolerance)
    np.testing.assert_allclose(dbias, dy.sum(axis=(0, 1, 2)), **TOLERANCE)  # not rounded
    assert {array.dtype.name for array in (y, maximum, dx, dkernel, dbias)} == {"float32"}


@pytest.mark.parametrize("layers", [MATMUL.layers, XLA.layers, tpu], ids=["matmul", "xla", "tpu"])
def test_float64_stays_float64(layers, float64):
    x, kernel, bias, dy = (each.astype(np.float64) for each in layer())
    y, *derivatives = with_gradients(layers, x, kernel, bias, dy)
    np.testing.assert_allclose(y, numpy_conv(x, kernel, bias), rtol=1e-12, atol=1e-12)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    np.testing.assert_allclose(derivatives[0], numpy_conv(dy, flipped, 0), rtol=1e-12, atol=1e-12)
    assert {each.dtype.name for each in (y, *derivatives)} == {"float64"}


def test_dense_layers_multiply_what_is_rounded():
    random = np.random.default_rng(0)
    x, kernel, bias, dy = (
        random.normal(size=shape).astype(np.float32) for shape in ((6, 9), (9, 4), (4,), (6, 4))
    )
    dense = MATMUL.with_precision("bf16").layers.dense
    y, vjp = jax.vjp(dense, x, kernel, bias)
    np.testing.assert_allclose(y, rounded(x) @ rounded(kernel) + bias, **TOLERANCE)
    assert np.abs(y - (x @ kernel + bias)).max() > 1e-3
    dx, dkernel, dbias = vjp(dy)
    np.testing.assert_allclose(dx, rounded(dy) @ rounded(kernel).T, **TOLERANCE)
    np.testing.assert_allclose(dkernel, rounded(x).T @ rounded(dy), **TOLERANCE)
    np.testing.assert_allclose(dbias, dy.sum(axis=0), **TOLERANCE)


def test_the_bias_in_a_matrix_is_rounded_and_its_gradient_summed_in_float32():
    ops, (x, kernel, bias, dy) = choose(from_config(SMALL), "matmul", "gpu", "bf16").layers, layer()
    y, _, _, dbias = with_gradients(ops, x, kernel, bias, dy)
    expected = numpy_conv(rounded(x), rounded(kernel), rounded(bias))
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    np.testing.assert_allclose(dbias, rounded(dy).sum(axis=(0, 1, 2)), **TOLERANCE)


# XLA's text


@pytest.fixture(scope="module")
def lines():
    """The operations of loss and gradients of a model in a precision."""

    @functools.cache
    def lower(model, name, platform, precision):
        config = dataclasses.replace(TINY, model=model)
        backend = choose(from_config(config), name, platform, precision)
        graphdef, params = nnx.split(autoencoders.abstract(config), nnx.Param)
        images = jax.ShapeDtypeStruct((64, 8, 8, 1), "uint8")
        weights = jax.ShapeDtypeStruct((64,), "float32")
        step = jax.jit(jax.value_and_grad(make_loss(graphdef, backend)))
        text = step.lower(params, images, images, weights).as_text()
        return re.findall(r"stablehlo\.(\w+)(.*)", text)

    return lower


FORMS = [
    ("conv", "matmul", "cpu", "dot_general", ["bf16", "bf16", "f32"]),
    ("conv", "matmul", "gpu", "dot_general", ["bf16", "bf16", "f32"]),
    ("conv", "xla", "cpu", "convolution", ["bf16", "bf16", "bf16"]),
    ("conv", "xla", "tpu", "convolution", ["bf16", "bf16", "bf16"]),
    ("simple", "auto", None, "dot_general", ["bf16", "bf16", "f32"]),
]


@pytest.mark.parametrize(("model", "name", "platform", "operation", "types"), FORMS)
def test_only_products_are_in_bfloat16(lines, model, name, platform, operation, types):
    found = lines(model, name, platform, "bf16")
    products = [text for kind, text in found if kind == operation and "HIGHEST" not in text]
    if _LACKS_BF16 and operation == "dot_general":
        types = ["f32", "f32", "f32"]  # of a CPU, for which `lines` lowers; of what is rounded
        assert sum(kind == "reduce_precision" for kind, _ in found) >= len(products)
    layers = {"conv": 3, "simple": 2}[model]
    assert len(products) == 3 * layers - 1  # the first layer has no derivative by the images
    for text in products:
        assert re.findall(r"tensor<(?:\d+x)*(\w+)>", text) == types
    rest = {kind for kind, text in found if "bf16" in text} - {operation}
    assert rest <= {"convert", "reverse"}


@pytest.mark.parametrize(("model", "name", "platform", "operation"), [x[:4] for x in FORMS[1:]])
def test_tf32_is_a_precision_of_the_same_products(lines, model, name, platform, operation):
    plain, high = (lines(model, name, platform, each) for each in ("float32", "tf32"))
    products = [text for kind, text in high if kind == operation and "HIGHEST" not in text]
    assert all(text.count("HIGH") == 2 for text in products)
    replaced = [
        (kind, text.replace("HIGH", "DEFAULT") if text in products else text) for kind, text in high
    ]
    assert replaced == plain != high


def test_parameters_and_state_are_float32():
    config = dataclasses.replace(TINY, precision="bf16")
    backend = choose(from_config(config), "matmul", precision="bf16")
    program = programs.training([config], autoencoders.abstract(config), backend, 1000)
    state, _ = jax.eval_shape(program.function, *program.arguments)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


# Backends and configs


def test_the_native_kernel_computes_in_float32_only():
    reason = "native is unavailable: it computes in float32, not bf16"
    assert choose(from_config(SMALL), "auto", "cpu", "bf16")[:2] == ("matmul", reason)
    with pytest.raises(cae_jax.UserError, match="in float32, not tf32; set `backend='matmul'`"):
        choose(from_config(SMALL), "native", "cpu", "tf32")


def test_configs_of_earlier_versions_are_of_float32():
    values = to_dict(SMALL)
    assert values.pop("precision") == "float32"
    assert from_dict(values) == SMALL
    assert load_config("denoise").precision == "float32"


# Runs


@pytest.fixture(scope="module")
def trained(make_once):
    """The folder of a run of the dense model in bf16, and its images."""
    images = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), np.uint8)
    split = images[:64], images[64:]
    return make_once("bf16", lambda folder: cae_jax.fit(BF16, folder, images=split)), split


def reconstructed(params, images, round_=rounded):
    """The network `simple` by hand, with the products of rounded values."""
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    (k1, b1), (k2, b2) = ([params[name][each] for each in ("kernel", "bias")] for name in params)
    code = np.maximum(round_(x) @ round_(k1) + b1, 0).astype(np.float32)
    logits = round_(code) @ round_(k2) + b2
    return (1 / (1 + np.exp(-logits))).reshape(images.shape)


def test_a_run_is_used_in_its_precision(trained, tmp_path):
    folder, (_, images) = trained
    assert json.loads((folder / "config.json").read_text())["precision"] == "bf16"
    assert json.loads((folder / "environment.json").read_text())["backend"] == "matmul"
    ours = cae_jax.load(folder)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(ours.params))
    assert {each.dtype.name for each in jax.tree.leaves(params)} == {"float32"}
    expected = reconstructed(params, images)
    results = ours.reconstruct(images), pickle.loads(pickle.dumps(ours)).reconstruct(images)
    exported = jax_export.deserialize(bytearray(export.to_stablehlo(ours)))
    floats = images.astype(np.float32) / 255
    # A code between two bfloat16 is rounded to one or the other.
    for result in (*results, np.asarray(exported.call(floats))):
        np.testing.assert_allclose(result, expected, atol=1e-3)
        assert np.abs(result - expected).mean() < 2e-6
    # Other frameworks compute its float32 parameters in float32.
    session = onnxruntime.InferenceSession(export.to_onnx(ours))
    (onnx,) = session.run(None, {"images": floats})
    plain = reconstructed(params, images, lambda x: x.astype(np.float64))
    np.testing.assert_allclose(np.asarray(onnx), plain, atol=1e-5)
    assert np.abs(plain - expected).mean() > 2e-5


def test_the_validation_of_a_run_is_of_its_precision(trained):
    folder, (_, images) = trained
    pixels = images / 255
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(cae_jax.load(folder).params))
    expected = reconstructed(params, images)
    bce = -(pixels * np.log(expected) + (1 - pixels) * np.log(1 - expected)).mean()
    final = json.loads((folder / "result.json").read_text())["final"]
    assert final["val_loss"] == pytest.approx(bce, rel=1e-6)


def test_a_run_keeps_its_precision(trained):
    folder, split = trained
    config = dataclasses.replace(BF16, precision="float32")
    with pytest.raises(cae_jax.UserError, match=r"differs in precision \(bf16 there, float32 now"):
        cae_jax.fit(config, folder, images=split)


@pytest.mark.slow
def test_weights_are_taken_by_a_run_of_another_precision(trained, tmp_path):
    folder, split = trained
    config = dataclasses.replace(BF16, precision="float32", optimizer="sgd", learning_rate=1e-12)
    result = cae_jax.fit(config, tmp_path / "run", start_from=folder, images=split)
    parameters = result.autoencoder.params, cae_jax.load(folder).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *parameters)


def test_a_run_of_the_native_kernel_is_not_continued_in_another(trained, tmp_path):
    folder, split = trained
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    for name, value in (
        ("config", {"precision": "float32"}),
        ("environment", {"backend": "native"}),
    ):
        file = run / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | value))
    with pytest.raises(cae_jax.UserError, match=r"differs in precision \(float32 there, bf16 now"):
        cae_jax.fit(BF16, run, images=split)


def test_members_share_a_precision():
    configs = [DENSE, dataclasses.replace(DENSE, precision="bf16", seed=1)]
    with pytest.raises(cae_jax.UserError, match=r"`precision` differs among the members \(float32"):
        programs.check_members(configs)


def test_a_picture_of_any_size_is_computed_in_the_precision():
    params = nested(draw_parameters(from_config(TINY)))
    picture = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    results = {}
    for precision in ("float32", "bf16"):
        config = dataclasses.replace(TINY, precision=precision)
        model = autoencoders.build_with(config, params)
        ours = Autoencoder(config, model, XLA.with_precision(precision))
        results[precision] = ours.reconstruct(picture, full_size=True)
        np.testing.assert_allclose(results[precision], ours.reconstruct(picture), atol=1e-6)
    assert np.abs(results["bf16"] - results["float32"]).max() > 1e-4
