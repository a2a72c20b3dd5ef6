"""The sample image sets, by counts that are worked out by hand."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import samples


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
    capsys.readouterr()
    with pytest.raises(SystemExit):
        samples.main()
    assert "exists; give a new one" in capsys.readouterr().err
