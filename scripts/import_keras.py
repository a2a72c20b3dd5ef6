"""Turns a network that Keras has saved into a run.

    python scripts/import_keras.py model.keras --out runs/imported

Every field of the config is a flag too, as in train.py; it says how training is to go on.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import tyro

import cae_jax
from cae_jax.cli import common
from cae_jax.config import load_config, to_dict
from cae_jax.interop import keras
from cae_jax.interop.keras import Weights
from cae_jax.ops import cache

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "fashion_mnist.py"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Turns a network that Keras has saved into a run.

    The run can be evaluated, reconstruct and go on training. The network has to be that of the
    config; --features may be left out, since the file knows them.
    """

    train: tyro.conf.OmitArgPrefixes[cae_jax.TrainConfig]

    file: tyro.conf.Positional[Path]
    """What Keras wrote: .keras, .weights.h5 or .h5."""

    out: Path
    """Folder of the run."""

    config: Path = DEFAULT_CONFIG
    """Python file with get_config(); the flags of its fields override what it gives."""

    overwrite: bool = False
    """Replace a run that is there."""

    data_dir: Path | None = None
    """Where TFDS keeps data sets; None takes TFDS_DATA_DIR, else TFDS's own default."""

    archives: Path | None = None
    """Folder with the four original .gz archives; None takes shipped or downloaded ones."""


def main() -> None:
    with common.user_errors():
        base = load_config(common.config_path(DEFAULT_CONFIG))
        missing: Any = tyro.MISSING
        flags = common.parse(Flags, default=Flags(train=base, file=missing, out=missing))
        weights = keras.read(flags.file)
        config = check_network(flags, base, weights)
        cache.use_compilation_cache()
        places = {"data_dir": flags.data_dir, "archives": flags.archives}
        val_loss = keras.import_run(weights, config, flags.out, overwrite=flags.overwrite, **places)
        report(flags, base, weights, config, val_loss)


def check_network(flags: Flags, base: cae_jax.TrainConfig, weights: Weights) -> cae_jax.TrainConfig:
    """The config of the flags, with the features of the file if the flags tell nothing of them."""
    config = flags.train
    if config.model != weights.model:
        example = {"conv": "fashion_mnist"}.get(weights.model, weights.model)
        raise cae_jax.UserError(
            f"{flags.file} holds the network {weights.model} and the config is of {config.model}; "
            f"give --config configs/{example}.py"
        )
    if weights.model == "conv" and config.features not in (base.features, weights.features):
        raise cae_jax.UserError(
            f"{flags.file} has features {weights.features} and --features are {config.features}; "
            "leave them out"
        )
    return dataclasses.replace(config, features=weights.features)


def report(
    flags: Flags,
    base: cae_jax.TrainConfig,
    weights: Weights,
    config: cae_jax.TrainConfig,
    val_loss: float,
) -> None:
    """Says what was imported, what was not, and how to go on."""
    features = f" with features {config.features}" if weights.model == "conv" else ""
    parameters = sum(array.size for layer in weights.params.values() for array in layer.values())
    print(f"{flags.out}: {weights.model}{features}, {parameters:,} parameters from {flags.file}")
    if not weights.complete:
        print("The file has no padding and no activations; they are taken to be the network's")
    print(f"val_loss: {val_loss:.4f}")
    print(f"To go on training with a fresh optimizer, run {train_command(flags, base, config)}")


def train_command(flags: Flags, base: cae_jax.TrainConfig, config: cae_jax.TrainConfig) -> str:
    """The command line of train.py that goes on with the run."""
    words: list[Any] = ["python", "scripts/train.py", "--workdir", flags.out]
    if flags.config != DEFAULT_CONFIG:
        words += ["--config", flags.config]
    for name, value in to_dict(config).items():
        if value != to_dict(base)[name]:
            words += [f"--{name.replace('_', '-')}", *(value if type(value) is list else [value])]
    for name in ("data_dir", "archives"):
        if getattr(flags, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(flags, name)]
    return shlex.join(map(str, words))


if __name__ == "__main__":
    main()
