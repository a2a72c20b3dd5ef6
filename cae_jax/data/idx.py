"""Reading of gzipped IDX files, the format of MNIST and its kin.

An IDX file is big-endian: a 4-byte magic (0x00000803 for images, 0x00000801 for labels: type byte
0x08 = uint8, last byte = number of dimensions), one 4-byte length per dimension, then the bytes in
row-major order.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from cae_jax.errors import UserError

IMAGE_MAGIC, LABEL_MAGIC = 0x0803, 0x0801
# Bounds what a forged header can make us unpack: 784 MB.
MAX_EXAMPLES = 1_000_000


def read_examples(images: str | Path, labels: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a pair of archives.

    Returns:
        images uint8 ``[N, 28, 28, 1]`` and labels uint8 ``[N]``, each in 0..9.

    Raises:
        UserError: an archive is damaged or the two do not belong together, naming the file.
    """
    image_array = _read(Path(images), IMAGE_MAGIC, (28, 28))
    label_array = _read(Path(labels), LABEL_MAGIC, ())
    if len(image_array) != len(label_array):
        raise UserError(
            f"{images} holds {len(image_array)} images and {labels} {len(label_array)} labels; "
            "get both from one source"
        )
    if label_array.size and label_array.max() > 9:
        raise UserError(f"{labels} holds label {label_array.max()}; labels are 0 to 9")
    return image_array[..., None], label_array


def _read(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array ``[N, *shape]`` in a gzipped IDX file."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path} {problem}; get the archive again from its source")

    try:
        with gzip.open(path, "rb") as file:
            header = file.read(8 + 4 * len(shape))
            if len(header) < 8 + 4 * len(shape):
                raise refuse("is truncated within its header")
            found, count, *found_shape = np.frombuffer(header, ">u4").tolist()
            if found != magic:
                raise refuse(f"has the magic 0x{found:08x} where 0x{magic:08x} belongs")
            if tuple(found_shape) != shape:
                raise refuse(f"holds images of {found_shape} pixels where {list(shape)} belong")
            if count > MAX_EXAMPLES:
                raise refuse(f"announces {count} examples, more than the {MAX_EXAMPLES} allowed")
            size = count * math.prod(shape)
            # One byte more than announced: bounded memory, and the end of the stream with its
            # checksum is reached.
            data = file.read(size + 1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder with the four archives") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise refuse(f"is no intact gzip file ({error})") from error
    except EOFError as error:
        raise refuse("is truncated") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if len(data) < size:
        raise refuse(f"is truncated: {len(data)} bytes of data where {size} are announced")
    if len(data) > size:
        raise refuse(f"has bytes after the {size} announced")
    return np.frombuffer(data, np.uint8).reshape(count, *shape)
