"""Compares the loss curves of runs, and of CSV files such as the lab's own log.

python scripts/curves.py docs/lab_log.csv runs/lab runs/fashion_mnist --figure curves.png
"""

import csv
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cae_jax import UserError, figures
from cae_jax.cli import common

COLUMNS = ("epoch", "loss", "val_loss")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints loss / val_loss of several runs side by side, one row an epoch."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that training wrote, or CSV files with the columns epoch, loss and val_loss."""

    figure: Path | None = None
    """Draw the curves here too."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        if not flags.runs:
            raise UserError("no RUNS given; give folders that train.py wrote, or CSV files")
        curves = {run.stem: read_curve(run) for run in flags.runs}
        rows = [dict(zip(curve["epoch"], lines(curve), strict=True)) for curve in curves.values()]
        print(f"| epoch | {' | '.join(curves)} |")
        print(f"| --- |{' --- |' * len(curves)}")
        for epoch in sorted(set().union(*rows)):
            print(f"| {epoch:.0f} | {' | '.join(row.get(epoch, '') for row in rows)} |")
        if flags.figure:
            try:
                figures.save_curves(flags.figure, curves)
            except OSError as error:
                raise UserError(f"--figure {flags.figure} cannot be written ({error})") from error


def lines(curve: dict[str, list[float]]) -> list[str]:
    """One text for each epoch: loss / val_loss."""
    return [
        f"{loss:.4f} / {val_loss:.4f}"
        for loss, val_loss in zip(curve["loss"], curve["val_loss"], strict=True)
    ]


def read_curve(path: Path) -> dict[str, list[float]]:
    """The three columns of a run's history or of a CSV file."""
    file = path / "history.csv" if path.is_dir() else path
    try:
        rows = list(csv.DictReader(file.read_text().splitlines()))
        return {name: [float(row[name]) for row in rows] for name in COLUMNS}
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); give runs or CSV files"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} lacks the numeric columns {', '.join(COLUMNS)}") from error


if __name__ == "__main__":
    main()
