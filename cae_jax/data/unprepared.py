"""Streams the images of a source in its order, converted in memory: nothing is prepared on disk."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from cae_jax.config import NAMED, TrainConfig
from cae_jax.data import path
from cae_jax.data.decoding import Converter
from cae_jax.data.files import UnreadableError
from cae_jax.data.pixels import Statistics
from cae_jax.data.preparation import image_bar
from cae_jax.data.sources import ALL, SPLITS, Item, Source
from cae_jax.data.workers import Workers, cores
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

Named = tuple[str, np.ndarray]  # an image with its name


def stream(
    config: TrainConfig,
    length: int,
    *,
    skip_unreadable: bool = False,
    data_dir: str | Path | None = None,
    workers: int | None = None,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Reads the images of all splits, a block at a time.

    Args:
        config: of a training, with the path of these images, see `cae_jax.data.elsewhere`. Its
            `pairs` are ignored: the images are inputs.
        length: number of images in a block.
        skip_unreadable: leave out damaged images, also where the config does not.
        data_dir: where named data sets are downloaded, see `cae_jax.data.load_split`; not used for
            those that ship with the package.
        workers: number of processes that decode images. Default: the number of CPUs.

    Yields:
        the names, the path of a file below its folder or ``name[i]`` in an array, and the images,
        uint8 ``[n, height, width, channels]``, in the order of the source.

    Raises:
        UserError: no images, an unreadable one, unless the config skips them, or images that are
            black because their white is 1.
    """
    if skip_unreadable:
        config = dataclasses.replace(config, skip_unreadable=True)
    names: list[str] = []
    images: list[np.ndarray] = []
    for name, image in _converted(config, data_dir, cores() if workers is None else workers):
        names.append(name)
        images.append(image)
        if len(names) == length:
            yield names, np.stack(images)
            names, images = [], []
    if names:
        yield names, np.stack(images)


def _converted(config: TrainConfig, data_dir: str | Path | None, workers: int) -> Iterator[Named]:
    """The images of all splits, one by one."""
    if workers < 1:
        raise UserError(f"`workers` is {workers}; it takes a whole number of at least 1")
    if config.pairs:
        config = dataclasses.replace(config, pairs=(), noise="none")
    convert, statistics, left_out = Converter(config, config.data), Statistics(), [0, 0]
    with contextlib.ExitStack() as stack:
        source = _opened(config, data_dir, stack)
        pool = stack.enter_context(Workers(workers if source.encoded else 1))
        progress = stack.enter_context(image_bar("Reading", 0, source.total))
        for split in (ALL, *SPLITS):
            items = source.items[split]() if split in source.items else iter(())
            for item, outcome in pool.map(convert, items):
                progress.update()
                try:
                    found, further = outcome.result()
                except UnreadableError as error:
                    if not config.skip_unreadable:
                        advice = f"{error.advice}, remove it, or pass `skip_unreadable=True`"
                        raise UnreadableError(error.problem, advice) from error
                    left_out[0] += 1
                    continue
                left_out[1] += further
                for i, image in enumerate(found):
                    statistics.add(image)
                    frame = f"[{i}]" if len(found) > 1 else ""
                    yield _name(config, split, item) + frame, image
    _check(config.data, statistics, *left_out)


def _opened(
    config: TrainConfig, data_dir: str | Path | None, stack: contextlib.ExitStack
) -> Source:
    """The source at the path of a config; of a shipped data set its IDX files."""
    location, root = path.locate(config.data), path.data_root(data_dir)
    if config.data in NAMED:
        from cae_jax.data.sources.named import SHIPPED  # imports TFDS

        if config.data in SHIPPED:  # without TFDS's records, which would be written first
            folder = stack.enter_context(resources.as_file(SHIPPED[config.data]))
            location = path.Location(folder)
    found = path.find(config, location, root)
    if found is None:
        raise location.missing or FileNotFoundError(config.data)
    return found.open()


def _name(config: TrainConfig, split: str, item: Item) -> str:
    """The name of an image, unique in its source."""
    if item.key.isdecimal():  # in the IDX file of a split
        return f"{split}[{item.key}]"
    # The only array of a .npy file has no name.
    return f"{Path(config.data).stem}{item.key}" if item.key.startswith("[") else item.key


def _check(data: str, statistics: Statistics, unreadable: int, frames: int) -> None:
    """Logs the images left out; refuses nothing, or masks, whose codes would be those of black."""
    if unreadable or frames:
        counts = {"unreadable": unreadable, "further frames": frames}
        texts = (f"{count} {what}" for what, count in counts.items() if count)
        logger.warning("%s: left out: %s", data, ", ".join(texts))
    if not statistics.count:
        raise UserError(f"{data} gives no images", "give more images")
    try:
        statistics.check(data)
    except UserError as error:
        raise UserError(error.problem, "save it with a white of 255") from error
