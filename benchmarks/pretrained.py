"""Writes the models that ship with the package, from finished runs.

    python -m benchmarks.pretrained runs/fashion_mnist runs/denoise

The name of a run becomes that of the model. The numbers of its card are measured here. Paths of
images are kept as they are from the current directory.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import tyro

import cae_jax
from cae_jax import atomic, data
from cae_jax.cli import common
from cae_jax.config import NAMED, peak_rate
from cae_jax.evaluation import comparison
from cae_jax.interop import export, model_hub
from cae_jax.ops import cache
from cae_jax.runs import tables
from cae_jax.runs.folder import is_finished
from cae_jax.runs.pretrained import FOLDER, WEIGHTS

VERSION = 1  # Increases when the models are trained again.
COPIED = ("config.json", "history.csv", "result.json")
CLOTHES = (
    "the 60,000 training images of fashion_mnist",
    "light shapes on black, 28 x 28 pixels of grey, as in fashion_mnist; other images come out "
    "like clothing",
    "(c) 2017 Zalando SE, MIT",
)
PATCHES = (
    "nine in ten of the patches of ten photographs that `python -m benchmarks.samples samples "
    "--crops 60000 --recolor` cuts; the others, of the same photographs, are the test images",
    "patches of photographs, 64 x 64 pixels in color",
    "photographs that scikit-image and scikit-learn carry, whose pages name the sources and "
    "licences; china.jpg and flower.jpg are CC BY 2.0, by danielbuechele and vultilion on Flickr",
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes the models that ship with the package, from finished runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""

    data_dir: Path | None = None
    """TFDS data directory; None takes TFDS_DATA_DIR, else TFDS's default."""


def main() -> None:
    with common.user_errors(flags=Flags):
        flags = common.parse(Flags)
        cache.use_compilation_cache()
        for run in flags.runs:
            ship(run, flags.data_dir)


def ship(run: Path, data_dir: Path | None) -> None:
    """Copies what is needed of a run, and writes its weights and its card."""
    autoencoder = cae_jax.load(run)
    config, folder = autoencoder.config, FOLDER / run.name
    if not is_finished(run, config.epochs):
        raise cae_jax.UserError(f"run {run} is not finished")
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        text = (run / name).read_text()
        if config.data not in NAMED:
            text = text.replace(config.data, os.path.relpath(config.data))
        atomic.write_text(folder / name, text)
    if config.rate:
        shutil.copy(run / tables.NAME, folder)
    export.write(folder / WEIGHTS, autoencoder, "safetensors")
    images, _ = data.load_split(config, "test", data_dir=data_dir)
    inputs = comparison.noisy_images(images, config.noise, config.noise_level, config.seed)
    (row,) = comparison.summaries(
        [comparison.trained_entry(comparison.open_runs(run.name, [run]), images, inputs)]
    )
    text = card(run.name, autoencoder, row, len(images), result(run))
    atomic.write_text(folder / "README.md", text)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size:,} bytes")


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def card(
    name: str, autoencoder: cae_jax.Autoencoder, row: dict, images: int, result: dict[str, Any]
) -> str:
    """What the model is, how good, and what it is not for."""
    config, network = autoencoder.config, autoencoder.topology
    source, taken, license = CLOTHES if config.data in NAMED else PATCHES
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    return f"""# pretrained/{name}, version {VERSION}

Network: {config.model}, {autoencoder.parameters:,} parameters, code {list(network.code_shape)}. \
It {model_hub.task(config)}.

Trained on {source}: {config.epochs} epochs, batch \
{config.batch_size}, optimizer {config.optimizer}, peak learning rate \
{peak_rate(config):g}, seed {config.seed}. These are the weights after the last epoch; the seed \
is the first one, not the best of several. Trained with {versions} on {result["device"]}.

Means over the {images:,} test images, with the noise of the seed: BCE {row["bce"].mean:.4f}, PSNR \
{row["psnr"].mean:.2f} dB, SSIM {row["ssim"].mean:.4f}.

It takes {taken}.

License: that of the package, Apache-2.0. Training images: {license}.
"""


if __name__ == "__main__":
    main()
