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
from cae_jax.models.topology import Topology

Json = dict[str, Any]
_MOST_STAGES = 6
_SOME_WIDTH = 8  # in place of widths that a file does not tell
_TAKES = (
    "[null, height, width, channels] with 1, 3 or 4 channels, or if it is fully connected "
    "[null, pixels]"
)
MODELS = ("Sequential", "Functional", "Model")
# What matters to training in Keras only, is compared elsewhere, or is new in Keras 3.
_IGNORED = (
    r"name|dtype|trainable|quantization_config|lora_\w+|\w+_(initializer|regularizer|constraint)"
)
_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")  # all keep float32 weights


def build(network: Topology) -> keras.Sequential:
    """Returns the network as a Sequential model; its last layer applies the sigmoid."""
    made: list[Any] = [keras.Input(network.layers[0].shape, name=network.layers[0].name)]
    for before, layer, after in zip(
        network.layers, network.layers[1:], (*network.layers[2:], None), strict=False
    ):
        name, width, padding = layer.name, layer.shape[-1], layer.padding[0]
        # Cropping has no activation in Keras, and may as well follow it.
        activation = after.activation if after and after.kind == "crop" else layer.activation
        if layer.kind == "conv" and len({*layer.padding}) > 1:  # Conv2D has one for both axes
            margins = tuple(topology.KERNEL // 2 * (side == "same") for side in layer.padding)
            made.append(keras.layers.ZeroPadding2D(margins, name=f"pad_{name}"))
            padding = "valid"
        if layer.kind == "conv":
            options: Any = {"padding": padding, "activation": activation, "name": name}
            made.append(keras.layers.Conv2D(width, topology.KERNEL, **options))
        elif layer.kind == "dense":
            made.append(keras.layers.Dense(width, activation, name=name))
        elif layer.kind == "pool":
            made.append(keras.layers.MaxPooling2D(2, padding="same", name=name))
        elif layer.kind == "upsample":
            made.append(keras.layers.UpSampling2D(2, name=name))
        else:
            sizes = zip(before.shape[:2], layer.shape[:2], strict=True)
            made.append(keras.layers.Cropping2D([(0, n - m) for n, m in sizes], name=name))
    return keras.Sequential(made, name="autoencoder")


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


def arrange(entry: Json, flat: keras.Sequential) -> keras.Model:
    """Puts the layers of a network into models as in a file, whose paths follow from them.

    Args:
        entry: the model in the file, which `check` has accepted.
        flat: of `build`.
    """
    rest, kinds = iter(flat.layers), {type(layer).__name__ for layer in flat.layers}

    def arranged(entry: Json, x: Any) -> keras.Model:
        parts, y = [], (inputs := keras.Input(x.shape[1:]))
        for child in children(entry):
            if kind_of(child) in MODELS:
                parts.append(arranged(child, y))
            elif kind_of(child) in kinds:
                parts.append(next(rest))
                # .h5 files have the frozen layers of a model last.
                parts[-1].trainable = child["config"].get("trainable", True)
            else:  # an input, or Flatten and Reshape of a network that is fully connected
                continue
            y = parts[-1](y)
        is_sequence = kind_of(entry) == "Sequential"
        return keras.Sequential([inputs, *parts]) if is_sequence else keras.Model(inputs, y)

    return arranged(entry, keras.Input(flat.input_shape[1:]))  # pyright: ignore[reportOptionalSubscript]


def check(model: Json) -> tuple[keras.Sequential, Topology, Shape | None]:
    """Compares a Sequential or functional model of Keras 2 or 3 with the network nearest to it.

    Returns:
        The network in Keras (`build`) and its layers, and the shape of its images; None for a fully
        connected one that takes and gives flat images, whose network then is that of a single row.

    Raises:
        UserError: another kind of model, or another network; names the first difference.
        Exception: it is not a model as Keras writes it.
    """
    if kind_of(model) not in MODELS:
        raise UserError(
            f"the model is of class {kind_of(model)}; it takes a Sequential or functional one, or "
            "its weights alone (model.save_weights)"
        )
    found = [*leaves(model)]
    inputs = next((leaf for leaf in found if kind_of(leaf) == "InputLayer"), found[0])["config"]
    found = [leaf for leaf in found if kind_of(leaf) != "InputLayer"]
    kinds = [kind_of(leaf) for leaf in found]
    target = found[-1]["config"]["target_shape"] if kinds[-1:] == ["Reshape"] else None
    shape, image_shape = _shapes(inputs, model, target, is_dense="Conv2D" not in kinds)
    widths = [leaf["config"].get("filters") for leaf in found]
    network = nearest(kinds, widths, image_shape or (1, shape[0], 1))
    if not network.features:
        found = found[kinds[0] == "Flatten" : len(found) - (target is not None)]
    flat = build(network)
    pairs = itertools.zip_longest(found, flat.layers)
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
    return flat, network, image_shape


def _shapes(
    inputs: Json, model: Json, target: Any, *, is_dense: bool
) -> tuple[list[int], Shape | None]:
    """The shapes of the input and of the images, which a Reshape to `target` at the end may tell.

    Flat images have 1 axis, or 2 without channels.
    """
    built = isinstance(model["config"], dict) and model["config"].get("build_input_shape")
    shape = inputs.get("batch_shape") or inputs.get("batch_input_shape") or built
    if "float" not in str(inputs.get("dtype", "float32")):
        raise UserError(f"the input has dtype {_short(inputs['dtype'])}; the network takes floats")
    if not (isinstance(shape, list) and _is_shape(shape[1:], is_dense=is_dense)):
        raise UserError(f"the input has shape {_short(shape)}; the network takes {_TAKES}")
    shape = shape[1:]
    images: Any = [(*x, 1)[:3] for x in (shape, target) if type(x) is list and len(x) > 1]
    if target is not None and not (
        _is_shape(target, is_dense=is_dense)
        and math.prod(images[0]) == math.prod(shape)
        and images[0] == images[-1]
    ):
        raise UserError(
            f"the last layer reshapes to {_short(target)}; the network takes and gives "
            f"{_short(shape)}"
        )
    return shape, images[0] if images else None


def _is_shape(shape: Any, *, is_dense: bool) -> bool:
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        return False
    if len(shape) == 3:
        return min(shape[:2]) >= LEAST_SIDE and shape[2] in (1, 3, 4)
    return is_dense and (len(shape) == 1 or (len(shape) == 2 and min(shape) >= LEAST_SIDE))


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
