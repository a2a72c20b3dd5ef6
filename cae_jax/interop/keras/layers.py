"""Models of Keras: built from the table of layers, and compared with it by their JSON.

Nothing that a file describes is ever created: Keras states the settings of the network's layers,
and those in the file are compared with them.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from cae_jax.config import LEAST_SIDE, Shape
from cae_jax.errors import UserError
from cae_jax.models import topology
from cae_jax.models.topology import Layer, Topology

Json = dict[str, Any]
_MOST_STAGES = 6
_SOME_WIDTH = 8  # in place of widths that a file does not tell
_TAKES = (
    "[null, height, width, channels] with 1, 3 or 4 channels, or if it is fully connected "
    "[null, pixels]"
)
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
        if len({*layer.padding}) > 1:
            made.append(_pad(layer))
        made.append(_build(layer, before, activation))
    return keras.Sequential(made, name="autoencoder")


def _pad(layer: Layer) -> keras.Layer:
    """The 'same' padding of a convolution for rows or columns alone; Conv2D has one for both."""
    rows, columns = ((topology.KERNEL // 2) * (padding == "same") for padding in layer.padding)
    return keras.layers.ZeroPadding2D((rows, columns), name=f"pad_{layer.name}")


def _build(layer: Layer, before: Layer, activation: str | None) -> keras.Layer:
    name = layer.name
    if layer.kind == "conv":
        padding = "same" if {*layer.padding} == {"same"} else "valid"
        options: Any = {"padding": padding, "activation": activation, "name": name}
        return keras.layers.Conv2D(layer.shape[-1], topology.KERNEL, **options)
    if layer.kind == "dense":
        return keras.layers.Dense(layer.shape[-1], activation, name=name)
    if layer.kind == "pool":
        return keras.layers.MaxPooling2D(2, padding="same", name=name)
    if layer.kind == "upsample":
        return keras.layers.UpSampling2D(2, name=name)
    rows, columns = (n - m for n, m in zip(before.shape[:2], layer.shape[:2], strict=True))
    return keras.layers.Cropping2D(((0, rows), (0, columns)), name=name)


def nearest(kinds: Sequence[str], widths: Sequence[Any], image_shape: Shape) -> Topology:
    """The network on images of a shape that layers of these classes and widths most likely are."""
    if "Dense" in kinds and "Conv2D" not in kinds:
        return topology.dense(image_shape, "simple" if kinds.count("Dense") <= 2 else "deep")
    found = [n for n, kind in zip(widths, kinds, strict=True) if kind == "Conv2D"]
    stages = max(map(kinds.count, ("MaxPooling2D", "UpSampling2D")))
    stages = min(max(stages, (len(found) - 1) // 2, 1), _MOST_STAGES)
    found = [n if type(n) is int and n > 0 else _SOME_WIDTH for n in found[:stages]]
    found += [_SOME_WIDTH] * (stages - len(found))
    return topology.convolutional(image_shape, found)


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


def check(model: Json) -> tuple[Topology, Shape | None]:
    """Compares a Sequential or functional model of Keras 2 or 3 with the network nearest to it.

    Returns:
        The network, and the shape of its images; None for a fully connected one that takes and
        gives flat images, whose network then is that of a single row.

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
    inputs = [leaf for leaf in every if kind_of(leaf) == "InputLayer"] or every
    found = [leaf for leaf in every if kind_of(leaf) != "InputLayer"]
    kinds = [kind_of(leaf) for leaf in found]
    shape = _input_shape(inputs[0]["config"], model, flat="Conv2D" not in kinds)
    image_shape = _image_shape(shape, found)
    nearest_shape = image_shape or (1, shape[0], 1)
    network = nearest(kinds, [leaf["config"].get("filters") for leaf in found], nearest_shape)
    if not network.features:
        found = found[kinds[0] == "Flatten" : len(found) - (kinds[-1] == "Reshape")]
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
    return network, image_shape


def _input_shape(config: Json, model: Json, flat: bool) -> list[int]:
    """The shape of the input without the batch; of 1 to 3 axes where it may be `flat`, else 3."""
    built = isinstance(model["config"], dict) and model["config"].get("build_input_shape")
    shape = config.get("batch_shape") or config.get("batch_input_shape") or built
    if "float" not in str(config.get("dtype", "float32")):
        raise UserError(f"the input has dtype {_short(config['dtype'])}; the network takes floats")
    if isinstance(shape, list) and (_is_image(shape[1:]) or (flat and _is_flat(shape[1:]))):
        return shape[1:]
    raise UserError(f"the input has shape {_short(shape)}; the network takes {_TAKES}")


def _is_flat(shape: list[Any]) -> bool:
    """Whether it is that of flat images, or of gray ones without channels."""
    least = {1: 1, 2: LEAST_SIDE}.get(len(shape))
    return least is not None and all(type(n) is int and n >= least for n in shape)


def _is_image(shape: list[Any]) -> bool:
    return (
        len(shape) == 3
        and all(type(n) is int for n in shape)
        and min(shape[:2]) >= LEAST_SIDE
        and shape[2] in (1, 3, 4)
    )


def _image_shape(shape: list[int], found: list[Json]) -> Shape | None:
    """The shape of the images, from that of the input or a Reshape at the end."""
    target = None
    if found and kind_of(found[-1]) == "Reshape":
        target = found[-1]["config"]["target_shape"]
        whole = isinstance(target, list) and (_is_image(target) or _is_flat(target))
        if not whole or math.prod(target) != math.prod(shape) or len(target) == 1:
            raise UserError(
                f"the last layer reshapes to {_short(target)}; the network takes and gives "
                f"{_short(shape)}"
            )
    if len(shape) == 1 and target is None:
        return None
    images = shape if len(shape) > 1 else target
    assert images is not None
    height, width, channels = [*images, 1][:3]
    if target is not None and [*target, 1][:3] != [height, width, channels]:
        raise UserError(
            f"the last layer reshapes to {_short(target)}; the network takes and gives "
            f"{_short(shape)}"
        )
    return height, width, channels


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
