"""Classical denoisers, tuned on training images, as baselines for the networks.

Needs the extra ``baselines``. Each output passes through an affine map, fitted by least squares on
the same training images, and is clipped to [0, 1]: clipped noise makes black pixels grey and white
ones darker, a bias that denoisers for zero-mean noise do not remove.

Images are floats ``[N, H, W, C]`` in [0, 1]; each channel is denoised by itself, and all share the
parameters.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import struct
import timeit
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from cae_jax import atomic
from cae_jax.config import NAMED
from cae_jax.errors import UserError, installing
from cae_jax.evaluation.lazy import Images, Lazy, parts

logger = logging.getLogger(__name__)

# Training images for tuning, enough to distinguish the parameters: of larger ones as many as have
# the values of these of Fashion-MNIST.
TUNING_IMAGES = 200
_TUNING_VALUES, _LEAST_IMAGES = TUNING_IMAGES * math.prod(NAMED["fashion_mnist"]), 12
_PART_VALUES = 2**22  # of the images that are denoised at a time, 32 MB
_IMAGES = "pictures"  # name of the array in the files of results
_THRESHOLDS = ("BayesShrink", "VisuShrink")


class Tuned(NamedTuple):
    """A tuned denoiser.

    Attributes:
        name: key of `DENOISERS`.
        parameters: keyword arguments of its function.
        slope, offset: the affine map of its output.
    """

    name: str
    parameters: dict[str, Any]
    slope: float
    offset: float


def _median(image: np.ndarray, size: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.median_filter(image, size)


def _total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    from skimage import restoration

    return restoration.denoise_tv_chambolle(image, weight)  # Chambolle 2004


def _non_local_means(image: np.ndarray, sigma: float, h: float, patch_size: int) -> np.ndarray:
    from skimage import restoration

    # Buades, Coll and Morel 2005; the search window reaches half an image in each direction.
    return restoration.denoise_nl_means(
        image, patch_size, patch_distance=14, h=h * sigma, sigma=sigma
    )


def _wavelet(image: np.ndarray, sigma: float, method: str, levels: int) -> np.ndarray:
    from skimage import restoration

    # Cycle spinning, Coifman and Donoho 1995; BayesShrink is Chang, Yu and Vetterli
    # 2000, VisuShrink Donoho and Johnstone 1994.
    options = {"wavelet": "haar", "method": method, "wavelet_levels": levels}
    outputs = []
    for down, right in itertools.product(range(4), repeat=2):
        shifted = np.roll(image, (down, right), (0, 1))
        denoised = restoration.denoise_wavelet(shifted, sigma, **options)
        outputs.append(np.roll(denoised, (-down, -right), (0, 1)))
    return np.mean(outputs, axis=0)


def _bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    import bm3d

    profile = bm3d.BM3DProfile()
    # Skip the variances for correlated noise, which take 0.5 s per image: this noise is white.
    profile.nf = 0
    # It ends the process for an image of its block's 8 pixels, and refuses smaller ones.
    larger = np.pad(image, [(0, max(0, 9 - length)) for length in image.shape], "symmetric")
    denoised = np.asarray(bm3d.bm3d(larger, sigma, profile))  # Dabov et al. 2007
    return denoised[: image.shape[0], : image.shape[1]]


def _grid(**values: tuple) -> list[dict[str, Any]]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


# Function of one channel ``[H, W]`` and the parameters to try, by name.
DENOISERS: dict[str, tuple[Callable[..., np.ndarray], list[dict[str, Any]]]] = {
    "median": (_median, _grid(size=(3, 5, 7))),
    "total variation": (_total_variation, _grid(weight=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4))),
    "non-local means": (
        _non_local_means,
        _grid(sigma=(0.1, 0.2, 0.3, 0.4), h=(0.4, 0.7, 1.0), patch_size=(3, 5, 7)),
    ),
    "wavelet": (
        _wavelet,
        _grid(sigma=(0.1, 0.2, 0.3, 0.4, 0.6), method=_THRESHOLDS, levels=(1, 2, 3)),
    ),
    "BM3D": (_bm3d, _grid(sigma=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7))),
}


@contextlib.contextmanager
def workers() -> Iterator[Executor]:
    """Starts worker processes that denoise, one per core.

    Raises:
        UserError: the extra ``baselines`` is not installed.
    """
    try:
        import bm3d  # noqa: F401
        import pywt  # noqa: F401 - used by scikit-image's wavelet denoiser
        import skimage  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; {installing('baselines')}") from error
    context = multiprocessing.get_context("spawn")  # threads of JAX do not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as executor:
        yield executor


def tuning_images(image_shape: tuple[int, ...]) -> int:
    """How many training images of a shape the denoisers are tuned on, at most."""
    return min(TUNING_IMAGES, max(_LEAST_IMAGES, _TUNING_VALUES // math.prod(image_shape)))


def tune(
    name: str,
    noisy: np.ndarray,
    clean: np.ndarray,
    executor: Executor,
    progress: Callable[[], object] = int,
) -> Tuned:
    """Finds the parameters with the highest mean PSNR; each gets its own affine map.

    Args:
        name: key of `DENOISERS`.
        noisy: noisy training images.
        clean: the same images without noise.
        executor: maps over the images.
        progress: is called after each channel of an image and parameter.
    """
    from cae_jax.training.metrics import psnr_of_mse  # imports JAX, which the workers do not need

    function, grid = DENOISERS[name]
    best, best_psnr = None, -np.inf
    for parameters in grid:
        outputs = _map(partial(function, **parameters), noisy, executor, progress)
        slope, offset = np.polyfit(outputs.ravel(), clean.ravel(), 1)
        errors = (np.clip(slope * outputs + offset, 0, 1) - clean) ** 2
        psnr = float(np.mean(psnr_of_mse(errors.mean(axis=(1, 2, 3)))))
        if psnr > best_psnr:
            best, best_psnr = Tuned(name, parameters, float(slope), float(offset)), psnr
    assert best is not None
    return best


def denoise(
    tuned: Tuned, noisy: np.ndarray, executor: Executor, progress: Callable[[], object] = int
) -> np.ndarray:
    """Denoises images: float32 ``[N, H, W, C]`` in [0, 1]; `progress` as of `tune`."""
    function, _ = DENOISERS[tuned.name]
    outputs = _map(partial(function, **tuned.parameters), noisy, executor, progress)
    return np.clip(tuned.slope * outputs + tuned.offset, 0, 1).astype(np.float32)


def denoise_all(
    folder: Path, tuning_inputs: np.ndarray, tuning_images: np.ndarray, inputs: Images
) -> Iterator[tuple[str, str, Images]]:
    """Tunes every denoiser on training images and applies it to test images.

    Args:
        folder: caches the results, which take minutes, under a digest of all images and grids.
        tuning_inputs: noisy training images ``[T, H, W, C]`` in [0, 1].
        tuning_images: the clean ones, uint8.
        inputs: noisy test images ``[N, H, W, C]`` in [0, 1].

    Yields:
        name, parameters as text, and the denoised test images, see `denoise`.

    Raises:
        UserError: the extra ``baselines`` is not installed, or `folder` cannot be written.
    """
    digest = hashlib.sha256()
    some = [*parts(len(inputs), max(1, _PART_VALUES // math.prod(inputs.shape[1:])))]
    for array in (tuning_inputs, tuning_images, *(inputs[part] for part in some)):
        digest.update(array.tobytes())
    with workers() as executor:
        for name, (_, grid) in DENOISERS.items():
            digest.update(f"{name} {grid}".encode())
            path = folder / f"{name.replace(' ', '_')}-{digest.hexdigest()[:16]}.npz"
            if not path.exists():
                planes = (len(grid) * len(tuning_inputs) + len(inputs)) * inputs.shape[-1]
                seconds = planes * _seconds(name, inputs[:1][0, ..., 0]) / (os.cpu_count() or 1)
                logger.info("Denoising by %s, about %.0f s", name, seconds)
                with tqdm(total=planes, desc=name, leave=False, disable=None) as bar:
                    tuned = tune(name, tuning_inputs, tuning_images / 255, executor, bar.update)
                    denoised = (denoise(tuned, inputs[i], executor, bar.update) for i in some)
                    _save(path, tuned, inputs.shape, denoised)
            with np.load(path) as arrays:
                parameters = json.loads(str(arrays["tuned"]))["parameters"]
            settings = ", ".join(f"{key} {value}" for key, value in parameters.items())
            yield name, settings, _saved(path)


def _seconds(name: str, plane: np.ndarray) -> float:
    """The time that a denoiser takes for a channel of an image."""
    function, grid = DENOISERS[name]
    run = partial(function, plane.astype(np.float64), **grid[len(grid) // 2])
    run()  # imports
    return timeit.timeit(run, number=1)


def _save(path: Path, tuned: Tuned, shape: tuple[int, ...], denoised: Iterable[np.ndarray]) -> None:
    """Writes float32 images of a shape, which come in parts, as `numpy.savez` does."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open(f"{_IMAGES}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in denoised:
                    file.write(part.tobytes())
            with archive.open("tuned.npy", "w") as file:
                np.lib.format.write_array(file, np.array(json.dumps(tuned._asdict())))


def _saved(path: Path) -> Lazy:
    """The images of a file of `_save` or `numpy.savez`, which do not compress."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        file.seek(archive.getinfo(f"{_IMAGES}.npy").header_offset + 26)
        name_and_extra = struct.unpack("<2H", file.read(4))
        file.seek(sum(name_and_extra), os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        mapped = np.memmap(path, dtype, "r", file.tell(), shape)
    return Lazy(shape, lambda part: np.array(mapped[part]))


def _map(
    function: Callable, images: np.ndarray, executor: Executor, progress: Callable[[], object]
) -> np.ndarray:
    planes = np.moveaxis(images, -1, 1)  # [N, C, H, W]
    flat = planes.reshape(-1, *planes.shape[2:]).astype(np.float64)
    outputs = []
    for output in executor.map(function, flat, chunksize=4):
        outputs.append(output)
        progress()
    return np.moveaxis(np.stack(outputs).reshape(planes.shape), 1, -1)
