"""Each command as a user gives it, in a new process."""

import contextlib
import json
import os
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image

from cae_jax import history
from tests.conftest import ROOT, SMALL

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
    assert lines[0].startswith("Compiled in ")
    row = history.read(tmp_path / "runs" / "fashion_mnist" / "history.csv")[-1]
    assert lines[-1] == (
        f"Epoch 2/2 - {row.epoch_seconds:.1f}s - {row.images_per_second:.0f} images/s - "
        f"loss: {row.loss:.4f} - val_loss: {row.val_loss:.4f}"
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
def test_bad_flags(script, tmp_path, arguments, message):
    assert_fails_in_one_line(script("train.py", *arguments), message)
    assert list(tmp_path.iterdir()) == []


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
    process = script("evaluate.py", run, run, "--json", "table.json", "--figure", "figure.png")
    assert process.returncode == 0, process.stderr
    row = json.loads((tmp_path / "table.json").read_text())[0]
    cells = [cell.strip() for cell in process.stdout.splitlines()[2].strip("|").split("|")]
    assert cells[:5] == [str(run), "conv", "4,385", "128", f"{row['bce']:.4f}"]
    # Mean squared error and BCE once more by NumPy from the model's own output.
    import cae_jax

    autoencoder = cae_jax.load(run)
    error = autoencoder.reconstruct(test_images) - test_images / 255
    assert row["mse"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert row["psnr"] == pytest.approx(
        (-10 * np.log10((error**2).mean(axis=(1, 2, 3)))).mean(), rel=1e-4
    )
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 800
    assert_fails_in_one_line(script("evaluate.py", "nowhere"), "nowhere is no run")
    assert_fails_in_one_line(script("evaluate.py"), "RUNS")


def test_reconstruct(script, run, tmp_path, test_images):
    Image.fromarray(test_images[0, :, :, 0]).save(tmp_path / "boot.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "colour.png")
    np.save(tmp_path / "two.npy", test_images[1:3])
    process = script("reconstruct.py", run, "boot.png", "two.npy", "--out", "out")
    assert process.returncode == 0, process.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["boot.png", "two-0000.png", "two-0001.png"]
    with Image.open(tmp_path / "out" / "boot.png") as image:
        assert (image.mode, image.size) == ("L", (28, 28))
    refused = script("reconstruct.py", run, "boot.png", "--out", ".")
    assert_fails_in_one_line(refused, "boot.png is one of the pictures; give another --out")
    refused = script("reconstruct.py", run, "boot.png", "colour.png", "--out", "new")
    assert_fails_in_one_line(refused, "colour.png: 30 x 30 pixels of mode RGB")
    assert not (tmp_path / "new").exists()
    assert script("reconstruct.py", run, "colour.png", "--out", "new", "--resize").returncode == 0


def test_tensorflow_is_never_imported(data_dir, tmp_path):
    code = """
import sys, cae_jax
from cae_jax import datasets
datasets.load("fashion_mnist", "test", data_dir=sys.argv[2])  # prepares and reads records
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


def test_curves(script, run, tmp_path):
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
    assert_fails_in_one_line(script("curves.py", "bad.csv"), "bad.csv lacks the numeric columns")
    assert_fails_in_one_line(script("curves.py", "nowhere"), "nowhere cannot be read")
