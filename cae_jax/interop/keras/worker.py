"""Reads and writes networks with Keras, in a process that imports it.

A model that is read never has its variables allocated: within a stateless scope Keras keeps the
loaded values beside them, so that a file takes no more memory than it has bytes.
"""

import warnings
from pathlib import Path

import keras
import numpy as np

from cae_jax.config import from_dict
from cae_jax.errors import UserError
from cae_jax.interop.keras import files, layers
from cae_jax.interop.keras.process import DEFAULT_FEATURES, Weights
from cae_jax.models import topology


def read(path: Path, scratch: Path) -> Weights:
    """Reads the weights in a file of Keras.

    Args:
        path: an existing file.
        scratch: directory for the copy that Keras loads.

    Raises:
        UserError: see `cae_jax.interop.keras.read`.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return _read(path, scratch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # zipfile, json, h5py and Keras raise all kinds on a damaged file
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise UserError(f"{path} cannot be read ({what}); save it again in Keras") from error


def _read(path: Path, scratch: Path) -> Weights:
    copy, config = files.unpack(path, scratch)
    with keras.StatelessScope(initialize_variables=False) as scope:
        if config is None:
            network = layers.identify(**files.stored_layers(copy))
            model = layers.build(network)
        else:
            config, network = layers.check(config)
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        model.load_weights(copy)
        values = [scope.get_current_value(weight) for weight in model.weights]
    params: dict[str, dict[str, np.ndarray]] = {}
    wanted = [(layer, which) for layer in network.weighted for which in ("kernel", "bias")]
    for (layer, which), value in zip(wanted, values, strict=True):
        kernel = layer.kernel or ()
        shape = kernel if which == "kernel" else kernel[-1:]
        if value is None or value.shape != shape:
            found = "is not in the file" if value is None else f"has shape {value.shape}"
            raise UserError(f"{which} of {layer.name} {found}; the network takes {shape}")
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{which} of {layer.name} has values that are not finite")
        params.setdefault(layer.name, {})[which] = value
    features = network.features or DEFAULT_FEATURES
    return Weights(network.model, features, params, config is not None)


def write(weights: Weights, scratch: Path) -> None:
    """Writes a network as ``model.keras``, a Sequential model; equal weights give equal bytes."""
    network = topology.of_config(from_dict({"model": weights.model, "features": weights.features}))
    saved = scratch / "saved.keras"
    with keras.StatelessScope(initialize_variables=False):
        model = layers.build(network)
        for name, layer in weights.params.items():
            model.get_layer(name).set_weights([layer["kernel"], layer["bias"]])
        model.save(saved)
        config = keras.saving.serialize_keras_object(model)
    files.repack(saved, config, scratch / "model.keras")
