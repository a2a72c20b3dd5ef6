"""Inputs and targets of a user: what is read from files, and what is trained and reported."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import cae_jax
from cae_jax import TrainConfig, UserError, data
from tests.conftest import DENSE

SMALL = dataclasses.replace(DENSE, train_examples=None, test_examples=None, batch_size=4)


@pytest.fixture
def photos(tmp_path):
    """Twelve gray pairs of two kinds by their keys, and files without a partner."""
    random = np.random.default_rng(0)
    pairs = {}
    for i in range(12):
        key = f"{'cats' if i % 2 else 'dogs'}/{i}"
        pairs[key] = random.integers(0, 256, (2, 8, 8), np.uint8)
        for side, pixels in zip(("noisy", "clean"), pairs[key], strict=True):
            path = tmp_path / "photos" / side / f"{key}.{'png' if i % 3 else 'bmp'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    for alone in ("noisy/cats/lost.png", "clean/alone.png", "readme.png"):
        Image.fromarray(pixels).save(tmp_path / "photos" / alone)
    return pairs


def psnr(outputs, targets):
    error = (outputs.astype(np.float64) - targets) ** 2
    return -10 * np.log10(error.reshape(len(error), -1).mean(axis=1))


def of_hash(pairs, split):
    """The pairs of a split, by the hash of their common name."""
    train = [
        key
        for key in pairs
        if int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < 0.6 * 2**64
    ]
    return {key: pair for key, pair in pairs.items() if (key in train) == (split == "train")}


def as_set(images):
    return {image.tobytes() for image in images}


def stored(pairs):
    """As channels of target and input."""
    return {np.stack([pair[1], pair[0]], axis=-1).tobytes() for pair in pairs.values()}


def test_files_of_two_folders_are_matched_by_name(photos, tmp_path, capsys):
    config = TrainConfig(
        data=str(tmp_path / "photos"), pairs=("noisy", "clean"), split=0.6, batch_size=2
    )
    for split in ("train", "test"):
        images, labels = data.load_split(config, split, data_dir=tmp_path / "data")
        assert as_set(images) == stored(of_hash(photos, split))
        assert labels is None
    lines = capsys.readouterr().err.splitlines()
    assert "2 images without a partner are left out: clean/alone.png, noisy/cats/lost.png" in lines
    [prepared] = [line for line in lines if line.startswith("Prepared")]
    assert "test pairs of 8 x 8 x 1" in prepared
    assert "2 without a partner, 1 beside noisy and clean" in prepared
    dataset = data.load(config, data_dir=tmp_path / "data")
    assert dataset.resolve(config).image_shape == (8, 8, 1)


@pytest.mark.parametrize("color", [(), (3,)])
@pytest.mark.parametrize("dark", [0, 1])
def test_each_side_of_pairs_is_looked_at(tmp_path, caplog, color, dark):
    """The other side has clean pictures; a side of RGB is the first three channels."""
    random, most = np.random.default_rng(0), [254, 254]
    most[dark] = 15
    shape = (12, 8, 8, *color)
    pairs = [random.integers(0, value, shape, np.uint8, endpoint=True) for value in most]
    np.savez(tmp_path / "a.npz", clean=pairs[0], noisy=pairs[1])
    config = TrainConfig(data=str(tmp_path / "a.npz"), pairs=("noisy", "clean"), batch_size=2)
    data.load(config, data_dir=tmp_path / "data")
    _, prepared, warning = [record.getMessage() for record in caplog.records]
    for side, pixels in zip(("targets", "inputs"), pairs, strict=True):
        values = f"{side} of values 0 to {pixels.max()}, mean {pixels.mean():.1f} of 255"
        assert values in prepared
    side = ("targets", "inputs")[dark]
    assert warning.startswith(f"The {side} are dark (values 0 to 15, mean ")
    np.savez(tmp_path / "a.npz", clean=pairs[1 - dark], noisy=pairs[1 - dark] % 2)
    with pytest.raises(UserError, match="has no pixel above 1 of 255 in its inputs"):
        data.load(config, data_dir=tmp_path / "data")


def test_pairs_keep_the_splits_of_their_folders(tmp_path):
    for split, value in (("train", 90), ("test", 180)):
        for side, more in (("in", 0), ("out", 5)):
            (tmp_path / "x" / split / side).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((6, 6, 3), value + more + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "x" / split / side / f"{i}.png")
    config = TrainConfig(data=str(tmp_path / "x"), pairs=("in", "out"))
    for split, value in (("train", 90), ("test", 180)):
        images, _ = data.load_split(config, split, data_dir=tmp_path / "data")
        assert images.shape == (3, 6, 6, 6)
        assert sorted(images[:, 0, 0, 0]) == [value + 5, value + 6, value + 7]
        assert sorted(images[:, 0, 0, 3]) == [value, value + 1, value + 2]


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_columns_and_arrays(photos, tmp_path):
    pairs = list(photos.values())
    rows = [{"dirty": encoded(a), "label": 1, "tidy": encoded(b)} for a, b in pairs]
    for split, part in (("train", rows[:8]), ("test", rows[8:])):
        parquet.write_table(pa.Table.from_pylist(part), tmp_path / f"{split}.parquet")
    (tmp_path / "table").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(tmp_path / "table" / f"{split}.parquet")
    arrays = {
        f"{split}_{side}": np.stack([pair[k] for pair in part])
        for split, part in (("train", pairs[:8]), ("test", pairs[8:]))
        for k, side in enumerate(("dirty", "tidy"))
    }
    np.savez(tmp_path / "arrays.npz", **arrays, y_train=np.arange(8))
    expected = np.stack([pair[::-1] for pair in pairs[8:]]).transpose(0, 2, 3, 1)
    for name in ("table", "arrays.npz"):
        config = TrainConfig(data=str(tmp_path / name), pairs=("dirty", "tidy"), batch_size=2)
        images, labels = data.load_split(config, "test", data_dir=tmp_path / "data")
        np.testing.assert_array_equal(images, expected)
        assert labels is None
        missing = dataclasses.replace(config, pairs=("dirty", "neat"))
        with pytest.raises(UserError, match="neat"):
            data.load_split(missing, "test", data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": ("a",)}, "`pairs` is a; it takes two names"),
        ({"pairs": ("a", "a")}, "`pairs` is a a; it takes two names"),
        ({"pairs": ("a", "b"), "noise": "gaussian"}, "to which no noise is added"),
        ({"noise": "pairs"}, "give the names of inputs and targets in `pairs`"),
        ({"pairs": ("a", "b"), "noise_level": 0.5}, "noise pairs takes none"),
    ],
)
def test_configs_that_contradict_themselves(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)


def test_data_without_pairs(photos, tmp_path):
    config = TrainConfig(data=str(tmp_path / "photos"), pairs=("noisy", "sharp"))
    with pytest.raises(UserError, match="no two files of one name in folders noisy and sharp"):
        data.load_split(config, "test", data_dir=tmp_path / "data")
    with pytest.raises(UserError, match="fashion_mnist, which has no `pairs`"):
        data.load_split(TrainConfig(pairs=("a", "b")), "test", data_dir=tmp_path / "data")
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    config = dataclasses.replace(config, data=str(tmp_path / "a.npy"))
    with pytest.raises(UserError, match="has no array noisy"):
        data.load_split(config, "test", data_dir=tmp_path / "data")
    clean = tmp_path / "photos" / "clean"
    (clean / "cats" / "1.webp").write_bytes((clean / "cats" / "1.png").read_bytes())
    config = TrainConfig(data=str(tmp_path / "photos"), pairs=("noisy", "clean"))
    with pytest.raises(UserError, match=r"1\.png and .*1\.webp have one name"):
        data.load_split(config, "test", data_dir=tmp_path / "data")


def drawn():
    """Targets, and inputs that are no function of them: ``[12, 8, 8, 1]``."""
    random = np.random.default_rng(1)
    return random.integers(0, 256, (2, 12, 8, 8, 1), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_the_loss_is_between_outputs_of_inputs_and_targets(tmp_path, members):
    """With a rate that changes nothing, in training and validation on the same pairs."""
    targets, inputs = drawn()
    config = dataclasses.replace(SMALL, learning_rate=1e-30, epochs=1)
    arrays = {"images": (inputs, inputs), "targets": (targets, targets)}
    if members == 1:
        result = cae_jax.fit(config, tmp_path / "run", **arrays)
        autoencoder, row = result.autoencoder, result.history[-1]
    else:
        configs = [dataclasses.replace(config, seed=seed) for seed in range(members)]
        many = cae_jax.fit_population(
            configs, tmp_path / "many", members_per_program=members, **arrays
        )
        autoencoder, row = many.autoencoders["seed=1"], many.members["seed=1"].rows[-1]
    assert autoencoder.config.noise == "pairs"
    logits = autoencoder.logits(inputs).astype(np.float64)
    bce = np.logaddexp(0, logits) - logits * (targets / 255)
    assert row.loss == pytest.approx(bce.mean(), rel=1e-5)
    assert row.val_loss == pytest.approx(bce.mean(), rel=1e-5)
    assert row.val_psnr_input == pytest.approx(psnr(inputs / 255, targets / 255).mean(), rel=1e-5)
    outputs = autoencoder.reconstruct(inputs)
    assert row.val_psnr == pytest.approx(psnr(outputs, targets / 255).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (lambda x, y: {"targets": (y, y)}, "`targets` are for `images`"),
        (lambda x, y: {"images": (x, x), "targets": (y, y[:, :4])}, r"of shape \[12, 4, 8, 1\]"),
        (lambda x, y: {"images": (x, x), "targets": (y, y[:9])}, r"of shape \[9, 8, 8, 1\]"),
        (lambda x, y: {"images": (x, x), "targets": (y / 255, y)}, "`targets` float64"),
        (lambda x, y: {"images": (x, x), "targets": y}, "`targets` takes two arrays"),
    ],
)
def test_arrays_that_are_no_pairs(tmp_path, arrays, message):
    targets, inputs = drawn()
    with pytest.raises(UserError, match=message):
        cae_jax.fit(SMALL, tmp_path / "run", **arrays(inputs, targets))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ground_truth", "masks", "GT"])
def test_targets_may_be_called_masks(tmp_path, caplog, name):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    for i, image in enumerate(pixels):
        for side, values in (("noisy", 255 - image), (name, image)):
            (tmp_path / "a" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "a" / side / f"{i}.png")
    (tmp_path / "a" / "b" / "ground_truth").mkdir(parents=True)
    (tmp_path / "a" / "b" / "ground_truth" / "1.png").write_bytes(encoded(pixels[0])["bytes"])
    config = TrainConfig(data=str(tmp_path / "a"), pairs=("noisy", name), batch_size=2, split=0.5)
    dataset = data.load(config, data_dir=tmp_path / "data")
    found = as_set(dataset.train) | as_set(dataset.validation)
    assert found == as_set(np.stack([pixels, 255 - pixels], axis=-1))
    assert "look like masks" not in caplog.text


def test_frames_of_pairs(tmp_path):
    """All in turn, as many of both; otherwise one line, whose two ways out work."""
    pages = [Image.new("L", (8, 8), 20 * i) for i in range(1, 11)]
    stacks = {"in/1": pages[:4], "out/1": pages[4:8], "in/2": pages[8:], "out/2": pages[7:]}
    for name, stack in stacks.items():
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        stack[0].save(tmp_path / "a" / f"{name}.tif", save_all=True, append_images=stack[1:])
    for i in range(3, 9):
        for side in ("in", "out"):
            pages[0].save(tmp_path / "a" / side / f"{i}.tif")
    config = TrainConfig(
        data=str(tmp_path / "a"), pairs=("in", "out"), batch_size=2, split=0.5, frames="all"
    )

    def found(**changes):
        changed = dataclasses.replace(config, **changes)
        dataset = data.load(changed, data_dir=tmp_path / "data")
        every = np.concatenate([dataset.train, dataset.validation])[:, 0, 0]
        return sorted(set(map(tuple, every.tolist())))

    message = r"out/2\.tif and .*in/2\.tif have different numbers of frames; pass `frames='first'`"
    with pytest.raises(UserError, match=message):
        found()
    one = (20, 20)
    assert found(frames="first") == [one, (100, 20), (160, 180)]
    assert found(exclude=("2.tif",)) == [one, (100, 20), (120, 40), (140, 60), (160, 80)]


def test_alpha_of_arrays_keeps_its_white(caplog):
    """Colors of 12 bits, targets darker than inputs, with an alpha of 16 bits on each side."""
    random = np.random.default_rng(0)
    arrays = [random.integers(0, most, (6, 8, 8, 4), np.uint16) for most in (2001, 4096)]
    arrays[0][0, 0, 0, :3], arrays[1][0, 0, 0, :3] = 7, 4095
    expected = []
    for array in arrays:
        array[..., :3] = np.maximum(array[..., :3], 7)
        array[..., 3] = random.integers(0, 65536, (6, 8, 8))
        colors = np.rint((array[..., :3] - 7.0) / (4095 - 7) * 255)
        expected.append(np.concatenate([colors, np.rint(array[..., 3:] / 257)], axis=-1))
    config = TrainConfig(data="arrays", batch_size=2, pairs=("a", "b"), white="auto")
    targets, inputs = arrays
    found = data.of_arrays(config, (inputs, inputs[:2]), (targets, targets[:2]))
    assert found.levels == (7, 4095)
    np.testing.assert_array_equal(found.train, np.concatenate(expected, axis=-1))
    np.testing.assert_array_equal(found.validation, found.train[:2])
    assert not caplog.records
    data.of_arrays(config, (inputs // 100, inputs[:2]), (inputs, targets[:2]))
    assert [each.getMessage().split(" (")[0] for each in caplog.records] == ["The inputs are dark"]


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_reported(command, photos, tmp_path):
    flags = ("--data", "photos", "--pairs", "noisy", "clean", "--split", 0.6, "--epochs", 2)
    small = ("--model", "simple", "--batch-size", 2, "--optimizer", "adam", "--workdir", "run")
    process = command("train", *flags, *small)
    assert process.returncode == 0, process.stderr
    test = np.stack(list(of_hash(photos, "test").values()))
    inputs, targets = test[:, 0, ..., None], test[:, 1, ..., None]
    process = command("evaluate", "run", "--json", "a.json", "--figure", "a.png")
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    noisy, _, network = found["rows"]
    assert found["noise"] == "pairs"
    assert noisy["psnr"][0] == pytest.approx(psnr(inputs / 255, targets / 255).mean(), rel=1e-5)
    outputs = cae_jax.load(tmp_path / "run").reconstruct(inputs)
    assert network["psnr"][0] == pytest.approx(psnr(outputs, targets / 255).mean(), rel=1e-5)
    process = command("report", "run", "--out", "report.html")
    assert process.returncode == 0, process.stderr
    process = command("evaluate", "run", "--noise", "gaussian")
    assert process.returncode == 0, process.stderr
    process = command("evaluate", "run", "--robustness", "b.png")
    assert "noise pairs has no level" in process.stderr


def test_other_runs_have_no_pairs(refuse, dense_run):
    assert "trained without" in refuse("evaluate", dense_run, "--noise", "pairs").stderr
