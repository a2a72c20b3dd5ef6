"""JAX settings of other code bases change no bit; a fork is refused."""

import contextlib
import dataclasses
import os
import signal
import warnings

import jax
import numpy as np
import pytest

import cae_jax
from cae_jax import cli
from cae_jax.cli.configs import config_names, load_config
from cae_jax.config import NOISES
from cae_jax.interop import export
from cae_jax.training.noise import build_corruption
from tests.runs.test_reliability import assert_same_end

SETTINGS = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
}
DENSE = cae_jax.TrainConfig(model="simple")
CASES = {
    **{f"config {name}": load_config(name) for name in config_names()},
    **{f"noise {noise}": dataclasses.replace(DENSE, noise=noise) for noise in (*NOISES, "mix")},
    **{
        f"optimizer {name}": dataclasses.replace(DENSE, optimizer=name, on_nan="skip")
        for name in ("soap", "adam", "nadam", "adamw", "adadelta", "sgd")
    },
}


@contextlib.contextmanager
def theirs(*names):
    """Changes settings for all threads, as environment variables do."""
    before = {name: jax.config.values[name] for name in names}
    for name in names:
        jax.config.update(name, SETTINGS[name])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def small(config):
    changes = {"train_examples": None, "test_examples": None, "epochs": 1, "batch_size": 40}
    return dataclasses.replace(config, **changes)


def images_of(config):
    shape = (*(config.image_size or (28, 28)), 1 if config.channels == "auto" else config.channels)
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (n, *shape), np.uint8) for n in (100, 20))


def trained(config, folder):
    cae_jax.fit(small(config), folder, images=images_of(config))
    return folder


def trained_group(configs, folder):
    small_configs = list(map(small, configs))
    cae_jax.fit_population(small_configs, folder, images=images_of(DENSE), members_per_program=2)
    return folder


@pytest.mark.slow
def test_no_setting_changes_a_bit(tmp_path):
    """Callbacks of a user are called under the same settings."""
    config = dataclasses.replace(DENSE, optimizer="adam")
    expected = trained(config, tmp_path / "ours")
    types, found = [], tmp_path / "theirs"

    def called(_):
        types.append(jax.numpy.ones(1).dtype)

    with theirs(*SETTINGS):
        images = images_of(config)
        cae_jax.fit(small(config), found, images=images, on_epoch=called, on_chunk=called)
    assert set(types) == {np.dtype("float32")}
    assert_same_end(found, expected)
    assert (found / "environment.json").read_text() == (expected / "environment.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_setting_changes_no_bit(tmp_path, setting):
    expected = trained(DENSE, tmp_path / "ours")
    with theirs(setting):
        found = trained(DENSE, tmp_path / "theirs")
    assert_same_end(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_setting_changes_the_bits_of_any_recipe(tmp_path, case):
    expected = trained(CASES[case], tmp_path / "ours")
    with theirs(*SETTINGS):
        found = trained(CASES[case], tmp_path / "theirs")
    assert_same_end(found, expected)


@pytest.mark.slow
def test_no_setting_changes_the_bits_of_a_group(tmp_path):
    configs = [dataclasses.replace(DENSE, seed=seed) for seed in (0, 1)]
    expected = trained_group(configs, tmp_path / "ours")
    with theirs(*SETTINGS):
        found = trained_group(configs, tmp_path / "theirs")
    for name in ("seed=0", "seed=1"):
        assert_same_end(found / name, expected / name)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["mix", *NOISES])
def test_noise_is_drawn_in_float32_and_has_the_same_bits(noise):
    corrupt = build_corruption(noise, 30.0 if noise == "poisson" else None)
    assert corrupt is not None
    images = np.full((9, 28, 28, 1), 0.25, np.float32)
    without = corrupt(jax.random.key(0), images)
    with theirs("jax_enable_x64"):
        drawn = corrupt(jax.random.key(0), images)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, without)


def test_inference_and_exports_are_the_same(dense_run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)

    def use(name):
        autoencoder = cae_jax.load(dense_run)
        codes = autoencoder.encode(images)
        export.write(tmp_path / name, autoencoder, "stablehlo")
        arrays = (codes, autoencoder.decode(codes), autoencoder.reconstruct(images))
        return [(array.dtype, array.tobytes()) for array in arrays]

    expected = use("ours")
    with theirs(*SETTINGS):
        assert use("theirs") == expected
    assert expected[0][0] == np.float32
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


@pytest.mark.slow
def test_evaluation_gives_the_same_table(run, data_dir, capsys):
    command = ["evaluate", str(run), "--data-dir", str(data_dir), "--noise", "mix"]
    tables = []
    for names in ((), ("jax_enable_x64",)):
        with theirs(*names):
            cli.main(command)
        lines = capsys.readouterr().out.splitlines()
        tables.append([[*line.split("|")[:6], *line.split("|")[7:]] for line in lines])
    assert tables[0] == tables[1]  # but for the seconds
    assert len(tables[0]) > 4


def test_variables_do_not_reach_the_commands(monkeypatch, capsys):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name.upper(), str(value))
    with pytest.raises(SystemExit):
        cli.main(["evaluate"])
    assert not {name.upper() for name in SETTINGS} & os.environ.keys()
    assert "no RUNS given" in capsys.readouterr().err


def test_a_fork_of_a_process_with_a_model_is_refused_in_one_line(dense_run):
    images = np.zeros((1, 28, 28), np.uint8)
    autoencoder = cae_jax.load(dense_run)
    autoencoder.reconstruct(images)
    calls = (
        lambda: autoencoder.reconstruct(images),
        lambda: cae_jax.load(dense_run),
        lambda: cae_jax.fit(cae_jax.TrainConfig(), "never"),
    )
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Python and JAX, of the fork itself
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # a hang
        for call in calls:
            try:
                call()
            except cae_jax.UserError as error:
                os.write(writing, f"{error}\n".encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    lines = os.read(reading, 10_000).decode().splitlines()
    os.close(reading)
    assert len(lines) == len(calls)
    assert all("this process is a fork of one that has used JAX" in line for line in lines)
