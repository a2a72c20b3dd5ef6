"""Trains the networks of the comparison study and writes its Markdown page and figures."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cae_jax
from cae_jax import atomic, figures, markdown
from cae_jax import data as data_sets
from cae_jax.config import NOISES, TrainConfig, check_level
from cae_jax.evaluation import baselines, comparison, linear
from cae_jax.evaluation.lazy import Images
from cae_jax.runs import members
from cae_jax.runs.interruption import Interrupted


class Plan(NamedTuple):
    """The configs to compare, by name. A name stands for one config; its seed is ignored.

    Attributes:
        denoising: networks trained with the same noise.
        mix: one more, trained with a mix of noises.
        reconstruction: networks trained without noise.
        frontier: networks trained without noise, by family; a family is one line of the figure.
        seeds: runs of each config, with seeds 0, 1, ...
    """

    denoising: dict[str, TrainConfig]
    mix: dict[str, TrainConfig]
    reconstruction: dict[str, TrainConfig]
    frontier: dict[str, dict[str, TrainConfig]]
    seeds: int


class Data(NamedTuple):
    """Images of the data set, uint8 ``[N, H, W, C]``."""

    train: np.ndarray
    test: np.ndarray


Networks = Mapping[str, comparison.Trained]
Entries = Mapping[str, comparison.Entry]


class Page:
    """A Markdown file and its figures, in the same folder and with its name as prefix."""

    def __init__(self, path: Path):
        self.path = path
        self._parts: list[str] = []

    def add(self, *paragraphs: str) -> None:
        self._parts += paragraphs

    def add_images(self, name: str, rows: Mapping[str, np.ndarray]) -> None:
        """Adds a figure of rows of images, see `figures.save_rows`."""
        figures.save_rows(self._figure(name), rows)

    def add_lines(
        self,
        name: str,
        lines: Mapping[str, Sequence[tuple[float, float]]],
        x_label: str,
        y_label: str,
        **options: Any,
    ) -> None:
        """Adds a figure of lines, see `figures.save_lines`."""
        figures.save_lines(self._figure(name), lines, x_label=x_label, y_label=y_label, **options)

    def write(self) -> None:
        atomic.write_text(self.path, "\n\n".join(self._parts) + "\n")

    def _figure(self, name: str) -> Path:
        path = self.path.with_name(f"{self.path.stem}_{name}.png")
        self.add(f"![{name}]({path.name})")
        return path


def run(
    plan: Plan,
    workdir: Path,
    path: Path,
    *,
    with_baselines: bool = True,
    data_dir: str | Path | None = None,
) -> None:
    """Trains the missing runs and writes the page.

    Args:
        plan: what to compare.
        workdir: folder of the runs; finished ones are reused.
        path: the page, a Markdown file; its figures go to the same folder.
        with_baselines: include the classical denoisers.
        data_dir: see `cae_jax.data.load_split`.

    Raises:
        UserError: see `cae_jax.fit`; or the page cannot be written.
    """
    atomic.check_output(path)
    if with_baselines:
        with baselines.workers():  # fails now, not after an hour, if the extra is missing
            pass
    configs = plan.denoising | plan.mix | plan.reconstruction
    for family in plan.frontier.values():
        configs |= family
    trained = {}
    for name, config in configs.items():
        runs = _train(config, plan.seeds, workdir / name, data_dir)
        trained[name] = comparison.open_runs(name, runs)
    some = next(iter(configs.values()))
    data = Data(
        *(data_sets.load_split(some, split, data_dir=data_dir)[0] for split in ("train", "test"))
    )
    data = data._replace(test=data.test[: some.test_examples])
    page = Page(path)
    page.add("# Comparison", _introduction(plan, _devices(workdir), len(data.test)))
    with atomic.writing(path):
        _add_denoising(page, plan, trained, data, workdir / "baselines" if with_baselines else None)
        _add_noises(page, plan, trained, data)
        entries = _clean_entries(plan, trained, data)
        _add_reconstruction(page, plan, entries, data)
        _add_frontier(page, plan, entries)
        page.write()
    print(f"Wrote {path}")


def _train(
    config: TrainConfig, seeds: int, folder: Path, data_dir: str | Path | None
) -> list[Path]:
    """The runs of a config with seeds 0, 1, ..., trained unless they are there."""
    configs = [dataclasses.replace(config, seed=seed) for seed in range(seeds)]
    interrupted = cae_jax.fit_population(configs, folder, data_dir=data_dir).interrupted
    if interrupted is not None:
        raise Interrupted(interrupted)
    return [folder / name for name in members.name_members(configs)]


def _devices(workdir: Path) -> str:
    """The devices on which the runs were trained."""
    results = [json.loads(path.read_text()) for path in workdir.glob("*/seed=*/result.json")]
    return ", ".join(sorted({result["device"] for result in results}))


def _introduction(plan: Plan, devices: str, images: int) -> str:
    return f"""Written by `python -m benchmarks.study` with jax {jax.__version__}. Trained on:
{devices}.

All networks are evaluated on the {images:,} test images, with {plan.seeds} seeds each. Brackets
hold 95 % confidence intervals over the images (bootstrap) and, for several runs, over the runs (t
distribution); differences are paired by image. *code* is the latent dimension. BCE is the mean
binary cross-entropy in nats; for images that no network has produced, pixels are clipped to
[1e-7, 1 - 1e-7]. PSNR and SSIM are means over the images. Times are in performance.md: the runs
shared their machines."""


def _add_denoising(
    page: Page, plan: Plan, trained: Networks, data: Data, cache: Path | None
) -> None:
    config = next(iter(plan.denoising.values()))
    noise, level = config.noise, check_level(config.noise, config.noise_level)
    inputs = comparison.noisy_images(data.test, noise, level)
    others = [comparison.untrained_entry("noisy image", inputs, data.test)]
    page.add("## Denoising", f"{noise} noise of {level:g} ({NOISES[noise].meaning}).")
    if cache is not None:
        page.add(
            "The parameters of the classical denoisers, and an affine map of their output, are "
            f"tuned on {baselines.TUNING_IMAGES} noisy training images."
        )
        clean = data.train[: baselines.TUNING_IMAGES]
        # Another seed: tuning must not see the noise of the test images.
        tuning = clean, comparison.noisy_images(clean, noise, level, seed=1)
        others += comparison.baseline_entries(cache, tuning, data.test, inputs)
    networks = [trained[name] for name in (*plan.denoising, *plan.mix)]
    entries = [_entry(each, data.test, inputs) for each in networks]
    # Compare the networks, the best classical denoiser and the noisy images.
    best = sorted(others[1:], key=lambda entry: entry.values("psnr").mean())[-1:]
    page.add(
        comparison.metrics_table(comparison.summaries([*others, *entries])),
        "Differences, first minus second:",
        comparison.metrics_table(comparison.differences([*entries, *best, others[0]]), signed=True),
    )
    page.add_images("denoised", comparison.first_rows([*others, *entries], data.test))
    page.add("The ten test images with each network's lowest PSNR:")
    page.add_images("worst", comparison.worst_rows(entries, data.test, inputs))
    page.add("The networks at noise levels below and above that of training:")
    curves = comparison.robustness_curves(networks, data.test, noise)
    page.add_lines("robustness", curves, NOISES[noise].meaning, "mean PSNR (dB)")


def _add_noises(page: Page, plan: Plan, trained: Networks, data: Data) -> None:
    networks = [trained[name] for name in (*plan.denoising, *plan.mix)]
    header = ["", "parameters", "code"]
    rows = [["noisy image", "-", "-"]]
    for network in networks:
        first = network.autoencoders[0]
        rows.append([network.label, f"{first.parameters:,}", str(math.prod(first.code_shape))])
    for noise, kind in NOISES.items():
        header.append(f"{noise} {kind.default:g}")
        inputs = comparison.noisy_images(data.test, noise)
        psnr = [comparison.mean_psnr(inputs, data.test)]
        for network in networks:
            outputs = [each.reconstruct(np.asarray(inputs)) for each in network.autoencoders]
            psnr.append(statistics.mean(comparison.mean_psnr(x, data.test) for x in outputs))
        for row, value in zip(rows, psnr, strict=True):
            row.append(f"{value:.2f}")
    page.add(
        "## Other noises",
        "Mean PSNR in dB of the same networks on each noise at its default level.",
        markdown.table(header, rows),
    )


def _clean_entries(plan: Plan, trained: Networks, data: Data) -> Entries:
    """Evaluates the networks without noise on clean images, once for both sections."""
    clean = comparison.noisy_images(data.test, "none")
    names = set(plan.reconstruction).union(*plan.frontier.values())
    return {name: _entry(trained[name], data.test, clean) for name in names}


def _entry(network: comparison.Trained, images: np.ndarray, inputs: Images) -> comparison.Entry:
    """An entry without its seconds: runs that share a machine cannot be compared by their time."""
    return comparison.trained_entry(network, images, inputs)._replace(seconds=None)


def _add_reconstruction(page: Page, plan: Plan, clean: Entries, data: Data) -> None:
    networks = [clean[name] for name in plan.reconstruction]
    sizes = sorted({entry.code for entry in networks if entry.code is not None})
    inputs = comparison.noisy_images(data.test, "none")
    train = data.train[: next(iter(plan.reconstruction.values())).train_examples]
    fitted = linear.fit(train, sizes[-1])
    entries = [*networks, *comparison.linear_entries(fitted, sizes, data.test, inputs)]
    page.add(
        "## Reconstruction",
        "Networks trained without noise, on clean test images, and the principal components of the "
        "training images with as many values as their codes.",
        comparison.metrics_table(comparison.summaries(entries)),
        comparison.metrics_table(comparison.differences(entries), signed=True),
    )
    page.add_images("reconstructed", comparison.first_rows(entries, data.test))


def _add_frontier(page: Page, plan: Plan, clean: Entries) -> None:
    families = {
        family: [clean[name] for name in configs] for family, configs in plan.frontier.items()
    }
    points = {
        family: sorted((entry.parameters or 0, entry.values("bce").mean()) for entry in entries)
        for family, entries in families.items()
    }
    entries = list(itertools.chain(*families.values()))
    convolutional = [entry for entry in entries if entry.model == "conv"]
    others = [entry for entry in entries if entry.model != "conv"]
    page.add(
        "## Loss over parameters",
        "Networks trained without noise, on clean test images. `conv-a-b-c` has a, b and c "
        "features in its encoder layers, `fashion_mnist` 16, 8 and 8.",
        comparison.metrics_table(comparison.summaries(entries)),
        "Differences to the fully connected networks:",
        comparison.metrics_table(comparison.differences(convolutional, others), signed=True),
    )
    page.add_lines("frontier", points, "parameters", "test BCE (nats)", log_x=True)
