"""This package: the parts of `cae_jax.fit`, timed one by one."""

import time

import numpy as np

from benchmarks.frameworks.adapter import Stopwatch, bounds_of_part, split_file
from benchmarks.frameworks.case import BenchmarkCase
from cae_jax.config import TrainConfig

# Steps per dispatch, the default of `cae_jax.fit`.
_CHUNK_STEPS = 67


class CaeJax:
    """A `Framework`; a case names the backend."""

    def __init__(self, case: BenchmarkCase, config: TrainConfig, watch: Stopwatch):
        with watch("import"):
            import jax
            from flax import nnx

            import cae_jax.runs.fit  # noqa: F401 - everything that training imports
            from cae_jax import data
            from cae_jax.models import autoencoders, topology
            from cae_jax.ops import backend, cache
            from cae_jax.training.step import make_keys
            from cae_jax.training.trainer import Trainer, initial_state
        cache.use_compilation_cache()
        with watch("data"):
            if case.images is None:
                images = data.load(config, data_dir=case.data_dir)
            else:
                images = data.of_arrays(config, split_file(case.images))
            train_images, test_images = images.train, images.validation
        with watch("backend"):
            jax.devices()
        with watch("native"):  # compiles the native kernel if it is not cached
            self.backend = backend.choose(topology.from_config(config), case.framework)
        with watch("transfer"):
            train_images, test_images = jax.block_until_ready(
                jax.device_put((train_images, test_images))
            )
        with watch("initialise"):
            init_key = make_keys(config.seed).init
            self.model = autoencoders.build(config, nnx.Rngs(params=init_key))
            self.state = initial_state(config, self.model, len(train_images))
            jax.block_until_ready(self.state)
        with watch("compile"):
            self.trainer = Trainer([config], self.model, self.backend, train_images, test_images)
        self.config = config
        self.epoch = 0
        self.calls = {"encode": self._encode, "reconstruct": self._reconstruct}

    def first_step(self) -> float:
        chunk = self.trainer.run(self.state, 1, 0, 1)
        return float(chunk.losses_MxS[0, 0])

    def epochs(self, count: int) -> list[tuple[float, float]]:
        results = []
        for epoch in range(1, count + 1):
            began = time.perf_counter()
            losses_MxS = np.zeros((1, 0))
            for start in range(0, self.trainer.steps, _CHUNK_STEPS):
                stop = min(start + _CHUNK_STEPS, self.trainer.steps)
                self.state, losses_MxS, _ = self.trainer.run(self.state, epoch, start, stop)
            seconds = time.perf_counter() - began
            results.append((seconds, self.trainer.epoch_loss(losses_MxS[0])))
        self._open_autoencoder()
        return results

    def train_part(self, part: int) -> None:
        if part == 0:
            self.epoch += 1
        first, last = bounds_of_part(part, self.trainer.steps)
        self.state = self.trainer.run(self.state, self.epoch, first, last).state

    def evaluate(self) -> float:
        return self.trainer.validation.evaluate(self.state.params)[0].val_loss

    def _open_autoencoder(self) -> None:
        from flax import nnx

        from cae_jax.models.inference import Autoencoder

        nnx.update(self.model, self.state.params)
        self._autoencoder = Autoencoder(self.config, self.model, self.backend)

    def _encode(self, images):
        return self._autoencoder.encode(images)

    def _reconstruct(self, images):
        return self._autoencoder.reconstruct(images)
