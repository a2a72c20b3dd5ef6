"""Noise against NumPy's, its independence, its repetition, and the levels that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cae_jax
from cae_jax.config import NOISES
from cae_jax.training.noise import build_corruption

GREYS = np.linspace(0, 1, 6, dtype=np.float32)


def numpy_noise(noise, x, level, rng):
    """The definitions of the pixelwise kinds, once more."""
    if noise == "gaussian":
        return np.clip(rng.normal(x, level), 0, 1)
    if noise == "speckle":
        return np.clip(x * rng.normal(1, level, x.shape), 0, 1)
    if noise == "poisson":
        return np.clip(rng.poisson(x * level) / level, 0, 1)
    replaced = rng.random(x.shape) < level
    colour = rng.integers(0, 2, x.shape) if noise == "salt_and_pepper" else 0
    return np.where(replaced, colour, x)


PIXELWISE = ("gaussian", "salt_and_pepper", "masking", "speckle", "poisson")
CASES = [(noise, NOISES[noise].default * share) for noise in PIXELWISE for share in (1, 0.3)]


SLOW = pytest.param("poisson", 40.0, marks=pytest.mark.slow)


@pytest.mark.parametrize(("noise", "level"), [*CASES, ("poisson", 16.0), SLOW])
def test_distribution(noise, level):
    x = np.broadcast_to(GREYS[:, None, None, None, None], (6, 150, 28, 28, 1))
    corrupt = jax.jit(build_corruption(noise, level))
    ours = np.asarray(corrupt(jax.random.key(0), x.reshape(-1, 28, 28, 1)), np.float64)
    assert ours.min() >= 0
    assert ours.max() <= 1
    theirs = numpy_noise(noise, x, level, np.random.default_rng(0))
    for a, b in zip(ours.reshape(6, -1), theirs.reshape(6, -1), strict=True):
        # Mean, variance, fractions of black and of white: five standard errors of a difference.
        centre = b.mean()
        for f, g in (
            (a, b),
            ((a - centre) ** 2, (b - centre) ** 2),
            (a == 0, b == 0),
            (a == 1, b == 1),
        ):
            error = np.sqrt((f.var() + g.var()) / a.size)
            assert abs(f.mean() - g.mean()) <= 5 * error + 1e-6


def test_occlusion_is_one_square_anywhere():
    x = jnp.full((3000, 28, 28, 1), 0.5)
    black = (
        np.asarray(jax.jit(build_corruption("occlusion", 20))(jax.random.key(0), x))[..., 0] == 0
    )
    corners = set()
    for image in black:
        rows, columns = np.nonzero(image)
        corner = (rows.min(), columns.min())
        assert image.sum() == 400
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (19, 19)
        corners.add(corner)
    # 81 places, each missed by 3000 draws with a probability of 1e-16.
    assert corners == {(i, j) for i in range(9) for j in range(9)}


@pytest.mark.slow
def test_mix_gives_each_image_one_of_all():
    x = np.full((3000, 28, 28, 1), 0.5, np.float32)
    noisy = np.asarray(build_corruption("mix")(jax.random.key(0), x))[..., 0]
    counts = dict.fromkeys(NOISES, 0)
    for image in noisy:
        counts[recognise(image)] += 1
    # 500 each, give or take five standard deviations of 20.
    assert all(400 < count < 600 for count in counts.values()), counts


def recognise(image):
    """Which noise a grey image has: from the values that it took."""
    if len(np.unique(image)) > 4:
        return "gaussian" if (image == 0).mean() > 0.12 else "speckle"  # 0.16 and 0.08
    values = set(np.unique(image).astype(np.float64).round(3).tolist())
    if values <= {0, 0.333, 0.667, 1}:
        return "poisson"
    if 1 in values:
        return "salt_and_pepper"
    return "occlusion" if (image == 0).sum() == 144 else "masking"


@pytest.mark.parametrize("noise", [*NOISES, pytest.param("mix", marks=pytest.mark.slow)])
def test_images_and_steps_are_independent_and_repeatable(noise):
    corrupt = jax.jit(build_corruption(noise))
    x = jnp.full((1000, 28, 28, 1), 0.5)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in (0, 1)]
    first, second = (np.asarray(corrupt(key, x)) for key in keys)
    assert first.tobytes() == np.asarray(corrupt(keys[0], x)).tobytes()
    # Pixel by pixel over the images, so that what is common to all images drops out. The pixels
    # of one occluding square hang together: a deviation counts as one draw an image.
    a, b = (v.reshape(1000, 784) - v.mean(axis=0).reshape(1, 784) for v in (first, second))
    draws = 1000 if noise in ("occlusion", "mix") else a.size
    for other in (b, np.roll(a, 1, axis=0)):
        assert abs((a * other).mean()) / a.var() < 5 / np.sqrt(draws)
    assert (first != second).mean() > 0.1


@pytest.mark.parametrize("channels", [3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [*NOISES, "mix"])
def test_colors(noise, channels):
    """What replaces pixels replaces whole ones; a sensor has noise in every channel."""
    x = jnp.full((200, 9, 7, channels), 0.5)
    noisy = np.asarray(build_corruption(noise)(jax.random.key(0), x))
    assert noisy.shape == x.shape
    changed = noisy != 0.5
    whole = (noisy == noisy[..., :1]).all(axis=-1)
    if noise in ("salt_and_pepper", "masking", "occlusion"):
        assert whole.all()
        assert 0.1 < changed.mean() < 0.7
    elif noise != "mix":
        centered = noisy - noisy.mean()
        products = (centered[..., 0] * centered[..., 1]).mean() / noisy.var()
        assert abs(products) < 5 / np.sqrt(whole.size)


@pytest.mark.parametrize("noise", ["salt_and_pepper", "masking", "occlusion"])
def test_colors_lose_the_pixels_that_gray_images_lose(noise):
    x = jnp.full((20, 9, 7, 3), 0.5)
    corrupt = build_corruption(noise)
    gray = np.asarray(corrupt(jax.random.key(0), x[..., :1]))
    np.testing.assert_array_equal(corrupt(jax.random.key(0), x), np.repeat(gray, 3, axis=-1))


@pytest.mark.parametrize(("height", "width", "side"), [(28, 28, 12), (8, 30, 4), (5, 5, 2)])
def test_the_square_leaves_something_of_small_images(height, width, side):
    x = jnp.full((3, height, width, 1), 0.5)
    noisy = np.asarray(build_corruption("occlusion")(jax.random.key(0), x))
    assert (noisy == 0).sum(axis=(1, 2, 3)).tolist() == [side**2] * 3


def test_none_is_no_corruption():
    assert build_corruption("none") is None


@pytest.mark.parametrize(
    ("noise", "level", "message"),
    [
        ("gaussian", -0.1, "from 0 to 1000: standard deviation"),
        ("gaussian", float("nan"), "from 0 to 1000"),
        ("masking", 1.5, "from 0 to 1: fraction"),
        ("poisson", 0.0, "from 0.001"),
        ("occlusion", 0.0, "whole number of at least 1: side"),
        ("occlusion", 2.5, "whole number of at least 1: side"),
        ("occlusion", float("inf"), "whole number of at least 1: side"),
        ("mix", 0.5, "noise mix takes none"),
        ("none", 0.5, "noise none takes none"),
        ("fog", None, "it takes none, gaussian"),
    ],
)
def test_levels_out_of_range_are_refused(noise, level, message):
    with pytest.raises(cae_jax.UserError, match=message):
        build_corruption(noise, level)


@pytest.mark.parametrize(("height", "width", "most"), [(28, 28, 28), (20, 30, 20), (30, 9, 9)])
def test_a_square_larger_than_the_images_is_refused(height, width, most):
    x = jnp.ones((2, height, width, 1))
    black = np.asarray(build_corruption("occlusion", most)(jax.random.key(0), x)) == 0
    assert black.sum(axis=(1, 2, 3)).tolist() == [most**2] * 2
    with pytest.raises(cae_jax.UserError, match=f"whole number from 1 to {most}: side"):
        build_corruption("occlusion", most + 1)(jax.random.key(0), x)
