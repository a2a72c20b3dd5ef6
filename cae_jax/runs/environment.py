"""Records the software and hardware that a run's results depend on.

A run keeps its backend. Users may change everything else; a change is logged, because the results
may then differ in the last digits.
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import jax

from cae_jax import atomic, data
from cae_jax.config import TrainConfig
from cae_jax.data.workers import cores
from cae_jax.errors import UserError
from cae_jax.models.topology import from_config
from cae_jax.ops.backend import Backend, Name, check_device, choose, device_memory
from cae_jax.runs.folder import images_of
from cae_jax.training.trainer import device_name

logger = logging.getLogger(__name__)
_OPTIONS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_matmul_precision")


def choose_backend(run: Path, config: TrainConfig, name: str) -> Backend:
    """Chooses the backend of a run: the one that it began with, unless another one is named.

    Args:
        run: directory of the run, which need not exist.
        config: of the run.
        name: see `cae_jax.ops.backend.choose`.

    Raises:
        UserError: the backend is unknown or unavailable.
    """
    recorded = _read(run).get("backend") if name == "auto" else None
    if recorded in ("native", "cuda") and (config.precision != "float32" or config.rate > 0):
        recorded = None  # of a run that this config replaces, or does not fit
    try:
        return choose(from_config(config), recorded or name, precision=config.precision)
    except UserError as error:
        if recorded is None:
            raise
        raise UserError(
            f"{run} was trained by the backend {recorded} so far: {error}; or name another "
            "`backend`, which changes the last digits"
        ) from error


def check_memory(config: TrainConfig) -> None:
    """Raises a `UserError` if the device does not exist, or has too little memory for a config."""
    check_device()
    there = device_memory()
    needed = from_config(config).training_bytes(config.batch_size)
    if needed > there:
        raise UserError(
            f"training needs at least {needed / 1e9:,.1f} GB and {there / 1e9:,.1f} GB are there; "
            "lower `features` or `batch_size`"
        )


def record(run: Path, backend: Backend, images: str) -> None:
    """Writes the environment of a run, and logs how it differs from the previous one.

    Args:
        run: directory of the run.
        backend: in use.
        images: digest of the images; "" if the config identifies them.

    Raises:
        UserError: the run began with other images.
        OSError: the file cannot be written.
    """
    before, now = _read(run), {**_current(backend), "images": images}
    if before.get("images", images) != images:
        raise UserError(
            f"{run} began with other images than now; restore them (without validation images, if "
            "an earlier version began it, which left them out), or pass another `workdir`"
        )
    changes = [
        f"{key} {before[key]} -> {now[key]}" for key in now if before.get(key, now[key]) != now[key]
    ]
    if changes:
        logger.warning(
            f"{run} continues in another environment ({', '.join(changes)}): the last digits of "
            "its results may differ"
        )
    if before != now:
        atomic.write_json(run / "environment.json", now)


def moved(
    runs: Sequence[Path], configs: Sequence[TrainConfig], path: str | None, **where: Any
) -> tuple[list[TrainConfig], bool]:
    """The configs with another path of their images, and whether one was trained on these.

    Args:
        runs: their directories.
        configs: their configs, all of the same data set.
        path: where the images are now; None where they were.
        where: see `cae_jax.data.load_split`.

    Raises:
        UserError: nothing is there.
    """
    if path in (None, configs[0].data):
        return [*configs], True
    data_dir = where.get("data_dir")
    there = [data.elsewhere(config, path, data_dir=data_dir) for config in configs]
    return there, any(_has_images(*each, **where) for each in zip(runs, there, strict=True))


def _has_images(run: Path, config: TrainConfig, **where: Any) -> bool:
    """Whether a config leads to the images that a run was trained on, where that is known."""
    with contextlib.suppress(UserError):  # of others, such as too few for a batch
        return images_of(run) in {data.load(config, **where).digest} - {""}
    return False


def load_split(run: Path, config: TrainConfig, split: str, **where: Any) -> data.Arrays:
    """Reads the images of a run as `cae_jax.data.load_split` does.

    Its errors advise changes of the config, which a trained run does not accept.
    """
    try:
        return data.load_split(config, split, **where)
    except UserError as error:
        if not error.advice:
            raise
        raise UserError(
            f"the images of {run} cannot be read: {error.problem}",
            "restore them as they were, or pass the `data_dir` that has them, or their new path as "
            "`data`",
        ) from error


def warn_of_other_images(
    runs: Sequence[Path], configs: Sequence[TrainConfig], **where: Any
) -> None:
    """Warns of runs that were trained on other images than their data set has now.

    Args:
        runs: their directories.
        configs: their configs, all of the same data set.
        where: see `cae_jax.data.load_split`.
    """
    digests: dict[tuple[int | None, ...], str] = {}
    try:
        for run, config in zip(runs, configs, strict=True):
            before = _read(run).get("images")
            now = dataclasses.replace(config, data=configs[0].data)
            examples = config.train_examples, config.test_examples
            if before and examples not in digests:
                digests[examples] = data.load(now, **where).digest
            if before and digests[examples] != before:
                logger.warning("%s was trained on other images than %s has now", run, config.data)
    except UserError as error:  # of the training images, which nothing else needs
        logger.warning("It is not known whether %s has changed: %s", configs[0].data, error)


def _current(backend: Backend) -> dict[str, str]:
    return {
        "backend": backend.name,
        "device": device_name(),
        "processor": processor(),
        **_threads(backend),
        "jax": metadata.version("jax"),
        "jaxlib": metadata.version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: str(getattr(jax.config, name)) for name in _OPTIONS},
    }


def _threads(backend: Backend) -> dict[str, str]:
    """The number of XLA's threads where its convolutions on a CPU add in an order of theirs."""
    if backend.name != "xla" or jax.default_backend() != "cpu":
        return {}
    named = os.environ.get("NPROC", "")  # XLA's own variable
    threads = int(named) if named.isdecimal() else cores()
    return {"threads": str(max(threads, jax.local_device_count()))}


def processor() -> str:
    """Model of the CPU, whose vector width decides the order of sums."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read(run: Path) -> dict[str, str]:
    """The recorded environment; empty without a usable one, as in runs of earlier versions."""
    try:
        values = json.loads((run / "environment.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    usable = isinstance(values, dict) and values.get("backend") in get_args(Name)
    return {key: str(value) for key, value in values.items()} if usable else {}
