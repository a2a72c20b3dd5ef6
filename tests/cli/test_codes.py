"""The commands encode and decode."""

import struct

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax.data.sources import named
from tests.helpers import assert_fails_in_one_line


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def save(folder, images):
    """Images as PNG files by their names."""
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_a_folder_of_images_and_back(color_run, command, tmp_path):
    run, images = color_run
    names = ["a.png", "b/a.png", "b/ä.bmp", "b/same.png", "b/same.bmp"]
    save(tmp_path / "in", dict(zip(names, images, strict=False)))
    encoded = command("encode", run, "in", "--out", "codes.npz")
    size = (tmp_path / "codes.npz").stat().st_size
    summary = f": 5 images, {size:,} bytes, {size / 5:,.1f} bytes per image\n"
    assert (encoded.stdout, encoded.stderr) == (f"codes.npz{summary}", "")
    autoencoder = cae_jax.load(run)
    with np.load(tmp_path / "codes.npz") as file:
        found = dict(zip(file["names"].tolist(), file["codes"], strict=True))
    assert sorted(found) == sorted(names)
    for name, image in zip(names, images, strict=False):
        np.testing.assert_allclose(found[name], autoencoder.encode(image)[0], rtol=1e-5, atol=1e-5)
    decoded = command("decode", run, "codes.npz", "--out", "out/new")
    assert decoded.stdout == f"out/new{summary}"
    outputs = ["a.png", "b/a.png", "b/ä.png", "b/same.png.png", "b/same.bmp.png"]
    there = [path for path in (tmp_path / "out" / "new").rglob("*") if path.is_file()]
    assert len(there) == 5
    expected = np.rint(autoencoder.reconstruct(images[:5]) * 255)
    for name, image in zip(outputs, expected, strict=True):
        difference = pixels(tmp_path / "out" / "new" / name) - image
        assert np.abs(difference).max() <= 1  # where a rounding falls the other way


def test_quantised_codes_of_the_best_checkpoint(dense_run, command, tmp_path, test_images):
    np.save(tmp_path / "some.npy", test_images[:300])
    floats, eight = (
        command("encode", dense_run, "some.npy", "--best", "--out", f"{i}.npz", *bits).stdout
        for i, bits in enumerate(((), ("--bits", 8)))
    )
    sizes = [int(text.split()[3].replace(",", "")) for text in (floats, eight)]
    assert sizes[1] < sizes[0] / 2  # many codes of this network are 0
    with np.load(tmp_path / "1.npz") as file:
        codes = file["codes"] * file["scale"]
        assert file["names"][299] == "some[299]"
    expected = cae_jax.load(dense_run, best=True).encode(test_images[:300])
    assert (np.abs(codes - expected).max(axis=0) <= expected.max(axis=0) / 255 * 0.501).all()
    command("decode", dense_run, "1.npz", "--best", "--out", "out")
    image = pixels(tmp_path / "out" / "some[7].png")
    decoded = cae_jax.load(dense_run, best=True).decode(codes[7:8])[0, ..., 0]
    assert np.abs(image - decoded * 255).max() < 1


def test_a_shipped_model_and_a_shipped_data_set(command, tmp_path, test_images, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    for split, images in (("train", test_images[:6]), ("t10k", test_images[6:10])):
        content = struct.pack(">4I", 0x0803, len(images), 28, 28) + images.tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(content)
    monkeypatch.setitem(named.SHIPPED, "fashion_mnist", folder)
    model = "pretrained/fashion_mnist"
    command("encode", model, "fashion_mnist", "--out", "codes.npz")
    with np.load(tmp_path / "codes.npz") as file:
        assert file["names"].tolist()[5:7] == ["train[5]", "test[0]"]
        expected = cae_jax.load(model, backend="matmul").encode(test_images[:10])
        np.testing.assert_allclose(file["codes"], expected, rtol=1e-5, atol=1e-5)
    assert "10 images" in command("decode", model, "codes.npz", "--out", "out").stdout
    assert (tmp_path / "out" / "test[3].png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "DATA is 'nowhere', where nothing is; it takes fashion_mnist,"),
        (("a.npy", "--bits", 17), "--bits is 17; it takes a whole number from 1 to 16"),
        (("a.npy", "--out", "codes"), "--out is codes; give a name that ends in .npz"),
        (("a.npz", "--out", "a.npz"), "--out a.npz is the file of the images; give another --out"),
        (("bad",), "remove it, or pass --skip-unreadable"),
        (("a.npy", "--workers", 0), "--workers is 0"),
    ],
)
def test_encode_refuses(dense_run, refuse, tmp_path, arguments, message):
    np.save(tmp_path / "a.npy", np.zeros((2, 28, 28), np.uint8))
    np.savez(tmp_path / "a.npz", np.zeros((2, 28, 28), np.uint8))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    out = () if "--out" in arguments else ("--out", "codes.npz")
    assert_fails_in_one_line(refuse("encode", dense_run, *arguments, *out), message)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["/tmp/a", "../a", "b/../../a", "", ".", "a\0b"])
def test_decode_refuses_names_that_lead_elsewhere(dense_run, command, refuse, tmp_path, name):
    np.save(tmp_path / "a.npy", np.full((3, 28, 28), 200, np.uint8))
    command("encode", dense_run, "a.npy", "--out", "codes.npz")
    with np.load(tmp_path / "codes.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "codes.npz", **{**arrays, "names": np.array(["x", name, "y"])})
    process = refuse("decode", dense_run, "codes.npz", "--out", "out")
    assert_fails_in_one_line(process, f"{name!r}, which is no path within --out")
    np.savez(tmp_path / "codes.npz", **{**arrays, "names": np.array(["x", "y", "x"])})
    process = refuse("decode", dense_run, "codes.npz", "--out", "out")
    assert_fails_in_one_line(process, "2 images would become out/x.png")
    assert not (tmp_path / "out").exists()


def test_decode_refuses_codes_of_another_run(dense_run, command, refuse, tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 28, 28), 200, np.uint8))
    command("encode", "pretrained/simple", "a.npy", "--out", "codes.npz")
    process = refuse("decode", dense_run, "codes.npz", "--out", "out")
    assert_fails_in_one_line(process, "codes.npz has codes of other parameters than")
    assert "and --best as then" in process.stderr
    process = refuse("decode", dense_run, "a.npy", "--out", "out")
    assert_fails_in_one_line(process, "a.npy is not an intact file of codes")
    (tmp_path / "file").touch()
    process = refuse("decode", dense_run, "codes.npz", "--out", "file")
    assert_fails_in_one_line(process, "file cannot be written")
