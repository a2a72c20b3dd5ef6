"""Damage, full disks, missing rights, two trainers, not-a-number: one line, and nothing lost."""

import dataclasses
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import cae_jax
from cae_jax import atomic
from cae_jax.runs import history, manifest
from cae_jax.runs.folder import open_run
from cae_jax.training import step
from cae_jax.training.step import epoch_batches, make_keys
from tests.conftest import DENSE, SMALL
from tests.runs.test_reliability import TRAIN_SMALL, assert_same_end, finish, start

SMALL_COMMAND = (*TRAIN_SMALL, "--epochs", 3)


def steps(folder):
    """Of the checkpoints; a save that failed may leave other names, which the next start clears."""
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def damage(folder, step):
    path = next((folder / "checkpoints" / str(step) / "params").rglob("d/*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


# Damaged checkpoints


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    copied, dense_run, data_dir, capsys
):
    path = damage(copied, 16)
    loaded = cae_jax.load(copied)
    assert f"{path} has changed: taking step 8 instead" in capsys.readouterr().err
    codes = np.ones((1, 32), np.float32)
    assert (loaded.decode(codes) != cae_jax.load(dense_run).decode(codes)).any()
    cae_jax.fit(DENSE, copied, data_dir=data_dir)
    moved = f"moved to {copied / 'damaged' / '16-0'}, resuming after step 8"
    assert f"{path} has changed: {moved}" in capsys.readouterr().err
    assert_same_end(copied, dense_run)
    assert steps(copied) == [8, 16]


def test_with_no_intact_checkpoint_nothing_is_overwritten(copied, data_dir):
    paths = [damage(copied, step) for step in steps(copied)]
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    for call in (cae_jax.load, lambda folder: cae_jax.fit(DENSE, folder, data_dir=data_dir)):
        with pytest.raises(cae_jax.UserError, match=r"no checkpoint .* is intact") as error:
            call(copied)
        assert all(str(path) in str(error.value) for path in paths)
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    lock = copied / ".cae-jax"
    assert {**after, lock: b""} == {**before, lock: b""}


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"features": (4, 8, 8)}])
def test_a_config_edited_by_hand_is_refused(run, data_dir, tmp_path, changes):
    folder, config = tmp_path / "run", dataclasses.replace(SMALL, **changes)
    shutil.copytree(run, folder)
    atomic.write_json(folder / "config.json", {"format": 1, **cae_jax.config.to_dict(config)})
    for call in (cae_jax.load, functools.partial(cae_jax.fit, config, data_dir=data_dir)):
        with pytest.raises(cae_jax.UserError, match=rf"another config .*{next(iter(changes))} \("):
            call(folder, backend="matmul")  # without compiling the native kernel


def test_a_run_of_a_later_version_is_refused(copied):
    path = copied / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2, "new": 3'))
    with pytest.raises(cae_jax.UserError, match="has format 2 and this version reads up to 1; upd"):
        cae_jax.load(copied)


# Disks and rights


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
os.execv(sys.executable, sys.argv[1:])
"""


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(dense_run, data_dir, tmp_path):
    """The parameters take 204 kB, and with Adam's means 612 kB."""
    command = (*TRAIN_SMALL, "--model", "simple", "--epochs", 2)
    folder = tmp_path / "run"
    # JAX would leave half an entry in the cache that the tests share.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    limited = (sys.executable, "-c", LIMITED, *command)
    process = start(folder, data_dir, *limited, env=environment)
    code, _, err = finish(process)
    assert code == 2
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert f"checkpoint {folder}/checkpoints/8 cannot be written (File too large)" in line
    assert "run again to resume" in line
    assert steps(folder) == []
    code, _, err = finish(start(folder, data_dir, *command))
    assert code == 0, err
    assert_same_end(folder, dense_run)
    assert all(path.name.isdecimal() for path in (folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_full_disk(run, data_dir, tmp_path):
    """A real one, of memory; room is made and the same command goes on."""
    driver = """
import pathlib, shutil, subprocess, sys
disk, copy = map(pathlib.Path, sys.argv[1:3])
command = [*sys.argv[3:], "--workdir", str(disk / "run")]
filler = disk / "filler"
filler.write_bytes(bytes(200_000))  # of 400 kB
failed = subprocess.run(command, capture_output=True, text=True)
print(failed.stderr, failed.returncode, sep="", flush=True)
steps = (disk / "run" / "checkpoints").iterdir()
print(sorted(path.name for path in steps if path.name.isdecimal()), flush=True)
filler.unlink()
subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
shutil.copytree(disk / "run", copy)
"""
    inner = [sys.executable, "-c", driver, str(tmp_path / "disk"), str(tmp_path / "copy")]
    inner += [*map(str, SMALL_COMMAND), "--data-dir", str(data_dir)]
    script = 'mkdir "$0"; mount -t tmpfs -o size=400k disk "$0" || exit 77; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, str(tmp_path / "disk"), *inner]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if process.returncode == 77 or "unshare" in process.stderr:
        pytest.skip(f"no disk of memory can be mounted here: {process.stderr.strip()}")
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stdout
    *_, error, code, left = process.stdout.splitlines()
    assert code == "2"
    assert "cannot be written (No space left on device)" in error
    assert left in ("[]", "['8']", "['8', '16']")
    assert_same_end(tmp_path / "copy", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call"),  # of the second epoch
    [((history, "replace"), 3), ((history.Events, "add"), 2), ((manifest, "write"), 2)],
)
def test_whatever_cannot_be_written_the_same_command_goes_on(
    where, call, run, data_dir, tmp_path, monkeypatch
):
    folder, original, calls = tmp_path / "run", getattr(*where), []

    def full(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(*where, full)
    with pytest.raises(cae_jax.UserError, match=r"cannot be .*No space left.*run again to resume"):
        cae_jax.fit(SMALL, folder, data_dir=data_dir)
    assert steps(folder) == [8]
    monkeypatch.undo()
    cae_jax.fit(SMALL, folder, data_dir=data_dir)
    assert_same_end(folder, run)


def test_a_folder_without_the_right_to_write(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    me = os.geteuid()
    try:
        if me == 0:  # who may write anywhere
            os.seteuid(65534)
        with (
            pytest.raises(cae_jax.UserError, match=r"cannot be written .*Permission denied"),
            open_run(tmp_path / "closed" / "run", SMALL, overwrite=False),
        ):
            raise AssertionError("it was opened")
    finally:
        os.seteuid(me)
    assert list((tmp_path / "closed").iterdir()) == []


# Two trainers


def test_a_second_trainer_is_refused_and_a_dead_one_does_not_count(copied, data_dir):
    # Whoever died has not tidied up.
    (copied / ".cae-jax").write_text("cae-jax run 1\nprocess 1 on another host\n")
    code = """
import sys, pathlib, time
from cae_jax.runs.folder import open_run, read_config
with open_run(pathlib.Path(sys.argv[1]), read_config(pathlib.Path(sys.argv[1])),
              overwrite=False):
    print("open", flush=True)
    time.sleep(300)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, copied], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        first = f"process {holder.pid} on {socket.gethostname()} trains in {copied}"
        for overwrite in (False, True):
            with pytest.raises(cae_jax.UserError, match=first):
                cae_jax.fit(DENSE, copied, data_dir=data_dir, overwrite=overwrite)
        assert steps(copied) == [8, 16]
        cae_jax.load(copied)  # readers are welcome
        holder.kill()
    cae_jax.fit(DENSE, copied, data_dir=data_dir)


# Not-a-number


@pytest.fixture
def poison(monkeypatch, data_dir):
    """Makes the loss or the gradient of every batch with certain training images infinite."""
    images, _ = cae_jax.data.load_split(cae_jax.TrainConfig(), "train", data_dir=data_dir)

    def plan(*places, gradient=False):
        make_loss = step.make_loss
        bad = jnp.asarray(images[list(places)])

        def make_poisoned_loss(graphdef, backend, kind, rate):
            loss = make_loss(graphdef, backend, kind, rate)

            def poisoned(params, inputs, targets, weights_N):
                there = (targets[:, None] == bad[None]).all(axis=(2, 3, 4)).any()
                value = loss(params, inputs, targets, weights_N)
                # The square root has the value 0 and an infinite derivative at 0.
                root = jnp.sqrt(jnp.where(there, 0 * value, 1.0)) - jnp.where(there, 0.0, 1.0)
                return value + (root if gradient else jnp.where(there, jnp.inf, 0.0))

            return poisoned

        monkeypatch.setattr(step, "make_loss", make_poisoned_loss)

    return plan


def step_of(image, epoch):
    """The step of an epoch, counted from 1, that takes an image."""
    batches = epoch_batches(make_keys(0).order, epoch, examples=1000, batch_size=128)
    return int(np.argwhere(np.asarray(batches) == image)[0, 0]) + 1


@pytest.mark.parametrize("gradient", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_number_that_is_not_finite_stops_the_run_there(
    gradient, dense_run, data_dir, tmp_path, poison, monkeypatch
):
    folder = tmp_path / "run"
    interrupt = lambda _: signal.raise_signal(signal.SIGINT)  # noqa: E731
    cae_jax.fit(DENSE, folder, data_dir=data_dir, on_epoch=interrupt)
    poison(17, gradient=gradient)
    step = 8 + step_of(17, 2)
    with pytest.raises(cae_jax.UserError) as error:
        cae_jax.fit(DENSE, folder, data_dir=data_dir)
    text = str(error.value)
    assert text.startswith(f"epoch 2: step {step} is the first to have a loss or gradient")
    assert f"{folder} keeps its last good checkpoint, step 8; lower `learning_rate`" in text
    assert "`on_nan='skip'`" in text
    assert "overwrite" not in text  # the checkpoint is intact
    assert steps(folder) == [8]
    assert [row.epoch for row in history.read(folder / "history.csv")] == [1]
    monkeypatch.undo()
    cae_jax.fit(DENSE, folder, data_dir=data_dir)  # the cause is gone
    assert_same_end(folder, dense_run)


def test_skip_leaves_those_updates_out_and_counts_them(data_dir, tmp_path, poison, capsys):
    poison(17)
    poison(40, gradient=True)
    assert all(step_of(17, epoch) != step_of(40, epoch) for epoch in (1, 2, 3))
    changes = {"on_nan": "skip", "schedule": "constant", "warmup_steps": 0, "epochs": 3}
    config = dataclasses.replace(DENSE, **changes)
    result = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert [row.skipped for row in result.history] == [2, 2, 2]
    assert capsys.readouterr().out.count("skipped: 2") == 3
    losses = [row.loss for row in result.history]
    assert np.isfinite(losses).all()
    assert losses[2] < losses[1] < losses[0]


def test_too_many_skips_in_a_row_stop_the_run(data_dir, tmp_path, poison):
    poison(*range(256))
    config = dataclasses.replace(DENSE, on_nan="skip", max_skips=3, train_examples=256)
    with pytest.raises(cae_jax.UserError, match=r"epoch 2: by step 4 more than 3 in a row"):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert steps(tmp_path / "run") == [2]  # those of the first epoch were allowed
