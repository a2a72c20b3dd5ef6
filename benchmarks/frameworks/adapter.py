"""Defines the interface of the frameworks, a stopwatch, and the images of the other frameworks.

Imports nothing but the standard library and the config: the clock is not running yet.
"""

import contextlib
import gzip
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Protocol

from cae_jax.config import TrainConfig, resolved

if TYPE_CHECKING:
    import numpy as np

# Images per call of the other frameworks. From 128 to 4096 on a CPU, most are fastest with this.
MAX_BATCH = 256
# Parts of an epoch, after each of which a training to a loss is evaluated.
PARTS = 4


class Framework(Protocol):
    """A network with its data, ready to train.

    Attributes:
        calls: functions to time, by name; from and to NumPy arrays, the images float32
            ``[N, height, width, channels]`` in [0, 1].
    """

    calls: dict[str, Callable[["np.ndarray"], "np.ndarray"]]

    def first_step(self) -> float:
        """Trains on one batch and returns its loss."""
        ...

    def epochs(self, count: int) -> list[tuple[float, float]]:
        """Trains; returns seconds and mean training loss of each epoch, synchronised."""
        ...

    def evaluate(self) -> float:
        """Returns the mean loss over the test images."""
        ...

    def train_part(self, part: int) -> None:
        """Takes the steps of one of the `PARTS` of an epoch, counted from 0, synchronised."""
        ...


class Stopwatch:
    """Records the seconds of named parts: ``with watch("import"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def bounds_of_part(part: int, steps: int) -> tuple[int, int]:
    """First step of a part of an epoch, and the first after it."""
    return steps * part // PARTS, steps * (part + 1) // PARTS


def load_images(
    config: TrainConfig, images: str | None = None
) -> tuple["np.ndarray", "np.ndarray"]:
    """Loads training and test images: float32 ``[N, height, width, channels]`` in [0, 1].

    Args:
        config: says how many.
        images: see `split_file`; None takes Fashion-MNIST.
    """
    if images is None:
        train, test = read_images("train"), read_images("t10k")
    else:
        train, test = (x.astype("float32") / 255 for x in split_file(images))
    return train[: config.train_examples], test[: config.test_examples]


def split_file(path: str) -> tuple["np.ndarray", "np.ndarray"]:
    """Training and test images of a .npy file, uint8 ``[N, height, width, channels]``: 9 to 1."""
    import numpy as np

    images = np.load(path)
    train = len(images) * 9 // 10
    return images[:train], images[train:]


def network_of(config: TrainConfig) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Shape of the images and features of the encoder."""
    config = resolved(config)
    assert config.image_shape is not None
    assert config.features is not None
    return config.image_shape, config.features


def way_back(
    image_shape: tuple[int, int, int], features: tuple[int, ...]
) -> list[tuple[int, bool]]:
    """Features and padding of the convolutions after the upsampling layers.

    For square images whose size needs no cropping: 28, 32, 64, 128. A convolution has no padding
    where the upsampled size is 2 too large: 16 -> 14 on the way to 28 pixels.
    """
    side, _, channels = image_shape
    sizes = [side]
    for _ in features:
        sizes.append(-(-sizes[-1] // 2))
    layers, size = [], sizes.pop()
    for width, mirrored in zip((*features[-2::-1], channels), sizes[::-1], strict=True):
        layers.append((width, 2 * size - mirrored < 2))
        size = 2 * size if layers[-1][1] else 2 * size - 2
    return layers


def read_images(split: str) -> "np.ndarray":
    """Reads Fashion-MNIST, ``train`` or ``t10k``: float32 ``[N, 28, 28, 1]`` in [0, 1].

    Reads the IDX file as Keras and torchvision do: the other frameworks should not wait for the
    imports of TensorFlow Datasets.
    """
    import numpy as np

    folder = resources.files("cae_jax") / "data" / "archives" / "fashion_mnist"
    with (folder / f"{split}-images-idx3-ubyte.gz").open("rb") as file:
        raw = gzip.decompress(file.read())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1).astype(np.float32) / 255
