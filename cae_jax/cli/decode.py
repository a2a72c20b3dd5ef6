"""Decode a file of codes with the autoencoder that encoded them and write PNG files.

    cae-jax decode runs/photos codes.npz --out decoded

The file is checked from end to end before the first image is written.
"""

import collections
import itertools
from pathlib import Path

import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common, outputs
from cae_jax.errors import UserError
from cae_jax.ops import cache


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory or shipped model that encoded the images."""

    codes: tyro.conf.Positional[Path]
    """File of cae-jax encode."""

    out: Path
    """Directory for the PNG files, NAME.png for each image, with the folders in its name."""

    best: bool = False
    """Decode with the checkpoint with the lowest val_loss instead of the newest one."""


def run(flags: Flags) -> None:
    from cae_jax.interop import codes

    atomic.check_folder(flags.out)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, best=flags.best, backend="matmul")
    opened = codes.read(flags.codes, autoencoder, flags.run)
    names = output_names(flags.codes, opened.names)
    outputs.check(flags.out, names)
    outputs.make_folders(flags.out, names)
    left = iter(names)
    with common.progress(names, "Decoding", "image") as bar:
        for block in opened.blocks(autoencoder.max_batch):
            some = [*itertools.islice(left, len(block))]
            for _ in outputs.write(flags.out, some, autoencoder.decode(block)):
                bar.update()
    count, size = len(names), flags.codes.stat().st_size
    print(f"{flags.out}: {count:,} images, {size:,} bytes, {size / count:,.1f} bytes per image")


def output_names(file: Path, names: list[str]) -> list[str]:
    """The names of the outputs: without a suffix of images, unless two would be the same.

    Raises:
        UserError: a name that leads out of the folder, or is none.
    """
    from cae_jax.data.images import SUFFIXES

    paths = [Path(name) for name in names]
    for name in names:
        if not atomic.is_inside(name):
            raise UserError(
                f"{file} names an image {name!r}, which is no path within `out`; do not use a file "
                "from elsewhere that does"
            )
    short = [f"{p.with_suffix('') if p.suffix.lower() in SUFFIXES else p}" for p in paths]
    counts = collections.Counter(short)
    return [short if counts[short] == 1 else f"{p}" for short, p in zip(short, paths, strict=True)]
