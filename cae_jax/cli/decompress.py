"""Decompress a file of cae-jax compress to PNG files.

    cae-jax decompress runs/compress_28 images.cae --out images

It takes the run that compressed the file, or a copy of that run.
"""

from pathlib import Path

import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common, outputs, reconstruct
from cae_jax.errors import naming
from cae_jax.ops import cache


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """The run that compressed."""

    file: tyro.conf.Positional[Path]
    """A .cae file."""

    out: Path
    """Directory for the PNG files, which have the names of the images that were compressed."""


def run(flags: Flags) -> None:
    from cae_jax.interop import cae
    from cae_jax.models import coding
    from cae_jax.runs import tables

    coding.check()
    with naming(flags.file, "a file that can be read", "pass one of cae-jax compress"):
        content = flags.file.expanduser().read_bytes()
    atomic.check_folder(flags.out)
    cae.parse(content, flags.file)  # before JAX compiles
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, backend="matmul")
    found, codes = cae.decompress(
        content, flags.file, autoencoder, tables.read(flags.run, autoencoder)
    )
    names = found.names
    outputs.check(flags.out, names)
    outputs.make_folders(flags.out, names)
    size = reconstruct.block_size(codes)
    with common.progress(range(len(names)), "Writing", "image") as bar:
        for start in range(0, len(names), size):
            block = slice(start, start + size)
            for _ in outputs.write(flags.out, names[block], autoencoder.decode(codes[block])):
                bar.update()
    print(f"{len(names):,} images in {flags.out}")
