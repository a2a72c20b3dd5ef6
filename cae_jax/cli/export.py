"""Export a trained autoencoder as one file that works without cae-jax.

    cae-jax export runs/fashion_mnist --format onnx
    cae-jax export runs/deep --format keras --best --out deep.keras

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

    format: Literal["stablehlo", "safetensors", "onnx", "keras"]
    """stablehlo: a function for JAX. safetensors: the parameters. onnx: a function for ONNX
    runtimes. keras: a model for keras.models.load_model."""

    function: Literal["reconstruct", "encode", "decode"] | None = None
    """Function to export (stablehlo, onnx only): encode, decode or reconstruct, the default."""

    out: Path | None = None
    """Output file. Default: NAME.FORMAT with the name of the run, or NAME-encode.FORMAT."""

    best: bool = False
    """Export the checkpoint with the lowest val_loss instead of the newest one."""


def run(flags: Flags) -> None:
    from cae_jax.interop import export, keras

    out = flags.out or default_path(flags)
    if flags.format != "keras":
        export.check(flags.format, flags.function)
    elif flags.function:
        raise UserError("`function` is for the formats stablehlo and onnx; leave it out for keras")
    atomic.check_output(out)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, best=flags.best, backend="matmul")
    if flags.format == "keras":
        keras.write(out, autoencoder)
    else:
        export.write(out, autoencoder, flags.format, flags.function)
    print(f"{out}: {out.stat().st_size:,} bytes")


def default_path(flags: Flags) -> Path:
    part = "" if flags.function in (None, "reconstruct") else f"-{flags.function}"
    return Path(f"{flags.run.resolve().name}{part}.{flags.format}")
