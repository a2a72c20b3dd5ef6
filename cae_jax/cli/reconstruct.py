"""Sends one's own pictures through a trained autoencoder.

python scripts/reconstruct.py runs/fashion_mnist picture.png images.npy --out reconstructed
"""

import collections
import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.data.images import read_images, write_png
from cae_jax.ops import cache


@dataclasses.dataclass(frozen=True)
class Flags:
    """Sends one's own pictures through a trained autoencoder and writes PNG files."""

    run: tyro.conf.Positional[Path]
    """Folder that training wrote."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """PNG files of 28 x 28 grey pixels, or .npy arrays [28, 28], [N, 28, 28] or [N, 28, 28, 1]."""

    out: Path
    """Folder for the PNG files: NAME.png for each PNG, NAME-0000.png and so on for arrays."""

    resize: bool = False
    """Take other sizes and colours too and turn them into 28 x 28 grey pixels."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        if not flags.files:
            raise cae_jax.UserError("no FILES given; give PNG or .npy files")
        names, pictures = [], []
        for file in flags.files:
            images = read_images(file, resize=flags.resize)
            array = file.suffix.lower() == ".npy"
            names += [f"{file.stem}-{i:04}" if array else file.stem for i in range(len(images))]
            pictures.append(images)
        for name, count in collections.Counter(names).items():
            output = flags.out / f"{name}.png"
            if count > 1:
                raise cae_jax.UserError(f"{count} pictures would become {output}; rename the files")
            if output.resolve() in {file.resolve() for file in flags.files}:
                raise cae_jax.UserError(f"{output} is one of the pictures; give another --out")
        cache.use_compilation_cache()
        reconstructions = cae_jax.load(flags.run).reconstruct(np.concatenate(pictures))
        try:
            flags.out.mkdir(parents=True, exist_ok=True)
            for name, image in zip(names, reconstructions, strict=True):
                write_png(flags.out / f"{name}.png", image)
        except OSError as error:
            raise cae_jax.UserError(f"--out {flags.out} cannot be written ({error})") from error
        print(f"{len(names)} images in {flags.out}")


if __name__ == "__main__":
    main()
