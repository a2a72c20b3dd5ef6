"""Prepares a training: the images, the backend, and the programs that its groups share."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cae_jax import atomic, data
from cae_jax.config import ARRAYS, TrainConfig, known_shape, resolved
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.models.summary import layer_table
from cae_jax.ops.backend import Backend
from cae_jax.runs import environment
from cae_jax.runs.interruption import Interruption
from cae_jax.training import programs
from cae_jax.training.step import TrainState, make_keys
from cae_jax.training.trainer import Trainer, initial_state, stack


@dataclasses.dataclass(frozen=True)
class Job:
    """What the groups of a training share.

    Attributes:
        config: of one of the members, for what they have in common.
        backend: computes the network.
        train_images, test_images: uint8 ``[N, *image_shape]``, on the device.
        digest: identifies the images, see `data.Dataset`.
        fields: of the config, in which the members differ apart from the seed.
    """

    config: TrainConfig
    backend: Backend
    train_images: jax.Array
    test_images: jax.Array
    digest: str
    fields: tuple[str, ...] = ()
    _trainers: dict[object, Trainer] = dataclasses.field(default_factory=dict)

    @classmethod
    def on_device(
        cls,
        config: TrainConfig,
        backend: Backend,
        dataset: data.Dataset,
        fields: Sequence[str] = (),
    ) -> "Job":
        """Puts the images on the device."""
        train, test = map(jax.device_put, dataset[:2])
        return cls(config, backend, train, test, dataset.digest, tuple(fields))

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
        return programs.steps_per_epoch(self.config, len(self.train_images))

    def trainer(self, members: Sequence[TrainConfig]) -> Trainer:
        """A trainer of a group; groups share programs where they can."""
        alone = dataclasses.replace(members[0], seed=0)  # a program does not depend on the seed
        key = alone if len(members) == 1 else len(members)
        if key in self._trainers:
            return self._trainers[key].with_members(members)
        images = self.train_images, self.test_images
        trainer = Trainer(members, self.model, self.backend, *images, self.fields)
        self._trainers[key] = trainer
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
            states.append(initial_state(config, model, len(self.train_images)))
        return jax.device_put(stack(states))

    def empty_state(self, members: Sequence[TrainConfig]) -> TrainState:
        """A state of a group that has the structure and shapes of any other, all zeros."""
        examples = len(self.train_images)
        shapes = programs.training(members, self.model, self.backend, examples).arguments[0]
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def record(self, folder: Path) -> None:
        """Writes the environment to the directory of a run or population."""
        environment.record(folder, self.backend, self.digest)

    def describe(self, run: Path) -> None:
        """Writes the environment and the layers of the model to the directory of a run."""
        self.record(run)
        atomic.write_text(run / "summary.txt", layer_table(self.model.topology) + "\n")


def prepare(
    config: TrainConfig,
    workdir: Path,
    backend: str,
    images: tuple[np.ndarray, np.ndarray] | None,
    interruption: Interruption,
    **where: Any,
) -> tuple[TrainConfig, data.Dataset, Backend]:
    """The resolved config, images and backend of a training; arguments as of `fit`.

    Compiles the kernel and prepares the data, concurrently if the image shape is known in advance.
    """
    if images is None:
        config = data.located(config, data_dir=where["data_dir"])
    if images is None and known_shape(config) is not None:
        config = resolved(config)
        environment.check_memory(config)
        choosing = interruption.start(environment.choose_backend, workdir, config, backend)
        return config, data.load(config, **where), choosing.result()
    if images is None:
        dataset = data.load(config, **where)
    else:
        config = dataclasses.replace(config, data=ARRAYS, image_shape=None)
        dataset = data.of_arrays(config, images)
    config = resolved(config, dataset.image_shape)
    environment.check_memory(config)
    chosen = interruption.call(environment.choose_backend, workdir, config, backend)
    return config, dataset, chosen
