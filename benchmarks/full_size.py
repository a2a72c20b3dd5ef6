"""Denoises a photograph at its full size, and measures what 12 megapixels take.

    python -m benchmarks.samples samples
    cae-jax train --data samples/photographs --exclude "coffee/*" --noise gaussian \
        --noise-level 0.2 --batch-size 32 --epochs 60 --workdir runs/denoise_photographs
    python -m benchmarks.full_size runs/denoise_photographs full_size.png --bm3d

The photograph is scikit-image's `coffee` of 600 x 400 pixels, without which the run was trained.
The large one is a JPEG of 4000 x 3000 pixels.
"""

import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageFilter

import cae_jax
from benchmarks.samples import read_sample
from cae_jax.cli import common, reconstruct
from cae_jax.data.images import write_png
from cae_jax.evaluation import baselines, comparison
from cae_jax.runs.folder import read_config

NOISE = 0.2  # standard deviation, white being 1
PART = np.s_[80:320, 160:420]  # rows and columns that are shown
LARGE = (4000, 3000)  # width and height


@dataclasses.dataclass(frozen=True)
class Flags:
    """Denoises a photograph at its full size, and measures what 12 megapixels take."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run with gaussian noise of 0.2 on color photographs."""

    out: Annotated[Path, tyro.conf.Positional]
    """PNG file of a part of the photograph: noisy, denoised and clean."""

    bm3d: bool = False
    """Print what BM3D reaches as well, tuned on patches of the run's training."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        write_png(flags.out, denoised(flags.run, flags.bm3d))
        with tempfile.TemporaryDirectory() as folder:
            time_large(flags.run, Path(folder))


def denoised(run: Path, with_bm3d: bool = False) -> np.ndarray:
    """A part of the photograph, noisy, denoised and clean, in [0, 1]; prints their PSNR."""
    clean = read_sample("skimage.data", "coffee.png", "RGB") / 255
    noise = np.random.default_rng(0).normal(0, NOISE, clean.shape)
    noisy = np.clip(clean + noise, 0, 1).astype(np.float32)
    [output] = cae_jax.load(run, backend="matmul").reconstruct(noisy, full_size=True)
    images = {"noisy": noisy, "denoised": output}
    if with_bm3d:
        images["BM3D"] = by_bm3d(run, noisy)
    for name, image in images.items():
        print(f"{name}: {-10 * np.log10(np.mean((image - clean) ** 2)):.2f} dB")
    return np.concatenate([image[PART] for image in (noisy, output, clean)], axis=1)


def by_bm3d(run: Path, noisy: np.ndarray) -> np.ndarray:
    """The photograph denoised by BM3D, tuned as by ``cae-jax evaluate --baselines``."""
    config = read_config(run)
    train = cae_jax.data.load(config).train
    clean = train[: baselines.tuning_images(train.shape[1:])]
    inputs = np.asarray(comparison.noisy_images(clean, "gaussian", NOISE, seed=1))
    with baselines.workers() as executor:
        tuned = baselines.tune("BM3D", inputs, clean / 255, executor)
        return baselines.denoise(tuned, noisy[None], executor)[0]


def time_large(run: Path, folder: Path) -> None:
    """Prints the time and the memory of the command for a large photograph."""
    photograph = Image.fromarray(read_sample("skimage.data", "coffee.png", "RGB"))
    large = np.asarray(photograph.resize(LARGE).filter(ImageFilter.SHARPEN), np.float32)
    large += np.random.default_rng(0).normal(0, 255 * NOISE, large.shape).astype(np.float32)
    path = folder / "large.jpg"
    Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(path, quality=92)
    started, cpu = time.perf_counter(), time.process_time()
    reconstruct.run(reconstruct.Flags(run=run, files=(path,), out=folder / "out", full_size=True))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"12 megapixels: {seconds:.1f} s, {cpu:.1f} s of CPU time, {memory:.0f} MB at most")


if __name__ == "__main__":
    main()
