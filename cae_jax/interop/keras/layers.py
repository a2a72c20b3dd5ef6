"""Models of Keras: built from the table of layers, and compared with it before Keras loads them."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from cae_jax.errors import UserError
from cae_jax.interop.keras.process import DEFAULT_FEATURES
from cae_jax.models import topology
from cae_jax.models.topology import IMAGE_SHAPE, KERAS_TYPES, Layer, Topology

Json = dict[str, Any]
# Where Keras 3 finds the classes of models; Keras 2 and tf_keras name other modules.
_MODELS = {
    "Sequential": {"module": "keras", "class_name": "Sequential"},
    "Functional": {"module": "keras.src.models.functional", "class_name": "Functional"},
    "Model": {"module": "keras.src.models.functional", "class_name": "Functional"},
}
# What matters to training in Keras only, is compared elsewhere, or is new in Keras 3.
_IGNORED = (
    r"name|dtype|trainable|quantization_config|lora_\w+|\w+_(initializer|regularizer|constraint)"
)
_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")  # all keep float32 weights


def build(network: Topology) -> keras.Sequential:
    """Returns the network as a Sequential model; its last layer applies the sigmoid."""
    made = [keras.Input(network.layers[0].shape, name=network.layers[0].name)]
    for before, layer, after in zip(
        network.layers, network.layers[1:], (*network.layers[2:], None), strict=False
    ):
        # Cropping has no activation in Keras, and may as well follow it.
        activation = after.activation if after and after.kind == "crop" else layer.activation
        made.append(_build(layer, before, activation))
    return keras.Sequential(made, name="autoencoder")


def _build(layer: Layer, before: Layer, activation: str | None) -> keras.Layer:
    if layer.kind == "conv":
        (padding,) = {*layer.padding}  # Keras has one for rows and columns
        return keras.layers.Conv2D(
            layer.shape[-1],
            topology.KERNEL,
            padding=padding,
            activation=activation,
            name=layer.name,
        )
    if layer.kind == "dense":
        return keras.layers.Dense(layer.shape[-1], activation, name=layer.name)
    if layer.kind == "pool":
        return keras.layers.MaxPooling2D(2, padding="same", name=layer.name)
    if layer.kind == "upsample":
        return keras.layers.UpSampling2D(2, name=layer.name)
    rows, columns = (n - m for n, m in zip(before.shape[:2], layer.shape[:2], strict=True))
    return keras.layers.Cropping2D(((0, rows), (0, columns)), name=layer.name)


def identify(names: Sequence[str], widths: Sequence[int], *, in_order: bool) -> Topology:
    """Returns the network that a file of weights alone is of, by the names of its layers.

    Args:
        names: of all layers.
        widths: features of the layers that have weights, in order.
        in_order: whether the names are in the order of the layers.

    Raises:
        UserError: the names are not those that Keras gives to the layers of the network.
    """
    found = [re.sub(r"_\d+$", "", name) for name in names]
    network = _nearest(["Dense" if "dense" in found else "Conv2D"] * len(widths), widths)
    ignored = {"input", "input_layer", *(() if network.features else ("flatten", "reshape"))}
    found = [name for name in found if name not in ignored]
    types = [KERAS_TYPES[layer.kind] for layer in network.layers[1:]]
    expected = [re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in types]
    if not in_order:
        found, expected = sorted(found), sorted(expected)
    for name, wanted in itertools.zip_longest(found, expected, fillvalue="nothing"):
        if name != wanted:
            raise UserError(
                f"it has {len(found)} layers and names {name} where the network, of "
                f"{len(expected)}, has {wanted}; if it is the same, save it with model.save"
            )
    return network


def check(model: Json) -> tuple[Json, Topology]:
    """Compares a saved model with the network and reduces it to what Keras needs to rebuild it.

    Of the file nothing is left but the names of the layers and how they are nested.

    Args:
        model: the JSON of a Sequential or functional model of Keras 2 or 3.

    Returns:
        JSON for Keras 3, and the network.

    Raises:
        UserError: another kind of model, or another network; names the first difference.
        Exception: it is not a model as Keras writes it.
    """
    if _class(model) not in _MODELS:
        raise UserError(
            f"the model is of class {_class(model)}; it takes a Sequential or functional one"
        )
    leaves = [*_leaves(model)]
    inputs = [leaf for leaf in leaves if _class(leaf) == "InputLayer"]
    leaves = [leaf for leaf in leaves if _class(leaf) != "InputLayer"]
    network = _nearest(
        [_class(leaf) for leaf in leaves], [leaf["config"].get("filters") for leaf in leaves]
    )
    if not network.features:
        leaves = _without_reshaping(leaves, network)
    wanted = build(network).layers
    for number, (leaf, layer) in enumerate(zip(leaves, wanted, strict=False), start=1):
        _compare(f"layer {number} ({leaf['config']['name']})", leaf, layer)
    if len(leaves) > len(wanted):
        name, extra = leaves[len(wanted)]["config"]["name"], _class(leaves[len(wanted)])
        raise UserError(f"layer {len(wanted) + 1} ({name}) is {extra}; the network ends before it")
    if len(leaves) < len(wanted):
        missing = type(wanted[len(leaves)]).__name__
        raise UserError(f"it has {len(leaves)} layers; the network goes on with {missing}")
    shape = _check_input((inputs or leaves)[0]["config"], model, network)
    layers = {id(leaf): layer for leaf, layer in zip(leaves, wanted, strict=True)}
    plain = _plain(model, layers)
    if plain["class_name"] == "Sequential":  # Keras 2 may leave the input layer out
        plain["config"]["build_input_shape"] = [None, *shape[1:]]
    return plain, network


def _class(entry: Json) -> str:
    """The class of a layer; ``package>class`` if it is none of Keras's own."""
    name = str(entry.get("registered_name") or entry["class_name"])[:60]
    package = str(entry.get("module", "keras")).split(".")[0][:60]
    own = package in ("keras", "tf_keras", "tensorflow") or ">" in name
    return name if own else f"{package}>{name}"


def _children(model: Json) -> list[Json]:
    config = model["config"]
    return config if isinstance(config, list) else config["layers"]  # a list until Keras 2.2


def _leaves(entry: Json) -> Iterator[Json]:
    if _class(entry) in _MODELS:
        for layer in _children(entry):
            yield from _leaves(layer)
    else:
        yield entry


def _nearest(types: Sequence[str], widths: Sequence[Any]) -> Topology:
    if "Dense" in types and "Conv2D" not in types:
        return topology.dense(IMAGE_SHAPE, "simple" if types.count("Dense") <= 2 else "deep")
    features = DEFAULT_FEATURES
    found = [n for n, type in zip(widths, types, strict=True) if type == "Conv2D"][: len(features)]
    known = len(found) == len(features) and all(type(n) is int and n > 0 for n in found)
    return topology.convolutional(IMAGE_SHAPE, found if known else features)


def _without_reshaping(leaves: list[Json], network: Topology) -> list[Json]:
    if leaves and _class(leaves[0]) == "Flatten":
        leaves = leaves[1:]
    if leaves and _class(leaves[-1]) == "Reshape":
        shape = leaves[-1]["config"]["target_shape"]
        if shape not in ([*network.image_shape[:2]], [*network.image_shape]):
            raise UserError(f"the last layer reshapes to {_short(shape)}; it may to [28, 28]")
        leaves = leaves[:-1]
    return leaves


def _compare(where: str, leaf: Json, wanted: keras.Layer) -> None:
    kind, settings = type(wanted).__name__, leaf["config"]
    if _class(leaf) != kind:
        raise UserError(f"{where} is {_class(leaf)}; the network has {kind} there")
    for key, value in json.loads(json.dumps(wanted.get_config())).items():
        default = value if key in ("groups", "interpolation") else "missing"  # new in Keras 2.3
        found = settings.get(key, default)
        if found != value and not re.fullmatch(_IGNORED, key):
            raise UserError(
                f"{where}: {key} is {_short(found)}; the network has {_short(value)} there"
            )
    policy = settings.get("dtype", "float32")
    policy = policy["config"].get("name") if isinstance(policy, dict) else policy
    if policy not in _POLICIES:
        raise UserError(f"{where} has dtype {_short(policy)}; the network takes float32 weights")


def _check_input(config: Json, model: Json, network: Topology) -> list[int | None]:
    built = isinstance(model["config"], dict) and model["config"].get("build_input_shape")
    shape = config.get("batch_shape") or config.get("batch_input_shape") or built
    accepted = [[*network.layers[0].shape]]
    if not network.features:
        accepted += [[*network.image_shape[:2]], [*network.image_shape]]
    if not isinstance(shape, list) or shape[1:] not in accepted:
        takes = " or ".join(_short([None, *shape]) for shape in accepted)
        raise UserError(f"the input has shape {_short(shape)}; the network takes {takes}")
    if "float" not in str(config.get("dtype", "float32")):
        raise UserError(f"the input has dtype {_short(config['dtype'])}; the network takes floats")
    return shape


def _plain(entry: Json, layers: dict[int, Any]) -> Json:
    """An entry of a model, its settings replaced by those of the layer that it is equal to."""
    kind = _class(entry)
    config = entry["config"] if isinstance(entry["config"], dict) else {}
    name = str(config.get("name", "model"))
    plain = {"module": "keras.layers", "class_name": kind, "registered_name": None, "name": name}
    if kind in _MODELS:
        inner = [_plain(layer, layers) for layer in _children(entry)]
        settings = {"layers": inner}
        if kind != "Sequential":
            names = _check_chain(_children(entry), config)
            for before, layer in zip([None, *names], inner, strict=False):
                layer["inbound_nodes"] = [[[before, 0, 0, {}]]] if before else []
            settings |= {"input_layers": [names[0], 0, 0], "output_layers": [names[-1], 0, 0]}
    elif kind == "InputLayer":
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        settings = {"batch_shape": [n if type(n) is int else None for n in shape or ()]}
    elif id(entry) in layers:
        settings = layers[id(entry)].get_config()
    else:  # Flatten or Reshape
        settings = {key: config[key] for key in ("target_shape",) if key in config}
    return {**plain, **_MODELS.get(kind, {}), "config": {**settings, "name": name}}


def _check_chain(layers: Sequence[Json], config: Json) -> list[str]:
    """Refuses a graph in which anything but the layer before feeds a layer; returns their names."""
    names = [layer["config"]["name"] for layer in layers]
    for before, layer in zip([None, *names], layers, strict=False):
        mentioned = [*_strings(layer["inbound_nodes"])]
        # Layers, and objects that Keras would create.
        sources = [
            text
            for key, text in mentioned
            if (text != "__keras_tensor__" if key == "class_name" else text in names)
        ]
        if sources != [before][: before is not None]:
            raise UserError(
                f"layer {layer['config']['name']} takes {', '.join(sources) or 'nothing'}; the "
                f"network is a chain, in which it takes {before or 'nothing'}"
            )
    for end, wanted in (("input_layers", names[0]), ("output_layers", names[-1])):
        found = config[end]
        if [text for _, text in _strings(found)] != [wanted]:
            raise UserError(
                f"{end} of the model are {_short(found)}; the network has {wanted} alone"
            )
    return names


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The strings anywhere in JSON, each with the last key on the way to it."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else ()
    items = [(key, item) for item in value] if isinstance(value, list) else items
    for key, item in items:
        yield from _strings(item, key)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
