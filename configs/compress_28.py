"""Compresses images of 28 x 28 pixels to about 43 bytes each.

    cae-jax train --config compress_28
    cae-jax train --config compress_28 --rate 0.1 --workdir runs/compress_28_8
    cae-jax compress runs/compress_28 images.npy --out images.cae

Result: PSNR 25.45 dB at 42.5 bytes with `--effort 0`, 27.20 dB at 44.1 bytes with 3, on 1,000 test
images; a rate of 0.1 has 22.38 dB at 8.3 bytes with `--quality 7`. One seed each. Time: 5 to 6
s/epoch on two cores of a Zen 3, busy with other work. Chosen on the last 10,000 training images.
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
