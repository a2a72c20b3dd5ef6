"""Keras 3 on TensorFlow or on JAX, trained with `fit` as in the Keras tutorial."""
# Keras is an optional dependency.
# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportArgumentType=false

import os
import time

import numpy as np

from benchmarks.frameworks.adapter import (
    MAX_BATCH,
    Stopwatch,
    bounds_of_part,
    load_images,
    network_of,
    way_back,
)
from benchmarks.frameworks.environment import cpu_count
from cae_jax.config import TrainConfig


class Keras:
    """A `Framework`; all images are NumPy arrays in memory."""

    def __init__(self, framework: str, config: TrainConfig, watch: Stopwatch, images: str | None):
        os.environ["KERAS_BACKEND"] = framework.removeprefix("keras-")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with watch("import"):
            import keras

            self.on_tensorflow = keras.backend.backend() == "tensorflow"
            if self.on_tensorflow:
                import tensorflow as tf

                tf.config.threading.set_intra_op_parallelism_threads(cpu_count())
        with watch("data"):
            self.images, self.test_images = load_images(config, images)
        with watch("initialise"):
            keras.utils.set_random_seed(config.seed)
            self.model = keras_model(*network_of(config))
            self.steps = -(-len(self.images) // config.batch_size)
            rate = config.learning_rate
            if config.schedule == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(
                    0.0,
                    self.steps * config.epochs - config.warmup_steps,
                    warmup_target=rate,
                    warmup_steps=config.warmup_steps,
                )
            self.model.compile(
                optimizer=keras.optimizers.Adam(rate, config.b1, config.b2, config.eps),
                loss="binary_crossentropy",
            )
        self.batch_size = config.batch_size
        self.calls = {"reconstruct": self._reconstruct}

    def first_step(self) -> float:
        batch = self.images[: self.batch_size]
        return self._fit(batch, epochs=1).history["loss"][0]

    def epochs(self, count: int) -> list[tuple[float, float]]:
        import keras

        class Clock(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.seconds = []

            def on_epoch_begin(self, epoch, logs=None):
                self.began = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):  # the loss is on the host by now
                self.seconds.append(time.perf_counter() - self.began)

        clock = Clock()
        losses = self._fit(self.images, epochs=count, callbacks=[clock]).history["loss"]
        return list(zip(clock.seconds, losses, strict=True))

    def evaluate(self) -> float:
        images = self.test_images
        return float(self.model.evaluate(images, images, batch_size=MAX_BATCH, verbose=0))

    def train_part(self, part: int) -> None:
        if part == 0:
            self.order = np.random.default_rng().permutation(len(self.images))
        first, last = bounds_of_part(part, self.steps)
        images = self.images[self.order[first * self.batch_size : last * self.batch_size]]
        self._fit(images, epochs=1)

    def fit(self, epochs: int) -> float:
        """Trains with validation, as the tutorial does; returns the last ``val_loss``."""
        validation = (self.test_images, self.test_images)
        history = self._fit(self.images, epochs=epochs, validation_data=validation)
        return history.history["val_loss"][-1]

    def _fit(self, images: np.ndarray, **options):
        return self.model.fit(
            images, images, batch_size=self.batch_size, shuffle=True, verbose=0, **options
        )

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        # One batch takes half the time of `predict` on TensorFlow, but longer on JAX.
        if self.on_tensorflow or len(images) <= MAX_BATCH:
            return self.model.predict_on_batch(images)
        return self.model.predict(images, batch_size=MAX_BATCH, verbose=0)


def keras_model(image_shape=(28, 28, 1), features=(16, 8, 8)):
    """Builds the convolutional network, as in the tutorial."""
    from keras import Input, Sequential
    from keras.layers import Conv2D, MaxPooling2D, UpSampling2D

    same = {"activation": "relu", "padding": "same"}
    layers = [Input(image_shape)]
    for width in features:  # 28 -> 14 -> 7 -> 4
        layers += [Conv2D(width, 3, **same), MaxPooling2D(2, padding="same")]
    layers.append(Conv2D(features[-1], 3, **same))
    *others, (channels, _) = way_back(image_shape, features)
    for width, padded in others:  # 4 -> 8, 8 -> 16 -> 14
        padding = "same" if padded else "valid"
        layers += [UpSampling2D(2), Conv2D(width, 3, activation="relu", padding=padding)]
    layers += [UpSampling2D(2), Conv2D(channels, 3, activation="sigmoid", padding="same")]
    return Sequential(layers)
