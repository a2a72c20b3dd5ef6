"""Compares trained autoencoders on the test images of their data set.

python scripts/evaluate.py runs/denoise runs/denoise_deep --figure comparison.png
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from cae_jax import UserError, atomic, figures
from cae_jax.cli import common
from cae_jax.config import Noise, TrainConfig
from cae_jax.data import store
from cae_jax.evaluation import comparison
from cae_jax.noises import NOISES, check_level
from cae_jax.ops import cache
from cae_jax.runs.folder import read_config


@dataclasses.dataclass(frozen=True)
class Flags:
    """Prints a table with one row a config: quality on the test images with 95 % intervals.

    Runs that differ in their seed alone share a row. A second table holds the differences between
    each two rows, paired by image.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that training wrote, all on one data set."""

    noise: Noise | None = None
    """Noise on the test images; None takes what the runs were trained with."""

    noise_level: float | None = None
    """Its level, as in training; None takes that of the runs, and with --noise its default."""

    noise_seed: int = 0
    """Seed of the noise: that on which a training with this seed validates."""

    baselines: Path | None = None
    """Add rows of classical denoisers (pip install "cae-jax[baselines]"), which take minutes; what
    they gave is kept in this folder and taken from there the next time."""

    json: Path | None = None
    """Write both tables here too, unrounded."""

    figure: Path | None = None
    """Write a picture here: the first ten test images over what each row makes of them."""

    worst: Path | None = None
    """Write a picture here: for each row the ten images of its lowest PSNR."""

    robustness: Path | None = None
    """Write a figure here: each model's PSNR over the level of the noise."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""

    archives: Path | None = None
    """Folder with the four original .gz archives; None takes shipped or downloaded ones."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        if not flags.runs:
            raise UserError("no RUNS given; give folders that train.py wrote")
        cache.use_compilation_cache()
        check_files(flags)
        configs = [read_config(run) for run in flags.runs]
        dataset, noise, level = conditions(flags, configs)
        images = load(flags, dataset, "test")
        inputs = comparison.noisy_images(images, noise, level, flags.noise_seed)
        trained = [
            comparison.open_runs(label, runs)
            for label, runs in comparison.group_runs(flags.runs).items()
        ]
        others = []
        if noise != "none":
            others.append(comparison.picture_entry("noisy image", inputs, images))
        if flags.baselines:
            others += comparison.baseline_entries(
                *(flags.baselines, load(flags, dataset, "train"), images, inputs),
                *(noise, level, flags.noise_seed),
            )
        facts = {"dataset": dataset, "noise": noise, "level": check_level(noise, level)}
        facts["noise_seed"] = flags.noise_seed
        report(flags, facts, trained, others, images, inputs)


def check_files(flags: Flags) -> None:
    """Refuses outputs that cannot be written, before minutes of work."""
    for path in (flags.json, flags.figure, flags.worst, flags.robustness):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; give a file in a folder that exists")
    if flags.baselines:
        try:
            flags.baselines.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--baselines {flags.baselines} is no folder that can be made ({error})"
            ) from error


def conditions(flags: Flags, configs: list[TrainConfig]) -> tuple[str, Noise, float | None]:
    """Data set, noise and its level: those of the flags, else those that all runs share."""
    if not 0 <= flags.noise_seed < 2**32 - 1:
        raise UserError(f"noise_seed is {flags.noise_seed}; it takes a number from 0 to 4294967294")

    def shared(name: str, values: list, hint: str = "") -> Any:
        if len(set(values)) > 1:
            texts = " and ".join(sorted(map(str, set(values))))
            raise UserError(f"the runs were trained with {name} {texts}; give equal ones{hint}")
        return values[0]

    dataset = shared("dataset", [config.dataset for config in configs])
    noise, level = flags.noise, flags.noise_level
    if noise is None:
        noise = shared("noise", [config.noise for config in configs], ", or --noise")
        if level is None:
            levels = [check_level(config.noise, config.noise_level) for config in configs]
            shared("noise_level", levels, ", or --noise-level")
            level = configs[0].noise_level
    check_level(noise, level)
    if flags.robustness and noise not in NOISES:
        raise UserError(
            f"noise is {noise}, which has no level for --robustness; give --noise, one of "
            f"{', '.join(NOISES)}"
        )
    return dataset, noise, level


def load(flags: Flags, dataset: str, split: str) -> np.ndarray:
    images, _ = store.load(dataset, split, data_dir=flags.data_dir, archives=flags.archives)
    return images


def report(
    flags: Flags,
    facts: dict[str, Any],
    trained: list[comparison.Trained],
    others: list[comparison.Entry],
    images: np.ndarray,
    inputs: np.ndarray,
) -> None:
    """Prints the tables and writes the files that the flags name."""
    models = [comparison.trained_entry(each, images, inputs) for each in trained]
    entries, noise = [*others, *models], facts["noise"]
    rows, differences = comparison.rows(entries), comparison.differences(entries)
    print(comparison.table(rows))
    if differences:
        print(f"\n{comparison.table(differences, signed=True)}")
    try:
        if flags.json:
            tables = {**facts, "rows": rows, "differences": differences}
            atomic.write_json(flags.json, tables)
        if flags.figure:
            figures.save_rows(flags.figure, comparison.picture_rows(entries, images))
        if flags.worst:
            noisy = None if noise == "none" else inputs
            figures.save_rows(flags.worst, comparison.worst_rows(models, images, noisy))
        if flags.robustness:
            figures.save_lines(
                flags.robustness,
                comparison.robustness(trained, images, noise, flags.noise_seed),
                x_label=f"{noise} noise: {NOISES[noise].meaning}",
                y_label="mean PSNR (dB)",
            )
    except OSError as error:
        raise UserError(
            f"--json, --figure, --worst or --robustness cannot be written ({error})"
        ) from error


if __name__ == "__main__":
    main()
