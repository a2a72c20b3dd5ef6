"""The whole comparison: trains what is missing, then writes one Markdown page with its figures."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cae_jax import atomic, figures
from cae_jax import data as data_sets
from cae_jax.config import NOISES, TrainConfig, check_level
from cae_jax.errors import UserError
from cae_jax.evaluation import baselines, comparison
from cae_jax.runs import fit
from cae_jax.runs.folder import read_config
from cae_jax.runs.interruption import Interrupted
from cae_jax.training.trainer import device_name


class Plan(NamedTuple):
    """What is compared; names to configs, whose seed does not matter. A name has one config.

    Attributes:
        denoising: networks trained with one noise, all with the same.
        mix: one more, trained with a mix of noises.
        reconstruction: networks trained without noise.
        frontier: networks trained without noise, by family: points of one line of the figure.
        seeds: runs of each, with seeds 0, 1, ...
    """

    denoising: dict[str, TrainConfig]
    mix: dict[str, TrainConfig]
    reconstruction: dict[str, TrainConfig]
    frontier: dict[str, dict[str, TrainConfig]]
    seeds: int


class Data(NamedTuple):
    """Images of the data set, uint8 ``[N, 28, 28, 1]``."""

    train: np.ndarray
    test: np.ndarray


Networks = Mapping[str, comparison.Trained]
Entries = Mapping[str, comparison.Entry]


class Page:
    """A Markdown file and the figures beside it, whose names begin like its own."""

    def __init__(self, path: Path):
        self.path = path
        self._parts: list[str] = []

    def add(self, *paragraphs: str) -> None:
        self._parts += paragraphs

    def add_pictures(self, name: str, rows: Mapping[str, np.ndarray]) -> None:
        """Rows of images, see `figures.save_rows`."""
        figures.save_rows(self._figure(name), rows)

    def add_lines(
        self,
        name: str,
        lines: Mapping[str, Sequence[tuple[float, float]]],
        x_label: str,
        y_label: str,
        **options: Any,
    ) -> None:
        """A figure of lines, see `figures.save_lines`."""
        figures.save_lines(self._figure(name), lines, x_label=x_label, y_label=y_label, **options)

    def write(self) -> None:
        atomic.write_text(self.path, "\n\n".join(self._parts) + "\n")

    def _figure(self, name: str) -> Path:
        path = self.path.with_name(f"{self.path.stem}_{name}.png")
        self.add(f"![{name}]({path.name})")
        return path


def run(
    plan: Plan,
    folder: Path,
    path: Path,
    *,
    with_baselines: bool = True,
    data_dir: str | Path | None = None,
) -> None:
    """Trains what is missing and writes the page.

    Args:
        plan: what is compared.
        folder: of the runs; what is finished there is taken as it is.
        path: of the page, a Markdown file; its figures stand beside it.
        with_baselines: whether to add the classical denoisers.
        data_dir: see `cae_jax.data.load_split`.

    Raises:
        UserError: as of `cae_jax.fit`, or the page cannot be written.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"page {path} cannot be written; give a file in a folder that exists")
    if with_baselines:
        with baselines.workers():  # says so now, and not after an hour, if they are not installed
            pass
    configs = plan.denoising | plan.mix | plan.reconstruction
    for family in plan.frontier.values():
        configs |= family
    trained = {}
    for name, config in configs.items():
        runs = [_train(config, seed, folder / name, data_dir) for seed in range(plan.seeds)]
        trained[name] = comparison.open_runs(name, runs)
    some = next(iter(configs.values()))
    data = Data(
        *(
            data_sets.load_split(some.dataset, split, data_dir=data_dir)[0]
            for split in ("train", "test")
        )
    )
    data = data._replace(test=data.test[: some.test_examples])
    page = Page(path)
    page.add("# Comparison", _head(plan, device_name(), len(data.test)))
    try:
        _add_denoising(page, plan, trained, data, folder / "baselines" if with_baselines else None)
        _add_kinds(page, plan, trained, data)
        entries = _clean_entries(plan, trained, data)
        _add_reconstruction(page, plan, entries, data)
        _add_frontier(page, plan, entries)
        page.write()
    except OSError as error:
        raise UserError(f"page {path} cannot be written ({error}); give another one") from error
    print(f"Wrote {path}")


def _train(config: TrainConfig, seed: int, folder: Path, data_dir: str | Path | None) -> Path:
    run, config = folder / f"seed{seed}", dataclasses.replace(config, seed=seed)
    if (run / "config.json").exists() and read_config(run) != config:
        raise UserError(f"{run} holds a run of another config; remove it or give another --workdir")
    if not (run / "result.json").exists():
        print(f"Training {run}", flush=True)
        interrupted = fit.fit(config, run, data_dir=data_dir).interrupted
        if interrupted is not None:
            raise Interrupted(interrupted)
    return run


def _head(plan: Plan, device: str, images: int) -> str:
    return f"""Written by `python -m benchmarks.study` on {device}, jax {jax.__version__}.

Everything is measured on the {images:,} test images, each network with {plan.seeds} seeds. Numbers
in brackets are a 95 % interval over the images (bootstrap) and, where there are several, over the
runs (t distribution); differences are paired by image. *seconds* is the time of training, median
over the runs; *code* is the number of values in an image's code. BCE is the mean binary
cross-entropy in nats; of images that no network made, it is that of pixels clipped to
[1e-7, 1 - 1e-7]. PSNR and SSIM are means over the images."""


def _add_denoising(
    page: Page, plan: Plan, trained: Networks, data: Data, kept: Path | None
) -> None:
    config = next(iter(plan.denoising.values()))
    noise, level = config.noise, check_level(config.noise, config.noise_level)
    inputs = comparison.noisy_images(data.test, noise, level)
    others = [comparison.picture_entry("noisy image", inputs, data.test)]
    page.add("## Denoising", f"{noise} noise of {level:g} ({NOISES[noise].meaning}).")
    if kept is not None:
        page.add(
            "The classical methods have their parameters, and an affine map of their output, tuned "
            f"on {baselines.TUNING_IMAGES} noisy training images."
        )
        others += comparison.baseline_entries(kept, data.train, data.test, inputs, noise, level)
    networks = [trained[name] for name in (*plan.denoising, *plan.mix)]
    entries = [comparison.trained_entry(each, data.test, inputs) for each in networks]
    # The networks, the best of the classical methods, the noisy image.
    best = sorted(others[1:], key=lambda entry: entry.values("psnr").mean())[-1:]
    page.add(
        comparison.table(comparison.rows([*others, *entries])),
        "Differences, of the first named minus the second:",
        comparison.table(comparison.differences([*entries, *best, others[0]]), signed=True),
    )
    page.add_pictures("denoised", comparison.picture_rows([*others, *entries], data.test))
    page.add("The ten test images of each network's lowest PSNR:")
    page.add_pictures("worst", comparison.worst_rows(entries, data.test, inputs))
    page.add("The networks on less and on more noise than they were trained for:")
    curves = comparison.robustness(networks, data.test, noise)
    page.add_lines("robustness", curves, NOISES[noise].meaning, "mean PSNR (dB)")


def _add_kinds(page: Page, plan: Plan, trained: Networks, data: Data) -> None:
    networks = [trained[name] for name in (*plan.denoising, *plan.mix)]
    columns: list[list[str]] = [["", "noisy image", *(network.label for network in networks)]]
    firsts = [network.autoencoders[0] for network in networks]
    columns.append(["parameters", "-", *(f"{first.parameters:,}" for first in firsts)])
    columns.append(["code", "-", *(str(math.prod(first.code_shape)) for first in firsts)])
    for noise, kind in NOISES.items():
        inputs = comparison.noisy_images(data.test, noise)
        psnr = [comparison.mean_psnr(inputs, data.test)]
        for network in networks:
            pictures = [each.reconstruct(inputs) for each in network.autoencoders]
            psnr.append(statistics.mean(comparison.mean_psnr(p, data.test) for p in pictures))
        columns.append([f"{noise} {kind.default:g}", *(f"{value:.2f}" for value in psnr)])
    lines = [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)]
    page.add(
        "## Other kinds of noise",
        "Mean PSNR in dB of the same networks on each kind of noise at its default level.",
        "\n".join([lines[0], f"|{' --- |' * len(columns)}", *lines[1:]]),
    )


def _clean_entries(plan: Plan, trained: Networks, data: Data) -> Entries:
    """Of the networks without noise, on clean images; some stand in both sections."""
    clean = comparison.noisy_images(data.test, "none")
    names = set(plan.reconstruction).union(*plan.frontier.values())
    return {name: comparison.trained_entry(trained[name], data.test, clean) for name in names}


def _add_reconstruction(page: Page, plan: Plan, clean: Entries, data: Data) -> None:
    entries = [clean[name] for name in plan.reconstruction]
    page.add(
        "## Reconstruction",
        "Networks trained without noise, on clean test images.",
        comparison.table(comparison.rows(entries)),
        comparison.table(comparison.differences(entries), signed=True),
    )
    page.add_pictures("reconstructed", comparison.picture_rows(entries, data.test))


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
        "Networks without noise, on clean test images. `conv-a-b-c` has these features in its "
        "three encoder layers, `fashion_mnist` 16, 8 and 8.",
        comparison.table(comparison.rows(entries)),
        "Differences to the fully connected networks:",
        comparison.table(comparison.differences(convolutional, others), signed=True),
    )
    page.add_lines("frontier", points, "parameters", "test BCE (nats)", log_x=True)
