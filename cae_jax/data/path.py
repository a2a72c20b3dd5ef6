"""Resolves a data path to the source of its images, without opening any image."""

import contextlib
import difflib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cae_jax.config import NAMED, RUN_MARK
from cae_jax.data.files import SUFFIXES
from cae_jax.data.sources import File, Listing, Source, arrays, folder, idx, parquet, tfds
from cae_jax.errors import UserError

ACCEPTED = (
    "a folder of images, of IDX files, of a prepared TFDS data set or of parquet files, or a .npz "
    "or .npy file"
)
PREPARED = "cae_images"  # the folder of all prepared data below a `data_dir`
_SEPARATOR = "::"  # between a path and a part of the data set there


class Location(NamedTuple):
    """A path in a config, made absolute.

    Attributes:
        path: absolute; only the name of a named data set.
        part: which part of the data set there; "" for all.
        missing: the error if nothing is there, or not any more.
    """

    path: Path
    part: str = ""
    missing: UserError | None = None

    @property
    def data(self) -> str:
        """The absolute path with the part, for a config."""
        return f"{self.path}{_SEPARATOR}{self.part}" if self.part else str(self.path)


class Found(NamedTuple):
    """What lies at a location.

    Attributes:
        files: those that hold the images; others beside them may change.
        open: opens the source; raises as its class.
    """

    files: list[File]
    open: Callable[[], Source]


def data_root(data_dir: str | Path | None) -> Path:
    """Where data sets are prepared: `data_dir`, else ``TFDS_DATA_DIR``, else TFDS's default.

    Raises:
        UserError: there is no home directory to keep them in.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(data_dir or default).expanduser().absolute()
    except RuntimeError as error:  # as in a container whose user has no name
        raise UserError("there is no home directory to keep data in; pass `data_dir`") from error


def locate(data: str) -> Location:
    """Makes a data path absolute; lists no folder.

    Args:
        data: the name of a data set, or a path, and after ``::`` a part of the data set there.

    Raises:
        UserError: the path leads to a file of another kind.
    """
    if data in NAMED:
        return Location(Path(data))
    path, part = _absolute(data), ""
    if not _exists(path) and _SEPARATOR in data:
        head, _, part = data.rpartition(_SEPARATOR)
        path = _absolute(head)
    if _exists(path) and not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"`data` is the image {path}", f"give its folder, {path.parent}")
        if not path.is_file() or path.suffix.lower() not in (".npz", ".npy", ".parquet"):
            raise UserError(f"`data` is {path}, which is not a folder", f"it takes {ACCEPTED}")
    return Location(path, part, None if _exists(path) else _missing(data, path))


def _exists(path: Path) -> bool:
    """Also False for a name that the system refuses, such as one that is too long."""
    return os.path.exists(path)  # noqa: PTH110 - which raises there


def _absolute(path: str) -> Path:
    # Also without "..", so that a folder has one path.
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - which raises


def _missing(data: str, path: Path) -> UserError:
    """The error for a name or path that leads nowhere."""
    near = difflib.get_close_matches(data, NAMED, 1)
    with contextlib.suppress(OSError, ValueError):  # only advice
        names = {each.name for each in path.parent.iterdir()} - {path.name}
        near += [f"{path.parent / name}" for name in difflib.get_close_matches(path.name, names, 1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(
        f"`data` is {data!r}, where nothing is",
        f"it takes {', '.join(NAMED)}, or the path of {ACCEPTED}{hint}",
    )


def find(location: Location, root: Path) -> Found | None:
    """Finds the images at a location by the names of the files there; None if nothing is there.

    Args:
        location: of `locate`.
        root: where named data sets are downloaded and prepared, see `data_root`.

    Raises:
        UserError: no images or several kinds of them, or a folder cannot be read.
    """
    path, part = location.path, location.part
    if location.data in NAMED:
        return Found([], partial(_open_named, location.data, root))
    if location.missing:
        return None
    listing = walk(path)
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        _refuse_part(location)
        return Found(listing.files, partial(arrays.open_file, path))
    tables, images = listing.with_suffix([parquet.SUFFIX]), listing.with_suffix(SUFFIXES)
    if (prepared := tfds.find_folder(listing)) is not None:
        if prepared != listing.root:
            _refuse_mixture(path, f"a TFDS data set in {prepared}", images)
        return Found(tfds.files(listing), partial(tfds.open_folder, prepared, part))
    if idx_files := idx.files(listing):
        _refuse_mixture(path, f"{len(idx_files)} IDX files", images)
        return Found(idx_files, partial(idx.open_folder, listing, part))
    _refuse_part(location)
    if tables:
        _refuse_mixture(path, f"{len(tables)} parquet files", images)
        return Found(tables, partial(parquet.open_folder, listing))
    if images:
        return Found(images, partial(folder.open_folder, listing))
    others = ", ".join(f"{count} {name}" for name, count in listing.unused([]).items())
    but = f", but {others}" if others else ""
    raise UserError(f"{path} has no images{but}; it takes {ACCEPTED}")


def _open_named(name: str, root: Path) -> Source:
    # TFDS takes half a second to import, and a prepared data set does not need it.
    from cae_jax.data.sources.named import open_named

    return open_named(name, root)


def _refuse_mixture(path: Path, what: str, images: list[File]) -> None:
    if images:
        raise UserError(f"{path} has {what} and {len(images)} images; give a folder of one kind")


def _refuse_part(location: Location) -> None:
    if location.part:
        raise UserError(
            f"`data` names the part {location.part} of {location.path}, which takes none",
            "parts are of TFDS data sets and of IDX files",
        )


def walk(path: Path) -> Listing:
    """Lists the files of a folder and those below it, or the one file that is given.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        if path.is_file():
            status = path.stat()
            return Listing(path.parent, [File(path.name, status.st_size, status.st_mtime_ns)], 0)
        entries = list(_entries(str(path), "", set()))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); grant read permission") from error
    files = sorted(entry for entry in entries if entry is not None)
    return Listing(path, files, len(entries) - len(files))


def _entries(folder: str, prefix: str, above: set[tuple[int, int]]) -> Iterator[File | None]:
    """The files below a folder, and None for a hidden one; a link to a folder above ends."""
    status = os.stat(folder)  # noqa: PTH116 - as `scandir`
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    if any(entry.name == RUN_MARK for entry in entries):
        yield None  # a run, whose figures are not images to train on
        return
    for entry in entries:
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link that leads to itself
                raise
            continue
        if entry.name.startswith((".", "__MACOSX")) or (entry.name == PREPARED and is_folder):
            yield None  # `data_dir` may lie among the images
        elif is_folder:
            yield from _entries(entry.path, f"{prefix}{entry.name}/", above | {identity})
        elif is_file:
            status = entry.stat()
            yield File(prefix + entry.name, status.st_size, status.st_mtime_ns)
