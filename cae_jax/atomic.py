"""Files that are written whole or not at all, and the one message for those that cannot be."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on success it replaces `path`, on failure it is removed.

    Raises:
        OSError: the file cannot be written; a previous one stays as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically; raises like `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; raises like `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file atomically; raises like `replacing`."""
    write_text(path, json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def writing(what: object, advice: str = "choose another path, or free space") -> Iterator[None]:
    """Turns an `OSError` into the one-line `UserError` of a file or folder that cannot be written.

    Args:
        what: the file or folder, as the message names it.
        advice: what to do next, the end of a sentence.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error}); {advice}") from error


def check_output(path: str | Path | None) -> None:
    """Refuses a file that cannot be written, before the work whose result it is to hold.

    Args:
        path: the file; None passes.

    Raises:
        UserError: it is a directory or a device, or its parent directory does not exist.
    """
    if path is None:
        return
    path = Path(path)
    with writing(path, "give a file in a folder that exists"):
        if path.exists() and not path.is_file():
            raise IsADirectoryError("it is not a regular file")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path for a file that a user asked for; it replaces `path` on success.

    Raises:
        UserError: the file cannot be written; a previous one stays as it was.
    """
    check_output(path)
    with writing(path), replacing(Path(path)) as temporary:
        yield temporary
