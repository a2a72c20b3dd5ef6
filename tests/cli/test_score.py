"""The command score."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax.models import detection
from cae_jax.runs import detectors
from tests.conftest import DENSE
from tests.helpers import assert_fails_in_one_line


@pytest.fixture
def files(tmp_path, test_images):
    """Images like the training's."""
    np.save(tmp_path / "new.npy", test_images[500:532])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_alarms_of_a_run_and_its_detector(copied, files, command, tmp_path, data_dir, monkeypatch):
    flags = ("--alarm-rate", 0.3, "--discovery-rate", 0.9, "--figure", "worst.png")
    first = command("score", copied, "new.npy", "--out", "scores.csv", *flags)
    assert cae_jax.load(copied).detector.neighbors_NxF.shape == (1000, 34)
    _, *lines = first.stdout.splitlines()
    found = rows(tmp_path / "scores.csv")
    assert [row["name"] for row in found] == [f"new[{i}]" for i in range(32)]
    autoencoder = cae_jax.load(copied)
    expected = autoencoder.score(np.load(tmp_path / "new.npy"))
    np.testing.assert_allclose([float(row["score"]) for row in found], expected.score_N, rtol=1e-4)
    np.testing.assert_allclose([float(row["p_value"]) for row in found], expected.p_N, atol=1e-3)
    assert 3 < sum(expected.p_N <= 0.3) < 20
    assert [row["alarm"] for row in found] == [f"{p:d}" for p in expected.p_N <= 0.3]
    assert lines[0] == f"scores.csv: {sum(expected.p_N <= 0.3)} of 32 images raise an alarm"
    discoveries = detection.discoveries(expected.p_N, 0.9)
    assert [row["discovery"] for row in found] == [f"{each:d}" for each in discoveries]
    assert lines[1].startswith(
        f"{sum(discoveries)} are discoveries, of which a share of at most 0.9 is"
    )
    low, high = detection.realised_rates(0.3, 10_000)
    assert f"with 10,000 calibration images it is {low:.2g} to {high:.2g} in 95" in lines[2]
    with Image.open(tmp_path / "worst.png") as figure:
        assert figure.width > 800
    monkeypatch.setattr(detection, "fit", None)
    command("score", copied, "new.npy", "--out", "residual.csv", "--by", "residual")
    expected = autoencoder.score(np.load(tmp_path / "new.npy"), "residual").score_N
    scores = [float(row["score"]) for row in rows(tmp_path / "residual.csv")]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    # After more training it is fitted again.
    cae_jax.fit(dataclasses.replace(DENSE, epochs=3), copied, data_dir=data_dir)
    assert cae_jax.load(copied).detector is None


def test_a_damaged_detector_is_fitted_again(copied, tmp_path):
    autoencoder = cae_jax.load(copied)
    for content in (b"", b"PK\x03\x04", b"x" * 100):
        (copied / detectors.NAME).write_bytes(content)
        assert detectors.read(copied, autoencoder) is None


def test_the_inputs_of_pairs_are_scored(tmp_path, test_images):
    targets, inputs = test_images[:100], 255 - test_images[:100]
    config = dataclasses.replace(DENSE, pairs=("inputs", "targets"), noise="pairs", epochs=1)
    config = dataclasses.replace(config, batch_size=20, train_examples=None, test_examples=None)
    arrays = {"inputs_train": inputs[:60], "inputs_test": inputs[60:]}
    arrays |= {"targets_train": targets[:60], "targets_test": targets[60:]}
    np.savez(tmp_path / "pairs.npz", **arrays)
    config = dataclasses.replace(config, data=str(tmp_path / "pairs.npz"))
    autoencoder = cae_jax.fit(config, tmp_path / "run", data_dir=tmp_path / "data").autoencoder
    run, where = tmp_path / "run", {"data_dir": tmp_path / "data"}
    found = detectors.fit(run, autoencoder, *detectors.images(run, autoencoder.config, **where))
    expected = detection.fit(autoencoder, inputs[:60], inputs[60:])
    np.testing.assert_allclose(found.code_M, expected.code_M, rtol=1e-5)


def test_a_shipped_model_stays_as_it_is(monkeypatch, data_dir):
    kept = []
    monkeypatch.setattr(detectors.np, "savez", lambda *_, **__: kept.append(1))
    run = cae_jax.runs.pretrained.locate("pretrained/simple")
    autoencoder = cae_jax.load(run)
    few = dataclasses.replace(autoencoder.config, train_examples=50, batch_size=50)
    train, test = detectors.images(run, few, data_dir=data_dir)
    assert len(detectors.fit(run, autoencoder, train, test[:50]).neighbors_NxF) == 50
    assert not kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--alarm-rate", 2), "--alarm-rate is 2.0; it takes a number between 0 and 1"),
        (("--discovery-rate", 0), "--discovery-rate is 0.0; it takes"),
        (("--alarm-rate", 1e-5), "which needs 99,999 test images, and the run has 10,000"),
        (("--out", "nowhere/scores.csv"), "give a file in a folder that exists"),
    ],
)
def test_refusals(copied, files, refuse, tmp_path, flags, message):
    process = refuse(
        "score", copied, "new.npy", *(() if "--out" in flags else ("--out", "s.csv")), *flags
    )
    assert_fails_in_one_line(process, message)
    assert not (tmp_path / "s.csv").exists()
