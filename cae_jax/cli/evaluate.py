"""Evaluate trained autoencoders on the test images of their data set.

    cae-jax evaluate runs/denoise runs/denoise_deep --figure comparison.png
    cae-jax evaluate runs/photographs --data other_photographs

Prints a table with one row per config: quality on the test images with 95 % intervals. Runs that
differ only in their seed share a row. Principal component analysis (PCA) of the training images,
with as many values as a code, is the linear baseline. A second table shows the differences between
all pairs of rows, paired by image.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.config import NOISES, PAIRS, Noise, TrainConfig, check_level, known_shape
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:  # modules that import JAX are imported after the flags are checked
    from cae_jax.evaluation import comparison
    from cae_jax.evaluation.lazy import Images

logger = logging.getLogger(__name__)


@common.flags
class Flags:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run directories or shipped models such as pretrained/denoise, all on one data set."""

    noise: Noise | None = None
    """Noise on the test images. Default: that of the training."""

    noise_level: float | None = None
    """Level of the noise, see train. Default: that of the training, or that of --noise."""

    noise_seed: int = 0
    """Seed of the noise; the validation of that seed's training uses the same noise."""

    baselines: Path | None = None
    """Add classical denoisers (pip install "cae-jax[baselines]"), which take minutes; their results
    are cached in this directory."""

    json: Path | None = None
    """Write both tables to this file, unrounded."""

    figure: Path | None = None
    """Draw the first ten test images above the reconstructions of each row."""

    worst: Path | None = None
    """Draw the ten images with the lowest PSNR of each row."""

    robustness: Path | None = None
    """Draw the PSNR of each model over the noise level."""

    other: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """Evaluate on the images there: others than in the training, or the same after they moved."""

    data: common.Data = common.DataFlags()


def run(flags: Flags) -> None:
    if not flags.runs:
        raise UserError("no RUNS given; give run directories written by cae-jax train")
    for path in (flags.json, flags.figure, flags.worst, flags.robustness):
        atomic.check_output(path)
    if flags.baselines:
        with atomic.writing(flags.baselines, "give another directory for `baselines`"):
            flags.baselines.mkdir(parents=True, exist_ok=True)
        atomic.check_output(flags.baselines / "results.npz")
    from cae_jax.evaluation import baselines, comparison
    from cae_jax.runs.folder import read_config

    cache.use_compilation_cache()
    configs = [read_config(each) for each in flags.runs]
    comparison.check_same_images(configs, flags.runs)
    noise, level = conditions(flags, configs)
    config, stored, other = test_images(flags, configs)
    images, inputs = comparison.clean_and_noisy(stored, config, noise, level, flags.noise_seed)
    groups = comparison.group_runs(flags.runs)
    trained = [comparison.open_runs(label, runs) for label, runs in groups.items()]
    others = []
    if noise != "none":
        others.append(comparison.untrained_entry("noisy image", inputs, images))
    others += linear_entries(flags, config, trained, images, inputs)
    if flags.baselines:
        some = np.asarray(load(flags, config, "train")[: baselines.TUNING_IMAGES])
        # Another seed: tuning must not see the noise of the test images.
        tuning = comparison.clean_and_noisy(some, config, noise, level, flags.noise_seed + 1)
        others += comparison.baseline_entries(flags.baselines, tuning, images, inputs)
    name = Path(other or config.data).name
    metadata = {"dataset": name, "noise": noise, "noise_seed": flags.noise_seed}
    metadata["level"] = check_level(noise, level, images.shape[1:])
    report(flags, metadata, trained, others, images, inputs, f"on {name}" if other else "")


def load(flags: Flags, config: TrainConfig, split: str) -> np.ndarray:
    """The images of a split of the training's data set."""
    from cae_jax.runs import environment

    return environment.load_split(flags.runs[0], config, split, **vars(flags.data))[0]


def linear_entries(
    flags: Flags, config: TrainConfig, trained: list["comparison.Trained"], *tested: "Images"
) -> list["comparison.Entry"]:
    """Principal components of the training images, if these are there and it takes no minutes."""
    from cae_jax.evaluation import comparison

    sizes = comparison.code_sizes(each.autoencoders[0] for each in trained)
    try:
        train = load(flags, config, "train")
    except UserError as error:  # which nothing else needs for images of `other`
        logger.warning("Without PCA, which needs the training images: %s", error)
        return []
    fitted = comparison.fit_linear(train, config, sizes[-1], always=flags.baselines is not None)
    if fitted is None:
        logger.warning("Without PCA, which takes minutes here; `baselines` adds it")
        return []
    return comparison.linear_entries(fitted, sizes, *tested)


def test_images(flags: Flags, configs: list[TrainConfig]) -> tuple[TrainConfig, "Images", str]:
    """The config of the training images, the images to evaluate on, and the path of others."""
    from cae_jax import data
    from cae_jax.evaluation.lazy import joined
    from cae_jax.runs import environment

    where = vars(flags.data)
    moved, same = environment.moved(flags.runs, configs, flags.other, **where)
    if not same:
        images = joined(data.load_unseen(moved[0], **where))
        logger.warning(
            "%s has other images than the training; of the %d that are evaluated some may be "
            "training images",
            *(flags.other, len(images)),
        )
        return configs[0], images, flags.other or ""
    configs = moved
    images = load(flags, configs[0], "test")
    environment.warn_of_other_images(flags.runs, configs, **where)
    return configs[0], images, ""


def conditions(flags: Flags, configs: list[TrainConfig]) -> tuple[Noise, float | None]:
    """Noise and its level: from the flags, otherwise those shared by all runs.

    Raises:
        UserError: the runs differ in noise or level.
    """
    if not 0 <= flags.noise_seed < 2**32 - 1:
        raise UserError(
            f"`noise_seed` is {flags.noise_seed}; it takes a number from 0 to 4294967294"
        )

    def shared(name: str, values: list, advice: str) -> Any:
        if len(set(values)) > 1:
            texts = " and ".join(sorted(map(str, set(values))))
            raise UserError(
                f"the runs were trained with {name} {texts}; give equal ones, or {advice}"
            )
        return values[0]

    noise, level = flags.noise, flags.noise_level
    if noise is None:
        noise = shared("noise", [config.noise for config in configs], "`noise`")
        if level is None:
            levels = [check_level(config.noise, config.noise_level) for config in configs]
            shared("noise_level", levels, "`noise_level`")
            level = configs[0].noise_level
    check_level(noise, level, known_shape(configs[0]))
    if noise == PAIRS and not configs[0].pairs:
        raise UserError("`noise` is pairs, and the runs were trained without; give another")
    if flags.robustness and noise not in NOISES:
        raise UserError(
            f"noise {noise} has no level for `robustness`; give `noise`, one of {', '.join(NOISES)}"
        )
    return noise, level


def report(
    flags: Flags,
    metadata: dict[str, Any],
    trained: list["comparison.Trained"],
    others: list["comparison.Entry"],
    images: "Images",
    inputs: "Images",
    title: str,
) -> None:
    """Prints the tables and writes the requested files."""
    from cae_jax import figures
    from cae_jax.evaluation import comparison

    bar = common.progress(trained, "Evaluating", "model")
    models = [comparison.trained_entry(each, images, inputs) for each in bar]
    entries, noise = [*others, *models], metadata["noise"]
    rows, differences = comparison.summaries(entries), comparison.differences(entries)
    print(comparison.metrics_table(rows, title=title))
    if differences:
        print(f"\n{comparison.metrics_table(differences, signed=True, title=title)}")
    common.write_json(flags.json, {**metadata, "rows": rows, "differences": differences})
    if flags.figure:
        figures.save_rows(flags.figure, comparison.first_rows(entries, images))
    if flags.worst:
        noisy = None if noise == "none" else inputs
        figures.save_rows(flags.worst, comparison.worst_rows(models, images, noisy))
    if flags.robustness:
        levels = comparison.robustness_curves(trained, images, noise, flags.noise_seed)
        x_label = f"{noise} noise: {NOISES[noise].meaning}"
        figures.save_lines(flags.robustness, levels, x_label=x_label, y_label="mean PSNR (dB)")
