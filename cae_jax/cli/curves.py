"""Compare the loss curves of runs, and of CSV files such as the Keras tutorial's log.

    cae-jax curves runs/lab runs/fashion_mnist docs/lab_log.csv --figure curves.png

Prints one row per epoch with loss / val_loss of each.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from cae_jax import atomic, markdown
from cae_jax.cli import common
from cae_jax.errors import UserError
from cae_jax.runs import history, pretrained
from cae_jax.runs.folder import read_config
from cae_jax.runs.names import run_names

COLUMNS = ("epoch", "loss", "val_loss")


@common.flags
class Flags:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run directories, or CSV files with the columns epoch, loss and val_loss."""

    figure: Path | None = None
    """Plot the curves to this file."""


def run(flags: Flags) -> None:
    if not flags.runs:
        raise UserError("no RUNS given; give run directories written by cae-jax train or CSV files")
    atomic.check_output(flags.figure)
    curves = dict(zip(names(flags.runs), map(read_curve, flags.runs), strict=True))
    rows = [
        {
            epoch: f"{loss:.4f} / {val_loss:.4f}"
            for epoch, loss, val_loss in zip(*curve.values(), strict=True)
        }
        for curve in curves.values()
    ]
    epochs = sorted(set().union(*rows))
    cells = [[f"{epoch:.0f}", *(row.get(epoch, "") for row in rows)] for epoch in epochs]
    print(markdown.table(["epoch", *curves], cells, aligned=False))
    if flags.figure:
        from cae_jax import figures  # matplotlib takes a second to import

        figures.save_curves(flags.figure, curves, loss=loss_of(flags.runs))


def loss_of(paths: Sequence[Path]) -> str:
    """The loss that all runs were trained with; binary cross-entropy for CSV files.

    Raises:
        UserError: the runs were trained with different losses, which cannot share an axis.
    """
    runs = [path for path in map(pretrained.locate, paths) if (path / "config.json").exists()]
    losses = sorted({read_config(run).loss for run in runs})
    if len(losses) > 1:
        raise UserError("the runs were trained with loss bce and mse; give runs of one loss")
    return losses[0] if losses else "bce"


def names(paths: Sequence[Path]) -> list[str]:
    """The names of runs and CSV files; the suffix .csv is dropped unless a run has that name."""
    paths = [path.absolute() for path in paths]
    bare = [path.with_suffix("") if path.suffix == ".csv" else path for path in paths]
    return run_names(bare if len(set(bare)) == len(set(paths)) else paths)


def read_curve(path: Path) -> dict[str, list[float]]:
    """Reads the columns of a run's history or of a CSV file.

    Raises:
        UserError: the file cannot be read, or a column is missing or not numeric.
    """
    path = pretrained.locate(path)
    try:
        if (path / "config.json").exists():
            rows: list[dict[str, Any]] = [row._asdict() for row in history.of_run(path)]
        else:
            path = path / "history.csv" if path.is_dir() else path
            rows = list(csv.DictReader(path.read_text().splitlines()))
        return {name: [float(row[name]) for row in rows] for name in COLUMNS}
    except UserError:  # a damaged history
        raise
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (KeyError, TypeError, ValueError):
        problem = f"lacks the numeric columns {', '.join(COLUMNS)}"
    raise UserError(f"{path} {problem}; give runs or CSV files")
