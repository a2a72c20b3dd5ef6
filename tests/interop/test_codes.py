"""Files of codes against NumPy, and damaged and forged ones."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from cae_jax import TrainConfig, UserError
from cae_jax.config import resolved
from cae_jax.interop import codes
from cae_jax.models import autoencoders, topology
from cae_jax.models.inference import Autoencoder
from tests.helpers import draw_parameters, nested

IMAGES = np.random.default_rng(0).integers(0, 256, (25, 12, 10, 3), np.uint8)
SURROGATE = "\udcff"  # of a file name that is not UTF-8
NAMES = [f"folder {i % 3}/ö 犬 {i}.png" for i in range(24)] + [f"line\nbreak{SURROGATE}"]


def drawn(model="conv", seed=0) -> Autoencoder:
    features = {"features": (6, 5)} if model == "conv" else {}
    config = resolved(TrainConfig(model=model, **features), (12, 10, 3))
    parameters = nested(draw_parameters(topology.from_config(config), seed))
    return Autoencoder(config, autoencoders.build_with(config, parameters))


def blocks(length=4, images=IMAGES, names=NAMES):
    for start in range(0, len(images), length):
        yield names[start : start + length], images[start : start + length]


@pytest.fixture(scope="module")
def autoencoder():
    return drawn()


@pytest.fixture
def file(autoencoder, tmp_path):
    """A file of floats."""
    codes.write(tmp_path / "codes.npz", autoencoder, blocks())
    return tmp_path / "codes.npz"


@pytest.mark.parametrize("model", ["conv", "simple"])
def test_floats_are_those_of_encode(model, tmp_path):
    autoencoder, path = drawn(model), tmp_path / "codes.npz"
    assert codes.write(path, autoencoder, blocks()) == 25
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays.keys() == {"names", "codes", "image_shape", "run", "format"}
    assert arrays["codes"].dtype == np.float32
    np.testing.assert_allclose(arrays["codes"], autoencoder.encode(IMAGES), rtol=1e-6, atol=1e-6)
    assert arrays["names"].tolist() == NAMES
    assert arrays["image_shape"].tolist() == [12, 10, 3]
    assert [each.name for each in tmp_path.iterdir()] == ["codes.npz"]


@pytest.mark.parametrize("bits", [1, 4, 8, 9, 16])
@pytest.mark.parametrize("model", ["conv", "simple"])
def test_quantised_codes_are_at_most_half_a_step_off(model, bits, tmp_path):
    """Also where the largest value of a channel comes in the last block."""
    autoencoder, path = drawn(model), tmp_path / "codes.npz"
    values = autoencoder.encode(IMAGES)
    order = np.argsort(values.reshape(25, -1).max(axis=1))
    codes.write(path, autoencoder, blocks(3, IMAGES[order], [NAMES[i] for i in order]), bits)
    with np.load(path) as file:
        stored, scale = file["codes"], file["scale"]
    assert stored.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert (stored.shape, scale.dtype) == (values.shape, np.float32)
    largest = values.reshape(-1, values.shape[-1]).max(axis=0)
    expected = np.where(largest > 0, largest, 1) / (2**bits - 1)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert stored.max() == 2**bits - 1
    step = np.broadcast_to(scale.astype(np.float64), values.shape)
    # float32 has 24 bits: of 16, the last 8 are for the rounding of the product.
    assert (np.abs(stored * step - values[order]) <= (0.5 + 2**-7) * step).all()
    opened = codes.read(path, autoencoder, "run")
    found = np.concatenate([*opened.blocks(10)])
    np.testing.assert_allclose(found, stored * step, rtol=1e-6)
    assert found.dtype == np.float32


def test_a_channel_that_is_zero_stays_zero(tmp_path, monkeypatch):
    autoencoder = drawn()
    values = np.zeros((25, *autoencoder.code_shape), np.float32)
    values[..., 0] = 2
    monkeypatch.setattr(autoencoder, "encode", lambda images: values[: len(images)])
    codes.write(tmp_path / "codes.npz", autoencoder, blocks(), bits=8)
    with np.load(tmp_path / "codes.npz") as file:
        np.testing.assert_allclose(file["codes"] * file["scale"], values, rtol=1e-6)


def test_codes_are_written_while_images_are_read(autoencoder, tmp_path, monkeypatch):
    """Each block is encoded before the next one is asked for."""
    read, encoded, encode = [], [], autoencoder.encode

    def reading():
        for names, images in blocks(5):
            assert len(encoded) == len(read)
            read.append(names)
            yield names, images

    def encoding(images):
        encoded.append(len(images))
        return encode(images)

    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "encode", encoding)
        codes.write(tmp_path / "codes.npz", autoencoder, reading())
    assert encoded == [5] * 5


def test_the_same_images_give_the_same_bytes(autoencoder, file, tmp_path):
    codes.write(tmp_path / "again.npz", autoencoder, blocks())
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


def test_codes_come_back_in_blocks(autoencoder, file):
    opened = codes.read(file, autoencoder, "run")
    assert opened.names == NAMES
    parts = [*opened.blocks(8)]
    assert [len(part) for part in parts] == [8, 8, 8, 1]
    np.testing.assert_allclose(
        np.concatenate(parts), autoencoder.encode(IMAGES), rtol=1e-6, atol=1e-6
    )


def refused(path, autoencoder, message):
    with pytest.raises(UserError, match=message) as caught:
        codes.read(path, autoencoder, "runs/a")
    assert "\n" not in str(caught.value)


def test_codes_of_other_parameters_are_refused(file):
    refused(file, drawn(seed=1), "codes of other parameters than runs/a; give the run that enc")


CHANGES = {
    "missing": (lambda a: a.pop("names"), "it has no names"),
    "pickled": (lambda a: a.update(codes=np.array([{}] * 25)), r"codes is object \[\], not"),
    "pickled names": (lambda a: a.update(names=a["names"].astype(object)), "names is object"),
    "fewer names": (lambda a: a.update(names=a["names"][1:]), r"codes is float32 \[25, 3, 3, 5\]"),
    "other shape": (lambda a: a.update(codes=a["codes"][..., 1:]), r"\[25, 3, 3, 4\], not \[25"),
    "other type": (lambda a: a.update(codes=a["codes"].astype(float)), "codes is float64"),
    "no scale": (lambda a: a.update(codes=a["codes"].astype(np.uint8)), "it has no scale"),
    "nan": (lambda a: a["codes"].__setitem__((3, 0, 0, 0), np.nan), "that are not finite"),
    "image shape": (lambda a: a.update(image_shape=np.array([12, 10, 1])), "another shape than"),
    "later": (lambda a: a.update(format=np.array(2)), "has format 2, later than 1; update cae-jax"),
    "empty": (lambda a: a.update(names=a["names"][:0], codes=a["codes"][:0]), "it has no images"),
    "scale": (
        lambda a: a.update(codes=a["codes"].astype(np.uint8), scale=np.full(5, np.inf)),
        "that are not finite",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_forged_files_are_refused(autoencoder, file, change):
    with np.load(file) as opened:
        arrays = dict(opened)
    alter, message = CHANGES[change]
    alter(arrays)
    np.savez(file, **arrays)
    refused(file, autoencoder, message)


def test_what_is_no_file_of_codes_is_refused(autoencoder, tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    refused(tmp_path / "a.npz", autoencoder, r"no codes and no format .*; encode the images again")
    (tmp_path / "b.npz").write_bytes(b"text")
    for name in ("b.npz", "missing.npz"):
        refused(tmp_path / name, autoencoder, f"{name} is not an intact file of codes")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_harmless(autoencoder, file, seed):
    """Some bytes of an archive, such as times, mean nothing."""
    whole, rng = file.read_bytes(), np.random.default_rng(seed)
    expected, lines = autoencoder.encode(IMAGES), []
    for i in range(40):
        content = bytearray(whole)
        place = int(rng.integers(len(content)))
        if i % 4:
            content[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(content if i % 4 else content[:place])
        try:
            opened = codes.read(file, autoencoder, "run")
        except UserError as error:
            lines.append(str(error))
            continue
        assert opened.names == NAMES
        found = np.concatenate([*opened.blocks(8)])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert len(lines) > 20
    assert not any("\n" in line for line in lines)


def test_a_failure_leaves_what_was_there(autoencoder, file, tmp_path, monkeypatch):
    before = file.read_bytes()

    def fails():
        yield NAMES[:4], IMAGES[:4]
        raise UserError("the source is damaged")

    with pytest.raises(UserError, match="the source is damaged"):
        codes.write(file, autoencoder, fails())
    monkeypatch.setattr(
        autoencoder, "encode", lambda x: np.full((len(x), *autoencoder.code_shape), np.inf)
    )
    with pytest.raises(UserError, match="are not finite; train again"):
        codes.write(file, autoencoder, blocks())
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_written_is_refused_first(tmp_path):
    for path, bits, message in (
        ("a.npz", 0, "`bits` is 0; it takes a whole number from 1 to 16"),
        ("a.npz", 17, "`bits` is 17"),
        ("a.npy", None, r"give a name that ends in \.npz"),
        ("no/a.npz", None, "there is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            codes.check(tmp_path / path, bits)


def test_codes_of_whole_numbers_stay_as_they_are(tmp_path):
    config = resolved(TrainConfig(model="simple", rate=0.01), (12, 10, 3))
    quantised = Autoencoder(config, autoencoders.build(config, nnx.Rngs(0)))
    with pytest.raises(UserError, match="whole numbers already; leave out `bits`"):
        codes.write(tmp_path / "codes.npz", quantised, blocks(), bits=4)
    codes.write(tmp_path / "codes.npz", quantised, blocks())
    (found,) = codes.read(tmp_path / "codes.npz", quantised, "run").blocks(len(IMAGES))
    np.testing.assert_array_equal(found, quantised.encode(IMAGES))
    assert (found < 0).any()


def test_the_identity_is_of_the_parameters():
    autoencoder = drawn()
    other = dataclasses.replace(autoencoder.config, seed=5)
    assert autoencoder.digest == autoencoder.with_params(other, autoencoder.params).digest
    assert autoencoder.digest != drawn(seed=1).digest
