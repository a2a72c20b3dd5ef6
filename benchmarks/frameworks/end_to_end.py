"""A training from the command to its end: scripts/train.py, and Keras on TensorFlow."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.frameworks import case, sweep
from benchmarks.frameworks.case import Spec
from benchmarks.frameworks.expected import check_loss
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError

_PEER = "keras-tensorflow"


def measure(script: Path, epochs: int, rounds: int, data_dir: Path | None) -> list[dict[str, Any]]:
    """Wall seconds of whole processes, taking turns; ours once more before, with empty caches.

    Args:
        script: scripts/train.py, run with its defaults.
        epochs: of each training.
        rounds: processes of each.
        data_dir: see `cae_jax.data.store.load`.
    """
    ours: dict[str, Any] = {"contender": "scripts/train.py", "seconds": [], "val_losses": []}
    peer: dict[str, Any] = {"contender": _PEER, "seconds": [], "val_losses": []}
    present = sweep.installed([_PEER])
    with tempfile.TemporaryDirectory() as folder:
        ours["cold_seconds"], _ = _train(script, epochs, data_dir, Path(folder))
        for _ in range(rounds):
            _add(ours, *_train(script, epochs, data_dir, Path(folder)))
            if present:
                _add(peer, *_fit_peer(epochs, Path(folder)))
    rows = [ours, peer] if present else [ours]
    for row in rows:
        row["median_seconds"] = statistics.median(row["seconds"])
        steps = epochs * -(-60000 // TrainConfig().batch_size)
        # A band of the training loss; val_loss lies in it too, ahead of it in the first epochs.
        row["failed"] = check_loss(row["val_losses"][-1], steps)
    return rows


def _add(row: dict[str, Any], seconds: float, val_loss: float) -> None:
    row["seconds"].append(seconds)
    row["val_losses"].append(val_loss)


def _train(script: Path, epochs: int, data_dir: Path | None, cache: Path) -> tuple[float, float]:
    """Seconds and the last val_loss of our command."""
    run = cache / "run"
    command = [sys.executable, str(script), "--epochs", str(epochs), "--workdir", str(run)]
    command += ["--overwrite", *(["--data-dir", str(data_dir)] if data_dir else [])]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise UserError(f"{script.name} fails: {process.stderr.strip().splitlines()[-1]}")
    return seconds, json.loads((run / "result.json").read_text())["final"]["val_loss"]


def _fit_peer(epochs: int, cache: Path) -> tuple[float, float]:
    """Seconds and the last val_loss of Keras: import, data, fit with validation."""
    adam = TrainConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0, b2=0.999)
    one = Spec(contender=_PEER, config=to_dict(adam), epochs=epochs, work="fit")
    began = time.perf_counter()
    result = case.run(one, cache)
    if "failed" in result:
        raise UserError(f"{_PEER} fails: {result['failed']}")
    return time.perf_counter() - began, result["val_loss"]
