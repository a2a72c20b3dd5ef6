"""Prepares images that have no name: finds their shape, converts and writes them."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cae_jax.config import NAMED, Shape, TrainConfig
from cae_jax.data import (
    arrays,
    conversion,
    folder,
    idx_folder,
    named,
    own,
    parquet,
    store,
    tfds_folder,
)
from cae_jax.data.conversion import Conversion, UnreadableError
from cae_jax.data.decoded import Arrays
from cae_jax.data.files import File
from cae_jax.data.source import ALL, SPLITS, Item, Source, items_of
from cae_jax.data.tfds_builder import CaeImages, ImagesConfig
from cae_jax.errors import UserError

logger = logging.getLogger(__name__)

_MOST_NAMES = 1000  # of files left out, which are kept


class Own:
    """Images of a source, as a config wants them; a `cae_jax.data.store.Recipe`.

    Args:
        config: which images, and what they are brought to.
        name: of the folder of prepared data.
        title: how messages name the images.
        source: opens them.
    """

    def __init__(
        self, config: TrainConfig, name: str, title: str, source: Callable[[], Source]
    ) -> None:
        self.name, self.title = name, title
        self._config, self._open = config, source
        self._skipped: list[str] = []
        self._counts: dict[str, int] = dict.fromkeys(SPLITS, 0)

    def open(self) -> None:
        """Opens the source."""
        self._source = self._open()

    def prepare(self, root: Path) -> dict[str, Arrays]:
        """Prepares the images; see `cae_jax.data.store.Recipe`."""
        shape = shape_of(self._source, self._config, self.title)
        convert = conversion.of_config(self._config, shape)
        config = ImagesConfig(
            name=self.name,
            image_shape=shape,
            classes=self._source.classes,
            description=f"The images of {self.title!a}.",
        )
        with _quiet():
            builder = CaeImages(config=config, data_dir=str(root))
            builder.examples = lambda _: {split: self._examples(split, convert) for split in SPLITS}
            builder.finish = lambda: self._keep(Path(builder.data_dir), shape)
            store.write(builder)
        self._finish(Path(builder.data_dir), shape)
        return {}

    def check(self, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Takes all records: nothing is known of them but what TFDS checks."""

    def _examples(self, split: str, convert: Conversion) -> Iterator[tuple[np.ndarray, int | None]]:
        """The converted images and the labels of a split.

        Raises:
            UserError: an image that cannot be read, where the config skips none; no images; or
                images that are black because their white is 1.
        """
        lightest = 0
        for item in items_of(self._source, split, self._config):
            try:
                image = _converted(item, convert)
            except UnreadableError:
                if not self._config.skip_unreadable:
                    raise
                self._skipped.append(item.name)
                continue
            classes = len(self._source.classes)
            if item.label is not None and classes and not -1 <= item.label < classes:
                raise UserError(
                    f"{item.name} has the label {item.label}, and there are {classes} classes; "
                    "correct the source"
                )
            self._counts[split] += 1
            lightest = max(lightest, int(image.max()))
            yield image, item.label
        if not self._counts[split]:
            raise self._empty(split)
        if lightest == 1:
            raise UserError(
                f"{self.title} has no pixel above 1, which is black for 8 bits; multiply the "
                "images by 255, or save an array of bool"
            )

    def _empty(self, split: str) -> UserError:
        name = {"train": "training", "test": "test"}[split]
        left_out = f", {len(self._skipped)} unreadable ones left out" if self._skipped else ""
        advice = "give more images"
        if ALL in self._source.splits and self._config.split != 0.5:
            advice += ", or divide them by `split=0.5`"
        return UserError(f"{self.title} gives no {name} images{left_out}; {advice}")

    def _keep(self, prepared: Path, shape: Shape) -> None:
        """Writes where the images are from, and how many were left out."""
        record = {
            "data": self.title,
            "image_shape": shape,
            "classes": self._source.classes,
            "images": self._counts,
            "skipped": len(self._skipped),
            "skipped_files": self._skipped[:_MOST_NAMES],
            **self._source.notes,
        }
        own.write_record(prepared, record)

    def _finish(self, prepared: Path, shape: Shape) -> None:
        """Logs a line, and one of what earlier states of the files gave."""
        aside = [f"{len(self._skipped)} unreadable"] if self._skipped else []
        ignored = self._source.notes.get("ignored", {})
        aside += [f"{count} {name}" for name, count in ignored.items()]
        logger.warning(
            "Prepared %d training and %d test images of %d x %d x %d%s",
            *self._counts.values(),
            *shape,
            f"; left out: {', '.join(aside)}" if aside else "",
        )
        # Runs may have begun with those, and their files may be gone.
        earlier = prepared.parent.parent.glob(f"{self.name.rpartition('-')[0]}-*/{prepared.name}")
        others = [str(each.parent) for each in earlier if each != prepared]
        if others:
            logger.warning("Earlier states are in %s, which may be removed", ", ".join(others))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's warnings of a new configuration and of a missing OpenCV off stderr."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _converted(item: Item, convert: Conversion) -> np.ndarray:
    image = item.read()
    with image if isinstance(image, Image.Image) else contextlib.nullcontext():
        return convert(image, item.name)


def shape_of(source: Source, config: TrainConfig, title: str) -> Shape:
    """The height, width and channels that a config brings the images of a source to.

    Reads the headers of all images where neither the config nor the source tells.

    Raises:
        UserError: images of several sizes without `image_size`, or too small ones; names two.
    """
    size, channels = config.image_size, config.channels
    if source.shape is not None:
        if size is None:
            conversion.check_size(source.shape[:2], title)
        size = size or source.shape[:2]
        channels = channels if channels != "auto" else 1 if source.shape[2] == 1 else 3
    if size is None or channels == "auto":
        found, gray = _survey(source, config, title)
        size = size or found
        channels = channels if channels != "auto" else 1 if gray else 3
    height, width = size
    return height, width, channels


def _survey(source: Source, config: TrainConfig, title: str) -> tuple[tuple[int, int], bool]:
    """The size of the images of a source, and whether all are gray."""
    size, first, all_gray = None, "", True
    for split in SPLITS:
        for item in items_of(source, split, config):
            try:
                image = item.read()
                with image if isinstance(image, Image.Image) else contextlib.nullcontext():
                    found, gray = conversion.header(image, item.name)
            except UnreadableError:
                if not config.skip_unreadable:
                    raise
                continue
            all_gray = all_gray and gray
            if size is None:
                size, first = found, item.name
            if found != size and config.image_size is None:
                raise UserError(
                    f"{first} has {size[0]} x {size[1]} pixels and {item.name} {found[0]} x "
                    f"{found[1]}; bring all to one size with `image_size=64`, for example"
                )
    if size is None:
        raise UserError(f"{title} has no image that can be read; give others")
    if config.image_size is None:
        conversion.check_size(size, first)
    return size, all_gray


def open_source(
    found: own.Found, data_dir: str | Path | None, archives: str | Path | None
) -> Source:
    """Opens what a path leads to, by the names of the files there.

    Args:
        found: the path and its files.
        data_dir, archives: of a data set that has a name, see `cae_jax.data.load_split`.

    Raises:
        UserError: none or several kinds of images are there; or as the source raises.
    """
    path, listing = found.path, found.listing
    if listing is None:
        raise own.missing(found.given)
    if found.data in NAMED:
        return named.NamedImages(found.data, data_dir, archives)
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        return _whole(found, arrays.ArrayFile(path))
    tables, images = listing.of([parquet.SUFFIX]), listing.of(conversion.SUFFIXES)
    if (prepared := tfds_folder.find_folder(listing)) is not None:
        if prepared != listing.root:
            _refuse_mixture(path, f"a TFDS data set in {prepared}", images)
        return tfds_folder.TfdsFolder(prepared, found.chosen)
    if idx_files := idx_folder.files(listing):
        _refuse_mixture(path, f"{len(idx_files)} IDX files", images)
        return idx_folder.IdxFolder(listing, found.chosen)
    if tables:
        _refuse_mixture(path, f"{len(tables)} parquet files", images)
        return _whole(found, parquet.ParquetFolder(listing))
    if images:
        return _whole(found, folder.ImageFolder(listing))
    others = ", ".join(f"{count} {name}" for name, count in listing.others([]).items())
    raise UserError(
        f"{path} has no images{f', but {others}' if others else ''}; it takes {own.ACCEPTED}"
    )


def _refuse_mixture(path: Path, what: str, images: list[File]) -> None:
    if images:
        raise UserError(f"{path} has {what} and {len(images)} images; give a folder of one kind")


def _whole(found: own.Found, source: Source) -> Source:
    """A source of which no part can be chosen."""
    if found.chosen:
        raise UserError(
            f"`data` names the part {found.chosen} of {found.path}, which takes none; parts are "
            "of TFDS data sets and of IDX files"
        )
    return source
