"""Measures what it costs to decode images in each epoch, with `decode="each-epoch"`.

    python -m benchmarks.decoding

Writes photographs as JPEG files of quality 90: crops of 256 x 256 pixels, and 12 megapixels. Prints
a row for each kind and `image_size`: the kilobytes of a file and of the decoded image; the CPU time
of decoding and of training an image, with the native backend and the features of that size; and the
share of decoding. Then the time of decoding the crops in a random order: in one process, by the
processes of this package, and by those of Grain, if it is installed.
"""

import dataclasses
import importlib.util
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.samples import PHOTOGRAPHS, crops, read_sample
from cae_jax import data
from cae_jax.cli import common
from cae_jax.config import TrainConfig

QUALITY, SIDE, LARGE = 90, 256, (4000, 3000)
BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Measures what it costs to decode images in each epoch."""

    crops: int = 320
    """JPEG files of 256 x 256 pixels."""

    photographs: int = 40
    """JPEG files of 12 megapixels; 0 skips them."""

    image_sizes: tuple[int, ...] = (64, 256)
    """Sizes that they are converted to."""

    trained: int = 2
    """Epochs that are trained, of which the first does not count."""

    grain_workers: int = 2
    """Processes of the last comparison."""


def main() -> None:
    with common.user_errors(flags=Flags), tempfile.TemporaryDirectory() as temporary:
        flags, folder = common.parse(Flags), Path(temporary)
        write(folder, flags)
        print("files | image size | file, kB | decoded, kB | decode, ms | train, ms | share")
        for name in ("crops", "photographs") if flags.photographs else ("crops",):
            for size in flags.image_sizes:
                print(row(folder / name, size, flags), flush=True)
        compare(folder, flags)


def write(folder: Path, flags: Flags) -> None:
    """Writes the two kinds of files."""
    sources = [(package, name) for package, names in PHOTOGRAPHS.items() for name in names]
    random = np.random.default_rng(0)

    def photographs() -> Iterator[Image.Image]:
        for i in range(flags.photographs):
            image = Image.fromarray(read_sample(*sources[i % len(sources)], "RGB")).resize(LARGE)
            # Enlarged pixels have no noise, of which most of the bytes of a photograph are.
            noisy = np.asarray(image) + random.normal(0, 3, (*LARGE[::-1], 1))
            yield Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))

    patches = map(Image.fromarray, crops(flags.crops, SIDE))
    for name, images in (("crops", patches), ("photographs", photographs())):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            image.save(folder / name / f"{i:05}.jpg", quality=QUALITY)


def load(folder: Path, size: int, workers: int = 1) -> tuple[TrainConfig, data.Dataset]:
    """The images of a folder, of which those for training stay in their files."""
    config = TrainConfig(
        data=str(folder), image_size=(size, size), batch_size=BATCH, decode="each-epoch"
    )
    dataset = data.load(config, data_dir=folder.parent / "prepared", workers=workers)
    return dataset.resolve(config), dataset


def row(folder: Path, size: int, flags: Flags) -> str:
    """Measures files at an image size; returns the row."""
    config, dataset = load(folder, size)
    count = len(dataset.train)
    decoding = used(lambda: np.asarray(dataset.train))[1] / count
    training = train(dataclasses.replace(config, epochs=flags.trained), dataset) / count
    files = [path.stat().st_size for path in folder.iterdir()]
    return (
        f"{folder.name} | {size} | {sum(files) / len(files) / 1e3:,.0f} | {size * size * 3e-3:,.0f}"
        f" | {decoding * 1e3:.2f} | {training * 1e3:.2f} | {decoding / training:.1%}"
    )


def train(config: TrainConfig, dataset: data.Dataset) -> float:
    """The CPU time of an epoch on images that are decoded before."""
    from cae_jax.models.topology import from_config
    from cae_jax.ops.backend import choose
    from cae_jax.runs.job import Job

    job = Job(config, choose(from_config(config), "native"), dataset)
    trainer, state = job.trainer([config]), job.initial_state([config])
    state = trainer.run(state, 1, 0, trainer.steps).state
    before = time.process_time()
    for epoch in range(2, config.epochs + 1):
        state = trainer.run(state, epoch, 0, trainer.steps).state
    return (time.process_time() - before) / (config.epochs - 1)


def used(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of a function, with that of processes which have ended."""

    def cpu() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    started, before = time.perf_counter(), cpu()
    function()
    return time.perf_counter() - started, cpu() - before


class Indexed:
    """Images by their index, as Grain takes them."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._images.read(np.array([i]), np.array([0]), 1)[0]


def compare(folder: Path, flags: Flags) -> None:
    """Prints the times of decoding the crops in a random order, with the start of processes."""
    order = np.random.default_rng(1).permutation(len(load(folder / "crops", SIDE)[1].train))
    places = np.arange(len(order))

    def ours(workers: int) -> None:
        images: Any = load(folder / "crops", SIDE, workers)[1].train
        images.read(order, places, len(order))
        del images  # whose processes end

    def grains() -> None:
        grain: Any = importlib.import_module("grain")
        options = grain.MultiprocessingOptions(num_workers=flags.grain_workers)
        images = load(folder / "crops", SIDE)[1].train
        indices = grain.MapDataset.source(order.tolist())
        for _ in indices.map(Indexed(images)).batch(BATCH).to_iter_dataset().mp_prefetch(options):
            pass

    workers = flags.grain_workers
    kinds: dict[str, Callable[[], None]] = {
        "one process": lambda: ours(1),
        f"{workers} workers": lambda: ours(workers),
    }
    if importlib.util.find_spec("grain"):
        kinds[f"{workers} of Grain"] = grains
    for name, function in kinds.items():
        seconds, cpu = used(function)
        print(f"{name}: {seconds:.2f} s, {cpu / len(order) * 1e3:.2f} ms of CPU time an image")


if __name__ == "__main__":
    main()
