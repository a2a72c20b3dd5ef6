"""The JSON in which Keras keeps a model, to and from `cae_jax.interop.keras.keras_layers`.

Nothing in it is executed: classes and functions are names that are compared.
"""

from collections.abc import Sequence
from typing import Any

from cae_jax.errors import UserError
from cae_jax.interop.keras.keras_layers import Features, Kind, Layer, input_shape, network

_PACKAGES = ("keras", "tf_keras", "tensorflow")


def read_layers(model: Any) -> list[Layer]:
    """The layers of a saved model in the order in which they compute.

    Args:
        model: a Sequential or functional model of Keras 2 or 3, as JSON gives it.

    Raises:
        UserError: another kind of model, or layers that do not form a chain.
        KeyError, TypeError, IndexError: it is no model as Keras writes it.
    """
    kind, config = model["class_name"], model["config"]
    if kind not in ("Sequential", "Functional", "Model") or not _is_keras(model):
        raise UserError(
            f"the model is of class {_name(model)}; it takes a Sequential or functional one"
        )
    if kind == "Sequential":
        entries = config if isinstance(config, list) else config["layers"]  # a list until Keras 2.2
    else:
        entries = config["layers"]
        _check_chain(entries, config)
    return [_read_layer(entry) for entry in entries]


def _read_layer(entry: dict[str, Any]) -> Layer:
    settings = entry["config"]
    name = settings.get("name", entry.get("name", "without a name"))
    if not _is_keras(entry):
        raise UserError(f"layer {name} is of class {_name(entry)}, which is none of Keras's own")
    return Layer(str(entry["class_name"]), dict(settings), str(name))


def _check_chain(entries: Sequence[dict[str, Any]], config: dict[str, Any]) -> None:
    """Refuses a graph in which anything but the layer before feeds a layer."""
    names = [entry["name"] for entry in entries]
    for before, entry in zip(["", *names], entries, strict=False):
        sources = [_sources(node) for node in entry["inbound_nodes"]]
        if sources != ([[before]] if before else []):
            feeding = ", ".join(str(name) for node in sources for name in node) or "nothing"
            raise UserError(
                f"layer {entry['name']} takes {feeding}; the network is a chain, in which it "
                f"takes {before or 'nothing'}"
            )
    for end, wanted in (("input_layers", names[0]), ("output_layers", names[-1])):
        found = config[end]
        # ["name", 0, 0] for a single one, else a list or, by name, an object of these
        if found not in ([wanted, 0, 0], [[wanted, 0, 0]]):
            raise UserError(f"{end} of the model are {found}; the network has {wanted} alone")


def _sources(node: Any) -> list[str]:
    """The layers that one call of a layer takes its inputs from."""
    if isinstance(node, dict):  # Keras 3
        tensors = [argument["config"]["keras_history"] for argument in node["args"]]
    else:
        tensors = node
    # Each is [name, call, output]; a layer that gives several outputs is none of the network's.
    return [tensor[0] for tensor in tensors]


def _is_keras(entry: dict[str, Any]) -> bool:
    """Whether a class is Keras's own and not a user's of the same name."""
    module = entry.get("module", "keras")
    return (
        isinstance(module, str)
        and module.split(".")[0] in _PACKAGES
        and entry.get("registered_name") in (None, entry["class_name"])
    )


def _name(entry: dict[str, Any]) -> str:
    return str(entry.get("registered_name") or entry["class_name"])[:60]


def write_model(kind: Kind, features: Features) -> dict[str, Any]:
    """A network as Keras 3 keeps a Sequential model; arguments as of `keras_layers.network`."""
    shape = {"batch_shape": [None, *input_shape(kind)]}
    layers = [Layer("InputLayer", shape, "input"), *network(kind, features)]
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "autoencoder",
            "layers": [
                {
                    "module": "keras.layers",
                    "class_name": layer.type,
                    "config": {"name": layer.name, "dtype": "float32", **layer.settings},
                    "registered_name": None,
                }
                for layer in layers
            ],
        },
        "registered_name": None,
    }
