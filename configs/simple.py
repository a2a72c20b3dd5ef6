"""The simple fully connected autoencoder 784-32-784 on Fashion-MNIST.

    cae-jax train --config simple

Result: val_loss 0.2838 after 20 epochs, mean of seeds 0 to 4 (0.2836 to 0.2841). On the last 10,000
training images SOAP with a peak of 5e-3 was better by 0.0003, which its time is not worth
(docs/results.md).
"""

from cae_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        model="simple", optimizer="adam", learning_rate=3e-3, b2=0.999, warmup_steps=300
    )
