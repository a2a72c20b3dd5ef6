"""One row an epoch in ``history.csv``, written as it happens."""

import csv
from pathlib import Path
from typing import NamedTuple

from cae_jax.errors import UserError


class Row(NamedTuple):
    """What is known after an epoch.

    Attributes:
        epoch: counted from 1.
        step: steps since the start of training.
        loss: mean over the epoch's examples, each as its step saw it.
        val_loss: mean over the test images after the epoch.
        epoch_seconds: of training; neither evaluation nor compilation.
        images_per_second: of training.
    """

    epoch: int
    step: int
    loss: float
    val_loss: float
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
        if line.endswith("\n") and not line.startswith("epoch"):
            try:
                epoch, step, *rest = line.split(",")
                rows.append(Row(int(epoch), int(step), *map(float, rest)))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{path} has the line {line.strip()!r}; restore it, or start anew with "
                    "--overwrite"
                ) from error
    return rows


def rewrite(path: Path, rows: list[Row]) -> None:
    """Replaces the file by these rows, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    for row in rows:
        append(temporary, row)
    if rows:
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)
