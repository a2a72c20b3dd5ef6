"""All configurations of a sweep, measured in turn."""

import dataclasses
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.frameworks import case
from benchmarks.frameworks.case import Spec
from cae_jax.config import TrainConfig, load_config, to_dict

_CONFIG_FILES = {"conv": "fashion_mnist.py", "simple": "simple.py", "deep": "deep.py"}


def configurations(
    folder: Path,
    models: Sequence[str],
    methods: Sequence[str],
    batch_sizes: Sequence[int],
    examples: Sequence[int],
    data_dir: Path | None,
) -> list[Spec]:
    """One `Spec` for each combination that exists, with the recipe of the model's config file."""
    specs = []
    for model, method in itertools.product(models, methods):
        if model != "conv" and method in ("fused", "conv"):
            print(f"Skipped: method {method} with model {model}, all of whose layers are matmuls")
            continue
        config = load_config(folder / _CONFIG_FILES[model])
        for batch_size, count in itertools.product(batch_sizes, examples):
            config = dataclasses.replace(config, batch_size=batch_size, train_examples=count)
            directory = None if data_dir is None else str(data_dir)
            specs.append(Spec(contender=method, config=to_dict(config), data_dir=directory))
    return specs


def beside_peers(specs: Sequence[Spec], peers: Sequence[str]) -> list[Spec]:
    """The same with Adam at 1e-3, the peers added for each batch size and number of images."""
    adam = dataclasses.asdict(
        TrainConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0, b2=0.999)
    )
    varied = ("batch_size", "train_examples")
    ours = [
        dataclasses.replace(s, config={**adam, **{key: s.config[key] for key in varied}})
        for s in specs
    ]
    both = [*ours]
    for one in ours:
        for peer in peers:
            theirs = dataclasses.replace(one, contender=peer)
            if theirs not in both:
                both.append(theirs)
    return sorted(both, key=lambda s: [s.config[key] for key in varied])


def installed(peers: Sequence[str]) -> list[str]:
    """The peers that can be imported; a line on stderr for each of the others."""
    there = []
    for peer in peers:
        missing = [m for m in case.PEERS[peer] if importlib.util.find_spec(m) is None]
        if missing:
            print(
                f"Skipped: {peer} needs {' and '.join(missing)}; "
                'pip install -e ".[peers]" installs all peers',
                file=sys.stderr,
            )
        else:
            there.append(peer)
    return there


def measure(specs: Sequence[Spec], epochs: int, discard: int, rounds: int) -> list[dict[str, Any]]:
    """Starts each configuration with empty caches, then measures all of them in turn.

    Returns:
        for each its facts, ``cold``, the start with empty caches, and ``rounds``, all with those
        caches filled.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder) / str(i) for i in range(len(specs))]
        specs = [dataclasses.replace(s, epochs=epochs, discard=discard) for s in specs]
        measurements = []
        for one, cache in zip(specs, caches, strict=True):
            cache.mkdir()
            cold = _run(dataclasses.replace(one, work="start"), cache)
            measurements.append({**_facts(one), "cold": cold, "rounds": []})
        for number in range(1, rounds + 1):
            for one, cache, measurement in zip(specs, caches, measurements, strict=True):
                measurement["rounds"].append(_run(one, cache, number))
    return measurements


def matmul_gflops() -> float:
    """See `benchmarks.frameworks.worker.matmul_gflops`."""
    one = Spec(contender="auto", config={}, work="matmul")
    with tempfile.TemporaryDirectory() as folder:
        result = case.run(one, Path(folder))
    if "failed" in result:
        raise RuntimeError(f"the matmul {result['failed']}")
    return result["matmul_gflops"]


def _facts(one: Spec) -> dict[str, Any]:
    config = one.config
    return {
        "contender": one.contender,
        "model": config["model"],
        "batch_size": config["batch_size"],
        "examples": config["train_examples"],
        "discard": one.discard,
        "config": config,
    }


def _run(one: Spec, cache: Path, number: int | None = None) -> dict[str, Any]:
    config = one.config
    what = "cold start" if number is None else f"round {number}"
    print(
        f"{what}: {one.contender}, {config['model']}, batch {config['batch_size']}, "
        f"{config['train_examples']} images",
        file=sys.stderr,
        flush=True,
    )
    load = os.getloadavg()[0]
    return {**case.run(one, cache), "load_average_before": load}
