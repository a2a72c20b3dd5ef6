"""What a report tells of runs, as plain JSON values; arrays as base64."""

import base64
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from cae_jax import data
from cae_jax.config import NOISES, TrainConfig, check_level, to_dict
from cae_jax.errors import UserError
from cae_jax.evaluation import comparison
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history
from cae_jax.runs.folder import read_config
from cae_jax.runs.load import load

IMAGES = 10
# Of all runs of a report together, which take 27 MB of the page.
MAX_PARAMETERS = 5_000_000


def collect(
    runs: Sequence[Path], *, data_dir: Path | None = None, archives: Path | None = None
) -> dict[str, Any]:
    """The facts of runs, finished or not, with the weights of their newest checkpoints.

    Args:
        runs: folders that training wrote, all on one data set.
        data_dir, archives: see `data.load_split`, for the first test images.

    Raises:
        UserError: no runs, a folder that is no run or has no checkpoint or a damaged file, several
            data sets, too many parameters, or a data set that cannot be had.
    """
    if not runs:
        raise UserError("no RUNS given; give folders that train.py wrote")
    configs = [read_config(run) for run in runs]
    names = sorted({config.dataset for config in configs})
    if len(names) > 1:
        raise UserError(
            f"the runs were trained with dataset {' and '.join(names)}; give equal ones"
        )
    autoencoders = [load(run) for run in runs]
    parameters = sum(autoencoder.parameters for autoencoder in autoencoders)
    if parameters > MAX_PARAMETERS:
        raise UserError(
            f"the runs have {parameters:,} parameters; a page takes {MAX_PARAMETERS:,}: give fewer"
        )
    images, labels = data.load_split(names[0], "test", data_dir=data_dir, archives=archives)
    images, labels = images[:IMAGES], labels[:IMAGES]
    classes = data.class_names(names[0])
    return {
        "dataset": names[0],
        "images": _base64(images),
        "classes": [classes[label] for label in labels],
        "noises": {noise: _slider(noise, configs) for noise in NOISES},
        "defaults": to_dict(TrainConfig()),
        "runs": [
            {"name": name, **_facts(run, autoencoder, images)}
            for name, run, autoencoder in zip(_names(runs), runs, autoencoders, strict=True)
        ],
    }


def network(autoencoder: Autoencoder) -> dict[str, Any]:
    """An autoencoder as ``network.js`` reads it.

    Returns:
        ``model``, ``code_size`` and ``layers``: name to the kernel's shape, kernel and bias.
    """
    layers = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    return {
        "model": autoencoder.config.model,
        "code_size": math.prod(autoencoder.code_shape),
        "layers": {
            name: {
                "shape": list(layer["kernel"].shape),
                "kernel": _base64(layer["kernel"]),
                "bias": _base64(layer["bias"]),
            }
            for name, layer in sorted(layers.items())
        },
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """The names of the folders; where two are the same, their paths as given."""
    names = [run.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _facts(run: Path, autoencoder: Autoencoder, images: np.ndarray) -> dict[str, Any]:
    config, rows = autoencoder.config, history.read(run / "history.csv")
    inputs = comparison.noisy_images(images, config.noise, config.noise_level, config.seed)
    noisy = config.noise != "none"
    columns = ("epoch", "loss", "val_loss", "val_psnr")
    return {
        "config": to_dict(config),
        "noise": config.noise,
        "noise_level": check_level(config.noise, config.noise_level),
        "results": _results(run, autoencoder, rows),
        "history": [{name: _finite(getattr(row, name)) for name in columns} for row in rows],
        "inputs": _base64(inputs) if noisy else None,
        "reconstructions": _base64(autoencoder.reconstruct(inputs if noisy else images)),
        "network": network(autoencoder),
    }


def _results(run: Path, autoencoder: Autoencoder, rows: list[history.Row]) -> dict[str, str]:
    """The rows of the table of results, as text."""
    result = _read_result(run)
    state = "finished" if result else "unfinished"
    shape = " x ".join(map(str, autoencoder.code_shape))
    size = math.prod(autoencoder.code_shape)
    facts = {
        "epochs": f"{len(rows)} of {autoencoder.config.epochs}, {state}",
        "val_loss": "-",
        "lowest val_loss": "-",
        "val_psnr": "-",
        "val_psnr of the noisy images": "-",
        "parameters": f"{autoencoder.parameters:,}",
        "code": str(size) if len(autoencoder.code_shape) == 1 else f"{size} ({shape})",
        "training, seconds an epoch": "-",
        "method": str(result.get("method", "-")),
        "device": str(result.get("device", "-")),
    }
    if rows:
        last, best = rows[-1], min(rows, key=lambda row: row.val_loss)
        facts["val_loss"] = f"{last.val_loss:.4f}"
        facts["lowest val_loss"] = f"{best.val_loss:.4f} (epoch {best.epoch})"
        facts["val_psnr"] = f"{last.val_psnr:.2f} dB"
        seconds = statistics.median(row.epoch_seconds for row in rows)
        facts["training, seconds an epoch"] = f"{seconds:.2f}"
        if last.val_psnr_input is not None:
            facts["val_psnr of the noisy images"] = f"{last.val_psnr_input:.2f} dB"
    return facts


def _read_result(run: Path) -> dict[str, Any]:
    """``result.json``; empty for a run that is not finished."""
    path = run / "result.json"
    try:
        result = json.loads(path.read_bytes()) if path.exists() else {}
        if not isinstance(result, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({error}); restore it or delete it") from error
    return result


def _slider(noise: str, configs: Sequence[TrainConfig]) -> dict[str, Any]:
    """A noise and the levels that the page offers: to twice the default, or as far as the runs."""
    levels = NOISES[noise]
    step = 1.0 if levels.whole else 0.01
    trained = [
        check_level(config.noise, config.noise_level) for config in configs if config.noise == noise
    ]
    return {
        "meaning": levels.meaning,
        "default": levels.default,
        "low": step if levels.least > 0 else 0.0,
        "high": max(min(2 * levels.default, levels.most), *trained, levels.default),
        "step": step,
    }


def _finite(value: float) -> float | None:
    """JSON has no number for what is not finite."""
    return value if math.isfinite(value) else None


def _base64(array: Any) -> str:
    """The bytes of an array in C order: uint8, or float32 little-endian."""
    array = np.asarray(array)
    array = array if array.dtype == np.uint8 else array.astype("<f4")
    return base64.b64encode(array.tobytes()).decode()
