"""The files of a run's folder, apart from what its checkpoints hold.

config.json            what determines the result
history.csv            one row an epoch
checkpoints/           the newest three and the best
tensorboard/           the history for TensorBoard
summary.txt            the layer table
history.png            loss over epochs
reconstructions.png    first ten test images over their reconstructions
result.json            final and best metrics, versions, device; written last
"""

import json
import shutil
from pathlib import Path
from typing import Any

from cae_jax.config import TrainConfig, from_dict, to_dict
from cae_jax.errors import UserError

# In the order of their removal: config.json last, as long as there is anything of its run.
_FOLDERS = ("checkpoints", "tensorboard")
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
        UserError: the folder is no run, or its config was damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} is no run (it has no config.json); give a folder of train.py")
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise UserError("it holds no object")
        return from_dict(values)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} cannot be used ({error}); restore it or train anew") from error


def open_run(run: Path, config: TrainConfig, *, overwrite: bool) -> None:
    """Makes a folder ready to train in: new, or begun with the same config.

    Raises:
        UserError: it holds a run of another config, naming the keys that differ, or cannot be used.
    """
    try:
        if run.exists() and not run.is_dir():
            raise UserError(f"workdir {run} is a file; give a folder")
        if overwrite:
            _clear(run)
        if (run / "config.json").exists():
            _check_same(run, read_config(run), config)
        else:
            run.mkdir(parents=True, exist_ok=True)
            write_json(run / "config.json", to_dict(config))
    except OSError as error:
        raise UserError(f"workdir {run} cannot be written ({error}); give another one") from error


def _check_same(run: Path, there: TrainConfig, now: TrainConfig) -> None:
    old, new = to_dict(there), to_dict(now)
    differing = [f"{key} ({old[key]} there, {new[key]} now)" for key in new if old[key] != new[key]]
    if differing:
        raise UserError(
            f"workdir {run} holds a run that differs in {', '.join(differing)}; "
            "give another --workdir, or --overwrite to start anew"
        )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _clear(run: Path) -> None:
    """Removes what a run consists of and nothing else, should somebody name his home folder."""
    for name in _FOLDERS:
        if (run / name).exists():
            shutil.rmtree(run / name)
    for name in _FILES:
        (run / name).unlink(missing_ok=True)
