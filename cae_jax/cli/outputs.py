"""The PNG files that commands write into a folder, with the folders in their names."""

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cae_jax import atomic
from cae_jax.errors import UserError


def check(folder: Path, names: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """Refuses two images for one output, and outputs that are inputs.

    Args:
        folder: of the outputs.
        names: of the outputs, below the folder and without ``.png``.
        inputs: files that are read.
    """
    files = {real(file) for file in inputs}
    for name, count in collections.Counter(names).items():
        output = folder / f"{name}.png"
        if count > 1:
            raise UserError(f"{count} images would become {output}; rename the files")
        if files and real(output) in files:
            raise UserError(f"{output} is one of the images; give another `out`")


def make_folders(folder: Path, names: Iterable[str]) -> None:
    """Makes the folders of the outputs."""
    with atomic.writing(folder):
        for parent in {folder, *((folder / name).parent for name in names)}:
            parent.mkdir(parents=True, exist_ok=True)


def write(folder: Path, names: Sequence[str], images: np.ndarray) -> Iterator[str]:
    """Writes images ``[N, height, width, channels]`` in [0, 1]; yields the names of those done."""
    from cae_jax.data.images import write_png

    for name, image in zip(names, images, strict=True):
        with atomic.writing(folder):
            write_png(folder / f"{name}.png", image)
        yield name


def real(path: Path) -> Path:
    """The path without links; one that leads nowhere stays."""
    return Path(os.path.realpath(path))
