"""95 % intervals of means over test images and over runs.

Values are ``[R, N]``: of R runs, which differ in their seed, on the same N images. The images are
resampled with replacement, and an interval is the 2.5th to the 97.5th percentile of the resampled
means (the bootstrap, Efron 1979). A handful of runs is too small to be resampled: percentiles would
cover far less than 95 %. Their part is the t distribution of the mean of R normal values (Student
1908), one draw a resample. Of a single run it is left out; the interval then does not tell what
another seed would give.
"""

import functools
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values_RxN: np.ndarray) -> Interval:
    """The mean over runs and images."""
    return _interval(values_RxN.mean(), _resampled_means(values_RxN, seed=1))


def difference_interval(a_RxN: np.ndarray, b_RxN: np.ndarray) -> Interval:
    """The mean of `a` minus that of `b`, paired: both are resampled with the same images.

    Args:
        a_RxN: of one model.
        b_RxN: of another model on the same images; its number of runs may differ.
    """
    resampled = _resampled_means(a_RxN, seed=1) - _resampled_means(b_RxN, seed=2)
    return _interval(a_RxN.mean() - b_RxN.mean(), resampled)


def _interval(mean: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high))


def _resampled_means(values_RxN: np.ndarray, seed: int) -> np.ndarray:
    """One mean a resample; the seed is that of the runs' part."""
    runs, images = values_RxN.shape
    mean, of_images_N = values_RxN.mean(), values_RxN.mean(axis=0)
    # Around the mean, where float32 is fine enough.
    means = mean + _image_weights(images) @ (of_images_N - mean).astype(np.float32)
    if runs > 1:
        error = values_RxN.mean(axis=1).std(ddof=1) / np.sqrt(runs)
        means += error * np.random.default_rng(seed).standard_t(runs - 1, RESAMPLES)
    return means


@functools.lru_cache(maxsize=1)
def _image_weights(images: int) -> np.ndarray:
    """How often each resample draws each image, over their number; the same for all models."""
    rng = np.random.default_rng(0)
    counts = [
        np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(RESAMPLES)
    ]
    return np.array(counts, np.float32) / images
