"""Files that are written whole or not at all."""

from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, in place of one that may be there.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
