"""Placeholders of images: bytes and pixels that other implementations have, sizes, limits."""

import sys

import numpy as np
import pytest

from benchmarks import placeholders, rate
from cae_jax.errors import UserError


@pytest.fixture
def image():
    """Colors that differ in both directions: uint8 ``[16, 16, 3]``."""
    y, x = np.mgrid[:16, :16]
    red, green, blue = x * y % 71 + x * 8, x * x % 89 + x * y // 3 + y * 5, x * y % 97 + 30
    return np.stack([red, green, blue], -1).astype(np.uint8)


def test_a_thumb_hash_is_that_of_another_implementation(image):
    # By thumbhash 0.1.2, which was written for Python independently.
    expected = "d4f809270a50867783887886786778777877074798936f06"
    assert [each.hex() for each in placeholders.thumb_hash(image[None])] == [expected]
    # By thumbhash-python 1.0.1, at four places of 32 x 32.
    shown = placeholders.from_thumb_hash([bytes.fromhex(expected)], 32)[0]
    corners = [shown[0, 0], shown[31, 0], shown[5, 20], shown[31, 31]]
    assert np.array_equal(corners, [[0, 0, 7], [10, 84, 38], [112, 68, 56], [138, 172, 59]])


def test_a_black_image_has_hashes():
    black = np.zeros((1, 28, 28, 3), np.uint8)
    shown = placeholders.from_thumb_hash(placeholders.thumb_hash(black), 28)
    assert shown.max() == 3  # six bits of red minus green have no zero


def test_sizes_of_placeholders(test_images):
    points = {p.setting: p for p in rate.of_placeholders(test_images[:4])}
    # A letter for the number of components, one for the largest, four for the mean, two for each.
    assert points["4 x 3 components"].bytes == 28
    assert points["4 x 3 components"].bare == pytest.approx(28 * np.log2(83) / 8)
    assert points["-"].bytes == points["-"].bare == 24  # ThumbHash
    assert 8 < points["3 x 3 components"].psnr < points["6 x 6 components"].psnr < 25


def test_no_placeholder_has_transparency():
    assert not list(rate.of_placeholders(np.zeros((1, 8, 8, 4), np.uint8)))


def test_the_library_of_blur_hash_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "blurhash", None)
    with pytest.raises(UserError, match=r"blurhash is missing; pip install .*placeholders"):
        placeholders.blur_library()
