"""Time training and inference of a config on this device.

    cae-jax benchmark --config denoise --batch-size 512 --json times.json

Everything runs in one process. --epochs counts the timed epochs; the first epoch is reported
separately and --discard more are not counted. Epoch times exclude evaluation and compilation.
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tyro

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:
    from cae_jax.models.inference import Autoencoder

# Timed calls of each function of the autoencoder.
CALLS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(common.ConfigFlags):
    changes: ClassVar[Mapping[str, Any]] = {"epochs": 7}

    discard: int = 2
    """Epochs between the first one and the timed ones."""

    backend: common.Backend = "auto"
    """How the layers are computed: XLA convolutions, matmuls, or the native kernel (CPU only)."""

    json: Path | None = None
    """Write the measurements to this file too."""

    data: tyro.conf.OmitArgPrefixes[common.DataFlags] = dataclasses.field(
        default_factory=common.DataFlags
    )


def run(flags: Flags) -> None:
    if flags.discard < 0:
        raise UserError(f"`discard` is {flags.discard}; it takes a whole number of at least 0")
    atomic.check_output(flags.json)
    cache.use_compilation_cache()
    training, autoencoder, images = time_training(flags)
    results = {
        "config": flags.config,
        "model": flags.train.model,
        "batch_size": flags.train.batch_size,
        **environment(),
        **training,
        **time_inference(autoencoder, images),
        "peak_memory_bytes": peak_memory(),
    }
    for name, value in results.items():
        print(f"{name.replace('_', ' '):<26} {text(value)}")
    if flags.json:
        with atomic.output_file(flags.json) as file:
            atomic.write_json(file, results)


def time_training(flags: Flags) -> tuple[dict[str, Any], "Autoencoder", np.ndarray]:
    """Trains in the steps of `cae_jax.fit`; only this function knows the trainer.

    Returns:
        the measurements as JSON types; the autoencoder; the test images uint8 ``[N, 28, 28, 1]``.
    """
    phases: dict[str, float] = {}
    with timed(phases, "import"):
        import jax
        from flax import nnx

        from cae_jax import data
        from cae_jax.models import autoencoders
        from cae_jax.models.inference import Autoencoder
        from cae_jax.models.topology import of_config
        from cae_jax.ops.backend import choose
        from cae_jax.training.step import make_keys
        from cae_jax.training.trainer import Trainer, initial_state
    with timed(phases, "device"):
        device = jax.devices()[0]
    with timed(phases, "data"):
        images = data.load(flags.train, **vars(flags.data))
    config = dataclasses.replace(flags.train, epochs=1 + flags.discard + flags.train.epochs)
    with timed(phases, "build_and_compile"):
        backend = choose(of_config(config), flags.backend)
        model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
        state = initial_state(config, model, len(images.train))
        trainer = Trainer(config, model, backend, images.train, images.test)
    epochs, evaluations, val_loss = [], [], 0.0
    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        state = trainer.run(state, trainer.order(epoch), 0, trainer.steps).state
        trained = time.perf_counter()
        val_loss, _ = trainer.validation.evaluate(state.params)
        epochs.append(trained - began)
        evaluations.append(time.perf_counter() - trained)
    nnx.update(model, state.params)
    counted = epochs[1 + flags.discard :]
    results = {
        "device": f"{device.platform} ({device.device_kind})",
        "backend": f"{backend.name}: {backend.reason}",
        "images": {"train": len(images.train), "test": len(images.test)},
        "startup_seconds": phases,
        "first_epoch_seconds": epochs[0],
        "epoch_seconds": spread(counted),
        "train_images_per_second": len(images.train) / statistics.median(counted),
        "evaluation_seconds": spread(evaluations[1 + flags.discard :]),
        "val_loss": val_loss,
    }
    return results, Autoencoder(config, model, backend), images.test


def time_inference(autoencoder: "Autoencoder", images: np.ndarray) -> dict[str, float]:
    """Images per second of each function of an autoencoder, the median of several calls."""
    inputs = {"encode": images, "decode": autoencoder.encode(images), "reconstruct": images}
    rates = {}
    for name, values in inputs.items():
        call, seconds = getattr(autoencoder, name), []
        call(values)  # compiles
        for _ in range(CALLS):
            began = time.perf_counter()
            call(values)
            seconds.append(time.perf_counter() - began)
        rates[f"{name}_images_per_second"] = len(images) / statistics.median(seconds)
    return rates


def environment() -> dict[str, Any]:
    """Versions and CPUs that a time depends on."""
    versions = {"python": platform.python_version()}
    for name in ("cae-jax", "jax", "jaxlib", "flax"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a clone that is not installed
            versions[name] = metadata.version(name)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the CPUs this process may use
    cpus = len(affinity(0)) if affinity else os.cpu_count()
    return {"platform": platform.platform(), "cpu_count": cpus, "versions": versions}


def peak_memory() -> dict[str, int | None]:
    """Peak bytes of this process, and of the device, None where it does not report them."""
    import jax

    host = None
    with contextlib.suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    device = jax.devices()[0].memory_stats() or {}
    return {"host": host, "device": device.get("peak_bytes_in_use")}


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of some times."""
    low, high = min(seconds), max(seconds)
    return {"median": statistics.median(seconds), "min": low, "max": high, "n": len(seconds)}


def text(value: Any) -> str:
    """A measurement for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {text(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else "not reported" if value is None else value


@contextlib.contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Notes the seconds of a ``with`` statement."""
    began = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - began
