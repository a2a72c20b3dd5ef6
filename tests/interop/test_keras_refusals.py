"""What cannot become a run, of Keras and of others: one line each, and nothing written."""

import io
import json
import resource
import subprocess
import sys
import zipfile
from importlib import metadata

import h5py
import numpy as np
import pytest

import cae_jax
from cae_jax.interop import keras as interop
from cae_jax.interop.keras import __main__
from tests.conftest import SMALL
from tests.interop.test_export import drawn
from tests.interop.test_keras import (
    RELU,
    conv_layers,
    dense_layers,
    functional,
    in_this_process,  # noqa: F401
    keras,
    layers,
    network,
    pytestmark,  # noqa: F401
    rank_promotion,  # noqa: F401
    read,
    run_process,
    save,
    sequential,
    with_policy,
    worker,
)

CONVERT = r"load it in Keras and save the whole model with model.save\('model.keras'\)"

# Networks that are not the project's


def two_outputs():
    x = inputs = keras.Input((28, 28, 1))
    outputs = [x := layer(x) for layer in conv_layers()]
    return keras.Model(inputs, [outputs[6], outputs[-1]])


def a_layer_used_twice():
    inputs = keras.Input((28, 28, 1))
    first, *rest, last = conv_layers()
    x = first(inputs)
    for layer in rest:
        x = layer(x)
    again = first(last(x))
    return keras.Model(inputs, [last(x), again])


@keras.saving.register_keras_serializable("Mine")
class Conv2D(layers.Conv2D):
    def call(self, inputs):
        return -super().call(inputs)


@keras.saving.register_keras_serializable("Mine")
class Mine(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = sequential(conv_layers())

    def call(self, inputs):
        return self.inner(inputs)


def conv(*arguments, **options):
    return layers.Conv2D(*arguments, **{**RELU, **options})


# Number of a layer of the tutorial's network, what takes its place, and what follows its name.
CHANGED = {
    "extra layer": (3, lambda: layers.Dropout(0.5), "is Dropout; the network has Conv2D there"),
    "kernel size": (3, lambda: conv(8, 5), r"kernel_size is \[5, 5\]; .* has \[3, 3\] there"),
    "padding": (11, lambda: conv(16, 3), "padding is same; the network has valid there"),
    "other features": (9, lambda: conv(4, 3), "filters is 4; the network has 8 there"),
    "activation": (5, lambda: conv(8, 3, activation="tanh"), "activation is tanh; .* has relu"),
    "logits": (13, lambda: conv(1, 3, activation=None), "activation is linear; .* has sigmoid"),
    "a ReLU to 6": (5, lambda: conv(8, 3, activation=layers.ReLU(6)), "activation is .* has relu"),
    "no bias": (1, lambda: conv(16, 3, use_bias=False), "use_bias is false; .* has true there"),
    "strides": (2, lambda: layers.MaxPooling2D(3, 2, "same"), r"pool_size is \[3, 3\]; .*\[2, 2\]"),
    "mean pooling": (
        *(2, lambda: layers.AveragePooling2D(2, padding="same")),
        "is AveragePooling2D; the network has MaxPooling2D there",
    ),
    "interpolation": (
        *(8, lambda: layers.UpSampling2D(2, interpolation="bilinear")),
        "interpolation is bilinear; the network has nearest there",
    ),
    "code of one's own": (8, lambda: layers.Lambda(lambda x: x), "is Lambda; .* has UpSampling2D"),
    "class of one's own": (1, lambda: Conv2D(16, 3, **RELU), "is Mine>Conv2D; .* has Conv2D"),
}


def changed(which):
    number, make, _ = CHANGED[which]
    parts = conv_layers()
    parts[number - 1 : number] = [make()]
    if which == "extra layer":
        parts.insert(number, conv_layers()[number - 1])
    return sequential(parts)


def halves(encoder, decoder):
    return functional([functional(encoder), functional(decoder, (4, 4, 8))])


def dense_reshaped():
    return [layers.Flatten(), *dense_layers(32), layers.Reshape((14, 56))]


OTHERS = {
    "layer at the end": (
        lambda: sequential([*conv_layers(), layers.ReLU()]),
        r"layer 14 \(re_lu\w*\) is ReLU; the network has no layer there",
    ),
    "ends early": (
        lambda: sequential(conv_layers()[:-1]),
        "layer 13 is missing; the network has Conv2D there",
    ),
    "image size": (
        lambda: sequential(conv_layers(), (32, 32, 1)),
        r"layer 11 \(conv2d\w*\): padding is valid; the network has same there",
    ),
    "any image size": (
        lambda: sequential(conv_layers(), (None, None, 1)),
        r"images have shape \[null, null, 1\]; the network takes \[height, width, channels\]",
    ),
    "two channels": (
        lambda: sequential(conv_layers(), (28, 28, 2)),
        r"images have shape \[28, 28, 2\]; the network takes .* with 1, 3 or 4 channels",
    ),
    "colour": (
        lambda: sequential(conv_layers(), (28, 28, 3)),
        r"layer 13 \(conv2d\w*\): filters is 1; the network has 3 there",
    ),
    "simple of another width": (
        lambda: sequential(dense_layers(64), (784,)),
        r"layer 1 \(dense\w*\): units is 64; the network has 32 there",
    ),
    "deep of other widths": (
        lambda: sequential(dense_layers(128, 64, 16, 64, 128), (784,)),
        r"layer 3 \(dense\w*\): units is 16; the network has 32 there",
    ),
    "reshape to something else": (
        lambda: sequential(dense_reshaped(), (28, 28)),
        r"the last layer reshapes \[28, 28\] to \[14, 56\]; the network keeps the shape",
    ),
    "half precision": (lambda: with_policy("float16"), "is of float16; the network takes float32"),
    "model in a model": (
        lambda: sequential([sequential(conv_layers()[:5]), *conv_layers()[6:]]),
        r"layer 6 \(conv2d\w*\) is Conv2D; the network has MaxPooling2D there",
    ),
    "code in a model in a model": (
        lambda: sequential(
            [functional([layers.Lambda(abs), *conv_layers()[:6]]), *conv_layers()[6:]]
        ),
        r"layer 1 \(lambda\w*\) is Lambda; the network has Conv2D there",
    ),
    "layer between models": (
        lambda: halves(conv_layers()[:6], [layers.ReLU(), *conv_layers()[6:]]),
        r"layer 7 \(re_lu\w*\) is ReLU; the network has Conv2D there",
    ),
    "models that end early": (
        lambda: halves(conv_layers()[:6], conv_layers()[6:-1]),
        "layer 13 is missing; the network has Conv2D there",
    ),
    "two outputs": (two_outputs, "the output of the model is .*; in the network, a chain"),
    "shared layer": (a_layer_used_twice, r"the input of layer conv2d\w* is .*, conv2d\w*; in the"),
}


@pytest.mark.parametrize("which", CHANGED)
def test_a_layer_that_differs_is_named(which, tmp_path):
    number, _, message = CHANGED[which]
    path = save(changed(which), tmp_path / "m.keras")
    refused(path, rf"layer {number} \(\w+\):? {message}")


@pytest.mark.parametrize("which", OTHERS)
def test_the_first_difference_is_named(which, tmp_path):
    make, message = OTHERS[which]
    model = make()
    for name in ("m.keras", "m.h5"):
        refused(save(model, tmp_path / name), message)


def test_a_model_of_ones_own_class_is_refused(tmp_path):
    model = Mine()
    model(keras.Input((28, 28, 1)))
    path = save(model, tmp_path / "m.keras")
    refused(path, "the model is of class Mine>Mine; it takes a Sequential or functional one")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("extra layer", "it has dropout where the network has none; if it computes"),
        ("mean pooling", "it has average_pooling2d where the network has max_pooling2d; if"),
        ("ends early", "it has no layer where the network has conv2d; if"),
        ("kernel size", r"shape=\(3, 3, 16, 8\), Received: value.shape=\(5, 5, 16, 8\)"),
        ("other features", r"shape=\(3, 3, 8, 8\), Received: value.shape=\(3, 3, 8, 4\)"),
        ("no bias", "'conv1' expected 2 variables, but received 1 "),
        ("colour", r"shape=\(3, 3, 16, 3\), Received: value.shape=\(3, 3, 16, 1\)"),
        ("simple of another width", r"shape=\(784, 32\), Received: value.shape=\(784, 64\)"),
    ],
)
def test_weights_of_another_network(which, message, tmp_path):
    model = changed(which) if which in CHANGED else OTHERS[which][0]()
    refused(save(model, tmp_path / "m.weights.h5"), f"{message}.*{CONVERT}")


def of_two_models():
    return sequential([sequential(conv_layers()[:6]), sequential(conv_layers()[6:], (4, 4, 8))])


@pytest.mark.parametrize("make", [Mine, of_two_models])
def test_weights_alone_of_models_in_a_model(make, tmp_path):
    """Nothing in the file tells the order of the models."""
    model = make()
    model(keras.Input((28, 28, 1)))
    refused(save(model, tmp_path / "m.weights.h5"), f"where the network has .*conv2d.* {CONVERT}")


# Damage and malice, without Keras


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of an intact archive."""
    path = tmp_path_factory.mktemp("archive") / "m.keras"
    interop.write(path, drawn(SMALL))
    assert read(path).model == "conv"
    return path.read_bytes()


def members(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_members(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path, message):
    with pytest.raises(cae_jax.UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none_of_keras(tmp_path):
    path = tmp_path / "m.keras"
    refused(path, "is no file of Keras; give a .keras, .weights.h5 or .h5 file")
    refused(tmp_path, "is no file of Keras")
    for content in (b"", b"a text\n", b"PK", b"\x89HDF", b"\x80\x04]\x94."):
        path.write_bytes(content)
        refused(path, f"it is neither a .keras archive nor HDF5; {CONVERT}")
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
    refused(path, f"it is HDF5 without weights of Keras; {CONVERT}")
    write_members(path, {"a.txt": b"a"})
    refused(path, f"it has no config.json; {CONVERT}")


@pytest.mark.parametrize("config", ["", "[]", "{}", "null", "7", "[" * 100_000, '"\\ud800', "\xff"])
def test_a_damaged_config(config, archive, tmp_path):
    path = write_members(tmp_path / "m.keras", {**members(archive), "config.json": config})
    refused(path, "cannot be read .*; save it again in Keras|its config is no JSON object")


def test_an_archive_cut_short_or_changed(archive, tmp_path):
    path = tmp_path / "m.keras"
    for length in range(4, len(archive), 997):
        path.write_bytes(archive[:length])
        refused(path, "neither a .keras archive nor HDF5|cannot be read")
    start = archive.index(b"\x89HDF")
    end = start + len(members(archive)["model.weights.h5"])
    for place in range(start, end, 997):  # the archive has a checksum of each of its files
        path.write_bytes(archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :])
        refused(path, "cannot be read .*CRC")


def test_archives_that_would_fill_the_memory(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_MAX_WEIGHTS", 10**6)
    path, parts = tmp_path / "m.keras", members(archive)
    for name, most in (("config.json", 2**20), ("model.weights.h5", 10**6)):
        write_members(path, {**parts, name: bytes(10**7)}, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 200_000
        refused(path, f"{name} has more than {most} bytes, far more than a network needs")
    path.write_bytes(parts["model.weights.h5"] + bytes(10**6))
    refused(path, "m.keras has more than 1000000 bytes")


def test_layers_that_announce_more_than_the_file_has(archive, tmp_path):
    """Weights of 360 GB: Keras would allocate them before it sees that the file has others."""
    parts = members(archive)
    config = json.loads(parts["config.json"])
    for entry in config["config"]["layers"]:
        if entry["config"].get("filters", 1) > 1:
            entry["config"]["filters"] = 100_000
    path = write_members(tmp_path / "m.keras", {**parts, "config.json": json.dumps(config)})
    refused(path, r"shape=\(3, 3, 1, 100000\), Received: value.shape=\(3, 3, 1, 16\)")


FETCH = {
    "module": "keras.utils",
    "class_name": "get_file",
    "registered_name": None,
    "config": {"fname": "a", "origin": "file:///etc/passwd", "cache_dir": "."},
}
READ = {
    "module": "keras.layers",
    "class_name": "StringLookup",
    "registered_name": None,
    "config": {"name": "lookup", "vocabulary": "/etc/passwd"},
}


@pytest.mark.parametrize("key", ["layer", "activation", "dtype", "padding", "batch_shape"])
@pytest.mark.parametrize("object", [FETCH, READ], ids=["fetch", "read"])
def test_objects_that_fetch_or_read_are_not_created(key, object, archive, tmp_path, monkeypatch):
    parts = members(archive)
    config = json.loads(parts["config.json"])
    inputs, first = config["config"]["layers"][:2]
    if key == "layer":
        config["config"]["layers"][1] = {**object, "config": {**object["config"], "name": "conv1"}}
    else:
        (inputs if key == "batch_shape" else first)["config"][key] = object
    path = write_members(tmp_path / "m.keras", {**parts, "config.json": json.dumps(config)})
    monkeypatch.chdir(tmp_path)
    refused(path, "m.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_what_training_alone_needs_is_not_created(archive, tmp_path, monkeypatch):
    parts = members(archive)
    config = json.loads(parts["config.json"])
    for entry in config["config"]["layers"][1:]:
        entry["config"] |= {"kernel_initializer": FETCH, "kernel_regularizer": READ, "name": READ}
        entry |= {"build_config": FETCH, "compile_config": {"optimizer": FETCH}}
    path = write_members(tmp_path / "m.keras", {**parts, "config.json": json.dumps(config)})
    monkeypatch.chdir(tmp_path)
    assert read(path).features == (16, 8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_members_that_lead_elsewhere(archive, tmp_path):
    parts = members(archive)
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr = 0o120777 << 16
    (tmp_path / "there.h5").write_bytes(parts["model.weights.h5"])
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", parts["config.json"])
        file.writestr(link, str(tmp_path / "there.h5"))
    refused(path, "cannot be read")
    parts = {"../out": b"", "/tmp/out": b"", "assets/../../out": b"", **parts}
    write_members(path, parts, zipfile.ZIP_DEFLATED)
    assert read(path).features == (16, 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.keras", "there.h5"]


def test_folders_that_are_damaged(archive, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for name, content in members(archive).items():
        (folder / name).write_bytes(content)
    assert read(folder).features == (16, 8, 8)
    weights = folder / "model.weights.h5"
    weights.unlink()
    refused(folder, f"it has no model.weights.h5; {CONVERT}")
    weights.mkdir()
    refused(folder, f"it has no model.weights.h5; {CONVERT}")
    (folder / "config.json").write_bytes(bytes(2**20 + 1))
    refused(folder, "config.json has more than 1048576 bytes")


def change_weights(archive, tmp_path, change):
    """The archive with changes to its HDF5 file."""
    parts = members(archive)
    weights = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file)
    parts["model.weights.h5"] = weights.getvalue()
    return write_members(tmp_path / "m.keras", parts)


def replace(path, **options):
    def change(file):
        del file[path]
        file.create_dataset(path, **options)

    return change


def link(path, target):
    def change(file):
        del file[path]
        file[path] = target

    return change


KERNEL = "layers/conv2d_1/vars/0"
SHAPE = (3, 3, 16, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace(KERNEL, shape=(10**6, 10**6), dtype="f4"), "Not allowed: H5 dataset '0' declares"),
        (
            replace(KERNEL, shape=SHAPE, dtype="f4", external=[("/etc/passwd", 0, 4608)]),
            "Not allowed: H5 file with external Dataset",
        ),
        (replace(KERNEL, shape=SHAPE, dtype=h5py.string_dtype()), "could not convert string"),
        (replace(KERNEL, data=np.full(SHAPE, np.nan, "f4")), "has values that are not finite"),
        (
            link(KERNEL, h5py.SoftLink("/layers/conv2d_3/vars/0")),
            "is a link, which Keras does not",
        ),
        (link(KERNEL, h5py.ExternalLink("/etc/passwd", "/")), "is a link, which Keras does not"),
        (
            link("layers/conv2d_1/vars", h5py.SoftLink("/layers/conv2d_3/vars")),
            "is a link, which Keras does not",
        ),
        (lambda file: file.pop(KERNEL), "'conv2' expected 2 variables, but received 1 "),
        (
            lambda file: file.create_group("layers/conv2d_1/vars/2"),
            "'conv2' expected 2 variables, but received 3 ",
        ),
        (
            lambda file: [file.create_group(f"layers/conv2d/vars/{i}") for i in range(2, 200)],
            "'conv1' expected 2 variables, but received 200 ",
        ),
        (
            lambda file: [file.pop(KERNEL), file.create_group(KERNEL)],
            "expected Dataset, received <class 'h5py._hl.group.Group'>",
        ),
    ],
)
def test_weights_that_are_not_what_they_should_be(change, message, archive, tmp_path):
    refused(change_weights(archive, tmp_path, change), message)


def test_groups_that_lead_in_a_circle(archive, tmp_path):
    """Following them would take for ever."""

    def change(file):
        file["layers/a"] = file["layers/b"] = file["layers"]

    path = change_weights(archive, tmp_path, change)
    assert read(path).features == (16, 8, 8)
    path.write_bytes(members(path.read_bytes())["model.weights.h5"])
    refused(path, "it has a, b where the network has conv2d")


# In a process of its own


def test_the_process_limits_what_it_takes(archive, tmp_path, monkeypatch):
    limits = {}
    monkeypatch.setattr(resource, "setrlimit", lambda which, most: limits.update({which: most}))
    (tmp_path / "m.keras").write_bytes(archive)
    __main__.main("read", tmp_path / "m.keras", tmp_path)
    ours = interop.Weights.load(tmp_path / "weights.npz")
    np.testing.assert_equal(ours, read(tmp_path / "m.keras"))
    assert 2**30 < limits[resource.RLIMIT_DATA][0] <= 2**34
    assert limits[resource.RLIMIT_FSIZE][0] <= 2**31
    assert limits[resource.RLIMIT_CORE][0] == 0
    (tmp_path / "m.keras").write_text("a text")
    with pytest.raises(SystemExit) as end:
        __main__.main("read", tmp_path / "m.keras", tmp_path)
    assert end.value.code == 2
    assert "it is neither a .keras archive nor HDF5" in (tmp_path / "refusal.txt").read_text()


@pytest.fixture
def isolated(monkeypatch):
    monkeypatch.setattr(interop, "_run", run_process)


@pytest.mark.slow
def test_a_file_is_written_in_a_process(isolated, archive, tmp_path):
    interop.write(tmp_path / "m.keras", drawn(SMALL))
    assert (tmp_path / "m.keras").read_bytes() == archive


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "Keras is not installed; 3.15.1 or later is needed"),
        ("3.12.0", "Keras 3.12.0 is installed; 3.15.1 or later is needed"),
    ],
)
def test_without_keras_or_with_an_old_one(
    version, message, isolated, archive, tmp_path, monkeypatch
):
    (tmp_path / "m.keras").write_bytes(archive)

    def installed(name):
        assert name == "keras"
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("importlib.metadata.version", installed)
    message += r': pip install .*\[keras\]"'
    with pytest.raises(cae_jax.UserError, match=message):
        interop.read(tmp_path / "m.keras")
    with pytest.raises(cae_jax.UserError, match=message):
        interop.write(tmp_path / "n.keras", drawn(SMALL))
    assert not (tmp_path / "n.keras").exists()


def test_the_package_is_imported_without_keras():
    code = "import sys, cae_jax.interop.keras; print({'keras', 'h5py', 'jax'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "set()\n"


READ_ALL = """
import pathlib, sys, tempfile
from cae_jax.interop.keras import worker
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        with tempfile.TemporaryDirectory() as scratch:
            print(worker.read(path, pathlib.Path(scratch)).features, flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


def outcomes(paths):
    """What reading files in another process gives; after a crash of HDF5 the next one goes on."""
    lines = []
    while len(lines) < len(paths):
        command = [sys.executable, "-c", READ_ALL, *map(str, paths[len(lines) :])]
        process = subprocess.run(command, capture_output=True, text=True)
        lines += process.stdout.splitlines()
        if process.returncode < 0:
            lines.append(f"{paths[len(lines)]}: signal {-process.returncode}")
        else:
            assert process.returncode == 0, process.stderr
    return lines


@pytest.mark.slow
def test_bytes_changed_at_random(archive, tmp_path):
    """HDF5 has no checksum of its data: what can be read has changed numbers at the most."""
    rng = np.random.default_rng(0)
    old = save(network("conv"), tmp_path / "old.h5").read_bytes()
    contents = [members(archive)["model.weights.h5"], old] * 8
    paths = []
    for number, content in enumerate(contents):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.choice([3, 300])):
            changed[place] = rng.integers(256)
        paths += [tmp_path / f"{number}.h5", tmp_path / f"{number}_changed.h5"]
        paths[-2].write_bytes(content)
        paths[-1].write_bytes(changed)
    lines = outcomes(paths)
    assert lines[::2] == ["(16, 8, 8)"] * len(contents)
    for line, path in zip(lines[1::2], paths[1::2], strict=True):
        assert line == "(16, 8, 8)" or str(path) in line
    assert len(set(lines)) > 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("kill -SEGV $$", "cannot be read .signal 11 ended Keras.; save it again in Keras"),
        ("exec sleep 60", "cannot be read in 0.5 s; save it again in Keras"),
        ("printf 'one line' > $6/refusal.txt; exit 2", "^one line$"),
    ],
)
def test_a_crash_a_stall_or_a_refusal_is_one_line(
    command, message, isolated, tmp_path, monkeypatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{command}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(interop, "_SECONDS", 0.5)
    (tmp_path / "m.h5").touch()
    with pytest.raises(cae_jax.UserError, match=message):
        interop.read(tmp_path / "m.h5")
