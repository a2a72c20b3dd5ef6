"""Principal components, against NumPy's singular values of all images."""

import numpy as np
import pytest

from cae_jax.evaluation import linear


@pytest.fixture(scope="module")
def train(test_images):
    return test_images[:800]


@pytest.mark.parametrize("size", [4, 32])
def test_it_is_the_best_linear_code_of_its_size(train, test_images, size):
    flat, others = train.reshape(800, -1) / 255, test_images[800:900]
    mean = flat.mean(0)
    _, singular, directions = np.linalg.svd(flat - mean, full_matrices=False)
    fitted = linear.fit(train, size)
    ours = np.square((flat - mean) @ fitted.basis_VxK.astype(float)).sum(0)
    np.testing.assert_allclose(ours[:4], singular[:4] ** 2, rtol=1e-4)
    assert ours.sum() == pytest.approx((singular[:size] ** 2).sum(), rel=1e-3)
    basis = directions[:size].T
    exact = np.clip((others.reshape(100, -1) / 255 - mean) @ basis @ basis.T + mean, 0, 1)
    outputs = fitted.reconstruct(others)
    assert outputs.shape == others.shape
    assert outputs.dtype == np.float32
    assert (outputs.min(), outputs.max()) >= (0, 0.9)
    errors = [
        np.square(x.reshape(100, -1) - others.reshape(100, -1) / 255).mean()
        for x in (outputs, exact)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)
    assert fitted.parameters == 784 + 784 * size


def test_the_first_components_are_those_of_a_smaller_code(train):
    whole, small = linear.fit(train, 40), linear.fit(train, 3)
    np.testing.assert_allclose(
        np.abs(whole.first(3).basis_VxK.T @ small.basis_VxK), np.eye(3), atol=2e-3
    )
    assert whole.first(50).parameters == whole.parameters


def test_images_are_read_in_blocks(train, monkeypatch):
    whole = linear.fit(train, 8).reconstruct(train)
    monkeypatch.setattr(linear, "_BLOCK", 784 * 300)
    np.testing.assert_allclose(
        linear.fit(train, 8).reconstruct(train / np.float32(255)), whole, atol=1e-5
    )


@pytest.mark.parametrize(("images", "size"), [(50, 4), (1, 2)])
def test_a_code_of_all_values_loses_nothing(images, size):
    pixels = np.random.default_rng(0).integers(0, 256, (images, 2, 2, 1)).astype(np.uint8)
    np.testing.assert_allclose(linear.fit(pixels, 10).reconstruct(pixels), pixels / 255, atol=1e-6)
    assert linear.fit(pixels, size).basis_VxK.shape == (4, size)


def test_what_takes_minutes_is_not_cheap():
    assert linear.is_cheap(np.broadcast_to(np.uint8(0), (60_000, 28, 28, 1)), 256)
    assert not linear.is_cheap(np.broadcast_to(np.uint8(0), (60_000, 256, 256, 3)), 512)
