"""Computes 95 % confidence intervals of means over test images and over runs.

Values are ``[R, N]``: R runs, which differ in their seed, on the same N images. The images are
bootstrapped (Efron 1979): resampled with replacement, with the 2.5th and 97.5th percentile of the
resampled means as interval. A handful of runs is too few to resample: percentiles would cover far
less than 95 %. Their share of the error is drawn from the t distribution of the mean of R normal
values (Student 1908), once per resample. With a single run this share is missing, and the interval
does not cover the variation between seeds.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cae_jax.evaluation.lazy import parts

RESAMPLES = 2000
_MOST_WEIGHTS = 2**26  # in memory at a time, 256 MB


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values_RxN: np.ndarray) -> Interval:
    """Returns the mean over runs and images with its interval."""
    return _interval(values_RxN.mean(), _resampled_means(values_RxN, seed=1))


def difference_interval(a_RxN: np.ndarray, b_RxN: np.ndarray) -> Interval:
    """Returns the mean of `a` minus the mean of `b`, paired by image: both share the resamples.

    Args:
        a_RxN: values of one model.
        b_RxN: values of another model on the same images; the number of runs may differ.
    """
    resampled = _resampled_means(a_RxN, seed=1) - _resampled_means(b_RxN, seed=2)
    return _interval(a_RxN.mean() - b_RxN.mean(), resampled)


def _interval(mean: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high))


def _resampled_means(values_RxN: np.ndarray, seed: int) -> np.ndarray:
    """Returns one mean per resample; `seed` is that of the runs' share."""
    runs = len(values_RxN)
    mean, image_means_N = values_RxN.mean(), values_RxN.mean(axis=0)
    # Relative to the mean, where float32 is precise enough.
    means = mean + _resampled((image_means_N - mean).astype(np.float32).tobytes())
    if runs > 1:
        error = values_RxN.mean(axis=1).std(ddof=1) / np.sqrt(runs)
        means += error * np.random.default_rng(seed).standard_t(runs - 1, RESAMPLES)
    return means


@functools.lru_cache(maxsize=64)
def _resampled(values: bytes) -> np.ndarray:
    """Returns each resample's mean of float32 ``[N]``, given as bytes, which can be cached."""
    values_N = np.frombuffer(values, np.float32)
    images = len(values_N)
    weights = _kept if RESAMPLES * images <= _MOST_WEIGHTS else _image_weights
    return np.concatenate([part @ values_N for part in weights(images)])


@functools.lru_cache(maxsize=1)
def _kept(images: int) -> list[np.ndarray]:
    return [*_image_weights(images)]


def _image_weights(images: int) -> Iterator[np.ndarray]:
    """Yields each image's share of each resample, float32 ``[n, N]``, in parts; fixed by a seed."""
    rng = np.random.default_rng(0)
    size = max(8, min(RESAMPLES, _MOST_WEIGHTS // images) // 8 * 8)
    for part in parts(RESAMPLES, size):
        weights = np.empty((part.stop - part.start, images), np.float32)
        for row in weights:
            row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
        weights /= images
        yield weights
