"""More epochs, other weights to begin with, and the environment that a run keeps."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import cae_jax
import cae_jax.data
from cae_jax.config import resolved
from cae_jax.ops import backend, native
from cae_jax.ops.compiler import UnavailableError
from cae_jax.runs.fit import _explain_warmup
from cae_jax.training.optimizer import build_schedule
from tests.conftest import DENSE, SMALL, needs_native
from tests.runs.test_reliability import assert_same_end

# More epochs


@pytest.mark.slow
def test_a_constant_schedule_goes_on_as_if_the_epochs_had_been_there(data_dir, tmp_path):
    short = dataclasses.replace(DENSE, schedule="constant")
    longer = dataclasses.replace(short, epochs=4)
    for folder, configs in (("whole", [longer]), ("in two", [short, longer, longer])):
        for config in configs:
            result = cae_jax.fit(config, tmp_path / folder, data_dir=data_dir)
    assert result.autoencoder.config.restarts == (2,)
    assert_same_end(tmp_path / "in two", tmp_path / "whole")
    assert json.loads((tmp_path / "in two" / "result.json").read_text())["final"]["epoch"] == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warmup_steps": 120}, "took 100 steps, half of the first 2 epochs; with 5 .* takes 120"),
        ({"warmup_steps": 1000}, "took 100 steps, half of the first 2 epochs; with 5 .* takes 250"),
        ({"warmup_steps": 100}, None),
        ({"warmup_steps": 120, "schedule": "cosine"}, None),
        ({"warmup_steps": 120, "restarts": ()}, None),
    ],
)
def test_a_warm_up_that_was_cut_short_is_told(changes, told, capsys):
    """Of 100 steps an epoch: by hand."""
    config = cae_jax.TrainConfig(epochs=5, restarts=(2,), schedule="constant")
    _explain_warmup(dataclasses.replace(config, **changes), 100)
    line = capsys.readouterr().out
    assert re.search(told, line) if told else line == ""


@pytest.mark.slow
def test_a_cosine_starts_again_and_the_run_says_so(copied, data_dir):
    longer = dataclasses.replace(DENSE, epochs=3)
    rows = cae_jax.fit(longer, copied, data_dir=data_dir).history
    assert [row.epoch for row in rows] == [1, 2, 3]
    config = json.loads((copied / "config.json").read_text())
    assert (config["epochs"], config["restarts"]) == (3, [2])
    assert cae_jax.load(copied).config == resolved(dataclasses.replace(longer, restarts=(2,)))
    for more, restarts in ((3, (2,)), (4, (2, 3))):  # again, and more once more
        again = dataclasses.replace(DENSE, epochs=more)
        assert cae_jax.fit(again, copied, data_dir=data_dir).autoencoder.config.restarts == restarts


@pytest.mark.slow
def test_a_second_phase_that_broke_off_resumes_exactly(copied, data_dir, tmp_path):
    longer = dataclasses.replace(DENSE, epochs=4)
    shutil.copytree(copied, tmp_path / "broken")
    cae_jax.fit(longer, copied, data_dir=data_dir)

    def break_off(_):
        raise SystemExit

    with pytest.raises(SystemExit):
        cae_jax.fit(longer, tmp_path / "broken", data_dir=data_dir, on_epoch=break_off)
    cae_jax.fit(longer, tmp_path / "broken", data_dir=data_dir)
    assert_same_end(tmp_path / "broken", copied)


def test_the_schedule_of_two_phases_is_that_of_one_twice():
    """By Optax's own schedules of each phase: 100 steps an epoch, warm-up capped at a half."""
    config = cae_jax.TrainConfig(epochs=5, restarts=(2,), warmup_steps=120, learning_rate=0.5)
    ours = build_schedule(config, 500)
    first = optax.warmup_cosine_decay_schedule(0.0, 0.5, 100, 200)
    second = optax.warmup_cosine_decay_schedule(0.0, 0.5, 120, 300)
    for step in (0, 50, 100, 150, 199):
        assert float(ours(step)) == pytest.approx(float(first(step)), abs=1e-6)
    for step in (200, 250, 320, 400, 499, 500):
        assert float(ours(step)) == pytest.approx(float(second(step - 200)), abs=1e-6)


@pytest.mark.parametrize("restarts", [(0,), (5,), (3, 2), (2, 2), (1.5,), 3])
def test_restarts_that_are_none_are_refused(restarts):
    with pytest.raises(cae_jax.UserError, match="`restarts` is"):
        cae_jax.TrainConfig(epochs=5, restarts=restarts)


def test_an_unfinished_run_and_other_changes_are_refused_with_the_ways(copied, data_dir):
    for changes in ({"epochs": 4, "seed": 1}, {"epochs": 1}, {"learning_rate": 1.0}):
        with pytest.raises(cae_jax.UserError) as error:
            cae_jax.fit(dataclasses.replace(DENSE, **changes), copied, data_dir=data_dir)
        assert "the run itself takes more `epochs` alone" in str(error.value)
        assert f"`start_from='{copied}'`" in str(error.value)
    (copied / "result.json").unlink()
    with pytest.raises(cae_jax.UserError, match="more `epochs` alone once it is finished"):
        cae_jax.fit(dataclasses.replace(DENSE, epochs=4), copied, data_dir=data_dir)


# Other weights


def test_a_run_begins_with_the_weights_of_another(dense_run, data_dir, tmp_path):
    config = dataclasses.replace(DENSE, optimizer="sgd", learning_rate=1e-12, epochs=1, seed=7)
    result = cae_jax.fit(config, tmp_path / "run", start_from=dense_run, data_dir=data_dir)
    parameters = (each.params for each in (result.autoencoder, cae_jax.load(dense_run)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *parameters)
    assert [row.epoch for row in result.history] == [1]


@pytest.mark.slow
def test_whoever_resumes_need_not_name_the_origin(dense_run, data_dir, tmp_path, monkeypatch):
    config = dataclasses.replace(DENSE, seed=7)
    cae_jax.fit(config, tmp_path / "whole", start_from=dense_run, data_dir=data_dir)
    with monkeypatch.context() as patch:
        patch.setattr("cae_jax.runs.fit.run_epochs", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            cae_jax.fit(config, tmp_path / "run", start_from=dense_run, data_dir=data_dir)
    cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_weights_of_another_network_are_refused(dense_run, data_dir, tmp_path):
    config = dataclasses.replace(DENSE, model="deep")
    with pytest.raises(cae_jax.UserError, match=r"has the model simple .* give a run of deep"):
        cae_jax.fit(config, tmp_path / "run", start_from=dense_run, data_dir=data_dir)
    assert not (tmp_path / "run").exists()


# The environment


@pytest.mark.slow
@needs_native
def test_a_run_keeps_its_backend(data_dir, tmp_path, monkeypatch, capsys):
    """Begun without a compiler, resumed with one."""
    folder, original = tmp_path / "run", native.Kernel
    short = dataclasses.replace(SMALL, epochs=1, schedule="constant")
    longer = dataclasses.replace(short, epochs=2)

    def unavailable(*_):
        raise UnavailableError("the compiler was killed")

    monkeypatch.setattr(backend.native, "Kernel", unavailable)
    cae_jax.fit(longer, tmp_path / "whole", data_dir=data_dir)
    cae_jax.fit(short, folder, data_dir=data_dir)
    monkeypatch.setattr(backend.native, "Kernel", original)
    cae_jax.fit(longer, folder, data_dir=data_dir)
    assert capsys.readouterr().err == ""
    assert_same_end(folder, tmp_path / "whole")
    # By name it is changed, with a word; then the other one is kept, and missed where it is gone.
    more = dataclasses.replace(longer, epochs=3)
    cae_jax.fit(more, folder, data_dir=data_dir, backend="native")
    assert "in another environment (backend matmul -> native)" in capsys.readouterr().err
    monkeypatch.setattr(backend.native, "Kernel", unavailable)
    more = dataclasses.replace(longer, epochs=4)
    with pytest.raises(cae_jax.UserError, match=r"by the backend native so far: .*was killed"):
        cae_jax.fit(more, folder, data_dir=data_dir)
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_a_change_of_the_environment_is_logged(copied, data_dir, capsys):
    path = copied / "environment.json"
    values = json.loads(path.read_text())
    assert values["jax"] == jax.__version__
    path.write_text(json.dumps({**values, "jax": "0.1", "jax_threefry_partitionable": "False"}))
    cae_jax.fit(dataclasses.replace(DENSE, epochs=3), copied, data_dir=data_dir)
    err = capsys.readouterr().err
    assert f"jax 0.1 -> {jax.__version__}" in err
    assert "jax_threefry_partitionable False -> True" in err
    assert json.loads(path.read_text()) == values
    for damaged in ("", "[]", "{}", '{"backend": "natove"}', "[" * 9000):
        path.write_text(damaged)
        cae_jax.fit(dataclasses.replace(DENSE, epochs=3), copied, data_dir=data_dir)


def test_the_generator_of_random_numbers_is_not_the_users(dense_run, data_dir, tmp_path):
    with jax.default_prng_impl("rbg"):
        cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir)
    assert_same_end(tmp_path / "run", dense_run)


# The caller's own images and code


def test_arrays_are_trained_on(data_dir, tmp_path, dense_run):
    """As the same images from the data set, to the same bits."""
    train, _ = cae_jax.data.load_split(DENSE, "train", data_dir=data_dir)
    test, _ = cae_jax.data.load_split(DENSE, "test", data_dir=data_dir)
    folder = tmp_path / "run"
    config = dataclasses.replace(DENSE, train_examples=None, test_examples=None)
    result = cae_jax.fit(config, folder, images=(train[:1000], test[:300]))
    assert_same_end(folder, dense_run)
    cae_jax.fit(config, folder, images=(train[:1000], test[:300]))
    more = dataclasses.replace(config, epochs=3)
    with pytest.raises(cae_jax.UserError, match="began with other images than"):
        cae_jax.fit(more, folder, images=(train[1000:2000], test[:300]))
    with pytest.raises(
        cae_jax.UserError, match="the images were arrays, which no file holds; save"
    ):
        cae_jax.data.load(result.autoencoder.config)
    assert len(cae_jax.fit(more, folder, images=(train[:1000], test[:300])).history) == 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((5, 28, 28, 1), np.int32)] * 2, "the array of training images is of type int32"),
        ([np.zeros((5, 28, 28, 2), np.uint8)] * 2, "shape [5, 28, 28, 2]; images take [N, H, W]"),
        ([np.zeros((5, 3, 28, 1), np.uint8)] * 2, "has 3 x 28 pixels; images take at least 4 x"),
        ([np.zeros((0, 28, 28, 1), np.uint8)] * 2, "[0, 28, 28, 1], which holds no images"),
        ([np.zeros((5, 1, 28, 28), np.uint8)] * 2, "which looks like channels first"),
        ([np.full((5, 28, 28), np.nan)] * 2, "[nan, nan]; images take finite ones in [0, 1]; repl"),
        ([np.full((5, 28, 28), -1.0)] * 2, "[-1, -1]; images take finite ones in [0, 1]; pass"),
        (np.zeros((5, 28, 28), np.uint8), "`images` takes two arrays, of training and of test"),
        ([np.zeros((5, 8, 8)), np.zeros((5, 9, 8))], "it takes one size and number of channels"),
        ([[np.zeros((8, 8)), np.zeros((8, 9))]] * 2, "has images of several shapes"),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(tmp_path, images, message):
    with pytest.raises(cae_jax.UserError) as error:
        cae_jax.fit(DENSE, tmp_path / "run", images=images)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_arrays_are_converted_as_those_of_a_file():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    config = dataclasses.replace(DENSE, batch_size=2, train_examples=None, test_examples=None)
    for images in (pixels, pixels / 255, [*pixels], pixels.astype(np.uint16) * 257):
        train, test, *_ = cae_jax.data.of_arrays(config, (images, images[:2]))
        np.testing.assert_array_equal(train, pixels[..., None])
        np.testing.assert_array_equal(test, pixels[:2, ..., None])
    train, *_ = cae_jax.data.of_arrays(config, (pixels > 99, pixels > 99))
    np.testing.assert_array_equal(train[..., 0], np.where(pixels > 99, 255, 0))
    with pytest.raises(cae_jax.UserError, match="which are not resized to the config's `image_si"):
        cae_jax.data.of_arrays(dataclasses.replace(config, image_size=(9, 8)), (pixels, pixels))


def test_an_error_of_the_users_function_is_not_a_full_disk(data_dir, tmp_path):
    def on_epoch(_):
        raise FileNotFoundError("no such plot")

    with pytest.raises(FileNotFoundError, match="no such plot"):
        cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir, on_epoch=on_epoch)


def test_a_tilde_is_the_home(copied, data_dir, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(copied.parent))
    cae_jax.fit(DENSE, "~/run", data_dir=data_dir)
    assert "is finished after 2 epochs" in capsys.readouterr().out
    assert not Path("~").exists()
    cae_jax.load("~/run")


def test_a_change_of_threads_is_a_change_of_the_environment_for_xla_alone(
    tmp_path, data_dir, monkeypatch, capsys
):
    for name, told in (("xla", "(threads 9 -> 11)"), ("matmul", "")):
        for epochs, threads in ((1, "9"), (2, "11")):  # more than the devices of the tests
            monkeypatch.setenv("NPROC", threads)
            config = dataclasses.replace(SMALL, features=(2,), epochs=epochs)
            cae_jax.fit(config, tmp_path / name, data_dir=data_dir, backend=name)
        assert told in (messages := capsys.readouterr().err)
        assert ("in another environment" in messages) == bool(told)
