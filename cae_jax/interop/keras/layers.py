"""Models of Keras: built from the table of layers, and compared with it by their JSON.

Nothing that a file describes is ever created: Keras states the settings of the network's layers,
and those in the file are compared with them.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import keras

from cae_jax.config import Shape, is_shape
from cae_jax.errors import UserError
from cae_jax.models import topology
from cae_jax.models.topology import Topology

Json = dict[str, Any]
_MAX_STAGES = 6
_SOME_WIDTH = 8  # in place of a width that is not in the file
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
    stages = min(max(len(found) // 2, 1), _MAX_STAGES)
    features = [n if type(n) is int and n > 0 else _SOME_WIDTH for n in found[:stages]]
    return topology.convolutional(image_shape, features or [_SOME_WIDTH])


def kind_of(entry: Json) -> str:
    """The class of a layer; ``package>class`` if it is none of Keras's own."""
    name = str(entry.get("registered_name") or entry["class_name"])[:60]
    package = str(entry.get("module", "keras")).split(".")[0][:60]
    own = package in ("keras", "tf_keras", "tensorflow") or ">" in name
    return name if own else f"{package}>{name}"


def _children(model: Json) -> list[Json]:
    """The layers of a model, some of which may be models."""
    config = model["config"]
    return config if isinstance(config, list) else config["layers"]  # a list until Keras 2.2


def _leaves(entry: Json) -> list[Json]:
    """The layers of a model and of the models in it, in order."""
    if kind_of(entry) not in MODELS:
        return [entry]
    if kind_of(entry) != "Sequential":
        _check_chain(entry)
    return [leaf for child in _children(entry) for leaf in _leaves(child)]


def _check_chain(model: Json) -> None:
    """Refuses a functional model in which a layer's input is not the output of the one before."""
    config, names = model["config"], [layer["name"] for layer in _children(model)]
    known = set(names)
    links = [("the input of the model", config["input_layers"], names[:1])]
    for layer, before in zip(_children(model), [[], *([name] for name in names)], strict=False):
        links.append((f"the input of layer {layer['name']}", layer["inbound_nodes"], before))
    links.append(("the output of the model", config["output_layers"], names[-1:]))
    for what, found, wanted in links:
        strings = re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(found, ensure_ascii=False))
        sources = [text for text in strings if text in known]
        if sources != wanted:
            raise UserError(
                f"{what} is {_short(', '.join(sources) or 'nothing')}; in the network, a chain of "
                f"layers, it is {', '.join(wanted) or 'nothing'}"
            )


def arrange(entry: Json, flat: keras.Sequential) -> keras.Model:
    """Puts the layers of a network into models as in a file, whose paths follow from them.

    Args:
        entry: the model in the file, which `check` has accepted.
        flat: of `build`.
    """
    rest, kinds = iter(flat.layers), {type(layer).__name__ for layer in flat.layers}

    def arranged(entry: Json, x: Any) -> keras.Model:
        parts, y = [], (inputs := keras.Input(x.shape[1:]))
        for child in _children(entry):
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
        The network (`build`) and its layers, and the shape of its images; None for a fully
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
    found = _leaves(model)
    inputs = next((leaf for leaf in found if kind_of(leaf) == "InputLayer"), found[0])["config"]
    found = [leaf for leaf in found if kind_of(leaf) != "InputLayer"]
    kinds = [kind_of(leaf) for leaf in found]
    shape = _shape(model, inputs, found[-1], is_dense="Conv2D" not in kinds)
    image_shape = shape if len(shape) == 3 else None
    widths = [leaf["config"].get("filters") for leaf in found]
    network = nearest(kinds, widths, image_shape or (1, shape[0], 1))
    if not network.features:
        found = found[kinds[0] == "Flatten" : len(found) - (kinds[-1] == "Reshape")]
    flat = build(network)
    pairs = itertools.zip_longest(found, flat.layers)
    for number, (leaf, layer) in enumerate(pairs, start=1):
        where = f"layer {number}" + (f" ({_short(leaf['config']['name'])})" if leaf else "")
        kind, wanted = kind_of(leaf) if leaf else "missing", type(layer).__name__ if layer else None
        if kind != wanted:
            raise UserError(f"{where} is {kind}; the network has {wanted or 'no layer'} there")
        _compare(where, leaf["config"], json.loads(json.dumps(layer.get_config())))
    return flat, network, image_shape


def _shape(model: Json, inputs: Json, last: Json, *, is_dense: bool) -> Any:
    """The shape of the images, that of the input or the Reshape at the end; pixels if flat."""
    if "float" not in str(inputs.get("dtype", "float32")):
        raise UserError(f"the input has dtype {_short(inputs['dtype'])}; the network takes floats")
    built = isinstance(model["config"], dict) and model["config"].get("build_input_shape")
    batch: Any = inputs.get("batch_shape") or inputs.get("batch_input_shape") or built
    ends = [batch[1:] if isinstance(batch, list) else batch]
    if kind_of(last) == "Reshape":
        ends.append(last["config"]["target_shape"])
    shapes = []
    for end in ends:
        valid = isinstance(end, list) and all(type(n) is int and n > 0 for n in end)
        shapes.append((*end, 1) if valid and len(end) == 2 else tuple(end if valid else ()))
        if not (is_shape(shapes[-1]) or (is_dense and len(shapes[-1]) == 1)):
            raise UserError(
                f"its images have shape {_short(end)}; the network takes [height, width, channels] "
                "with 1, 3 or 4 channels, or if it is fully connected [pixels]"
            )
    longest = max(shapes, key=len)
    if any(shape not in (longest, (math.prod(longest),)) for shape in shapes):
        raise UserError(
            f"the last layer reshapes {_short(ends[0])} to {_short(ends[-1])}; the network keeps "
            "the shape of its images"
        )
    return longest


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


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
