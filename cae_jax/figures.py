"""Draws figures as PNG files; the only module that knows matplotlib.

Every function raises `UserError` when its file cannot be written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cae_jax import atomic


def save_rows(path: str | Path, rows: Mapping[str, np.ndarray]) -> None:
    """Draws rows of images, each with its label on the left.

    Args:
        path: PNG file to write.
        rows: label to gray images ``[n, height, width, 1]`` in [0, 1].
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
    _save(figure, path)


def save_curves(path: str | Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws losses over epochs: one color per run, ``val_loss`` solid and ``loss`` dotted.

    Args:
        path: PNG file to write.
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
    _save(figure, path)


def save_costs(
    path: str | Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
) -> None:
    """Draws the time per epoch in log-log panels, one for each quantity that it depends on.

    A dotted line shows proportional growth where the x axis counts training images.

    Args:
        path: PNG file to write.
        panels: label of the x axis to label of a line to its points (x, s/epoch), sorted by x; at
            least one.
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
        axis.set(xlabel=label, ylabel="s/epoch")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    _save(figure, path)


def save_lines(
    path: str | Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> None:
    """Draws lines through points, one color per line; a single point becomes a marker.

    Args:
        path: PNG file to write.
        lines: label to points (x, y).
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        log_x: use a logarithmic x axis.
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
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG, whatever the suffix of the name."""
    with atomic.output_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
