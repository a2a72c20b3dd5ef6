"""Tells images that are unlike those of a training, with alarms at a stated rate.

Images have one of two scores. By ``"code"`` it is the distance from training images, for images of
another kind: the mean square of the distances to the nearest (Sun et al. 2022,
https://arxiv.org/abs/2204.06507, without their normalisation) of whitened codes, to which two
sizes of the residual are added. By ``"residual"`` it is the largest residual of a part of the
image, for defects in images of the same kind.

A p-value compares a score with those of held-out images, by split conformal prediction (Vovk,
Gammerman and Shafer 2005; Bates et al. 2023, https://arxiv.org/abs/2104.08279): for an image that
is exchangeable with them it is at most any rate with at most that probability.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage, special

from cae_jax.errors import UserError

if TYPE_CHECKING:
    from cae_jax.models.inference import Autoencoder

By = Literal["code", "residual"]
# Tuned on training images of Fashion-MNIST, see docs/codes.md.
_NEAREST, _SHRINKAGE = 5, 0.1
_WEIGHT = 16  # variance of a residual in that of the values of a code
_PARTS = 7  # in the height or width of an image, for the largest residual
_MAX_NEIGHBORS = 5000  # training images that are kept
_MAX_RESIDUALS = 2**26  # values of calibration images for the limits of residuals, 64 MB
_PERCENTILE = 99
_BATCH = 256


class Scores(NamedTuple):
    """The scores of N images.

    Attributes:
        score_N: at least 0; the higher, the more unlike those of the training.
        p_N: p-values, from 1 / (M + 1) to 1 with M calibration images.
    """

    score_N: np.ndarray
    p_N: np.ndarray


class Detector(NamedTuple):
    """A detector for one autoencoder.

    An image has F = K + 2 features: the values of its code, the root mean square of its residual,
    and the largest one of a part.

    Attributes:
        mean_F, whitening_FxF: ``(features - mean) @ whitening`` whitens features.
        neighbors_NxF: whitened features of training images.
        code_M, residual_M: sorted scores of images that were not trained on.
        limit_HxWxC: the absolute residual that one in a hundred calibration images exceeds.
    """

    mean_F: np.ndarray
    whitening_FxF: np.ndarray
    neighbors_NxF: np.ndarray
    code_M: np.ndarray
    residual_M: np.ndarray
    limit_HxWxC: np.ndarray

    def score(self, features_NxF: np.ndarray, by: By = "code") -> Scores:
        """Scores images by their `features`."""
        if by == "residual":
            score_N, calibration = features_NxF[:, -1].astype(np.float64), self.residual_M
        else:
            whitened = (features_NxF - self.mean_F) @ self.whitening_FxF
            score_N, calibration = _distances(whitened, self.neighbors_NxF), self.code_M
        return Scores(score_N, p_values(score_N, calibration))


def fit(autoencoder: "Autoencoder", train: np.ndarray, calibration: np.ndarray) -> Detector:
    """Fits a detector.

    Args:
        autoencoder: the trained network.
        train: images that it was trained on, in a form that `Autoencoder.encode` takes.
        calibration: like these, but not trained on; M at least 1.
    """
    some_NxF = features(autoencoder, sample(train))
    mean_F = some_NxF.mean(0)
    whitening = _whitening(some_NxF - mean_F)
    detector = Detector(mean_F, whitening, (some_NxF - mean_F) @ whitening, *[np.zeros(0)] * 3)
    held_out = features(autoencoder, calibration)
    code_M, residual_M = (np.sort(detector.score(held_out, by).score_N) for by in get_args(By))
    return detector._replace(
        code_M=code_M, residual_M=residual_M, limit_HxWxC=_limits(autoencoder, calibration)
    )


def features(autoencoder: "Autoencoder", images: Any) -> np.ndarray:
    """The features of images: float32 ``[N, F]``, see `Detector`."""
    found = [np.zeros((0, math.prod(autoencoder.code_shape) + 2), np.float32)]
    for part in _batches(images):
        code_NxK = autoencoder.encode(part).reshape(len(part), -1)
        squares_NxHxW = np.square(autoencoder.residuals(part)).mean(-1)
        side = max(1, round(min(squares_NxHxW.shape[1:]) / _PARTS))
        largest_N = ndimage.uniform_filter(squares_NxHxW, side, axes=(1, 2)).max((1, 2))
        residuals = np.sqrt(np.stack([squares_NxHxW.mean((1, 2)), np.maximum(largest_N, 0)], 1))
        found.append(np.concatenate([code_NxK, residuals], 1))
    return np.concatenate(found)


def sample(images: np.ndarray) -> np.ndarray:
    """The training images that a detector keeps: at most 5,000, evenly spaced."""
    return np.asarray(images[_spaced(len(images), _MAX_NEIGHBORS)])


def p_values(score_N: np.ndarray, calibration_M: np.ndarray) -> np.ndarray:
    """Compares scores with sorted ones of calibration: (1 + number of at least it) / (M + 1)."""
    below = np.searchsorted(calibration_M, score_N, side="left")
    return (1 + len(calibration_M) - below) / (len(calibration_M) + 1)


def check_share(name: str, rate: float) -> None:
    """Raises a `UserError` for a rate, of that name, that is no share of images."""
    if not 0 < rate < 1:
        raise UserError(f"`{name}` is {rate}; it takes a number between 0 and 1")


def check_rate(rate: float, calibration: int) -> None:
    """Refuses a rate of alarms that no p-value can be below.

    Raises:
        UserError: it names how many calibration images the rate needs.
    """
    check_share("alarm_rate", rate)
    if rate * (calibration + 1) < 1 - 1e-9:
        raise UserError(
            f"`alarm_rate` is {rate:g}, which needs {math.ceil(1 / rate - 1e-9) - 1:,} test "
            f"images, and the run has {calibration:,}; give more, or a rate of at least "
            f"{1 / (calibration + 1):.2g}"
        )


def realised_rates(rate: float, calibration: int, share: float = 0.95) -> tuple[float, float]:
    """The range of the rate of alarms over calibrations by M images, in a share of them.

    With M continuous scores the rate has a beta distribution, since it is an order statistic of
    uniform ones (Vovk 2012, https://arxiv.org/abs/1209.2673).
    """
    alarms = math.floor(rate * (calibration + 1) + 1e-9)
    outside = (1 - share) / 2
    low, high = special.betaincinv(alarms, calibration + 1 - alarms, (outside, 1 - outside))
    return float(low), float(high)


def discoveries(p_N: np.ndarray, rate: float) -> np.ndarray:
    """Which of N images are unlike those of the training, bool ``[N]``.

    Of those chosen a share of at most `rate` is expected to be like them (Benjamini and Hochberg
    1995; for conformal p-values Bates et al. 2023).
    """
    from scipy import stats  # takes a second

    return stats.false_discovery_control(p_N) <= rate


def _spaced(count: int, most: int) -> np.ndarray:
    """At most `most` indices below `count`, evenly spaced: a data set may be sorted."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))


def _whitening(centered_NxF: np.ndarray) -> np.ndarray:
    """The inverse square root of the covariance, shrunk towards a multiple of the identity."""
    variances_F = np.square(centered_NxF).mean(0, dtype=np.float64)
    scale_F, tiny = np.ones(len(variances_F)), np.finfo(np.float32).tiny
    scale_F[-2:] = np.sqrt(_WEIGHT * variances_F[:-2].mean() / (variances_F[-2:] + tiny))
    scaled = centered_NxF * scale_F
    variances, directions = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    variances = np.maximum(variances, 0) + _SHRINKAGE * variances.mean() + tiny
    return (scale_F[:, None] * directions / np.sqrt(variances)).astype(np.float32)


def _distances(images_NxF: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Mean squared distance of each image from its nearest neighbors: float64 ``[N]``."""
    nearest = min(_NEAREST, len(neighbors))
    squares = np.square(neighbors).sum(1)
    found = [np.zeros(0)]
    for start in range(0, len(images_NxF), 1000):
        part = images_NxF[start : start + 1000]
        distances = np.square(part).sum(1)[:, None] + squares - 2 * part @ neighbors.T
        closest = np.partition(distances, nearest - 1)[:, :nearest]
        found.append(np.maximum(closest, 0).mean(1, dtype=np.float64))
    return np.concatenate(found)


def _limits(autoencoder: "Autoencoder", images: np.ndarray) -> np.ndarray:
    some = images[_spaced(len(images), max(1, _MAX_RESIDUALS // math.prod(images.shape[1:])))]
    # In steps of 1/255, which take a quarter of the memory.
    residuals = np.concatenate(
        [np.rint(255 * autoencoder.residuals(part)).astype(np.uint8) for part in _batches(some)]
    )
    return np.percentile(residuals, _PERCENTILE, axis=0).astype(np.float32) / 255
