"""Writes and reads ``history.csv``, one row per epoch."""

import contextlib
import csv
import logging
from pathlib import Path
from typing import Any, NamedTuple

from cae_jax import atomic
from cae_jax.errors import UserError
from cae_jax.runs import manifest, pretrained

logger = logging.getLogger(__name__)
NAME = "history.csv"


class Row(NamedTuple):
    """The record of one epoch.

    Attributes:
        epoch: counted from 1.
        step: steps since the start of training.
        loss: mean training loss over the epoch's images, each as its step saw it, nats.
        val_loss: mean loss over the test images after the epoch, with noise if the config has any.
        val_psnr: mean PSNR of their reconstructions in dB, against the clean images.
        val_psnr_input: mean PSNR of the noisy test images themselves in dB; None without noise.
        skipped: number of updates skipped because of a loss or gradient that was not finite.
        epoch_seconds: seconds of training, without evaluation and compilation; of a resumed epoch,
            those after the resumption.
        images_per_second: training images in these seconds.
    """

    epoch: int
    step: int
    loss: float
    val_loss: float
    val_psnr: float
    val_psnr_input: float | None
    skipped: int
    epoch_seconds: float
    images_per_second: float


def append(path: Path, row: Row) -> None:
    """Appends a row, after the header in a new file. Floats keep their exact value."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(Row._fields)
        writer.writerow(row)
    atomic.sync(path)
    if new:
        atomic.sync(path.parent)


def read(path: Path) -> list[Row]:
    """Reads all complete rows; drops a last one that a crash cut off.

    Raises:
        UserError: a line is malformed.
    """
    if not path.exists():
        return []
    rows = []
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it from a copy"
        ) from error
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.rstrip() != ",".join(Row._fields):
            try:
                rows.append(_parse(line))
            except ValueError as error:
                raise UserError(
                    f"{path} has the line {line.strip()!r}; restore the file from a copy, or "
                    "train in another `workdir`"
                ) from error
    return rows


def _parse(line: str) -> Row:
    cells: dict[str, Any] = dict(zip(Row._fields, line.rstrip().split(","), strict=True))
    for name, text in cells.items():
        if name == "val_psnr_input" and not text:
            cells[name] = None
        else:
            cells[name] = int(text) if name in ("epoch", "step", "skipped") else float(text)
    return Row(**cells)


def rewrite(path: Path, rows: list[Row]) -> None:
    """Replaces the file atomically by one with these rows."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic.replacing(path) as temporary:
        write(temporary, rows)


def write(path: Path, rows: list[Row]) -> None:
    """Writes a new file with these rows."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])


def of_run(run: Path) -> list[Row]:
    """Reads the history of a run, checked against its newest intact checkpoint.

    Raises:
        UserError: a line is malformed and no checkpoint has another copy.
    """
    run = pretrained.locate(run)
    paths = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    kept = None
    for path in sorted(paths, key=lambda path: int(path.name), reverse=True):
        # Damaged, of a later version, unreadable, or removed in the meantime: the one before.
        with contextlib.suppress(manifest.DamagedError, manifest.NewerError, OSError):
            if NAME in manifest.verify(path)["files"]:
                kept = read(path / NAME)
            break
    return checked(run / NAME, kept)


def checked(path: Path, kept: list[Row] | None) -> list[Row]:
    """Reads the file and checks it against the rows that the newest checkpoint keeps.

    Args:
        path: of the file.
        kept: rows of the first epochs; None where the checkpoint keeps none.

    Returns:
        The kept rows, and those of later epochs from the file.

    Raises:
        UserError: a line is malformed and there are no kept rows.
    """
    try:
        rows = read(path)
    except UserError:
        if kept is None:
            raise
        rows = []
    if kept is None:
        return rows
    if rows[: len(kept)] != kept:
        logger.warning("%s is damaged: its rows are taken from the checkpoint", path)
        # A later row is whole if its step is that of its epoch.
        steps = kept[-1].step // len(kept) if kept else 0
        later = [row for row in rows if row.epoch > len(kept)]
        rows = kept + [row for row in later if row.step == row.epoch * steps]
    return rows
