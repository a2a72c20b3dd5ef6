"""Compares models on the same test images with the same noise: tables and robustness curves."""

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

from cae_jax import markdown
from cae_jax.config import ARRAYS, NOISES, PAIRS, TrainConfig, check_level
from cae_jax.errors import UserError
from cae_jax.evaluation import baselines, linear
from cae_jax.evaluation.intervals import Interval, difference_interval, mean_interval
from cae_jax.evaluation.lazy import Images, Lazy, parts
from cae_jax.evaluation.quality import Quality, evaluate_images, evaluate_model
from cae_jax.models.autoencoders import scale
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history
from cae_jax.runs.folder import images_of, read_config
from cae_jax.runs.load import load
from cae_jax.runs.names import run_names
from cae_jax.training import metrics
from cae_jax.training.noise import build_corruption, has_rows
from cae_jax.training.rows import from_row
from cae_jax.training.step import make_keys

_MAX_BYTES = 256 * 2**20  # of noisy images, of which more are computed part by part
# Levels of a robustness curve, relative to the default level of the noise.
_RELATIVE_LEVELS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_LINEAR = "linear"  # the model of PCA
# Rows of tables and figures that are not runs.
_LABELS = ("clean", "noisy image", *baselines.DENOISERS)
# Fields of a config that determine the images.
DATA_FIELDS = (
    *("data", "image_size", "resize", "channels", "background", "black", "white", "frames"),
    *("split", "include", "exclude", "skip_unreadable", "image_shape", "pairs"),
)
_FORMATS = {"bce": ".4f", "mse": ".5f", "psnr": ".2f", "ssim": ".4f"}
_FORMATS |= {"parameters": ",", "seconds": ".0f"}
_COLUMNS = ("label", "model", "runs", "parameters", "code", "seconds")
_TITLES = {"label": "", "bce": "BCE", "mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM"}


def check_same_images(configs: Sequence[TrainConfig], runs: Sequence[Path] = ()) -> None:
    """Raises a `UserError` if configs take different images; it names the first difference.

    The path to the images may differ where the runs were trained on the same.
    """
    digests = {images_of(run) for run in runs}
    same = len(digests) == 1 and digests != {""}
    for name in DATA_FIELDS[1:] if same else DATA_FIELDS:
        values = sorted({str(getattr(config, name)) for config in configs})
        if len(values) > 1:
            raise UserError(
                f"the runs were trained with {name} {' and '.join(values)}; give runs of one data "
                "set"
            )


class Entry(NamedTuple):
    """One row of a comparison.

    Attributes:
        label: title of the row.
        model: ``TrainConfig.model``, ``"linear"``, or the parameters of a classical denoiser.
        parameters: number of trained parameters; None without training.
        code: latent dimension; None without training.
        seconds: training time, median over the runs; None except for networks.
        qualities: one per run.
        outputs: the first run's outputs for the test inputs, ``[N, H, W, C]`` in [0, 1]; those of a
            network are computed when they are taken.
    """

    label: str
    model: str
    parameters: int | None
    code: int | None
    seconds: float | None
    qualities: list[Quality]
    outputs: Images

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.qualities)

    def values(self, metric: str) -> np.ndarray:
        """Returns a metric of each run and image, float64 ``[R, N]``."""
        return np.stack([getattr(quality, metric) for quality in self.qualities])


class Trained(NamedTuple):
    """The runs of one config: the model and the training time in seconds of each."""

    label: str
    autoencoders: list[Autoencoder]
    seconds: list[float]


def open_runs(label: str, runs: Sequence[Path]) -> Trained:
    """Loads the runs of one config.

    Raises:
        UserError: a folder that is not a run, or a run without a checkpoint.
    """
    return Trained(
        label,
        [load(run).of_pixels for run in runs],
        [sum(row.epoch_seconds for row in history.of_run(run)) for run in runs],
    )


def group_runs(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Groups runs whose configs differ only in the seed; the first run of a group names it.

    Raises:
        UserError: two runs have the same config and seed, and would count as two.
    """
    groups: dict[str, dict[int, Path]] = {}
    names = dict(zip(runs, run_names(runs, taken=_LABELS), strict=True))
    for run in runs:
        config = read_config(run)
        # Images may have moved between two trainings.
        same = dataclasses.replace(config, seed=0, data=ARRAYS, decode="once")
        group = groups.setdefault(repr(same), {})
        if config.seed in group:
            raise UserError(
                f"{group[config.seed]} and {run} are the same config with the same seed; give one"
            )
        group[config.seed] = run
    return {names[next(iter(group.values()))]: list(group.values()) for group in groups.values()}


def noisy_images(images: Images, noise: str, level: float | None = None, seed: int = 0) -> Images:
    """Adds noise to test images, the same for all models: float32 ``[N, H, W, C]`` in [0, 1].

    Args:
        images: uint8 ``[N, H, W, C]``.
        noise, level: see `TrainConfig`.
        seed: seed of the noise; a training run with this seed validates on the same noise.

    Raises:
        UserError: an unknown noise, or a level outside its range.
    """
    corrupt, key = build_corruption(noise, level), make_keys(seed).test_noise
    compiled = None if corrupt is None else jax.jit(corrupt)

    def noisy(part: slice) -> np.ndarray:
        clean = scale(jnp.asarray(images[part]))
        if compiled is None:
            return np.asarray(clean)
        return np.asarray(compiled(from_row(key, part.start) if part != whole else key, clean))

    whole, shape = slice(0, len(images)), images.shape
    if noise == PAIRS:
        shape = (*shape[:-1], shape[-1] // 2)
    fits = 4 * math.prod(shape) <= _MAX_BYTES
    return noisy(whole) if fits or not has_rows(noise, level) else Lazy(shape, noisy)


def clean_and_noisy(
    stored: Images, config: TrainConfig, noise: str, level: float | None = None, seed: int = 0
) -> tuple[Images, Images]:
    """The targets among images and what the models are to restore them from.

    Args:
        stored: uint8 ``[N, H, W, C]``, or pairs, see `cae_jax.data.Dataset`.
        config: says whether they are pairs.
        noise, level, seed: see `noisy_images`; ``"pairs"`` takes the inputs of the pairs.

    Returns:
        targets uint8 and inputs float32, ``[N, H, W, C]``, as `Lazy` where they are many.
    """
    images = clean(stored, config)
    return images, noisy_images(stored if noise == PAIRS else images, noise, level, seed)


def clean(stored: Images, config: TrainConfig) -> Images:
    """The targets among images; arguments as of `clean_and_noisy`."""
    if not config.pairs:
        return stored
    *shape, channels = stored.shape
    half = channels // 2
    return Lazy((*shape, half), lambda part: np.asarray(stored[part])[..., :half])


def trained_entry(trained: Trained, images: Images, inputs: Images) -> Entry:
    """Evaluates the runs of a config on `inputs`, whose clean form is `images`."""
    first = trained.autoencoders[0]
    return Entry(
        trained.label,
        model=first.config.model,
        parameters=first.parameters,
        code=math.prod(first.code_shape),
        seconds=statistics.median(trained.seconds),
        qualities=[evaluate_model(each, images, inputs) for each in trained.autoencoders],
        outputs=_reconstructions(first, inputs),
    )


def _reconstructions(autoencoder: Autoencoder, inputs: Images) -> Lazy:
    return Lazy(inputs.shape, lambda part: autoencoder.reconstruct(inputs[part]))


def untrained_entry(label: str, outputs: Images, images: Images, settings: str = "-") -> Entry:
    """Evaluates images that no network has produced: denoised classically, or the noisy ones."""
    return Entry(label, settings, None, None, None, [evaluate_images(outputs, images)], outputs)


def baseline_entries(
    folder: Path,
    tuning: tuple[Images, Images],
    images: Images,
    inputs: Images,
) -> list[Entry]:
    """Evaluates the classical denoisers, tuned on training images with the same kind of noise.

    Args:
        folder: cache of the denoised images, see `baselines.denoise_all`.
        tuning: training images and their noisy form, with other noise than the test images, as of
            `clean_and_noisy`.
        images: test images, uint8 ``[N, H, W, C]``.
        inputs: their noisy form, float32 ``[N, H, W, C]`` in [0, 1].

    Raises:
        UserError: the extra ``baselines`` is not installed, or `folder` cannot be written.
    """
    some = slice(baselines.tuning_images(images.shape[1:]))
    clean, noisy = (np.asarray(each[some]) for each in tuning)
    return [
        untrained_entry(name, outputs, images, settings)
        for name, settings, outputs in baselines.denoise_all(folder, noisy, clean, inputs)
    ]


def code_sizes(autoencoders: Iterable[Autoencoder]) -> list[int]:
    """The numbers of values of the codes, from the smallest."""
    return sorted({math.prod(each.code_shape) for each in autoencoders})


def fit_linear(
    stored: Images, config: TrainConfig, size: int, always: bool = False
) -> linear.Linear | None:
    """Principal components of the images of a training; None where they would take minutes.

    Args:
        stored: training images, or pairs, of which a training with `config` takes the first.
        config: of the training.
        size: values of the largest code.
        always: fit them though it takes minutes.
    """
    train = stored[: config.train_examples]
    if not (always or linear.is_cheap(train, size)):
        return None
    return linear.fit(clean(train, config), size)


def linear_entries(
    whole: linear.Linear, sizes: Sequence[int], images: Images, inputs: Images
) -> list[Entry]:
    """Evaluates principal components, an entry for each size of the code.

    Args:
        whole: components for the largest one.
        sizes: as of `code_sizes`.
        images, inputs: see `trained_entry`.
    """
    fitted = [whole.first(size) for size in sizes]
    outputs = [Lazy(inputs.shape, lambda part, x=x: x.reconstruct(inputs[part])) for x in fitted]
    return [
        Entry(
            f"PCA, {size} values",
            model=_LINEAR,
            parameters=each.parameters,
            code=size,
            seconds=None,
            qualities=[evaluate_images(output, images)],
            outputs=output,
        )
        for size, each, output in zip(sizes, fitted, outputs, strict=True)
    ]


def summaries(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Summarises each entry in a dictionary, its metrics as `Interval`."""
    return [
        {name: getattr(entry, name) for name in _COLUMNS}
        | {name: mean_interval(entry.values(name)) for name in Quality._fields}
        for entry in entries
    ]


def differences(
    entries: Sequence[Entry], others: Sequence[Entry] | None = None
) -> list[dict[str, Any]]:
    """Subtracts the metrics of entries pairwise, paired by image, as `Interval`.

    Args:
        entries: minuends.
        others: subtrahends. Default: all pairs of `entries` are compared.

    Principal components are compared with networks of the same latent dimension only.
    """
    pairs = itertools.product(entries, others) if others else itertools.combinations(entries, 2)
    return [
        {"label": f"{a.label} - {b.label}"}
        | {name: difference_interval(a.values(name), b.values(name)) for name in Quality._fields}
        for a, b in pairs
        if _LINEAR not in (a.model, b.model) or a.code == b.code
    ]


def metrics_table(
    records: Sequence[Mapping[str, Any]], *, signed: bool = False, title: str = ""
) -> str:
    """Formats `summaries` or `differences` as Markdown, with the columns of the first record.

    Args:
        records: one for each row.
        signed: whether numbers have a sign.
        title: of the first column.
    """
    titles, sign = _TITLES | {"label": title}, "+" if signed else ""
    header = [titles.get(name, name) for name in records[0]]
    cells = [[_cell(name, value, sign) for name, value in row.items()] for row in records]
    return markdown.table(header, cells)


def _cell(name: str, value: Any, sign: str) -> str:
    form = _FORMATS.get(name, "")
    if isinstance(value, Interval):
        mean, low, high = (format(number, sign + form) for number in value)
        return f"{mean} [{low}, {high}]"
    return "-" if value is None else format(value, form)


def mean_psnr(outputs: Images, images: Images) -> float:
    """Returns the mean PSNR in dB of outputs in [0, 1] against uint8 images ``[N, H, W, C]``."""
    size = max(1, _MAX_BYTES // (4 * math.prod(images.shape[1:])))
    values = [
        metrics.psnr(jnp.asarray(outputs[part]), scale(jnp.asarray(images[part])))
        for part in parts(len(images), size)
    ]
    return float(np.mean(jnp.concatenate(values)))


def robustness_curves(
    trained: Sequence[Trained], images: Images, noise: str, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """Computes the mean PSNR of each config's first run at several levels of a noise.

    Args:
        trained: the configs.
        images: uint8 ``[N, H, W, C]``.
        noise: a key of `NOISES`.
        seed: see `noisy_images`.

    Returns:
        points (level, dB) by label, ``"noisy image"`` first.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for level in levels_around(noise, images.shape[1:]):
        inputs = noisy_images(images, noise, level, seed)
        outputs = {each.label: _reconstructions(each.autoencoders[0], inputs) for each in trained}
        for label, values in {"noisy image": inputs, **outputs}.items():
            curves.setdefault(label, []).append((level, mean_psnr(values, images)))
    return curves


def levels_around(noise: str, image_shape: tuple[int, ...]) -> list[float]:
    """Returns the levels of a robustness curve, from a quarter of the default to twice as much."""
    kind, default = NOISES[noise], check_level(noise, None, image_shape)
    most = min(image_shape[:2]) if kind.whole else kind.most
    levels = [min(max(relative * default, kind.least), most) for relative in _RELATIVE_LEVELS]
    return sorted({float(round(level)) if kind.whole else level for level in levels})


def first_rows(entries: Iterable[Entry], images: Images) -> dict[str, np.ndarray]:
    """Returns rows for `figures.save_rows`: the first ten images, clean and by each entry."""
    return {"clean": images[:10] / 255} | {entry.label: entry.outputs[:10] for entry in entries}


def worst_rows(
    entries: Iterable[Entry], images: Images, inputs: Images | None
) -> dict[str, np.ndarray]:
    """Returns rows for `figures.save_rows`: each entry's ten images of lowest PSNR.

    Args:
        entries: each contributes a row of clean images, of noisy ones, and of its outputs.
        images: clean images, uint8 ``[N, H, W, C]``.
        inputs: noisy images; None omits their rows.
    """
    rows = {}
    for entry in entries:
        worst = np.argsort(entry.qualities[0].psnr, kind="stable")[:10]
        rows[f"{entry.label}\nclean"] = images[worst] / 255
        if inputs is not None:
            rows[f"{entry.label}\nnoisy"] = inputs[worst]
        rows[entry.label] = entry.outputs[worst]
    return rows
