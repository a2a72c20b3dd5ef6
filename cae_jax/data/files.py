"""Lists the files of a folder, in one walk that opens none."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cae_jax.config import RUN_MARK
from cae_jax.errors import UserError

# The folder of all prepared data below a `data_dir`: the name of their builder.
PREPARED = "cae_images"
# Names of the training and test images of a data set, in lower case; a validation split is the
# test images where there are no others.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}


class File(NamedTuple):
    """A file below a folder.

    Attributes:
        key: its path relative to the folder, with slashes.
        size: bytes.
        changed: time of its last change in nanoseconds.
    """

    key: str
    size: int
    changed: int

    @property
    def parts(self) -> list[str]:
        """The folders that it lies in, and its name."""
        return self.key.split("/")

    @property
    def suffix(self) -> str:
        """What its name ends in, in lower case, with the point."""
        return os.path.splitext(self.key)[1].lower()  # noqa: PTH122 - of 200,000 files


class Listing(NamedTuple):
    """The files below a folder.

    Attributes:
        root: the folder.
        files: those that are not hidden, in the order of their keys.
        hidden: how many are hidden, their folders counted as one.
    """

    root: Path
    files: list[File]
    hidden: int

    def of(self, suffixes: Iterable[str]) -> list[File]:
        """The files with one of some suffixes."""
        suffixes = frozenset(suffixes)
        return [file for file in self.files if file.suffix in suffixes]

    def others(self, used: Iterable[File]) -> dict[str, int]:
        """How many files of which suffix there are beside those that are used."""
        used = frozenset(used)
        counts = Counter(file.suffix or "none" for file in self.files if file not in used)
        return dict(counts.most_common()) | ({"hidden": self.hidden} if self.hidden else {})


def walk(path: Path) -> Listing:
    """Lists the files of a folder and those below it, or the one file that is given.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        if path.is_file():
            status = path.stat()
            return Listing(path.parent, [File(path.name, status.st_size, status.st_mtime_ns)], 0)
        files, hidden = [], 0
        for entry in _entries(str(path), "", set()):
            hidden += entry is None
            files += [entry] if entry is not None else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); grant read permission") from error
    return Listing(path, sorted(files), hidden)


def _entries(folder: str, prefix: str, above: set[tuple[int, int]]) -> Iterator[File | None]:
    """The files below a folder, and None for what is hidden; a link to a folder above ends."""
    status = os.stat(folder)  # noqa: PTH116 - as `scandir`
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    if any(entry.name == RUN_MARK for entry in entries):
        yield None  # a run, whose figures are no images to train on
        return
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")) or _is_prepared(entry):
            yield None
        elif _leads(entry, os.DirEntry.is_dir):
            yield from _entries(entry.path, f"{prefix}{entry.name}/", above | {identity})
        elif _leads(entry, os.DirEntry.is_file):
            status = entry.stat()
            yield File(prefix + entry.name, status.st_size, status.st_mtime_ns)


def _is_prepared(entry: os.DirEntry) -> bool:
    """Whether it holds prepared images: `data_dir` may lie among them."""
    return entry.name == PREPARED and _leads(entry, os.DirEntry.is_dir)


def _leads(entry: os.DirEntry, kind: Callable[[os.DirEntry], bool]) -> bool:
    """Whether an entry is of a kind; not if it is a link that leads to itself."""
    try:
        return kind(entry)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def fingerprint(files: Iterable[File]) -> str:
    """Identifies files by their keys, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.key}\0{file.size}\0{file.changed}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
