"""Measures one thing on the GPU or TPU of this machine; scripts/on_device.sh calls it in turn.

    python -m benchmarks.on_device numbers --backends cuda matmul
    python -m benchmarks.on_device epochs --batch-sizes 128 512 4096 --json epochs.json
    python -m benchmarks.on_device epochs --shape 64 64 3 --precisions float32 tf32 bf16
    python -m benchmarks.on_device peers --frameworks torch torch-compiled flax
    python -m benchmarks.on_device command
    python -m benchmarks.on_device threads

numbers: how far the gradients of two backends differ, and whether two trainings have the same bits.
epochs: epochs of each backend, optimizer, batch size and precision, all in one process.
peers: epochs with Adam, of cae-jax and other frameworks in a process each.
command: the whole training command, with empty caches and again.
threads: epochs on the CPU of this machine by 1, 2, 4 threads and so on, in a process each.
profile: a trace of an epoch, for TensorBoard or Perfetto.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.frameworks import sweep
from benchmarks.frameworks.case import ADAM, BenchmarkCase, run_case
from cae_jax import UserError, atomic, data
from cae_jax.cli import benchmark, common
from cae_jax.cli.configs import load_config
from cae_jax.config import Precision, TrainConfig, to_dict
from cae_jax.data.workers import cores
from cae_jax.markdown import table

Part = Literal["numbers", "epochs", "peers", "command", "threads", "profile"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measures one thing on the GPU or TPU of this machine."""

    part: tyro.conf.Positional[Part]
    """What to measure."""

    config: str = "fashion_mnist"
    """A shipped config or a Python file."""

    backends: tuple[Literal["cuda", "matmul", "xla", "native"], ...] = ("cuda", "matmul")
    """Backends of cae-jax; the first is compared with the others."""

    optimizers: tuple[Literal["adam", "soap"], ...] = ("adam", "soap")
    """Of the epochs."""

    batch_sizes: tuple[int, ...] = (128,)
    """Images of a step."""

    precisions: tuple[Precision, ...] = ("float32",)
    """Of the epochs; cuda has float32 only."""

    shape: tuple[int, int, int] | None = None
    """Random images of this shape in place of the config's."""

    frameworks: tuple[Literal["torch", "torch-compiled", "flax"], ...] = ("torch", "flax")
    """Peers; those that are not installed are named and left out."""

    examples: int = 60_000
    """Training images."""

    timed: int = 4
    """Timed epochs, after the first two."""

    epochs: int = 20
    """Of the command."""

    threads: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of threads, of which those above the cores are left out."""

    json: Path | None = None
    """Write the measurements to this file too."""

    trace: Path | None = None
    """Folder of the profile."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        atomic.check_output(flags.json)
        rows = _PARTS[flags.part](flags)
        titles = list(dict.fromkeys(key for row in rows for key in row))
        print(table(titles, [[_shown(row.get(title)) for title in titles] for row in rows]))
        common.write_json(flags.json, {"part": flags.part, **benchmark.environment(), "rows": rows})
    if wrong := [row["failed"] for row in rows if row.get("failed")]:
        print(f"benchmarks.on_device: {'; '.join(wrong)}", file=sys.stderr)
        raise SystemExit(1)


def numbers(flags: Flags) -> list[dict[str, Any]]:
    """Of each backend the distance of a gradient from matmul's, and the bits of two trainings."""
    from cae_jax.models.topology import from_config
    from cae_jax.ops.backend import choose
    from cae_jax.ops.cuda import agreement

    rows = []
    for name in flags.backends:
        config = _config(flags, "adam", flags.batch_sizes[0], "float32")
        network = from_config(config)
        backend, layers = (choose(network, each) for each in (name, "matmul"))
        row: dict[str, Any] = {"backend": f"{backend.name}: {backend.reason}"}
        if hasattr(backend.kernel, "bce_and_grad"):
            row["distance"] = agreement.difference(backend.kernel, network, layers.layers)
        for optimizer in flags.optimizers:
            images = _images(flags, config)
            digests = {_digest(flags, images, name, optimizer) for _ in range(2)}
            row[f"same bits, {optimizer}"] = len(digests) == 1
        if backend.name != name:
            row["failed"] = row["backend"]
        elif backend.name == "cuda" and not all(row[f"same bits, {x}"] for x in flags.optimizers):
            row["failed"] = "two trainings by cuda have other bits"
        rows.append(row)
    return rows


def _digest(flags: Flags, images: data.Dataset, backend: str, optimizer: str) -> str:
    """The bits of the state after an epoch, of a program that is compiled again."""
    import jax

    config = _config(flags, optimizer, flags.batch_sizes[0], "float32")
    _, trainer, state = benchmark.build(config, backend, images)
    state = trainer.run(state, 1, 0, trainer.steps).state
    arrays = jax.device_get(jax.tree.leaves(state))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


def epochs(flags: Flags) -> list[dict[str, Any]]:
    """Seconds of an epoch of each case, and how many times as long as by the first backend."""
    images, rows = None, []
    for batch_size, optimizer, precision in itertools.product(
        flags.batch_sizes, flags.optimizers, flags.precisions
    ):
        config = _config(flags, optimizer, batch_size, precision)
        images = images or _images(flags, config)
        first = None
        for backend in flags.backends:
            if backend == "cuda" and precision != "float32":
                continue
            case = {"batch": batch_size, "optimizer": optimizer, "precision": precision}
            try:
                measured = _time_epochs(flags, config, backend, images)
            except UserError as error:  # a network that a kernel does not take
                rows.append({"backend": backend, **case, "refused": str(error)})
                continue
            seconds = measured["seconds"]["median"]
            first = first or seconds
            rows.append({**measured, **case, "times as long": seconds / first})
    return rows


def _time_epochs(
    flags: Flags, config: TrainConfig, name: str, images: data.Dataset
) -> dict[str, Any]:
    began = time.perf_counter()
    job, trainer, state = benchmark.build(config, name, images)
    compiled = time.perf_counter() - began
    seconds = []
    for epoch in range(1, 3 + flags.timed):
        began = time.perf_counter()
        state = trainer.run(state, epoch, 0, trainer.steps).state
        seconds.append(time.perf_counter() - began)
    loss = trainer.validation.evaluate(state.params)[0].val_loss
    spread = benchmark.spread(seconds[2:])
    return {
        "backend": f"{job.backend.name}: {job.backend.reason}",
        "seconds": spread,
        "images/s": len(images.train) / spread["median"],
        "compile, s": compiled,
        "first epoch, s": seconds[0],
        "val_loss": loss,
        "failed": None if math.isfinite(loss) else f"{name} has the loss {loss}",
    }


def peers(flags: Flags) -> list[dict[str, Any]]:
    """Epochs with Adam of each framework, in a process of its own."""
    names = [*flags.backends, *sweep.installed(flags.frameworks)]
    rows = []
    for batch_size in flags.batch_sizes:
        config = dataclasses.replace(ADAM, batch_size=batch_size, train_examples=flags.examples)
        first = None
        for name in names:
            case = BenchmarkCase(
                framework=name,
                config=to_dict(config),
                epochs=flags.timed,
                discard=1,
                task="epochs",
            )
            with tempfile.TemporaryDirectory() as cache:
                result = run_case(case, Path(cache))
            row = {"framework": name, "batch": batch_size, "failed": result.get("failed")}
            if not row["failed"]:
                row["seconds"] = benchmark.spread(result["epoch_seconds"])
                first = first or row["seconds"]["median"]
                row["times as long"] = row["seconds"]["median"] / first
                row |= {"start, s": result["start_seconds"], "loss": result["loss"]}
            rows.append(row)
    return rows


def command(flags: Flags) -> list[dict[str, Any]]:
    """Seconds of ``cae-jax train`` as a process, with empty caches and with those it has filled."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for name, state in itertools.product(flags.backends, ("cold", "warm")):
            run = Path(folder) / f"{name} {state}"
            line = [sys.executable, "-m", "cae_jax", "train", "--config", flags.config]
            line += ["--backend", name, "--workdir", str(run)]
            line += ["--train-examples", str(flags.examples), "--epochs", str(flags.epochs)]
            began = time.perf_counter()
            done = subprocess.run(line, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            row: dict[str, Any] = {"backend": name, "caches": state, "s, whole command": seconds}
            if done.returncode:
                row["failed"] = f"{name}: {done.stderr[-300:]}"
            else:
                lines = (run / "history.csv").read_text().splitlines()
                row |= dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
            rows.append(row)
    return rows


def threads(flags: Flags) -> list[dict[str, Any]]:
    """Epochs of the native kernel by some numbers of threads of this machine's CPU."""
    rows = []
    for count in [n for n in flags.threads if n <= cores()]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "epochs.json"
            line = [sys.executable, "-m", "cae_jax", "benchmark", "--backend", "native"]
            line += ["--optimizer", "adam", "--timed", str(flags.timed), "--discard", "1"]
            line += ["--train-examples", str(flags.examples), "--json", str(path)]
            # XLA takes the size of its thread pool from NPROC.
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(count)}
            done = subprocess.run(line, env=environment, capture_output=True, text=True)
            if done.returncode:
                rows.append({"threads": count, "failed": done.stderr[-300:]})
                continue
            measured = json.loads(path.read_text())["epoch_seconds"]
        row = {"threads": count, "seconds": measured}
        row["times one thread"] = rows[0]["seconds"]["median"] / measured["median"] if rows else 1.0
        rows.append(row)
    return rows


def profile(flags: Flags) -> list[dict[str, Any]]:
    """A trace of an epoch of the first backend."""
    import jax

    if flags.trace is None:
        raise UserError("`trace` is missing; give the folder of the profile")
    config = _config(flags, flags.optimizers[0], flags.batch_sizes[0], "float32")
    _, trainer, state = benchmark.build(config, flags.backends[0], _images(flags, config))
    state = trainer.run(state, 1, 0, trainer.steps).state
    with jax.profiler.trace(str(flags.trace)):
        jax.block_until_ready(trainer.run(state, 2, 0, trainer.steps).state)
    files = [path for path in flags.trace.rglob("*") if path.is_file()]
    return [{"files": len(files), "bytes": sum(path.stat().st_size for path in files)}]


def _config(flags: Flags, optimizer: str, batch_size: int, precision: Precision) -> TrainConfig:
    config = load_config(flags.config)
    changes: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    if flags.shape:
        changes |= {"data": "arrays", "image_shape": flags.shape, "features": None}
    else:
        changes["train_examples"] = flags.examples
    if optimizer != config.optimizer:  # Adam at the rate that suits it
        changes |= {"optimizer": optimizer, "learning_rate": ADAM.learning_rate, "b2": ADAM.b2}
    return dataclasses.replace(config, epochs=2 + flags.timed, **changes)


def _images(flags: Flags, config: TrainConfig) -> data.Dataset:
    if flags.shape is None:
        return data.load(config)
    random, counts = np.random.default_rng(0), (flags.examples, 1000)
    train, test = (random.integers(0, 256, (n, *flags.shape), np.uint8) for n in counts)
    return data.of_arrays(config, (train, test))


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # seconds
        return f"{value['median']:.4f} ({value['min']:.4f} - {value['max']:.4f})"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


_PARTS: dict[str, Callable[[Flags], list[dict[str, Any]]]] = {
    **{"numbers": numbers, "epochs": epochs, "peers": peers},
    **{"command": command, "threads": threads, "profile": profile},
}


if __name__ == "__main__":
    main()
