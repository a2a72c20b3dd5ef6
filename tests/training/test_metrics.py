"""Metrics against NumPy in float64 and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from cae_jax.training import metrics


@pytest.fixture
def pair(test_images):
    """Five real images and noisy versions of them, float32 [5, 28, 28, 1] in [0, 1]."""
    targets = test_images[:5].astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.1, targets.shape)
    return np.clip(targets + noise, 0, 1).astype(np.float32), targets


def test_bce_by_hand(pair):
    logits = np.random.default_rng(0).normal(0, 3, pair[1].shape).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    t = pair[1].astype(np.float64)
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(metrics.bce(logits, pair[1]), expected, rtol=1e-5)


def test_bce_is_finite_for_extreme_logits():
    logits = jnp.array([-1e30, -200.0, 200.0, 1e30]).reshape(4, 1, 1, 1)
    wrong = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(metrics.bce(logits, wrong), [1e30, 200, 200, 1e30])
    np.testing.assert_allclose(metrics.bce(logits, 1 - wrong), 0, atol=1e-30)


def test_mse_and_psnr_as_scikit_image(pair):
    images, targets = pair
    for i in range(5):
        mse = skimage_metrics.mean_squared_error(targets[i], images[i])
        psnr = skimage_metrics.peak_signal_noise_ratio(targets[i], images[i], data_range=1)
        assert metrics.mse(images, targets)[i] == pytest.approx(mse, rel=1e-5)
        assert metrics.psnr(images, targets)[i] == pytest.approx(psnr, rel=1e-5)


def test_ssim_as_scikit_image(pair):
    images, targets = pair
    ours = metrics.ssim(images, targets)
    for i in range(5):
        expected = skimage_metrics.structural_similarity(
            targets[i, :, :, 0].astype(np.float64),
            images[i, :, :, 0].astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        # float32 against float64: variances are differences of nearly equal numbers
        assert ours[i] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (4, 30), (10, 12), (16, 13)])
@pytest.mark.parametrize("channels", [1, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_ssim_of_small_and_colored_images(size, channels):
    """scikit-image derives the window's radius from the standard deviation, 3.5 times which it is.

    At the border it mirrors the image, where ours has windows that lie within it alone.
    """
    rng = np.random.default_rng(0)
    targets = rng.random((2, *size, channels), np.float32)
    images = np.clip(targets + rng.normal(0, 0.2, targets.shape), 0, 1).astype(np.float32)
    window = min(11, min(size) - 1 + min(size) % 2)
    ours = jax.jit(metrics.ssim)(images, targets)
    for i in range(2):
        expected = skimage_metrics.structural_similarity(
            targets[i].astype(np.float64),
            images[i].astype(np.float64),
            win_size=window,
            gaussian_weights=True,
            sigma=1.5 * window / 11,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        assert ours[i] == pytest.approx(expected, abs=2e-4)
