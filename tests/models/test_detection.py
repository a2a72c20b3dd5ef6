"""Scores, p-values and alarms, by hand and by simulation."""

import math
import pickle

import numpy as np
import pytest
from scipy import spatial, stats

import cae_jax
from cae_jax.errors import UserError
from cae_jax.models import detection


@pytest.fixture(scope="module")
def fitted(run, data_dir, test_images):
    autoencoder = cae_jax.load(run)
    train, _ = cae_jax.data.load_split(autoencoder.config, "train", data_dir=data_dir)
    autoencoder.detector = detection.fit(autoencoder, train[:400], test_images[:150])
    return autoencoder, train[:400]


def test_p_values_by_hand():
    calibration = np.array([1.0, 2.0, 2.0, 5.0])
    scores = np.array([0.5, 1.0, 1.5, 2.0, 5.0, 6.0])
    found = detection.p_values(scores, calibration)
    np.testing.assert_allclose(found, np.array([5, 5, 4, 4, 2, 1]) / 5)


def test_the_rate_of_alarms_is_kept_and_spreads_as_stated():
    random, rate, calibration = np.random.default_rng(0), 0.05, 199
    realised = []
    for _ in range(2000):
        scores = np.sort(random.normal(size=calibration))
        # The share of all images whose p-value is at most the rate: those above a quantile.
        least = scores[calibration - math.floor(rate * (calibration + 1))]
        assert detection.p_values(np.array([least + 1e-9, least]), scores)[0] <= rate
        assert detection.p_values(np.array([least]), scores)[0] > rate
        realised.append(stats.norm.sf(least))
    assert np.mean(realised) == pytest.approx(rate, abs=3 * np.std(realised) / 2000**0.5)
    low, high = detection.realised_rates(rate, calibration)
    np.testing.assert_allclose(np.quantile(realised, (0.025, 0.975)), (low, high), rtol=0.05)


@pytest.mark.parametrize(
    ("rate", "calibration", "message"),
    [
        (
            0.0099,
            99,
            r"0\.0099, which needs 101 test images, and the run has 99; .* at least 0\.01$",
        ),
        (0.0, 99, "is 0.0; it takes a number between 0 and 1"),
        (1.0, 99, "between 0 and 1"),
    ],
)
def test_rates_that_no_image_can_reach(rate, calibration, message):
    with pytest.raises(UserError, match=message):
        detection.check_rate(rate, calibration)
    detection.check_rate(0.01, 99)


def test_discoveries_by_hand():
    # Benjamini and Hochberg: of sorted ones the last that is at most rate * rank / 5, and before.
    p = np.array([0.5, 0.01, 0.045, 0.03, 0.9])
    assert detection.discoveries(p, 0.08).tolist() == [False, True, True, True, False]
    assert detection.discoveries(p, 0.06).tolist() == [False, True, False, False, False]


def features_of(autoencoder, images):
    """By hand: codes, and the residual's root mean square, of all and of the worst 4 x 4 pixels."""
    squares = np.square(autoencoder.reconstruct(images).astype(np.float64) - images / 255)[..., 0]
    padded = np.pad(squares, ((0, 0), (2, 1), (2, 1)), "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2)).mean((3, 4))
    residuals = np.sqrt([squares.mean((1, 2)), windows.max((1, 2))]).T
    return np.concatenate([autoencoder.encode(images).reshape(len(images), -1), residuals], 1)


def test_scores_are_distances_of_whitened_features(fitted, test_images):
    autoencoder, train = fitted
    features, others = (features_of(autoencoder, images) for images in (train, test_images[:20]))
    scale = np.ones(130)
    scale[-2:] = np.sqrt(16 * features[:, :-2].var(0).mean() / features[:, -2:].var(0))
    mean = features.mean(0)
    scaled, compared = ((each - mean) * scale for each in (features, others))
    variances, directions = np.linalg.eigh(np.cov(scaled.T, bias=True))
    spread = np.sqrt(variances + 0.1 * variances.mean())
    white, whitened = (each @ directions / spread for each in (scaled, compared))
    distances, _ = spatial.KDTree(white).query(whitened, 5)
    scores = autoencoder.score(test_images[:20])
    np.testing.assert_allclose(scores.score_N, np.square(distances).mean(1), rtol=1e-3)
    assert scores.p_N.min() >= 1 / 151
    assert scores.p_N.max() <= 1
    by_residual = autoencoder.score(test_images[:20], "residual")
    np.testing.assert_allclose(by_residual.score_N, others[:, -1], rtol=1e-4)
    assert (np.argsort(by_residual.p_N, kind="stable") == np.argsort(-others[:, -1])).mean() > 0.8
    assert autoencoder.score(np.zeros((0, 28, 28), np.uint8)).p_N.shape == (0,)


def test_it_tells_other_images(fitted, test_images):
    autoencoder, _ = fitted
    others = 255 - test_images[150:200]
    assert (autoencoder.score(others).p_N <= 0.01).mean() > 0.9
    assert (autoencoder.score(others, "residual").p_N <= 0.02).mean() > 0.5
    alarms = autoencoder.score(test_images[150:550]).p_N <= 0.1
    assert alarms.mean() == pytest.approx(0.1, abs=0.07)


def test_maps_are_white_where_a_defect_is(fitted, test_images):
    autoencoder, _ = fitted
    images = test_images[150:160].copy()
    images[:, 2:5, 3:6] = 255
    maps = autoencoder.anomaly_maps(images)
    assert maps.shape == (10, 28, 28)
    assert (maps[:, 2:5, 3:6].mean((1, 2)) > 10 * maps.mean((1, 2))).all()
    residuals = np.abs(autoencoder.reconstruct(test_images[:150]) - test_images[:150] / 255)
    above = residuals > autoencoder.detector.limit_HxWxC + 1 / 255
    assert above.mean() < 0.01


def test_a_detector_belongs_to_the_parameters(fitted):
    autoencoder, _ = fitted
    again = pickle.loads(pickle.dumps(autoencoder))
    np.testing.assert_array_equal(again.detector.code_M, autoencoder.detector.code_M)
    assert autoencoder.of_pixels.detector is autoencoder.detector
    other = autoencoder.with_params(autoencoder.config, autoencoder.params)
    with pytest.raises(UserError, match="has no detector; `cae-jax score` fits one"):
        other.score(np.zeros((1, 28, 28), np.uint8))


def test_equal_images():
    scores = detection._distances(np.ones((3, 2)), np.ones((1, 2)))
    assert scores.tolist() == [0, 0, 0]
    assert np.isfinite(detection._whitening(np.zeros((4, 5)))).all()
