"""Replaces a run: its directory is renamed, and removed when the new run has a checkpoint.

The old run becomes ``NAME.replaced``, next to the new one, and stays there if the new one ends
without a checkpoint. A file in it marks it as removable; training in it removes the mark.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cae_jax.config import RUN_MARK
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)
_MARK = ".replaced"
# What a run writes: files, and folders with the names of their entries.
FILES = (
    *("config.json", "environment.json", "history.csv", "result.json", "summary.txt"),
    *("history.png", "reconstructions.png", "members.json", "members.md", "members.png"),
)
FOLDERS = {
    "checkpoints": r"\d+(\.tmp.*)?",
    "damaged": r"\d+-\d+",
    "tensorboard": r"events\.out\.tfevents\..*",
}


def place(run: Path) -> Path:
    """The new path of the run that another one in `run` replaces."""
    run = run.resolve()  # a link keeps leading to the new run
    return run.with_name(f"{run.name}.replaced")


def set_aside(run: Path) -> bool:
    """Renames the directory of a run; returns whether there was one.

    Raises:
        UserError: something else has the new name.
        OSError: it cannot be renamed.
    """
    aside = place(run)
    if not any(True for _ in _entries(run)):
        return False
    if (aside / _MARK).exists():  # this run was to replace it, and has no checkpoint
        _remove_entries(run)
        return False
    if aside.exists() and not (aside.is_dir() and not any(aside.iterdir())):
        raise UserError(f"{aside} is in the way; rename it")
    (run / _MARK).touch()
    run.resolve().rename(aside)
    return True


def settle(run: Path, has_checkpoint: bool) -> None:
    """Removes the replaced run once the new one has a checkpoint; otherwise logs where it is.

    Other files than a run's move to the new run; those within folders of the old run stay.
    """
    (run / _MARK).unlink(missing_ok=True)
    aside = place(run)
    if not (aside / _MARK).exists():
        return
    if not has_checkpoint:
        logger.warning("%s keeps the run that was to be replaced", aside)
        return
    _remove_entries(aside)
    (aside / RUN_MARK).unlink(missing_ok=True)
    for path in [*aside.iterdir()]:
        if path.name != _MARK and not os.path.lexists(run / path.name):
            path.rename(run / path.name)
    (aside / _MARK).unlink()
    with contextlib.suppress(OSError):  # files of others
        aside.rmdir()
    if aside.exists():
        logger.warning("%s keeps the other files of %s", aside, run)


def _entries(run: Path) -> Iterator[Path]:
    """The files and checkpoints of a run or population."""
    yield from run.glob(f"{RUN_MARK}-group-*")
    for name, pattern in FOLDERS.items():
        for path in (run / name).glob("*"):
            if re.fullmatch(pattern, path.name):
                yield path
    for name in FILES:
        if (run / name).is_file():
            yield run / name


def _remove_entries(run: Path) -> None:
    for path in [*_entries(run)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in FOLDERS:
        with contextlib.suppress(OSError):  # files of others, or a link
            (run / name).rmdir()
