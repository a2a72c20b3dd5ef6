"""Pictures as PNG: the one module that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


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


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG whatever the name ends in, atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
