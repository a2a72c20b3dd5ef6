"""The files of a run's folder, apart from what its checkpoints hold.

config.json            what determines the result
history.csv            one row an epoch
checkpoints/           the newest three and the best
tensorboard/           the history for TensorBoard
summary.txt            the layer table
history.png            loss over epochs
reconstructions.png    first ten test images, with noise if it was trained with any, reconstructed
result.json            final and best metrics, versions, device; written last
damaged/               checkpoints that were found damaged
.lock                  held by the process that trains
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from cae_jax import atomic
from cae_jax.config import TrainConfig, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.runs import manifest

# In the order of their removal: config.json last, as long as there is anything of its run.
_FOLDERS = ("checkpoints", "damaged", "tensorboard")
_FILES = (
    "result.json",
    "history.csv",
    "history.png",
    "reconstructions.png",
    "summary.txt",
    "config.json",
)


def checkpoint_folder(run: Path) -> Path:
    return run / "checkpoints"


def read_config(run: Path) -> TrainConfig:
    """The config of an existing run.

    Raises:
        UserError: the folder is no run, its config was damaged, or a later version wrote it.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} is no run (it has no config.json); give a folder of train.py")
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or type(values.get("format")) is not int:
            raise ValueError("it holds no object with a format")
        if values["format"] <= manifest.FORMAT:
            return from_dict({key: values[key] for key in values if key != "format"})
    except (OSError, ValueError) as error:  # among them what JSON, Unicode and TrainConfig refuse
        raise UserError(f"{path} cannot be used ({error}); restore it or train anew") from error
    raise UserError(
        f"{run} has format {values['format']} and this version reads up to {manifest.FORMAT}; "
        "update cae-jax"
    )


@contextlib.contextmanager
def open_run(run: Path, config: TrainConfig, *, overwrite: bool) -> Iterator[None]:
    """A folder to train in, new or begun with the same config, for this process alone.

    Raises:
        UserError: another process trains there; it holds a run of another config, naming the keys
            that differ; or it cannot be written, also while it is open.
    """
    with open_folder(run, overwrite=overwrite):
        if (run / "config.json").exists():
            _check_same(run, read_config(run), config)
        else:
            write_config(run, config)
        yield


@contextlib.contextmanager
def open_folder(run: Path, *, overwrite: bool) -> Iterator[None]:
    """The folder of a run that may not have begun yet, for this process alone.

    Raises:
        UserError: another process trains there; or it cannot be written, also while it is open.
    """
    try:
        if run.exists() and not run.is_dir():
            raise UserError(f"workdir {run} is a file; give a folder")
        run.mkdir(parents=True, exist_ok=True)
        with _locked(run):
            if overwrite:
                _clear(run)
            yield
    except OSError as error:
        raise UserError(
            f"workdir {run} cannot be written ({error}); give another one, or free space or give "
            "the right to write and run the same command again"
        ) from error


def write_config(run: Path, config: TrainConfig) -> None:
    """Makes a folder a run."""
    atomic.write_json(run / "config.json", {"format": manifest.FORMAT, **to_dict(config)})


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run, which the system releases when the process ends, however it does."""
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{file.read().strip() or 'another process'} trains in {run}; wait for it, stop "
                "it, or give another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _check_same(run: Path, there: TrainConfig, now: TrainConfig) -> None:
    old, new = to_dict(there), to_dict(now)
    differing = [f"{key} ({old[key]} there, {new[key]} now)" for key in new if old[key] != new[key]]
    if differing:
        raise UserError(
            f"workdir {run} holds a run that differs in {', '.join(differing)}; "
            "give another --workdir, or --overwrite to start anew"
        )


def _clear(run: Path) -> None:
    """Removes what a run consists of and nothing else, should somebody name his home folder."""
    for name in _FOLDERS:
        if (run / name).exists():
            shutil.rmtree(run / name)
    for name in _FILES:
        (run / name).unlink(missing_ok=True)
