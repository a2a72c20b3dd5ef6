"""Replaces a run by a new one in the same directory without losing it before the new one is safe.

The old run's files are moved into ``.replaced`` and deleted when the new run has its first
checkpoint; where it ends without one, they are moved back. The name of the directory says how far
this has come, so that a process that is killed at any moment leaves one of these states:

.replacing    the old files are being moved, in or out: move them back
.replaced     they are all in; the new run has started or will
.removed      the new run is safe: delete them

Folders may be links to another disk and may hold files of others, so their entries are moved one by
one into a ``.replaced`` of their own.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cae_jax import atomic

_ASIDE = ".replaced"
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


def set_aside(run: Path) -> None:
    """Moves the files of a run aside, and no others."""
    if not any(True for _ in _entries(run)):
        return
    moving = run / ".replacing"
    moving.mkdir()
    for folder, path in _entries(run):
        (aside := _aside(moving, folder)).mkdir(exist_ok=True)
        path.rename(aside / path.name)
    atomic.sync(run)
    moving.rename(run / _ASIDE)


def settle(run: Path) -> None:
    """Completes a replacement if the new run has a checkpoint, and undoes it if not."""
    replaced, moving, removed = (run / name for name in (_ASIDE, ".replacing", ".removed"))
    if replaced.is_dir():
        if any(re.fullmatch(r"\d+", path.name) for path in _list(run / "checkpoints")):
            replaced.rename(removed)
        else:
            for _, path in _entries(run):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            replaced.rename(moving)
    if moving.is_dir():
        for folder in (*(run / name for name in FOLDERS), run):  # the directory itself last
            aside = _aside(moving, folder)
            for path in _list(aside):
                path.rename(folder / path.name)
            with contextlib.suppress(OSError):
                aside.rmdir()
    if removed.is_dir():
        for name in FOLDERS:
            shutil.rmtree(run / name / _ASIDE, ignore_errors=True)
            with contextlib.suppress(OSError):  # foreign files, or a link
                (run / name).rmdir()
        shutil.rmtree(removed)


def _entries(run: Path) -> Iterator[tuple[Path, Path]]:
    """The files and checkpoints of a run, each with the folder that it lies in."""
    for name, pattern in FOLDERS.items():
        for path in _list(run / name):
            if re.fullmatch(pattern, path.name):
                yield run / name, path
    for name in FILES:
        if (run / name).is_file():
            yield run, run / name


def _aside(moving: Path, folder: Path) -> Path:
    """Where the entries of a folder are put aside: on its own disk."""
    return moving if folder == moving.parent else folder / _ASIDE


def _list(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
