"""Whose directory it is: files of others, moved and removed directories, links, replaced runs."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from flax import nnx

import cae_jax
from cae_jax import atomic
from cae_jax.config import RUN_MARK, to_dict
from cae_jax.models import autoencoders
from cae_jax.runs import history, orbax_io
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.folder import has_checkpoint, is_finished, open_folder
from cae_jax.training import trainer
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import init_state
from tests.conftest import DENSE
from tests.runs.test_reliability import assert_same_end


def content(folder):
    """Every file below a directory with its content, every directory, every link."""
    return {
        str(path.relative_to(folder)): os.readlink(path)  # noqa: PTH115
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


# Files of others


FOREIGN = {
    "temporary files": lambda folder: (folder / "checkpoints" / "notes.tmp").mkdir(parents=True),
    "a summary": lambda folder: (folder / "summary.txt").write_text("mine"),
    "a history": lambda folder: (folder / "history.csv").write_text("epoch,step\n"),
    "a lock": lambda folder: (folder / ".lock").write_text("mine"),
    "a config": lambda folder: (folder / "config.json").write_text('{"format": "mine"}'),
    "a config that is a link": lambda folder: (folder / "config.json").symlink_to("/dev/null"),
    "a mark that is a link": lambda folder: (folder / RUN_MARK).symlink_to("../precious"),
    "a run whose mark is a link": lambda folder: (
        (folder / "config.json").write_text(json.dumps({"format": 1, **to_dict(DENSE)})),
        (folder / RUN_MARK).symlink_to("../precious"),
    ),
    "a mark of another's": lambda folder: (folder / RUN_MARK).write_text("mine"),
    "a mark that is a folder": lambda folder: (folder / RUN_MARK).mkdir(),
    "checkpoints": lambda folder: (folder / "checkpoints" / "8").mkdir(parents=True),
    "a picture": lambda folder: (folder / "history.png").write_bytes(b"mine"),
    "a hidden file": lambda folder: (folder / ".bashrc").write_text("mine"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_nothing_is_touched_where_files_of_others_are(tmp_path, foreign, overwrite):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    FOREIGN[foreign](folder)
    before = content(tmp_path)
    with (
        pytest.raises(cae_jax.UserError, match="is not empty and not a run of cae-jax: it holds"),
        open_folder(folder, overwrite=overwrite),
    ):
        raise AssertionError("it was opened")
    assert content(tmp_path) == before


def test_an_empty_directory_and_one_whose_first_moment_was_the_last_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / RUN_MARK).touch()
    for name in ("new", "empty", "killed"):
        with open_folder(tmp_path / name, overwrite=False):
            assert (tmp_path / name / RUN_MARK).read_text().startswith("cae-jax run 1\n")


def test_a_run_of_a_version_without_marks_is_taken(copied, dense_run, data_dir):
    (copied / RUN_MARK).unlink()
    shutil.rmtree(copied / "checkpoints" / "16")
    cae_jax.fit(DENSE, copied, data_dir=data_dir)
    assert_same_end(copied, dense_run)


# Replaced runs


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_overwriting_spares_files_of_others_also_between_the_checkpoints(copied, data_dir, capsys):
    """Those of the folder itself are in it afterwards, others stay where the old run was."""
    for name in ("notes.txt", "checkpoints/notes.txt", "tensorboard/mine", "checkpoints/8b"):
        (copied / name).write_text("mine")
    config = dataclasses.replace(DENSE, epochs=1)
    assert len(cae_jax.fit(config, copied, data_dir=data_dir, overwrite=True).history) == 1
    assert (copied / "notes.txt").read_text() == "mine"
    assert names(copied / "checkpoints") == ["8"]
    assert len(names(copied / "tensorboard")) == 1
    aside = copied.with_name("run.replaced")
    assert "run.replaced keeps the other files" in capsys.readouterr().err
    assert content(aside) == {
        "checkpoints": None,
        "checkpoints/8b": b"mine",
        "checkpoints/notes.txt": b"mine",
        "tensorboard": None,
        "tensorboard/mine": b"mine",
    }


def without_marks(folder):
    return {k: v for k, v in content(folder).items() if k not in (RUN_MARK, ".replaced")}


@pytest.mark.parametrize("failure", [cae_jax.UserError("no memory"), KeyboardInterrupt()])
def test_the_old_run_is_kept_when_the_new_one_ends_without_a_checkpoint(
    copied, data_dir, monkeypatch, capsys, failure
):
    before, aside = without_marks(copied), copied.with_name("run.replaced")
    other = dataclasses.replace(DENSE, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_compile", Mock(side_effect=failure))
        for _ in range(2):  # the second time there is nothing to keep
            with pytest.raises(type(failure)):
                cae_jax.fit(other, copied, data_dir=data_dir, overwrite=True)
            assert "run.replaced keeps the run that was to be replaced" in capsys.readouterr().err
            assert without_marks(aside) == before
    cae_jax.fit(other, copied, data_dir=data_dir, overwrite=True)
    assert not aside.exists()
    assert names(copied.parent) == ["run"]


@pytest.mark.slow
def test_a_run_that_was_replaced_and_goes_on_is_not_removed(copied, data_dir, monkeypatch):
    aside, other = copied.with_name("run.replaced"), dataclasses.replace(DENSE, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_compile", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cae_jax.fit(other, copied, data_dir=data_dir, overwrite=True)
    cae_jax.fit(dataclasses.replace(DENSE, epochs=3), aside, data_dir=data_dir)
    cae_jax.fit(other, copied, data_dir=data_dir)
    assert len(history.of_run(aside)) == 3
    with pytest.raises(cae_jax.UserError, match="is in the way; rename it"):
        cae_jax.fit(DENSE, copied, data_dir=data_dir, overwrite=True)


def test_a_link_to_a_run_leads_to_the_one_that_replaces_it(copied, data_dir, tmp_path):
    (tmp_path / "link").symlink_to(copied)
    cae_jax.fit(
        dataclasses.replace(DENSE, seed=1), tmp_path / "link", data_dir=data_dir, overwrite=True
    )
    assert (tmp_path / "link").is_symlink()
    assert names(copied.parent) == ["link", "run"]


class Killed(BaseException):
    """Nothing tidies up after a process that is killed."""


@pytest.mark.parametrize("written", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_any_rename_the_old_run_or_the_new_one_is_whole(
    written, copied, data_dir, tmp_path, monkeypatch
):
    """Opened again after each of the calls that change a directory was the last one."""
    if written:
        other = dataclasses.replace(DENSE, seed=1, epochs=1)
        cae_jax.fit(other, tmp_path / "other", data_dir=data_dir)
    before, outcomes = without_marks(copied), set()
    for last in range(1, 200):
        folder = Path(shutil.copytree(copied, tmp_path / f"killed-{last}" / "run"))
        calls = []

        def counted(original, calls=calls, last=last):
            def call(*arguments, **options):
                calls.append(1)
                if len(calls) >= last:
                    raise Killed
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            with contextlib.suppress(Killed), open_folder(folder, overwrite=True):
                with contextlib.suppress(Killed):
                    (folder / "checkpoints").mkdir()
                    patch.undo()  # the new run is written, or it is not
                    if written:
                        shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True)
                for name in ("rename", "unlink", "rmdir", "mkdir"):
                    patch.setattr(os, name, counted(getattr(os, name)))
        with open_folder(folder, overwrite=False):
            pass
        aside = folder.with_name("run.replaced")
        if has_checkpoint(folder) and json.loads((folder / "config.json").read_text())["seed"]:
            assert not aside.exists() or not names(aside)
            outcomes.add("new")
        else:
            assert before in (without_marks(folder), aside.exists() and without_marks(aside))
            outcomes.add("old")
        if len(calls) < last - 1:
            break
    assert outcomes == ({"old", "new"} if written else {"old"})
    assert len(calls) > (10 if written else 4)


# Moved and removed directories


def fit_and(change, folder, data_dir, after=3):
    """Trains, and changes the directory after a number of chunks; checks the error."""
    chunks = itertools.count(1)

    def on_chunk(step):
        if next(chunks) == after:
            change()

    with pytest.raises(cae_jax.UserError, match="during the training, which ends here") as error:
        cae_jax.fit(DENSE, folder, data_dir=data_dir, chunk_steps=3, on_chunk=on_chunk)
    assert next(chunks) == after + 1
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 5])
def test_a_run_that_is_moved_ends_and_goes_on_where_it_is(dense_run, data_dir, tmp_path, after):
    old, new = tmp_path / "old", tmp_path / "new"
    fit_and(lambda: old.rename(new), old, data_dir, after)
    assert not old.exists()
    cae_jax.fit(DENSE, new, data_dir=data_dir)
    assert_same_end(new, dense_run)


def test_a_run_that_is_moved_while_it_is_read_ends_with_one_line(copied, data_dir, monkeypatch):
    def read(*arguments):
        copied.rename(copied.with_name("elsewhere"))
        return original(*arguments)

    original = orbax_io.read
    monkeypatch.setattr(orbax_io, "read", read)
    with pytest.raises(cae_jax.UserError, match="was moved, replaced or removed") as error:
        cae_jax.fit(dataclasses.replace(DENSE, epochs=3), copied, data_dir=data_dir)
    assert "\n" not in str(error.value)


def test_a_write_that_ends_after_its_failed_save_is_removed_too(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"

    def write_late():
        time.sleep(0.3)
        with contextlib.suppress(FileNotFoundError):  # it may be removed while it is written
            (old / "checkpoints" / f"8{atomic.TEMPORARY}").mkdir(parents=True)

    late = threading.Thread(target=write_late)

    def fail(*_):
        old.rename(new)
        late.start()
        raise OSError("moved")

    state = init_state(autoencoders.build(DENSE, nnx.Rngs(0)), build_optimizer(DENSE, 8), 8)
    with (
        open_folder(old, overwrite=False) as folder,
        Checkpoints(old / "checkpoints", DENSE, folder.check) as checkpoints,
    ):
        monkeypatch.setattr("cae_jax.runs.orbax_io.write", fail)
        checkpoints.save(state, None)
        with pytest.raises(cae_jax.UserError, match="moved, replaced or removed"):
            checkpoints.wait()
    late.join()
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
def test_two_runs_do_not_mix_where_one_was(dense_run, data_dir, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"

    def move_and_start_another():
        old.rename(new)
        shutil.copytree(dense_run, old)

    fit_and(move_and_start_another, old, data_dir)
    assert content(old) == content(dense_run)
    cae_jax.fit(DENSE, new, data_dir=data_dir)
    assert_same_end(new, dense_run)


def test_a_run_that_is_removed_ends(data_dir, tmp_path):
    old = tmp_path / "old"
    fit_and(lambda: shutil.rmtree(old), old, data_dir)
    assert not old.exists()


def test_a_run_that_loses_its_mark_ends_and_goes_on(dense_run, data_dir, tmp_path):
    old = tmp_path / "old"
    fit_and((old / RUN_MARK).unlink, old, data_dir)
    cae_jax.fit(DENSE, old, data_dir=data_dir)
    assert_same_end(old, dense_run)


def test_a_run_that_another_process_has_taken_is_left_to_it(data_dir, tmp_path):
    old, held = tmp_path / "old", contextlib.ExitStack()

    def take():
        (old / RUN_MARK).unlink()
        held.enter_context(open_folder(old, overwrite=False))

    with held:
        fit_and(take, old, data_dir)
        assert not (old / "checkpoints").exists()


# Disks and names


@pytest.mark.slow
def test_checkpoints_on_another_disk(dense_run, data_dir, tmp_path):
    """`checkpoints` is a link; /dev/shm is a disk of its own on Linux."""
    disk = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    there = disk / f"cae-jax-test-{os.getpid()}"
    there.mkdir()
    try:
        folder = tmp_path / "run"
        with open_folder(folder, overwrite=False):
            (folder / "checkpoints").symlink_to(there)
        cae_jax.fit(DENSE, folder, data_dir=data_dir)
        path = next((there / "16" / "params").rglob("d/*"))
        path.write_bytes(path.read_bytes()[:-1])
        cae_jax.fit(DENSE, folder, data_dir=data_dir)  # sets it aside and trains its epoch again
        assert_same_end(folder, dense_run)
        assert [path.name for path in (folder / "damaged").iterdir()] == ["16-0"]
        assert (folder / "checkpoints").is_symlink()
        assert names(there) == ["16", "8"]
    finally:
        shutil.rmtree(there)
    for call in (cae_jax.load, lambda run: cae_jax.fit(DENSE, run, data_dir=data_dir)):
        with pytest.raises(cae_jax.UserError, match="checkpoints is a link to nothing; mount"):
            call(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a[1]", "b\\c", "d*?", "e{x}", "f g", "ü%20#", "new\nline"])
def test_any_name_of_a_directory(dense_run, data_dir, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(dense_run, folder)
    shutil.rmtree(folder / "checkpoints" / "16")
    cae_jax.fit(DENSE, folder, data_dir=data_dir)
    cae_jax.load(folder)
    assert_same_end(folder, dense_run)


def test_where_nothing_can_be_locked_it_trains_with_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with open_folder(tmp_path / "run", overwrite=False):
        assert "make sure that no other process trains in it" in capsys.readouterr().err


def test_files_of_others_do_not_damage_a_checkpoint(copied, data_dir, capsys):
    for name in (".DS_Store", "._x", ".nfs0000000", "Thumbs.db", "copy of 8/notes"):
        for folder in ("checkpoints/16", "checkpoints/16/params", "checkpoints"):
            (copied / folder / name).parent.mkdir(exist_ok=True)
            (copied / folder / name).write_text("not ours")
    cae_jax.load(copied)
    cae_jax.fit(DENSE, copied, data_dir=data_dir)
    captured = capsys.readouterr()
    assert "finished" in captured.out
    assert captured.err == ""
    assert not (copied / "damaged").exists()


# The history


@pytest.mark.parametrize("damage", ["lost", "a digit", "bytes"])
def test_the_history_is_rebuilt_from_the_checkpoint(dense_run, copied, data_dir, damage):
    path = copied / "history.csv"
    content = path.read_bytes()
    path.unlink()
    if damage == "a digit":
        path.write_bytes(content.replace(b"8,0.", b"8,1.", 1))
    elif damage == "bytes":
        path.write_bytes(b"\xff")
    assert history.of_run(copied) == history.of_run(dense_run)
    cae_jax.fit(DENSE, copied, data_dir=data_dir)
    assert path.read_bytes() == content


def test_a_damaged_result_does_not_count_as_finished(copied, data_dir):
    assert is_finished(copied, 2)
    for result in ("", "{}", "[]", "null", '{"final": {"epoch": 1}}', "[" * 5000):
        (copied / "result.json").write_text(result)
        assert not is_finished(copied, 2)
    cae_jax.fit(DENSE, copied, data_dir=data_dir)
    assert is_finished(copied, 2)
    rows = history.read(copied / "history.csv")
    assert json.loads((copied / "result.json").read_text())["final"] == rows[-1]._asdict()
