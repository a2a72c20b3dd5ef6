"""What one process measures, and the process for it."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cae_jax.errors import UserError

METHODS = ("auto", "fused", "phase", "conv", "per-step")
# The distribution packages that each peer needs besides those of cae-jax, by their modules.
PEERS = {
    "keras-tensorflow": ("keras", "tensorflow"),
    "keras-jax": ("keras",),
    "torch": ("torch",),
    "torch-compiled": ("torch",),
    "flax": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What one process measures.

    Attributes:
        contender: one of METHODS or PEERS.
        config: a `TrainConfig` as `cae_jax.config.to_dict` gives it.
        epochs: timed ones; the first and the discarded ones come before them.
        discard: epochs between the first and the timed ones.
        data_dir: see `cae_jax.data.store.load`.
        work: ``"start"`` ends after the first step, ``"measure"`` after everything, ``"fit"`` is
            a plain training with validation, without any measurement.
    """

    contender: str
    config: dict[str, Any]
    epochs: int = 7
    discard: int = 2
    data_dir: str | None = None
    work: str = "measure"


def run(spec: Spec, cache: Path) -> dict[str, Any]:
    """Measures in a new process; what fails there comes back as the entry ``failed``.

    Args:
        spec: what to measure.
        cache: stands in for the user's cache folder; an empty one makes a cold start.

    Raises:
        UserError: the process refuses the spec.
    """
    # Everything else stays as the user's own scripts find it.
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    arguments = [json.dumps(dataclasses.asdict(spec)), repr(time.time())]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.frameworks.worker", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    message = (process.stderr.strip().splitlines() or ["no message"])[-1]
    if process.returncode == 2:
        raise UserError(message)
    return {"failed": f"exit code {process.returncode}: {message}"}
