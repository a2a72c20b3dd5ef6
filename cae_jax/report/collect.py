"""Collects the report data of runs as JSON values, with arrays as base64."""

import base64
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from cae_jax import data
from cae_jax.config import NOISES, TrainConfig, check_level, resolved, to_dict, to_shared
from cae_jax.errors import UserError
from cae_jax.evaluation import comparison, linear, members
from cae_jax.evaluation.lazy import Lazy
from cae_jax.models import coding
from cae_jax.models.inference import Autoencoder
from cae_jax.models.topology import Topology
from cae_jax.runs import environment, history, pretrained, tables
from cae_jax.runs.folder import read_config
from cae_jax.runs.load import load
from cae_jax.runs.members import Member, of_population
from cae_jax.runs.names import run_names
from cae_jax.training.search import search

IMAGES = 10
# Maximum number of parameters of all runs in a report, 27 MB of the page.
MAX_PARAMETERS = 5_000_000
_METHODS = {"conv": "xla", "phase": "matmul", "fused": "native"}


def collect(
    runs: Sequence[Path],
    moved: str | None = None,
    *,
    data_dir: Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """The report data of runs, finished or not, with the weights of their newest checkpoints.

    Args:
        runs: directories of runs and populations on one data set; a population is represented by
            its best, median and worst member.
        moved: path of the images, if they have moved since the training.
        data_dir, verify_data, workers: location of the images, as in `data.load_split`.

    Raises:
        UserError: no runs, a directory that is not a run, a run without a checkpoint or with a
            damaged file, several data sets, more than `MAX_PARAMETERS` parameters, or the data set
            is unavailable or another one.
    """
    if not runs:
        raise UserError("`runs` is empty; pass directories written by `cae-jax train`")
    populations = {run: found for run in runs if (found := of_population(run)) is not None}
    runs = [each for run in runs for each in _shown(run, populations.get(run))]
    where: Any = {"data_dir": data_dir, "verify_data": verify_data, "workers": workers}
    configs = _configs(runs, moved, **where)
    autoencoders = _loaded(runs)
    tested, labels = environment.load_split(runs[0], configs[0], "validation", **where)
    environment.warn_of_other_images(runs, configs, **where)
    fitted = _fitted(runs[0], configs[0], autoencoders, **where)
    stored = tested[:IMAGES]
    images, _ = comparison.clean_and_noisy(stored, configs[0], "none")
    height, width, channels = images.shape[1:]
    return {
        "dataset": Path(configs[0].data).name,
        "image_shape": list(images.shape[1:]),
        "images": _base64(images),
        "classes": _classes(labels, data.class_names(configs[0], data_dir=data_dir)),
        "noises": {noise: _slider(noise, configs, images.shape[1:]) for noise in NOISES},
        "defaults": to_dict(resolved(TrainConfig(), (height, width, channels))),
        "populations": [
            {"name": name, **_population_data(found)}
            for name, found in zip(run_names([*populations]), populations.values(), strict=True)
        ],
        "runs": [
            {
                "name": name,
                **_run_data(run, autoencoder, stored, _linear(fitted, autoencoder, tested)),
            }
            for name, run, autoencoder in zip(run_names(runs), runs, autoencoders, strict=True)
        ],
    }


def _configs(runs: Sequence[Path], path: str | None, **where: Any) -> list[TrainConfig]:
    """The configs of runs on one data set, with the path where its images are now."""
    configs = [read_config(run) for run in runs]
    comparison.check_same_images(configs, runs)
    configs, same = environment.moved(runs, configs, path, **where)
    if not same:
        raise UserError(
            f"`data` {path} has other images than {runs[0]} was trained on; give those, or "
            "evaluate on them with cae-jax evaluate"
        )
    return configs


def _loaded(runs: Sequence[Path]) -> list[Autoencoder]:
    """The networks of runs; refuses more than a page takes."""
    autoencoders = [load(run).of_pixels for run in runs]
    parameters = sum(autoencoder.parameters for autoencoder in autoencoders)
    if parameters > MAX_PARAMETERS:
        raise UserError(
            f"the runs have {parameters:,} parameters, a page takes at most {MAX_PARAMETERS:,}; "
            "pass fewer runs"
        )
    return autoencoders


def _classes(labels: np.ndarray | None, names: Sequence[str]) -> list[str]:
    """The names of the images' classes; [] if the data have none."""
    if labels is None or not names:
        return []
    # -1 marks an image without a label.
    return [names[label] if label >= 0 else "" for label in map(int, labels[:IMAGES])]


def _shown(run: Path, population: Mapping[str, Member] | None) -> list[Path]:
    """The runs that represent a run or a population."""
    if population is None:
        return [run]
    good = [name for name in members.ranked(population) if math.isfinite(population[name].val_loss)]
    if all(member.stopped_at is not None for member in population.values()):
        raise UserError(
            f"all members of {run} became non-finite; train others, with a lower learning rate or "
            "a clipped gradient, in another directory"
        )
    if not good:
        raise UserError(f"no member of {run} has completed an epoch; wait, or repeat its training")
    return [run / name for name in dict.fromkeys((good[0], good[len(good) // 2], good[-1]))]


def _population_data(population: Mapping[str, Member]) -> dict[str, Any]:
    """The report data of a population: tables with their headers first, and points of charts."""
    return {
        "headline": members.headline(population),
        "settings": members.settings(population),
        "members": members.rows(population),
        "curves": {
            name: [[row.epoch, _finite(row.val_loss)] for row in member.rows]
            for name, member in population.items()
        },
        "panels": members.panels(population),
    }


def network(topology: Topology, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A network in the form that ``network.js`` reads.

    Args:
        topology: the network.
        parameters: ``kernel`` and ``bias`` of each layer that has them, by its name.

    Returns:
        ``code`` and ``layers`` of the topology; the layers with parameters also have their
        ``weights``, in the order of the shape ``kernel``, and ``bias``.
    """
    layers = [layer._asdict() for layer in topology.layers]
    for layer in layers:
        if layer["kernel"] is not None:
            values = parameters[layer["name"]]
            layer.update(weights=_base64(values["kernel"]), bias=_base64(values["bias"]))
    return {"code": topology.code, "layers": layers}


def _fitted(
    run: Path, config: TrainConfig, autoencoders: Sequence[Autoencoder], **where: Any
) -> linear.Linear | None:
    """Principal components for all codes; None if fitting them takes minutes."""
    train = environment.load_split(run, config, "train", **where)[0]
    return comparison.fit_linear(train, config, comparison.code_sizes(autoencoders)[-1])


def _linear(
    fitted: linear.Linear | None, autoencoder: Autoencoder, tested: np.ndarray
) -> dict[str, str]:
    """The rows on principal components in the table of a run, on its validation images."""
    if fitted is None:
        return {}
    config, (size,) = autoencoder.config, comparison.code_sizes([autoencoder])
    pca = fitted.first(size)
    images, inputs = comparison.clean_and_noisy(
        tested[: config.test_examples], config, config.noise, config.noise_level, config.seed
    )
    outputs = Lazy(inputs.shape, lambda part: pca.reconstruct(inputs[part]))
    return {
        "PCA, val_psnr": f"{comparison.mean_psnr(outputs, images):.2f} dB",
        "PCA, parameters": f"{pca.parameters:,}",
    }


def _run_data(
    run: Path, autoencoder: Autoencoder, stored: np.ndarray, pca: dict[str, str]
) -> dict[str, Any]:
    """The report data of one run.

    Args:
        run, autoencoder: the run.
        stored: its first test images or pairs.
        pca: rows of `_linear`.
    """
    parameters = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    config, rows = autoencoder.config, history.of_run(run)
    images, inputs = comparison.clean_and_noisy(
        stored, config, config.noise, config.noise_level, config.seed
    )
    noisy = config.noise != "none"
    columns = ("epoch", "loss", "val_loss", "val_psnr")
    return {
        "config": to_shared(config),
        "noise": config.noise,
        "noise_level": check_level(config.noise, config.noise_level, images.shape[1:]),
        "results": _results(run, autoencoder, rows) | pca,
        "history": [{name: _finite(getattr(row, name)) for name in columns} for row in rows],
        "inputs": _base64(inputs) if noisy else None,
        "reconstructions": _base64(
            autoencoder.reconstruct(np.asarray(inputs if noisy else images))
        ),
        "network": network(autoencoder.topology, parameters),
        "compressed": _compressed(run, autoencoder, np.asarray(images)),
    }


def _compressed(
    run: Path, autoencoder: Autoencoder, images: np.ndarray
) -> list[dict[str, Any]] | None:
    """The codes of images and their bytes at each quality; None for codes of other numbers."""
    if not autoencoder.topology.quantised or not coding.is_there():
        return None
    found = []
    for quality, each in tables.of_run(run, autoencoder).items():
        codes = search(autoencoder, each, images, sweeps=1)
        found.append(
            {
                "quality": quality,
                "trained": quality == coding.TRAINED,
                "sizes": [len(coding.encode(code[None], each)) for code in codes],
                "codes": _base64(each.step * codes),
            }
        )
    return found


def _results(run: Path, autoencoder: Autoencoder, rows: list[history.Row]) -> dict[str, str]:
    """The table of results as text, by the name of the row."""
    result, code = _read_result(run), autoencoder.code_shape
    shape = f" ({' x '.join(map(str, code))})" if len(code) > 1 else ""
    results = {
        "epochs": f"{len(rows)} of {autoencoder.config.epochs}, "
        + ("finished" if result else "unfinished"),
        "val_loss": "-",
        "lowest val_loss": "-",
        "val_psnr": "-",
        "val_psnr of the noisy images": "-",
        "parameters": f"{autoencoder.parameters:,}",
        "code": f"{math.prod(code)}{shape}",
        "training, s/epoch": "-",
        # Older runs call it method, and by other names.
        "backend": str(result.get("backend", _METHODS.get(str(result.get("method")), "-"))),
        "device": str(result.get("device", "-")),
    }
    if rows:
        last, best = rows[-1], min(rows, key=lambda row: row.val_loss)
        results["val_loss"] = f"{last.val_loss:.4f}"
        results["lowest val_loss"] = f"{best.val_loss:.4f} (epoch {best.epoch})"
        results["val_psnr"] = f"{last.val_psnr:.2f} dB"
        seconds = statistics.median(row.epoch_seconds for row in rows)
        results["training, s/epoch"] = f"{seconds:.2f}"
        if last.val_psnr_input is not None:
            results["val_psnr of the noisy images"] = f"{last.val_psnr_input:.2f} dB"
    return results


def _read_result(run: Path) -> dict[str, Any]:
    """The content of ``result.json``; empty if the run is not finished."""
    path = pretrained.locate(run) / "result.json"
    try:
        result = json.loads(path.read_bytes()) if path.exists() else {}
        if not isinstance(result, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or delete it") from error
    return result


def _slider(
    noise: str, configs: Sequence[TrainConfig], image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """The range of a noise slider: to twice the default level, or the highest of the runs."""
    levels = NOISES[noise]
    step = 1.0 if levels.whole else 0.01
    default = check_level(noise, None, image_shape)
    most = min(image_shape[:2]) if levels.whole else levels.most
    trained = [check_level(noise, x.noise_level, image_shape) for x in configs if x.noise == noise]
    return {
        "meaning": levels.meaning,
        "default": default,
        "low": step if levels.least > 0 else 0.0,
        "high": max(min(2 * default, most), *trained, default),
        "step": step,
    }


def _finite(value: float) -> float | None:
    """None for a value that is not finite, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def _base64(array: Any) -> str:
    """The bytes of an array in C order: uint8, or little-endian float32."""
    array = np.asarray(array)
    array = array if array.dtype == np.uint8 else array.astype("<f4")
    return base64.b64encode(array.tobytes()).decode()
