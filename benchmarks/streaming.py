"""Measures what streaming costs: images that exceed the budget of the device, and the same in it.

    python -m benchmarks.streaming --megabytes 400 --budget 64MB

Trains on random images of two shapes, in alternating new processes, and prints a row for each
shape: images per second of both, their ratio, the ratio of CPU times, which other processes disturb
less, and the peak of the process's resident memory, which without streaming has the pages of the
file that are mapped to it.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cae_jax import data
from cae_jax.cli import common
from cae_jax.config import TrainConfig

SHAPES = ((28, 28, 1), (64, 64, 3))
VALIDATION = 1000
_CHILD = "import sys; from benchmarks.streaming import train; train(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measures training on images that exceed the budget of the device."""

    megabytes: int = 400
    """Size of the training images."""

    budget: str = "64MB"
    """Budget of the device when they are streamed."""

    pairs: int = 3
    """Pairs of runs, resident and streamed."""

    backend: common.Backend = "native"
    """Computes the network."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        print("image | images | resident, images/s | streamed | ratio | CPU time | peaks, MB")
        for shape in SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                print(row(flags, Path(folder) / "images.npy", shape), flush=True)


def row(flags: Flags, file: Path, shape: tuple[int, int, int]) -> str:
    """Measures images of a shape; returns the row."""
    count = flags.megabytes * 1_000_000 // int(np.prod(shape)) + VALIDATION
    write(file, (count, *shape))
    pairs = [
        [run(file, budget, flags.backend) for budget in ("", flags.budget)]
        for _ in range(flags.pairs)
    ]
    rates, cpu, peaks = (
        [[pair[k][name] for pair in pairs] for k in (0, 1)] for name in ("rate", "cpu", "peak")
    )
    before, after = (f"{statistics.median(each):,.0f}" for each in rates)
    memory = ", ".join(f"{max(each) / 1e6:,.0f}" for each in peaks)
    size = " x ".join(map(str, shape))
    shown = (size, f"{count - VALIDATION:,}", before, after, spread(*rates), spread(*cpu), memory)
    return " | ".join(shown)


def write(file: Path, shape: tuple[int, ...]) -> None:
    """Writes random images, in parts: the peak of a new process begins with that of its parent."""
    random, header = np.random.default_rng(0), {"descr": "|u1", "fortran_order": False}
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {**header, "shape": shape})
        for start in range(0, shape[0], 10_000):
            some = min(10_000, shape[0] - start), *shape[1:]
            out.write(random.integers(0, 256, some, np.uint8).tobytes())


def spread(resident: list[float], streamed: list[float]) -> str:
    """The ratios of pairs, streamed by resident: median, least and most."""
    ratios = [after / before for before, after in zip(resident, streamed, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def run(file: Path, budget: str, backend: str) -> dict[str, float]:
    """Trains in a new process."""
    command = [sys.executable, "-c", _CHILD, str(file), budget, backend]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def train(file: str, budget: str, backend: str) -> None:
    """Trains an epoch; prints speed and CPU time after its first tenth, and the peak of memory."""
    from cae_jax.cli.benchmark import peak_memory
    from cae_jax.models.topology import from_config
    from cae_jax.ops.backend import choose
    from cae_jax.runs.job import Job
    from cae_jax.training.feed import bytes_of

    images = np.asarray(np.load(file, mmap_mode="r"))
    dataset = data.Dataset(images[VALIDATION:], images[:VALIDATION])
    config = dataset.resolve(TrainConfig(data="arrays", image_shape=None, epochs=1))
    chosen = choose(from_config(config), backend)
    job = Job(config, chosen, dataset, budget=bytes_of(budget or None))
    trainer, state = job.trainer([config]), job.initial_state([config])
    first = trainer.steps // 10
    state = trainer.run(state, 1, 0, first).state
    began, used = time.perf_counter(), time.process_time()
    trainer.run(state, 1, first, trainer.steps)
    seconds = time.perf_counter() - began
    rate = (trainer.examples - first * config.batch_size) / seconds
    cpu = time.process_time() - used
    print(json.dumps({"rate": rate, "cpu": cpu, "peak": peak_memory()["host"]}))


if __name__ == "__main__":
    main()
