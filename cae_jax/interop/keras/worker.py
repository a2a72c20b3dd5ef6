"""Reads and writes networks with Keras, in a process that imports it."""

import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cae_jax.config import from_dict
from cae_jax.errors import UserError
from cae_jax.interop.keras import Params, Weights, files, layers
from cae_jax.models import topology
from cae_jax.models.topology import Topology


def read(path: Path) -> Weights:
    """Reads the weights in a file or folder of Keras.

    Raises:
        UserError: see `cae_jax.interop.keras.read`.
    """
    try:
        # Variables stay without memory: a file may announce more than it has.
        scope = keras.StatelessScope(initialize_variables=False)
        with warnings.catch_warnings(action="ignore"), scope:
            file, config = files.open_file(path)
            with file:
                if config is None:
                    image_shape = None
                    network, variables = files.identify(file)
                else:
                    network, image_shape = layers.check(config)
                    variables = [*files.in_order(file, config)]
                params = _load(network, variables)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # zipfile, json, h5py and Keras raise all kinds on a damaged file
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise UserError(f"{path} cannot be read ({what}); save it again in Keras") from error
    return Weights(network.model, network.features or None, image_shape, params, config is not None)


def _load(network: Topology, variables: Sequence[files.Arrays]) -> Params:
    """Loads the variables into the network as Keras builds it, which checks their shapes."""
    params, model = {}, layers.build(network)
    for layer, own in zip(network.weighted, variables, strict=True):
        # Keras compares the number first; a file may have thousands in a layer.
        values: Any = {
            key: files.read_array(own[key]) if key in ("0", "1") else None for key in own
        }
        model.get_layer(layer.name).load_own_variables(values)
        params[layer.name] = {"kernel": values["0"], "bias": values["1"]}
        if not all(np.isfinite(array).all() for array in values.values()):
            raise UserError(f"{layer.name} has values that are not finite")
    return params


def write(scratch: Path) -> None:
    """Writes ``config.json`` and ``weights.npz`` of a folder as ``model.keras`` in it.

    The archive has no dates and no memory addresses, which Keras would put in.
    """
    config = from_dict(json.loads((scratch / "config.json").read_text()))
    weights_path = scratch / "model.weights.h5"
    with keras.StatelessScope(initialize_variables=False):
        model = layers.build(topology.from_config(config))
        for name, layer in Weights.load(scratch / "weights.npz").params.items():
            model.get_layer(name).set_weights([layer["kernel"], layer["bias"]])
        model.save_weights(weights_path)
        members = {
            "metadata.json": json.dumps({"keras_version": keras.__version__}),
            "config.json": json.dumps(keras.saving.serialize_keras_object(model)),
            "model.weights.h5": weights_path.read_bytes(),
        }
    with zipfile.ZipFile(scratch / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980
