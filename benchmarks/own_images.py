"""Measures what user images cost: time of preparing, disk and memory.

    python -m benchmarks.own_images

Prepares 2,000 PNG files of 64 x 64 x 3 random crops, and 100 JPEG files of 12 megapixels as 64 x 64
x 3, each by one process and by several; and trains on 100 and on 20,000 crops in one .npy file.
Prints a row for each, of a new process: its time; the CPU time of user and system, with those that
it has started; and the memory of the largest of them. Crops come from the photographs of
scikit-image and scikit-learn.
"""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.samples import crops
from cae_jax.cli import common
from cae_jax.errors import UserError

SIZE = 64  # pixels of a side
PREPARE = """
import sys, cae_jax.data
config = cae_jax.TrainConfig(data=sys.argv[1], batch_size=4, image_size=64)
cae_jax.data.load(config, data_dir=sys.argv[2], workers=int(sys.argv[4]))
"""
TRAIN = """
import sys, cae_jax
config = cae_jax.TrainConfig(
    data=sys.argv[1], epochs=1, features=(2, 2), optimizer="adam", batch_size=32
)
cae_jax.fit(config, sys.argv[3], data_dir=sys.argv[2], backend="xla")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measures the time of preparing, disk and memory of user images."""

    files: int = 2_000
    """PNG files that are prepared; 0 skips them."""

    photographs: int = 100
    """JPEG files of 12 megapixels that are prepared; 0 skips them."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes that decode them."""

    rounds: int = 1
    """How often each is measured, in turn."""

    images: int = 20_000
    """Images in one .npy file that a run is trained on; 0 skips them."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        print("what                    | workers | s      | CPU, s | peak, MB | on disk, MB")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            # By another process: the peak of those that this one starts is at least its own.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as maker:
                maker.submit(make, path, flags).result()
            for name, count in (("png", flags.files), ("jpg", flags.photographs)):
                for workers in flags.workers * flags.rounds if count else ():
                    measure(f"prepare {count:,} {name}", PREPARE, path / name, workers)
            for count in (100, flags.images) if flags.images else ():
                measure(f"train on {count:,}", TRAIN, path / f"{count}.npy", 1)


def make(folder: Path, flags: Flags) -> None:
    """Writes crops as PNG, enlarged to 12 megapixels as JPEG, and in .npy files."""
    for name, count in (("png", flags.files), ("jpg", flags.photographs)):
        (folder / name).mkdir()
        for i, crop in enumerate(crops(count, SIZE) if count else ()):
            image = Image.fromarray(crop)
            image = image if name == "png" else image.resize((4000, 3000))
            image.save(folder / name / f"{i}.{name}")
    for count in (100, flags.images) if flags.images else ():
        np.save(folder / f"{count}.npy", crops(count, SIZE))


def measure(what: str, code: str, images: Path, workers: int) -> None:
    """Runs a program on images in a new process, with empty folders; prints a row."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        command = [sys.executable, "-c", code, str(images), str(data), str(run), str(workers)]
        started = time.perf_counter()
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            log.seek(0)
            if status:
                raise UserError(f"{what} failed: {log.readlines()[-1].strip()}; give more images")
        on_disk = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
        print(
            f"{what:23} | {workers:7} | {seconds:6.2f} | {cpu:6.2f} | {peak:8.0f} | "
            f"{on_disk / 1e6:11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
