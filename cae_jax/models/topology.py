"""The one table of layers: sizes, padding, channels, parameters and FLOPs of every network.

The layer table, the Keras model, the ONNX graph, the FLOP counts, the native kernel's sizes and the
network of the HTML report are derived from it; `cae_jax.models.autoencoders` holds the parameters.

The convolutional network restores any height and width. Pooling halves a size and rounds up. On
the way back each stage upsamples by two and convolves with 'same' padding, except where the
upsampled size exceeds the mirrored encoder size by two or more, where it convolves with 'valid'
padding; what is still too large after the last layer is cropped. For 28 pixels this is the
tutorial's network: 28, 14, 7, 4 and back 4, 8, 16 -> 14, 28.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from cae_jax.config import TrainConfig, resolved

Kind = Literal["input", "conv", "pool", "upsample", "crop", "dense"]
Padding = Literal["same", "valid"]

IMAGE_SHAPE = (28, 28, 1)
KERNEL = 3  # rows and columns of every convolution's kernel
# Hidden layers of the fully connected networks, up to the code; the decoder mirrors them.
WIDTHS = {"simple": (32,), "deep": (128, 64, 32)}


class Layer(NamedTuple):
    """One layer.

    Attributes:
        name: name of the layer and of its parameters in the model.
        kind: operation.
        shape: shape of its output, without the batch.
        kernel: shape of its kernel, ``[3, 3, in, out]`` or ``[in, out]``; None without parameters.
        padding: padding of a convolution, for rows and columns.
        activation: function applied to its output.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    kernel: tuple[int, ...] | None = None
    padding: tuple[Padding, Padding] = ("same", "same")
    activation: Literal["relu", "sigmoid", "round"] | None = None

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return 0 if self.kernel is None else math.prod(self.kernel) + self.kernel[-1]

    @property
    def flops(self) -> int:
        """Operations of the forward pass for one image; a multiply-add counts 2, biases 0."""
        places = math.prod(self.shape[:-1])  # 1 for a dense layer
        return 0 if self.kernel is None else 2 * places * math.prod(self.kernel)


class Topology(NamedTuple):
    """A network as a sequence of layers.

    Attributes:
        model: ``TrainConfig.model``.
        image_shape: ``(height, width, channels)``.
        features: channels of the encoder's convolutions; empty for a fully connected network.
        layers: the first is the input; the sigmoid of the last is the reconstruction.
        code: index of the layer whose output is the code.
    """

    model: str
    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    layers: tuple[Layer, ...]
    code: int

    @property
    def encoder(self) -> tuple[Layer, ...]:
        """The layers from the image to the code, without the input."""
        return self.layers[1 : self.code + 1]

    @property
    def decoder(self) -> tuple[Layer, ...]:
        """The layers from the code to the logits."""
        return self.layers[self.code + 1 :]

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that have parameters."""
        return tuple(layer for layer in self.layers if layer.kernel is not None)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of one image's code."""
        return self.layers[self.code].shape

    @property
    def quantised(self) -> bool:
        """Whether the code is whole numbers, of a network that is trained for a `rate`."""
        return self.layers[self.code].activation == "round"

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def training_flops(self) -> int:
        """Operations of one image's forward and backward pass.

        The backward pass costs twice the forward pass, minus the derivative with respect to the
        images, which training does not need.
        """
        return 3 * sum(layer.flops for layer in self.layers) - self.weighted[0].flops

    def training_bytes(self, batch_size: int) -> int:
        """Minimum memory for training, in bytes: parameters, gradient, two moments, an update, and
        the layers' outputs and their derivatives, all float32."""
        outputs = sum(math.prod(layer.shape) for layer in self.layers)
        return 4 * (5 * self.parameters + 2 * batch_size * outputs)

    @property
    def native_bytes(self) -> int:
        """About what a thread of the native kernel keeps of each image: the image and its target,
        and three arrays of the size of each pooling and of each convolution of the decoder."""
        kept = [each for each in self.encoder if each.kind == "pool"]
        kept += [each for each in self.decoder if each.kernel is not None]
        values = sum(math.prod(each.shape) for each in kept)
        return 4 * (2 * math.prod(self.image_shape) + 3 * values)

    @property
    def kernel_sizes(self) -> tuple[tuple[str, str], ...] | None:
        """Compile-time sizes of the native and CUDA kernels, by name; None for other networks.

        Each value is a list: the encoder's features, its sizes from the image to the last pooling,
        and the decoder's sizes from the code to the last upsampling layer.
        """
        if self.model != "conv" or self.quantised:
            return None
        sizes = {"CHANNELS": self.image_shape[2:], "FEATURES": self.features}
        encoder = [layer for layer in self.layers if layer.kind in ("input", "pool")]
        decoder = self.weighted[len(self.features) :]
        for part, layers in (("ENCODER", encoder), ("DECODER", decoder)):
            rows, columns, _ = zip(*(layer.shape for layer in layers), strict=True)
            sizes |= {f"{part}_ROWS": rows, f"{part}_COLUMNS": columns}
        return tuple((name, ",".join(map(str, values))) for name, values in sizes.items())


def from_config(config: TrainConfig) -> Topology:
    """The network described by a config whose image shape is known."""
    config = resolved(config)
    assert config.image_shape is not None
    assert config.features is not None
    if config.model == "conv":
        return convolutional(config.image_shape, config.features, config.rate > 0)
    return dense(config.image_shape, config.model, config.widths, config.rate > 0)


def convolutional(
    image_shape: tuple[int, int, int], features: Sequence[int], quantised: bool = False
) -> Topology:
    """The convolutional autoencoder.

    Args:
        image_shape: ``(height, width, channels)``, each at least 1.
        features: of the encoder's convolutions, one pooling stage each; the decoder mirrors them.
        quantised: whether the code is rounded, in place of its ReLU.
    """
    *size, channels = image_shape
    layers, sizes = [Layer("input", "input", image_shape)], [tuple(size)]
    for i, width in enumerate(features, start=1):
        layers.append(_conv(f"conv{i}", layers[-1], sizes[-1], width))
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
        layers.append(Layer(f"pool{i}", "pool", (*sizes[-1], width)))
    code = len(layers) - 1
    if quantised:
        layers[-2:] = [
            layers[-2]._replace(activation=None),
            layers[-1]._replace(activation="round"),
        ]
    depth = len(features)
    layers.append(_conv(f"conv{depth + 1}", layers[-1], sizes[-1], features[-1]))
    outputs = (*features[-2::-1], channels)
    for i, (width, mirrored) in enumerate(zip(outputs, sizes[-2::-1], strict=True), start=1):
        *rows_columns, n_in = layers[-1].shape
        upsampled = tuple(2 * n for n in rows_columns)
        layers.append(Layer(f"upsample{i}", "upsample", (*upsampled, n_in)))
        valid = [up - aim >= 2 for up, aim in zip(upsampled, mirrored, strict=True)]
        shape = tuple(up - 2 * each for up, each in zip(upsampled, valid, strict=True))
        padding = tuple("valid" if each else "same" for each in valid)
        layers.append(_conv(f"conv{depth + 1 + i}", layers[-1], shape, width, padding))
    layers[-1] = layers[-1]._replace(activation="sigmoid")
    if layers[-1].shape != image_shape:
        layers[-1] = layers[-1]._replace(activation=None)
        layers.append(Layer("crop", "crop", image_shape, activation="sigmoid"))
    return Topology("conv", image_shape, tuple(features), tuple(layers), code)


def dense(
    image_shape: tuple[int, int, int],
    model: str,
    widths: tuple[int, ...] | None = None,
    quantised: bool = False,
) -> Topology:
    """A fully connected autoencoder, ``"simple"`` or ``"deep"``; its input is the flat image.

    Args:
        image_shape: ``(height, width, channels)``.
        model: its name, with which the sizes of its layers up to the code come unless `widths` are
            given.
        widths: see `TrainConfig.widths`.
        quantised: whether the code is rounded, in place of its ReLU.
    """
    widths, pixels = widths or WIDTHS[model], math.prod(image_shape)
    sizes = (pixels, *widths, *widths[-2::-1], pixels)
    layers = [Layer("input", "input", (pixels,))]
    for i, kernel in enumerate(itertools.pairwise(sizes), start=1):
        layers.append(Layer(f"dense{i}", "dense", kernel[-1:], kernel, activation="relu"))
    layers[-1] = layers[-1]._replace(activation="sigmoid")
    if quantised:
        layers[len(widths)] = layers[len(widths)]._replace(activation="round")
    return Topology(model, image_shape, (), tuple(layers), len(widths))


def _conv(name, before, size, width, padding=("same", "same")) -> Layer:
    kernel = (KERNEL, KERNEL, before.shape[-1], width)
    return Layer(name, "conv", (*size, width), kernel, padding, "relu")
