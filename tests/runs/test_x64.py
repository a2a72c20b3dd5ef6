"""With `jax_enable_x64` everything computes in float32 as without it."""

import jax
import numpy as np
import pytest

import cae_jax
from cae_jax import cli
from cae_jax.config import NOISES
from cae_jax.training.noise import build_corruption
from tests.conftest import SMALL
from tests.runs.test_reliability import assert_same_end


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.slow
def test_training_gives_the_same_bits(run, data_dir, tmp_path, x64):
    cae_jax.fit(SMALL, tmp_path / "run", data_dir=data_dir)
    assert_same_end(tmp_path / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["mix", *NOISES])
def test_noise_is_drawn_in_float32_and_has_the_same_bits(noise):
    corrupt = build_corruption(noise, 30.0 if noise == "poisson" else None)
    assert corrupt is not None
    images = np.full((9, 28, 28, 1), 0.25, np.float32)
    without = corrupt(jax.random.key(0), images)
    jax.config.update("jax_enable_x64", True)
    try:
        drawn = corrupt(jax.random.key(0), images)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, without)


def test_inference_gives_float32(run, x64):
    images = np.zeros((3, 28, 28, 1), np.uint8)
    autoencoder = cae_jax.load(run)
    codes = autoencoder.encode(images)
    outputs = (codes, autoencoder.decode(codes), autoencoder.reconstruct(images))
    assert [output.dtype for output in outputs] == [np.float32] * 3


@pytest.mark.slow
def test_evaluation_gives_the_same_table(run, data_dir, x64, capsys):
    command = ["evaluate", str(run), "--data-dir", str(data_dir), "--noise", "mix"]
    tables = []
    for enabled in (True, False):
        jax.config.update("jax_enable_x64", enabled)
        cli.main(command)
        lines = capsys.readouterr().out.splitlines()
        tables.append([[*line.split("|")[:6], *line.split("|")[7:]] for line in lines])
    assert tables[0] == tables[1]  # but for the seconds
    assert len(tables[0]) > 4
