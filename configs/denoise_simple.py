"""The simple fully connected autoencoder, trained to remove Gaussian noise of 0.5.

    cae-jax train --config denoise_simple

Result: val_psnr 17.67 dB after 20 epochs, mean of seeds 0 to 4 (17.62 to 17.72); the noisy images
have 9.30 dB. On the last 10,000 training images Adam was better than SOAP with peaks from 1e-3 to
3e-2 (docs/results.md).
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        noise="gaussian",
        model="simple",
        optimizer="adam",
        learning_rate=3e-3,
        b2=0.999,
        warmup_steps=300,
    )
