"""Compresses images of 28 x 28 pixels to about 22 bytes each.

    cae-jax train --config compress_28
    cae-jax train --config compress_28 --rate 0.0035 --workdir runs/compress_28_38
    cae-jax compress runs/compress_28 images.npy --out images.cae

Result: not measured yet for the whole training; `python -m benchmarks.rate` measures it.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        model="deep",
        widths=(1024, 512, 128),
        loss="mse",
        rate=0.012,
        batch_size=256,
        epochs=60,
        optimizer="adam",
        learning_rate=1e-3,
        b2=0.99,
        warmup_steps=200,
    )
