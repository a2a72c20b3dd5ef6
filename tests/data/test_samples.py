"""The sample image sets, by counts that are worked out by hand."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import samples
from cae_jax.errors import UserError


def test_the_sets(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "samples"
    some = {
        "skimage.data": ("astronaut.png",),
        "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
    }
    monkeypatch.setattr(samples, "PHOTOGRAPHS", some)  # all of them take ten times as long
    monkeypatch.setattr(sys, "argv", ["samples.py", str(folder), "--crops", "5"])
    samples.main()
    # 512 x 512 pixels are 8 x 8 patches of 64, 427 x 640 are 6 x 10.
    for name, count in (("astronaut", 64), ("china", 60), ("flower", 60)):
        files = list((folder / "photographs" / name).iterdir())
        assert len(files) == count
        with Image.open(files[0]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
    with np.load(folder / "digits.npz") as digits:
        assert digits["x_train"].shape == (1617, 8, 8)
        assert digits["x_test"].shape == (180, 8, 8)
        assert digits["x_train"].max() == 255
    with np.load(folder / "faces.npz") as faces:
        assert [len(faces[f"{name}_images"]) for name in ("train", "val", "test")] == [140, 20, 40]
        assert sum(faces[f"{name}_labels"].sum() for name in ("train", "val", "test")) == 100
    assert np.load(folder / "textures.npy").shape == (3 * 18**2, 28, 28)
    crops = np.load(folder / "crops.npy")
    assert (crops.shape, crops.dtype) == ((5, 64, 64, 3), np.uint8)
    assert len(np.unique(crops, axis=0)) == 5
    recolored = samples.crops(5, 64, recolor=True)
    assert len(np.unique(np.concatenate([crops, recolored]), axis=0)) == 10
    capsys.readouterr()
    with pytest.raises(SystemExit):
        samples.main()
    assert "exists; give a new one" in capsys.readouterr().err


def test_patches_of_other_photographs(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 2400).astype(np.uint8), (1300, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.JPG")
    (photograph,) = samples.others(tmp_path)
    assert (photograph.size, photograph.mode) == ((2215, 1200), "RGB")  # 1300 to 1200 rows
    patches = samples.crops(20, 64, [photograph])
    # A patch has between 64 and 256 columns of 2215, which have 0 to 255.
    ranges = np.ptp(patches.astype(int), axis=(1, 2, 3))
    assert 6 < ranges.min() < 15
    assert 20 < ranges.max() < 32
    assert {bool(x[0, 0, 0] < x[0, -1, 0]) for x in patches} == {False, True}  # mirrored
    Image.fromarray(ramp[:200]).save(tmp_path / "small.jpg")
    with pytest.raises(UserError, match=r"small\.jpg has a side of 200 pixels; it takes 300"):
        samples.others(tmp_path)
    with pytest.raises(UserError, match="no JPEG files"):
        samples.others(tmp_path / "empty")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--recolor",), "--photographs and --recolor are for --crops"),
        (("--crops", "3", "--photographs", "nowhere"), "no JPEG files in"),
    ],
)
def test_refused_flags_write_nothing(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["samples.py", "new", *flags])
    with pytest.raises(SystemExit) as stop:
        samples.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
