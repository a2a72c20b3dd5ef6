"""Measures what user images cost: CPU time of preparing, disk and memory.

    python -m benchmarks.own_images

Prepares 2,000 PNG files of 64 x 64 x 3 random crops, and trains on 100 and on 20,000 crops in one
.npy file, each in a new process. Prints a row for each; CPU time counts user and system time of the
process with its imports. Crops come from the photographs of scikit-image and scikit-learn.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.samples import crops
from cae_jax.cli import common
from cae_jax.errors import UserError

SIZE = 64  # pixels of a side
PREPARE = """
import sys, cae_jax.data
config = cae_jax.TrainConfig(data=sys.argv[1], batch_size=4)
cae_jax.data.load(config, data_dir=sys.argv[2])
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
    """Measures CPU time of preparing, disk and memory of user images."""

    files: int = 2_000
    """PNG files that are prepared; 0 skips them."""

    images: int = 20_000
    """Images in one .npy file that a run is trained on; 0 skips them."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        print("what                    | CPU, s | peak, MB | on disk, MB | decoded, MB")
        with tempfile.TemporaryDirectory() as folder:
            if flags.files:
                photographs = Path(folder) / "photographs"
                photographs.mkdir()
                for i, image in enumerate(crops(flags.files, SIZE)):
                    Image.fromarray(image).save(photographs / f"{i}.png")
                measure(f"prepare {flags.files:,} PNG", PREPARE, photographs, flags.files)
            for count in (100, flags.images) if flags.images else ():
                np.save(Path(folder) / f"{count}.npy", crops(count, SIZE))
                measure(f"train on {count:,}", TRAIN, Path(folder) / f"{count}.npy", count)


def measure(what: str, code: str, images: Path, count: int) -> None:
    """Runs a program on images in a new process, with empty folders; prints a row."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        command = [sys.executable, "-c", code, str(images), str(data), str(run)]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            log.seek(0)
            if status:
                raise UserError(f"{what} failed: {log.readlines()[-1].strip()}; give more images")
        on_disk = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
        decoded = count * SIZE * SIZE * 3 / 1e6
        print(
            f"{what:23} | {cpu:6.2f} | {peak:8.0f} | {on_disk / 1e6:11.1f} | {decoded:11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
