"""Codes of whole numbers as bytes, and back: a range coder with the frequencies of each channel.

A code is written as its latents divided by a step and rounded. A network is trained with a step of
1; longer ones lead to fewer bytes and worse images. The frequencies are integers, with which the
coder computes exactly: bytes decode to the same codes on every machine.
"""

import contextlib
import hashlib
import importlib
import importlib.util
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from cae_jax.errors import UserError, installing
from cae_jax.models.autoencoders import Model, fingerprint
from cae_jax.ops import settings

# The step of each quality, from small files to large ones.
STEPS = {1: 4.0, 2: 2.8, 3: 2.0, 4: 1.4, 5: 1.0, 6: 0.7, 7: 0.5}
TRAINED = 5  # the quality of the training
_TOTAL = 2**16  # of the frequencies of a channel
_LEAST = 0.5 / _TOTAL  # probability of a number that is in a table
_FURTHEST = 1024  # number that may be in a table
_SPAN = 2**16  # of the numbers that can be written, half of them negative
_WORD = 4  # bytes
_ENDS = 2 * _WORD  # bytes at the end of a stream that may not be needed


class Tables(NamedTuple):
    """The frequencies with which codes are written.

    Attributes:
        quality: a key of `STEPS`.
        low_C: the least number in the table of each channel, int32.
        sizes_C: how many numbers are in it, int32.
        frequencies: those of all channels one after the other, int32: of each number from the
            least one on, at least 1, and of all numbers that are not in the table.
    """

    quality: int
    low_C: np.ndarray
    sizes_C: np.ndarray
    frequencies: np.ndarray

    @classmethod
    @settings.ours()
    def of(cls, model: Model, quality: int = TRAINED) -> Self:
        """Those of a model, by its density."""
        assert model.density is not None
        channels, step = model.topology.code_shape[-1], STEPS[quality]
        numbers = np.arange(-_FURTHEST, _FURTHEST + 1)
        grid = jnp.asarray(np.tile(step * numbers[:, None], (1, channels)), jnp.float32)
        masses_CxN = np.exp2(-np.asarray(model.density.bits(grid, step), np.float64)).T
        low, tables = [], []
        for masses_N in masses_CxN:
            likely = np.flatnonzero(masses_N >= _LEAST)
            first, last = (likely[0], likely[-1]) if len(likely) else 2 * (_FURTHEST,)
            low.append(numbers[first])
            tables.append(_whole(masses_N[first : last + 1]))
        sizes = [len(table) - 1 for table in tables]
        arrays = (np.array(x, np.int32) for x in (low, sizes, np.concatenate(tables)))
        return cls(quality, *arrays)

    @property
    def step(self) -> float:
        """By which latents are divided."""
        return STEPS[self.quality]

    @property
    def by_channel(self) -> list[np.ndarray]:
        """The frequencies of each channel."""
        return np.split(self.frequencies, np.cumsum(self.sizes_C + 1)[:-1])

    def bits(self) -> tuple[np.ndarray, np.ndarray]:
        """What a number costs: float32 ``[C, N]``, from that of each channel in `low_C` on.

        The second array ``[C]`` is what a number costs that is not in the table; with it the first
        one is padded.
        """
        bits = [-np.log2(each / _TOTAL) for each in self.by_channel]
        others_C = np.array([each[-1] + np.log2(_SPAN) for each in bits], np.float32)
        costs_CxN = np.tile(others_C[:, None], (1, self.sizes_C.max()))
        for row, each in zip(costs_CxN, bits, strict=True):
            row[: len(each) - 1] = each[:-1]
        return costs_CxN, others_C

    def is_valid(self) -> bool:
        """Whether the arrays are tables that belong together."""
        _, *arrays = self
        shapes = [x.shape for x in arrays]
        whole = all(x.dtype == np.int32 and x.ndim == 1 for x in arrays)
        if not whole or shapes[0] != shapes[1] or (self.sizes_C < 1).any():
            return False
        added = (self.sizes_C.astype(np.int64) + 1).sum() == shapes[2][0]
        return bool(added) and all((x > 0).all() and x.sum() == _TOTAL for x in self.by_channel)


def is_there() -> bool:
    """Whether the library that codes is installed."""
    return importlib.util.find_spec("constriction") is not None


def check() -> None:
    """Raises a `UserError` if the library that codes is missing."""
    if not is_there():
        raise UserError(f"compressed files need constriction; {installing('compress')}")


def identity(model: Model, tables: Tables) -> bytes:
    """SHA-256 of the parameters and tables, 32 bytes."""
    digest = hashlib.sha256(fingerprint(model))
    for array in tables[1:]:
        digest.update(np.asarray(array, "<i4").tobytes())
    return digest.digest()


def encode(codes: np.ndarray, tables: Tables) -> bytes:
    """Writes codes, whole numbers ``[N, ..., C]``, channel by channel.

    Numbers beyond those of 16 bits are replaced by the nearest one of these.
    """
    codes = np.clip(codes, -_SPAN // 2, _SPAN // 2 - 1).astype(np.int32)
    encoder = _library().queue.RangeEncoder()
    columns = codes.reshape(-1, codes.shape[-1]).T
    for values, low, frequencies in zip(columns, tables.low_C, tables.by_channel, strict=True):
        others, symbols = len(frequencies) - 1, values - low
        symbols = np.where((symbols >= 0) & (symbols < others), symbols, others)
        if len(symbols):
            encoder.encode(symbols.astype(np.int32), _model(frequencies))
        if len(outside := values[symbols == others]):
            encoder.encode(outside + np.int32(_SPAN // 2), _model(None))
    return _shortened(np.asarray(encoder.get_compressed(), ">u4").tobytes(), codes, tables)


def decode(content: bytes, shape: tuple[int, ...], tables: Tables) -> np.ndarray:
    """Reads codes of a shape ``[N, ..., C]`` from what `encode` returned for them: int32.

    Raises:
        ValueError: no codes have these bytes.
    """
    padded = content + bytes(_ENDS - len(content) % _WORD)
    decoder = _library().queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))
    count = int(np.prod(shape[:-1]))
    columns = []

    def read(model: Any, number: int) -> np.ndarray:
        try:
            return decoder.decode(model, number) if number else np.zeros(0, np.int32)
        except AssertionError as error:
            raise ValueError(str(error)) from error

    for low, frequencies in zip(tables.low_C, tables.by_channel, strict=True):
        symbols = read(_model(frequencies), count)
        outside, values = symbols == len(frequencies) - 1, symbols + low
        values[outside] = read(_model(None), int(outside.sum())) - np.int32(_SPAN // 2)
        columns.append(values)
    return np.stack(columns, axis=-1).astype(np.int32).reshape(shape)


def _library() -> Any:
    return importlib.import_module("constriction").stream


def _model(frequencies: np.ndarray | None) -> Any:
    """The model of a channel, or of a number that is not in its table."""
    model = _library().model
    if frequencies is None:
        return model.Uniform(_SPAN)
    # The library multiplies sums of them by a quotient of 24 bits and a power of two, which float64
    # holds exactly.
    return model.Categorical(frequencies.astype(np.float64), perfect=False)


def _shortened(content: bytes, codes: np.ndarray, tables: Tables) -> bytes:
    """The shortest beginning of a stream, its last byte rounded up if need be, that decodes alike.

    The coder writes words of 32 bits, of which a stream of one image would hold a few only.
    """
    for length in range(max(0, len(content) - _ENDS), len(content)):
        number = int.from_bytes(content[:length])
        for each in (number, number + 1):
            with contextlib.suppress(OverflowError, ValueError):
                shorter = each.to_bytes(length)
                if np.array_equal(decode(shorter, codes.shape, tables), codes):
                    return shorter
    return content


def _whole(masses: np.ndarray) -> np.ndarray:
    """Probabilities and what they leave as whole numbers of at least 1 that add up to `_TOTAL`."""
    shares = np.append(masses, max(0.0, 1 - masses.sum()))
    frequencies = 1 + np.floor(shares / shares.sum() * (_TOTAL - len(shares))).astype(np.int32)
    frequencies[shares.argmax()] += _TOTAL - frequencies.sum()
    return frequencies
