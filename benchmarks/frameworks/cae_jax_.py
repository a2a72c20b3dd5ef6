"""This package: the parts of `cae_jax.fit`, timed one by one."""

import time

from benchmarks.frameworks.adapter import Stopwatch
from benchmarks.frameworks.case import BenchmarkCase
from cae_jax.config import TrainConfig

# Steps per dispatch, the default of `cae_jax.fit`.
_CHUNK_STEPS = 67


class CaeJax:
    """A `Framework`; a case names the backend."""

    def __init__(self, case: BenchmarkCase, config: TrainConfig, watch: Stopwatch):
        with watch("import"):
            import jax
            import jax.numpy as jnp
            from flax import nnx

            import cae_jax.runs.fit  # noqa: F401 - everything that training imports
            from cae_jax.data import store
            from cae_jax.models import autoencoders
            from cae_jax.ops import backend, cache
            from cae_jax.training.step import make_keys
            from cae_jax.training.trainer import Programs
        cache.use_compilation_cache()
        with watch("data"):
            train_images, test_images = (
                store.load(config.dataset, split, data_dir=case.data_dir)[0][:examples]
                for split, examples in (
                    ("train", config.train_examples),
                    ("test", config.test_examples),
                )
            )
        with watch("backend"):
            jax.devices()
        with watch("native"):  # compiles the native kernel if it is not cached
            self.method = backend.choose(config, case.framework).method
        with watch("transfer"):
            train_images, test_images = jax.block_until_ready(
                jax.device_put((train_images, test_images))
            )
        with watch("initialise"):
            init_key = make_keys(config.seed).init
            self.model = autoencoders.build(config, nnx.Rngs(params=init_key), self.method)
            self.programs = Programs(config, self.model, train_images, test_images)
            self.state = self.programs.init_state
            self.another_state = jax.block_until_ready(jax.tree.map(jnp.copy, self.state))
        with watch("lower"):
            lowered = self.programs.lower()
        with watch("compile"):
            self.programs.compile(lowered)
        self.config = config
        self.calls = {"encode": self._encode, "reconstruct": self._reconstruct}

    def first_step(self) -> float:
        state = self.programs.train_epoch(self.another_state, 1, _CHUNK_STEPS, steps=1)
        return float(state.losses_S[0])

    def epochs(self, count: int) -> list[tuple[float, float]]:
        results = []
        for epoch in range(1, count + 1):
            began = time.perf_counter()
            self.state = self.programs.train_epoch(self.state, epoch, _CHUNK_STEPS)
            seconds = time.perf_counter() - began
            results.append((seconds, self.programs.epoch_loss(self.state)))
        self._open_autoencoder()
        return results

    def evaluate(self) -> float:
        return self.programs.evaluate(self.state.params)[0]

    def _open_autoencoder(self) -> None:
        from flax import nnx

        from cae_jax.models.inference import Autoencoder

        nnx.update(self.model, self.state.params)
        self._autoencoder = Autoencoder(self.config, self.model)

    def _encode(self, images):
        return self._autoencoder.encode(images)

    def _reconstruct(self, images):
        return self._autoencoder.reconstruct(images)
