"""Writes files atomically and durably, and reports those that cannot be written in one place."""

import contextlib
import errno
import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_jax.errors import UserError

logger = logging.getLogger(__name__)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Suffix of what is being written and does not count yet.
TEMPORARY = ".tmp"
# The temporary files of this moment, for a process that ends without the end of `replacing`.
temporaries: set[Path] = set()


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` on success and is removed on failure.

    After a power failure the file has its old or its new content, whole; it has the new one for
    certain when the ``with`` statement has ended. With `durable` False the system writes when it
    likes, which is fast for many files, and a power failure may leave an empty one.

    Raises:
        OSError: the file cannot be written; an existing one is left unchanged.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    temporaries.add(temporary)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        temporaries.discard(temporary)


def sync(path: Path, *, needed: bool = False) -> None:
    """Waits until a file's content, or the names in a directory, are on the disk.

    Some file systems cannot, such as VirtualBox's: one warning in this process.

    Raises:
        UserError: a file system that cannot, if it is `needed`, as for checkpoints.
        OSError: the file or directory cannot be read or written.
    """
    if path.is_dir() and os.name == "nt":  # Windows has no such call
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        problem = f"is on a file system that cannot sync directories ({error.strerror})"
        if needed:
            advice = "which checkpoints rely on; choose a `workdir` on a local disk"
            raise UserError(f"{path} {problem}, {advice}") from error
        _warn(problem)
    finally:
        os.close(descriptor)


@functools.cache
def _warn(problem: str) -> None:
    logger.warning("The output %s: a power failure may lose it", problem)


def sync_tree(folder: Path) -> None:
    """Waits until a directory and everything below it is on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def is_inside(name: str) -> bool:
    """Whether a name from a file of others leads to a file in the folder in which it is written."""
    path = Path(name)
    return bool(path.name) and not path.anchor and ".." not in path.parts and "\0" not in name


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; raises like `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file atomically; raises like `replacing`."""
    write_text(path, json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def writing(what: object, advice: str = "choose another path, or free space") -> Iterator[None]:
    """Turns an `OSError` into a one-line `UserError`: the file or directory cannot be written.

    Args:
        what: the file or directory, as the message names it.
        advice: what to do next, the end of the message.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error}); {advice}") from error


def check_output(path: str | Path | None) -> None:
    """Refuses an output file that cannot be written, before the work for it starts.

    Args:
        path: the file; None passes.

    Raises:
        UserError: the path is a directory or a device, or its parent directory does not exist or
            cannot be written.
    """
    if path is None:
        return
    path = Path(path).expanduser()
    with writing(path, "give a file in a folder that exists"):
        if path.exists() and not path.is_file():
            raise IsADirectoryError("it is not a regular file")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
        with tempfile.TemporaryFile(dir=path.parent):  # raises without permission
            pass


def check_folder(path: str | Path) -> None:
    """Refuses a directory of outputs that cannot be made or written, before the work for it starts.

    Raises:
        UserError: the path is a file, or the directory or its nearest one that exists cannot be
            written.
    """
    path = Path(path).expanduser().absolute()
    with writing(path, "choose another folder"):
        existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=existing):  # raises without permission
            pass


@contextlib.contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that replaces an output file of the user on success.

    Raises:
        UserError: the file cannot be written; an existing one is left unchanged.
    """
    check_output(path)
    with writing(path), replacing(Path(path).expanduser()) as temporary:
        yield temporary
