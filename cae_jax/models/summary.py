"""Prints a network as a table of its layers, with Keras's names."""

from cae_jax.models.topology import Topology

_COLUMNS = (32, 26, 10)
# Keras's names of the layers, which readers of the tutorial know.
KERAS_TYPES = {
    "input": "InputLayer",
    "conv": "Conv2D",
    "pool": "MaxPooling2D",
    "upsample": "UpSampling2D",
    "crop": "Cropping2D",
    "dense": "Dense",
}


def layer_table(topology: Topology) -> str:
    """The layers, output shapes and parameters as text, laid out like Keras's ``summary()``."""
    rule = "_" * sum(_COLUMNS)
    lines = [rule, _line("Layer (type)", "Output Shape", "Param #"), "=" * sum(_COLUMNS)]
    for layer in topology.layers:
        shape = f"(None, {', '.join(map(str, layer.shape))})"
        title = f"{layer.name} ({KERAS_TYPES[layer.kind]})"
        lines += [_line(title, shape, str(layer.parameters)), rule]
    lines[-1] = "=" * sum(_COLUMNS)
    lines += [f"{kind} params: {topology.parameters:,}" for kind in ("Total", "Trainable")]
    return "\n".join([*lines, "Non-trainable params: 0", rule])


def _line(*cells: str) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, _COLUMNS, strict=True)).rstrip()
