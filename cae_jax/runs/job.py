"""Prepares a training: the images, the backend, and the programs that its groups share."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax import atomic, data
from cae_jax.config import ARRAYS, TrainConfig, known_shape, resolved
from cae_jax.data.encoded import reader
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.models.summary import layer_table
from cae_jax.ops.backend import Backend
from cae_jax.runs import environment
from cae_jax.training import programs
from cae_jax.training.devices import Devices
from cae_jax.training.feed import Plan, make_plan
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import Trainer, initial_state, stack
from cae_jax.training.validation import least_images

logger = logging.getLogger(__name__)
Splits = tuple[np.ndarray, np.ndarray]  # training and test images


class Job:
    """What the groups of a training share; puts the images on the device, if they fit.

    Args:
        config: of one of the members, for what they have in common.
        backend: computes the network.
        dataset: the images.
        fields: of the config, in which the members differ apart from the seed.
        budget: bytes of images on the device; None takes what the programs leave.
        members: of the largest group.
        devices: that train, see `find_devices`; by default one.

    Attributes:
        config, backend: as given.
        digest: of the images.
        examples: number of training images.
        memory: the number of devices, and how the images share their memory.
        compile_seconds: the time that the last group took to compile.
    """

    def __init__(
        self,
        config: TrainConfig,
        backend: Backend,
        dataset: data.Dataset,
        fields: Sequence[str] = (),
        budget: int | None = None,
        members: int = 1,
        devices: Sequence[Any] = (),
    ) -> None:
        self.config, self.backend, self._fields = config, backend, tuple(fields)
        self._devices = devices or jax.local_devices()[:1]
        self.examples = len(dataset.train)
        self._plan = self._make_plan(budget, members, dataset)
        if self._plan is None:
            train = np.asarray(dataset.train)  # decodes those that stay in their files
            if len(self._devices) == 1:
                train = jax.device_put(train)
            self._images = train, jax.device_put(dataset.validation)
        else:
            logger.info(self._plan.description)
            self._images = reader(dataset.train), reader(dataset.validation)
        self.memory = {"devices": len(self._devices), "device_budget": [*(self._plan or [])]}
        self.digest = dataset.digest
        self._trainers: dict[int, Trainer] = {}
        self.compile_seconds = 0.0

    def _make_plan(self, budget: int | None, members: int, dataset: data.Dataset) -> Plan | None:
        """How the images share the budget; None if all fit."""
        configs = [self.config] * -(-members // len(self._devices))  # of a device
        return make_plan(
            budget,
            programs.free_bytes(configs, self.model, self.examples),
            dataset[:2],
            step=members * self.config.batch_size,
            evaluated=programs.evaluated_bytes(configs, self.model),
            least=least_images(self.config, self.backend, len(dataset.validation)),
        )

    @functools.cached_property
    def model(self) -> autoencoders.Model:
        """The structure of the model, without parameters."""
        return autoencoders.abstract(self.config)

    @functools.cached_property
    def autoencoder(self) -> Autoencoder:
        """The model without parameters, for `Autoencoder.with_params`."""
        return Autoencoder(self.config, self.model, self.backend)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return programs.steps_per_epoch(self.config, self.examples)

    def trainer(self, members: Sequence[TrainConfig]) -> Trainer:
        """A trainer of a group; groups of a size share programs."""
        started = time.perf_counter()
        count = len(members)
        if count not in self._trainers:
            self._trainers[count] = Trainer(
                members,
                self.model,
                self.backend,
                *self._images,
                self._fields,
                self._plan,
                Devices.of(self._devices, self.config, count),
            )
        trainer = self._trainers[count].with_members(members)
        self.compile_seconds = time.perf_counter() - started
        return trainer

    def initial_state(
        self, members: Sequence[TrainConfig], weights: nnx.State | None = None
    ) -> TrainState:
        """The state of a group before the first step; with `weights` as its parameters, if any."""
        states = []
        for config in members:
            model = autoencoders.build(config, nnx.Rngs(params=make_keys(config.seed).init))
            if weights is not None:
                nnx.update(model, weights)
            states.append(initial_state(config, model, self.examples))
        return jax.device_put(stack(states))

    def empty_state(self, members: Sequence[TrainConfig]) -> TrainState:
        """A state of a group that has the structure and shapes of any other, all zeros."""
        program = programs.training(members, self.model, self.backend, self.examples)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.arguments[0])

    def record(self, folder: Path) -> None:
        """Writes the environment to the directory of a run or population."""
        environment.record(folder, self.backend, self.digest)

    def describe(self, run: Path) -> None:
        """Writes the environment and the layers of the model to the directory of a run."""
        self.record(run)
        atomic.write_text(run / "summary.txt", layer_table(self.model.topology) + "\n")


def find_devices(count: int, config: TrainConfig | None, processes: int = 1) -> list[Any]:
    """The first `count` devices of each process.

    Args:
        count: of each process.
        config: of a run; None for a population, whose members are spread whole.
        processes: that train together.

    Raises:
        UserError: there are fewer devices, or more than have a microbatch.
    """
    there = jax.local_devices()
    if not 1 <= count <= len(there):
        raise UserError(
            f"`devices` is {count}; this machine has {len(there)} of {there[0].platform}"
        )
    if config is not None and (all_of_them := count * processes) > config.microbatches:
        raise UserError(
            f"there are {all_of_them} devices and `microbatches` is {config.microbatches}, of "
            f"which each takes whole ones; use at most {config.microbatches} in all, or train a "
            f"new run with `microbatches={all_of_them}`"
        )
    return [each for k in range(processes) for each in jax.local_devices(k)[:count]]


def prepare(
    config: TrainConfig,
    workdir: Path,
    backend: str,
    arrays: tuple[Splits | None, Splits | None],
    start: Callable[..., Future[Backend]],
    **where: Any,
) -> tuple[TrainConfig, data.Dataset, Backend]:
    """The resolved config, images and backend of a training; arguments as of `fit`.

    Compiles the kernel and prepares the data, concurrently if the image shape is known in advance.

    Args:
        arrays: `images` and `targets` of `fit`.
        start: starts a function in a thread, so that a signal can end the wait for it.
    """

    def choose(config: TrainConfig) -> Future[Backend]:
        environment.check_memory(config)
        return start(environment.choose_backend, workdir, config, backend)

    images, targets = arrays
    if targets is not None:
        if images is None:
            raise UserError("`targets` are for `images`; give both, or name them in `pairs`")
        config = dataclasses.replace(config, pairs=("images", "targets"))
    if images is not None:
        if config.pairs and targets is None:
            raise UserError("`pairs` names what `data` has; with `images` give `targets`")
        config = dataclasses.replace(config, data=ARRAYS, image_shape=None)
        dataset = data.of_arrays(config, images, targets)
    else:
        config = data.located(config, data_dir=where["data_dir"])
        if known_shape(config) is not None:
            config = resolved(config)
            choosing = choose(config)
            dataset = data.load(config, **where)
            return dataset.resolve(config), dataset, choosing.result()
        dataset = data.load(config, **where)
    config = dataset.resolve(config)
    return config, dataset, choose(config).result()
