"""Reads and writes the files of Keras, and turns the weights in one into a run.

Keras itself does the reading and writing, in a process that is started for it: this package is
imported without Keras, and a file that crashes or stalls the HDF5 library costs one line.
"""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cae_jax import atomic
from cae_jax.config import Shape, TrainConfig, known_shape
from cae_jax.errors import UserError, installing

if TYPE_CHECKING:
    from cae_jax.models.inference import Autoencoder

__all__ = ["Weights", "import_run", "matching", "read", "write"]
# The first release, next to 3.12.4, in which all known holes of deserialisation are closed.
_KERAS = (3, 15, 1)
_SECONDS = 120  # most of them go into starting Keras: 5 to 15
_EVALUATED_BYTES = 256 * 2**20  # of the validation images on the device at a time
Params = dict[str, dict[str, np.ndarray]]


class Weights(NamedTuple):
    """The weights of a network that Keras has saved.

    Attributes:
        model: ``TrainConfig.model``.
        features: ``TrainConfig.features``; None of a fully connected network.
        image_shape: ``TrainConfig.image_shape``; None where the file does not tell, a file of
            weights or of a fully connected network on flat images.
        params: float32 arrays, kernel and bias by the layer's name in `cae_jax.models.topology`.
        complete: whether the file also has the settings of the layers, so that they were compared;
            False for a file of weights, which has neither padding nor activations.
    """

    model: Any
    features: tuple[int, ...] | None
    image_shape: Shape | None
    params: Params
    complete: bool

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file of plain arrays."""
        arrays: Any = {
            f"{layer}/{name}": array
            for layer, params in self.params.items()
            for name, array in params.items()
        }
        np.savez(path, facts=json.dumps(self._replace(params={})), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Weights":
        """Reads what `save` wrote; nothing in it is unpickled."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        model, features, image_shape, params, complete = json.loads(arrays.pop("facts").item())
        for path_, array in arrays.items():
            layer, name = path_.split("/")
            params.setdefault(layer, {})[name] = array
        features, image_shape = (each and tuple(each) for each in (features, image_shape))
        return cls(model, features, image_shape, params, complete)

    @property
    def _inputs(self) -> int:
        """Channels of the images, or pixels of those of a fully connected network."""
        return next(iter(self.params.values()))["kernel"].shape[-2]

    def takes(self, image_shape: Shape) -> bool:
        """Whether the network takes images of this height, width and number of channels."""
        if self.image_shape is not None:
            return self.image_shape == image_shape
        return self._inputs == (image_shape[2] if self.features else math.prod(image_shape))

    @property
    def images(self) -> str:
        """The images that it takes, in words."""
        if self.image_shape is not None:
            return f"{_by(self.image_shape)} images"
        return f"images of {self._inputs} {'channels' if self.features else 'values'}"


def read(path: str | Path) -> Weights:
    """Reads the weights of one of the project's networks from a file of Keras.

    Args:
        path: ``.keras`` or ``.h5`` of ``model.save``, a folder of ``model.save(zipped=False)``, or
            ``.weights.h5``, of Keras 2.12 or later; ``.h5`` of any Keras 2. The content decides,
            not the name.

    Raises:
        UserError: Keras is not installed, or the file is missing, damaged, not written by Keras, or
            holds another network; the message names the first difference.
    """
    path = Path(path).expanduser()
    if not path.is_file() and not (path / "config.json").is_file():
        raise UserError(f"{path} is no file of Keras; give a .keras, .weights.h5 or .h5 file")
    with tempfile.TemporaryDirectory() as scratch:
        _run("read", path, Path(scratch))
        return Weights.load(Path(scratch, "weights.npz"))


def write(path: str | Path, autoencoder: "Autoencoder") -> None:
    """Writes a ``.keras`` file, atomically; equal weights give equal bytes.

    The model takes images in [0, 1] ``[N, height, width, channels]``, a fully connected one
    ``[N, pixels]``, and returns images of the same shape. Its layers have the names of
    `cae_jax.models.topology`.

    Raises:
        UserError: another suffix, a file that cannot be written, Keras is not installed, or a
            network of a `rate` or of `widths`.
    """
    from flax import nnx  # takes seconds, which the process that imports Keras does without

    path = Path(path).expanduser()
    if path.suffix != ".keras":
        raise UserError(f"{path} does not end in .keras, as Keras requires; rename it")
    network, config = autoencoder.topology, autoencoder.config
    if network.quantised or config.widths:
        name = "rate" if network.quantised else "widths"
        raise UserError(
            f"the run has `{name}` {getattr(config, name)}, which the Keras format does not take; "
            "export it in the format onnx or stablehlo"
        )
    params: Any = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    weights = Weights(network.model, network.features or None, network.image_shape, params, True)
    with atomic.output_file(path) as temporary, tempfile.TemporaryDirectory() as scratch:
        weights.save(Path(scratch, "weights.npz"))
        _run("write", path, Path(scratch))
        shutil.copyfile(Path(scratch, "model.keras"), temporary)


def matching(config: TrainConfig, weights: Weights) -> TrainConfig:
    """Returns the config with the network of the weights, and their image shape if it is known.

    It is that of the file, else that of the config's data, else its ``image_size`` with the
    channels of the file.
    """
    shape = weights.image_shape or known_shape(config)
    if shape is None and config.image_size is not None and weights.features:
        shape = (*config.image_size, weights._inputs)
    features: Any = weights.features or config.features
    return dataclasses.replace(config, model=weights.model, features=features, image_shape=shape)


def import_run(
    weights: Weights,
    config: TrainConfig,
    workdir: str | Path,
    *,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
) -> float:
    """Writes a run whose checkpoint of step 0 has the weights and a fresh optimizer.

    It can be loaded and evaluated, and ``fit`` with the same config continues from it.

    Args:
        config: of the training; its model, features and image shape are those of the weights,
            features and image shape also None.
        workdir: directory of the run.
        overwrite: replace an existing run.
        data_dir, verify_data, workers: see `cae_jax.data.load_split`.

    Returns:
        val_loss, by which the checkpoint ranks among those of the training that follows.

    Raises:
        UserError: a config of another network, an existing run, unusable data or directory.
    """
    from cae_jax import data  # these take seconds, which a refused file does without
    from cae_jax.models.autoencoders import build_with
    from cae_jax.ops import settings
    from cae_jax.runs import checkpoints, folder
    from cae_jax.training.trainer import initial_state

    workdir = Path(workdir).expanduser()
    if (workdir / "config.json").exists() and not overwrite:
        raise UserError(f"{workdir} holds a run; give another directory")
    _check_config(config, weights)
    config = data.located(config, data_dir=data_dir)
    images = data.load(config, data_dir=data_dir, verify_data=verify_data, workers=workers)
    _check_images(weights, images.image_shape, config.data)
    config = images.resolve(matching(config, weights))
    with settings.ours():
        model = build_with(config, weights.params)
        state = initial_state(config, model, len(images.train))
        val_loss = _evaluated(config, model, state.params, images.validation)
    with folder.open_folder(workdir, overwrite=overwrite):
        with checkpoints.Checkpoints(folder.checkpoint_folder(workdir), config) as saved:
            saved.save(state, val_loss)
        # Last: a config alone would be taken for a run that starts from random parameters.
        folder.write_config(workdir, config)
    return val_loss


def _evaluated(config: TrainConfig, model: Any, params: Any, images: np.ndarray) -> float:
    """The val_loss of a model; the images are read in slices, to the bits of all at once."""
    from cae_jax.data.reader import Reader
    from cae_jax.ops.backend import XLA
    from cae_jax.training.programs import evaluated_bytes
    from cae_jax.training.validation import Validation, least_images

    some = _EVALUATED_BYTES // evaluated_bytes([config], model)
    backend = XLA.with_precision(config.precision)
    most = max(some, least_images(config, backend, len(images)))
    [score] = Validation([config], model, backend, Reader(images), most).evaluate(params)
    return score.val_loss


def _check_config(config: TrainConfig, weights: Weights) -> None:
    """Refuses a config of another network, or of other images if their shape is known."""
    if config.model != weights.model:
        example = {"conv": "fashion_mnist"}.get(weights.model, weights.model)
        raise UserError(
            f"the weights are of the network {weights.model} and the config has {config.model}; "
            f"give `config={example}`"
        )
    if weights.features and config.features not in (None, weights.features):
        raise UserError(
            f"the weights have features {weights.features} and `features` are {config.features}; "
            "leave them out"
        )
    image_shape = known_shape(config)
    if image_shape is not None:
        _check_images(weights, image_shape, config.data)


def _check_images(weights: Weights, image_shape: Shape, data: str) -> None:
    if not weights.takes(image_shape):
        raise UserError(
            f"the weights are of {weights.images}, and those of {data} are {_by(image_shape)}; "
            "give `data`, a folder or file of images, or `image_size` and `channels`"
        )


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _check_keras() -> None:
    needed = ".".join(map(str, _KERAS))
    try:
        installed = metadata.version("keras")
    except metadata.PackageNotFoundError:
        problem = "Keras is not installed"
    else:
        if tuple(map(int, installed.split(".")[:3])) >= _KERAS:
            return
        problem = f"Keras {installed} is installed"
    raise UserError(f"{problem}; {needed} or later is needed: {installing('keras')}")


def _run(mode: str, path: Path, scratch: Path) -> None:
    """Runs the process; what it reads or writes besides `path` lies in `scratch`."""
    _check_keras()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": str(scratch),  # not the settings in ~/.keras
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-P", "-m", "cae_jax.interop.keras", mode, path, scratch]
    options: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": _SECONDS}
    problem = f"{path} cannot be {'read' if mode == 'read' else 'written'}"
    try:
        process = subprocess.run(command, env=environment, **options)
    except subprocess.TimeoutExpired:
        raise UserError(f"{problem} in {_SECONDS} s; save it again in Keras") from None
    if process.returncode == 2:
        raise UserError((scratch / "refusal.txt").read_text())
    if process.returncode < 0:
        what = f"signal {-process.returncode} ended Keras"
        raise UserError(f"{problem} ({what}); save it again in Keras")
    if process.returncode:
        raise RuntimeError(process.stderr.decode())
