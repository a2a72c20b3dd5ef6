"""The networks as ONNX graphs, built operator by operator from the layer table."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cae_jax.models.autoencoders import Layer

# The oldest that has all operators in the form used here, for the sake of old runtimes (2020);
# IR version 7 came with it.
OPSET, IR_VERSION = 13, 7


def to_onnx(
    rows: Sequence[Layer],
    parameters: Mapping[str, np.ndarray],
    code_shape: tuple[int, ...],
    function: str,
    metadata: Mapping[str, str],
) -> bytes:
    """One function of an autoencoder as a serialised ONNX model with a dynamic batch.

    It takes ``images`` ``[n, 28, 28, 1]`` in [0, 1] or ``codes`` ``[n, *code_shape]`` and gives
    ``codes`` or ``pictures`` ``[n, 28, 28, 1]``, all float32.

    Args:
        rows: the layer table of the model.
        parameters: kernels and biases, such as ``conv1.kernel``, in the layout of Flax.
        code_shape: shape of one image's code.
        function: ``"reconstruct"``, ``"encode"`` or ``"decode"``.
        metadata: becomes the properties of the ONNX model.
    """
    code = next(i for i, row in enumerate(rows) if row.shape == code_shape)
    first = code if function == "decode" else 0
    last = code if function == "encode" else len(rows) - 1
    source = ("codes", code_shape) if first else ("images", (28, 28, 1))
    target = ("codes", code_shape) if function == "encode" else ("pictures", (28, 28, 1))
    convolutional = "conv1.kernel" in parameters
    chain = _Chain(source[0])
    if convolutional:
        chain.add("Transpose", perm=[0, 3, 1, 2])
    elif first == 0:
        chain.add("Flatten", axis=1)
    for before, row in itertools.pairwise(rows[first : last + 1]):
        _add_layer(chain, before, row, parameters)
        if row.parameters:
            chain.add("Sigmoid" if row == rows[-1] else "Relu")
    if convolutional:
        chain.add("Transpose", perm=[0, 2, 3, 1])
    elif function != "encode":
        chain.add("Reshape", chain.constant("shape", np.array([0, 28, 28, 1])))  # 0: as it is
    return chain.model(function, source, target, metadata).SerializeToString()


def _add_layer(
    chain: "_Chain", before: Layer, row: Layer, parameters: Mapping[str, np.ndarray]
) -> None:
    """The operator of one row of the layer table, without its activation."""
    if row.type == "MaxPooling2D":
        chain.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)  # 7 -> 4
        return
    if row.type == "UpSampling2D":
        scales = chain.constant("scales", np.array([1, 1, 2, 2], np.float32))
        repeat = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        chain.add("Resize", "", scales, mode="nearest", **repeat)
        return
    kernel, bias = parameters[f"{row.name}.kernel"], parameters[f"{row.name}.bias"]
    if row.type == "Conv2D":
        kernel = kernel.transpose(3, 2, 0, 1)
    weights = [
        chain.constant(f"{row.name}.kernel", kernel),
        chain.constant(f"{row.name}.bias", bias),
    ]
    if row.type == "Dense":
        chain.add("Gemm", *weights)
    else:
        # 'same' padding keeps the size, 'valid' takes a pixel off each side.
        pad = 1 - (before.shape[0] - row.shape[0]) // 2
        chain.add("Conv", *weights, pads=[pad] * 4)


class _Chain:
    """Operators one after the other, the first input of each the output of the one before."""

    def __init__(self, source: str):
        self._end = source
        self._nodes = []
        self._constants: dict[str, TensorProto] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """Keeps an array and gives its name back."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> None:
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
        """All of it as one model; source and target are a name and a shape without the batch."""
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
