"""Compares trained autoencoders on the test images of their data set.

python scripts/evaluate.py runs/fashion_mnist runs/simple runs/deep --figure comparison.png
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import cae_jax
from cae_jax import cli, datasets, figures, rundir
from cae_jax.evaluate import evaluate


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints a table with one row a run: quality on the test images, parameters, code size."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that training wrote, all on one data set."""

    json: Path | None = None
    """Write the table here too, unrounded."""

    figure: Path | None = None
    """Write a picture here: the first ten test images over every run's reconstructions."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""

    archives: Path | None = None
    """Folder with the four original .gz archives; None takes shipped or downloaded ones."""


def main() -> None:
    with cli.user_errors():
        flags = cli.parse(Flags)
        if not flags.runs:
            raise cae_jax.UserError("no RUNS given; give folders that train.py wrote")
        models = {str(run): cae_jax.load(run) for run in flags.runs}
        names = sorted({model.config.dataset for model in models.values()})
        if len(names) > 1:
            raise cae_jax.UserError(
                f"the runs were trained on {' and '.join(names)}; give runs of one data set"
            )
        images, _ = datasets.load(
            names[0], "test", data_dir=flags.data_dir, archives=flags.archives
        )
        rows = [row(run, model, images) for run, model in models.items()]
        print_table(rows)
        try:
            if flags.json:
                rundir.write_text(flags.json, json.dumps(rows, indent=2) + "\n")
            if flags.figure:
                pictures = {run: model.reconstruct(images[:10]) for run, model in models.items()}
                figures.save_rows(flags.figure, {"original": images[:10] / 255, **pictures})
        except OSError as error:
            raise cae_jax.UserError(f"--json or --figure cannot be written ({error})") from error


def row(run: str, autoencoder: cae_jax.Autoencoder, images: np.ndarray) -> dict:
    """One row of the table: what the model is and the means over the images."""
    quality = evaluate(autoencoder, images)
    return {
        "run": run,
        "model": autoencoder.config.model,
        "parameters": autoencoder.parameters,
        "code": math.prod(autoencoder.code_shape),
        **{name: float(values.mean()) for name, values in quality._asdict().items()},
    }


def print_table(rows: list[dict]) -> None:
    """The rows as a Markdown table."""
    formats = {"parameters": ",", "bce": ".4f", "mse": ".5f", "psnr": ".2f", "ssim": ".4f"}
    heads = ["run", "model", "parameters", "code", "BCE", "MSE", "PSNR (dB)", "SSIM"]
    cells = [[format(row[key], formats.get(key, "")) for key in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in [heads, ["-" * width for width in widths], *cells]:
        padded = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        print(f"| {' | '.join(padded)} |")


if __name__ == "__main__":
    main()
