"""Writes a trained autoencoder as one file that is used without cae_jax.

python scripts/export.py runs/fashion_mnist --format stablehlo

docs/export.md shows how the files are loaded.
"""

import dataclasses
from pathlib import Path

import tyro

import cae_jax
from cae_jax import atomic
from cae_jax.cli import common
from cae_jax.interop import export
from cae_jax.ops import cache


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes a trained autoencoder as one file that is used without cae_jax."""

    run: tyro.conf.Positional[Path]
    """Folder that training wrote."""

    format: export.Format
    """stablehlo: a function for JAX. onnx: a function for ONNX runtimes. safetensors: the
    parameters."""

    function: export.Function | None = None
    """Which one of the autoencoder; None is reconstruct. Formats stablehlo and onnx only."""

    out: Path | None = None
    """The file; None is RUN's name.FORMAT here, with -encode or -decode after the name."""

    best: bool = False
    """Take the checkpoint of the lowest val_loss instead of the newest one."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        out = flags.out or default_path(flags)
        export.check(flags.format, flags.function)
        atomic.check_output(out)
        cache.use_compilation_cache()
        autoencoder = cae_jax.load(flags.run, best=flags.best, method="phase")
        export.write(out, autoencoder, flags.format, flags.function)
        print(f"{out}: {out.stat().st_size:,} bytes")


def default_path(flags: Flags) -> Path:
    part = "" if flags.function in (None, "reconstruct") else f"-{flags.function}"
    return Path(f"{flags.run.resolve().name}{part}.{flags.format}")


if __name__ == "__main__":
    main()
