"""Each command as a user gives it, in a new process."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax.runs import history
from tests.conftest import CHOICE, ROOT, SMALL

HEADS = ["BCE", "MSE", "PSNR (dB)", "SSIM"]
QUICK = ("--train-examples", 256, "--test-examples", 100, "--epochs", 2)


def assert_fails_in_one_line(process, message):
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.strip().splitlines()) == 1
    assert message in process.stderr


def test_train_resume_and_refusal(script, tmp_path):
    process = script("train.py", *QUICK)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == f"Method {CHOICE.method}: {CHOICE.reason}"
    assert lines[1].startswith("Compiled in ")
    row = history.read(tmp_path / "runs" / "fashion_mnist" / "history.csv")[-1]
    assert lines[-1] == (
        f"Epoch 2/2 - {row.epoch_seconds:.1f}s - {row.images_per_second:.0f} images/s - "
        f"loss: {row.loss:.4f} - val_loss: {row.val_loss:.4f} - val_psnr: {row.val_psnr:.2f}"
    )
    assert process.stderr == ""  # no bar where the output is no terminal, no warning
    again = script("train.py", *QUICK)
    assert again.returncode == 0
    assert "finished after 2 epochs" in again.stdout
    other = script("train.py", *QUICK, "--seed", 3)
    assert_fails_in_one_line(other, "seed (0 there, 3 now)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epoch", 3), "--epoch"),
        (("--epochs", "many"), "--epochs"),
        (("--epochs", 0), "epochs is 0; it takes a whole number of at least 1"),
        (("--optimizer", "lion"), "adadelta"),
        (("--learning-rate", "nan"), "learning_rate is nan"),
        (("--config", "nowhere.py"), "nowhere.py is no file"),
        (("--config",), "--config"),
        (("--features", 16, 8), "--features"),
    ],
)
def test_bad_flags(refuse, tmp_path, arguments, message):
    assert_fails_in_one_line(refuse("train.py", *arguments), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_bad_flag_is_told_in_any_encoding(script, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    process = script("train.py", "--optimizer", "lion")
    assert_fails_in_one_line(process, "train.py: error: invalid choice 'lion'")
    assert "adadelta" in process.stderr


def test_help_shows_every_field(script):
    process = script("train.py", "--help")
    assert process.returncode == 0
    for field in SMALL.__dataclass_fields__:
        assert f"--{field.replace('_', '-')} " in process.stdout
    assert "Peak learning rate" in process.stdout


def test_summary(script):
    process = script("summary.py")
    assert process.returncode == 0
    assert "Total params: 4,385" in process.stdout
    process = script("summary.py", "--config", ROOT / "configs" / "deep.py")
    assert "Total params: 222,384" in process.stdout
    assert_fails_in_one_line(script("summary.py", "--config", "x.py"), "x.py is no file")


def test_evaluate(script, run, tmp_path, test_images):
    process = script("evaluate.py", run, "--json", "table.json", "--figure", "figure.png")
    assert process.returncode == 0, process.stderr
    tables = json.loads((tmp_path / "table.json").read_text())
    (row,) = tables["rows"]
    assert tables["differences"] == []
    heads, _, cells = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in process.stdout.splitlines()
    )
    assert heads == ["", "model", "runs", "parameters", "code", "seconds", *HEADS]
    assert cells[:5] == [str(run), "conv", "1", "4,385", "128"]
    assert cells[8] == "{:.2f} [{:.2f}, {:.2f}]".format(*row["psnr"])
    # Mean squared error and PSNR once more by NumPy from the model's own output.
    error = cae_jax.load(run).reconstruct(test_images) - test_images / 255
    assert row["mse"][0] == pytest.approx((error**2).mean(), rel=1e-4)
    psnr = -10 * np.log10((error**2).mean(axis=(1, 2, 3)))
    assert row["psnr"][0] == pytest.approx(psnr.mean(), rel=1e-4)
    assert row["psnr"][2] - row["psnr"][1] == pytest.approx(2 * 1.96 * psnr.std() / 100, rel=0.1)
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 800


@pytest.mark.slow
def test_evaluate_with_noise(script, run, tmp_path):
    files = ("--figure", "rows.png", "--worst", "worst.png", "--robustness", "curve.png")
    process = script("evaluate.py", run, "--noise", "occlusion", *files)
    assert process.returncode == 0, process.stderr
    lines = [line.split("|")[1].strip() for line in process.stdout.splitlines() if line]
    assert [line for line in lines if line.strip("-")] == [
        "noisy image",
        str(run),
        f"noisy image - {run}",
    ]
    for name in files[1::2]:
        with Image.open(tmp_path / name) as figure:
            assert np.asarray(figure.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "RUNS"),
        (("nowhere",), "nowhere is no run"),
        (("RUN", "--noise", "fog"), "--noise"),
        (("RUN", "--noise", "masking", "--noise-level", 2), "from 0 to 1: fraction of the pixels"),
        (("RUN", "--noise-level", 2), "noise none takes none"),
        (("RUN", "--robustness", "x.png"), "no level for --robustness; give --noise, one of"),
        (("RUN", "--figure", "nowhere/x.png"), "give a file in a folder that exists"),
        (("RUN", "--noise-seed", -1), "noise_seed is -1"),
        (("RUN", "RUN"), "are the same config with the same seed; give one"),
    ],
)
def test_evaluate_refuses(refuse, run, arguments, message):
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    assert_fails_in_one_line(refuse("evaluate.py", *arguments), message)


def test_evaluate_takes_runs_with_the_same_noise_only(refuse, run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    config = json.loads((run / "config.json").read_text()) | {"noise": "mix"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert_fails_in_one_line(
        refuse("evaluate.py", run, "other"),
        "trained with noise mix and none; give equal ones, or --noise",
    )


@pytest.mark.slow
def test_compare(script, tmp_path):
    small = ("--epochs", 1, "--train-examples", 256, "--seeds", 1)
    command = ("benchmarks.study", *small, "--no-baselines", "--page", "page.md")
    process = script(*command)
    assert process.returncode == 0, process.stderr
    text = (tmp_path / "page.md").read_text()
    figures = re.findall(r"\]\((page_\w+\.png)\)", text)
    assert len(figures) == 5
    assert all((tmp_path / figure).exists() for figure in figures)
    again = script(*command)
    assert again.returncode == 0
    assert "Training" not in again.stdout
    assert_fails_in_one_line(
        script("benchmarks.study", "--seeds", 0), "seeds is 0; it takes a whole"
    )
    assert (tmp_path / "page.md").read_text() == text


def test_reconstruct(script, refuse, run, tmp_path, test_images):
    Image.fromarray(test_images[0, :, :, 0]).save(tmp_path / "boot.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "colour.png")
    np.save(tmp_path / "two.npy", test_images[1:3])
    process = script("reconstruct.py", run, "boot.png", "two.npy", "--out", "out")
    assert process.returncode == 0, process.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["boot.png", "two-0000.png", "two-0001.png"]
    with Image.open(tmp_path / "out" / "boot.png") as image:
        assert (image.mode, image.size) == ("L", (28, 28))
    refused = refuse("reconstruct.py", run, "boot.png", "--out", ".")
    assert_fails_in_one_line(refused, "boot.png is one of the pictures; give another --out")
    refused = refuse("reconstruct.py", run, "boot.png", "colour.png", "--out", "new")
    assert_fails_in_one_line(refused, "colour.png: 30 x 30 pixels of mode RGB")
    assert not (tmp_path / "new").exists()
    assert script("reconstruct.py", run, "colour.png", "--out", "new", "--resize").returncode == 0


def test_tensorflow_is_never_imported(data_dir, tmp_path):
    code = """
import sys, cae_jax
from cae_jax.data import store
store.load("fashion_mnist", "test", data_dir=sys.argv[2])  # prepares and reads records
config = cae_jax.TrainConfig(train_examples=128, test_examples=10, epochs=1)
cae_jax.fit(config, sys.argv[3], data_dir=sys.argv[1])
assert "tensorflow" not in sys.modules
"""
    folders = [data_dir, tmp_path / "data", tmp_path / "run"]
    subprocess.run([sys.executable, "-c", code, *map(str, folders)], check=True, timeout=300)


def test_the_bar_shows_in_a_terminal(data_dir, tmp_path):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, ROOT / "scripts" / "train.py", *QUICK]
    command += ["--workdir", tmp_path / "run", "--data-dir", data_dir]
    process = subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while chunk := os.read(ours, 4096):
            output += chunk
    os.close(ours)
    assert process.wait(timeout=300) == 0
    assert b"Epoch 1/2: " in output
    assert b"step/s]" in output


def test_curves(script, refuse, run, tmp_path):
    log = ROOT / "docs" / "lab_log.csv"
    process = script("curves.py", log, run, "--figure", "curves.png")
    assert process.returncode == 0, process.stderr
    first = history.read(run / "history.csv")[0]
    lines = process.stdout.splitlines()
    assert lines[0] == "| epoch | lab_log | small |"
    assert lines[2] == f"| 1 | 0.3205 / 0.3229 | {first.loss:.4f} / {first.val_loss:.4f} |"
    assert lines[-1] == "| 20 | 0.2893 / 0.2894 |  |"
    with Image.open(tmp_path / "curves.png") as figure:
        assert figure.width > 500
    (tmp_path / "bad.csv").write_text("epoch,loss\n1,x\n")
    assert_fails_in_one_line(refuse("curves.py", "bad.csv"), "bad.csv lacks the numeric columns")
    assert_fails_in_one_line(refuse("curves.py", "nowhere"), "nowhere cannot be read")
