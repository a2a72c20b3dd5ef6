"""Formats summaries and measurements as Markdown tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frameworks.case import FRAMEWORKS
from cae_jax.markdown import table

# Quantities to compare frameworks by: title, key of a summary, whether less is better.
_QUANTITIES = (
    ("training, s/epoch", "epoch_seconds", True),
    ("command to first step, s", "start_seconds", True),
    ("evaluation, s", "evaluation_seconds", True),
    ("reconstruct, batch 1, images/s", "reconstruct_1", False),
    ("reconstruct, batch 128, images/s", "reconstruct_128", False),
    ("reconstruct, batch 4096, images/s", "reconstruct_4096", False),
    ("peak memory, MB", "peak_memory_mb", True),
)


def training_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates the cost of an epoch: median (minimum - maximum)."""
    header = ["framework", "model", "batch", "images", "s/epoch", "step ms", "images/s"]
    header += ["of peak", "first epoch s", "evaluation s", "peak MB", "loss", "val_loss"]
    rows = []
    for row in summaries:
        names = [row["framework"], row["model"], row["batch_size"], row["examples"]]
        if "epoch_seconds" not in row:
            rows.append([*names, f"FAILED: {row['failed']}", *[""] * 8])
            continue
        spread = f"({row['epoch_seconds_min']:.3g} - {row['epoch_seconds_max']:.3g})"
        rows.append(
            [
                *names,
                f"{row['epoch_seconds']:.3g} {spread}",
                f"{row['step_ms']:.3g}",
                f"{row['images_per_second']:,.0f}",
                f"{row['flop_utilisation']:.1%}",
                f"{row['first_epoch_seconds']:.3g}",
                f"{row['evaluation_seconds']:.3g}",
                f"{row['peak_memory_mb']:.0f}",
                f"{row['loss']:.4f}" + _mark(row),
                f"{row['val_loss']:.4f}",
            ]
        )
    return table(header, rows)


def start_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates the seconds of each part of a start, cold (empty caches) and warm (filled)."""
    done = [m for m in measurements if "start_seconds" in m["cold"]]
    parts = list(dict.fromkeys(part for m in done for part in m["cold"]["seconds"]))
    rows = []
    for m in done:
        name = f"{m['framework']}, {m['model']}, batch {m['batch_size']}, {m['examples']} images"
        for kind, result in (("cold", m["cold"]), ("warm", m["rounds"][-1])):
            if "start_seconds" in result:
                seconds = (result["seconds"].get(part) for part in parts)
                columns = ["" if value is None else f"{value:.2f}" for value in seconds]
                rows.append([name, kind, *columns, f"{result['start_seconds']:.2f}"])
    return table(["start, s", "caches", *parts, "total"], rows)


def calls_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates ms per call, median (minimum - maximum), and images/s of the calls."""
    rows = []
    # Batch size and number of images of the training do not matter here.
    networks = {(m["framework"], m["model"]): m for m in measurements}
    for m in networks.values():
        for name, sizes in m["rounds"][-1].get("calls", {}).items():
            for size, times in sizes.items():
                low, high = 1000 * times["min_seconds"], 1000 * times["max_seconds"]
                latency = f"{1000 * times['median_seconds']:.3g} ({low:.3g} - {high:.3g})"
                rate = f"{times['images_per_second']:,.0f}"
                rows.append([m["framework"], m["model"], name, size, latency, rate])
    return table(["framework", "model", "call", "batch", "ms/call", "images/s"], rows)


def winner_tables(summaries: Sequence[Mapping[str, Any]], backend: str) -> list[str]:
    """Compares cae-jax with the best other framework, one table per batch size and image count.

    Args:
        summaries: of all frameworks.
        backend: the one of cae-jax to compare.
    """
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in summaries:
        if not row["failed"]:
            groups.setdefault((row["batch_size"], row["examples"]), []).append(row)
    return [
        f"Batch {batch_size}, {examples} images:\n\n{_winner_table(group, backend)}"
        for (batch_size, examples), group in groups.items()
    ]


def _winner_table(summaries: Sequence[Mapping[str, Any]], backend: str) -> str:
    ours = next((row for row in summaries if row["framework"] == backend), None)
    others = [row for row in summaries if row["framework"] in FRAMEWORKS]
    if ours is None or not others:
        return "Nothing to compare."
    names = [f"cae-jax ({backend})", *(row["framework"] for row in others)]
    rows = []
    for title, key, less in _QUANTITIES:
        best = (min if less else max)(others, key=lambda row: row[key])
        ratio = best[key] / ours[key] if less else ours[key] / best[key]
        name, lead = ("cae-jax", ratio) if ratio >= 1 else (best["framework"], 1 / ratio)
        numbers = [f"{row[key]:.4g}" for row in (ours, *others)]
        rows.append([title, *numbers, f"{name}, {lead:.2f} x"])
    return table(["quantity", *names, "winner"], rows)


def end_to_end_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates the seconds of whole processes."""
    header = ["process", "s, median (minimum - maximum)", "with empty caches", "val_loss"]
    rows = []
    for row in summaries:
        spread = f"({min(row['seconds']):.1f} - {max(row['seconds']):.1f})"
        cold = f"{row['cold_seconds']:.1f}" if "cold_seconds" in row else ""
        loss = f"{row['val_losses'][-1]:.4f}" + _mark(row)
        rows.append([row["framework"], f"{row['median_seconds']:.1f} {spread}", cold, loss])
    return table(header, rows)


def time_to_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates the seconds until a loss; the medians of the seeds, with minimum and maximum."""
    header = ["framework", "recipe", "epochs", "training, s", "whole process, s"]
    rows = []
    for row in summaries:
        cells = [
            f"{statistics.median(row[key]):.{digits}f} ({min(row[key]):.{digits}f} - "
            f"{max(row[key]):.{digits}f})"
            for key, digits in (("epochs", 2), ("seconds", 1), ("whole_seconds", 1))
        ]
        rows.append([row["framework"], row["recipe"], *(cells if not row["failed"] else ["-"] * 3)])
    return table(header, rows)


def _mark(summary: Mapping[str, Any]) -> str:
    return " OUT OF RANGE" if summary["failed"] else ""
