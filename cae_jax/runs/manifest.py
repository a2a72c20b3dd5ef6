"""Detects damage to a directory byte by byte: the manifest of a checkpoint.

Orbax's formats have checksums for some of their parts only.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cae_jax import atomic
from cae_jax.config import FORMAT

NAME = "manifest.json"


class DamagedError(Exception):
    """A directory differs from its manifest; the message names the file."""


class NewerError(Exception):
    """A directory was written by a later version of cae-jax."""


def write(folder: Path, metadata: dict[str, Any]) -> None:
    """Writes the manifest of all files below a directory, and syncs the directory to the disk.

    Args:
        folder: directory without a manifest.
        metadata: JSON values that it also holds.
    """
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder)}
    (folder / NAME).write_bytes(_encode({"format": FORMAT, **metadata, "files": files}))
    atomic.sync_tree(folder)


def read(folder: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a directory, but not the other files.

    Returns:
        the metadata, with the entries ``format``, ``files`` and ``sha256``.

    Raises:
        DamagedError: the manifest is missing or was changed.
        NewerError: a later version wrote it.
        FileNotFoundError: the directory does not exist.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
        metadata = json.loads(content)
        intact = content == _encode({key: metadata[key] for key in metadata if key != "sha256"})
        number = metadata["format"]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if not folder.exists():
            raise FileNotFoundError(folder) from error
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path} is no manifest") from error
    if not intact:
        raise DamagedError(f"{path} has changed")
    if number > FORMAT:
        raise NewerError(f"{folder} has format {number}; this version reads up to {FORMAT}")
    return metadata


def verify(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a directory and checks every file that it lists.

    Ignores other files, such as those of file managers, backups and network file systems.

    Raises:
        DamagedError: a file was changed or is missing; see also `read`.
    """
    metadata = read(folder)
    for name, digest in metadata["files"].items():
        try:
            content = (folder / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise DamagedError(f"{folder / name} is missing") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedError(f"{folder / name} has changed")
    return metadata


def _encode(metadata: dict[str, Any]) -> bytes:
    """Encodes a manifest, with a checksum of its own content."""
    digest = hashlib.sha256(json.dumps(metadata).encode()).hexdigest()
    return (json.dumps({**metadata, "sha256": digest}, indent=2) + "\n").encode()


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Lists the files and links below a directory by relative name, without the manifest."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return [(path.relative_to(folder).as_posix(), path) for path in paths if path != folder / NAME]
