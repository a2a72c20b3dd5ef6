"""Files that Keras writes, zip archives and HDF5, read with distrust.

Nothing is unpickled, no link is followed, and no array is read before its type, its shape and the
room that it takes in the file are known to be what the network needs.
"""

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cae_jax.errors import UserError

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
# The configs of the project's networks have about 12 kB.
_MAX_CONFIG = 2**20
# No more than so many names are listed; the networks have at most 15 layers.
_MAX_NAMES = 100
# Deflate shrinks weights by a tenth, and copies of them that an optimizer keeps, if they are
# zero, to nothing: with four of these to a fifth.
_MAX_EXPANSION = 10

# What zipfile, h5py and the JSON of a damaged file raise.
DAMAGE = (
    *(OSError, EOFError, MemoryError, RuntimeError, ValueError, LookupError, TypeError),
    *(AttributeError, zipfile.BadZipFile, zlib.error),
)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive by its first bytes.

    Raises:
        UserError: neither that nor HDF5.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return True
    if not h5py.is_hdf5(path):
        raise UserError("it is neither a .keras archive nor HDF5; save the model with model.save")
    return False


def read_config(archive: zipfile.ZipFile) -> Any:
    """The JSON of the model in a ``.keras`` archive."""
    return read_json(_read_member(archive, CONFIG, _MAX_CONFIG))


@contextlib.contextmanager
def open_weights(archive: zipfile.ZipFile, parameters: int) -> Iterator[h5py.File]:
    """The weights in a ``.keras`` archive, of a network with so many parameters."""
    # The room of float64 and of four copies by an optimizer, and what HDF5 adds for each layer.
    content = _read_member(archive, WEIGHTS, 5 * 8 * parameters + 2**20)
    with h5py.File(io.BytesIO(content), "r") as file:
        yield file


def _read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise UserError(f"the archive has no {name}; save the model with model.save") from None
    most = min(most, _MAX_EXPANSION * member.compress_size + 2**16)
    if member.file_size > most:
        raise UserError(
            f"{name} in it would take {member.file_size} bytes; the network needs at most {most}"
        )
    return archive.read(member)


def read_json(text: str | bytes) -> Any:
    """JSON of the expected length.

    Raises:
        UserError: it is longer.
        ValueError, RecursionError: it is not JSON, or nested without end.
    """
    if len(text) > _MAX_CONFIG:
        raise UserError(f"its config has {len(text)} characters; {_MAX_CONFIG} are to be expected")
    return json.loads(text)


def group_at(group: h5py.Group, path: str) -> h5py.Group:
    """The group below another one, see `_at`."""
    found = _at(group, path)
    if not isinstance(found, h5py.Group):
        raise UserError(f"{path} in it is no group")
    return found


def names_in(group: h5py.Group) -> list[str]:
    """The names of what is in a group.

    Raises:
        UserError: far more than a network has layers.
    """
    if len(group) > _MAX_NAMES:
        raise UserError(f"{group.name} in it has {len(group)} entries, more than any network here")
    return list(group)


def strings(group: h5py.Group, attribute: str) -> list[str]:
    """The strings in an attribute: text or bytes, one or an array.

    Raises:
        UserError: far more than a network has layers.
        KeyError: there is no such attribute.
    """
    shape = group.attrs.get_id(attribute).shape
    if shape is None or np.prod(shape, dtype=float) > _MAX_NAMES:
        raise UserError(f"{attribute} in it has shape {shape}, more than any network here")
    values = np.ravel(group.attrs[attribute]).tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def shape_at(group: h5py.Group, path: str) -> tuple[int, ...]:
    """The shape of an array; () also if there is none."""
    return getattr(_at(group, path), "shape", None) or ()


def array_at(group: h5py.Group, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array.

    Raises:
        UserError: another shape or type, values that are not finite or not there.
    """
    data = _at(group, path)
    if not isinstance(data, h5py.Dataset):
        raise UserError(f"{path} in it is no array")
    if data.shape != shape:
        raise UserError(f"{path} has shape {data.shape}; the network takes {shape}")
    if data.dtype != np.float32:
        raise UserError(f"{path} is of {data.dtype}; the network takes float32")
    size = 4 * int(np.prod(shape, dtype=object))
    # Keras writes arrays in one piece: chunks may be compressed, others be elsewhere.
    if data.chunks or data.external or data.is_virtual or data.id.get_storage_size() != size:
        raise UserError(f"{path} does not lie in the file in one piece, as Keras writes it")
    values = data[()]
    if not np.isfinite(values).all():
        raise UserError(f"{path} has values that are not finite")
    return values


def _at(group: h5py.Group, path: str) -> Any:
    """What is below a group, reached by hard links alone: others lead to other files."""
    found: Any = group
    for name in path.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise UserError(f"it has no {path}")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path} in it is a link, which Keras does not write")
        found = found[name]
    return found
