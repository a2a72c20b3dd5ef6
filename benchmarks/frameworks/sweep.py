"""Builds the cases of a sweep and measures them in turn."""

import dataclasses
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frameworks.case import ADAM, FRAMEWORKS, BenchmarkCase, run_case
from cae_jax.cli.configs import load_config
from cae_jax.config import ARRAYS, from_dict, resolved, to_dict
from cae_jax.errors import UserError

_CONFIG_FILES = {"conv": "fashion_mnist.py", "simple": "simple.py", "deep": "deep.py"}


def build_cases(
    folder: Path,
    models: Sequence[str],
    backends: Sequence[str],
    batch_sizes: Sequence[int],
    examples: Sequence[int],
    data_dir: Path | None,
) -> list[BenchmarkCase]:
    """Builds one case per valid combination, with the recipe of the model's config file.

    Args:
        folder: the configs.
        models: as in `TrainConfig`.
        backends: of cae-jax, or ``"per-step"``.
        batch_sizes: images per step.
        examples: numbers of training images.
        data_dir: see `cae_jax.data.load_split`.
    """
    cases = []
    for model, backend in itertools.product(models, backends):
        if model != "conv" and backend in ("native", "cuda", "xla"):
            print(f"Skipped: backend {backend} with model {model}, whose layers are all matmuls")
            continue
        config = load_config(folder / _CONFIG_FILES[model])
        for batch_size, count in itertools.product(batch_sizes, examples):
            config = dataclasses.replace(config, batch_size=batch_size, train_examples=count)
            directory = None if data_dir is None else str(data_dir)
            cases.append(
                BenchmarkCase(framework=backend, config=to_dict(config), data_dir=directory)
            )
    return cases


def on_images(cases: Sequence[BenchmarkCase], path: Path) -> list[BenchmarkCase]:
    """The cases with the images of a .npy file in place of Fashion-MNIST.

    Raises:
        UserError: the file has no square uint8 images ``[N, size, size, channels]``.
    """
    try:
        shape, kind = (images := np.load(path, mmap_mode="r")).shape, images.dtype
    except (OSError, ValueError) as error:
        raise UserError(f"--images {path} is no .npy file ({error})") from error
    if kind != np.uint8 or len(shape) != 4 or shape[1] != shape[2]:
        raise UserError(
            f"--images {path} has {kind} {list(shape)}; it takes uint8 [N, size, size, channels]"
        )
    changes: dict[str, Any] = {"data": ARRAYS, "features": None, "train_examples": None}
    results = []
    for case in cases:
        config = resolved(from_dict({**case.config, **changes}), shape[1:])
        count = min(case.config["train_examples"], shape[0] * 9 // 10)
        config = dataclasses.replace(config, train_examples=count)
        results.append(dataclasses.replace(case, config=to_dict(config), images=str(path)))
    return results


def with_features(cases: Sequence[BenchmarkCase], features: Sequence[int]) -> list[BenchmarkCase]:
    """The cases with other features of the encoder's convolutions.

    Raises:
        UserError: no network has them.
    """
    changes = {"features": list(features)}
    return [
        dataclasses.replace(case, config=to_dict(from_dict({**case.config, **changes})))
        for case in cases
    ]


def add_frameworks(cases: Sequence[BenchmarkCase], names: Sequence[str]) -> list[BenchmarkCase]:
    """Adds other frameworks at each batch size and number of images; all use Adam at 1e-3."""
    adam = dataclasses.asdict(ADAM)
    varied = ("batch_size", "train_examples")
    network = ("data", "image_shape", "features")
    ours = [
        dataclasses.replace(
            case, config={**adam, **{key: case.config[key] for key in (*varied, *network)}}
        )
        for case in cases
    ]
    both = [*ours]
    for case in ours:
        for name in names:
            other = dataclasses.replace(case, framework=name)
            if other not in both:
                both.append(other)
    return sorted(both, key=lambda case: [case.config[key] for key in varied])


def installed(names: Sequence[str]) -> list[str]:
    """Returns the frameworks that can be imported; prints a line to stderr for each other one."""
    found = []
    for name in names:
        missing = [m for m in FRAMEWORKS[name] if importlib.util.find_spec(m) is None]
        if missing:
            print(
                f"Skipped: {name} needs {' and '.join(missing)}; "
                'pip install -e ".[frameworks]" installs them all',
                file=sys.stderr,
            )
        else:
            found.append(name)
    return found


def measure(
    cases: Sequence[BenchmarkCase], epochs: int, discard: int, rounds: int
) -> list[dict[str, Any]]:
    """Starts each case with empty caches, then measures all of them in turn.

    Args:
        cases: what to measure.
        epochs, discard: see `BenchmarkCase`.
        rounds: processes per case, in addition to the cold start.

    Returns:
        for each case its metadata, ``cold``, the start with empty caches, and ``rounds``, the
        results with filled caches.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder) / str(i) for i in range(len(cases))]
        cases = [dataclasses.replace(case, epochs=epochs, discard=discard) for case in cases]
        measurements = []
        for case, cache in zip(cases, caches, strict=True):
            cache.mkdir()
            cold = _run(dataclasses.replace(case, task="start"), cache, "cold start")
            measurements.append({**_metadata(case), "cold": cold, "rounds": []})
        for number in range(1, rounds + 1):
            for case, cache, measurement in zip(cases, caches, measurements, strict=True):
                measurement["rounds"].append(_run(case, cache, f"round {number}"))
    return measurements


def matmul_gflops() -> float:
    """Returns what `benchmarks.frameworks.worker.matmul_gflops` measures, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        case = BenchmarkCase(framework="auto", config={}, task="matmul")
        result = run_case(case, Path(folder))
    if "failed" in result:
        raise RuntimeError(f"the matmul {result['failed']}")
    return result["matmul_gflops"]


def _metadata(case: BenchmarkCase) -> dict[str, Any]:
    return {
        "framework": case.framework,
        "model": case.config["model"],
        "batch_size": case.config["batch_size"],
        "examples": case.config["train_examples"],
        "discard": case.discard,
        "config": case.config,
    }


def _run(case: BenchmarkCase, cache: Path, title: str) -> dict[str, Any]:
    print(
        f"{title}: {case.framework}, {case.config['model']}, batch {case.config['batch_size']}, "
        f"{case.config['train_examples']} images",
        file=sys.stderr,
        flush=True,
    )
    load = os.getloadavg()[0]
    return {**run_case(case, cache), "load_average_before": load}
