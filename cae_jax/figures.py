"""Pictures as PNG: the one module that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cae_jax import atomic


def save_rows(path: str | Path, rows: Mapping[str, np.ndarray]) -> None:
    """Rows of images one above the other, each with its label on the left.

    Args:
        path: the PNG.
        rows: label to images ``[n, 28, 28, 1]`` in [0, 1]; all rows have one n.
    """
    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.6 + 0.9 * columns, 0.95 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    _save(figure, Path(path))


def save_curves(path: str | Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Loss over epochs: one colour a run, ``val_loss`` solid and ``loss`` dotted.

    Args:
        path: the PNG.
        curves: label of a run to its columns ``epoch``, ``loss`` and ``val_loss``.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (label, columns) in enumerate(curves.items()):
        style = {"color": f"C{i}", "marker": ".", "markersize": 4}
        axis.plot(columns["epoch"], columns["loss"], ":", label=f"{label} loss", **style)
        axis.plot(columns["epoch"], columns["val_loss"], "-", label=f"{label} val_loss", **style)
    axis.set(xlabel="epoch", ylabel="binary cross-entropy (nats)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    _save(figure, Path(path))


def save_costs(
    path: str | Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
) -> None:
    """Seconds an epoch, one log-log panel for each quantity that they depend on.

    A dotted line shows proportional growth where the x axis counts training images.

    Args:
        path: the PNG.
        panels: label of the x axis to label of a line to its points, sorted; at least one.
    """
    figure = Figure(figsize=(6 * len(panels), 4.6), layout="constrained")
    for axis, (label, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for i, (name, points) in enumerate(lines.items()):
            xs, ys = np.array(points).T
            axis.loglog(xs, ys, ".-", color=f"C{i % 10}", label=name)
            if label == "training images":
                axis.loglog(xs, ys[-1] * xs / xs[-1], ":", color=f"C{i % 10}")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set(xlabel=label, ylabel="seconds an epoch")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    _save(figure, Path(path))


def save_lines(
    path: str | Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> None:
    """Lines through points, one colour a line; a single point is a mark.

    Args:
        path: the PNG.
        lines: label to points.
        x_label: of the x axis, with its unit.
        y_label: of the y axis, with its unit.
        log_x: whether x is logarithmic.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for i, (label, points) in enumerate(lines.items()):
        xs, ys = np.array(points).T
        axis.plot(xs, ys, "o" if len(points) == 1 else ".-", color=f"C{i % 10}", label=label)
    if log_x:
        axis.set_xscale("log")
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG whatever the name ends in, atomically."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
