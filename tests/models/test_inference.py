"""A trained autoencoder on NumPy images."""

import pickle

import jax
import numpy as np
import PIL.Image
import pytest

import cae_jax
from cae_jax.ops import native
from cae_jax.ops.compiler import UnavailableError


@pytest.fixture(scope="module")
def autoencoder(run):
    return cae_jax.load(run)


def test_shapes_and_ranges(autoencoder, test_images):
    images = test_images[:5]
    codes = autoencoder.encode(images)
    assert codes.shape == (5, 4, 4, 8)
    assert (codes >= 0).all()
    for pictures in (autoencoder.decode(codes), autoencoder.reconstruct(images)):
        assert pictures.shape == (5, 28, 28, 1)
        assert pictures.dtype == np.float32
        assert 0 <= pictures.min() < pictures.max() <= 1


def test_every_form_of_input_gives_the_same(autoencoder, test_images):
    images, mask = test_images[:5], test_images[:5] > 127
    expected = autoencoder.reconstruct(images)
    for same in (images[..., 0], (images / 255).astype(np.float32), images / 255, list(images)):
        np.testing.assert_allclose(autoencoder.reconstruct(same), expected, atol=1e-6)
    np.testing.assert_allclose(autoencoder.decode(autoencoder.encode(images)), expected, atol=1e-6)
    logits = autoencoder.logits(images).astype(np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-6)
    black_and_white = autoencoder.reconstruct(mask.astype(np.float32))
    np.testing.assert_allclose(autoencoder.reconstruct(mask), black_and_white, atol=1e-6)


def test_a_single_image_in_any_form(autoencoder, test_images, tmp_path):
    image = test_images[0]
    expected = autoencoder.reconstruct(image[None])
    picture = PIL.Image.fromarray(image[..., 0])
    picture.save(tmp_path / "a.png")
    for same in (image, image[..., 0], picture, tmp_path / "a.png", [str(tmp_path / "a.png")]):
        np.testing.assert_array_equal(autoencoder.reconstruct(same), expected)
    assert autoencoder.encode([picture, tmp_path / "a.png"]).shape == (2, 4, 4, 8)
    assert autoencoder.logits(picture.resize((30, 40)), resize=True).shape == expected.shape


def test_it_can_be_pickled(autoencoder, test_images):
    again = pickle.loads(pickle.dumps(autoencoder))
    assert again.config == autoencoder.config
    images = test_images[:5]
    np.testing.assert_array_equal(again.reconstruct(images), autoencoder.reconstruct(images))
    np.testing.assert_array_equal(again.encode(images), autoencoder.encode(images))


def test_a_pickle_of_a_machine_with_another_backend(autoencoder, test_images, monkeypatch, capsys):
    state = autoencoder.__getstate__() | {"backend": "native"}

    def unavailable(*_):
        raise UnavailableError("no compiler")

    monkeypatch.setattr(native, "Kernel", unavailable)
    again = cae_jax.Autoencoder.__new__(cae_jax.Autoencoder)
    again.__setstate__(state)
    assert capsys.readouterr().err == (
        "Pickled with native, loaded with matmul: native is unavailable: no compiler\n"
    )
    images = test_images[:5]
    expected = autoencoder.reconstruct(images)
    np.testing.assert_allclose(again.reconstruct(images), expected, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 513])
def test_any_number_of_images(autoencoder, test_images, count):
    pictures = autoencoder.reconstruct(test_images[:count])
    assert pictures.shape == (count, 28, 28, 1)
    assert autoencoder.decode(autoencoder.encode(test_images[:count])).shape == pictures.shape
    for i in range(0, count, 256):  # each image is its own: no mix-up at the batch borders
        alone = autoencoder.reconstruct(test_images[i : i + 1])
        np.testing.assert_allclose(pictures[i : i + 1], alone, atol=1e-5)


IMAGE = np.zeros((2, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 27), np.uint8), r"shape \[28, 27\]; it takes \[28, 28\] or \[N, 28, 28\]"),
        (np.zeros((2, 1, 28, 28), np.uint8), r"shape \[2, 1, 28, 28\], which looks like channels"),
        (np.zeros((2, 32, 32), np.uint8), r"shape \[2, 32, 32\];.*28 x 28"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"shape \[2, 28, 28, 3\]"),
        (IMAGE.astype(np.int32), "is of type int32; images take uint8, "),
        (IMAGE.astype(object), "is of type object"),
        (IMAGE + 1.5, r"floats in \[1.5, 1.5\]"),
        (IMAGE - 0.1, r"floats in \[-0.1, -0.1\]"),
        (IMAGE + np.nan, r"floats in \[nan, nan\]"),
        (IMAGE + np.inf, r"floats in \[inf, inf\]"),
    ],
)
def test_other_images_are_refused(autoencoder, images, message):
    with pytest.raises(cae_jax.UserError, match=message):
        autoencoder.reconstruct(images)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 32), np.float32), r"shape \[2, 32\]; this model takes \[N, 4, 4, 8\]"),
        (np.zeros((2, 4, 4, 8), np.int32), "int32"),
        (np.full((2, 4, 4, 8), np.nan), "finite"),
    ],
)
def test_other_codes_are_refused(autoencoder, codes, message):
    with pytest.raises(cae_jax.UserError, match=message):
        autoencoder.decode(codes)


def test_what_jax_traces_is_refused_with_what_can_be_traced(dense_run):
    autoencoder = cae_jax.load(dense_run)
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    for function, x in (
        (autoencoder.reconstruct, images),
        (autoencoder.encode, images),
        (autoencoder.decode, np.zeros((2, 32), np.float32)),
    ):
        with pytest.raises(cae_jax.UserError, match=r"NumPy arrays; .* call `autoencoder.model`"):
            jax.jit(function)(x)
    traced = jax.jit(lambda x: jax.nn.sigmoid(autoencoder.model(x)))(images)
    # float32 sums of 784 terms in another order
    np.testing.assert_allclose(traced, autoencoder.reconstruct(images), rtol=0, atol=1e-6)


def test_a_run_without_a_checkpoint(dense_run, tmp_path):
    (tmp_path / "config.json").write_bytes((dense_run / "config.json").read_bytes())
    with pytest.raises(cae_jax.UserError, match="no checkpoint yet"):
        cae_jax.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1, "epochs": 0}', '{"format": 1, "epoch": 1}', '{"format": "x"}'],
)
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(cae_jax.UserError, match=r"config\.json cannot be used"):
        cae_jax.load(tmp_path)
