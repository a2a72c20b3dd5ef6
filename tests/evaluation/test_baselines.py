"""Classical denoisers: what is tuned, what they take off real images."""

import contextlib
import types

import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics, restoration

from cae_jax.evaluation import baselines
from cae_jax.evaluation.lazy import Lazy


class InThisProcess:
    def map(self, function, images, chunksize):
        return map(function, images)


def scaled(image, gain, power):
    return gain * image**power


def test_tuning_finds_the_parameters_and_the_affine_map(monkeypatch, test_images):
    clean = test_images[:20] / 255
    distorted = np.sqrt(0.5 * clean)
    grid = [{"gain": gain, "power": power} for gain in (1.0, 3.0) for power in (0.5, 1.0, 2.0)]
    monkeypatch.setitem(baselines.DENOISERS, "scaled", (scaled, grid))
    tuned = baselines.tune("scaled", distorted, clean, InThisProcess())
    # Only a power of 2 undoes the root; the affine map undoes its gain of 0.5.
    assert tuned.parameters == {"gain": 1.0, "power": 2.0}
    assert (tuned.slope, tuned.offset) == pytest.approx((2, 0), abs=1e-9)
    restored = baselines.denoise(tuned, distorted, InThisProcess())
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, clean, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((28, 28, 1), 200),
        ((8, 8, 3), 200),
        ((32, 32, 3), 51),
        ((64, 64, 3), 12),
        ((512, 512, 3), 12),
    ],
)
def test_larger_images_take_fewer_for_tuning(shape, count):
    assert baselines.tuning_images(shape) == count


def test_a_line_and_a_bar_say_how_long_it_takes(tmp_path, monkeypatch, test_images, capsys):
    grid = [{"gain": 1.0, "power": power} for power in (1.0, 2.0, 3.0)]
    monkeypatch.setattr(baselines, "DENOISERS", {"scaled": (scaled, grid)})
    monkeypatch.setattr(baselines, "workers", lambda: contextlib.nullcontext(InThisProcess()))
    steps = []

    def bar(total, **_):
        return types.SimpleNamespace(update=lambda: steps.append(total))

    monkeypatch.setattr(baselines, "tqdm", lambda **options: contextlib.nullcontext(bar(**options)))
    images = np.repeat(test_images[:7], 3, axis=-1)
    [(name, settings, outputs)] = baselines.denoise_all(
        tmp_path, images[:4] / 255, images[:4], images / 255
    )
    assert (name, settings) == ("scaled", "gain 1.0, power 1.0")
    np.testing.assert_allclose(outputs, images / 255, atol=1e-6)
    assert steps == [57] * 57  # three channels of four images by three parameters, and of seven
    assert capsys.readouterr().out == "Denoising by scaled, about 0 s\n"


def test_many_images_are_denoised_in_parts(tmp_path, monkeypatch, test_images):
    """The same values, from files as earlier versions wrote them by NumPy."""
    grid = [{"gain": 1.0, "power": power} for power in (1.0, 2.0)]
    monkeypatch.setattr(baselines, "DENOISERS", {"scaled": (scaled, grid)})
    monkeypatch.setattr(baselines, "workers", lambda: contextlib.nullcontext(InThisProcess()))
    clean = test_images[:7]
    taken = []

    def half(part):
        taken.append(len(clean[part]))
        return (clean[part] / 510).astype(np.float32)

    lazy = Lazy(clean.shape, half)
    monkeypatch.setattr(baselines, "_PART_VALUES", 3 * 784)
    [(_, settings, outputs)] = baselines.denoise_all(tmp_path, clean[:4] / 510, clean[:4], lazy)
    assert max(taken) == 3
    tuned = baselines.tune("scaled", clean[:4] / 510, clean[:4] / 255, InThisProcess())
    expected = baselines.denoise(tuned, half(slice(0, 7)), InThisProcess())
    for part in (slice(0, 7), slice(2, 5), np.array([6, 1])):
        np.testing.assert_array_equal(outputs[part], expected[part])
    [file] = tmp_path.iterdir()
    with np.load(file) as written:
        np.testing.assert_array_equal(written["pictures"], expected)
        np.savez(file, pictures=written["pictures"] / 2, tuned=written["tuned"])
    inputs = np.asarray(lazy)
    [again] = baselines.denoise_all(tmp_path, clean[:4] / 510, clean[:4], inputs)
    assert again[:2] == ("scaled", settings)
    np.testing.assert_array_equal(again[2], expected / 2)


def psnr(images, clean):
    pairs = zip(images, clean, strict=True)
    return np.mean([metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in pairs])


@pytest.mark.slow
def test_each_method_takes_noise_off(test_images, monkeypatch):
    clean = test_images[:12] / 255
    noise = np.random.default_rng(0).normal(0, 0.3, clean.shape)
    noisy = np.clip(clean + noise, 0, 1)
    with baselines.workers() as executor:
        for method, (function, grid) in list(baselines.DENOISERS.items()):
            middle = grid[len(grid) // 2]
            monkeypatch.setitem(baselines.DENOISERS, method, (function, [middle]))
            tuned = baselines.tune(method, noisy, clean, executor)
            assert tuned.parameters == middle
            denoised = baselines.denoise(tuned, noisy, executor)
            assert psnr(denoised, clean) > psnr(noisy, clean) + 2, method


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (4, 30)])
def test_bm3d_takes_images_of_its_block_and_smaller_ones(shape):
    image = np.full(shape, 0.25)
    function, grid = baselines.DENOISERS["BM3D"]
    np.testing.assert_allclose(function(image, **grid[0]), image, atol=1e-3)


def test_the_parameters_reach_the_libraries(test_images):
    image = test_images[0, :, :, 0] / 255
    functions = {method: function for method, (function, _) in baselines.DENOISERS.items()}
    np.testing.assert_array_equal(
        functions["median"](image, size=5), ndimage.median_filter(image, size=(5, 5))
    )
    np.testing.assert_array_equal(
        functions["total variation"](image, weight=0.4),
        restoration.denoise_tv_chambolle(image, weight=0.4),
    )
    # One level of Haar's wavelet looks at blocks of 2 x 2 pixels: shifts by 2 change nothing.
    options = {"wavelet": "haar", "method": "VisuShrink", "wavelet_levels": 1}
    by_hand = np.zeros((28, 28))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shifted = np.roll(np.roll(image, down, axis=0), right, axis=1)
        denoised = restoration.denoise_wavelet(shifted, 0.2, **options)
        by_hand += np.roll(np.roll(denoised, -down, axis=0), -right, axis=1) / 4
    ours = functions["wavelet"](image, sigma=0.2, method="VisuShrink", levels=1)
    np.testing.assert_allclose(ours, by_hand, atol=1e-12)


def test_every_grid_has_its_functions_parameters():
    for function, grid in baselines.DENOISERS.values():
        names = set(function.__code__.co_varnames[1 : function.__code__.co_argcount])
        assert len(grid) >= 3
        assert all(set(point) == names for point in grid)


@pytest.mark.parametrize("method", ["median", "total variation", "non-local means", "wavelet"])
def test_each_channel_is_denoised_by_itself(method):
    rng = np.random.default_rng(0)
    noisy = rng.random((2, 9, 8, 3))
    function, grid = baselines.DENOISERS[method]
    tuned = baselines.Tuned(method, grid[0], 0.5, 0.1)
    denoised = baselines.denoise(tuned, noisy, InThisProcess())
    assert denoised.shape == noisy.shape
    for i, channel in np.ndindex(2, 3):
        expected = 0.5 * function(noisy[i, ..., channel], **grid[0]) + 0.1
        np.testing.assert_allclose(denoised[i, ..., channel], np.clip(expected, 0, 1), atol=1e-6)
