"""The compiled programs of one run, with the arrays they read from the device."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from cae_jax.config import TrainConfig
from cae_jax.models import autoencoders
from cae_jax.training import metrics
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer
from cae_jax.training.step import (
    TrainState,
    epoch_batches,
    epoch_loss,
    init_state,
    make_evaluate,
    make_keys,
    make_run_steps,
)


class Programs:
    """The compiled programs of one run and the arrays they read from the device."""

    def __init__(
        self,
        config: TrainConfig,
        model: autoencoders.Model,
        train_images: np.ndarray,
        test_images: np.ndarray,
    ):
        self.config = config
        self.examples = len(train_images)
        self.steps = -(-self.examples // config.batch_size)
        self.train_images, self.test_images = jax.device_put((train_images, test_images))
        self.keys = make_keys(config.seed)
        optimizer = build_optimizer(config, self.steps * config.epochs)
        graphdef, _ = nnx.split(model, nnx.Param)
        self.init_state = init_state(model, optimizer, self.steps)
        corrupt = build_corruption(config.noise, config.noise_level)
        self._jitted = (
            make_run_steps(graphdef, optimizer, corrupt),
            make_evaluate(graphdef),
        )
        # What the model is given to reconstruct the test images from, and how good it is already.
        self.test_inputs, self.psnr_input = self.test_images, None
        if corrupt is not None:
            clean = autoencoders.scale(self.test_images)
            self.test_inputs = jax.jit(corrupt)(self.keys.test_noise, clean)
            self.psnr_input = _mean(metrics.psnr(self.test_inputs, clean))

    def lower(self) -> tuple[jax.stages.Lowered, ...]:
        """Traces all programs: the order of an epoch, its steps, the evaluation."""
        sizes = {"examples": self.examples, "batch_size": self.config.batch_size}
        batches = jax.ShapeDtypeStruct((self.steps, self.config.batch_size), jnp.int32)
        step = np.int32(0)
        run_steps, evaluate = self._jitted
        return (
            epoch_batches.lower(self.keys.order, step, **sizes),
            run_steps.lower(
                *(self.init_state, self.train_images, batches, self.keys.noise, step, step)
            ),
            evaluate.lower(self.init_state.params, self.test_inputs, self.test_images),
        )

    def compile(self, lowered: tuple[jax.stages.Lowered, ...] | None = None) -> float:
        """Compiles all programs ahead of the first epoch; returns and prints the seconds.

        Args:
            lowered: what `lower` gave, if it has been called already.
        """
        started = time.perf_counter()
        programs = [program.compile() for program in lowered or self.lower()]
        self._epoch_batches, self._run_steps, self._evaluate = programs
        seconds = time.perf_counter() - started
        print(f"Compiled in {seconds:.1f}s for {device_name()}")
        return seconds

    def train_epoch(
        self,
        state: TrainState,
        epoch: int,
        chunk_steps: int,
        *,
        steps: int | None = None,
        after_chunk: Callable[[TrainState], None] = jax.block_until_ready,
    ) -> TrainState:
        """Trains what is left of an epoch, in chunks.

        Args:
            state: at any step of the epoch; it is donated.
            epoch: counted from 1.
            chunk_steps: the most steps in a chunk.
            steps: stop after so many steps of the epoch.
            after_chunk: called with the state after each chunk, which it should wait for: what is
                not waited for is queued on the device.
        """
        steps = self.steps if steps is None else steps
        first = int(state.step) - (epoch - 1) * self.steps
        batches_SxB = self._epoch_batches(self.keys.order, np.int32(epoch))
        # disable=None: silent where the output is no terminal
        with tqdm(total=steps, initial=first, unit="step", leave=False, disable=None) as bar:
            bar.set_description(f"Epoch {epoch}/{self.config.epochs}")
            for start in range(first, steps, chunk_steps):
                stop = min(start + chunk_steps, steps)
                state = self._run_steps(
                    *(state, self.train_images, batches_SxB, self.keys.noise),
                    *(np.int32(start), np.int32(stop)),
                )
                after_chunk(state)
                bar.update(stop - start)
        return state

    def epoch_loss(self, state: TrainState) -> float:
        """Mean loss over the training images after an epoch, each as its step saw it."""
        losses_S = np.asarray(state.losses_S)
        return epoch_loss(losses_S, self.examples, self.config.batch_size)

    def evaluate(self, params: nnx.State) -> tuple[float, float]:
        """Means over the test images: binary cross-entropy and peak signal-to-noise ratio in dB."""
        bce_N, mse_N = self._evaluate(params, self.test_inputs, self.test_images)
        return _mean(bce_N), _mean(metrics.psnr_of_mse(mse_N))


def _mean(values: jax.Array) -> float:
    return float(np.asarray(values, np.float64).mean())


def device_name() -> str:
    """Platform and kind of the device that computes."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"
