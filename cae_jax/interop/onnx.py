"""Builds ONNX graphs of the networks, operator by operator, from the table of layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cae_jax.models.topology import Layer, Topology

# The oldest opset (2020) with all operators in the form used here, for old runtimes; IR version 7
# was released with it.
OPSET, IR_VERSION = 13, 7


def to_onnx(
    topology: Topology,
    parameters: Mapping[str, np.ndarray],
    function: str,
    metadata: Mapping[str, str],
) -> bytes:
    """Serialises one function of an autoencoder as an ONNX model with a dynamic batch size.

    Its input is ``images`` ``[n, *image_shape]`` in [0, 1] or ``codes`` ``[n, *code_shape]``, its
    output ``codes`` or ``pictures`` ``[n, *image_shape]``, all float32.

    Args:
        topology: the network.
        parameters: kernels and biases, such as ``conv1.kernel``, in the layout of Flax.
        function: ``"reconstruct"``, ``"encode"`` or ``"decode"``.
        metadata: properties of the ONNX model.
    """
    first = topology.code if function == "decode" else 0
    last = topology.code if function == "encode" else len(topology.layers) - 1
    codes = ("codes", topology.code_shape)
    source = codes if first else ("images", topology.image_shape)
    target = codes if function == "encode" else ("pictures", topology.image_shape)
    is_conv = bool(topology.features)
    chain = _Chain(source[0])
    if is_conv:
        chain.add("Transpose", perm=[0, 3, 1, 2])
    elif first == 0:
        chain.add("Flatten", axis=1)
    for layer in topology.layers[first + 1 : last + 1]:
        _add_layer(chain, layer, parameters)
        if layer.activation is not None:
            chain.add(layer.activation.capitalize())
    if is_conv:
        chain.add("Transpose", perm=[0, 2, 3, 1])
    elif function != "encode":
        shape = np.array([0, *topology.image_shape])  # 0 keeps the batch size
        chain.add("Reshape", chain.constant("shape", shape))
    return chain.model(function, source, target, metadata).SerializeToString()


def _add_layer(chain: "_Chain", layer: Layer, parameters: Mapping[str, np.ndarray]) -> None:
    """Adds the operator of one layer, without its activation."""
    if layer.kind == "pool":
        chain.add(
            "MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
        )  # an odd size rounds up
    elif layer.kind == "upsample":
        scales = chain.constant("scales", np.array([1, 1, 2, 2], np.float32))
        repeat = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        chain.add("Resize", "", scales, mode="nearest", **repeat)
    elif layer.kind == "crop":
        names, values = ("starts", "ends", "axes"), ([0, 0], layer.shape[:2], [2, 3])
        chain.add("Slice", *map(chain.constant, names, map(np.array, values)))
    else:
        kernel, bias = parameters[f"{layer.name}.kernel"], parameters[f"{layer.name}.bias"]
        if layer.kind == "conv":
            kernel = kernel.transpose(3, 2, 0, 1)
        weights = [
            chain.constant(f"{layer.name}.kernel", kernel),
            chain.constant(f"{layer.name}.bias", bias),
        ]
        if layer.kind == "dense":
            chain.add("Gemm", *weights)
        else:
            # Rows and columns at each edge; 'same' padding keeps the size, 'valid' adds none.
            pads = [int(padding == "same") for padding in layer.padding]
            chain.add("Conv", *weights, pads=2 * pads)


class _Chain:
    """A sequence of operators; the first input of each is the output of the one before."""

    def __init__(self, source: str):
        self._end = source
        self._nodes = []
        self._constants: dict[str, TensorProto] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """Stores an array as a constant and returns its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> None:
        """Appends an operator; `inputs` are its further inputs."""
        name = f"{operator.lower()}{len(self._nodes) + 1}"
        node = helper.make_node(operator, [self._end, *inputs], [name], name, **attributes)
        self._nodes.append(node)
        self._end = name

    def model(
        self,
        name: str,
        source: tuple[str, tuple[int, ...]],
        target: tuple[str, tuple[int, ...]],
        metadata: Mapping[str, str],
    ) -> ModelProto:
        """The whole model; source and target are a name and a shape without the batch."""
        self._nodes[-1].output[0] = target[0]
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])]
            for name, shape in (source, target)
        )
        graph = helper.make_graph(self._nodes, name, inputs, outputs, [*self._constants.values()])
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="cae_jax"
        )
        helper.set_model_props(model, dict(metadata))
        return model
