"""Exported files, used without cae_jax, against the networks in NumPy."""

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from jax import export as jax_export
from safetensors.numpy import load as read_safetensors

import cae_jax
from cae_jax.config import resolved, to_dict
from cae_jax.interop import export
from cae_jax.models import autoencoders, topology
from cae_jax.models.inference import Autoencoder
from cae_jax.ops.backend import XLA
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import init_state
from tests.conftest import ROOT, SMALL
from tests.helpers import assert_fails_in_one_line, draw_parameters, nested, numpy_functions

# float32 sums of at most 784 terms of size 1, against float64
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
DEEP = dataclasses.replace(SMALL, model="deep")
PAGE = (ROOT / "docs" / "export.md").read_text()
# A process for which cae_jax is not installed.
WITHOUT = 'import sys; sys.modules["cae_jax"] = None\n'


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory, data_dir):
    """The folder of a short run of the fully connected deep autoencoder."""
    folder = tmp_path_factory.mktemp("runs") / "deep"
    cae_jax.fit(dataclasses.replace(DEEP, epochs=1), folder, data_dir=data_dir)
    return folder


def drawn(config):
    """An autoencoder with random parameters, computed without compiling a kernel."""
    parameters = nested(draw_parameters(topology.from_config(config)))
    return Autoencoder(config, autoencoders.build_with(config, parameters), backend=XLA)


@pytest.fixture(params=["conv", "deep"])
def autoencoder(request, run):
    """A trained convolutional network, and a fully connected one."""
    return cae_jax.load(run) if request.param == "conv" else drawn(DEEP)


@pytest.fixture(scope="module")
def images(test_images):
    return test_images[:10] / np.float32(255)


def reference(autoencoder, images):
    """Input and expected output of each function; the parameters are those of the model."""
    layers = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    parameters = {
        f"{layer}.{name}": np.asarray(array)
        for layer, both in layers.items()
        for name, array in both.items()
    }
    functions = numpy_functions(parameters)
    codes = functions["encode"](images).astype(np.float32)
    inputs = {"reconstruct": images, "encode": images, "decode": codes}
    return {name: (x, functions[name](x.astype(np.float64))) for name, x in inputs.items()}


def run_python(code, folder):
    """A process of its own, in a folder, that sees neither PYTHONPATH nor cae_jax."""
    # Without LLVM's optimisations it compiles several times faster.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-I", "-W", "error", "-c", WITHOUT + code]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)


def call_onnx(content, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (value,) = session.run(None, {session.get_inputs()[0].name: x})
    return value


@pytest.mark.slow
def test_stablehlo_in_a_process_without_cae_jax(autoencoder, images, tmp_path):
    expected = reference(autoencoder, images)
    for name, (x, _) in expected.items():
        (tmp_path / f"{name}.stablehlo").write_bytes(export.to_stablehlo(autoencoder, name))
        np.save(tmp_path / f"{name}.npy", x)
    code = """
import numpy as np
from jax import export

try:
    import cae_jax
    raise SystemExit("cae_jax is installed here")
except ImportError:
    pass
for name in ("reconstruct", "encode", "decode"):
    with open(f"{name}.stablehlo", "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    x = np.load(f"{name}.npy")
    for n in (1, 3, 10) if name == "reconstruct" else (3,):
        np.save(f"{name}-{n}.npy", exported.call(x[:n]))
assert not any(module.startswith(("cae_jax.", "flax")) for module in sys.modules)
"""
    run_python(code, tmp_path)
    for name, (x, wanted) in expected.items():
        ours = getattr(autoencoder, name)(x)
        for n in (1, 3, 10) if name == "reconstruct" else (3,):
            value = np.load(tmp_path / f"{name}-{n}.npy")
            assert value.dtype == np.float32
            assert value.shape == wanted[:n].shape
            np.testing.assert_allclose(value, wanted[:n], **TOLERANCE)
            np.testing.assert_allclose(value, ours[:n], **TOLERANCE)


def test_stablehlo_names_its_platforms_and_no_path_of_this_machine(run):
    content = export.to_stablehlo(cae_jax.load(run))
    exported = jax_export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(n, 28, 28, 1)"
    assert b"models.py" not in content
    assert str(ROOT).encode() not in content
    assert jax.config.values["jax_traceback_in_locations_limit"] != 0  # as it was


def test_the_backend_makes_no_difference(run):
    loaded = [cae_jax.load(run, backend=name) for name in ("auto", "xla", "matmul")]
    for convert in (export.to_stablehlo, export.to_safetensors, export.to_onnx):
        assert len({convert(each) for each in loaded}) == 1


def test_safetensors_hold_the_parameters_and_the_config(autoencoder, images):
    content = export.to_safetensors(autoencoder)
    parameters = read_safetensors(content)
    layers = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    assert sum(array.size for array in parameters.values()) == autoencoder.parameters
    for name, array in parameters.items():
        layer, kind = name.split(".")
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, layers[layer][kind])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    written = json.loads(header["__metadata__"]["cae_jax"])
    assert written == {"format_version": 1, "config": to_dict(autoencoder.config)}
    # Once more, all of it from nothing but the file.
    pictures = numpy_functions(parameters)["reconstruct"](images.astype(np.float64))
    np.testing.assert_allclose(autoencoder.reconstruct(images), pictures, **TOLERANCE)


def test_onnx_in_onnx_runtime(autoencoder, images):
    for name, (x, wanted) in reference(autoencoder, images).items():
        content = export.to_onnx(autoencoder, name)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert [opset.version for opset in model.opset_import] == [13]
        (properties,) = model.metadata_props
        assert json.loads(properties.value)["config"] == to_dict(autoencoder.config)
        for n in (0, 1, 3, 10):
            value = call_onnx(content, x[:n])
            assert value.dtype == np.float32
            assert value.shape == wanted[:n].shape
            np.testing.assert_allclose(value, wanted[:n], **TOLERANCE)


# Of 11 x 13 pixels the last convolution pads rows alone, and a row and a column are cropped.
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        pytest.param((28, 28, 1), {"features": (4, 3)}, marks=pytest.mark.slow),
        pytest.param((28, 28, 1), {"features": (2, 3, 9)}, marks=pytest.mark.slow),
        ((32, 32, 3), {"features": (5,)}),
        ((11, 13, 3), {"features": (4, 3, 2)}),
        pytest.param((5, 9, 4), {"features": (2, 3, 2, 3, 2, 4)}, marks=pytest.mark.slow),
        ((9, 7, 3), {"model": "simple"}),
        pytest.param((32, 32, 3), {"model": "deep"}, marks=pytest.mark.slow),
    ],
)
def test_every_format_for_any_shape(shape, changes):
    config = dataclasses.replace(SMALL, data="arrays", image_shape=shape, **changes)
    autoencoder, parameters = drawn(config), draw_parameters(topology.from_config(config))
    images = np.random.default_rng(1).random((2, *shape), np.float32)
    np.testing.assert_equal(read_safetensors(export.to_safetensors(autoencoder)), parameters)
    functions = numpy_functions(parameters, shape)
    codes = functions["encode"](images.astype(np.float64)).astype(np.float32)
    assert codes.shape[1:] == autoencoder.code_shape
    for name, function in functions.items():
        x = codes if name == "decode" else images
        wanted = function(x.astype(np.float64))
        assert wanted.std() > 0.02
        content = export.to_onnx(autoencoder, name)
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        np.testing.assert_allclose(call_onnx(content, x), wanted, **TOLERANCE)
        if name == "reconstruct":
            np.testing.assert_allclose(autoencoder.reconstruct(x), wanted, **TOLERANCE)
            exported = jax_export.deserialize(bytearray(export.to_stablehlo(autoencoder, name)))
            # Without LLVM's optimisations it compiles several times faster.
            call = jax.jit(exported.call, compiler_options={"xla_backend_optimization_level": 0})
            np.testing.assert_allclose(call(x), wanted, **TOLERANCE)


def documented_shapes(heading):
    """The names and shapes below a heading of a table of docs/export.md."""
    table = next(table for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M) if heading in table)
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    column = rows[0].index(heading.strip("`"))
    return {row[0]: json.loads(row[column]) for row in rows[2:] if row[column]}


@pytest.mark.parametrize("name", ["fashion_mnist", "simple", "deep"])
def test_documented_names_and_shapes(name):
    config = cae_jax.TrainConfig(model="conv" if name == "fashion_mnist" else name)
    autoencoder = Autoencoder(config, autoencoders.build(config, nnx.Rngs(0)))
    parameters = read_safetensors(export.to_safetensors(autoencoder))
    shapes = {name: list(array.shape) for name, array in parameters.items()}
    assert shapes == documented_shapes(f"`{name}`")


def run_commands(commands, folder):
    """Runs command lines of the page in one process, for the time it saves; what they print."""
    code = """
import pathlib, runpy, shlex, sys
_, root, *commands = sys.argv
for command in commands:
    name, *arguments = shlex.split(command)
    sys.argv = [name, *arguments]
    runpy.run_path(str(pathlib.Path(root) / "scripts" / f"{name}.py"), run_name="__main__")
"""
    command = [sys.executable, "-c", code, str(ROOT), *commands]
    return subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, timeout=300
    ).stdout


@pytest.mark.slow
def test_the_commands_and_snippets_of_the_page(run, deep_run, images, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "fashion_mnist")
    shutil.copytree(deep_run, tmp_path / "runs" / "deep")
    commands = re.findall(r"^    cae-jax (export .*)$", PAGE, re.M)
    lines = run_commands(commands, tmp_path).splitlines()
    assert len(lines) == len(commands)
    for line in lines:
        name, size = re.fullmatch(r"(.+): ([\d,]+) bytes", line).groups()
        assert (tmp_path / name).stat().st_size == int(size.replace(",", ""))
    files = ["deep.safetensors", "encoder.onnx"]
    files += [f"fashion_mnist.{format}" for format in ("onnx", "safetensors", "stablehlo")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "runs"]

    np.save(tmp_path / "images.npy", images)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    code = """
import json
import numpy as np
with open("snippets.json") as file:
    snippets = json.load(file)
for i, snippet in enumerate(snippets):
    names = {"images": np.load("images.npy")}
    exec(snippet, names)
    np.save(f"result{i}.npy", names["codes" if "codes" in names else "pictures"])
"""
    run_python(code, tmp_path)
    conv, deep = cae_jax.load(run), cae_jax.load(deep_run)
    expected = [reference(conv, images)["reconstruct"][1]] * 4
    expected[2] = reference(deep, images)["reconstruct"][1]
    expected.append(reference(conv, images)["encode"][1])
    for i, wanted in enumerate(expected):
        np.testing.assert_allclose(np.load(tmp_path / f"result{i}.npy"), wanted, **TOLERANCE)
    assert len(snippets) == len(expected)


@pytest.mark.slow
def test_best(script, tmp_path):
    config = resolved(cae_jax.TrainConfig(features=(4, 2, 2)))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"format": 1, **to_dict(config)}))
    state = init_state(
        autoencoders.build(config, nnx.Rngs(0)), build_optimizer(config, total_steps=2), steps=1
    )
    with Checkpoints(run / "checkpoints", config) as checkpoints:
        for step, loss in {1: 0.1, 2: 0.5}.items():
            filled = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), state)
            checkpoints.save(filled._replace(step=jnp.int32(step)), loss)
    for flags, value in (((), 2), (("--best",), 1)):
        process = script("export", "run", "--format", "safetensors", *flags)
        assert process.returncode == 0, process.stderr
        parameters = read_safetensors((tmp_path / "run.safetensors").read_bytes())
        assert all((array == value).all() for array in parameters.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--format", "onnx"), "nowhere is not a run directory: config.json is missing"),
        (("RUN", "--format", "pickle"), "--format"),
        (("RUN", "--format", "onnx", "--out", "nowhere/x.onnx"), "in a folder that exists"),
    ],
)
def test_the_script_refuses(refuse, run, tmp_path, arguments, message):
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    assert_fails_in_one_line(refuse("export", *arguments), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pickle",), "`format` is 'pickle'; it takes stablehlo, safetensors, onnx"),
        (("onnx", "train"), "`function` is 'train'; it takes reconstruct, encode, decode"),
        (
            ("safetensors", "encode"),
            "`function` is 'encode', but a safetensors file holds parameters",
        ),
    ],
)
def test_unknown_formats_and_functions_are_refused(run, tmp_path, arguments, message):
    with pytest.raises(cae_jax.UserError, match=message):
        export.write(tmp_path / "out", cae_jax.load(run), *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "package"),
    [("stablehlo", "flatbuffers"), ("onnx", "onnx")],
)
def test_a_missing_package_is_named(format, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(cae_jax.UserError, match=rf"{package}; pip install .*\[export\]"):
        export.check(format)


def test_a_file_is_written_whole_or_not_at_all(run, tmp_path):
    path, autoencoder = tmp_path / "a.onnx", cae_jax.load(run)
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk
    try:
        with pytest.raises(cae_jax.UserError, match=r"a\.onnx cannot be written \(.*free space"):
            export.write(path, autoencoder, "onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"old"
    export.write(path, autoencoder, "onnx")
    assert path.read_bytes() == export.to_onnx(autoencoder)


@pytest.mark.parametrize("path", [".", "/dev/null", "nowhere/a.onnx"])
def test_what_is_no_file_is_refused(run, path):
    with pytest.raises(cae_jax.UserError, match="give a file in a folder that exists"):
        export.write(path, cae_jax.load(run), "safetensors")
