"""Compresses images of 28 x 28 pixels to about 36 bytes each.

    cae-jax train --config compress_28
    cae-jax train --config compress_28 --rate 0.001 --workdir runs/compress_28_60
    cae-jax compress runs/compress_28 images.npy --out images.cae

Result: PSNR 25.1 dB at 35.9 bytes with `--effort 3`, and 24.6 dB at 30.0 with `--quality 4` too; a
rate of 0.1 has 22.0 dB at 9.7 bytes with `--quality 7`, and one of 0.001 26.0 dB at 59.2 with
`--quality 6`. These are means over 500 training images that were held out, of short trainings: 25
epochs on 50,000 images, of the last one 12. Time: 15 s/epoch on two cores of a shared CPU.
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        model="deep",
        widths=(1024, 512, 128),
        loss="mse",
        rate=0.0035,
        batch_size=256,
        epochs=60,
        optimizer="adam",
        learning_rate=1e-3,
        b2=0.99,
        warmup_steps=200,
    )
