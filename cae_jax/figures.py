"""Draws figures as PNG files; the only module that knows matplotlib.

Every function raises `UserError` when its file cannot be written.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lines of matplotlib out of ours: on a cache that it builds or cannot keep, and fonts.

    The program that imports us may want them at other times.
    """
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # as of Chinese names
            yield
    finally:
        logger.setLevel(before)


with _quiet():
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

_IMAGE_INCHES = 0.85
_LOSSES = {"bce": "binary cross-entropy (nats)", "mse": "mean squared error"}


def save_rows(path: str | Path, rows: Mapping[str, np.ndarray]) -> None:
    """Draws rows of images, each with its label on the left.

    Args:
        path: PNG file to write.
        rows: label to images ``[n, height, width, channels]`` in [0, 1], of one size, and of 1
            (gray), 3 (RGB) or 4 (RGBA) channels.
    """
    columns = max(len(images) for images in rows.values())
    sides = np.array(next(iter(rows.values())).shape[1:3])
    height, width = _IMAGE_INCHES * sides / sides.max()  # inches
    size = 1.6 + (width + 0.05) * columns, (height + 0.1) * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            if image.shape[-1] == 1:
                axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            else:
                axis.imshow(np.clip(image, 0, 1))
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    _save(figure, path)


def save_curves(
    path: str | Path, curves: Mapping[str, Mapping[str, Sequence[float]]], *, loss: str = "bce"
) -> None:
    """Draws losses over epochs: one color per run, ``val_loss`` solid and ``loss`` dotted.

    Args:
        path: PNG file to write.
        curves: label of a run to its columns ``epoch``, ``loss`` and ``val_loss``.
        loss: what training minimised, see `TrainConfig`.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (label, columns) in enumerate(curves.items()):
        style = {"color": f"C{i}", "marker": ".", "markersize": 4}
        axis.plot(columns["epoch"], columns["loss"], ":", label=f"{label} loss", **style)
        axis.plot(columns["epoch"], columns["val_loss"], "-", label=f"{label} val_loss", **style)
    axis.set(xlabel="epoch", ylabel=_LOSSES[loss])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save_axes(figure, path)


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
    _save_axes(figure, path)


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
    _save_axes(figure, path)


def save_members(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    panels: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Draws the losses of many models: over epochs, and at the end over each swept value.

    The first panel has their median in black, the others the median of each value.

    Args:
        path: PNG file to write.
        curves: label of a model to its points (epoch, loss).
        panels: label of a swept quantity to points (value, loss), sorted.
    """
    figure = Figure(figsize=(4.6 * (1 + len(panels)), 4.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(panels), squeeze=False, sharey=True)[0]
    for points in curves.values():
        first.plot(*zip(*points, strict=True), color="C0", alpha=0.4, linewidth=1)
    _plot_median(first, [point for points in curves.values() for point in points])
    first.set(xlabel="epoch", ylabel="val_loss (nats)")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, (label, points) in zip(others, panels.items(), strict=True):
        axis.plot(*zip(*points, strict=True), "o", color="C0", alpha=0.4, markersize=4)
        _plot_median(axis, points)
        values = sorted({value for value, _ in points})
        if min(values) > 0 and max(values) > 4 * min(values):
            axis.set_xscale("log")
        if len(values) <= 8:
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.set(xlabel=label)
    # Losses of the first epochs, and of models that do not learn, hide all others.
    losses = [points[-1][1] for points in curves.values()]
    low, middle = min(losses), float(np.median(losses))
    first.set_ylim(low - 0.1 * (middle - low) - 1e-3, middle + 4 * (middle - low) + 1e-2)
    _save_axes(figure, path)


def _plot_median(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    values = sorted({x for x, _ in points})
    medians = [float(np.median([y for x, y in points if x == value])) for value in values]
    axis.plot(values, medians, ".-", color="black", label="median")


def _save_axes(figure: Figure, path: str | Path) -> None:
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG, whatever the suffix of the name."""
    with atomic.output_file(path) as temporary, _quiet():
        figure.savefig(temporary, dpi=110, format="png")
