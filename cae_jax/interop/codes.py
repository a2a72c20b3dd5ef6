"""Files of codes, which NumPy alone reads: a .npz of the arrays below, written as a stream.

names         unicode [N]: the name of each image
codes         float32 [N, *code_shape]; quantised uint8 or uint16, whose values are codes * scale
scale         float32 [channels] of the code's last axis; only of quantised codes
image_shape   int64 [3]: height, width and channels of the images
run           SHA-256 of the parameters of the network, which also has to decode them
format        1; increases whenever names, shapes or meaning change
"""

import contextlib
import itertools
import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cae_jax import atomic
from cae_jax.data.sources import arrays, block_length
from cae_jax.errors import UserError, naming
from cae_jax.models.inference import Autoencoder

FORMAT = 1
MAX_BITS = 16
_NAMES = 4096  # that are in memory at once
# Types of the codes, float or quantised, and of the other arrays.
_TYPES = (np.dtype("<f4"), np.dtype("u1"), np.dtype("<u2"))
_KINDS = {"names": "U", "image_shape": "i", "run": "U", "format": "i", "scale": "f"}


def check(path: Path, bits: int | None) -> None:
    """Refuses a file that cannot be written, or bits that are not 1 to 16; call it before loading.

    Raises:
        UserError: see above, or the name does not end in .npz.
    """
    if bits is not None and not 1 <= bits <= MAX_BITS:
        raise UserError(f"`bits` is {bits}; it takes a whole number from 1 to {MAX_BITS}")
    if path.suffix.lower() != ".npz":
        raise UserError(f"`out` is {path}; give a name that ends in .npz")
    atomic.check_output(path)


def write(
    path: Path,
    autoencoder: Autoencoder,
    blocks: Iterable[tuple[list[str], np.ndarray]],
    bits: int | None = None,
) -> int:
    """Encodes images block by block and writes their codes, whole or not at all.

    The floats lie in an unnamed file beside the output until all are known: so does the largest
    value of each channel, from which quantised codes have their scale. No value is clipped, since
    codes are at least 0, and none is further off than half a step.

    Args:
        path: the file; an existing one is replaced.
        autoencoder: encodes them.
        blocks: names and images, see `cae_jax.data.stream`.
        bits: quantise each channel uniformly to this number of bits, 1 to 16; None keeps floats.

    Returns:
        the number of images.

    Raises:
        UserError: see `check`; codes that are not finite, or what `blocks` raises.
    """
    if bits is not None and autoencoder.topology.quantised:
        raise UserError(
            "the codes of this run are whole numbers already; leave out `bits`, or write small "
            "files with cae-jax compress"
        )
    check(path, bits)
    count, longest, most = 0, 1, np.zeros(autoencoder.code_shape[-1:], np.float32)
    with (
        atomic.output_file(path) as temporary,
        tempfile.TemporaryFile(dir=temporary.parent) as floats,
        tempfile.TemporaryFile("w+", dir=temporary.parent) as names,
    ):
        for some, images in blocks:
            codes = autoencoder.encode(images)
            if not np.isfinite(codes).all():
                raise UserError(f"the codes of {some[0]} and others are not finite; train again")
            floats.write(codes.tobytes())
            names.writelines(f"{json.dumps(name)}\n" for name in some)  # each is one line
            count, longest = count + len(some), max(longest, *map(len, some))
            most = np.maximum(most, codes.reshape(-1, *most.shape).max(axis=0))
        floats.seek(0)
        names.seek(0)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, "names", f"<U{longest}", (count,), _names(names))
            parts = _floats(floats, (count, *autoencoder.code_shape))
            _add_codes(archive, parts, (count, *autoencoder.code_shape), most, bits)
            shape = autoencoder.topology.image_shape
            fixed = {"image_shape": shape, "run": autoencoder.digest, "format": FORMAT}
            for name, value in fixed.items():
                _add_array(archive, name, np.array(value))
    return count


def _names(file: IO[str]) -> Iterator[np.ndarray]:
    while some := [json.loads(line) for line in itertools.islice(file, _NAMES)]:
        yield np.array(some)


def _floats(file: IO[bytes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    each = np.zeros(shape[1:], np.float32).nbytes
    while content := file.read(each * block_length(shape, np.dtype(np.float32))):
        yield np.frombuffer(content, np.float32).reshape(-1, *shape[1:])


def _add_codes(
    archive: zipfile.ZipFile,
    parts: Iterator[np.ndarray],
    shape: tuple[int, ...],
    most: np.ndarray,
    bits: int | None,
) -> None:
    """Adds the codes, and if they are quantised the scale.

    Args:
        archive, parts, shape: the floats of this shape, which go there.
        most: the largest value of each channel ``[channels]``.
        bits: see `write`.
    """
    if bits is None:
        _add(archive, "codes", "<f4", shape, parts)
        return
    steps = 2**bits - 1
    scale = (np.where(most > 0, most, 1) / steps).astype(np.float32)
    # In float64, where a quotient of 16 bits is exact to far less than a step.
    quantised = (np.rint(part / scale.astype(np.float64)).clip(0, steps) for part in parts)
    _add(archive, "codes", "u1" if bits <= 8 else "<u2", shape, quantised)
    _add_array(archive, "scale", scale)


def _add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    _add(archive, name, array.dtype.str, array.shape, [array])


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    parts: Iterable[np.ndarray],
) -> None:
    """Adds an array that comes in parts, as `numpy.savez` does."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(dtype).tobytes())


class Codes(NamedTuple):
    """The codes in a file, which has been checked.

    Attributes:
        path: of the file.
        names: of the images.
        scale: of the channels; None for floats.
    """

    path: Path
    names: list[str]
    scale: np.ndarray | None

    def blocks(self, length: int) -> Iterator[np.ndarray]:
        """The codes as float32 ``[n, *code_shape]``, at most `length` at a time."""
        for block in arrays.blocks(self.path, "codes"):
            for start in range(0, len(block), length):
                part = block[start : start + length]
                if self.scale is not None:
                    with np.errstate(all="ignore"):  # of a forged scale
                        part = (part * self.scale).astype(np.float32)
                yield part


def read(path: Path, autoencoder: Autoencoder, run: object) -> Codes:
    """Opens a file of codes; reads it once from end to end to check it.

    Args:
        path: the file.
        autoencoder: has to decode them.
        run: how an error names it.

    Raises:
        UserError: not a file of codes, damaged, of other shapes or with values that are not finite,
            or of another network.
    """
    with _advising(path):
        found = arrays.headers(path)
        _check_form(found, autoencoder)
        if (number := int(arrays.member(path, "format"))) > FORMAT:
            raise UserError(f"{path} has format {number}, later than {FORMAT}; update cae-jax")
        if str(arrays.member(path, "run")) != autoencoder.digest:
            raise UserError(
                f"{path} has codes of other parameters than {run}; give the run that encoded them, "
                "and `best` as then, or encode the images again if it was trained since"
            )
        if tuple(arrays.member(path, "image_shape")) != autoencoder.topology.image_shape:
            raise ValueError("its images have another shape than those of the run")
        names = [name for block in arrays.blocks(path, "names") for name in block.tolist()]
        scale = arrays.member(path, "scale") if found["codes"].dtype.kind == "u" else None
        opened = Codes(path, names, scale)
        if not all(np.isfinite(block).all() for block in opened.blocks(_NAMES)):
            raise ValueError("it has values that are not finite")
        return opened


def _check_form(found: dict[str, np.ndarray], autoencoder: Autoencoder) -> None:
    """Compares the names, types and shapes of the arrays in a file; raises a `ValueError`."""
    count = found["names"].shape[:1] if "names" in found else ()
    expected: dict[str, tuple[int, ...]] = {"names": count, "codes": count + autoencoder.code_shape}
    expected |= {"image_shape": (3,), "run": (), "format": ()}
    if "codes" in found and found["codes"].dtype.kind == "u":
        expected["scale"] = autoencoder.code_shape[-1:]
    if missing := expected.keys() - found.keys():
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
    for name, shape in expected.items():
        there = found[name]
        right = there.dtype in _TYPES if name == "codes" else there.dtype.kind == _KINDS[name]
        if there.shape != shape or not right:
            raise ValueError(f"{name} is {there.dtype} {list(there.shape)}, not {list(shape)}")
    if count == (0,):
        raise ValueError("it has no images")


@contextlib.contextmanager
def _advising(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file into one line that says what to do."""
    advice = "encode the images again"
    try:
        with naming(path, "an intact file of codes", advice):
            yield
    except UserError as error:  # of the array, or of other parameters
        raise UserError(error.problem, advice if error.advice else "") from error
