"""Measures how well `cae-jax score` tells other images, and whether it keeps its rate of alarms.

    python -m benchmarks.anomalies one-class
    python -m benchmarks.anomalies rates
    python -m benchmarks.anomalies digits
    python -m benchmarks.anomalies defects

- ``one-class``: for each class of Fashion-MNIST, trains on 5,000 of its training images, and tells
  it from the nine others on all 10,000 test images. The area under the ROC curve (AUROC) beside
  that of principal components and of detectors of scikit-learn on the pixels.
- ``rates``: splits the test images of a shipped model 200 times into calibration images and
  others, and counts the alarms among the others.
- ``digits``: as one-class, on scikit-learn's digits of 8 x 8 pixels.
- ``defects``: trains on the patches of photographs of `benchmarks.samples`, and tells held-out ones
  with a scratch from those without.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from scipy import stats
from sklearn import datasets, decomposition, ensemble, metrics, neighbors, svm

import cae_jax
from benchmarks import samples
from cae_jax import data, markdown
from cae_jax.cli import common
from cae_jax.config import TrainConfig
from cae_jax.models import detection
from cae_jax.ops import cache
from cae_jax.runs.members import name_members

_HELD_OUT = 1000  # training images of a class that the networks are not trained on
_SPLITS, _RATES = 200, (0.01, 0.05, 0.1)
Classes = Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measures how well `cae-jax score` tells other images, and whether it keeps its rate."""

    what: tyro.conf.Positional[Literal["one-class", "rates", "digits", "defects"]]
    """See above."""

    seeds: int = 3
    """Networks of each class."""

    epochs: int = 20
    """Of each training."""

    workdir: Path = Path("runs/anomalies")
    """Folder of the runs."""

    data_dir: Path | None = None
    """TFDS data directory; None takes TFDS_DATA_DIR, else TFDS's default."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        cache.use_compilation_cache()
        {"one-class": one_class, "rates": rates, "digits": digits, "defects": defects}[flags.what](
            flags
        )


def one_class(flags: Flags) -> None:
    def classes() -> Classes:
        where: Any = {"data_dir": flags.data_dir}
        train, labels = data.load_split(TrainConfig(), "train", **where)
        test, truth = data.load_split(TrainConfig(), "test", **where)
        for i, name in enumerate(data.class_names(TrainConfig(), **where)):
            own = train[labels == i]
            yield name, own[:-_HELD_OUT], own[-_HELD_OUT:], test, truth != i

    compare(flags, TrainConfig(epochs=flags.epochs), classes(), flags.workdir / "one-class")


def digits(flags: Flags) -> None:
    def classes() -> Classes:
        images, labels = datasets.load_digits(return_X_y=True)
        images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        half = np.arange(len(images)) % 2 == 0
        for i in range(10):
            own = images[half & (labels == i)]
            held_out = images[~half]
            yield (
                str(i),
                own[: len(own) * 3 // 4],
                own[len(own) * 3 // 4 :],
                held_out,
                (labels[~half] != i),
            )

    config = TrainConfig(epochs=5 * flags.epochs, batch_size=16)
    compare(flags, config, classes(), flags.workdir / "digits")


def compare(flags: Flags, config: TrainConfig, classes: Classes, folder: Path) -> None:
    """Trains the networks of each class as a population; prints the AUROC of each in percent."""
    configs = [dataclasses.replace(config, seed=seed) for seed in range(flags.seeds)]
    found: dict[str, dict[str, list[float]]] = {}  # by method and class, one for each seed
    for name, train, held_out, test, other in classes:
        runs = folder / name.replace("/", "-")
        with contextlib.redirect_stdout(sys.stderr):
            cae_jax.fit_population(configs, runs, images=(train, held_out))
        scores: list[tuple[str, np.ndarray]] = []
        for each in name_members(configs):
            network = cae_jax.load(runs / each, backend="matmul")
            network.detector = detection.fit(network, train, held_out)
            features = detection.features(network, test)
            for by in ("code", "residual"):
                scores.append((f"cae-jax, by {by}", network.detector.score(features, by).score_N))
        pixels = (x.reshape(len(x), -1) / 255 for x in (train, test))
        for method, score_N in (*scores, *baselines(*pixels)):
            auroc = float(metrics.roc_auc_score(other, score_N))
            found.setdefault(method, {}).setdefault(name, []).append(100 * auroc)
    means = {
        method: [np.mean(each) for each in by_class.values()] for method, by_class in found.items()
    }
    names = [*next(iter(found.values()))]
    rows = [
        [method, f"{np.mean(values):.1f}", spread(found[method]), *(f"{x:.1f}" for x in values)]
        for method, values in means.items()
    ]
    print(markdown.table(["AUROC, %", "mean", "of each seed", *names], rows))


def spread(by_class: dict[str, list[float]]) -> str:
    """The mean over the classes of each seed."""
    return ", ".join(f"{x:.1f}" for x in np.mean([*by_class.values()], axis=0))


def baselines(train: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Scores of flat test images by detectors that are fitted to flat training images."""
    for size in (16, 32, 64):
        pca = decomposition.PCA(size, random_state=0).fit(train)
        codes = pca.transform(test)
        yield f"PCA of {size}, residual", np.square(test - pca.inverse_transform(codes)).sum(1)
        yield f"PCA of {size}, Mahalanobis", (codes**2 / pca.explained_variance_).sum(1)
    nearest = neighbors.NearestNeighbors(n_neighbors=5).fit(train)
    yield "nearest pixels", nearest.kneighbors(test)[0].mean(1)
    for name, detector in (
        ("LocalOutlierFactor", neighbors.LocalOutlierFactor(novelty=True)),
        ("IsolationForest", ensemble.IsolationForest(random_state=0)),
        ("OneClassSVM", svm.OneClassSVM(nu=0.1)),
    ):
        yield f"scikit-learn's {name}", -detector.fit(train).score_samples(test)


def rates(flags: Flags) -> None:
    """Prints the mean and the spread of the realised rates beside what is promised."""
    network = cae_jax.load("pretrained/fashion_mnist", backend="matmul")
    train, test = (
        data.load_split(network.config, split, data_dir=flags.data_dir)[0]
        for split in ("train", "test")
    )
    detector = detection.fit(network, train, test[:1])
    score_N = detector.score(detection.features(network, test)).score_N
    rows, random = [], np.random.default_rng(0)
    for calibration in (100, 1000):
        others = len(test) - calibration
        realised = []
        for _ in range(_SPLITS):
            order = random.permutation(score_N)
            p_N = detection.p_values(order[calibration:], np.sort(order[:calibration]))
            realised.append([(p_N <= rate).mean() for rate in _RATES])
        for rate, found in zip(_RATES, np.transpose(realised), strict=True):
            alarms = math.floor(rate * (calibration + 1) + 1e-9)
            # Of the images that are counted, whose number is finite: a beta-binomial distribution.
            exact = stats.betabinom(others, alarms, calibration + 1 - alarms)
            low, high = detection.realised_rates(rate, calibration)
            inside = np.mean((low <= found) & (found <= high))
            rows.append(
                [
                    *(f"{calibration:,}", f"{rate:g}", f"{found.mean():.4f}"),
                    f"{found.std(ddof=1) / _SPLITS**0.5:.4f}",
                    *(f"{exact.mean() / others:.4f}", f"{found.std(ddof=1):.4f}"),
                    *(f"{exact.std() / others:.4f}", f"{100 * inside:.0f}"),
                ]
            )
    head = ["calibration images", "rate", "mean realised", "standard error", "mean promised"]
    head += ["spread", "spread promised", "% within the stated 95 %"]
    print(markdown.table(head, rows))


def defects(flags: Flags) -> None:
    """Prints the AUROC for patches with a scratch, and the alarms among those with and without."""
    folder = flags.workdir / "samples"
    samples.write_photographs(folder / "photographs", 64)
    config = TrainConfig(data=str(folder / "photographs"), image_size=(64, 64), epochs=flags.epochs)
    rows = []
    for seed in range(flags.seeds):
        run = flags.workdir / "defects" / f"seed={seed}"
        where: Any = {"data_dir": folder}
        with contextlib.redirect_stdout(sys.stderr):
            cae_jax.fit(dataclasses.replace(config, seed=seed), run, **where)
        network = cae_jax.load(run, backend="matmul")
        train, test = (data.load_split(network.config, s, **where)[0] for s in ("train", "test"))
        calibration, normal = test[::2], np.asarray(test[1::2])
        network.detector = detection.fit(network, train, calibration)
        for by in ("code", "residual"):
            clean, bad = (network.score(x, by) for x in (normal, scratched(normal)))
            truth = np.arange(2 * len(normal)) >= len(normal)
            auroc = metrics.roc_auc_score(truth, np.concatenate([clean.score_N, bad.score_N]))
            shares = (f"{100 * (each.p_N <= 0.05).mean():.0f}" for each in (clean, bad))
            rows.append([f"seed {seed}, by {by}", f"{100 * auroc:.1f}", *shares])
    head = ["", "AUROC, %", "alarms at 5 %: without", "with a scratch"]
    print(markdown.table(head, rows))


def scratched(images: np.ndarray) -> np.ndarray:
    """Images with a bright line of two pixels' width, a quarter of the image long."""
    random, outputs = np.random.default_rng(0), images.copy()
    side = images.shape[1]
    for image in outputs:
        row, column = random.integers(side // 8, side - side // 8 - side // 4, 2)
        for step in range(side // 4):
            image[row + step : row + step + 2, column + step : column + step + 2] = 255
    return outputs


if __name__ == "__main__":
    main()
