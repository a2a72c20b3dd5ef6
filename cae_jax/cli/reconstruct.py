"""Reconstruct user images with a trained autoencoder and write PNG files.

    cae-jax reconstruct runs/fashion_mnist boot.png images.npy --out reconstructed
    cae-jax reconstruct runs/photos holidays --out reconstructed --resize
    cae-jax reconstruct runs/denoise photo.jpg --out denoised --full-size

Prints the PSNR of each reconstruction against its input image.
"""

import contextlib
import functools
import itertools
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common, outputs
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:  # the modules that import JAX are imported once the flags are accepted
    from cae_jax.data.conversion import Conversion
    from cae_jax.models.inference import Autoencoder
    from cae_jax.models.topology import Topology

# In dB: how far the median may fall below the validation, and what inverting has to gain.
_FAR_BELOW, _CLEAR_GAIN = 6, 3
# Values of images that are reconstructed and written before the next ones: as floats, 64 MB.
_BLOCK = 2**24


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory, or a shipped model such as pretrained/denoise."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files (PNG, JPEG, WebP, BMP, TIFF, GIF), folders of them, or .npy arrays of one image
    or many, [H, W], [N, H, W], [N, H, W, C] or flattened, of the size and colours that the run was
    trained on, and like its training images: light on dark, for example."""

    out: Path
    """Directory for the PNG files: NAME.png for an image, NAME-0000.png, ... for an array; those of
    a folder keep the folders that they lie in."""

    resize: bool = False
    """Accept other sizes, colours, transparency and 16 bits, and convert them as a training would,
    by the `resize` of the run's config."""

    full_size: bool = False
    """Give pictures of any size and color back in theirs, with EXIF data and ICC profile; for
    convolutional networks."""

    invert: bool = False
    """Invert the images before use: for dark shapes on a light background."""

    background: Literal["auto", "black", "white"] | None = None
    """Shows behind transparent pixels; auto takes black behind light pixels and white behind dark
    ones, so that the shape shows; None takes what the run was trained with."""

    max_pixels: int | None = None
    """Accept files that claim up to this number of pixels; None takes that of the training."""


def run(flags: Flags) -> None:
    if not flags.files:
        raise UserError("no FILES given; give image files, folders of them, or .npy files")
    files = find(flags)
    atomic.check_folder(flags.out)
    if flags.full_size:
        run_at_full_size(flags, files)
        return
    names, images = read(flags, files)
    outputs.check(flags.out, names, files)
    cache.use_compilation_cache()
    # Not the native kernel, whose compilation takes longer than many images.
    autoencoder = cae_jax.load(flags.run, backend="matmul").of_pixels
    psnr = reconstruct(flags.out, autoencoder, names, images)
    for name, value in zip(names, psnr, strict=True):
        print_psnr(name, value)
    print(f"{len(names)} images in {flags.out}")
    hint(flags, autoencoder, images, psnr)


def print_psnr(name: str, psnr: float) -> None:
    """Prints the line of an output."""
    shown = name.encode(errors="surrogateescape").decode(errors="replace")
    print(f"{shown}.png: {psnr:.2f} dB")


def run_at_full_size(flags: Flags, files: dict[Path, Path]) -> None:
    """Reads, reconstructs and writes one picture after the other."""
    from cae_jax.data.pictures import take_pictures, write_picture
    from cae_jax.data.pixels import eight_bit_array
    from cae_jax.models import tiles

    if flags.resize or flags.background is not None:
        ignored = "`resize`" if flags.resize else "`background`"
        raise UserError(f"`full_size` keeps sizes and transparency; leave {ignored} out")
    network, convert = network_of(flags)
    tiles.check(network)
    found = {file: take_pictures(file, convert) for file in files}
    names = [
        each for file, name in files.items() for each in numbered(file, name, len(found[file]))
    ]
    outputs.check(flags.out, names, files)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, backend="matmul")
    outputs.make_folders(flags.out, names)
    for name, read_one in zip(names, itertools.chain(*found.values()), strict=True):
        picture = read_one()
        pixels = eight_bit_array(picture.pixels, name)
        pixels = inverted(pixels) if flags.invert else pixels
        bar = functools.partial(tqdm, desc=name, unit="tile", leave=False, disable=None)
        precision = autoencoder.config.precision
        output = tiles.reconstruct(network, autoencoder.params, precision, pixels, bar)
        with atomic.writing(flags.out):
            write_picture(flags.out / f"{name}.png", picture._replace(pixels=output))
        print_psnr(name, psnr_of_bytes(output, pixels))
    print(f"{len(names)} pictures in {flags.out}")


def psnr_of_bytes(output: np.ndarray, pixels: np.ndarray) -> float:
    """PSNR in dB of a large picture, whose rows become floats one by one."""
    rows = zip(output, pixels, strict=True)
    squares = [np.square(a.astype(np.float32) - b).mean() for a, b in rows]
    return -10 * math.log10(max(float(np.mean(squares)) / 255**2, 1e-10))


def numbered(file: Path, name: Path, count: int) -> list[str]:
    """The names of the outputs of a file, which are numbered for an array or several frames."""
    one = count == 1 and file.suffix.lower() != ".npy"
    return [f"{name}"] if one else [f"{name}-{i:04}" for i in range(count)]


def find(flags: Flags) -> dict[Path, Path]:
    """The files to read, each with the name of its output without the suffix, in `out`."""
    from cae_jax.data.images import SUFFIXES
    from cae_jax.data.path import walk

    found, out = {}, outputs.real(flags.out)
    for path in flags.files:
        if not os.path.isdir(path):  # noqa: PTH112 - which raises without permission
            found[path] = Path(path.stem)
            continue
        if outputs.real(path) == out:
            raise UserError(f"`out` {flags.out} is the folder of the images; give another `out`")
        files = walk(path).with_suffix(SUFFIXES)
        # Not the outputs of the same command before.
        keys = [file.key for file in files if out not in outputs.real(path / file.key).parents]
        if not keys:
            raise UserError(f"{path} holds no image; its files may end in {', '.join(SUFFIXES)}")
        found |= {path / key: Path(key).with_suffix("") for key in keys}
    return found


def read(flags: Flags, files: dict[Path, Path]) -> tuple[list[str], np.ndarray]:
    """The name of each output and the images ``[N, *image_shape]``, uint8 or float32 in [0, 1]."""
    from cae_jax.data.images import joined, take_images

    _, convert = network_of(flags)
    names, parts = [], []
    for file, name in common.progress(list(files.items()), "Reading", "image"):
        images = take_images(file, convert, resize=flags.resize)
        names += numbered(file, name, len(images))
        parts.append(inverted(images) if flags.invert else images)
    return names, joined(parts)


def network_of(flags: Flags) -> tuple["Topology", "Conversion"]:
    """The network of the run, and how images are converted for it."""
    from cae_jax.data.images import conversion_of
    from cae_jax.models.topology import from_config
    from cae_jax.runs.folder import read_config

    config = read_config(flags.run)
    network = from_config(config)
    convert = conversion_of(config, network.image_shape)
    return network, convert._replace(
        background=flags.background or config.background,
        max_pixels=flags.max_pixels or config.max_pixels,
    )


def inverted(images: np.ndarray) -> np.ndarray:
    """Images with dark and light exchanged; transparency stays."""
    white = np.asarray(255 if images.dtype == np.uint8 else 1, images.dtype)
    return np.concatenate([white - images[..., :3], images[..., 3:]], axis=-1)


def reconstruct(
    folder: Path, autoencoder: "Autoencoder", names: list[str], images: np.ndarray
) -> np.ndarray:
    """Writes each reconstruction as a PNG; returns their PSNR in dB, ``[N]``."""
    psnr, size = [np.zeros(0)], block_size(images)
    outputs.make_folders(folder, names)
    with common.progress(range(len(names)), "Writing", "image") as bar:
        for start in range(0, len(names), size):
            block = slice(start, start + size)
            reconstructions = autoencoder.reconstruct(images[block])
            psnr.append(psnr_of(reconstructions, images[block]))
            for _ in outputs.write(folder, names[block], reconstructions):
                bar.update()
    return np.concatenate(psnr)


def block_size(images: np.ndarray) -> int:
    """How many images make a block, at least 1."""
    return max(1, _BLOCK // math.prod(images.shape[1:]))


def psnr_of(reconstructions: np.ndarray, images: np.ndarray) -> np.ndarray:
    """PSNR in dB of each reconstruction: ``[N]``."""
    import jax.numpy as jnp

    from cae_jax.models.autoencoders import scale
    from cae_jax.training import metrics

    return np.asarray(metrics.psnr(jnp.asarray(reconstructions), scale(jnp.asarray(images))))


def hint(flags: Flags, autoencoder: "Autoencoder", images: np.ndarray, psnr: np.ndarray) -> None:
    """Prints a line where the images are reconstructed far worse than the run's validation."""
    from cae_jax.runs import history

    rows: list[history.Row] = []
    with contextlib.suppress(UserError):  # the reconstructions do not depend on the history
        rows = history.of_run(flags.run)
    if not rows or not len(psnr):
        return
    # Against a noisy input a denoised image is as far off as the noise.
    inputs = rows[-1].val_psnr_input
    expected = rows[-1].val_psnr if inputs is None else min(rows[-1].val_psnr, inputs)
    median = np.median(psnr)
    if median > expected - _FAR_BELOW:
        return
    some = slice(None, None, -(-len(images) // block_size(images)))
    others, median = inverted(images[some]), np.median(psnr[some])
    gained = np.median(psnr_of(autoencoder.reconstruct(others), others))
    advice = "the images are unlike those of its training"
    if gained > median + _CLEAR_GAIN:
        flag = "omit" if flags.invert else "give"
        advice = f"{flag} --invert, with which it is {gained:.1f} dB"
    print(
        f"hint: the median PSNR is {median:.1f} dB, far below the {expected:.1f} dB of the run's "
        f"validation; {advice}",
        file=sys.stderr,
    )
