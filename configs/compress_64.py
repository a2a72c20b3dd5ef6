"""Compresses patches of photographs, 64 x 64 pixels in color.

cae-jax train --config compress_64 --data photos
cae-jax compress runs/compress_64 photos --out photos.cae --resize
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        image_size=(64, 64),
        channels=3,
        features=(32, 64, 64, 32),
        loss="mse",
        rate=0.005,
        epochs=100,
        optimizer="adam",
        learning_rate=1e-3,
        b2=0.99,
    )
