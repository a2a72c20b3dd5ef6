"""Writes small image sets of four kinds, from the images that scikit-image and scikit-learn carry.

    python -m benchmarks.samples samples
    cae-jax train --data samples/photographs

- ``photographs``: a folder of color PNG files, patches of photographs, a folder for each.
- ``digits.npz``: 1,797 gray digits of 8 x 8 pixels with labels, training and test images.
- ``faces.npz``: 200 gray patches of 25 x 25 pixels, half of them faces, with MedMNIST's names.
- ``textures.npy``: gray patches of brick, grass and gravel in one array, without labels.
- ``crops.npy``: with ``--crops N``, that many patches of the photographs in one array, from random
  places, at random scales, half of them mirrored.

They are for a first try and for tests, too small for a comparison of models.
"""

import dataclasses
import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image, ImageOps

from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.config import LEAST_SIDE
from cae_jax.errors import UserError

PHOTOGRAPHS = {
    "skimage.data": (
        *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png"),
        *("motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}
TEXTURES = ("brick.png", "grass.png", "gravel.png")
SMALLEST = 300  # pixels of the shortest side of a photograph
LARGEST = 1200  # to which larger ones of others are reduced


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes small image sets of four kinds, from images of scikit-image and scikit-learn."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Directory that is written, a new one."""

    size: int = 64
    """Pixels of a side of the patches of photographs."""

    crops: int = 0
    """Patches from random places of the photographs in crops.npy; 0 writes no such file."""

    recolor: bool = False
    """Change the colors of these patches at random: ten photographs have few."""

    photographs: Path | None = None
    """A folder of other photographs to cut these patches from, JPEG files."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise UserError(f'{error.name} is missing: pip install -e ".[samples]"') from error
        with atomic.writing(flags.folder, "choose another `folder`"):
            if flags.folder.exists():
                raise UserError(f"`folder` {flags.folder} exists; give a new one")
            if not LEAST_SIDE <= flags.size <= SMALLEST:
                raise UserError(
                    f"`size` is {flags.size}; it takes {LEAST_SIDE} to {SMALLEST} pixels"
                )
            if flags.crops < 0:
                raise UserError(f"`crops` is {flags.crops}; it takes a number of at least 0")
            if not flags.crops and (flags.photographs or flags.recolor):
                raise UserError("`photographs` and `recolor` are for `crops`; give their number")
            found = others(flags.photographs) if flags.photographs else None
            flags.folder.mkdir(parents=True)
            count = write_photographs(flags.folder / "photographs", flags.size)
            images, labels = load_digits(return_X_y=True)
            write_digits(flags.folder / "digits.npz", images, labels)
            write_faces(flags.folder / "faces.npz")
            np.save(flags.folder / "textures.npy", textures())
            if flags.crops:
                patches = crops(flags.crops, flags.size, found, flags.recolor)
                np.save(flags.folder / "crops.npy", patches)
        names = ["digits.npz", "faces.npz", "textures.npy", *["crops.npy"] * bool(flags.crops)]
        print(f"{flags.folder}: photographs ({count} patches), {', '.join(names)}")


def write_photographs(folder: Path, size: int) -> int:
    """Writes the patches of each photograph to a folder of its name; returns their number."""
    count = 0
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            place = folder / Path(name).stem
            place.mkdir(parents=True, exist_ok=True)
            for row, column, patch in _patches(read_sample(package, name, "RGB"), size):
                Image.fromarray(patch).save(place / f"{row:02}_{column:02}.png")
                count += 1
    return count


def write_digits(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the digits: values 0 to 16 in rows of 64."""
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train = len(pixels) * 9 // 10
    np.savez(
        path,
        x_train=pixels[:train],
        y_train=labels[:train],
        x_test=pixels[train:],
        y_test=labels[train:],
    )


def write_faces(path: Path) -> None:
    """Writes the patches of scikit-image's `lfw_subset`, faces first, by the names of MedMNIST."""
    with resources.files("skimage.data").joinpath("lfw_subset.npy").open("rb") as file:
        pixels = np.rint(np.load(file) * 255).astype(np.uint8)
    labels = (np.arange(len(pixels)) >= len(pixels) // 2).astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(pixels))
    splits = dict(zip(("train", "val", "test"), np.split(order, [140, 160]), strict=True))
    arrays: Any = {f"{name}_images": pixels[indices] for name, indices in splits.items()}
    arrays |= {f"{name}_labels": labels[indices] for name, indices in splits.items()}
    np.savez(path, **arrays)


def textures(size: int = 28) -> np.ndarray:
    """The patches of all textures, uint8 ``[N, size, size]``, in an order without sense."""
    patches = [
        patch
        for name in TEXTURES
        for *_, patch in _patches(read_sample("skimage.data", name, "L"), size)
    ]
    return np.random.default_rng(0).permutation(np.stack(patches))


def packaged() -> list[Image.Image]:
    """The photographs that the packages carry."""
    return [
        Image.fromarray(read_sample(package, name, "RGB"))
        for package, names in PHOTOGRAPHS.items()
        for name in names
    ]


def others(folder: Path) -> list[Image.Image]:
    """The photographs in a folder, smaller where they are large.

    Raises:
        UserError: there are none, or one is smaller than all patches take.
    """
    found = []
    for path in sorted(folder.glob("*.[jJ][pP]*[gG]")):
        with Image.open(path) as image:
            short = min(image.size)
            if short < SMALLEST:
                raise UserError(f"{path} has a side of {short} pixels; it takes {SMALLEST}")
            scale = min(1.0, LARGEST / short)
            size = round(image.width * scale), round(image.height * scale)
            found.append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    if not found:
        raise UserError(f"no JPEG files in `photographs` {folder}")
    return found


def crops(
    count: int,
    size: int,
    photographs: list[Image.Image] | None = None,
    recolor: bool = False,
) -> np.ndarray:
    """Patches of random photographs, places and scales, uint8 ``[N, size, size, 3]``."""
    photographs = packaged() if photographs is None else photographs
    random = np.random.default_rng(0)
    patches = np.empty((count, size, size, 3), np.uint8)
    for patch in patches:
        photograph = photographs[random.integers(len(photographs))]
        # As if the shortest side of the photograph had between `SMALLEST` and all of its pixels.
        longest = max(1.0, min(photograph.size) / SMALLEST)
        side = size * math.exp(random.uniform(0, math.log(longest)))
        left, top = (random.uniform(0, length - side) for length in photograph.size)
        part = photograph.resize(
            (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
        pixels = np.asarray(part if random.random() < 0.5 else ImageOps.mirror(part))
        if recolor:
            powers = np.exp(random.normal(0, 0.4, 3))
            pixels = np.rint(255 * (pixels[..., random.permutation(3)] / 255) ** powers)
        patch[:] = pixels
    return patches


def read_sample(package: str, name: str, mode: str) -> np.ndarray:
    """Pixels of an image that a package carries, in a mode of Pillow."""
    with resources.files(package).joinpath(name).open("rb") as file:
        return np.asarray(Image.open(file).convert(mode))


def _patches(image: np.ndarray, size: int):
    """Row, column and pixels of the patches that lie side by side."""
    for row in range(image.shape[0] // size):
        for column in range(image.shape[1] // size):
            patch = image[row * size :, column * size :][:size, :size]
            yield row, column, patch


if __name__ == "__main__":
    main()
