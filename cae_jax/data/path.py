"""Resolves a data path to the source of its images, without opening any image."""

import contextlib
import difflib
import errno
import fnmatch
import operator
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cae_jax.config import NAMED, RUN_MARK, TrainConfig
from cae_jax.data.files import SUFFIXES
from cae_jax.data.sources import (
    File,
    Listing,
    Source,
    arrays,
    folder,
    idx,
    listed,
    parquet,
    tfds,
)
from cae_jax.errors import UserError

ACCEPTED = (
    "a folder of images, of IDX files, of a prepared TFDS data set or of parquet files, or a .npz "
    "or .npy file"
)
PREPARED = "cae_images"  # the folder of all prepared data below a `data_dir`
# Files and folders of systems: hidden ones, thumbnails, bins, snapshots, and libraries of photos.
_SYSTEM = (
    *(".*", "__macosx*", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle"),
    *("#snapshot", "~snapshot", "$recycle.bin", "recycler", "system volume information"),
    *("lost+found", "found.[0-9][0-9][0-9]", "synophoto_thumb_*", "synofile_thumb_*", "thumbs.db"),
    *("desktop.ini", "*.photoslibrary", "*.aplibrary", "*.lrdata"),
)
_HIDDEN = re.compile(
    "|".join([*map(fnmatch.translate, _SYSTEM), r"(?-i:Thumbs)\Z"]),  # thumbs may be a class
    re.IGNORECASE,
)
_DANGLING = "links that lead nowhere"
_READ = "links to folders that are read"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_OF_POINTER = 1024  # bytes
_SEPARATOR = "::"  # between a path and a part of the data set there
# How archives are unpacked, by the last of their suffixes.
_ARCHIVES = {
    ".zip": "python -m zipfile -e {}",
    **dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz"), "tar -xf {} -C"),
}


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
        if path.suffix.lower() in _ARCHIVES:
            folder = str(path)[: -len(path.suffix)]
            unpack = _ARCHIVES[path.suffix.lower()].format(shlex.quote(str(path)))
            raise UserError(
                f"`data` is the archive {path}",
                f"unpack it with `mkdir -p {shlex.quote(folder)} && {unpack} {shlex.quote(folder)}`"
                f", and give {folder}",
            )
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


def find(config: TrainConfig, location: Location, root: Path) -> Found | None:
    """Finds the images at a location by the names of the files there; None if nothing is there.

    Args:
        config: which files are left out.
        location: of `locate`.
        root: where named data sets are downloaded and prepared, see `data_root`.

    Raises:
        UserError: no images or several kinds of them, or a folder cannot be read.
    """
    path = location.path
    if (config.include or config.exclude) and not (location.missing or path.is_dir()):
        raise UserError(
            f"`include` and `exclude` choose files of a folder, and `data` {path} is none",
            "leave them out",
        )
    if location.data in NAMED:
        _refuse_pairs(location, config.pairs)
        return Found([], partial(_open_named, location.data, root))
    if location.missing:
        return None
    listing = walk(path, config)
    found = _found(location, listing, config.pairs)
    return found._replace(open=partial(_open, listing.root, found, config.skip_unreadable))


def _found(location: Location, listing: Listing, pairs: Sequence[str]) -> Found:
    """What the files of a listing are."""
    path, part = location.path, location.part
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        _refuse_part(location)
        return Found(listing.files, partial(arrays.open_file, path, pairs))
    tables, images = listing.with_suffix([parquet.SUFFIX]), folder.files(listing)
    if (prepared := tfds.find_folder(listing)) is not None:
        _refuse_pairs(location, pairs)
        if prepared != listing.root:
            _refuse_mixture(path, f"a TFDS data set in {prepared}", images)
        return Found(tfds.files(listing), partial(tfds.open_folder, prepared, part))
    if idx_files := idx.files(listing):
        _refuse_pairs(location, pairs)
        _refuse_mixture(path, f"{len(idx_files)} IDX files", images)
        return Found(idx_files, partial(idx.open_folder, listing, part))
    _refuse_part(location)
    if tables:
        _refuse_mixture(path, f"{len(tables)} parquet files", images)
        return Found(tables, partial(parquet.open_folder, listing, pairs))
    if images:
        return Found(images, partial(folder.open_folder, listing, pairs))
    if listing.with_suffix([".arrow"]):
        raise UserError(
            f"{path} has .arrow files, as `datasets` saves them to disk",
            f"give {path}_parquet after `{parquet.CONVERT.format(str(path))}`",
        )
    others = ", ".join(f"{count} {name}" for name, count in listing.unused([]).items())
    but = f", but {others}" if others else ""
    raise UserError(f"{path} has no images{but}; it takes {ACCEPTED}")


def _open(root: Path, found: Found, skip_unreadable: bool) -> Source:
    """Opens a source; refuses files whose content Git LFS has not brought."""
    pointers = []
    for file in found.files:
        if file.size <= _MOST_OF_POINTER:
            with contextlib.suppress(OSError), (root / file.key).open("rb") as opened:
                if opened.read(len(_POINTER)) == _POINTER:
                    pointers.append(file.key)
    some = len(pointers) < len(found.files)
    if pointers and not (skip_unreadable and some):
        raise UserError(
            f"{len(pointers)} of {len(found.files)} files in {root} are pointers of Git LFS, whose "
            f"content is not here: {listed(pointers)}",
            "run git lfs pull there" + (", or pass `skip_unreadable=True`" if some else ""),
        )
    return found.open()


def _open_named(name: str, root: Path) -> Source:
    # TFDS takes half a second to import, and a prepared data set does not need it.
    from cae_jax.data.sources.named import open_named

    return open_named(name, root)


def _refuse_pairs(location: Location, pairs: Sequence[str]) -> None:
    if pairs:
        raise UserError(
            f"`data` is {location.data}, which has no `pairs`",
            "they are of folders of images, columns of parquet files and arrays of a .npz file",
        )


def _refuse_mixture(path: Path, what: str, images: list[File]) -> None:
    if images:
        raise UserError(f"{path} has {what} and {len(images)} images; give a folder of one kind")


def _refuse_part(location: Location) -> None:
    if location.part:
        raise UserError(
            f"`data` names the part {location.part} of {location.path}, which takes none",
            "parts are of TFDS data sets and of IDX files",
        )


def walk(path: Path, config: TrainConfig | None = None) -> Listing:
    """Lists the files of a folder and those below it, or the one file that is given.

    Args:
        path: of the folder.
        config: its patterns, and whether folders that may not be read are skipped; None lists all.

    Raises:
        UserError: a folder cannot be read.
    """
    chosen = config or TrainConfig()
    try:
        if path.is_file():
            status = path.stat()
            return Listing(path.parent, [File(path.name, status.st_size, status.st_mtime_ns)], {})
        found = _Walk(chosen.skip_unreadable)
        found.find(str(path))
    except OSError as error:
        below = config and error.filename != str(path)
        advice = ", or pass `skip_unreadable=True`" if below else ""
        raise UserError(
            f"{path} cannot be read ({error})", f"grant read permission{advice}"
        ) from error
    files = sorted(found.files, key=operator.itemgetter(0))  # of 200,000, twice as fast
    if chosen.include or chosen.exclude:
        include, exclude = _matching(chosen.include or "*"), _matching(chosen.exclude)
        paths = {file: "/".join(file.parts) for file in files}
        files = [f for f, p in paths.items() if include.match(p) and not exclude.match(p)]
    if len(files) < len(found.files):
        found.left_out["excluded"] = len(found.files) - len(files)
    return Listing(path, files, dict(found.left_out))


def _matching(patterns: Sequence[str]) -> re.Pattern[str]:
    """Matches paths of files, or of folders that files lie in, from any folder on; "" without."""
    bare = [pattern.rstrip("/") for pattern in patterns]
    forms = (form for p in bare for form in (p, f"*/{p}", f"{p}/*", f"*/{p}/*"))
    return re.compile("|".join(map(fnmatch.translate, forms)) or r"\Z")


class _Walk:
    """The files below a folder.

    A folder is read once: where it lies, or else by the first link to it in the order of names.

    Attributes:
        files: in any order.
        left_out: number of other entries by the reason.
    """

    def __init__(self, skip_unreadable: bool) -> None:
        self.files: list[File] = []
        self.left_out: Counter[str] = Counter()
        self._skip_unreadable = skip_unreadable
        self._read: set[tuple[int, int]] = set()  # device and inode of folders
        self._links: list[tuple[str, str]] = []  # to folders, and the keys of what lies below

    def find(self, folder: str) -> None:
        """Finds the files below a folder."""
        self._list(folder, "")
        for link in self._links:  # which grows
            self._try(self._list, *link)

    def _try(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function for an entry; leaves out one that cannot be read, if that is allowed."""
        try:
            function(*arguments)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link that leads to itself
                self.left_out[_DANGLING] += 1
            elif isinstance(error, PermissionError) and self._skip_unreadable:
                self.left_out["without permission"] += 1
            else:
                raise

    def _list(self, folder: str, prefix: str) -> None:
        """Takes the entries of a folder, and lists those that are folders."""
        status = os.stat(folder)  # noqa: PTH116 - as `scandir`
        identity = (status.st_dev, status.st_ino)
        if identity in self._read:
            self.left_out[_READ] += 1
            return
        self._read.add(identity)
        if os.path.lexists(os.path.join(folder, RUN_MARK)):  # noqa: PTH118
            self.left_out["hidden"] += 1  # a run, whose figures are not images to train on
            return
        below: list[tuple[str, bool]] = []
        with os.scandir(folder) as scanned:  # not sorted: in this order the system is faster
            for entry in scanned:
                self._try(self._take, entry, prefix, below)
        for name, is_link in sorted(below):
            path = os.path.join(folder, name), f"{prefix}{name}/"  # noqa: PTH118
            if is_link:
                self._links.append(path)
            else:
                self._try(self._list, *path)

    def _take(self, entry: os.DirEntry[str], prefix: str, below: list[tuple[str, bool]]) -> None:
        """Takes a file, or notes a folder and whether it is a link."""
        name = entry.name
        if _is_hidden(name):
            self.left_out["hidden"] += 1
        elif entry.is_file():
            status = entry.stat()
            self.files.append(File(prefix + name, status.st_size, status.st_mtime_ns))
        elif name == PREPARED and entry.is_dir():
            self.left_out["hidden"] += 1  # `data_dir` may lie among the images
        elif entry.is_dir():
            below.append((name, entry.is_symlink()))
        elif entry.is_symlink():
            self.left_out[_DANGLING] += 1


def _is_hidden(name: str) -> bool:
    if "\\" in name:  # a path in an archive from Windows
        return any(map(_HIDDEN.match, name.split("\\")))
    return bool(_HIDDEN.match(name))
