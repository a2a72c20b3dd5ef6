"""Reads and writes networks with Keras, in a process that imports it."""

import json
import re
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from cae_jax.config import LEAST_SIDE, TrainConfig
from cae_jax.errors import UserError
from cae_jax.interop.keras import Weights, layers
from cae_jax.models import topology
from cae_jax.models.topology import Topology

# Bytes. The configs of the networks have about 15 kB; their weights, with an optimizer's, 5 MB.
_MAX_CONFIG, _MAX_WEIGHTS = 2**20, 2**30
# The groups with the layers of a model: of Keras 2.12 to 2.14, and of Keras 3.
_KERAS_2, _KERAS_3 = "_layer_checkpoint_dependencies", "layers"
_CONVERT = "load it in Keras and save the whole model with model.save('model.keras')"


def read(path: Path, scratch: Path) -> Weights:
    """Loads the weights of a file or folder of Keras into the network that they belong to.

    Raises:
        UserError: see `cae_jax.interop.keras.read`.
    """
    try:
        # Variables stay without memory: a file may announce more than it has.
        scope = keras.StatelessScope(initialize_variables=False)
        with warnings.catch_warnings(action="ignore"), scope:
            weights_path, config = _unpack(path, scratch)
            flat, network, shape = layers.check(config) if config else _identify(weights_path)
            _load(layers.arrange(config, flat) if config else flat, weights_path)
            names = [layer.name for layer in network.weighted]
            arrays = {name: flat.get_layer(name).get_weights() for name in names}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # zipfile, json, h5py and Keras raise all kinds on a damaged file
        what = f"{type(error).__name__}: {_line(error)}"
        raise UserError(f"{path} cannot be read ({what}); save it again in Keras") from error
    for name, own in arrays.items():
        if not all(np.isfinite(array).all() for array in own):
            raise UserError(f"{path}: {name} has values that are not finite; train it again")
    params = {name: {"kernel": own[0], "bias": own[1]} for name, own in arrays.items()}
    return Weights(network.model, network.features or None, shape, params, config is not None)


def _unpack(path: Path, scratch: Path) -> tuple[Path, layers.Json | None]:
    """Copies the weights to a name by which Keras knows their format, and reads the config.

    Returns:
        The copy, and the config of the model; None of a file of weights alone.
    """
    config: Any = None
    content = b"" if path.is_dir() else _content(path, _MAX_WEIGHTS)
    if path.is_dir() or content.startswith(b"PK\x03\x04"):
        parent: Any = path if path.is_dir() else zipfile.Path(path)
        config = _content(parent / "config.json", _MAX_CONFIG)
        content = _content(parent / "model.weights.h5", _MAX_WEIGHTS)
    elif not h5py.is_hdf5(path):
        raise UserError(f"it is neither a .keras archive nor HDF5; {_CONVERT}")
    copy = scratch / "model.weights.h5"
    copy.write_bytes(content)
    with h5py.File(copy, "r+") as file:
        # What is not None ends the visit.
        link = file.visititems_links(lambda name, x: None if isinstance(x, h5py.HardLink) else name)
        if link:
            raise UserError(f"{link} in it is a link, which Keras does not write; {_CONVERT}")
        _renumber(file)
        config = file.attrs.get("model_config", config)
        if "layer_names" in file.attrs or "model_weights" in file:
            copy = copy.rename(scratch / "model.h5")
    if config is not None:
        config = json.loads(config) if len(config) <= _MAX_CONFIG else None
        if not isinstance(config, dict) or not config:
            raise UserError(f"its config is no JSON object of at most {_MAX_CONFIG} bytes")
    return copy, config


def _content(file: Any, most: int) -> bytes:
    """The bytes of a file, which may lie in an archive."""
    if not file.is_file():
        raise UserError(f"it has no {file.name}; {_CONVERT}")
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UserError(f"{file.name} has more than {most} bytes, far more than a network needs")
    return content


def _renumber(file: h5py.File) -> None:
    """Numbers the layers of a class as Keras 3 does; Keras 2.12 and 2.13 count some by two."""
    paths: list[str] = []
    file.visit(paths.append)
    counts: Counter[str] = Counter()
    # The innermost first: what lies in a group that was renamed has another path.
    for path in sorted(paths, key=lambda path: (-path.count("/"), _number(path))):
        if path.rpartition("/")[0].endswith(_KERAS_2):
            stem = _stem(path)
            wanted = f"{stem}_{counts[stem]}" if counts[stem] else stem
            counts[stem] += 1
            if path != wanted:
                file.move(path, wanted)


def _identify(path: Path) -> tuple[keras.Sequential, Topology, None]:
    """Finds the network of a file of weights alone, by the classes of the layers and their kernels.

    The file does not tell the height and width of the images, nor do the kernels depend on them:
    the network is that of some shape with as many channels, or as many pixels.
    """
    with h5py.File(path) as file:
        group: Any = next((file[name] for name in (_KERAS_2, _KERAS_3) if name in file), file)
        names: Any = file.attrs.get("layer_names", sorted(group, key=_number))
        names = np.asarray(names).astype(str)
        kernels = [kernel for name in names if (kernel := _kernel(group[name]))]
    if not kernels:
        raise UserError(f"it is HDF5 without weights of Keras; {_CONVERT}")
    kinds = ["Conv2D" if len(kernel) == 4 else "Dense" for kernel in kernels]
    shape = (LEAST_SIDE, LEAST_SIDE, kernels[0][-2]) if "Conv2D" in kinds else (1, kernels[0][0], 1)
    network = layers.nearest(kinds, [kernel[-1] for kernel in kernels], shape)
    flat = layers.build(network)
    classes = [re.sub("(?<=[a-z])(?=[A-Z])", "_", type(x).__name__).lower() for x in flat.layers]
    # What depends on the size of the images
    ignored = {"cropping2d", "zero_padding2d"} if network.features else {"flatten", "reshape"}
    ignored |= {"input", "input_layer"}
    found, wanted = (
        Counter(name for name in each if name not in ignored)
        for each in (map(_stem, names), classes)
    )
    if found != wanted:
        raise UserError(
            f"it has {', '.join(found - wanted) or 'no layer'} where the network has "
            f"{', '.join(wanted - found) or 'none'}; if it computes the same, {_CONVERT}"
        )
    return flat, network, None


def _kernel(layer: Any) -> tuple[int, ...] | None:
    """The shape of the first array with axes in a group; None without one."""
    if not isinstance(layer, h5py.Group):
        return None
    return layer.visititems(lambda _, x: x.shape if len(getattr(x, "shape", ())) > 1 else None)


def _load(model: keras.Model, path: Path) -> None:
    try:
        model.load_weights(path)
    except ValueError as error:
        what = _line(error).partition(" List of objects")[0]
        raise UserError(f"Keras cannot load its weights ({what}); {_CONVERT}") from error


def write(scratch: Path) -> None:
    """Writes the network of ``weights.npz`` in a folder as ``model.keras`` in it.

    The archive has no dates and no memory addresses, which Keras would put in.
    """
    weights, path = Weights.load(scratch / "weights.npz"), scratch / "model.weights.h5"
    shape, features = weights.image_shape, weights.features
    config = TrainConfig(model=weights.model, data="arrays", image_shape=shape, features=features)
    with keras.StatelessScope(initialize_variables=False):
        model = layers.build(topology.from_config(config))
        for name, layer in weights.params.items():
            model.get_layer(name).set_weights([layer["kernel"], layer["bias"]])
        model.save_weights(path)
        members = {
            "metadata.json": json.dumps({"keras_version": keras.__version__}),
            "config.json": json.dumps(keras.saving.serialize_keras_object(model)),
            "model.weights.h5": path.read_bytes(),
        }
    with zipfile.ZipFile(scratch / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _number(name: str) -> int:
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0
