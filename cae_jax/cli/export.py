"""Export a trained autoencoder as one file that works without cae-jax, or for a model hub.

    cae-jax export runs/fashion_mnist --format onnx
    cae-jax export runs/deep --format keras --best --out deep.keras
    cae-jax export runs/photos --format hub --license mit --push me/photos

docs/export.md shows how each format is loaded.
"""

from pathlib import Path
from typing import Literal

import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.errors import UserError
from cae_jax.ops import cache


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory, or a shipped model such as pretrained/denoise."""

    format: Literal["stablehlo", "safetensors", "onnx", "keras", "hub"]
    """stablehlo: a function for JAX. safetensors: the parameters. onnx: a function for ONNX
    runtimes. keras: a model for keras.models.load_model. hub: a folder with a model card, which is
    accepted wherever a run is."""

    function: Literal["reconstruct", "encode", "decode"] | None = None
    """Function to export (stablehlo, onnx only): encode, decode or reconstruct, the default."""

    out: Path | None = None
    """Output file, or folder of a hub. Default: NAME.FORMAT with the name of the run,
    NAME-encode.FORMAT or NAME-hub."""

    best: bool = False
    """Export the checkpoint with the lowest val_loss instead of the newest one."""

    push: str | None = None
    """Upload the folder to this repository of the Hugging Face Hub, such as me/photos (hub only;
    pip install "cae-jax[hub]")."""

    license: str | None = None
    """License in the model card, such as apache-2.0 (hub only). Default: unknown."""


def run(flags: Flags) -> None:
    from cae_jax.interop import export, keras, model_hub

    check(flags)
    out = (flags.out or default_path(flags)).expanduser()
    if flags.format == "hub":
        model_hub.check(out, flags.push)
    else:
        atomic.check_output(out)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, best=flags.best, backend="matmul")
    files = [out]
    if flags.format == "hub":
        files = model_hub.write(out, flags.run, autoencoder, flags.license, best=flags.best)
    elif flags.format == "keras":
        keras.write(out, autoencoder)
    else:
        export.write(out, autoencoder, flags.format, flags.function)
    print(f"{out}: {sum(file.stat().st_size for file in files):,} bytes")
    if flags.push:
        model_hub.push(out, files, flags.push)
        print(f"uploaded to {flags.push}")


def check(flags: Flags) -> None:
    """Refuses flags that are for other formats, and formats that cannot be written here."""
    from cae_jax.interop import export

    if flags.format not in ("hub", "keras"):
        export.check(flags.format, flags.function)
    elif flags.function:
        raise UserError(
            f"`function` is for the formats stablehlo and onnx; leave it out for {flags.format}"
        )
    for name in ("push", "license"):
        if flags.format != "hub" and getattr(flags, name) is not None:
            raise UserError(f"`{name}` is for the format hub; leave it out for {flags.format}")


def default_path(flags: Flags) -> Path:
    name = flags.run.resolve().name
    if flags.format == "hub":
        return Path(f"{name}-hub")
    part = "" if flags.function in (None, "reconstruct") else f"-{flags.function}"
    return Path(f"{name}{part}.{flags.format}")
