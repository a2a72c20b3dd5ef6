"""What belongs into a folder, byte for byte: the manifest of a checkpoint.

Orbax's formats carry checksums of some of their parts only.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "manifest.json"
# Rises whenever older versions cannot read what is written.
FORMAT = 1


class DamagedError(Exception):
    """A folder that is not what its manifest says; the message names the file."""


class NewerError(Exception):
    """A folder of a later version of cae-jax."""


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of all files that are below a folder now.

    Args:
        folder: without a manifest.
        facts: plain JSON values to keep with it.
    """
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder)}
    (folder / NAME).write_bytes(_encode({"format": FORMAT, **facts, "files": files}))


def read(folder: Path) -> dict[str, Any]:
    """The facts in the manifest of a folder, itself checked; the other files are not.

    Raises:
        DamagedError: there is no manifest, or it is not as it was written.
        NewerError: it was written by a later version.
        FileNotFoundError: there is no such folder.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
        facts = json.loads(content)
        intact = content == _encode({key: facts[key] for key in facts if key != "sha256"})
        number = facts["format"]
    except FileNotFoundError:
        if not folder.exists():
            raise
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path} is no manifest") from error
    if not intact:
        raise DamagedError(f"{path} has changed")
    if number > FORMAT:
        raise NewerError(f"{folder} has format {number}; this version reads up to {FORMAT}")
    return facts


def verify(folder: Path) -> dict[str, Any]:
    """`read`, with every file of the folder compared with its manifest.

    Raises:
        DamagedError: also if a byte has changed, or a file is missing or one too many.
    """
    facts = read(folder)
    wanted = facts["files"]
    for name in sorted(wanted.keys() | dict(_files(folder)).keys()):
        if name not in wanted:
            raise DamagedError(f"{folder / name} does not belong there")
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{folder / name} is missing") from None
        if hashlib.sha256(content).hexdigest() != wanted[name]:
            raise DamagedError(f"{folder / name} has changed")
    return facts


def _encode(facts: dict[str, Any]) -> bytes:
    """The bytes of a manifest, which hold a sum of all others."""
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return (json.dumps({**facts, "sha256": digest}, indent=2) + "\n").encode()


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file and link below a folder but its manifest, with its name from there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return [(path.relative_to(folder).as_posix(), path) for path in paths if path != folder / NAME]
