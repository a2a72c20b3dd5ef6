"""The models that ship with the package, and every command on them."""

import re
import shutil

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

import cae_jax
from benchmarks import placeholders, samples
from cae_jax import cli
from cae_jax.evaluation import comparison, quality
from cae_jax.interop import cae
from cae_jax.models import coding
from cae_jax.runs import history, pretrained, tables
from cae_jax.training.search import search
from tests.conftest import ROOT
from tests.helpers import assert_fails_in_one_line

CLOTHES = ("compress_28", "denoise", "denoise_wide", "fashion_mnist", "simple", "wide")
MODELS = tuple(sorted((*CLOTHES, "compress_64")))
README = (ROOT / "README.md").read_text()


def test_the_package_ships_these_models_in_a_few_megabytes():
    assert sorted(path.name for path in pretrained.FOLDER.iterdir()) == sorted(MODELS)
    for name in MODELS:
        files = {path.name: path.stat().st_size for path in (pretrained.FOLDER / name).iterdir()}
        names = {"config.json", "history.csv", "result.json", "README.md", "model.safetensors"}
        compresses = name.startswith("compress")
        assert set(files) == names | ({"tables.npz"} if compresses else set())
        most = {"compress_28": 12e6, "compress_64": 0.41e6}.get(name, 0.4e6)
        assert sum(files.values()) < most


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOTHES)
def test_the_numbers_of_the_readme_and_of_the_card(name, test_images):
    autoencoder = cae_jax.load(f"pretrained/{name}", backend="matmul")
    config = autoencoder.config
    inputs = comparison.noisy_images(test_images, config.noise, config.noise_level, config.seed)
    outputs = autoencoder.reconstruct(inputs).astype(np.float64)
    mse = ((outputs - test_images / 255) ** 2).mean(axis=(1, 2, 3))
    psnr = f"{(-10 * np.log10(mse)).mean():.2f} dB"
    ssim = f"{quality.evaluate_images(outputs.astype(np.float32), test_images).ssim.mean():.4f}"
    row = re.search(rf"^\| `{name}` \|.*$", README, re.M)
    assert row is not None
    cells = [cell.strip() for cell in row[0].strip("|").split("|")]
    assert cells[-2:] == [psnr, ssim]
    assert f"{autoencoder.parameters:,}" in cells
    card = (pretrained.FOLDER / name / "README.md").read_text()
    assert f"PSNR {psnr}, SSIM {ssim}" in card
    # The history that ships with it ends with these weights.
    last = history.of_run(pretrained.locate(f"pretrained/{name}"))[-1]
    assert last.epoch == config.epochs
    assert f"{last.val_psnr:.2f} dB" == psnr
    if config.loss == "bce":
        assert f"BCE {last.val_loss:.4f}" in card


@pytest.mark.slow
def test_photographs_are_compressed_to_few_bytes():
    patches = samples.crops(54, 64)
    autoencoder = cae_jax.load("pretrained/compress_64", backend="matmul").of_pixels
    own = tables.of_run("pretrained/compress_64", autoencoder)[coding.TRAINED]
    codes = search(autoencoder, own, patches, 0)
    content = cae.compress(autoencoder, own, codes, [("patches", len(patches))])
    assert len(content) < 90 * len(patches)
    outputs = autoencoder.decode(own.step * codes.astype(np.float32))
    shown = placeholders.from_thumb_hash(placeholders.thumb_hash(patches), 64) / 255
    ours, theirs = (np.square(each - patches / 255).mean() for each in (outputs, shown))
    assert ours < 0.7 * theirs  # in three times the bytes


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_that_takes_a_run_takes_one(elsewhere, data_dir, test_images, capsys):
    def run(*arguments):
        cli.main([*map(str, arguments)])
        return capsys.readouterr().out

    Image.fromarray(test_images[0, ..., 0]).save("boot.png")
    assert re.match(
        r"boot.png: \d\d.\d\d dB\n1 images in out\n",
        run("reconstruct", "pretrained/denoise", "boot.png", "--out", "out"),
    )
    data = ("--data-dir", data_dir)
    assert re.search(r"\| simple +\| simple +\| 1 ", run("evaluate", "pretrained/simple", *data))
    assert "\n| 20 | " in run("curves", "pretrained/simple", "pretrained/wide")
    run("export", "pretrained/denoise", "--format", "safetensors")
    exported = load_file("denoise.safetensors")
    for name, value in load_file(pretrained.FOLDER / "denoise" / "model.safetensors").items():
        np.testing.assert_array_equal(exported[name], value)
    run("report", "pretrained/denoise", "--out", "report.html", *data)
    assert "val_psnr of the noisy images" in (elsewhere / "report.html").read_text()


def test_unknown_names_and_folders_of_the_user(elsewhere, refuse, dense_run):
    line = refuse("export", "pretrained/fashion", "--format", "safetensors")
    names = ", ".join(f"pretrained/{name}" for name in MODELS)
    message = f"there is no pretrained/fashion, here or in the package, which has {names}"
    assert_fails_in_one_line(line, message)
    # What the user has at this path comes first.
    shutil.copytree(dense_run, elsewhere / "pretrained" / "wide")
    assert cae_jax.load("pretrained/wide").config.model == "simple"


def _save(path, change):
    values = load_file(path)
    change(values)
    save_file(values, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not the weights of its config"),
        (lambda path: path.write_bytes(b"text"), "is not the weights of its config.json"),
        (lambda path: _save(path, lambda x: x.pop("dense2.bias")), "dense2.bias"),
        (
            lambda path: _save(path, lambda x: x.update({"dense1.bias": np.zeros(5, "f")})),
            r"dense1.bias is float32 \[5\], not float32 \[32\]",
        ),
        (
            lambda path: _save(path, lambda x: x.update({"dense1.bias": np.zeros(32)})),
            "dense1.bias is float64",
        ),
        (lambda path: _save(path, lambda x: x.update(more=np.zeros(3))), "it also has more"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, damage, message):
    folder = shutil.copytree(pretrained.FOLDER / "simple", tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises(cae_jax.UserError, match=message) as caught:
        cae_jax.load(folder, backend="matmul")
    assert "\n" not in str(caught.value)


def test_an_export_in_a_run_is_not_the_run(copied):
    shutil.copy(pretrained.FOLDER / "wide" / "model.safetensors", copied)
    assert cae_jax.load(copied).config.model == "simple"


def test_a_model_is_not_trained_in_its_folder(tmp_path, data_dir):
    folder = shutil.copytree(pretrained.FOLDER / "simple", tmp_path / "model")
    before = sorted(folder.iterdir())
    config = cae_jax.load(folder, backend="matmul").config
    with pytest.raises(cae_jax.UserError, match="is not empty and not a run of cae-jax"):
        cae_jax.fit(config, folder, data_dir=data_dir, overwrite=True)
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_training_begins_with_its_weights(elsewhere, data_dir):
    config = cae_jax.TrainConfig(
        optimizer="sgd", learning_rate=1e-12, epochs=1, train_examples=256, test_examples=100
    )
    result = cae_jax.fit(
        config, "run", start_from="pretrained/fashion_mnist", data_dir=data_dir, backend="xla"
    )
    expected = cae_jax.load("pretrained/fashion_mnist", backend="xla")
    for ours, theirs in zip(
        *(nnx.to_flat_state(each.params) for each in (result.autoencoder, expected)), strict=True
    ):
        np.testing.assert_allclose(ours[1][...], theirs[1][...], atol=1e-6)
