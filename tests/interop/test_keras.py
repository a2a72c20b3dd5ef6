"""Files exchanged with Keras, Keras itself being the judge; runs made of them."""

import dataclasses
import gzip
import io
import math
import os
import shlex
import shutil
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cae_jax
from cae_jax import cli
from cae_jax.data import Dataset
from cae_jax.data.reader import Reader
from cae_jax.interop import keras as interop
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.ops.backend import XLA
from cae_jax.runs import history
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import init_state, make_run_steps
from tests.conftest import ARCHIVES, DENSE, ROOT, SMALL
from tests.helpers import assert_fails_in_one_line
from tests.interop.test_export import drawn

# Read when Keras is imported; neither TensorFlow nor what a user has set in ~/.keras counts.
os.environ["KERAS_BACKEND"] = "jax"
os.environ["KERAS_HOME"] = os.environ["XDG_CACHE_HOME"]
keras = pytest.importorskip("keras")
layers = keras.layers

from cae_jax.interop.keras import worker  # noqa: E402

read, run_process = interop.read, interop._run
DATA = ROOT / "tests" / "saved" / "keras"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WIDTHS = {"simple": (32,), "deep": (128, 64, 32, 64, 128)}
RELU = {"activation": "relu", "padding": "same"}
SIGMOID = {"activation": "sigmoid", "padding": "same"}


def run_here(mode, path, scratch):
    """What the process does, here: starting Keras takes ten times as long as the rest."""
    if mode == "read":
        worker.read(path, scratch).save(scratch / "weights.npz")
    else:
        worker.write(scratch)


def zeros(self, shape, dtype=None, **options):
    return jnp.asarray(np.zeros(shape, np.float32))


@pytest.fixture(autouse=True, scope="module")
def in_this_process():
    """No process is started, and no program compiled for every shape that Keras draws values of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interop, "_run", run_here)
        patch.setattr(keras.initializers.GlorotUniform, "__call__", zeros)
        yield


@pytest.fixture(autouse=True)
def rank_promotion():
    """Keras relies on it; the project's own tests forbid it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def conv_layers(f1=16, f2=8, f3=8):
    """The tutorial's network as its table has it."""
    return [
        *(layers.Conv2D(f1, 3, **RELU), layers.MaxPooling2D(2, padding="same")),
        *(layers.Conv2D(f2, 3, **RELU), layers.MaxPooling2D(2, padding="same")),
        *(layers.Conv2D(f3, 3, **RELU), layers.MaxPooling2D(2, padding="same")),
        *(layers.Conv2D(f3, 3, **RELU), layers.UpSampling2D(2)),
        *(layers.Conv2D(f2, 3, **RELU), layers.UpSampling2D(2)),
        *(layers.Conv2D(f1, 3, activation="relu"), layers.UpSampling2D(2)),
        layers.Conv2D(1, 3, **SIGMOID),
    ]


def dense_layers(*widths, pixels=784):
    hidden = [layers.Dense(width, activation="relu") for width in widths]
    return [*hidden, layers.Dense(pixels, activation="sigmoid")]


def sequential(parts, shape=(28, 28, 1)):
    return keras.Sequential([keras.Input(shape), *parts])


def functional(parts, shape=(28, 28, 1), name="input_3"):
    x = inputs = keras.Input(shape, name=name)
    for layer in parts:
        x = layer(x)
    return keras.Model(inputs, x)


def network(kind, form=sequential):
    """A network in Keras with random weights, the biases too."""
    shape = (28, 28, 1) if kind == "conv" else (784,)
    parts = conv_layers() if kind == "conv" else dense_layers(*WIDTHS[kind])
    return randomised(form(parts, shape))


def randomised(model):
    rng = np.random.default_rng(7)
    shapes = [weight.shape for weight in model.weights]
    scales = [0.1 if len(shape) == 1 else (2 / np.prod(shape[:-1])) ** 0.5 for shape in shapes]
    model.set_weights(
        [rng.normal(0, scale, shape) for scale, shape in zip(scales, shapes, strict=True)]
    )
    return model


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def flat(params):
    """Arrays in the order of Keras: the layers' own, not that of their names."""
    ordered = sorted(params.items(), key=lambda item: int(item[0].lstrip("convdes")))
    return [np.asarray(layer[which]) for _, layer in ordered for which in ("kernel", "bias")]


def leaves(model):
    """The layers in a model and the models in it, in order."""
    inner = getattr(model, "layers", None)
    return [leaf for layer in inner for leaf in leaves(layer)] if inner else [model]


def assert_same_weights(model, params):
    expected = [array for layer in leaves(model) for array in layer.get_weights()]
    for theirs, ours in zip(expected, flat(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.float32


def build(weights, **changes):
    config = interop.matching(dataclasses.replace(SMALL, **changes), weights)
    return config, autoencoders.build_with(config, weights.params)


def predict(model, images):
    x = (images / 255).astype(np.float32).reshape(-1, *model.input_shape[1:])
    return model.predict_on_batch(x).reshape(images.shape)


def reconstruct(config, model, images):
    return Autoencoder(config, model, backend=XLA).reconstruct(images)


# Sums of at most 784 products, and through all layers: they are rounded in another order.
SAME_OUTPUTS = {"rtol": 0, "atol": 1e-5}

# Into cae-jax


@pytest.mark.parametrize("kind", ["conv", "simple", "deep"])
@pytest.mark.parametrize("form", [sequential, functional])
def test_what_keras_saves_is_read_bit_for_bit(kind, form, tmp_path, test_images):
    network(kind)  # so that the names of the layers go on with other numbers
    model = network(kind, form)
    save(model, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as old, h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs.update(old["model_weights"].attrs)  # weights alone, as Keras 2 wrote them
        for group in old["model_weights"].values():
            old.copy(group, file)
    for name in ("m.keras", "m.h5", "m.weights.h5", "old.h5"):
        whole = name in ("m.keras", "m.h5")
        weights = read(tmp_path / name if name == "old.h5" else save(model, tmp_path / name))
        features = (16, 8, 8) if kind == "conv" else None
        assert (weights.model, weights.features, weights.complete) == (kind, features, whole)
        assert weights.image_shape == ((28, 28, 1) if kind == "conv" and whole else None)
        assert_same_weights(model, weights.params)
    if form is sequential:
        images = test_images[:5]
        ours, theirs = reconstruct(*build(weights), images), predict(model, images)
        assert theirs.std() > 0.01
        np.testing.assert_allclose(ours, theirs, **SAME_OUTPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "h5"])
def test_features_and_what_an_optimizer_keeps(suffix, tmp_path):
    model = randomised(sequential(conv_layers(5, 4, 3)))
    model.compile("adam", "binary_crossentropy")
    model.train_on_batch(np.zeros((1, 28, 28, 1)), np.zeros((1, 28, 28, 1)))
    weights = read(save(model, tmp_path / f"m.{suffix}"))
    assert weights.features == (5, 4, 3)
    assert_same_weights(model, weights.params)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((9, 7, 3), lambda: [layers.Flatten(), *dense_layers(32, pixels=189)]),
        ((189,), lambda: [*dense_layers(32, pixels=189), layers.Reshape((9, 7, 3))]),
        ((9, 7), lambda: [layers.Flatten(), *dense_layers(32, pixels=63), layers.Reshape((9, 7))]),
    ],
)
def test_fully_connected_ones_may_flatten_or_reshape(shape, parts, tmp_path):
    """The file tells the shape by one of its ends."""
    model = randomised(sequential(parts(), shape))
    weights = read(save(model, tmp_path / "m.weights.h5"))
    assert (weights.model, weights.image_shape) == ("simple", None)
    for name in ("m.h5", "m.keras"):
        weights = read(save(model, tmp_path / name))
        assert weights.image_shape == ((9, 7, 1) if len(shape) == 2 else (9, 7, 3))
        assert_same_weights(model, weights.params)
    images = np.random.default_rng(0).integers(0, 256, (5, *weights.image_shape), np.uint8)
    ours = reconstruct(*build(weights, data="arrays"), images)
    np.testing.assert_allclose(ours, predict(model, images), **SAME_OUTPUTS)


@pytest.mark.parametrize(
    ("which", "groups"),
    [
        ("tf213", ["_layer_checkpoint_dependencies"]),
        ("nested", ["layers/functional/layers", "layers/functional_1/layers"]),
    ],
)
def test_files_of_other_arrangements(which, groups):
    """Keras 2.13 numbers with gaps; a model of two models keeps each by itself."""
    expected = []
    with (
        zipfile.ZipFile(DATA / f"{which}.keras") as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):
        for group in groups:
            names = [name for name in file[group] if name.startswith("conv2d")]
            for name in sorted(names, key=lambda name: (len(name), name)):
                expected += [file[f"{group}/{name}/vars/{number}"][()] for number in "01"]
    weights = read(DATA / f"{which}.keras")
    assert (weights.model, weights.features, weights.complete) == ("conv", (16, 8, 8), True)
    np.testing.assert_equal(flat(weights.params), expected)


@pytest.mark.parametrize("version", ["tf212", "tf213", "tf214"])
@pytest.mark.parametrize(
    "name",
    ["nested.keras", "nested.h5", "sequences.keras", "flat.weights.h5", "mixed.keras", "frozen.h5"],
)
def test_files_of_tensorflow(version, name, tmp_path):
    """TensorFlow wrote them; the n-th layer has kernels of n and biases of -n.

    In "frozen" all features are 2, and the second layer of the encoder was not trainable.
    """
    path = tmp_path / name
    path.write_bytes(gzip.decompress((DATA / f"{version}_{name}.gz").read_bytes()))
    weights = read(path)
    features = (2, 2, 2) if name == "frozen.h5" else (3, 2, 2)
    assert (weights.features, weights.complete) == (features, "weights" not in name)
    arrays = flat(weights.params)
    shapes = [(n,) for n in (*features, *features[::-1], 1)]
    assert [array.shape for array in arrays[1::2]] == shapes
    for number, (kernel, bias) in enumerate(zip(arrays[::2], arrays[1::2], strict=True), start=1):
        assert kernel.dtype == bias.dtype == np.float32
        assert (kernel == number).all()
        assert (bias == -number).all()


def models_in_a_model(features=(16, 8, 8)):
    parts = conv_layers(*features)
    return functional([functional(parts[:6]), functional(parts[6:], (4, 4, features[-1]))])


def a_frozen_layer():
    """In the format of Keras 2 it comes last; with equal features nothing else would show it."""
    model = models_in_a_model((8, 8, 8))
    model.layers[1].layers[3].trainable = False
    return model


def sequences_in_a_sequence():
    decoder = keras.Sequential([sequential(conv_layers()[6:], (4, 4, 8))])
    return sequential([keras.Sequential(conv_layers()[:6]), decoder])


def a_model_in_a_sequence():
    return sequential([functional(conv_layers()[:6]), *conv_layers()[6:]])


def with_policy(policy):
    keras.config.set_dtype_policy(policy)
    try:
        return sequential(conv_layers())
    finally:
        keras.config.set_dtype_policy("float32")


MAKES = {
    "models": models_in_a_model,
    "frozen": a_frozen_layer,
    "sequences": sequences_in_a_sequence,
    "model in a sequence": a_model_in_a_sequence,
    "mixed precision": lambda: with_policy("mixed_float16"),
}


@pytest.mark.parametrize("which", MAKES)
def test_models_that_compute_the_same(which, tmp_path):
    model = randomised(MAKES[which]())
    for name in ("m.keras", "m.h5"):
        assert_same_weights(model, read(save(model, tmp_path / name)).params)


def test_a_folder_in_place_of_an_archive(tmp_path):
    model = network("conv")
    model.save(tmp_path / "m", zipped=False)
    weights = read(tmp_path / "m")
    assert weights.complete
    assert_same_weights(model, weights.params)


# Out of cae-jax


# Of 11 x 13 pixels the last convolution pads rows alone, and a row and a column are cropped.
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((28, 28, 1), {"model": "simple"}),
        ((28, 28, 1), {"model": "deep"}),
        ((28, 28, 1), {}),
        pytest.param((28, 28, 1), {"features": (6, 4, 2)}, marks=pytest.mark.slow),
        ((32, 32, 3), {"features": (5,)}),
        ((11, 13, 3), {"features": (4, 3, 2)}),
        pytest.param((47, 61, 3), {"features": (2, 3, 2, 3, 2, 4)}, marks=pytest.mark.slow),
        pytest.param((9, 70, 4), {"features": (3, 2)}, marks=pytest.mark.slow),
        pytest.param((32, 32, 3), {"model": "deep"}, marks=pytest.mark.slow),
        pytest.param((47, 61, 3), {"model": "simple"}, marks=pytest.mark.slow),
    ],
)
def test_every_network_goes_to_keras_and_back(shape, changes, tmp_path):
    config = dataclasses.replace(SMALL, data="arrays", image_shape=shape, **changes)
    autoencoder = drawn(config)
    path = tmp_path / "m.keras"
    interop.write(path, autoencoder)
    model = keras.models.load_model(path)
    params = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    assert {layer.name for layer in model.layers if layer.weights} == {*params}
    assert_same_weights(model, params)
    is_conv = config.model == "conv"
    assert model.input_shape == (None, *(shape if is_conv else [math.prod(shape)]))
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    theirs = predict(model, images)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(theirs, autoencoder.reconstruct(images), rtol=0, atol=2e-5)
    for name, known in (("m.keras", True), ("again.keras", True), ("m.weights.h5", False)):
        back = read(path if name == "m.keras" else save(model, tmp_path / name))
        np.testing.assert_equal(flat(back.params), flat(params))
        features = autoencoder.topology.features or None
        assert (back.model, back.features) == (config.model, features)
        assert back.image_shape == (shape if known and is_conv else None)
        assert back.takes(shape)
        assert not back.takes((*shape[:2], 2))
    content = path.read_bytes()
    interop.write(path, autoencoder)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.h5", "does not end in .keras"),
        ("nowhere/m.keras", r"cannot be written \(there is no folder"),
    ],
)
def test_other_outputs_are_refused(name, message, tmp_path):
    with pytest.raises(cae_jax.UserError, match=message):
        interop.write(tmp_path / name, drawn(SMALL))
    assert list(tmp_path.iterdir()) == []


# Training


@pytest.fixture(scope="module")
def train_images():
    """The first 1,280 training images uint8 [N, 28, 28, 1], read without the code under test."""
    raw = gzip.decompress((ARCHIVES / "train-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw[16:], np.uint8).reshape(-1, 28, 28, 1)[:1280]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "simple", "deep"])
@pytest.mark.parametrize("optimizer", [pytest.param("adadelta", marks=pytest.mark.slow), "adam"])
def test_ten_training_steps_stay_together(kind, optimizer, tmp_path, train_images):
    """The losses fall by 0.04 to 0.09 and stay together to 1e-5, rounding being 1e-7.

    So do all parameters with Adadelta, the lab's optimizer (5e-6 apart at the most). Adam divides
    by the root of the mean squared gradient: a gradient of the size of its own rounding moves a
    parameter as far as any other, which sets 0.2 % of them apart. Its epsilon, which Keras adds
    before the correction of the bias and Optax after it, is chosen too small to matter.
    """
    settings, theirs, exceptions = {
        "adadelta": ({"rho": 0.95, "eps": 1e-7}, keras.optimizers.Adadelta(1.0, 0.95, 1e-7), 0),
        "adam": ({"b2": 0.999, "eps": 1e-12}, keras.optimizers.Adam(1e-3, 0.9, 0.999, 1e-12), 0.01),
    }[optimizer]
    model = network(kind)
    weights = read(save(model, tmp_path / "m.keras"))
    rate = 1.0 if optimizer == "adadelta" else 1e-3
    schedule = {"learning_rate": rate, "schedule": "constant", "warmup_steps": 0}
    config, ours = build(weights, optimizer=optimizer, **settings, **schedule)
    transformation = build_optimizer(config, 10)
    run_steps = make_run_steps(nnx.split(ours, nnx.Param)[0], transformation)
    batches_SxB = np.arange(1280, dtype=np.int32).reshape(10, 128)
    state = run_steps(
        *(init_state(ours, transformation, 10), jnp.asarray(train_images), batches_SxB),
        *(jax.random.key(0), 0, 10),
    )
    model.compile(theirs, "binary_crossentropy")
    images = (train_images / 255).astype(np.float32).reshape(10, 128, *model.input_shape[1:])
    losses = [float(model.train_on_batch(x, x)) for x in images]
    pairs = list(zip(flat(nnx.to_pure_dict(state.params)), model.get_weights(), strict=True))
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
    np.testing.assert_allclose(state.losses_S, losses, rtol=0, atol=1e-5)
    assert losses[0] - losses[-1] > 0.03
    assert (apart > 1e-5).mean() <= exceptions


# As a run


@pytest.fixture(scope="module")
def imported(tmp_path_factory, data_dir):
    """A model of Keras, its weights, and the run that was made of them."""
    folder = tmp_path_factory.mktemp("imported")
    model = network("simple")
    weights = read(save(model, folder / "m.keras"))
    # So slow that an epoch leaves the parameters as they are.
    config = dataclasses.replace(DENSE, optimizer="sgd", learning_rate=1e-12, epochs=1)
    val_loss = interop.import_run(weights, config, folder / "run", data_dir=data_dir)
    return model, weights, config, folder / "run", val_loss


def test_the_run_is_the_model(imported, test_images):
    model, _, _, folder, val_loss = imported
    images = test_images[: SMALL.test_examples]
    expected = predict(model, images)
    for best in (False, True):
        ours = cae_jax.load(folder, best=best).reconstruct(images)
        np.testing.assert_allclose(ours, expected, **SAME_OUTPUTS)
    x = images / 255
    loss = -(x * np.log(expected) + (1 - x) * np.log(1 - expected)).mean()
    assert val_loss == pytest.approx(loss, abs=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".cae-jax",
        "checkpoints",
        "config.json",
    ]


@pytest.mark.slow
def test_many_images_are_evaluated_in_slices(imported, test_images, monkeypatch):
    """Of 2,000 images, to the same bits."""
    _, weights, config, _, _ = imported
    config = dataclasses.replace(config, image_shape=(28, 28, 1))
    model, taken = autoencoders.build_with(config, weights.params), []
    params, read = nnx.state(model, nnx.Param), Reader.read
    monkeypatch.setattr(Reader, "read", lambda *given: taken.append(given[3]) or read(*given))
    images = test_images[:6171]
    whole = interop._evaluated(config, model, params, images)
    monkeypatch.setattr(interop, "_EVALUATED_BYTES", 1)
    assert interop._evaluated(config, model, params, images) == whole
    assert taken == [6171, 2000, 2000, 2171]


def test_training_goes_on_from_the_weights(imported, data_dir, tmp_path, capsys):
    _, weights, config, folder, val_loss = imported
    shutil.copytree(folder, tmp_path / "run")
    result = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert "resumes after step 0" in capsys.readouterr().out
    params = nnx.to_pure_dict(nnx.state(result.autoencoder.model, nnx.Param))
    for ours, theirs in zip(flat(params), flat(weights.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert result.history[0].val_loss == pytest.approx(val_loss, abs=1e-6)


def test_a_run_that_is_there_is_kept(imported, data_dir, tmp_path):
    _, weights, config, folder, _ = imported
    with pytest.raises(cae_jax.UserError, match=r"holds a run; give another directory$"):
        interop.import_run(weights, config, folder, data_dir=data_dir)
    other = dataclasses.replace(config, model="deep")
    with pytest.raises(
        cae_jax.UserError, match=r"are of the network simple and .* has deep; give `config=simple`"
    ):
        interop.import_run(weights, other, tmp_path / "run", data_dir=data_dir)


@pytest.fixture
def photos(monkeypatch):
    """Color images of 9 x 7 pixels as the data of every config that names others than the three."""
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), np.uint8)
    monkeypatch.setattr("cae_jax.data.load", lambda *_, **__: Dataset(images[:30], images[30:]))
    monkeypatch.setattr("cae_jax.data.located", lambda config, **_: config)
    return images


@pytest.mark.slow
def test_a_network_for_images_of_ones_own(photos, tmp_path):
    """Of weights alone the data tell the size."""
    config = dataclasses.replace(SMALL, data="photos", features=(3, 2), batch_size=10)
    interop.write(tmp_path / "m.keras", drawn(dataclasses.replace(config, image_shape=(9, 7, 3))))
    model = keras.models.load_model(tmp_path / "m.keras")
    assert interop.matching(config, read(tmp_path / "m.keras")).image_shape == (9, 7, 3)
    weights = read(save(model, tmp_path / "m.weights.h5"))
    interop.import_run(weights, config, tmp_path / "run")
    loaded = cae_jax.load(tmp_path / "run", backend="xla")
    assert (loaded.config.image_shape, loaded.config.features) == ((9, 7, 3), (3, 2))
    np.testing.assert_allclose(loaded.reconstruct(photos), predict(model, photos), **SAME_OUTPUTS)
    with pytest.raises(
        cae_jax.UserError, match=r"are of .*, and those of fashion_mnist are 28 x 28 x 1"
    ):
        interop.import_run(weights, dataclasses.replace(SMALL, features=(3, 2)), tmp_path / "other")
    photos_of_one_channel = photos[..., :1]
    with pytest.MonkeyPatch.context() as patch:
        gray = Dataset(photos_of_one_channel, photos_of_one_channel)
        patch.setattr("cae_jax.data.load", lambda *_, **__: gray)
        with pytest.raises(cae_jax.UserError, match="those of photos are 9 x 7 x 1; give `data`"):
            interop.import_run(weights, config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_command_takes_the_size_of_the_file(photos, tmp_path, capsys):
    known = dataclasses.replace(SMALL, data="photos", features=(3, 2), image_shape=(9, 7, 3))
    interop.write(tmp_path / "m.keras", drawn(known))
    command = ["import", str(tmp_path / "m.keras"), "--out", str(tmp_path / "run")]
    small = ["--batch-size", "10"]
    cli.main([*command, "--data", "photos", *small])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        "--data photos --image-size 9 7 --channels 3 --features 3 2 --batch-size 10"
    )
    for others, message in (
        (["--data", "photos", "--image-size", "8"], "of 9 x 7 x 3 images; leave --image-size and"),
        ([], "of 9 x 7 x 3 images, and those of fashion_mnist are 28 x 28 x 1; give --data, a"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*command, "--overwrite", *others, *small])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("where", ["runs.checkpoints.Checkpoints.save", "runs.folder.write_config"])
def test_killed_at_any_moment_no_run_starts_from_other_weights(
    where, imported, data_dir, tmp_path, monkeypatch
):
    _, weights, config, folder, val_loss = imported

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(f"cae_jax.{where}", killed)
    with pytest.raises(SystemExit):
        interop.import_run(weights, config, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.undo()
    assert interop.import_run(weights, config, tmp_path / "run", data_dir=data_dir) == val_loss
    ours, theirs = (
        jax.tree.leaves(nnx.state(cae_jax.load(run).model, nnx.Param))
        for run in (tmp_path / "run", folder)
    )
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_import_refuses_in_one_line(refuse, imported, tmp_path):
    (tmp_path / "text.keras").write_text("no archive")
    save(network("simple"), tmp_path / "simple.keras")
    save(network("conv"), tmp_path / "m.keras")
    save(sequential(dense_layers(64), (784,)), tmp_path / "other.keras")
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (("nowhere.keras", "--out", "x"), "nowhere.keras is no file"),
        (("text.keras", "--out", "x"), "text.keras: it is neither a .keras archive nor HDF5"),
        (("other.keras", "--out", "x"), "other.keras: layer 1 (dense"),
        (("simple.keras", "--out", "x"), "give --config simple"),
        (("m.keras", "--out", "x", "--features", 4, 4, 4), "leave them out"),
        (("m.keras", "--out", imported[3]), "holds a run; give another"),
        (("m.keras",), "--out"),
    ):
        assert_fails_in_one_line(refuse("import", *arguments), message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_commands_one_after_the_other(script, tmp_path, test_images):
    model = randomised(sequential(conv_layers(6, 4, 2)))
    save(model, tmp_path / "m.weights.h5")
    small = ("--train-examples", 256, "--test-examples", 100, "--epochs", 1, "--seed", 5)
    process = script("import", "m.weights.h5", "--out", "a run", *small)
    assert process.returncode == 0, process.stderr
    first, second, loss, last = process.stdout.splitlines()
    assert first == "a run: conv with features (6, 4, 2), 745 parameters from m.weights.h5"
    assert model.count_params() == 745
    assert second.startswith("The file has no padding and no activations")
    assert loss.startswith("val_loss: ")
    assert script("evaluate", "a run").returncode == 0
    Image.fromarray(test_images[0, :, :, 0]).save(tmp_path / "boot.png")
    assert script("reconstruct", "a run", "boot.png", "--out", "out").returncode == 0
    assert script("export", "a run", "--format", "keras", "--out", "back.keras").returncode == 0
    back = keras.models.load_model(tmp_path / "back.keras")
    np.testing.assert_equal(back.get_weights(), model.get_weights())
    program, command, *arguments = shlex.split(last.partition(", run ")[2])
    assert (program, command) == ("cae-jax", "train")
    process = script("train", *arguments)
    assert process.returncode == 0, process.stderr
    assert "a run resumes after step 0" in process.stdout
    assert len(history.read(tmp_path / "a run" / "history.csv")) == 1
