"""Intervals against SciPy's bootstrap, normal theory and cases that can be counted by hand."""

import numpy as np
import pytest
from scipy import stats

from cae_jax.evaluation import intervals
from cae_jax.evaluation.intervals import difference_interval, mean_interval


def test_one_run_as_scipy_and_as_normal_theory():
    values = np.random.default_rng(0).gamma(2.0, size=4000)
    ours = mean_interval(values[None])
    scipy = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", batch=100, random_state=1
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    error = values.std() / np.sqrt(len(values))
    # A percentile of 2000 resamples is known to about a twelfth of a standard error.
    assert ours[1:] == pytest.approx(tuple(scipy), abs=0.2 * error)
    assert ours[1:] == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )


def test_runs_without_scatter_over_the_images_as_student():
    values = np.repeat([[0.0], [3.0], [6.0], [5.0]], 50, axis=1)
    runs = values[:, 0]
    low, high = stats.t.interval(0.95, 3, loc=runs.mean(), scale=stats.sem(runs))
    width = high - low
    assert mean_interval(values) == pytest.approx((3.5, low, high), abs=0.1 * width)


def test_an_interval_covers_in_95_of_100_cases():
    # Runs and images both matter: standard errors of 0.45 and 0.5 around a true mean of 0.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = rng.normal(size=(5, 1)) + 10 * rng.normal(size=(1, 400))
        _, low, high = mean_interval(values)
        covered += low < 0 < high
    # 380, give or take three standard deviations of 4.4.
    assert 367 <= covered <= 393


def test_differences_are_paired():
    a = np.random.default_rng(0).normal(20, 3, (2, 500))
    # What all images share cancels, however much they scatter.
    assert difference_interval(a[:1], a[:1] - 0.5) == pytest.approx((0.5, 0.5, 0.5), abs=1e-5)
    b = a[:1] - 0.5 + np.random.default_rng(1).normal(0, 0.1, (1, 500))
    mean, low, high = difference_interval(a[:1], b)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(500), rel=0.15)
    assert low < 0.5 < high
    assert mean == pytest.approx(a[0].mean() - b.mean())


def test_many_images_are_resampled_in_parts_to_the_same_bits(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 3, 1000))
    expected = difference_interval(*values), mean_interval(values[0])
    intervals._resampled.cache_clear()
    monkeypatch.setattr(intervals, "_MOST_WEIGHTS", 100_000)  # of 2,000,000
    monkeypatch.setattr(intervals, "_kept", None)
    assert (difference_interval(*values), mean_interval(values[0])) == expected


def test_the_same_again():
    values = np.random.default_rng(0).normal(size=(3, 100))
    assert mean_interval(values) == mean_interval(values.copy())
