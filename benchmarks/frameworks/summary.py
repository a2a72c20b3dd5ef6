"""Summarises measurements: medians, checks of the loss, growth of the cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frameworks.expected import check_loss
from cae_jax.config import NAMED, from_dict
from cae_jax.models import topology


def summarise(measurement: Mapping[str, Any], peak_gflops: float) -> dict[str, Any]:
    """Summarises the measurement of one case.

    Args:
        measurement: see `benchmarks.frameworks.sweep.measure`.
        peak_gflops: peak of the device, for the utilisation.

    Returns:
        metadata, medians over the rounds, and ``failed``: None, or what is wrong.
    """
    rounds = measurement["rounds"]
    row = {key: value for key, value in measurement.items() if key not in ("cold", "rounds")}
    row["failed"] = next(filter(None, (_failure(row, one) for one in rounds)), None)
    if any("failed" in one for one in rounds):
        return row
    row |= _epoch_numbers(row, rounds, peak_gflops)
    for key in ("first_epoch_seconds", "start_seconds", "loss", "val_loss"):
        row[key] = statistics.median(one[key] for one in rounds)
    row["evaluation_seconds"] = statistics.median(
        statistics.median(one["evaluation_seconds"]) for one in rounds
    )
    row["peak_memory_mb"] = statistics.median(one["peak_memory_bytes"] / 1e6 for one in rounds)
    for name, sizes in rounds[0]["calls"].items():
        for size in sizes:
            rates = [one["calls"][name][size]["images_per_second"] for one in rounds]
            row[f"{name}_{size}"] = statistics.median(rates)
    return row


def _failure(row: Mapping[str, Any], one: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with one round, or None."""
    if "failed" in one:
        return one["failed"]
    known = row["config"]["data"] in NAMED
    return check_loss(one["loss"], _steps(row) * len(one["losses"]) if known else 0)


def _epoch_numbers(
    row: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], peak_gflops: float
) -> dict[str, Any]:
    """Returns the cost of an epoch, over the epochs of all rounds."""
    epochs = [seconds for one in rounds for seconds in one["epoch_seconds"]]
    seconds = statistics.median(epochs)
    rate = row["examples"] / seconds
    flops = topology.from_config(from_dict(row["config"])).training_flops
    return {
        "epoch_seconds": seconds,
        "epoch_seconds_min": min(epochs),
        "epoch_seconds_max": max(epochs),
        "timed_epochs": len(epochs),
        "step_ms": 1000 * seconds / _steps(row),
        "images_per_second": rate,
        "flop_utilisation": rate * flops / (peak_gflops * 1e9),
    }


def _steps(row: Mapping[str, Any]) -> int:
    return -(-row["examples"] // row["batch_size"])


def cost_lines(
    summaries: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Returns seconds per epoch against batch size and against number of images.

    Returns:
        by label of the x axis, then by label of the line: sorted points, at least two.
    """
    axes = {"batch size": ("batch_size", "examples"), "training images": ("examples", "batch_size")}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for label, (key, fixed) in axes.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in sorted(summaries, key=lambda row: row[key]):
            if not row["failed"]:
                kind = "images" if fixed == "examples" else "per batch"
                name = f"{row['framework']}, {row['model']}, {row[fixed]} {kind}"
                lines.setdefault(name, []).append((row[key], row["epoch_seconds"]))
        if drawn := {name: points for name, points in lines.items() if len(points) > 1}:
            panels[label] = drawn
    return panels


def growth_lines(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describes how the cost grows with the number of images, one sentence per line."""
    lines = cost_lines(summaries).get("training images", {})
    return [
        f"{name}: an epoch costs images ** {growth(points):.2f}" for name, points in lines.items()
    ]


def growth(points: Sequence[tuple[float, float]]) -> float:
    """Fits the exponent of y over x: the slope of the line through the logarithms."""
    logarithms = [(math.log(x), math.log(y)) for x, y in points]
    return statistics.linear_regression(*zip(*logarithms, strict=True)).slope
