"""Reconstruct user images with a trained autoencoder and write PNG files.

cae-jax reconstruct runs/fashion_mnist boot.png images.npy --out reconstructed
"""

import collections
import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.errors import UserError
from cae_jax.ops import cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """PNG files of 28 x 28 grey pixels, or .npy arrays [28, 28], [N, 28, 28] or [N, 28, 28, 1]."""

    out: Path
    """Directory for the PNG files: NAME.png for a PNG, NAME-0000.png, ... for an array."""

    resize: bool = False
    """Accept other sizes and colours and convert them to 28 x 28 grey pixels."""


def run(flags: Flags) -> None:
    if not flags.files:
        raise UserError("no FILES given; give PNG or .npy files")
    from cae_jax.data.images import read_images, write_png
    from cae_jax.models.topology import of_config
    from cae_jax.runs.folder import read_config

    image_shape = of_config(read_config(flags.run)).image_shape

    names, images = [], []
    for file in flags.files:
        images.append(read_images(file, image_shape, resize=flags.resize))
        array = file.suffix.lower() == ".npy"
        names += [f"{file.stem}-{i:04}" if array else file.stem for i in range(len(images[-1]))]
    for name, count in collections.Counter(names).items():
        output = flags.out / f"{name}.png"
        if count > 1:
            raise UserError(f"{count} images would become {output}; rename the files")
        if output.resolve() in {file.resolve() for file in flags.files}:
            raise UserError(f"{output} is one of the images; give another `out`")
    cache.use_compilation_cache()
    reconstructions = cae_jax.load(flags.run).reconstruct(np.concatenate(images))
    with atomic.writing(flags.out):
        flags.out.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, reconstructions, strict=True):
            write_png(flags.out / f"{name}.png", image)
    print(f"{len(names)} images in {flags.out}")
