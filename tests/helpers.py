"""What several test files share: networks in NumPy, drawn parameters, and checks."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def assert_fails_in_one_line(process, message):
    """A command that ended with exit code 2 and one line on stderr, which has the message."""
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.strip().splitlines()) == 1
    assert message in process.stderr


def in_process(code: str, *arguments: object, cwd=ROOT, returncode=0, env=()):
    """Runs Python code in a new process, which has to end with an exit code."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(env)},
        timeout=300,
    )
    assert process.returncode == returncode, process.stderr
    return process


# --- Networks in float64, by hand ---

# A kernel and a bias.
Layer = Sequence[np.ndarray]


def numpy_conv(x, kernel, bias, pads=(1, 1)):
    """A 3 x 3 convolution, with rows and columns of zeros added on both sides."""
    x = np.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel) + bias


def numpy_pool(x):
    """The maximum of each 2 x 2 pixels; of a last odd row or column, that of fewer."""
    odd = [(0, size % 2) for size in x.shape[1:3]]
    x = np.pad(x, ((0, 0), *odd, (0, 0)), constant_values=-np.inf)
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def numpy_encode(layers: Sequence[Layer], x):
    for layer in layers[: len(layers) // 2]:
        x = np.maximum(numpy_pool(numpy_conv(x, *layer)), 0)
    return x


def numpy_decoding(layers: Sequence[Layer], x, image_shape):
    """The sums of each layer after the code, before its ReLU; the last ones are the logits.

    What an upsampling exceeds by two is a border less in its convolution.
    """
    stages = len(layers) // 2
    sizes = [image_shape[:2]]
    for _ in range(stages - 1):
        sizes.append([math.ceil(n / 2) for n in sizes[-1]])
    x = numpy_conv(x, *layers[stages])
    yield x
    for layer, aim in zip(layers[stages + 1 :], sizes[::-1], strict=True):
        x = np.kron(np.maximum(x, 0), np.ones((1, 2, 2, 1)))
        pads = [int(n - m < 2) for n, m in zip(x.shape[1:3], aim, strict=True)]
        x = numpy_conv(x, *layer, pads)
        yield x


def numpy_decode(layers: Sequence[Layer], x, image_shape):
    """Logits of a code."""
    *_, logits = numpy_decoding(layers, x, image_shape)
    return logits[:, : image_shape[0], : image_shape[1]]


def numpy_functions(
    parameters: dict[str, np.ndarray], image_shape=(28, 28, 1)
) -> dict[str, Callable]:
    """encode, decode and reconstruct of a network whose parameters are named "conv1.kernel"."""
    kind = "dense" if "dense1.kernel" in parameters else "conv"
    layers = [
        [np.asarray(parameters[f"{kind}{i}.{name}"], np.float64) for name in ("kernel", "bias")]
        for i in range(1, len(parameters) // 2 + 1)
    ]

    def dense(x, layer):
        return x @ layer[0] + layer[1]

    def encode(x):
        if kind == "conv":
            return numpy_encode(layers, x)
        x = x.reshape(len(x), -1)
        for layer in layers[: len(layers) // 2]:
            x = np.maximum(dense(x, layer), 0)
        return x

    def decode(x):
        if kind == "conv":
            x = numpy_decode(layers, x, image_shape)
        else:
            for layer in layers[len(layers) // 2 : -1]:
                x = np.maximum(dense(x, layer), 0)
            x = dense(x, layers[-1]).reshape(-1, *image_shape)
        return 1 / (1 + np.exp(-x))

    return {"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))}


def draw_parameters(network, seed=0) -> dict[str, np.ndarray]:
    """Random kernels, large enough for outputs of some contrast, and biases."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for layer in network.weighted:
        scale = np.sqrt(4 / np.prod(layer.kernel[:-1]))
        parameters[f"{layer.name}.kernel"] = rng.normal(0, scale, layer.kernel).astype("f")
        parameters[f"{layer.name}.bias"] = rng.normal(0, 0.2, layer.kernel[-1:]).astype("f")
    return parameters


def nested(parameters: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Parameters by the layer's name and kernel or bias."""
    result = {}
    for name, values in parameters.items():
        layer, kind = name.split(".")
        result.setdefault(layer, {})[kind] = values
    return result
