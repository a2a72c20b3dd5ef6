"""Find images that are unlike those of a training, at a stated rate of false alarms.

    cae-jax score runs/parts new_parts --alarm-rate 0.01 --out scores.csv --figure worst.png

Train a run on normal images first. Its test images, which it was not trained on, calibrate the
scores: an image has the p-value p if a share p of them is at least as unlike the training images,
and raises an alarm where p is at most the rate.
"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:  # imports JAX
    from cae_jax.models.detection import Detector
    from cae_jax.models.inference import Autoencoder

_SHOWN = 10  # images in the figure


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory of a training on normal images, or a shipped model."""

    data: tyro.conf.Positional[str]
    """The images to score, all splits: a path as of train --data, or a named data set."""

    out: Path
    """CSV file: name, score, p_value and alarm of each image."""

    alarm_rate: float = 0.01
    """Share of normal images that may raise an alarm."""

    by: Literal["code", "residual"] = "code"
    """code for images of another kind, residual for defects in images of the same kind."""

    discovery_rate: float | None = None
    """Add a column of discoveries, of which this share may be normal (Benjamini-Hochberg)."""

    figure: Path | None = None
    """Draw the ten images with the lowest p-values above their reconstructions and maps of what is
    unlike there."""

    moved: str | None = None
    """Where the images of the training are now, if they have moved."""

    best: bool = False
    """Take the checkpoint with the lowest val_loss instead of the newest one."""

    skip_unreadable: bool = False
    """Leave out damaged images, also where the training did not."""

    where: common.Data = common.DataFlags()


def run(flags: Flags) -> None:
    from cae_jax import data
    from cae_jax.models import detection
    from cae_jax.runs.folder import read_config

    for path in (flags.out, flags.figure):
        atomic.check_output(path)
    for name in ("alarm_rate", "discovery_rate"):
        if (rate := getattr(flags, name)) is not None:
            detection.check_share(name, rate)
    config = data.elsewhere(read_config(flags.run), flags.data, data_dir=flags.where.data_dir)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, best=flags.best, backend="matmul").of_pixels
    if autoencoder.detector is None:
        autoencoder.detector = fitted(flags, autoencoder)
    count = len(autoencoder.detector.code_M)
    detection.check_rate(flags.alarm_rate, count)
    names, found, worst = [], [], Worst(autoencoder)
    where: Any = {"data_dir": flags.where.data_dir, "workers": flags.where.workers}
    where["skip_unreadable"] = flags.skip_unreadable
    for some, images in data.stream(config, autoencoder.max_batch, **where):
        scores = autoencoder.score(images, flags.by)
        names += some
        found.append(scores)
        worst.add(images, scores.score_N)
    score_N, p_N = (np.concatenate(part) for part in zip(*found, strict=True))
    columns = {"score": score_N, "p_value": p_N, "alarm": p_N <= flags.alarm_rate}
    if flags.discovery_rate is not None:
        columns["discovery"] = detection.discoveries(p_N, flags.discovery_rate)
    with atomic.writing(flags.out):
        atomic.write_text(flags.out, table(names, columns))
    if flags.figure:
        worst.draw(flags.figure)
    report(flags, columns, count)


def fitted(flags: Flags, autoencoder: "Autoencoder") -> "Detector":
    """The detector of the run, fitted to the images of its training."""
    from cae_jax.models import detection
    from cae_jax.runs import detectors, environment, pretrained
    from cae_jax.runs.folder import read_config

    where, run = vars(flags.where), pretrained.locate(flags.run)
    config = read_config(run)
    (config,), same = environment.moved([run], [config], flags.moved, **where)
    if not same:
        raise UserError(
            f"`moved` {flags.moved} has other images than {run} was trained on; give those"
        )
    train, test = detectors.images(run, config, **where)
    detection.check_rate(flags.alarm_rate, len(test))
    return detectors.fit(run, autoencoder, train, test)


class Worst:
    """The images with the lowest p-values so far; those with the highest scores of equal ones."""

    def __init__(self, autoencoder: "Autoencoder") -> None:
        self._autoencoder = autoencoder
        self._images = np.zeros((0, *autoencoder.topology.image_shape), np.uint8)
        self._scores = np.zeros(0)

    def add(self, images: np.ndarray, score_N: np.ndarray) -> None:
        """Adds uint8 images ``[N, H, W, C]`` with their scores."""
        scores = np.concatenate([self._scores, score_N])
        order = np.argsort(-scores, kind="stable")[:_SHOWN]
        self._images = np.concatenate([self._images, images])[order]
        self._scores = scores[order]

    def draw(self, path: Path) -> None:
        """Draws them above their reconstructions and maps, which are white at their largest."""
        from cae_jax import figures

        maps = self._autoencoder.anomaly_maps(self._images)
        rows = {
            "image": self._images / 255,
            "reconstruction": self._autoencoder.reconstruct(self._images),
            "unlike": np.repeat(maps[..., None] / max(maps.max(), 1e-6), 3, axis=-1),
        }
        with atomic.writing(path):
            figures.save_rows(path, rows)


def table(names: list[str], columns: dict[str, np.ndarray]) -> str:
    """The CSV file: a row for each image, truth values as 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *columns])
    for name, *values in zip(names, *(column.tolist() for column in columns.values()), strict=True):
        writer.writerow([name, *(f"{float(value):.7g}" for value in values)])
    return text.getvalue()


def report(flags: Flags, columns: dict[str, np.ndarray], calibration: int) -> None:
    """Prints how many alarms there are, and what their rate promises."""
    from cae_jax.models import detection

    rate, count = flags.alarm_rate, len(columns["alarm"])
    low, high = detection.realised_rates(rate, calibration)
    print(f"{flags.out}: {columns['alarm'].sum():,} of {count:,} images raise an alarm")
    if "discovery" in columns:
        print(
            f"{columns['discovery'].sum():,} are discoveries, of which a share of at most "
            f"{flags.discovery_rate:.3g} is expected to be normal"
        )
    print(
        f"A normal image raises an alarm with a probability of at most {rate:.3g} on average over "
        f"calibrations; with {calibration:,} calibration images it is {low:.2g} to {high:.2g} in "
        "95 of 100 cases"
    )
