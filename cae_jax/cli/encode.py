"""Encode images with a trained autoencoder and write their codes as a .npz file.

    cae-jax encode runs/photos photographs --out codes.npz --bits 8
    cae-jax encode pretrained/fashion_mnist fashion_mnist --out codes.npz

Reads the images once, prepares nothing on disk, and holds a few at a time in memory. NumPy reads
the file; cae-jax decode turns it into images.
"""

from pathlib import Path

import tyro

import cae_jax
from cae_jax.cli import common, outputs
from cae_jax.errors import UserError
from cae_jax.ops import cache


@common.flags
class Flags:
    run: tyro.conf.Positional[Path]
    """Run directory, or a shipped model such as pretrained/fashion_mnist."""

    data: tyro.conf.Positional[str]
    """The images, all splits: a named data set, or a path as of train --data. They are converted
    as the training images were; for a run on pairs, the inputs alone."""

    out: Path
    """The .npz file."""

    bits: int | None = None
    """Quantise each channel of the code to this number of bits, 1 to 16. Default: floats."""

    best: bool = False
    """Encode with the checkpoint with the lowest val_loss instead of the newest one."""

    skip_unreadable: bool = False
    """Leave out damaged images, also where the training did not."""

    data_dir: Path | None = None
    """Directory of downloaded data sets, else TFDS_DATA_DIR."""

    workers: int | None = None
    """Processes that decode images; default: the cores."""


def run(flags: Flags) -> None:
    from cae_jax import data
    from cae_jax.interop import codes
    from cae_jax.runs.folder import read_config

    out = flags.out.expanduser()
    codes.check(out, flags.bits)
    if outputs.real(out) == outputs.real(Path(flags.data)):
        raise UserError(f"`out` {out} is the file of the images; give another `out`")
    config = data.elsewhere(read_config(flags.run), flags.data, data_dir=flags.data_dir)
    cache.use_compilation_cache()
    autoencoder = cae_jax.load(flags.run, best=flags.best, backend="matmul").of_pixels
    blocks = data.stream(
        config,
        autoencoder.max_batch,
        skip_unreadable=flags.skip_unreadable,
        data_dir=flags.data_dir,
        workers=flags.workers,
    )
    count = codes.write(out, autoencoder, blocks, flags.bits)
    size = out.stat().st_size
    print(f"{out}: {count:,} images, {size:,} bytes, {size / count:,.1f} bytes per image")
