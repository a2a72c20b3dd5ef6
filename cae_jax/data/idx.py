"""Reads IDX files, gzipped or not, the format of MNIST and its successors.

An IDX file is big-endian: a 4-byte magic number (0x00000803 for images, 0x00000801 for labels: type
byte 0x08 = uint8, last byte = number of dimensions), one 4-byte length per dimension, then the
bytes in row-major order (http://yann.lecun.com/exdb/mnist/).
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from cae_jax.errors import UserError

IMAGE_MAGIC, LABEL_MAGIC = 0x0803, 0x0801
TABLE_MAGIC, MAX_COLUMNS = 0x0C02, 64  # of int32, as QMNIST's labels
# Bounds the memory that a forged header can claim: below 1 GB for the shipped data sets.
MAX_EXAMPLES = 1_000_000


def read_examples(
    images: str | Path, labels: str | Path, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of images and the file of their labels.

    Args:
        images: IDX file of gray images.
        labels: IDX file of labels.
        image_shape: expected ``(height, width, 1)``.

    Returns:
        Images uint8 ``[N, height, width, 1]`` and labels uint8 ``[N]``, each in 0..9.

    Raises:
        UserError: a file is damaged or the two do not belong together; names the file.
    """
    height, width, _ = image_shape
    image_array = _read(Path(images), IMAGE_MAGIC, (height, width))
    label_array = _read(Path(labels), LABEL_MAGIC, ())
    if len(image_array) != len(label_array):
        raise UserError(
            f"{images} holds {len(image_array)} images and {labels} {len(label_array)} labels; "
            "get both from one source"
        )
    if label_array.size and label_array.max() > 9:
        raise UserError(
            f"{labels} holds label {label_array.max()}; labels are 0 to 9: get the file again from "
            "its source"
        )
    return image_array[..., None], label_array


def to_bytes(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes]:
    """The content of the IDX files of gray images ``[N, height, width, 1]`` and labels ``[N]``."""
    head = np.array([IMAGE_MAGIC, *images.shape[:3]], ">u4").tobytes()
    label_head = np.array([LABEL_MAGIC, len(labels)], ">u4").tobytes()
    return head + images.tobytes(), label_head + labels.astype(np.uint8).tobytes()


def open_idx(path: Path) -> IO[bytes]:
    """Opens an IDX file for its unpacked bytes, whatever its name says of compression."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # of gzip; an IDX file begins with zeros
    return cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))


def _read(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an IDX file as uint8 ``[N, *shape]``."""
    with _named_damage(path), open_idx(path) as file:
        count, found_shape = _header(file, magic, len(shape))
        if tuple(found_shape) != shape:
            raise _DamagedError(f"holds images of {found_shape} pixels, expected {list(shape)}")
        size = count * math.prod(shape)
        # Reading one byte more than announced bounds the memory and still reaches the end of
        # the stream, where gzip verifies its checksum.
        data = file.read(size + 1)
        _check_end(data, size)
        return np.frombuffer(data, np.uint8).reshape(count, *shape)


class _DamagedError(Exception):
    """What is wrong with a file, without its name."""


def _header(file: IO[bytes], magic: int, dimensions: int) -> tuple[int, list[int]]:
    """Reads how many examples a file announces, and their shape."""
    header = file.read(8 + 4 * dimensions)
    if len(header) < 8 + 4 * dimensions:
        raise _DamagedError("is truncated within its header")
    found, count, *shape = np.frombuffer(header, ">u4").tolist()
    if found != magic:
        raise _DamagedError(f"has the magic number 0x{found:08x}, expected 0x{magic:08x}")
    if count > MAX_EXAMPLES:
        raise _DamagedError(f"announces {count} examples, more than the {MAX_EXAMPLES} allowed")
    return count, shape


def _check_end(data: bytes, size: int) -> None:
    if len(data) < size:
        raise _DamagedError(f"is truncated: it holds {len(data)} of the {size} bytes announced")
    if len(data) > size:
        raise _DamagedError(f"has bytes after the {size} announced")


@contextlib.contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Names the file in errors, with what to do."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path} {problem}; get the file again from its source")

    try:
        yield
    except _DamagedError as error:
        raise refuse(str(error)) from None
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; pass a directory with the four IDX files"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise refuse(f"is not an intact gzip file ({error})") from error
    except EOFError as error:
        raise refuse("is truncated") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def announced(path: Path) -> tuple[int, int, int]:
    """The number, height and width of images that the header of a file announces.

    Raises:
        UserError: the file is damaged.
    """
    with _named_damage(path), open_idx(path) as file:
        count, (height, width) = _header(file, IMAGE_MAGIC, 2)
        if not count:
            raise _DamagedError("holds no images")
    return count, height, width


def iterate_images(path: Path) -> Iterator[np.ndarray]:
    """The images of a file, uint8 ``[height, width]``, one after the other.

    Raises:
        UserError: the file is damaged; at the end where only the end tells.
    """
    with _named_damage(path), open_idx(path) as file:
        count, shape = _header(file, IMAGE_MAGIC, 2)
        size = math.prod(shape)
        for i in range(count):
            data = file.read(size)
            if len(data) < size:
                raise _DamagedError(f"is truncated after {i} of the {count} images announced")
            yield np.frombuffer(data, np.uint8).reshape(shape)
        _check_end(file.read(1), 0)


def read_labels(path: Path) -> np.ndarray:
    """The labels of a file, int ``[N]``: of QMNIST's tables of int32 the first column.

    Raises:
        UserError: the file is damaged.
    """
    with _named_damage(path), open_idx(path) as file:
        table = file.read(4) == TABLE_MAGIC.to_bytes(4)
    if not table:
        return _read(path, LABEL_MAGIC, ()).astype(np.int32)
    with _named_damage(path), open_idx(path) as file:
        count, (columns,) = _header(file, TABLE_MAGIC, 1)
        if not 0 < columns <= MAX_COLUMNS:
            raise _DamagedError(f"announces {columns} columns")
        data = file.read(count * columns * 4 + 1)
        _check_end(data, count * columns * 4)
        return np.frombuffer(data, ">i4").reshape(count, columns)[:, 0].astype(np.int32)
