"""Compressed files: what is refused, and that they decompress alike on all backends."""

import dataclasses
import json
import shutil
import zlib

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import cae_jax
from cae_jax.interop import cae, export, keras
from cae_jax.models import autoencoders
from cae_jax.models.coding import Tables
from cae_jax.ops.backend import MATMUL, XLA
from cae_jax.runs import tables
from cae_jax.runs.pretrained import WEIGHTS
from tests.helpers import assert_fails_in_one_line
from tests.training.test_rate import RATED


@pytest.fixture(scope="module")
def rated(shared_run):
    """A run of the config RATED."""
    return shared_run("rated", RATED)


@pytest.fixture
def file(rated, command, test_images, tmp_path):
    """Five images, compressed."""
    np.save(tmp_path / "shirts.npy", test_images[:4])
    PIL.Image.fromarray(test_images[4, :, :, 0]).save(tmp_path / "boot.png")
    files = tmp_path / "shirts.npy", tmp_path / "boot.png"
    done = command("compress", rated, *files, "--out", "images.cae", "--effort", 0)
    assert done.returncode == 0, done.stderr
    assert "images.cae: 5 images in" in done.stdout
    return tmp_path / "images.cae"


def test_images_come_back_as_they_are_reconstructed(rated, file, command, test_images):
    done = command("decompress", rated, file, "--out", "out")
    assert done.returncode == 0, done.stderr
    names = [f"shirts-{i:04}.png" for i in range(4)] + ["boot.png"]
    out = file.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    pixels = np.stack([np.asarray(PIL.Image.open(out / name)) for name in names])
    expected = cae_jax.load(rated).reconstruct(test_images[:5])[..., 0]
    assert np.abs(pixels - np.rint(255 * expected)).max() <= 1


def test_pixels_agree_between_backends(test_images):
    """Of a network whose layers the backends compute in different ways."""
    config = dataclasses.replace(RATED, model="conv", widths=None, features=(4, 4, 3))
    model = autoencoders.build(config, nnx.Rngs(0))
    one, other = (cae_jax.Autoencoder(config, model, backend) for backend in (MATMUL, XLA))
    kept = {5: Tables.of(model)}
    codes = one.encode(test_images[:50])
    content = cae.compress(one, kept[5], codes, [("all", 50)])
    pixels = []
    for each in (one, other):
        _, decoded = cae.decompress(content, "file", each, kept)
        np.testing.assert_array_equal(decoded, codes)
        pixels.append(np.rint(255 * each.decode(decoded)))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_a_quality_is_a_step(rated, command, test_images, tmp_path):
    np.save(tmp_path / "shirts.npy", test_images[:50])
    sizes, autoencoder = [], cae_jax.load(rated)
    for quality, step in ((2, 2.8), (5, 1), (7, 0.5)):
        flags = ("--effort", 0, "--quality", quality)
        done = command("compress", rated, "shirts.npy", "--out", "out.cae", *flags)
        assert done.returncode == 0, done.stderr
        content = (tmp_path / "out.cae").read_bytes()
        sizes.append(len(content))
        _, codes = cae.decompress(content, "", autoencoder, tables.read(rated, autoencoder))
        latents = np.asarray(autoencoder.model.latents(test_images[:50]))
        assert np.abs(codes - latents).max() <= step / 2 + 1e-4
    assert sizes == sorted(sizes)


def test_cut_or_changed_files_are_refused(file):
    content = file.read_bytes()
    found = cae.parse(content, "file")
    assert found.sources == [("shirts", 4), ("boot", 0)]
    assert found.image_shape == (28, 28, 1)
    for length in range(4, len(content)):
        with pytest.raises(cae_jax.UserError, match="file was cut or changed"):
            cae.parse(content[:length], "file")
    for place in range(3, len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 if place == 3 else 1 + place % 255
        with pytest.raises(cae_jax.UserError, match="file was cut or changed"):
            cae.parse(bytes(changed), "file")
    with pytest.raises(cae_jax.UserError, match="cut or changed"):
        cae.parse(content + b"\0", "file")


@pytest.mark.parametrize(
    "sources", [[["../shirt", 0]], [["/shirt", 0]], [["", 0]], [["a", -1], ["b", 2]], [["a", 9]], 3]
)
def test_names_that_lead_elsewhere_are_refused(file, sources):
    content = file.read_bytes()
    *_, header, _, stream = _parts(content)
    names = zlib.compress(json.dumps(sources).encode(), wbits=-15)
    header = header[:-1] + bytes([1])  # one image
    forged = content[:4] + b"".join(map(cae._part, (header, names, stream)))
    with pytest.raises(cae_jax.UserError, match="cut or changed"):
        cae.parse(forged, "file")


def _parts(content):
    start, parts = 4, []
    while start < len(content):
        part, start = cae._take(content, start)
        parts.append(part)
    return parts


def test_other_files_and_other_runs_are_refused(rated, file, refuse, tmp_path):
    header, *parts = _parts(file.read_bytes())
    other = tmp_path / "other.cae"
    other.write_bytes(b"CAE\x01" + b"".join(map(cae._part, (b"otherrun" + header[8:], *parts))))
    unfinished = tmp_path / "copy"
    shutil.copytree(rated, unfinished)
    (unfinished / "tables.npz").unlink()
    damaged = tmp_path / "damaged"
    shutil.copytree(rated, damaged)
    (damaged / "tables.npz").write_bytes(b"PK")
    later = tmp_path / "later.cae"
    later.write_bytes(b"CAE\x09" + file.read_bytes()[4:])
    cases = [
        (rated, tmp_path / "boot.png", "boot.png is not a .cae file"),
        (rated, tmp_path / "none.cae", "none.cae is not a file that can be read"),
        (rated, later, "later.cae has format 9 and this version reads 1"),
        (rated, other, "other.cae was compressed by another run"),
        (unfinished, file, "tables.npz is missing"),
        (damaged, file, "tables.npz is not a file of tables"),
    ]
    for run, path, message in cases:
        assert_fails_in_one_line(refuse("decompress", run, path, "--out", "out"), message)
    assert not (tmp_path / "out").exists()


def test_compression_refuses_what_it_cannot_do(dense_run, rated, refuse, tmp_path, monkeypatch):
    PIL.Image.new("L", (28, 28)).save(tmp_path / "boot.png")
    words = ("boot.png", "--out", "out.cae")
    assert_fails_in_one_line(refuse("compress", dense_run, *words), "was trained with --rate 0")
    for flags, message in [
        (("--effort", -1), "--effort is -1"),
        (("--quality", 0), "invalid choice"),
    ]:
        assert_fails_in_one_line(refuse("compress", rated, *words, *flags), message)
    same = ("compress", rated, "boot.png", "--out", "boot.png")
    assert_fails_in_one_line(refuse(*same), "boot.png is one of the images")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "boot.png", tmp_path / "other")
    twice = ("compress", rated, "other/boot.png", *words)
    assert_fails_in_one_line(refuse(*twice), "2 images would become")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_fails_in_one_line(refuse("compress", rated, *words), "need constriction; pip install")
    assert not (tmp_path / "out.cae").exists()


def test_tables_are_written_once_and_again_for_other_parameters(rated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(rated, run)
    autoencoder = cae_jax.load(run)
    first = tables.of_run(run, autoencoder)
    before = (run / "tables.npz").read_bytes()
    tables.of_run(run, autoencoder)
    assert (run / "tables.npz").read_bytes() == before
    moved = autoencoder.with_params(
        autoencoder.config, jax.tree.map(lambda x: 1.1 * x, autoencoder.params)
    )
    with pytest.raises(cae_jax.UserError, match="is of other parameters than the newest"):
        tables.read(run, moved)
    second = tables.of_run(run, moved)
    assert not np.array_equal(first[5].frequencies, second[5].frequencies)
    jax.tree.map(np.testing.assert_array_equal, second, tables.read(run, moved))


def test_such_a_run_is_exported(rated, test_images, tmp_path):
    import onnxruntime

    autoencoder = cae_jax.load(rated)
    expected = autoencoder.encode(test_images[:20])
    export.write(tmp_path / "encode.onnx", autoencoder, "onnx", "encode")
    session = onnxruntime.InferenceSession(tmp_path / "encode.onnx")
    (codes,) = session.run(None, {"images": test_images[:20] / np.float32(255)})
    np.testing.assert_array_equal(codes, expected)
    with pytest.raises(cae_jax.UserError, match=r"`rate` 0\.02, which the Keras format does not"):
        keras.write(tmp_path / "run.keras", autoencoder)


def test_a_shipped_model_decompresses(rated, file, test_images, tmp_path):
    """It has the parameters as safetensors, and the tables."""
    autoencoder = cae_jax.load(rated)
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("config.json", "tables.npz"):
        shutil.copy(rated / name, shipped)
    export.write(shipped / WEIGHTS, autoencoder, "safetensors")
    other = cae_jax.load(shipped)
    found, codes = cae.decompress(file.read_bytes(), file, other, tables.read(shipped, other))
    assert found.names[0] == "shirts-0000"
    np.testing.assert_array_equal(codes, autoencoder.encode(test_images[:5]))
