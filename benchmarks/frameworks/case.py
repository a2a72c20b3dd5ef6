"""Describes what one process measures, and starts the process."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError

# What most people would train the network with.
ADAM = TrainConfig(
    optimizer="adam", learning_rate=1e-3, schedule="constant", warmup_steps=0, b2=0.999
)
# The Python modules that each of the other frameworks needs besides those of cae-jax.
FRAMEWORKS = {
    "keras-tensorflow": ("keras", "tensorflow"),
    "keras-jax": ("keras",),
    "torch": ("torch",),
    "torch-compiled": ("torch",),
    "flax": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """What one process measures.

    Attributes:
        framework: a key of FRAMEWORKS, a backend of cae-jax, or ``"per-step"``, the name of
            ``"flax"`` among the backends.
        config: a `TrainConfig` as converted by `cae_jax.config.to_dict`.
        epochs: timed epochs, after the first one and the discarded ones.
        discard: epochs between the first and the timed ones.
        data_dir: see `cae_jax.data.load_split`.
        images: see `benchmarks.frameworks.adapter.split_file`; None takes Fashion-MNIST.
        task: ``"start"`` stops after the first step, ``"measure"`` measures everything,
            ``"epochs"`` only the epochs, ``"fit"`` only trains with validation, ``"reach"`` trains
            until the loss on the test images is `target`, ``"matmul"`` measures the peak of the
            device.
        target: see `task`.
    """

    framework: str
    config: dict[str, Any]
    epochs: int = 7
    discard: int = 2
    data_dir: str | None = None
    images: str | None = None
    task: Literal["start", "measure", "fit", "epochs", "reach", "matmul"] = "measure"
    target: float = 0.0


def run_case(case: BenchmarkCase, cache: Path) -> dict[str, Any]:
    """Runs a case in a new process; a crash is reported under the key ``failed``.

    Args:
        case: what to measure.
        cache: replaces the user's cache folder; an empty one makes a cold start.

    Raises:
        UserError: the process rejects the case.
    """
    process = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.frameworks.worker"),
            *(json.dumps(dataclasses.asdict(case)), repr(time.time())),
        ],
        capture_output=True,
        text=True,
        env=cached_in(cache),
    )
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    message = (process.stderr.strip().splitlines() or ["no message"])[-1]
    if process.returncode == 2:
        raise UserError(message)
    return {"failed": f"exit code {process.returncode}: {message}"}


def cached_in(cache: Path) -> dict[str, str]:
    """Returns this process's environment variables with all caches moved to a folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return environment
