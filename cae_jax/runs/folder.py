"""Creates, locks and clears the directory of a run.

config.json            the `TrainConfig`
history.csv            one row per epoch
checkpoints/           the newest three and the best
tensorboard/           the history for TensorBoard
summary.txt            the layer table
history.png            loss over epochs
reconstructions.png    the first ten test images, their noisy inputs if any, and reconstructions
result.json            final and best metrics, versions, device; written last
damaged/               damaged checkpoints, set aside
.lock                  held by the training process
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

# In order of removal: config.json last, because it marks the directory as a run.
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
    """Returns the directory of a run's checkpoints."""
    return run / "checkpoints"


def read_config(run: Path) -> TrainConfig:
    """Reads the config of a run.

    Raises:
        UserError: not a run directory, or its config is damaged or of a later version.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run} is not a run directory: config.json is missing; pass a directory written by "
            "cae-jax train"
        )
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or type(values.get("format")) is not int:
            raise ValueError("it holds no JSON object with a format")
        if values["format"] <= manifest.FORMAT:
            return from_dict({key: values[key] for key in values if key != "format"})
    except (OSError, ValueError) as error:  # ValueError: from JSON, Unicode and TrainConfig
        raise UserError(
            f"{path} cannot be used ({error}); restore it from a copy, or train in another "
            "`workdir`"
        ) from error
    raise UserError(
        f"{run} has format {values['format']} and this version reads up to {manifest.FORMAT}; "
        "update cae-jax"
    )


@contextlib.contextmanager
def open_run(run: Path, config: TrainConfig, *, overwrite: bool) -> Iterator[None]:
    """Opens a directory for training, new or of a run with the same config; locks it.

    Raises:
        UserError: another process trains there; it holds a run of another config, and the message
            names the keys that differ; or it cannot be written, now or while it is open.
    """
    with open_folder(run, overwrite=overwrite):
        if (run / "config.json").exists():
            _check_same(run, read_config(run), config)
        else:
            write_config(run, config)
        yield


@contextlib.contextmanager
def open_folder(run: Path, *, overwrite: bool) -> Iterator[None]:
    """Creates and locks the directory of a run, which may have no config yet.

    Raises:
        UserError: another process trains there, or it cannot be written, now or while it is open.
    """
    advice = "choose another one, or free space or grant write permission and run again to resume"
    with atomic.writing(f"`workdir` {run}", advice):
        if run.exists() and not run.is_dir():
            raise UserError(f"`workdir` {run} is a file; pass a directory")
        run.mkdir(parents=True, exist_ok=True)
        with _locked(run):
            if overwrite:
                _clear(run)
            yield


def write_config(run: Path, config: TrainConfig) -> None:
    """Writes the config, which makes the directory a run."""
    atomic.write_json(run / "config.json", {"format": manifest.FORMAT, **to_dict(config)})


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run; the system releases it when the process ends or is killed."""
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{file.read().strip() or 'another process'} trains in {run}; wait for it, stop "
                "it, or choose another `workdir`"
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
            f"`workdir` {run} holds a run that differs in {', '.join(differing)}; choose another "
            "`workdir`, or replace that run with `overwrite=True`"
        )


def _clear(run: Path) -> None:
    """Removes the files of a run and no others: the directory may be the user's home."""
    for name in _FOLDERS:
        if (run / name).exists():
            shutil.rmtree(run / name)
    for name in _FILES:
        (run / name).unlink(missing_ok=True)
