"""Models of Keras: built from the table of layers, and compared with it by their JSON.

Nothing that a file describes is ever created: Keras states the settings of the network's layers,
and those in the file are compared with them.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from cae_jax.config import default_features
from cae_jax.errors import UserError
from cae_jax.models import topology
from cae_jax.models.topology import IMAGE_SHAPE, Layer, Topology

Json = dict[str, Any]
MODELS = ("Sequential", "Functional", "Model")
WEIGHTED = ("Conv2D", "Dense")
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
    name = layer.name
    if layer.kind == "conv":
        rows, columns = layer.padding
        if rows != columns:
            raise UserError(
                f"{name} has {rows} padding for rows and {columns} for columns, and Keras's Conv2D "
                "has one for both; exchange the network in another format"
            )
        options: Any = {"padding": rows, "activation": activation, "name": name}
        return keras.layers.Conv2D(layer.shape[-1], topology.KERNEL, **options)
    if layer.kind == "dense":
        return keras.layers.Dense(layer.shape[-1], activation, name=name)
    if layer.kind == "pool":
        return keras.layers.MaxPooling2D(2, padding="same", name=name)
    if layer.kind == "upsample":
        return keras.layers.UpSampling2D(2, name=name)
    rows, columns = (n - m for n, m in zip(before.shape[:2], layer.shape[:2], strict=True))
    return keras.layers.Cropping2D(((0, rows), (0, columns)), name=name)


def nearest(kinds: Sequence[str], widths: Sequence[Any]) -> Topology:
    """The network that layers of these classes and widths most likely are."""
    if "Dense" in kinds and "Conv2D" not in kinds:
        return topology.dense(IMAGE_SHAPE, "simple" if kinds.count("Dense") <= 2 else "deep")
    features = default_features(IMAGE_SHAPE)
    found = [n for n, kind in zip(widths, kinds, strict=True) if kind == "Conv2D"][: len(features)]
    known = len(found) == len(features) and all(type(n) is int and n > 0 for n in found)
    return topology.convolutional(IMAGE_SHAPE, found if known else features)


def kind_of(entry: Json) -> str:
    """The class of a layer; ``package>class`` if it is none of Keras's own."""
    name = str(entry.get("registered_name") or entry["class_name"])[:60]
    package = str(entry.get("module", "keras")).split(".")[0][:60]
    own = package in ("keras", "tf_keras", "tensorflow") or ">" in name
    return name if own else f"{package}>{name}"


def children(model: Json) -> list[Json]:
    """The layers of a model, which are models or leaves."""
    config = model["config"]
    return config if isinstance(config, list) else config["layers"]  # a list until Keras 2.2


def name_of(entry: Json) -> str:
    """The name of a layer or model."""
    config = entry["config"]
    name = config["name"] if isinstance(config, dict) else "sequential"
    if not isinstance(name, str):
        raise UserError(f"the name of a layer is {_short(name)}; Keras gives text")
    return name


def leaves(entry: Json, inside: str = "") -> Iterator[Json]:
    """The layers in a layer or model that are no models; "inside" names the models around one."""
    if kind_of(entry) not in MODELS:
        yield {**entry, "inside": inside}
        return
    if kind_of(entry) != "Sequential":
        _check_chain(entry)
    for child in children(entry):
        nested = kind_of(child) in MODELS
        yield from leaves(child, f"{inside}/{name_of(child)}".strip("/") if nested else inside)


def check(model: Json) -> Topology:
    """Compares a Sequential or functional model of Keras 2 or 3 with the network nearest to it.

    Raises:
        UserError: another kind of model, or another network; names the first difference.
        Exception: it is not a model as Keras writes it.
    """
    if kind_of(model) not in MODELS:
        raise UserError(
            f"the model is of class {kind_of(model)}; it takes a Sequential or functional one, or "
            "its weights alone (model.save_weights)"
        )
    every = [*leaves(model)]
    found = [leaf for leaf in every if kind_of(leaf) != "InputLayer"]
    kinds = [kind_of(leaf) for leaf in found]
    network = nearest(kinds, [leaf["config"].get("filters") for leaf in found])
    if not network.features:
        found = _without_reshaping(found, network)
    pairs = itertools.zip_longest(found, build(network).layers)
    for number, (leaf, layer) in enumerate(pairs, start=1):
        kind = type(layer).__name__ if layer else None
        if leaf is None:
            models = ", ".join(dict.fromkeys(leaf["inside"] for leaf in found if leaf["inside"]))
            held = f"{number - 1} layers" + (f" (in {_short(models)})" if models else "")
            raise UserError(f"it has {held}; the network goes on with {kind}")
        inside = f"in {_short(leaf['inside'])}, " if leaf["inside"] else ""
        where = f"{inside}layer {number} ({_short(name_of(leaf))})"
        if layer is None or kind_of(leaf) != kind:
            wanted = f"has {kind} there" if layer else "ends before it"
            raise UserError(f"{where} is {kind_of(leaf)}; the network {wanted}")
        _compare(where, leaf["config"], json.loads(json.dumps(layer.get_config())))
    inputs = [leaf for leaf in every if kind_of(leaf) == "InputLayer"] or every
    _check_input(inputs[0]["config"], model, network)
    return network


def _without_reshaping(found: list[Json], network: Topology) -> list[Json]:
    if found and kind_of(found[0]) == "Flatten":
        found = found[1:]
    if found and kind_of(found[-1]) == "Reshape":
        shape = found[-1]["config"]["target_shape"]
        if shape not in ([*network.image_shape[:2]], [*network.image_shape]):
            raise UserError(f"the last layer reshapes to {_short(shape)}; it may to [28, 28]")
        found = found[:-1]
    return found


def _compare(where: str, settings: Json, wanted: Json) -> None:
    for key, value in wanted.items():
        default = value if key in ("groups", "interpolation") else "missing"  # new in Keras 2.3
        found = settings.get(key, default)
        if found != value and not re.fullmatch(_IGNORED, key):
            raise UserError(
                f"{where}: {key} is {_short(found)}; the network has {_short(value)} there"
            )
    policy = settings.get("dtype", "float32")
    policy = policy["config"].get("name") if isinstance(policy, dict) else policy
    if policy not in _POLICIES:
        raise UserError(f"{where} is of {_short(policy)}; the network takes float32 weights")


def _check_input(config: Json, model: Json, network: Topology) -> None:
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


def _check_chain(model: Json) -> None:
    """Refuses a functional model in which anything but the layer before feeds a layer."""
    names = [name_of(layer) for layer in children(model)]
    known = {*names}
    for before, layer in zip([None, *names], children(model), strict=False):
        sources = [name for name in _strings(layer["inbound_nodes"]) if name in known]
        if sources != [before][: before is not None]:
            raise UserError(
                f"layer {name_of(layer)} takes {', '.join(sources) or 'nothing'}; the network is a "
                f"chain, in which it takes {before or 'nothing'}"
            )
    for end, wanted in (("input_layers", names[0]), ("output_layers", names[-1])):
        found = model["config"][end]
        if _strings(found) != [wanted]:
            raise UserError(
                f"{end} of the model are {_short(found)}; the network has {wanted} alone"
            )


def _strings(value: Any) -> list[str]:
    """All strings in JSON, in order."""
    return [json.loads(text) for text in re.findall(r'"(?:[^"\\]|\\.)*"', json.dumps(value))]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
