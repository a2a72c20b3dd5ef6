"""Models beside each other on the same test images with the same noise: tables and curves."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cae_jax.config import NOISES
from cae_jax.data.images import scale
from cae_jax.errors import UserError
from cae_jax.evaluation import baselines
from cae_jax.evaluation.intervals import Interval, difference_interval, mean_interval
from cae_jax.evaluation.quality import Quality, evaluate, measure
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history
from cae_jax.runs.folder import read_config
from cae_jax.runs.load import load
from cae_jax.training import metrics
from cae_jax.training.noise import build_corruption
from cae_jax.training.step import make_keys

# Levels of a robustness curve, as shares of the kind's default level.
_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_FORMATS = {"bce": ".4f", "mse": ".5f", "psnr": ".2f", "ssim": ".4f"}
_HEADS = {"bce": "BCE", "mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM"}


class Entry(NamedTuple):
    """One row of a comparison.

    Attributes:
        label: of the row.
        model: what it is, in a word, or the parameters of a classical denoiser.
        parameters: how many it has; None for a method without training.
        code: values in the code of an image; None likewise.
        seconds: of training, median over the runs; None likewise.
        qualities: one for each run.
        pictures: what its first run made of the test inputs ``[N, 28, 28, 1]``.
    """

    label: str
    model: str
    parameters: int | None
    code: int | None
    seconds: float | None
    qualities: list[Quality]
    pictures: np.ndarray

    def values(self, metric: str) -> np.ndarray:
        """Float64 ``[R, N]``: of each run and image."""
        return np.stack([getattr(quality, metric) for quality in self.qualities])


class Trained(NamedTuple):
    """The runs of one config: their models, and the seconds that their training took."""

    label: str
    autoencoders: list[Autoencoder]
    seconds: list[float]


def open_runs(label: str, runs: Sequence[Path]) -> Trained:
    """Opens the runs of one config.

    Raises:
        UserError: a folder that is no run, or one without a checkpoint.
    """
    return Trained(
        label,
        [load(run) for run in runs],
        [sum(row.epoch_seconds for row in history.read(run / "history.csv")) for run in runs],
    )


def group_runs(runs: Iterable[Path]) -> dict[str, list[Path]]:
    """Runs of one config but for the seed, named after the first of them, in the order given.

    Raises:
        UserError: two runs of one config with one seed, which would count as two.
    """
    groups: dict[str, dict[int, Path]] = {}
    for run in runs:
        config = read_config(run)
        group = groups.setdefault(repr(dataclasses.replace(config, seed=0)), {})
        if config.seed in group:
            raise UserError(
                f"{group[config.seed]} and {run} are the same config with the same seed; give one"
            )
        group[config.seed] = run
    return {str(next(iter(group.values()))): list(group.values()) for group in groups.values()}


def noisy_images(
    images: np.ndarray, noise: str, level: float | None = None, seed: int = 0
) -> np.ndarray:
    """Test images with noise: float32 ``[N, 28, 28, 1]``, for all models the same.

    Args:
        images: uint8 ``[N, 28, 28, 1]``.
        noise: as in `TrainConfig`.
        level: as in `TrainConfig`.
        seed: the noise is that on which a training run of this seed validates.
    """
    noisy, corrupt = scale(jnp.asarray(images)), build_corruption(noise, level)
    if corrupt is not None:
        noisy = jax.jit(corrupt)(make_keys(seed).test_noise, noisy)
    return np.asarray(noisy)


def trained_entry(trained: Trained, images: np.ndarray, inputs: np.ndarray) -> Entry:
    """The row of a config on these inputs, whose clean form the images are."""
    first = trained.autoencoders[0]
    return Entry(
        trained.label,
        model=first.config.model,
        parameters=first.parameters,
        code=math.prod(first.code_shape),
        seconds=statistics.median(trained.seconds),
        qualities=[evaluate(each, images, inputs) for each in trained.autoencoders],
        pictures=first.reconstruct(inputs),
    )


def picture_entry(label: str, pictures: np.ndarray, images: np.ndarray) -> Entry:
    """The row of a method without training, or of the noisy images themselves."""
    return Entry(label, "-", None, None, None, [measure(pictures, images)], pictures)


def baseline_entries(
    folder: Path,
    train_images: np.ndarray,
    images: np.ndarray,
    inputs: np.ndarray,
    noise: str,
    level: float | None = None,
    seed: int = 0,
) -> list[Entry]:
    """The rows of the classical denoisers, tuned on training images with the same noise.

    Args:
        folder: keeps what they give, see `baselines.denoise_all`.
        train_images: uint8, of which the first `baselines.TUNING_IMAGES` are taken.
        images: test images, uint8 ``[N, 28, 28, 1]``.
        inputs: what `noisy_images` makes of them with this noise, level and seed.
        noise: as in `TrainConfig`.
        level: as in `TrainConfig`.
        seed: of the noise on the test images.

    Raises:
        UserError: the extra ``baselines`` is not installed, or the folder cannot be used.
    """
    clean = train_images[: baselines.TUNING_IMAGES]
    # Noise of another seed: that of the test images must not be known beforehand.
    noisy = noisy_images(clean, noise, level, seed + 1)
    return [
        picture_entry(method, pictures, images)._replace(model=settings)
        for method, settings, pictures in baselines.denoise_all(folder, noisy, clean, inputs)
    ]


def rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One dictionary for each entry, its metrics as `Interval`."""
    return [
        {
            "label": entry.label,
            "model": entry.model,
            "runs": len(entry.qualities),
            "parameters": entry.parameters,
            "code": entry.code,
            "seconds": entry.seconds,
            **{name: mean_interval(entry.values(name)) for name in Quality._fields},
        }
        for entry in entries
    ]


def differences(
    entries: Sequence[Entry], others: Sequence[Entry] | None = None
) -> list[dict[str, Any]]:
    """Metrics of one entry minus those of another one, paired by image.

    Args:
        entries: the first of each pair.
        others: the second of each pair; None takes all pairs among the entries.
    """
    pairs = itertools.product(entries, others) if others else itertools.combinations(entries, 2)
    return [
        {
            "label": f"{a.label} - {b.label}",
            **{
                name: difference_interval(a.values(name), b.values(name))
                for name in Quality._fields
            },
        }
        for a, b in pairs
    ]


def table(rows: Sequence[Mapping[str, Any]], *, signed: bool = False) -> str:
    """What `rows` or `differences` gave, as a Markdown table with the columns of its first row."""
    heads = [_HEADS.get(name, "" if name == "label" else name) for name in rows[0]]
    cells = [[_cell(name, value, "+" * signed) for name, value in row.items()] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join(
        f"| {' | '.join(f'{cell:<{width}}' for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def _cell(name: str, value: Any, sign: str) -> str:
    if isinstance(value, Interval):
        mean, low, high = (format(number, sign + _FORMATS[name]) for number in value)
        return f"{mean} [{low}, {high}]"
    if value is None:
        return "-"
    return format(value, {"parameters": ",", "seconds": ".0f"}.get(name, ""))


def mean_psnr(pictures: np.ndarray, images: np.ndarray) -> float:
    """Mean over the images of the PSNR in dB of pictures in [0, 1]."""
    return float(np.mean(metrics.psnr(jnp.asarray(pictures), scale(jnp.asarray(images)))))


def robustness(
    trained: Sequence[Trained], images: np.ndarray, noise: str, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """Mean PSNR of each config's first run over the level of a noise.

    Args:
        trained: the configs.
        images: uint8 ``[N, 28, 28, 1]``.
        noise: a kind with levels.
        seed: see `noisy_images`.

    Returns:
        label to points (level, dB), ``"noisy image"`` first.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for level in levels_around(noise):
        inputs = noisy_images(images, noise, level, seed)
        outputs = {each.label: each.autoencoders[0].reconstruct(inputs) for each in trained}
        for label, pictures in {"noisy image": inputs, **outputs}.items():
            curves.setdefault(label, []).append((level, mean_psnr(pictures, images)))
    return curves


def levels_around(noise: str) -> list[float]:
    """Levels of a robustness curve: from a quarter of the default to twice as much."""
    kind = NOISES[noise]
    levels = [min(share * kind.default, kind.most) for share in _SHARES]
    return sorted({float(round(level)) if kind.whole else level for level in levels})


def picture_rows(entries: Iterable[Entry], images: np.ndarray) -> dict[str, np.ndarray]:
    """The first ten images: clean, and what each entry makes of them."""
    return {"clean": images[:10] / 255} | {entry.label: entry.pictures[:10] for entry in entries}


def worst_rows(
    entries: Iterable[Entry], images: np.ndarray, inputs: np.ndarray | None
) -> dict[str, np.ndarray]:
    """For each entry the ten images of its lowest PSNR: clean, noisy, and what it makes of them."""
    pictures = {}
    for entry in entries:
        worst = np.argsort(entry.qualities[0].psnr, kind="stable")[:10]
        pictures[f"{entry.label}\nclean"] = images[worst] / 255
        if inputs is not None:
            pictures[f"{entry.label}\nnoisy"] = inputs[worst]
        pictures[entry.label] = entry.pictures[worst]
    return pictures
