"""The comparison of sizes: differences of curves that are known, and sizes without headers."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import rate
from benchmarks.rate import Point
from tests.training.test_rate import RATED


def points(method, sizes, psnrs):
    return [Point(method, "", s + 100, s, q, 0.5) for s, q in zip(sizes, psnrs, strict=True)]


def test_differences_of_known_curves():
    sizes = np.array([10, 20, 40, 80.0])
    psnrs = 3 * np.log2(sizes)
    ours = points("ours", sizes, psnrs + 1.5)
    gain, size = rate.bjontegaard(ours, points("theirs", sizes, psnrs))
    assert gain == pytest.approx(1.5)
    # 1.5 dB are half a doubling of the size.
    assert size == pytest.approx(100 * (2**-0.5 - 1))
    assert rate.bjontegaard(ours, points("theirs", sizes * 100, psnrs)) is None
    assert rate.bjontegaard(ours, ours[:1]) is None


def test_a_curve_is_read_between_its_points():
    found = rate.curve(points("a", [40, 10, 20, 25], [9, 3, 6, 5]), "a")
    assert [point.bare for point in found] == [10, 20, 40]  # 25 bytes are worse than 20
    assert rate.at(found, 20) == pytest.approx(6)
    assert 6 < rate.at(found, 30) < 9
    assert rate.at(found, 9) is None
    assert rate.at(found, 110, whole=True) == pytest.approx(3)
    assert rate.at(found, 30, metric="ssim") == pytest.approx(0.5)


@pytest.mark.parametrize("name", rate.FORMATS)
def test_the_data_of_a_file_are_a_part_that_grows_with_the_image(name, test_images):
    form, option, values = rate.FORMATS[name]
    flat = np.zeros((1, 28, 28, 1), np.uint8)
    (small,) = rate.of_format(name, form, option, values[-1:], flat)
    (large,) = rate.of_format(name, form, option, values[-1:], test_images[:1])
    assert 0 <= small.bare < 40 < large.bare < large.bytes
    assert large.psnr > 30


def test_a_smaller_file_is_enlarged_again(test_images):
    # A ramp, which smaller images show as well.
    ramp = np.tile(np.arange(28, dtype=np.uint8) * 9, (1, 28, 1))[..., None]
    whole, half = (
        next(rate.of_format("AVIF", "AVIF", "quality", (90,), ramp, scale)) for scale in (1, 2)
    )
    assert (whole.method, half.method) == ("AVIF", "AVIF, 1/2")
    assert half.bare < whole.bare
    assert half.psnr > 30
    (busy,) = rate.of_format("AVIF", "AVIF", "quality", (90,), test_images[:1], 2)
    assert busy.psnr < 30  # what was between the pixels is gone


def test_the_data_of_a_jpeg_file_follow_its_only_scan():
    content = io.BytesIO()
    Image.new("L", (8, 8), 128).save(content, "JPEG")
    # One block of DC 0 and no AC: two bits of code for DC, four for the end, padded to a byte.
    assert rate.jpeg_data(content.getvalue()) == 1


def test_fine_steps_of_pca_leave_the_images(test_images):
    images = test_images[:40]
    coarse, fine = (list(rate.of_pca(images, images))[i] for i in (0, -1))
    assert fine.psnr > coarse.psnr + 5
    assert fine.bare > coarse.bare


@pytest.mark.slow
def test_a_run_is_compared(shared_run, script, tmp_path):
    run = shared_run("rated", RATED)
    flags = ("--images", 8, "--effort", 1, "--json", "rate.json", "--figure", "rate.png")
    done = script("benchmarks.rate", run, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rate.json").read_text())["points"]
    names = [rate.ENCODER, rate.LEARNED, rate.SINGLE, rate.PCA, "BlurHash", "ThumbHash"]
    names += [name + scale for name in rate.FORMATS for scale in ("", ", 1/2", ", 1/4")]
    assert list(dict.fromkeys(point["method"] for point in found)) == names
    assert (tmp_path / "rate.png").stat().st_size > 1000
