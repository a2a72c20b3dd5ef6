"""Import a network that Keras saved as a run, without executing code from the file.

    cae-jax import model.keras --out runs/imported

The run can be evaluated, reconstruct images and continue training. The network has to be that of
the config; --features may be left out, since the file has them. Images of your own (--data) are
brought to the size and channels of the file. Every field of the config is a flag too; it applies
when training continues.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cae_jax.cli import common
from cae_jax.cli.configs import load_config
from cae_jax.config import TrainConfig, known_shape, to_dict
from cae_jax.errors import UserError
from cae_jax.ops import cache

if TYPE_CHECKING:
    from cae_jax.interop.keras import Weights


@common.flags
class Flags(common.ConfigFlags):
    file: tyro.conf.Positional[Path]
    """File that Keras wrote: .keras, .weights.h5 or .h5, or the folder of an unzipped .keras."""

    out: Annotated[Path, tyro.conf.arg(aliases=["--workdir"])]
    """Directory of the run."""

    overwrite: bool = False
    """Replace an existing run."""

    data: common.Data = common.DataFlags()


def run(flags: Flags) -> None:
    from cae_jax.interop import keras

    weights = keras.read(flags.file)
    base = load_config(flags.config)
    config = with_images(flags, base, weights)
    cache.use_compilation_cache()
    val_loss = keras.import_run(
        weights, config, flags.out, overwrite=flags.overwrite, **vars(flags.data)
    )
    features = f" with features {config.features}" if weights.model == "conv" else ""
    parameters = sum(array.size for layer in weights.params.values() for array in layer.values())
    print(f"{flags.out}: {weights.model}{features}, {parameters:,} parameters from {flags.file}")
    if not weights.complete:
        print("The file has no padding and no activations; those of the network are assumed")
    print(f"val_loss: {val_loss:.4f}")
    print(f"To continue training with a fresh optimizer, run {train_command(flags, base, config)}")


def with_images(flags: Flags, base: TrainConfig, weights: "Weights") -> TrainConfig:
    """The config of the flags, with the features and the image shape of the file.

    Raises:
        UserError: the flags ask for images of another size or other channels.
    """
    config = flags.train
    if weights.features and config.features == base.features:
        config = dataclasses.replace(config, features=weights.features)
    if known_shape(config) is not None or weights.image_shape is None:
        return config
    *size, channels = weights.image_shape
    if config.image_size not in (None, tuple(size)) or config.channels not in ("auto", channels):
        raise UserError(
            f"{flags.file} is of {weights.images}; leave `image_size` and `channels` out"
        )
    values: dict[str, Any] = {"image_size": tuple(size), "channels": channels}
    return dataclasses.replace(config, **values)


def train_command(flags: Flags, base: TrainConfig, config: TrainConfig) -> str:
    """The command line that continues training the run."""
    words: list[Any] = ["cae-jax", "train", "--workdir", flags.out]
    if flags.config != common.DEFAULT_CONFIG:
        words += ["--config", flags.config]
    before = to_dict(base)
    changed = {name: value for name, value in to_dict(config).items() if value != before[name]}
    if flags.data.data_dir is not None:
        changed["data_dir"] = flags.data.data_dir
    for name, value in changed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(value if isinstance(value, list) else [value])]
    return shlex.join(map(str, words))
