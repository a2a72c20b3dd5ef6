"""The project's networks as lists of Keras layers, to compare with and to write.

A layer is what Keras has in a saved config: the class, the settings, the name. Settings that only
training in Keras knows, such as initializers and regularizers, are left out.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from cae_jax.errors import UserError

Kind = Literal["conv", "simple", "deep"]
Features = tuple[int, int, int]
DEFAULT_FEATURES: Features = (16, 8, 8)

_CONV = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "data_format": "channels_last",
    "dilation_rate": [1, 1],
    "groups": 1,
    "use_bias": True,
}
_POOL = {
    "pool_size": [2, 2],
    "strides": [2, 2],
    "padding": "same",
    "data_format": "channels_last",
}
_UPSAMPLE = {"size": [2, 2], "data_format": "channels_last", "interpolation": "nearest"}
_NAMES = {"Conv2D": "conv", "MaxPooling2D": "pool", "UpSampling2D": "upsample", "Dense": "dense"}
# What Keras names layers after, where nobody else names them.
STEMS = {
    "Conv2D": "conv2d",
    "MaxPooling2D": "max_pooling2d",
    "UpSampling2D": "up_sampling2d",
    "Dense": "dense",
}
_WIDTHS = {"simple": (32,), "deep": (128, 64, 32)}
WEIGHTED = ("Conv2D", "Dense")
# Settings that old versions of Keras do not write, since they knew one value only.
_NEWER = ("groups", "interpolation")


class Layer(NamedTuple):
    """A layer of Keras.

    Attributes:
        type: its class, such as ``Conv2D``.
        settings: its config; of a file of weights alone, nothing.
        name: its own.
    """

    type: str
    settings: dict[str, Any]
    name: str = ""


def network(kind: Kind, features: Features) -> list[Layer]:
    """The layers of one of the networks after the input, with their names in `cae_jax.models`.

    Args:
        kind: ``TrainConfig.model``.
        features: of the three encoder convolutions; without meaning for the others.
    """
    layers = _conv_layers(*features) if kind == "conv" else _dense_layers(*_WIDTHS[kind])
    names = _numbered([_NAMES[layer.type] for layer in layers], first=1)
    return [layer._replace(name=name) for layer, name in zip(layers, names, strict=True)]


def stored_names(kind: Kind) -> list[str]:
    """The names of a network's layers in Keras 3's files of weights: conv2d, conv2d_1 and so on."""
    stems = [STEMS[layer.type] for layer in network(kind, DEFAULT_FEATURES)]
    return [re.sub("_0$", "", name) for name in _numbered([f"{stem}_" for stem in stems], first=0)]


def input_shape(kind: Kind) -> tuple[int, ...]:
    """The shape of one image, as the network in Keras takes it."""
    return (28, 28, 1) if kind == "conv" else (784,)


def weight_shapes(
    kind: Kind, features: Features
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the kernel and the bias by the name that the layer has in `cae_jax.models`."""
    shapes, n_in = {}, input_shape(kind)[-1]
    for layer in network(kind, features):
        if layer.type in WEIGHTED:
            window = (3, 3) if layer.type == "Conv2D" else ()
            n_out = layer.settings["filters" if layer.type == "Conv2D" else "units"]
            shapes[layer.name] = (*window, n_in, n_out), (n_out,)
            n_in = n_out
    return shapes


def identify(layers: Sequence[Layer]) -> tuple[Kind, Features]:
    """The network that layers come nearest to, which they are then compared with."""
    types = [layer.type for layer in layers]
    if "Dense" in types and "Conv2D" not in types:
        return "simple" if types.count("Dense") <= 2 else "deep", DEFAULT_FEATURES
    widths: list[Any] = [
        layer.settings.get("filters") for layer in layers if layer.type == "Conv2D"
    ][:3]
    if len(widths) == 3 and all(type(width) is int and width > 0 for width in widths):
        return "conv", (widths[0], widths[1], widths[2])
    return "conv", DEFAULT_FEATURES


def check_same(layers: Sequence[Layer], kind: Kind, features: Features) -> None:
    """Refuses layers that do not compute what those of a `network` do.

    Args:
        layers: as a file has them, after `without_reshaping`.
        kind: see `network`.
        features: see `network`.

    Raises:
        UserError: naming the first difference.
    """
    expected = network(kind, features)
    for number, (layer, wanted) in enumerate(zip(layers, expected, strict=False), start=1):
        where = f"layer {number} ({layer.name})"
        if layer.type != wanted.type:
            raise UserError(f"{where} is {layer.type}; the network has {wanted.type} there")
        for key, value in wanted.settings.items():
            found = layer.settings.get(key, value if key in _NEWER else "missing")
            if found != value:
                raise UserError(
                    f"{where}: {key} is {_short(found)}; the network has {_short(value)} there"
                )
        _check_policy(where, layer)
    if len(layers) > len(expected):
        extra = layers[len(expected)]
        raise UserError(
            f"layer {len(expected) + 1} ({extra.name}) is {extra.type}; the network ends before it"
        )
    if len(layers) < len(expected):
        missing = expected[len(layers)].type
        raise UserError(f"it has {len(layers)} layers; the network goes on with {missing}")


def check_input(layer: Layer, kind: Kind) -> None:
    """Refuses an input that takes other images than 28 x 28 floats.

    Raises:
        UserError: another shape or type.
    """
    shape = layer.settings.get("batch_shape", layer.settings.get("batch_input_shape"))
    accepted = [[28, 28, 1]] if kind == "conv" else [[784], [28, 28], [28, 28, 1]]
    if not isinstance(shape, list) or shape[1:] not in accepted:
        raise UserError(
            f"the input has shape {_short(shape)}; the network takes "
            f"{' or '.join(_short([None, *shape]) for shape in accepted)}"
        )
    _check_policy("the input", layer)


def without_reshaping(layers: Sequence[Layer]) -> list[Layer]:
    """The layers of a fully connected network without a first Flatten and a last Reshape.

    Raises:
        UserError: a Reshape to anything but 28 x 28 pixels.
    """
    layers = list(layers)
    if layers and layers[0].type == "Flatten":
        del layers[0]
    if layers and layers[-1].type == "Reshape":
        shape = layers.pop().settings.get("target_shape")
        if shape not in ([28, 28], [28, 28, 1]):
            raise UserError(f"the last layer reshapes to {_short(shape)}; it may to [28, 28]")
    return layers


def _numbered(stems: Sequence[str], first: int) -> list[str]:
    """Names from stems, those of equal stem numbered in their order."""
    return [f"{stem}{stems[:i].count(stem) + first}" for i, stem in enumerate(stems)]


def _conv_layers(f1: int, f2: int, f3: int) -> list[Layer]:
    pool, upsample = Layer("MaxPooling2D", _POOL), Layer("UpSampling2D", _UPSAMPLE)
    return [
        *(_conv(f1), pool),  # 28 -> 14
        *(_conv(f2), pool),  # 14 -> 7
        *(_conv(f3), pool),  # 7 -> 4
        *(_conv(f3), upsample),  # 4 -> 8
        *(_conv(f2), upsample),  # 8 -> 16
        *(_conv(f1, padding="valid"), upsample),  # 16 -> 14 -> 28
        _conv(1, activation="sigmoid"),
    ]


def _conv(filters: int, padding: str = "same", activation: str = "relu") -> Layer:
    settings = {"filters": filters, **_CONV, "padding": padding, "activation": activation}
    return Layer("Conv2D", settings)


def _dense_layers(*widths: int) -> list[Layer]:
    units = (*widths, *widths[-2::-1], 784)
    activations = ["relu"] * (len(units) - 1) + ["sigmoid"]
    return [
        Layer("Dense", {"units": n, "activation": activation, "use_bias": True})
        for n, activation in zip(units, activations, strict=True)
    ]


def _check_policy(where: str, layer: Layer) -> None:
    """Other types of number give other results: a layer has to compute in float32."""
    policy = layer.settings.get("dtype", "float32")
    if isinstance(policy, dict) and isinstance(policy.get("config"), dict):
        policy = policy["config"].get("name")
    if policy != "float32":
        raise UserError(f"{where} has dtype {_short(policy)}; the network computes in float32")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
