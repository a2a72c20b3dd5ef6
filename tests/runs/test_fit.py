"""Whole runs: files, output, resumption, refusals."""

import dataclasses
import json
import shutil
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax.runs import epochs, history
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.fit import _explain_steps
from cae_jax.runs.folder import read_config
from cae_jax.training.noise import build_corruption
from cae_jax.training.step import make_keys
from tests.conftest import DENSE, ROOT, SMALL
from tests.runs.test_reliability import assert_same_end

GOLDEN = ROOT / "tests" / "golden" / "format1"


def test_a_run_leaves_its_files(run):
    assert sorted(path.name for path in run.iterdir()) == [
        ".cae-jax",
        "checkpoints",
        "config.json",
        "environment.json",
        "history.csv",
        "history.png",
        "reconstructions.png",
        "result.json",
        "summary.txt",
        "tensorboard",
    ]
    rows = history.read(run / "history.csv")
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert [row.step for row in rows] == [8, 16, 24]
    for row in rows:
        assert row.images_per_second == pytest.approx(1000 / row.epoch_seconds)
    assert rows[2].loss < rows[1].loss < rows[0].loss < 0.70
    result = json.loads((run / "result.json").read_text())
    assert result["final"] == rows[-1]._asdict()
    assert result["best"] == min(rows, key=lambda row: row.val_loss)._asdict()
    assert result["compile_seconds"] > 0
    assert result["versions"]["jax"] == jax.__version__
    assert {"format": 1, **result["config"]} == json.loads((run / "config.json").read_text())
    assert "Total params: 4,385" in (run / "summary.txt").read_text()
    for name in ("history.png", "reconstructions.png"):
        with Image.open(run / name) as image:
            assert np.asarray(image.convert("L")).std() > 10
    events = next((run / "tensorboard").iterdir()).read_bytes()
    assert all(tag in events for tag in (b"loss", b"val_loss", b"val_psnr", b"images_per_second"))


def test_val_loss_is_that_of_the_saved_parameters(run, test_images):
    logits = cae_jax.load(run).logits(test_images[:300]).astype(np.float64)
    x = test_images[:300] / 255
    bce = (np.logaddexp(0, logits) - x * logits).mean()
    mse = ((1 / (1 + np.exp(-logits)) - x) ** 2).mean(axis=(1, 2, 3))
    row = history.read(run / "history.csv")[-1]
    assert row.val_loss == pytest.approx(bce, rel=1e-5)
    assert row.val_psnr == pytest.approx((-10 * np.log10(mse)).mean(), rel=1e-5)
    assert row.val_psnr_input is None


def test_same_config_same_bits_whatever_the_chunks(run, data_dir, tmp_path):
    cae_jax.fit(SMALL, tmp_path / "run", data_dir=data_dir, chunk_steps=3)
    assert_same_end(tmp_path / "run", run)


def test_chunks_take_a_tenth_of_a_second_to_one(monkeypatch):
    """Steps of 1 ms at first, then of 20 ms."""
    now = 0.0
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: now)

    def chunks(maker, last, step_seconds):
        nonlocal now
        bounds = []
        for start, stop in maker.between(0, last):
            bounds.append((start, stop))
            now += (stop - start) * step_seconds
        return bounds

    maker = epochs.Chunks(None)
    # The last one is shorter than a chunk, and says nothing about the device.
    assert chunks(maker, 210, 1e-3) == [(0, 67), (67, 201), (201, 210)]
    assert chunks(maker, 300, 1e-3) == [(0, 134), (134, 268), (268, 300)]
    assert chunks(maker, 300, 20e-3) == [(0, 134), (134, 201), (201, 234), (234, 267), (267, 300)]
    assert chunks(epochs.Chunks(3), 8, 1e-6) == chunks(epochs.Chunks(3), 8, 9.0)
    assert chunks(epochs.Chunks(3), 8, 9.0) == [(0, 3), (3, 6), (6, 8)]
    assert chunks(epochs.Chunks(None, begin=1), 3, 9.0) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.slow
def test_training_with_noise(data_dir, tmp_path, test_images):
    """The validation noise is the seed's for all epochs and models, and training removes of it."""
    small = dataclasses.replace(SMALL, noise="gaussian", train_examples=5000, epochs=3)
    clean = test_images[:300] / 255
    noisy = np.asarray(
        build_corruption("gaussian")(make_keys(0).test_noise, clean.astype(np.float32))
    )
    psnr_input = (-10 * np.log10(((noisy - clean) ** 2).mean(axis=(1, 2, 3)))).mean()
    for model in ("conv", "simple"):
        config = dataclasses.replace(small, model=model)
        result = cae_jax.fit(config, tmp_path / model, data_dir=data_dir)
        for row in result.history:
            assert row.val_psnr_input == pytest.approx(psnr_input, abs=1e-4)
        error = result.autoencoder.reconstruct(noisy) - clean
        psnr = (-10 * np.log10((error**2).mean(axis=(1, 2, 3)))).mean()
        assert result.history[-1].val_psnr == pytest.approx(psnr, rel=1e-4)
        assert psnr > psnr_input + 3
        written = json.loads((tmp_path / model / "result.json").read_text())
        assert written["final"]["val_psnr_input"] == result.history[-1].val_psnr_input
    with Image.open(tmp_path / "conv" / "reconstructions.png") as image:
        assert image.height > 250  # three rows


@pytest.mark.slow
def test_a_noisy_run_that_broke_off_resumes_exactly(data_dir, tmp_path):
    config = dataclasses.replace(DENSE, noise="gaussian")
    cae_jax.fit(config, tmp_path / "whole", data_dir=data_dir)
    break_off = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, on_epoch=break_off)
    cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, chunk_steps=3)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_another_seed_gives_another_model(dense_run, data_dir, tmp_path):
    other = cae_jax.fit(dataclasses.replace(DENSE, seed=1), tmp_path / "run", data_dir=data_dir)
    assert other.history[0].loss != history.of_run(dense_run)[0].loss


@pytest.mark.parametrize("method", ["save", pytest.param("wait", marks=pytest.mark.slow)])
def test_a_run_that_broke_off_resumes_exactly(run, data_dir, tmp_path, monkeypatch, method):
    """After the history was written; and before the next save waits for the one before."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        where = (Checkpoints, method)
        original, calls = getattr(*where), []

        def break_off(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(*where, break_off)
        with pytest.raises(KeyboardInterrupt):
            cae_jax.fit(SMALL, folder, data_dir=data_dir)
    assert not (folder / "result.json").exists()
    resumed = cae_jax.fit(SMALL, folder, data_dir=data_dir)
    assert_same_end(folder, run)
    assert [row.epoch for row in resumed.history] == [1, 2, 3]


def test_a_finished_run_says_so_and_stays_as_it_is(run, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}
    result = (run / "result.json").read_bytes()
    cae_jax.fit(SMALL, run, data_dir=data_dir)
    assert "finished after 3 epochs" in capsys.readouterr().out
    assert (run / "result.json").read_bytes() == result
    after = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}
    assert after == before


def test_another_config_is_refused_naming_the_keys(run, data_dir):
    config = dataclasses.replace(SMALL, seed=5, learning_rate=0.5)
    with pytest.raises(cae_jax.UserError) as error:
        cae_jax.fit(config, run, data_dir=data_dir)
    assert "learning_rate (0.02 there, 0.5 now), seed (0 there, 5 now)" in str(error.value)
    assert "overwrite" not in str(error.value)  # the checkpoints are intact


def test_a_history_that_lost_rows_is_refused_where_no_checkpoint_keeps_them(tmp_path, data_dir):
    """As in the runs of earlier versions."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    config = read_config(tmp_path / "run")
    (tmp_path / "run" / "history.csv").unlink()
    with pytest.raises(cae_jax.UserError, match=r"history\.csv has epochs \[\] and the newest"):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, backend="matmul")
    header = ",".join(history.Row._fields)
    for text, line in [(f"{header}\n1,x\n", "1,x"), ("epoch,step,loss\n", "epoch,step,loss")]:
        (tmp_path / "run" / "history.csv").write_text(text)
        with pytest.raises(cae_jax.UserError, match=rf"history\.csv has the line '{line}'"):
            cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, backend="matmul")


def test_a_finished_run_that_lost_its_last_checkpoint_is_completed(copied, dense_run, data_dir):
    shutil.rmtree(copied / "checkpoints" / "16")
    again = cae_jax.fit(DENSE, copied, data_dir=data_dir)
    assert_same_end(copied, dense_run)
    result = json.loads((copied / "result.json").read_text())
    assert result["final"]["epoch_seconds"] == again.history[-1].epoch_seconds
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(cae_jax.UserError, match="its checkpoints are gone"):
        cae_jax.fit(DENSE, copied, data_dir=data_dir)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(data_dir, tmp_path):
    config = dataclasses.replace(SMALL, optimizer="sgd", learning_rate=1e30, schedule="constant")
    with pytest.raises(cae_jax.UserError, match=r"epoch 1: step 3 is the first to have a loss"):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "history.csv").exists()


def test_unusable_workdirs_and_batches_are_refused(run, data_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(cae_jax.UserError, match="is a file"):
        cae_jax.fit(SMALL, tmp_path / "file", data_dir=data_dir)
    config = cae_jax.TrainConfig(batch_size=60001)
    with pytest.raises(
        cae_jax.UserError,
        match="there are 60000 training images of fashion_mnist; pass `batch_size=60000`",
    ):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()
    with pytest.raises(cae_jax.UserError, match="`chunk_steps` is 0"):
        cae_jax.fit(SMALL, tmp_path / "run", data_dir=data_dir, chunk_steps=0)


def test_history_survives_a_row_cut_off(tmp_path):
    path = tmp_path / "history.csv"
    rows = [
        history.Row(1, 469, 0.1 + 0.2, 1e-17, 20.5, None, 0, 4.5, 13333.3),
        history.Row(2, 938, 0.1 + 0.2, 1e-17, 20.5, 9.3, 2, 4.5, 13333.3),
    ]
    history.write(path, rows)
    with path.open("a") as file:
        file.write("3,1407,0.29")
    assert history.read(path) == rows
    history.replace(path, rows)
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("steps", "said"), [(499, ["A training of 998 steps is short"]), (500, [])]
)
def test_a_short_training_says_so(caplog, steps, said):
    with caplog.at_level("INFO", "cae_jax"):
        _explain_steps(cae_jax.TrainConfig(epochs=2), steps)
    assert [line.split(":")[0] for line in caplog.messages] == said
