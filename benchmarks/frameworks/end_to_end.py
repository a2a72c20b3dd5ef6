"""Times whole trainings from the command on: scripts/train.py and Keras on TensorFlow."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.frameworks import sweep
from benchmarks.frameworks.case import ADAM, BenchmarkCase, cached_in, run_case
from benchmarks.frameworks.expected import check_loss
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError

_OTHER = "keras-tensorflow"


def measure(script: Path, epochs: int, rounds: int, data_dir: Path | None) -> list[dict[str, Any]]:
    """Measures wall seconds of whole processes in turn; cae-jax once more with empty caches first.

    Args:
        script: scripts/train.py, run with its defaults.
        epochs: of each training.
        rounds: processes per framework.
        data_dir: see `cae_jax.data.load_split`.
    """
    ours: dict[str, Any] = {"framework": "scripts/train.py", "seconds": [], "val_losses": []}
    other: dict[str, Any] = {"framework": _OTHER, "seconds": [], "val_losses": []}
    summaries = [ours, other] if sweep.installed([_OTHER]) else [ours]
    with tempfile.TemporaryDirectory() as folder:
        ours["cold_seconds"], _ = _train(script, epochs, data_dir, Path(folder))
        for _ in range(rounds):
            _add(ours, *_train(script, epochs, data_dir, Path(folder)))
            if other in summaries:
                _add(other, *_fit_keras(epochs, Path(folder)))
    for summary in summaries:
        summary["median_seconds"] = statistics.median(summary["seconds"])
        steps = epochs * -(-60000 // TrainConfig().batch_size)
        # The ranges of the training loss hold for val_loss too, which is lower at first.
        summary["failed"] = check_loss(summary["val_losses"][-1], steps)
    return summaries


def _add(summary: dict[str, Any], seconds: float, val_loss: float) -> None:
    summary["seconds"].append(seconds)
    summary["val_losses"].append(val_loss)


def _train(script: Path, epochs: int, data_dir: Path | None, cache: Path) -> tuple[float, float]:
    """Trains with cae-jax; returns the seconds and the last ``val_loss``."""
    run = cache / "run"
    command = [sys.executable, str(script), "--epochs", str(epochs), "--workdir", str(run)]
    command += ["--overwrite", *(["--data-dir", str(data_dir)] if data_dir else [])]
    began = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=cached_in(cache))
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise UserError(f"{script.name} failed: {process.stderr.strip().splitlines()[-1]}")
    return seconds, json.loads((run / "result.json").read_text())["final"]["val_loss"]


def _fit_keras(epochs: int, cache: Path) -> tuple[float, float]:
    """Trains with Keras; returns the seconds, import and data included, and last ``val_loss``."""
    case = BenchmarkCase(framework=_OTHER, config=to_dict(ADAM), epochs=epochs, task="fit")
    began = time.perf_counter()
    result = run_case(case, cache)
    if "failed" in result:
        raise UserError(f"{_OTHER} failed: {result['failed']}")
    return time.perf_counter() - began, result["val_loss"]
