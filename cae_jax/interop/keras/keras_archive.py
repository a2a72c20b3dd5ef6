"""Writes the project's networks as archives that ``keras.models.load_model`` opens.

Neither Keras nor code of one's own is needed: they are Sequential models of Keras's own layers.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flax import nnx

from cae_jax import atomic
from cae_jax.errors import UserError
from cae_jax.interop.keras import keras_config, keras_file
from cae_jax.interop.keras.keras_layers import Features, Kind, network, stored_names
from cae_jax.models.inference import Autoencoder


def write(path: str | Path, autoencoder: Autoencoder) -> None:
    """Writes a ``.keras`` archive of Keras 3, atomically; equal weights give equal bytes.

    The model takes images in [0, 1] ``[N, 28, 28, 1]``, a fully connected one ``[N, 784]``, and
    gives images of the same shape.

    Args:
        path: ends in ``.keras``.
        autoencoder: what to write.

    Raises:
        UserError: another suffix, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise UserError(f"{path} does not end in .keras, as Keras wants it; name it so")
    config = autoencoder.config
    params = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    content = _archive(config.model, config.features, params)
    try:
        atomic.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); give another file") from error


def _archive(kind: Kind, features: Features, params: dict[str, Any]) -> bytes:
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for name, layer in zip(stored_names(kind), network(kind, features), strict=True):
            group = file.create_group(f"layers/{name}/vars")  # empty for those without weights
            for number, array in enumerate(_arrays(params.get(layer.name, {}))):
                group[str(number)] = array
    members = {
        # Who can read it, not who wrote it: the format is what it was in that version.
        keras_file.METADATA: json.dumps({"keras_version": "3.0.0"}),
        keras_file.CONFIG: json.dumps(keras_config.write_model(kind, features)),
        keras_file.WEIGHTS: weights.getvalue(),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)  # dated 1980, as Keras does it
    return archive.getvalue()


def _arrays(layer: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(layer[which]) for which in ("kernel", "bias") if which in layer]
