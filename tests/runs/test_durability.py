"""What survives a power failure: the order of the calls, and real file systems cut off."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cae_jax
from cae_jax import atomic
from cae_jax.config import resolved
from tests.conftest import DENSE, SMALL
from tests.helpers import assert_fails_in_one_line
from tests.runs.test_reliability import TRAIN_SMALL, assert_same_end


@pytest.fixture
def traced(monkeypatch):
    """The calls that change names or wait for the disk, with their paths, in order."""
    calls = []

    def trace(name, describe):
        original = getattr(os, name)

        def call(*arguments, **options):
            calls.append((name, *describe(*arguments)))
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    trace("fsync", lambda descriptor: [os.path.realpath(f"/proc/self/fd/{descriptor}")])
    trace("rename", lambda old, new: [os.fspath(old), os.fspath(new)])
    trace("replace", lambda old, new: [os.fspath(old), os.fspath(new)])
    return calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc/self/fd")


@needs_proc
def test_what_a_checkpoint_needs_is_on_the_disk_before_an_older_one_goes(
    traced, data_dir, tmp_path
):
    run = tmp_path.resolve() / "run"
    config = dataclasses.replace(DENSE, epochs=5)
    cae_jax.fit(config, run, data_dir=data_dir)
    folder = run / "checkpoints"
    removals = [i for i, call in enumerate(traced) if call[-1].endswith(".tmp-removed")]
    assert len(removals) >= 2
    commits = 0
    for i, (name, *paths) in enumerate(traced):
        if name != "rename" or not re.fullmatch(r"\d+", Path(paths[-1]).name):
            continue
        commits += 1
        step = Path(paths[-1]).name
        synced = {path for call, path, *_ in traced[:i] if call == "fsync"}
        if (folder / step).exists():  # every file and directory of it, under its temporary name
            for path in (folder / step).rglob("*"):
                assert str(folder / f"{step}.tmp" / path.relative_to(folder / step)) in synced
        assert str(folder / f"{step}.tmp") in synced
        assert str(run / "config.json.tmp") in synced
        later = [j for j in removals if j > i]
        if later:
            assert ("fsync", str(folder)) in traced[i : later[0]]
    assert commits == 5


@pytest.fixture(params=[errno.EINVAL, errno.ENOTSUP])
def cannot_sync(request, monkeypatch):
    """A function that lets no directory at or below a path be synced, as on VirtualBox's mounts."""
    original, folders = os.fsync, []

    def fsync(descriptor):
        path = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        if path.is_dir() and any(path.is_relative_to(each) for each in folders):
            raise OSError(request.param, os.strerror(request.param))
        return original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield folders.append
    atomic._warn.cache_clear()


@needs_proc
def test_outputs_are_written_where_directories_cannot_be_synced(
    cannot_sync, dense_run, command, tmp_path
):
    cannot_sync(tmp_path.resolve())
    for name in ("a.safetensors", "b.safetensors"):
        done = command("export", dense_run, "--format", "safetensors", "--out", tmp_path / name)
        assert done.returncode == 0
        assert (tmp_path / name).stat().st_size > 10_000
        warning = "The output is on a file system that cannot sync directories ("
        assert done.stderr.count(warning) == (name == "a.safetensors")
        assert len(done.stderr.splitlines()) == (name == "a.safetensors")


@needs_proc
def test_a_training_is_refused_where_directories_cannot_be_synced(
    cannot_sync, command, data_dir, copied, tmp_path
):
    cannot_sync(tmp_path.resolve() / "mount")
    before = set(copied.rglob("*"))
    shutil.copytree(copied, tmp_path / "mount" / "run")
    for name in ("new", "run"):
        place = tmp_path / "mount" / name
        done = command("train", "--config", "simple", "--workdir", place)
        assert_fails_in_one_line(done, f"{place} is on a file system that cannot sync directories")
        assert "choose a --workdir on a local disk" in done.stderr
    assert [*(tmp_path / "mount" / "new").iterdir()] == []
    assert len([*(tmp_path / "mount" / "run").rglob("*")]) == len(before)
    # The checkpoints of a run on a local disk may lie there.
    elsewhere = tmp_path / "mount" / "checkpoints"
    shutil.copytree(copied / "checkpoints", elsewhere)
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").symlink_to(elsewhere, target_is_directory=True)
    config = dataclasses.replace(DENSE, epochs=3)
    with pytest.raises(cae_jax.UserError, match=r"cannot sync directories .* on a local disk$"):
        cae_jax.fit(config, copied, data_dir=data_dir)


@needs_proc
def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(traced, tmp_path):
    path = tmp_path.resolve() / "file"
    atomic.write_text(path, "new")
    assert traced == [
        ("fsync", f"{path}.tmp"),
        ("replace", f"{path}.tmp", str(path)),
        ("fsync", str(path.parent)),
    ]


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, image, folder):
        self.image, self.folder = image, folder

    def mount(self):
        self.folder.mkdir(exist_ok=True)
        command = ["mount", "-o", "loop", str(self.image), str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def unmount(self):
        subprocess.run(["umount", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting a file system takes Linux, mkfs.ext4 and root")
    disk = Disk(tmp_path / "disk.img", tmp_path / "disk")
    with disk.image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk.image)], check=True)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.strip()}")
    yield disk
    disk.unmount()


@pytest.mark.slow
def test_power_failures_at_twenty_moments_lose_at_most_the_last_epoch(disk, data_dir, tmp_path):
    """The image of the disk is what the hardware has at that moment; nothing else is in it."""
    config = dataclasses.replace(SMALL, model="simple", epochs=40)
    expected = tmp_path / "expected"
    cae_jax.fit(config, expected, data_dir=data_dir)
    moments = []
    with (tmp_path / "log").open("w") as log:
        command = [*TRAIN_SMALL, "--model", "simple", "--epochs", str(config.epochs)]
        command += ["--workdir", str(disk.folder / "run"), "--data-dir", str(data_dir)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            rng = np.random.default_rng(0)
            while len(moments) < 20:
                time.sleep(rng.uniform(0.0, 0.15))
                assert process.poll() is None, (tmp_path / "log").read_text()
                process.send_signal(signal.SIGSTOP)
                epochs = (tmp_path / "log").read_text().count("Epoch ")
                if epochs >= 2:
                    copy = tmp_path / f"moment-{len(moments)}.img"
                    copied = ["cp", "--sparse=always", disk.image, copy], ["cmp", disk.image, copy]
                    # The kernel may write while it is copied: then it is of no one moment.
                    if all(subprocess.run(each).returncode == 0 for each in copied):
                        moments.append((copy, epochs))
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()
            process.wait()
    for image, epochs in moments:
        after = Disk(image, tmp_path / "after")
        after.mount()
        try:
            run = after.folder / "run"
            loaded = cae_jax.load(run)
            assert loaded.config == resolved(config)
            kept = sorted(int(path.name) for path in run.glob("checkpoints/*[0-9]"))
            # The save of the last epoch that was told may still have been under way.
            assert kept[-1] >= 8 * (epochs - 1)
            cae_jax.fit(config, run, data_dir=data_dir)
            assert not (run / "damaged").exists()
            assert_same_end(run, expected)
        finally:
            after.unmount()
        image.unlink()
