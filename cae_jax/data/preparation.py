"""Converts the images of a source and writes them as .npy files, in one pass.

Images are decoded in several processes and written in their order, so that memory does not depend
on their number. How far it came is kept in a file, by which the same preparation continues.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig
from cae_jax.data.decoding import ColorError, Converter, extremes_of
from cae_jax.data.files import UnreadableError
from cae_jax.data.growing import Checks, Growing, hash_elements
from cae_jax.data.pixels import WHITE, RangeError, Statistics, joined
from cae_jax.data.sources import ALL, SPLITS, Item, Source, items_of
from cae_jax.data.workers import Outcome, ShortageError, Workers
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAMES = 1000  # of files left out, which are recorded
PROGRESS = "progress.json"  # beside the arrays, while they are written
_LEVELS = "levels"  # the pass that finds black and white, before those over the splits
_SMALL = 10**6  # bytes of disk that are not worth a line
_SECONDS = 5  # of work that a kill may lose


def write(
    folder: Path, source: Source, config: TrainConfig, title: str, workers: int
) -> dict[str, Any]:
    """Writes the images and labels of a source; logs what disk they take, and a summary.

    Args:
        folder: for ``SPLIT_images.npy`` and ``SPLIT_labels.npy``; what an earlier process has
            written there of the same images is continued.
        source, title: of the images, and how messages name them.
        config: what they are converted to.
        workers: number of processes that decode images.

    Returns:
        the record of the arrays, see `cae_jax.data.prepared`.

    Raises:
        UserError: an unreadable image, unless the config skips them; images of several sizes; a
            split without images; images that are black because their white is 1; or a disk that is
            too small.
    """
    if config.decode != "once" and not source.files:
        raise UserError(
            f"`decode` is {config.decode}, and {title} is not a folder of image files, which alone "
            "are read in any order; write its images to files, or leave `decode` out"
        )
    with Workers(workers if source.encoded else 1) as pool:
        preparation = _Preparation(folder, source, config, title, pool)
        preparation.resume()
        try:
            record = preparation.write()
        except ColorError:  # rare: gray images come first, and all of them become RGB
            (folder / PROGRESS).unlink(missing_ok=True)
            levels, config = preparation.progress.levels, dataclasses.replace(config, channels=3)
            preparation = _Preparation(folder, source, config, title, pool)
            preparation.progress = _Progress(split="train", levels=levels)
            record = preparation.write()
    _report(record, source, config, preparation.statistics)
    return record


def _report(
    record: dict[str, Any], source: Source, config: TrainConfig, statistics: list[Statistics]
) -> None:
    """Logs a summary of the images, and doubts."""
    skipped, ignored = record["skipped"], source.notes.get("ignored", {})
    left_out = [f"{skipped} unreadable"] if skipped else []
    left_out += [f"{count} {name}" for name, count in ignored.items()]
    left_out += [f"{record['frames']} further frames"] if record["frames"] else []
    arrays = record["arrays"].items()
    counts = {name.partition("_")[0]: shape[0] for name, (_, shape) in arrays}
    *size, channels = record["image_shape"]
    logger.warning(
        "Prepared %d training%s and %d test %s of %d x %d x %d, %s%s",
        counts["train"],
        f", {counts['validation']} validation" if "validation" in counts else "",
        counts["test"],
        *("pairs" if config.pairs else "images", *size),
        channels // 2 if config.pairs else channels,
        " and ".join(map(str, statistics)),
        f"; left out: {', '.join(left_out)}" if left_out else "",
    )
    for doubt in filter(None, (each.doubt for each in statistics)):
        logger.warning(doubt)


@dataclasses.dataclass
class _Progress:
    """How far a preparation has come, as in the file `PROGRESS`.

    Attributes:
        split: the one that is read, or `_LEVELS`.
        items: number of its images that are read.
        counts: elements of each array that are written.
        sha256: of the images and labels that are written.
        size, channels, first: of the images, see `Converter`.
        levels: black and white where `white` is ``"auto"``.
        statistics: of the images, see `Statistics`.
        skipped, skipped_files: number of unreadable images, and the first names.
        frames: number of further frames.
    """

    split: str = ""
    items: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    size: tuple[int, ...] | None = None
    channels: int = 0
    first: str = ""
    levels: tuple[float, float] | None = None
    statistics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: int = 0
    skipped_files: list[str] = dataclasses.field(default_factory=list)
    frames: int = 0


class _Preparation:
    """One pass over the images of a source; arguments as of `write`."""

    def __init__(
        self, folder: Path, source: Source, config: TrainConfig, title: str, workers: Workers
    ) -> None:
        self._folder, self._source, self._config = folder, source, config
        self._title, self._workers = title, workers
        sides = ("targets", "inputs") if config.pairs else ("",)
        self.statistics = [Statistics(side) for side in sides]
        self._digests = {"images": hashlib.sha256(), "labels": hashlib.sha256()}
        self._converter = Converter(config, title)
        self.progress = _Progress()
        self._saved, self._announced = time.monotonic(), False

    def resume(self) -> None:
        """Takes over the arrays of an earlier process, if they are whole."""
        digests = {kind: hashlib.sha256() for kind in self._digests}
        try:
            progress = _Progress(**json.loads((self._folder / PROGRESS).read_text("utf-8")))
            progress.size = progress.size and tuple(progress.size)
            statistics = [Statistics(**each) for each in progress.statistics]
            for name, count in progress.counts.items():
                path = self._folder / f"{name}.npy"
                hash_elements(path, count, digests[name.rpartition("_")[2]])
            if {kind: each.hexdigest() for kind, each in digests.items()} != progress.sha256:
                raise ValueError("other bytes")
        except (OSError, ValueError, TypeError, KeyError):
            for path in self._folder.iterdir():
                path.unlink()
        else:
            self.progress, self.statistics, self._digests = progress, statistics, digests
            total = self._source.total
            logger.warning("Continuing after %d of %d images", self._written, total)

    @property
    def _written(self) -> int:
        """Number of images that are written."""
        counts = self.progress.counts.items()
        return sum(count for name, count in counts if not name.endswith("_labels"))

    def write(self) -> dict[str, Any]:
        """Writes the arrays of all splits; returns their record."""
        if self._config.white == "auto":
            self._find_levels()
        progress, whole = self.progress, ALL in self._source.items
        self._converter = Converter(self._config, self._title)
        self._converter.decide(progress.size, progress.channels, progress.first)
        splits = SPLITS[:2] if whole else [s for s in SPLITS if s in self._source.items]
        done = splits[: splits.index(progress.split)] if progress.split in splits else ()
        arrays: dict[str, Any] = {}
        with image_bar("Preparing", self._written + progress.skipped, self._source.total) as bar:
            for split in splits:
                arrays |= self._write_split(split, None if split in done else bar)
        if not any(shape[0] for _, shape in arrays.values()):
            left_out = f", {progress.skipped} unreadable ones left out" if progress.skipped else ""
            raise UserError(f"{self._title} gives no training images{left_out}", "give more images")
        *size, channels = self._converter.convert.shape
        return {
            "data": self._title,
            "arrays": arrays,
            "image_shape": [*size, channels * len(self.statistics)],
            "sha256": {kind: digest.hexdigest() for kind, digest in self._digests.items()},
            "classes": self._source.classes,
            "divided": whole,
            "skipped": progress.skipped,
            "skipped_files": progress.skipped_files,
            "frames": progress.frames,
            "levels": self._config.levels,
            **self._source.notes,
        }

    def _find_levels(self) -> None:
        """Finds the smallest and the largest value of the training images, by one more pass."""
        progress, config = self.progress, self._config
        if progress.split in ("", _LEVELS):
            function = partial(extremes_of, which=config.frames, max_pixels=config.max_pixels)
            with image_bar("Finding black and white", progress.items) as bar:
                for _, outcome in self._read(_LEVELS, "train", function, {}, bar):
                    progress.levels = joined(progress.levels, outcome.result())
        if progress.levels and not progress.levels[0] < progress.levels[1]:
            low, high = progress.levels
            raise UserError(
                f"{self._title} has training images of values {low:g} to {high:g}; give others"
            )
        self._config = dataclasses.replace(config, levels=progress.levels)

    def _write_split(self, split: str, bar: Any) -> dict[str, Any]:
        """Writes the arrays of a split, unless `bar` is None; returns their types and shapes."""
        counts, arrays = self.progress.counts, {}
        stored = self._config.decode == "once" or split != "train"
        kinds = {"images" if stored else "checks": np.uint8}
        kinds |= {"labels": np.int32} if self._source.classes else {}
        with contextlib.ExitStack() as stack:
            for kind, dtype in kinds.items():
                name = f"{split}_{kind}"
                path, count = self._folder / f"{name}.npy", counts.get(name, 0)
                if kind == "checks":
                    file = Checks(path, self._digests["images"], lambda: self.progress.items)
                else:
                    file = Growing(path, dtype, self._digests[kind], count)
                arrays[name] = stack.enter_context(file)
            if bar is not None:
                self._fill(split, arrays, bar)
        counts.update({name: array.shape[0] for name, array in arrays.items()})
        return {name: (array.dtype.name, array.shape) for name, array in arrays.items()}

    def _fill(self, split: str, arrays: dict[str, Any], bar: Any) -> None:
        """Appends what is missing of a split to its arrays."""
        progress = self.progress
        for item, outcome in self._read(split, split, self._converter, arrays, bar):
            self._check_label(item)
            try:
                images, left_out = outcome.result()
            except UnreadableError as error:
                if not self._config.skip_unreadable:
                    advice = f"{error.advice}, remove it, or pass `skip_unreadable=True`"
                    raise UnreadableError(error.problem, advice) from error
                progress.skipped += 1
                progress.skipped_files = [*progress.skipped_files, item.name][:MAX_NAMES]
                continue
            except RangeError as error:
                raise RangeError(error.problem, WHITE) from error
            progress.frames += left_out
            for image in images:
                if f"{split}_images" in arrays:
                    self._check_disk(image)
                for array, element in zip(arrays.values(), (image, item.label), strict=False):
                    array.append(element)
                sides = np.split(image, len(self.statistics), axis=-1)
                for statistics, side in zip(self.statistics, sides, strict=True):
                    statistics.add(side)
        for statistics in self.statistics:
            statistics.check(self._title)

    def _read(
        self, stage: str, split: str, function: Any, arrays: dict[str, Growing], bar: Any
    ) -> Iterator[tuple[Item, Outcome]]:
        """Applies a function to the images of a split that are not read in this stage.

        Yields each with what the function returns. Saves now and then how far it came.
        """
        progress = self.progress
        if progress.split != stage:
            progress.split, progress.items = stage, 0
        items = items_of(self._source, split, self._config.split)
        left = itertools.islice(items, progress.items, None)
        for item, outcome in self._workers.map(function, left):
            yield item, outcome
            progress.items += 1
            bar.update()
            # The SHA-256 of images continues from their bytes, which are not there otherwise.
            if self._config.decode == "once" and time.monotonic() > self._saved + _SECONDS:
                self._save(arrays)

    def _save(self, arrays: dict[str, Growing]) -> None:
        """Keeps on the disk how far the arrays came."""
        for name, array in arrays.items():
            array.sync()
            self.progress.counts[name] = array.shape[0]
        convert, digests = self._converter.convert, self._digests.items()
        now = dataclasses.replace(
            self.progress,
            sha256={kind: digest.hexdigest() for kind, digest in digests},
            statistics=[vars(each) for each in self.statistics],
            size=convert.size,
            channels=convert.channels,
            first=self._converter.first,
        )
        atomic.write_json(self._folder / PROGRESS, vars(now))
        self._saved = time.monotonic()

    def _check_label(self, item: Item) -> None:
        classes = len(self._source.classes)
        if item.label is not None and classes and not -1 <= item.label < classes:
            raise UserError(
                f"{item.name} has the label {item.label}, and there are {classes} classes; "
                "correct the source"
            )

    def _check_disk(self, image: np.ndarray) -> None:
        """Says how much disk all images take that are like the first one; refuses if it is more."""
        if self._announced:
            return
        self._announced, config = True, self._config
        left = max(1, self._source.total - self._written)
        needed, free = left * image.nbytes, shutil.disk_usage(self._folder).free
        sizes = f"{needed / 1e6:,.1f} MB of disk", f"{free / 1e6:,.1f} MB are free"
        least = "at least " if config.frames == "all" else ""
        if needed > free:
            more = self._source.files and config.decode == "once" and config.frames == "first"
            raise ShortageError(
                f"{self._title} takes {least}{sizes[0]} in {self._folder.parent}, where {sizes[1]}",
                "free space, or pass another `data_dir` or a smaller `image_size`"
                + ", or `decode='each-epoch'`" * more,
            )
        if needed > _SMALL:
            logger.warning("The images take %s%s, of which %s", least, *sizes)


def image_bar(what: str, done: int, total: int | None = None) -> Any:
    """A bar over images, after a second."""
    from tqdm import tqdm  # which worker processes do not need

    bar: Any = tqdm
    return bar(
        desc=what,
        initial=done,
        total=total,
        unit="image",
        delay=1,
        leave=False,
        disable=None,
    )
