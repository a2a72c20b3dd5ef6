"""Compress images to a few bytes each with a run trained for a rate.

    cae-jax compress runs/compress_28 boot.png shirts.npy --out images.cae

cae-jax decompress makes PNG files of them, with the same run.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common, outputs, reconstruct
from cae_jax.errors import UserError
from cae_jax.ops import cache


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory, trained with a `rate`, or a shipped model."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files, folders of them, or .npy arrays, as of cae-jax reconstruct."""

    out: Path
    """The file to write, such as images.cae."""

    effort: int = 2
    """Sweeps that look for a better code of each image; 0 takes that of the encoder."""

    quality: Literal[1, 2, 3, 4, 5, 6, 7] = 5
    """From small files to good images; 5 is what the run was trained for."""

    resize: bool = False
    """Accept other sizes, colours, transparency and 16 bits, and convert them as a training would,
    by the `resize` of the run's config."""

    invert: bool = False
    """Invert the images before use: for dark shapes on a light background."""


def run(flags: Flags) -> None:
    if not flags.files:
        raise UserError("no FILES given; give image files, folders of them, or .npy files")
    if flags.effort < 0:
        raise UserError(f"`effort` is {flags.effort}; it takes a whole number of at least 0")
    from cae_jax.interop import cae
    from cae_jax.models import coding
    from cae_jax.runs import tables
    from cae_jax.training.search import search

    coding.check()
    atomic.check_output(flags.out)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, backend="matmul").of_pixels
    found = tables.of_run(flags.run, autoencoder)[flags.quality]
    sources, images = read(flags)
    codes = search(
        *(autoencoder, found, images, flags.effort),
        progress=lambda starts: common.progress(starts, "Searching", "batch"),
    )
    content = cae.compress(autoencoder, found, codes, sources)
    with atomic.output_file(flags.out) as temporary:
        temporary.write_bytes(content)
    stream, count = len(cae.parse(content, flags.out).stream), len(images)
    decoded = autoencoder.decode(found.step * codes.astype(np.float32))
    psnr = reconstruct.psnr_of(decoded, images).mean()
    print(
        f"{flags.out}: {count:,} images in {len(content):,} bytes, {len(content) / count:.1f} each "
        f"and {stream / count:.1f} without the header; PSNR {psnr:.2f} dB"
    )


def read(flags: Flags) -> tuple[list[tuple[str, int]], np.ndarray]:
    """The sources as of `cae.Compressed`, and the images ``[N, *image_shape]``."""
    from cae_jax.data.images import joined

    options = {field.name for field in dataclasses.fields(flags)} - {"effort", "quality"}
    same = reconstruct.Flags(**{name: getattr(flags, name) for name in options})
    files, sources, all_names, parts = reconstruct.find(same), [], [], []
    if outputs.real(flags.out) in map(outputs.real, files):
        raise UserError(f"`out` {flags.out} is one of the images; give another `out`")
    for file, name in files.items():
        names, images = reconstruct.read(same, {file: name})
        sources.append((name.as_posix(), 0 if names == [f"{name}"] else len(names)))
        all_names += names
        parts.append(images)
    outputs.check(Path(), all_names)  # which they will have when they are decompressed
    return sources, joined(parts)
