"""What the contenders have in common: their interface, a stopwatch, the images of the peers.

Only the standard library is imported here: the clock has not begun to run.
"""

import contextlib
import gzip
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Protocol

from cae_jax.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np

# Images in a call of the peers, tried from 128 to 4096 on a CPU: more is slower for most of them.
LARGEST_CALL = 256


class Contender(Protocol):
    """A network with its data, ready to be trained.

    Attributes:
        calls: what it can do with NumPy images float32 ``[N, 28, 28, 1]`` in [0, 1], by name.
    """

    calls: dict[str, Callable[["np.ndarray"], "np.ndarray"]]

    def first_step(self) -> float:
        """Trains on one batch; its loss, on the host."""
        ...

    def epochs(self, count: int) -> list[tuple[float, float]]:
        """Trains; seconds and mean training loss of each epoch, everything finished."""
        ...

    def evaluate(self) -> float:
        """The mean loss of the test images."""
        ...


class Stopwatch:
    """Seconds of named parts: ``with watch("import"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def peer_images(config: TrainConfig) -> tuple["np.ndarray", "np.ndarray"]:
    """Training and test images of a config, for a peer."""
    return (
        read_images("train")[: config.train_examples],
        read_images("t10k")[: config.test_examples],
    )


def read_images(split: str) -> "np.ndarray":
    """Fashion-MNIST, ``train`` or ``t10k``, float32 ``[N, 28, 28, 1]`` in [0, 1].

    From its archive, as Keras and torchvision read it: the peers must not wait for what
    `cae_jax.data.store` imports.
    """
    import numpy as np

    folder = resources.files("cae_jax") / "data" / "archives" / "fashion_mnist"
    with (folder / f"{split}-images-idx3-ubyte.gz").open("rb") as file:
        raw = gzip.decompress(file.read())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1).astype(np.float32) / 255
