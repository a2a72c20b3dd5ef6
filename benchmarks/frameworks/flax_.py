"""Plain Flax NNX and Optax, as in a first version: built-in layers, one jitted call per step."""

import time
from functools import partial

import numpy as np

from benchmarks.frameworks.adapter import MAX_BATCH, Stopwatch, load_images, network_of, way_back
from cae_jax.config import TrainConfig


class Flax:
    """A `Framework`; the float32 images stay on the device, a step receives its indices."""

    def __init__(self, config: TrainConfig, watch: Stopwatch, images: str | None):
        with watch("import"):
            import jax
            from flax import nnx

            from cae_jax.models import autoencoders
            from cae_jax.training.optimizer import build_optimizer
        with watch("data"):
            train_images, test_images = load_images(config, images)
        with watch("transfer"):
            self.images, self.test_images = jax.block_until_ready(
                jax.device_put((train_images, test_images))
            )
        with watch("initialise"):
            rngs = nnx.Rngs(config.seed)
            # The fully connected models of cae-jax are plain Flax layers already.
            if config.model == "conv":
                model = conv_model(rngs, *network_of(config))
            else:
                model = autoencoders.build(config, rngs)
            self.graphdef, self.params = nnx.split(model, nnx.Param)
            steps = -(-len(train_images) // config.batch_size)
            optimizer = build_optimizer(config, steps * config.epochs)
            self.opt_state = optimizer.init(self.params)
        self.batch_size = config.batch_size
        self.random = np.random.default_rng(config.seed)
        self._make_functions(optimizer)
        self.calls = {"reconstruct": self._reconstruct}

    def _make_functions(self, optimizer) -> None:
        import jax
        import optax
        from flax import nnx

        graphdef = self.graphdef

        def loss(params, x):
            logits = nnx.merge(graphdef, params)(x)
            return optax.sigmoid_binary_cross_entropy(logits, x).mean()

        @partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params, opt_state, images, batch):
            value, grads = jax.value_and_grad(loss)(params, images[batch])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self._train_step = train_step
        self._loss = jax.jit(loss)
        self._sigmoid = jax.jit(lambda params, x: nnx.sigmoid(nnx.merge(graphdef, params)(x)))

    def first_step(self) -> float:
        return float(self._step(np.arange(self.batch_size)))

    def epochs(self, count: int) -> list[tuple[float, float]]:
        import jax

        results = []
        for _ in range(count):
            began = time.perf_counter()
            order = self.random.permutation(len(self.images))
            batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
            losses = jax.device_get([self._step(batch) for batch in batches])
            jax.block_until_ready(self.params)
            seconds = time.perf_counter() - began
            sizes = [len(batch) for batch in batches]
            results.append((seconds, float(np.average(losses, weights=sizes))))
        return results

    def evaluate(self) -> float:
        cuts = range(MAX_BATCH, len(self.test_images), MAX_BATCH)
        batches = np.split(self.test_images, cuts)
        losses = [float(self._loss(self.params, batch)) for batch in batches]
        return float(np.average(losses, weights=[len(batch) for batch in batches]))

    def _step(self, batch: np.ndarray):
        self.params, self.opt_state, loss = self._train_step(
            self.params, self.opt_state, self.images, batch
        )
        return loss

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        batches = np.split(images, range(MAX_BATCH, len(images), MAX_BATCH))
        outputs = [self._sigmoid(self.params, batch) for batch in batches]
        return np.concatenate([np.asarray(output) for output in outputs])


def conv_model(rngs, image_shape=(28, 28, 1), features=(16, 8, 8)):
    """Builds the convolutional network from Flax's layers."""
    from flax import nnx

    init = nnx.initializers.glorot_uniform()
    conv = partial(nnx.Conv, kernel_size=(3, 3), kernel_init=init, rngs=rngs)
    pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")

    def upsample(x):
        return x.repeat(2, axis=1).repeat(2, axis=2)

    layers, n_in = [], image_shape[-1]
    for width in features:  # 28 -> 14 -> 7 -> 4
        layers += [conv(n_in, width), nnx.relu, pool]
        n_in = width
    layers.append(conv(n_in, n_in))
    for width, padded in way_back(image_shape, features):  # 4 -> 8, 8 -> 16 -> 14, 14 -> 28
        padding = "SAME" if padded else "VALID"
        layers += [nnx.relu, upsample, conv(n_in, width, padding=padding)]
        n_in = width
    return nnx.Sequential(*layers)
