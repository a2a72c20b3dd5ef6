"""The compiled programs of one run, with the arrays they read from the device."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from cae_jax import history, models, train
from cae_jax.config import TrainConfig
from cae_jax.optimizer import build_optimizer


class Programs:
    """The compiled programs of one run and the arrays they read from the device."""

    def __init__(
        self,
        config: TrainConfig,
        model: models.Model,
        train_images: np.ndarray,
        test_images: np.ndarray,
        order_key: jax.Array,
    ):
        self.config = config
        self.examples = len(train_images)
        self.steps = -(-self.examples // config.batch_size)
        self.train_images, self.test_images = jax.device_put((train_images, test_images))
        self.order_key = order_key
        optimizer = build_optimizer(config, self.steps * config.epochs)
        graphdef, _ = nnx.split(model, nnx.Param)
        self.init_state = train.init_state(model, optimizer)
        self._jitted = train.make_run_steps(graphdef, optimizer), train.make_evaluate(graphdef)

    def compile(self) -> float:
        """Compiles all programs ahead of the first epoch; returns and prints the seconds."""
        started = time.perf_counter()
        sizes = {"examples": self.examples, "batch_size": self.config.batch_size}
        self._epoch_batches = train.epoch_batches.lower(
            self.order_key, np.int32(0), **sizes
        ).compile()
        batches = jax.ShapeDtypeStruct((self.steps, self.config.batch_size), jnp.int32)
        losses = jax.ShapeDtypeStruct((self.steps,), jnp.float32)
        step = np.int32(0)
        run_steps, evaluate = self._jitted
        self._run_steps = run_steps.lower(
            self.init_state, losses, self.train_images, batches, step, step
        ).compile()
        self._evaluate = evaluate.lower(self.init_state.params, self.test_images).compile()
        seconds = time.perf_counter() - started
        print(f"Compiled in {seconds:.1f}s for {device_name()}")
        return seconds

    def run_epoch(
        self, state: train.TrainState, epoch: int, chunk_steps: int
    ) -> tuple[train.TrainState, history.Row]:
        """Trains for one epoch in chunks, then evaluates."""
        started = time.perf_counter()
        batches_SxB = self._epoch_batches(self.order_key, np.int32(epoch))
        losses_S = jnp.zeros(self.steps)
        # disable=None: silent where the output is no terminal
        with tqdm(total=self.steps, unit="step", leave=False, disable=None) as bar:
            bar.set_description(f"Epoch {epoch}/{self.config.epochs}")
            for start in range(0, self.steps, chunk_steps):
                stop = min(start + chunk_steps, self.steps)
                state, losses_S = self._run_steps(
                    state, losses_S, self.train_images, batches_SxB, np.int32(start), np.int32(stop)
                )
                if not bar.disable:
                    losses_S.block_until_ready()
                    bar.update(stop - start)
        losses = np.asarray(losses_S)
        seconds = time.perf_counter() - started
        bce_N = np.asarray(self._evaluate(state.params, self.test_images), np.float64)
        return state, history.Row(
            epoch=epoch,
            step=int(state.step),
            loss=train.epoch_loss(losses, self.examples, self.config.batch_size),
            val_loss=float(bce_N.mean()),
            epoch_seconds=seconds,
            images_per_second=self.examples / seconds,
        )


def device_name() -> str:
    """Platform and kind of the device that computes."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"
