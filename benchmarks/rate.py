"""Compares runs that compress with image formats and PCA: quality for bytes.

    python -m benchmarks.rate runs/compress_28 runs/compress_28_60 --images 1000
    python -m benchmarks.rate runs/compress_28 --qualities 2 3 4 5 --validation --figure rate.png

Each run and quality is a point, with and without the search for better codes; the learned curve has
the best ones. Sizes are means over the images: of the whole file, and without its header. For JPEG,
JPEG 2000, WebP and AVIF an image is a file, whose header is all but the compressed data of the
pixels; for fewer bytes than their lowest quality takes, images are also written with a half or a
quarter of the side and enlarged again. cae-jax writes a file of all images, and files of one image
are listed apart. PCA is fitted to the training images; its coefficients, divided by a step and
rounded, count as the information under their frequencies among the training images, without the
bytes of these tables. BlurHash is a text; without headers its characters count as 6.4 bits, the
information that they hold.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from PIL import Image
from scipy.interpolate import PchipInterpolator

import cae_jax
from benchmarks import placeholders
from cae_jax import atomic, data, figures, markdown
from cae_jax.cli import common
from cae_jax.data.files import from_pixels
from cae_jax.data.pixels import MODES
from cae_jax.errors import UserError
from cae_jax.evaluation import linear
from cae_jax.evaluation.quality import evaluate_images
from cae_jax.interop import cae
from cae_jax.ops import cache
from cae_jax.runs import tables
from cae_jax.training.search import search

LEARNED, ENCODER, SINGLE = "cae-jax", "cae-jax, effort 0", "cae-jax, a file each"
PCA = "PCA"
# Name of a format in Pillow and the values of its option, from small to large files.
FORMATS: dict[str, tuple[str, str, Sequence[int]]] = {
    "JPEG": ("JPEG", "quality", (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)),
    "JPEG 2000": ("JPEG2000", "quality_layers", (10, 13, 16, 18, 20, 22, 24, 26, 28, 30, 35)),
    "WebP": ("WEBP", "quality", (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)),
    "AVIF": ("AVIF", "quality", (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)),
}
SCALES = (1, 2, 4)  # by which images are written smaller
# Options with which files are small.
BEST: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "JPEG2000": {"quality_mode": "dB", "irreversible": True, "mct": 1},
    "WEBP": {"method": 6},
    "AVIF": {"speed": 0},
}
COMPONENTS = 512  # of PCA, at most; with the steps below, later ones are 0
COUNTED = 20_000  # training images to which it is fitted
# Of PCA's coefficients, white being 1.
STEPS = (4.0, 3.0, 2.0, 1.5, 1.1, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18)
SIZES = (10, 25, 30, 60, 100)  # bytes at which the curves are read
SINGLES = 100  # images that are compressed to a file each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Compares runs that compress with image formats and PCA: quality for bytes."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs on one data set, trained for different rates."""

    images: int = 10_000
    """The first of the test images."""

    validation: bool = False
    """Take the last of the training images instead, which the runs must not have seen."""

    effort: int = 2
    """Sweeps of the search for better codes."""

    other: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """Compress the images there in place of the test images."""

    qualities: tuple[int, ...] = (5,)
    """At which each run compresses, from 1 to 7."""

    json: Path | None = None
    """Write the points to this file too."""

    figure: Path | None = None
    """Draw the curves to this PNG file."""

    lines: tuple[str, ...] = ()
    """Curves to draw, by name; default: those of all images at their size."""

    where: common.Data = dataclasses.field(default_factory=common.DataFlags)


class Point(NamedTuple):
    """A size and a quality, means over the images.

    Attributes:
        method: name of the curve.
        setting: of the method.
        bytes: of an image, with the header.
        bare: of an image, without it.
        psnr, ssim: of its reconstruction; PSNR in dB.
    """

    method: str
    setting: str
    bytes: float
    bare: float
    psnr: float
    ssim: float


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        if not flags.runs:
            raise UserError("no RUNS given; give runs that were trained for a rate")
        for path in (flags.json, flags.figure):
            atomic.check_output(path)
        placeholders.blur_library()  # fails now, not after an hour, if it is missing
        cache.use_compilation_cache()
        config = cae_jax.load(flags.runs[0], backend="matmul").config
        train, images = images_of(config, flags)
        points = [*learned(flags, images), *of_pca(train, images), *of_placeholders(images)]
        for (name, (form, option, values)), scale in itertools.product(FORMATS.items(), SCALES):
            points += of_format(name, form, option, values, images, scale)
        report(points)
        common.write_json(flags.json, {"points": [point._asdict() for point in points]})
        if flags.figure:
            draw(flags.figure, points, flags.lines)


def draw(path: Path, points: Sequence[Point], names: Sequence[str]) -> None:
    """Draws the curves of these names; without any those of the same images at their size."""
    shown = [name for name in methods(points) if name != SINGLE and ", 1/" not in name]
    lines = {name: sorted((p.bare, p.psnr) for p in curve(points, name)) for name in names or shown}
    labels = {"y_label": "PSNR (dB)", "x_label": "bytes of an image, without headers"}
    figures.save_lines(path, lines, log_x=True, **labels)


def images_of(config: cae_jax.TrainConfig, flags: Flags) -> tuple[np.ndarray, np.ndarray]:
    """Training images, and those to compress, uint8 ``[N, H, W, C]``."""
    where = vars(flags.where)
    whole = dataclasses.replace(config, train_examples=None, test_examples=None)
    train = np.asarray(data.load_split(whole, "train", **where)[0])
    if flags.validation:
        seen = config.train_examples or len(train)
        return train[:seen], train[seen:][-flags.images :]
    if flags.other is not None:
        other = data.elsewhere(whole, flags.other, data_dir=flags.where.data_dir)
        return train, np.concatenate(data.load_unseen(other, **where))[: flags.images]
    return train, np.asarray(data.load_split(whole, "test", **where)[0][: flags.images])


def learned(flags: Flags, images: np.ndarray) -> Iterator[Point]:
    """The points of the runs: as compressed, with the encoder's codes, and in a file each."""
    for run, quality in itertools.product(flags.runs, flags.qualities):
        autoencoder = cae_jax.load(run, backend="matmul").of_pixels
        own, setting = tables.of_run(run, autoencoder)[quality], f"{run.name}, quality {quality}"
        for name, sweeps in ((ENCODER, 0), (LEARNED, flags.effort)):
            codes = search(
                *(autoencoder, own, images, sweeps),
                progress=lambda starts: common.progress(starts, "Searching", "batch"),
            )
            outputs = autoencoder.decode(own.step * codes.astype(np.float32))
            content = cae.compress(autoencoder, own, codes, [("images", len(images))])
            sizes = len(content), len(cae.parse(content, run).stream)
            mean = [size / len(images) for size in sizes]
            yield measured(name, setting, mean, outputs, images)
        some = [cae.compress(autoencoder, own, x[None], [("image", 0)]) for x in codes[:SINGLES]]
        sizes = [(len(each), len(cae.parse(each, run).stream)) for each in some]
        yield measured(SINGLE, setting, _means(sizes), outputs[:SINGLES], images[:SINGLES])


def of_format(
    name: str, form: str, option: str, values: Sequence[int], images: np.ndarray, scale: int = 1
) -> Iterator[Point]:
    """The points of a format of Pillow, of images that are smaller by a scale."""
    for value in common.progress(values, f"{name}, 1/{scale}", "setting"):
        options = {option: [value] if form == "JPEG2000" else value, **BEST.get(form, {})}
        if form == "AVIF" and images.shape[-1] == 1:
            options["subsampling"] = "4:0:0"
        if form == "JPEG2000":
            options["num_resolutions"] = 3 if min(images.shape[1:3]) // scale < 48 else 4
        files = [_written(image, form, options, scale) for image in images]
        outputs = np.stack([_read(file, images.shape[1:]) for file in files])
        sizes = [(len(file), BARE[form](file)) for file in files]
        method = f"{name}, 1/{scale}" if scale > 1 else name
        yield measured(method, f"{option} {value}", _means(sizes), outputs / 255, images)


def _written(image: np.ndarray, form: str, options: dict[str, Any], scale: int) -> bytes:
    picture, content = from_pixels(image), io.BytesIO()
    if scale > 1:
        size = picture.width // scale, picture.height // scale
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.save(content, form, **options)
    return content.getvalue()


def _read(file: bytes, shape: Sequence[int]) -> np.ndarray:
    """Pixels of a shape ``[H, W, C]``."""
    height, width, channels = shape
    with Image.open(io.BytesIO(file)) as read:
        picture = read.convert(MODES[channels])
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(shape)


def of_placeholders(images: np.ndarray) -> Iterator[Point]:
    """The points of BlurHash and ThumbHash, which take colors; gray images are all of one."""
    _, height, width, channels = images.shape
    if channels > 3:
        return
    colors = np.repeat(images, 3 // channels, -1)

    def shown(outputs: np.ndarray) -> np.ndarray:
        return (outputs if channels == 3 else outputs.mean(-1, keepdims=True)) / 255

    for size in placeholders.BLUR_SIZES:
        texts = placeholders.blur_hash(colors, size)
        outputs = shown(placeholders.from_blur_hash(texts, height, width))
        length, name = len(texts[0]), "{} x {} components".format(*size)
        sizes = length, length * placeholders.BLUR_BITS / 8
        yield measured("BlurHash", name, sizes, outputs, images)
    if height == width <= placeholders.THUMB_SIDE:
        hashes = placeholders.thumb_hash(colors)
        outputs = shown(placeholders.from_thumb_hash(hashes, width))
        yield measured("ThumbHash", "-", 2 * [len(hashes[0])], outputs, images)


def of_pca(train: np.ndarray, images: np.ndarray) -> Iterator[Point]:
    """The points of PCA, whose components have one step and a table of frequencies each."""
    fitted = linear.fit(train[:COUNTED], COMPONENTS)
    known, found = (
        (each.reshape(len(each), -1) / np.float32(255) - fitted.mean_V) @ fitted.basis_VxK
        for each in (train[:COUNTED], images)
    )
    for step in STEPS:
        bits = np.zeros(len(images))
        coded, new = (np.rint(each / step).astype(int) for each in (known, found))
        for a, b in zip(coded.T, new.T, strict=True):
            low, high = min(a.min(), b.min()), max(a.max(), b.max())
            counts = np.bincount(a - low, minlength=high - low + 1) + 0.01
            bits += -np.log2(counts / counts.sum())[b - low]
        outputs = np.clip(new * step @ fitted.basis_VxK.T + fitted.mean_V, 0, 1).reshape(
            images.shape
        )
        size = bits.mean() / 8
        yield measured(PCA, f"step {step:g}", (size, size), outputs.astype(np.float32), images)


def measured(
    method: str, setting: str, sizes: Sequence[float], outputs: np.ndarray, images: np.ndarray
) -> Point:
    quality = evaluate_images(np.asarray(outputs, np.float32), images)
    psnr, ssim = float(quality.psnr.mean()), float(quality.ssim.mean())
    return Point(method, setting, float(sizes[0]), float(sizes[1]), psnr, ssim)


def _means(sizes: Sequence[tuple[int, int]]) -> list[float]:
    return np.mean(sizes, axis=0).tolist()


def jpeg_data(content: bytes) -> int:
    """Bytes of the entropy-coded data of a baseline JPEG file."""
    start = content.rindex(b"\xff\xda")  # the only scan: within it 0xff is followed by 0
    return len(content) - 2 - (start + 2 + int.from_bytes(content[start + 2 : start + 4]))


def jpeg_2000_data(content: bytes) -> int:
    """Bytes of the packets of a JPEG 2000 file of one tile."""
    return len(content) - 2 - (content.index(b"\xff\x93") + 2)


def webp_data(content: bytes) -> int:
    """Bytes of the frame in a lossy WebP file without transparency, after its header."""
    start = content.index(b"VP8 ")
    return int.from_bytes(content[start + 4 : start + 8], "little") - 10


def avif_data(content: bytes) -> int:
    """Bytes of the frame in an AVIF file of one image, without the header of the sequence."""
    start = content.rindex(b"mdat") + 4
    while (kind := content[start] >> 3 & 15) != 6:  # other units: a byte, their length, content
        assert kind
        start += 2 + content[start + 1]
    return len(content) - start - 2


BARE = {"JPEG": jpeg_data, "JPEG2000": jpeg_2000_data, "WEBP": webp_data, "AVIF": avif_data}


def methods(points: Sequence[Point]) -> list[str]:
    return [*dict.fromkeys(point.method for point in points)]


def curve(points: Sequence[Point], method: str) -> list[Point]:
    """The points of a method that are better than all smaller ones, by size without header."""
    found: list[Point] = []
    for point in sorted((p for p in points if p.method == method), key=lambda p: p.bare):
        if not found or (point.psnr > found[-1].psnr and point.bare > found[-1].bare):
            found.append(point)
    return found


def at(
    points: Sequence[Point], size: float, whole: bool = False, metric: str = "psnr"
) -> float | None:
    """A metric of a curve at a size, interpolated over the logarithm; None outside the curve."""
    sizes = [point.bytes if whole else point.bare for point in points]
    if len(sizes) < 2 or not min(sizes) <= size <= max(sizes) or sorted(set(sizes)) != sizes:
        return None
    values = [getattr(point, metric) for point in points]
    return float(PchipInterpolator(np.log(sizes), values)(math.log(size)))


def bjontegaard(ours: Sequence[Point], theirs: Sequence[Point]) -> tuple[float, float] | None:
    """Mean difference of PSNR in dB, and of size in percent, where both curves are.

    Bjontegaard 2001, with monotone cubic interpolation. None where the curves do not overlap.
    """
    logs = [[math.log(p.bare) for p in each] for each in (ours, theirs)]
    psnrs = [[p.psnr for p in each] for each in (ours, theirs)]
    if min(map(len, logs)) < 2:
        return None
    gain, saved = _mean_difference(logs, psnrs), _mean_difference(psnrs, logs)
    return None if gain is None or saved is None else (gain, 100 * math.expm1(saved))


def _mean_difference(xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]]) -> float | None:
    """The mean of one curve minus another over the range that both have."""
    low, high = max(x[0] for x in xs), min(x[-1] for x in xs)
    if low >= high:
        return None
    one, other = (PchipInterpolator(x, y).integrate(low, high) for x, y in zip(xs, ys, strict=True))
    return float(one - other) / (high - low)


def report(points: Sequence[Point]) -> None:
    """Prints the points, the curves at some sizes, and the differences from the runs."""
    rows = [
        [p.method, p.setting, f"{p.bytes:.1f}", f"{p.bare:.1f}", f"{p.psnr:.2f}", f"{p.ssim:.4f}"]
        for p in points
    ]
    print(markdown.table(["method", "setting", "bytes", "without header", "PSNR", "SSIM"], rows))

    def shown(found: Sequence[Point], size: float) -> str:
        psnr, ssim = (at(found, size, metric=metric) for metric in ("psnr", "ssim"))
        return "-" if psnr is None else f"{psnr:.2f} / {ssim:.3f}"

    rows = []
    for name in methods(points):
        found = curve(points, name)
        both = bjontegaard(curve(points, LEARNED), found)
        rows.append(
            [
                name,
                *(shown(found, size) for size in SIZES),
                *(("-", "-") if both is None else (f"{both[0]:+.2f}", f"{both[1]:+.0f} %")),
            ]
        )
    header = ["without headers", *(f"PSNR / SSIM at {size} bytes" for size in SIZES)]
    print()
    print(markdown.table([*header, "cae-jax is better by dB", "and its size differs by"], rows))


if __name__ == "__main__":
    main()
