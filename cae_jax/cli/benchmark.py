"""Time training and inference of a config on this device.

    cae-jax benchmark --config denoise --batch-size 512 --json times.json
    cae-jax benchmark --time-to 0.2894

Everything runs in one process. The first epoch is reported separately. Epoch times exclude
evaluation and compilation. With --time-to, the config is trained until its validation loss,
evaluated every quarter of an epoch, first reaches a value.
"""

import contextlib
import dataclasses
import itertools
import math
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.config import TrainConfig
from cae_jax.data.workers import cores
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:
    from cae_jax.data import Dataset
    from cae_jax.models.inference import Autoencoder
    from cae_jax.ops.backend import Backend
    from cae_jax.runs.job import Job
    from cae_jax.training.step import TrainState
    from cae_jax.training.trainer import Trainer

# Timed calls of each function of the autoencoder.
TIMED_CALLS = 5
# With --time-to the model is evaluated after each of these parts of an epoch.
EPOCH_PARTS = 4


@common.flags
class Flags(common.ConfigFlags):
    timed: int = 7
    """Timed epochs."""

    discard: int = 2
    """Untimed epochs after the first one."""

    time_to: float | None = None
    """Time the training to this validation loss."""

    seeds: int = 5
    """Trainings for --time-to, with successive seeds."""

    backend: common.Backend = "auto"
    """xla, matmul, native (CPU), cuda (GPU), auto."""

    json: Path | None = None
    """Write the measurements to this file too."""

    data: common.Data = common.DataFlags()


def run(flags: Flags) -> None:
    for name, least in (("timed", 1), ("discard", 0), ("seeds", 1)):
        if getattr(flags, name) < least:
            raise UserError(
                f"`{name}` is {getattr(flags, name)}; it takes a whole number of at least {least}"
            )
    if flags.time_to is not None and not 0 < flags.time_to < math.inf:
        raise UserError(f"`time_to` is {flags.time_to}; it takes a positive number")
    common.check_used(flags)
    atomic.check_output(flags.json)
    cache.use_compilation_cache()
    measured = time_to(flags, flags.time_to) if flags.time_to is not None else time_epochs(flags)
    results = {
        "config": Path(flags.config).stem,
        "model": flags.train.model,
        "precision": flags.train.precision,
        "batch_size": flags.train.batch_size,
        **environment(),
        **measured,
        "peak_memory_bytes": peak_memory(),
    }
    common.print_values(results)
    # An error of the compiler, which follows, names folders of the user.
    results["backend"] = ": ".join(results["backend"].split(": ")[:2])
    common.write_json(flags.json, results)


def time_epochs(flags: Flags) -> dict[str, Any]:
    """Measures epochs, evaluation and inference; as JSON types."""
    phases: dict[str, float] = {}
    images = start(flags, phases)
    config = dataclasses.replace(flags.train, epochs=1 + flags.discard + flags.timed)
    bar = common.progress(range(1, config.epochs + 1), "Compiling, then training", "epoch")
    with timed(phases, "build_and_compile"):
        job, trainer, state = build(config, flags.backend, images)
    epochs, evaluations, val_loss = [], [], 0.0
    for epoch in bar:
        began = time.perf_counter()
        state = trainer.run(state, epoch, 0, trainer.steps).state
        trained = time.perf_counter()
        val_loss = trainer.validation.evaluate(state.params)[0].val_loss
        epochs.append(trained - began)
        evaluations.append(time.perf_counter() - trained)
    counted = epochs[1 + flags.discard :]
    return {
        **device_and_backend(job.backend),
        "images": {"train": len(images.train), "test": len(images.validation)},
        "startup_seconds": phases,
        "first_epoch_seconds": epochs[0],
        "epoch_seconds": spread(counted),
        "train_images_per_second": len(images.train) / statistics.median(counted),
        "evaluation_seconds": spread(evaluations[1 + flags.discard :]),
        "val_loss": val_loss,
        **time_inference(job.autoencoder.with_params(job.config, state.params), images.validation),
    }


def time_to(flags: Flags, target: float) -> dict[str, Any]:
    """Times trainings until the validation loss is at most `target`; as JSON types.

    ``seconds`` include only training; ``whole_seconds`` also the imports of this process, the
    compilation and the evaluations.
    """
    phases: dict[str, float] = {}
    images, described, reached, whole = start(flags, phases), {}, [], []
    seeds = range(flags.train.seed, flags.train.seed + flags.seeds)
    for seed in common.progress(seeds, "Training", "seed"):
        config = dataclasses.replace(flags.train, seed=seed)
        began = time.perf_counter()
        job, trainer, state = build(config, flags.backend, images)
        reached.append(reach(trainer, state, config.epochs, target))
        loss = reached[-1][-1]
        if not loss <= target:  # also NaN
            raise UserError(
                f"with seed {seed} the validation loss is {loss:.4f} after {config.epochs} epochs; "
                f"`time_to` {target} takes a higher value, or more `epochs`"
            )
        whole.append(sum(phases.values()) + time.perf_counter() - began)
        described = device_and_backend(job.backend)
    epochs, seconds, losses = zip(*reached, strict=True)
    return {
        **described,
        "time_to": target,
        "seconds": spread(seconds),
        "whole_seconds": spread(whole),
        "epochs": spread(epochs),
        "startup_seconds": phases,
        "val_losses": list(losses),
    }


def reach(
    trainer: "Trainer", state: "TrainState", epochs: int, target: float
) -> tuple[float, float, float]:
    """Trains until the validation loss is at most `target`, or to the end.

    Returns:
        number of epochs, seconds of training, and the loss.
    """
    passed, seconds, loss = 0.0, 0.0, float("inf")
    bounds = [trainer.steps * part // EPOCH_PARTS for part in range(EPOCH_PARTS + 1)]
    for epoch in range(1, epochs + 1):
        for first, last in itertools.pairwise(bounds):
            began = time.perf_counter()
            state = trainer.run(state, epoch, first, last).state
            seconds += time.perf_counter() - began
            passed += (last - first) / trainer.steps
            loss = trainer.validation.evaluate(state.params)[0].val_loss
            if loss <= target:
                return passed, seconds, loss
    return passed, seconds, loss


def start(flags: Flags, phases: dict[str, float]) -> "Dataset":
    """Imports what training needs, initialises the device and loads the images."""
    with timed(phases, "import"):
        import jax

        from cae_jax import data
        from cae_jax.runs import job  # noqa: F401 - everything that training imports
    with timed(phases, "device"):
        jax.devices()
    with timed(phases, "data"):
        return data.load(flags.train, **vars(flags.data))


def build(
    config: TrainConfig, backend: str, images: "Dataset"
) -> tuple["Job", "Trainer", "TrainState"]:
    """Builds and compiles as `cae_jax.fit` does."""
    from cae_jax.models.topology import from_config
    from cae_jax.ops.backend import choose
    from cae_jax.runs.job import Job

    config = images.resolve(config)
    chosen = choose(from_config(config), backend, precision=config.precision)
    job = Job(config, chosen, images)
    trainer = job.trainer([config])
    return job, trainer, trainer.put(job.initial_state([config]))


def device_and_backend(backend: "Backend") -> dict[str, str]:
    from cae_jax.training.trainer import device_name

    return {"device": device_name(), "backend": f"{backend.name}: {backend.reason}"}


def time_inference(autoencoder: "Autoencoder", images: np.ndarray) -> dict[str, float]:
    """Images per second of each function of an autoencoder, median of several calls."""
    inputs = {"encode": images, "decode": autoencoder.encode(images), "reconstruct": images}
    rates = {}
    for name, values in inputs.items():
        call, seconds = getattr(autoencoder, name), []
        call(values)  # compiles
        for _ in range(TIMED_CALLS):
            began = time.perf_counter()
            call(values)
            seconds.append(time.perf_counter() - began)
        rates[f"{name}_images_per_second"] = len(images) / statistics.median(seconds)
    return rates


def environment() -> dict[str, Any]:
    """Versions and CPUs that the times depend on."""
    versions = {"python": platform.python_version()}
    for name in ("cae-jax", "jax", "jaxlib", "flax"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a clone that is not installed
            versions[name] = metadata.version(name)
    return {"platform": platform.platform(), "cpu_count": cores(), "versions": versions}


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process and of the device in bytes; None if not reported."""
    import jax

    host = None
    with contextlib.suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    device = jax.devices()[0].memory_stats() or {}
    return {"host": host, "device": device.get("peak_bytes_in_use")}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of times."""
    low, high = min(seconds), max(seconds)
    return {"median": statistics.median(seconds), "min": low, "max": high, "n": len(seconds)}


@contextlib.contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Records the seconds of a ``with`` statement."""
    began = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - began
