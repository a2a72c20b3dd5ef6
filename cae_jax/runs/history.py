"""One row an epoch in ``history.csv``, written as it happens."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

from cae_jax import atomic
from cae_jax.errors import UserError


class Row(NamedTuple):
    """What is known after an epoch.

    Attributes:
        epoch: counted from 1.
        step: steps since the start of training.
        loss: mean over the epoch's examples, each as its step saw it.
        val_loss: mean over the test images after the epoch, noisy ones if the config wants noise.
        val_psnr: mean of their peak signal-to-noise ratios in dB against the clean images.
        val_psnr_input: the same of the noisy images themselves; None without noise.
        skipped: updates that were left out because a loss or gradient was not finite.
        epoch_seconds: of training; neither evaluation nor compilation. Where the epoch was
            interrupted, of what came after.
        images_per_second: in these seconds.
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
    """Adds a row, and the header to a new file. Floats are written so that they read back equal."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(Row._fields)
        writer.writerow(row)


def read(path: Path) -> list[Row]:
    """All whole rows; a last one cut off by a crash is left out.

    Raises:
        UserError: a line that is no row.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n") and line.rstrip() != ",".join(Row._fields):
            try:
                rows.append(_parse(line))
            except ValueError as error:
                raise UserError(
                    f"{path} has the line {line.strip()!r}; restore it, or start anew with "
                    "--overwrite"
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
    """Replaces the file by these rows, atomically."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic.replacing(path) as temporary:
        temporary.unlink(missing_ok=True)  # of a process that was killed
        for row in rows:
            append(temporary, row)
