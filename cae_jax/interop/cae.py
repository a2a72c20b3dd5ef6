"""Compressed images as one .cae file: a header, the names of the images, and their codes.

    magic    b"CAE" and a byte, the version of the format
    header   the identity of the decoder (8 bytes), quality, height, width, channels and number of
             images
    names    deflated JSON: [name, number of images] of each source
    codes    the stream of `cae_jax.models.coding`

Each part after the magic is its length, a checksum (CRC-32, 4 bytes, big-endian) and its bytes.
Whole numbers are in LEB128, whose bytes have 7 bits. The identity is the start of the SHA-256 of
the decoder's parameters and tables, see `coding.identity`.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cae_jax import atomic
from cae_jax.config import Shape
from cae_jax.errors import UserError
from cae_jax.models import coding
from cae_jax.models.coding import Tables
from cae_jax.models.inference import Autoencoder

MAGIC, VERSION = b"CAE", 1
_IDENTITY = 8  # bytes
_MOST_NAMES = 2**26  # bytes of JSON
_MOST_VALUES = 2**31  # of all codes, and of all images
Sources = list[tuple[str, int]]


class Compressed(NamedTuple):
    """The content of a .cae file.

    Attributes:
        identity: of the decoder, 8 bytes.
        quality: a key of `coding.STEPS`.
        image_shape: ``(height, width, channels)``.
        sources: the names of the files that were compressed and the number of images in each; 0 is
            one image whose name has no number.
        stream: the codes of all images.
    """

    identity: bytes
    quality: int
    image_shape: Shape
    sources: Sources
    stream: bytes

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(number or 1 for _, number in self.sources)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [
            name if number == 0 else f"{name}-{i:04}"
            for name, number in self.sources
            for i in range(number or 1)
        ]


def compress(
    autoencoder: Autoencoder, tables: Tables, codes: np.ndarray, sources: Sources
) -> bytes:
    """The file of codes ``[N, *code_shape]``, whole numbers; for `sources` see `Compressed`."""
    coding.check()
    identity = coding.identity(autoencoder.model, tables)[:_IDENTITY]
    numbers = (tables.quality, *autoencoder.topology.image_shape, len(codes))
    header = identity + b"".join(map(_leb128, numbers))
    names = zlib.compress(json.dumps(sources, separators=(",", ":")).encode(), 9, wbits=-15)
    parts = (header, names, coding.encode(codes, tables))
    return MAGIC + bytes([VERSION]) + b"".join(map(_part, parts))


def decompress(
    content: bytes, name: object, autoencoder: Autoencoder, tables: Mapping[int, Tables]
) -> tuple[Compressed, np.ndarray]:
    """What a file holds, and its codes, float32 ``[N, *code_shape]``, for `Autoencoder.decode`.

    Args:
        content: of the file.
        name: of the file, for messages.
        autoencoder: of the run that compressed it.
        tables: of the run, by their quality.

    Raises:
        UserError: not such a file, cut, changed, of a later version or of another run.
    """
    coding.check()
    found = parse(content, name)
    own = tables[found.quality]
    if found.identity != coding.identity(autoencoder.model, own)[:_IDENTITY]:
        raise UserError(
            f"{name} was compressed by another run, or by this one with other parameters; pass "
            "that run"
        )
    shape = (found.images, *autoencoder.code_shape)
    if found.image_shape != autoencoder.topology.image_shape or math.prod(shape) > _MOST_VALUES:
        raise _changed(name)
    try:
        codes = coding.decode(found.stream, shape, own)
    except ValueError as error:
        raise _changed(name) from error
    return found, own.step * codes.astype(np.float32)


def parse(content: bytes, name: object) -> Compressed:
    """The parts of a file; raises a `UserError` as `decompress`."""
    start = len(MAGIC) + 1
    if content[: len(MAGIC)] != MAGIC:
        raise UserError(f"{name} is not a .cae file; pass one that cae-jax compress has written")
    version = int.from_bytes(content[len(MAGIC) : start])
    if version > VERSION:
        raise UserError(
            f"{name} has format {version} and this version reads {VERSION}; update cae-jax"
        )
    try:
        header, start = _take(content, start)
        names, start = _take(content, start)
        stream, start = _take(content, start)
        numbers, place = [], _IDENTITY
        while place < len(header):
            number, place = _number(header, place)
            numbers.append(number)
        quality, height, width, channels, count = numbers
        inflate = zlib.decompressobj(wbits=-15)
        sources = json.loads(inflate.decompress(names, _MOST_NAMES))
        found = Compressed(
            header[:_IDENTITY],
            quality,
            (height, width, channels),
            [(str(each), int(number)) for each, number in sources],
            stream,
        )
        whole = version == VERSION and start == len(content) and inflate.eof
        whole = whole and quality in coding.STEPS and found.images == count <= _MOST_VALUES
        if not whole or not all(n >= 0 and atomic.is_inside(each) for each, n in found.sources):
            raise ValueError
    # Of other content with right checksums: zlib's error, and what other JSON raises.
    except (ValueError, IndexError, TypeError, RecursionError, zlib.error) as error:
        raise _changed(name) from error
    return found


def _changed(name: object) -> UserError:
    return UserError(f"{name} was cut or changed; restore it from a copy")


def _part(content: bytes) -> bytes:
    return _leb128(len(content)) + zlib.crc32(content).to_bytes(4) + content


def _take(content: bytes, start: int) -> tuple[bytes, int]:
    """The part that begins at a place, and where it ends."""
    length, start = _number(content, start)
    start, stop = start + 4, start + 4 + length
    part = content[start:stop]
    if stop > len(content) or zlib.crc32(part).to_bytes(4) != content[start - 4 : start]:
        raise ValueError
    return part, stop


def _number(content: bytes, start: int) -> tuple[int, int]:
    """The number in LEB128 that begins at a place, and where it ends."""
    number = shift = 0
    while content[start] & 0x80:
        number, shift, start = number | (content[start] & 0x7F) << shift, shift + 7, start + 1
    return number | content[start] << shift, start + 1


def _leb128(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _leb128(rest) if rest else bytes([low])
