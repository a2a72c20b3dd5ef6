"""Reads the project's networks from files of Keras, without Keras.

What `read` takes, told apart by its content and not by its name:

- ``.keras`` archives of Keras 3 and 2.15: the layers with all settings, and their weights
- ``.h5`` files of ``model.save`` in Keras 2 and 3: the same
- ``.weights.h5`` files, and ``.h5`` files of ``save_weights`` in Keras 2: weights, and the types of
  the layers, but neither padding nor activation

Kernels have the same layouts in Keras and in Flax. A model in Keras ends with the sigmoid, which
the models of `cae_jax.models` leave to those who use their logits.
"""

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from cae_jax.errors import UserError
from cae_jax.interop.keras import keras_config, keras_file
from cae_jax.interop.keras.keras_layers import (
    DEFAULT_FEATURES,
    STEMS,
    WEIGHTED,
    Features,
    Kind,
    Layer,
    check_input,
    check_same,
    identify,
    network,
    stored_names,
    weight_shapes,
    without_reshaping,
)

Params = dict[str, dict[str, np.ndarray]]

_TYPES = {stem: kind for kind, stem in STEMS.items()}
_INPUTS, _RESHAPINGS = ("input", "input_layer"), ("flatten", "reshape")


class Weights(NamedTuple):
    """A network that Keras has saved.

    Attributes:
        kind: ``TrainConfig.model``.
        features: ``TrainConfig.features``; of a fully connected network the default.
        params: float32, kernel and bias of each layer, by the layer's name in `cae_jax.models`.
        whole: whether the settings of the layers were in the file, and so were compared.
    """

    kind: Kind
    features: Features
    params: Params
    whole: bool


class _Place(NamedTuple):
    """Where a layer's weights lie in a file."""

    group: h5py.Group
    kernel: str
    bias: str


def read(path: str | Path) -> Weights:
    """The weights of one of the project's networks, as Keras has saved it.

    For files from others there is `keras_isolated`: HDF5 may crash on damaged ones.

    Raises:
        UserError: a file that is missing, damaged or none of Keras's, or one of another network,
            naming the first difference.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; give a .keras, .weights.h5 or .h5 file of Keras")
    try:
        return _read_archive(path) if keras_file.is_archive(path) else _read_hdf5(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except keras_file.DAMAGE as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} cannot be read ({what}); save it anew in Keras") from error


def _read_archive(path: Path) -> Weights:
    with zipfile.ZipFile(path) as file:
        layers = keras_config.read_layers(keras_file.read_config(file))
        kind, features = _check_layers(layers)
        shapes = weight_shapes(kind, features).values()
        parameters = sum(math.prod(shape) for both in shapes for shape in both)
        with keras_file.open_weights(file, parameters) as weights:
            params = _read_params(_stored(weights, kind), kind, features)
            return Weights(kind, features, params, whole=True)


def _read_hdf5(path: Path) -> Weights:
    with h5py.File(path, "r") as file:
        if "model_config" in file.attrs:
            (text,) = keras_file.strings(file, "model_config")
            layers = keras_config.read_layers(keras_file.read_json(text))
            kind, features = _check_layers(layers)
            names = [layer.name for layer in layers if layer.type in WEIGHTED]
            places = _legacy(keras_file.group_at(file, "model_weights"), names)
            return Weights(kind, features, _read_params(places, kind, features), whole=True)
        if "layer_names" in file.attrs:
            names = keras_file.strings(file, "layer_names")
            kind = _check_names(names)
            places = _legacy(file, [name for name in names if _type(name) in WEIGHTED])
        elif "layers" in file:
            names = keras_file.names_in(keras_file.group_at(file, "layers"))
            kind = _check_names(names, by_type=True)
            places = _stored(file, kind)
        else:
            raise UserError("it is HDF5, but not of Keras; save the model with model.save")
        features = _read_features(places, kind)
        return Weights(kind, features, _read_params(places, kind, features), whole=False)


def _check_layers(layers: Sequence[Layer]) -> tuple[Kind, Features]:
    """The network that all layers of a model form."""
    inputs = [layer for layer in layers[:1] if layer.type == "InputLayer"]
    layers = layers[len(inputs) :]
    kind, features = identify(layers)
    check_same(layers if kind == "conv" else without_reshaping(layers), kind, features)
    for layer in inputs:
        check_input(layer, kind)
    return kind, features


def _check_names(names: Sequence[str], *, by_type: bool = False) -> Kind:
    """The network whose layers have such names, where no more is known of them.

    Args:
        names: of the layers.
        by_type: they are not in the order of the layers, but numbered within each type from 0.
    """
    kind, _ = identify([Layer(_type(name), {}, name) for name in names])
    expected = [layer.type for layer in network(kind, DEFAULT_FEATURES)]
    optional = _INPUTS if kind == "conv" else (*_INPUTS, *_RESHAPINGS)
    names = [name for name in names if _type(name) not in optional]
    if by_type:
        order = {name: number for number, name in enumerate(stored_names(kind))}
        names = sorted(names, key=lambda name: order.get(name, -1))
    for name, wanted in zip(names, expected, strict=False):
        if _type(name) != wanted:
            raise UserError(
                f"it names a layer {name} where the network has {wanted}; if it is the same "
                "network, save it as a whole with model.save"
            )
    if len(names) != len(expected):
        raise UserError(f"it has {len(names)} layers; the network has {len(expected)}")
    return kind


def _type(name: str) -> str:
    """The type of a layer that Keras has named; of others the name."""
    stem = re.sub(r"_\d+$", "", name)
    return _TYPES.get(stem, stem)


def _stored(file: h5py.Group, kind: Kind) -> list[_Place]:
    """The layers with weights, as Keras 3 arranges them."""
    places = []
    for name in stored_names(kind):
        if _type(name) in WEIGHTED:
            group = keras_file.group_at(file, f"layers/{name}/vars")
            _check_count(name, keras_file.names_in(group))
            places.append(_Place(group, "0", "1"))
    return places


def _legacy(file: h5py.Group, names: Sequence[str]) -> list[_Place]:
    """The layers with weights, as Keras 2 arranges them."""
    places = []
    for name in names:
        group = keras_file.group_at(file, name)
        weights = keras_file.strings(group, "weight_names")
        _check_count(name, weights)
        places.append(_Place(group, *weights))
    return places


def _check_count(name: str, weights: Sequence[str]) -> None:
    if len(weights) != 2:
        raise UserError(f"layer {name} has {len(weights)} arrays; it takes a kernel and a bias")


def _read_features(places: Sequence[_Place], kind: Kind) -> Features:
    """From the shapes of the weights, where the settings of the layers are not known."""
    if kind != "conv":
        return DEFAULT_FEATURES
    shapes = [keras_file.shape_at(place.group, place.bias) for place in places]
    return identify([Layer("Conv2D", {"filters": shape[0]}) for shape in shapes if shape])[1]


def _read_params(places: Sequence[_Place], kind: Kind, features: Features) -> Params:
    shapes = weight_shapes(kind, features)
    return {
        name: {
            "kernel": keras_file.array_at(place.group, place.kernel, kernel),
            "bias": keras_file.array_at(place.group, place.bias, bias),
        }
        for place, (name, (kernel, bias)) in zip(places, shapes.items(), strict=True)
    }
