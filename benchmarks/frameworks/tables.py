"""Rows and measurements as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frameworks.case import PEERS

# What peers are compared by: title, key of a row, and whether less of it is better.
_QUANTITIES = (
    ("training, s an epoch", "epoch_seconds", True),
    ("command to first step, s", "start_seconds", True),
    ("evaluation, s", "evaluation_seconds", True),
    ("reconstruct, batch 1, images/s", "reconstruct_1", False),
    ("reconstruct, batch 128, images/s", "reconstruct_128", False),
    ("reconstruct, batch 4096, images/s", "reconstruct_4096", False),
    ("peak memory, MB", "peak_memory_mb", True),
)


def training_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What an epoch costs: median (minimum - maximum)."""
    heads = ["contender", "model", "batch", "images", "s an epoch", "step ms", "images/s"]
    heads += ["of peak", "first epoch s", "evaluation s", "peak MB", "loss", "val_loss"]
    cells = []
    for row in rows:
        names = [row["contender"], row["model"], f"{row['batch_size']}", f"{row['examples']}"]
        if "epoch_seconds" not in row:
            cells.append([*names, f"FAILED: {row['failed']}", *[""] * 8])
            continue
        spread = f"({row['epoch_seconds_min']:.3g} - {row['epoch_seconds_max']:.3g})"
        cells.append(
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
    return table(heads, cells)


def start_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of the parts of a start, cold and warm: with empty and with filled caches."""
    done = [m for m in measurements if "start_seconds" in m["cold"]]
    parts = list(dict.fromkeys(part for m in done for part in m["cold"]["seconds"]))
    cells = []
    for m in done:
        name = f"{m['contender']}, {m['model']}, batch {m['batch_size']}, {m['examples']} images"
        for kind, result in (("cold", m["cold"]), ("warm", m["rounds"][-1])):
            if "start_seconds" in result:
                seconds = (result["seconds"].get(part) for part in parts)
                columns = ["" if value is None else f"{value:.2f}" for value in seconds]
                cells.append([name, kind, *columns, f"{result['start_seconds']:.2f}"])
    return table(["start, s", "caches", *parts, "in all"], cells)


def calls_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Latency in ms, median (minimum - maximum), and images a second of encode and reconstruct."""
    cells = []
    networks = {(m["contender"], m["model"]): m for m in measurements}  # whatever trained them
    for m in networks.values():
        for name, sizes in m["rounds"][-1].get("calls", {}).items():
            for size, times in sizes.items():
                low, high = 1000 * times["min_seconds"], 1000 * times["max_seconds"]
                latency = f"{1000 * times['median_seconds']:.3g} ({low:.3g} - {high:.3g})"
                rate = f"{times['images_per_second']:,.0f}"
                cells.append([m["contender"], m["model"], name, size, latency, rate])
    return table(["contender", "model", "call", "batch", "ms a call", "images/s"], cells)


def winners_tables(rows: Sequence[Mapping[str, Any]], ours: str) -> list[str]:
    """For each batch size and number of images our numbers, the best peer's, and who wins."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["failed"]:
            groups.setdefault((row["batch_size"], row["examples"]), []).append(row)
    return [
        f"Batch {batch_size}, {examples} images:\n\n{_winners_table(group, ours)}"
        for (batch_size, examples), group in groups.items()
    ]


def _winners_table(rows: Sequence[Mapping[str, Any]], ours: str) -> str:
    mine = next((row for row in rows if row["contender"] == ours), None)
    others = [row for row in rows if row["contender"] in PEERS]
    if mine is None or not others:
        return "Nothing to compare."
    heads = ["quantity", f"ours ({ours})", *(row["contender"] for row in others), "winner"]
    cells = []
    for title, key, less in _QUANTITIES:
        best = (min if less else max)(others, key=lambda row: row[key])
        ratio = best[key] / mine[key] if less else mine[key] / best[key]
        name, lead = ("ours", ratio) if ratio >= 1 else (best["contender"], 1 / ratio)
        numbers = [f"{row[key]:.4g}" for row in (mine, *others)]
        cells.append([title, *numbers, f"{name}, {lead:.2f} x"])
    return table(heads, cells)


def whole_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of whole processes."""
    heads = ["process", "s, median (minimum - maximum)", "with empty caches", "val_loss"]
    cells = []
    for row in rows:
        spread = f"({min(row['seconds']):.1f} - {max(row['seconds']):.1f})"
        cold = f"{row['cold_seconds']:.1f}" if "cold_seconds" in row else ""
        loss = f"{row['val_losses'][-1]:.4f}" + _mark(row)
        cells.append([row["contender"], f"{row['median_seconds']:.1f} {spread}", cold, loss])
    return table(heads, cells)


def table(heads: Sequence[str], cells: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [list(map(str, row)) for row in cells]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(f'{c:<{width}}' for c, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def _mark(row: Mapping[str, Any]) -> str:
    return " OUTSIDE ITS BAND" if row["failed"] else ""
