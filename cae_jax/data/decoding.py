"""Decodes and converts the items of a source, in any process."""

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from cae_jax.config import TrainConfig
from cae_jax.data.conversion import Conversion, values_of
from cae_jax.data.files import UnreadableError, frames, further_frames, header
from cae_jax.data.pixels import check_shape, check_size, spanned
from cae_jax.data.sources import Item
from cae_jax.errors import UserError


@contextlib.contextmanager
def _opened(item: Item) -> Iterator[Image.Image | np.ndarray]:
    image = item.read()
    with image if isinstance(image, Image.Image) else contextlib.nullcontext():
        yield image


def extremes_of(item: Item, which: str, max_pixels: int) -> tuple[float, float] | None:
    """The smallest and the largest value of an image or of a pair; None if it is unreadable."""

    def values() -> Iterator[np.ndarray]:
        for one in filter(None, (item, item.input)):
            # A `Converter` names it.
            with contextlib.suppress(UnreadableError), _opened(one) as image:
                for frame in frames(image, which, one.name):
                    yield values_of(frame, one.name, max_pixels)

    return spanned(values())


class ColorError(Exception):
    """An image has colors after the first one was gray."""


class Converter:
    """Converts the images of items; can be pickled.

    Without a size (None) or channels (0) the first image decides, and the others have to agree.

    Args:
        config: what images are converted to.
        title: how an error names the source.

    Attributes:
        convert: to the size and channels that are decided.
        first: name of the image that decided the size.
    """

    def __init__(self, config: TrainConfig, title: str) -> None:
        channels = 0 if config.channels == "auto" else config.channels
        self.convert = Conversion.from_config(config, config.image_size, channels)
        self._ask = self.convert.size is None, not self.convert.channels
        self.first = title

    def decide(self, size: tuple[int, ...] | None, channels: int, first: str) -> None:
        """Takes over the size and channels that an image of this name has decided, if any."""
        to = self.convert
        self.convert = to._replace(size=to.size or size, channels=to.channels or channels)
        self.first = first or self.first

    def __call__(self, item: Item) -> tuple[list[np.ndarray], int]:
        """Converts an image or pair.

        Returns:
            the image uint8 ``[height, width, channels]``, or all frames of its file; of pairs with
            the channels of the input after those of the target. And the number of frames left out.
        """
        found, left_out = self._alone(item)
        if item.input is None:
            return found, left_out
        inputs, others = self._alone(item.input)
        if len(found) != len(inputs):
            raise UserError(
                f"{item.name} and {item.input.name} have different numbers of frames",
                "pass `frames='first'`, or leave them out with `exclude`",
            )
        pairs = zip(found, inputs, strict=True)
        return [np.concatenate(pair, axis=-1) for pair in pairs], left_out + others

    def _alone(self, item: Item) -> tuple[list[np.ndarray], int]:
        found, left_out = [], 0
        with _opened(item) as image:
            for frame in frames(image, self.convert.frames, item.name):
                self._agree(frame, item.name)
                found.append(self.convert(frame, item.name))
            if self.convert.frames == "first":
                with contextlib.suppress(UnreadableError):  # of a frame that is left out
                    left_out = further_frames(image, item.name)
        return found, left_out

    def _agree(self, image: Image.Image | np.ndarray, name: str) -> None:
        """Keeps the size and channels of the first image; refuses others."""
        if isinstance(image, np.ndarray):
            check_shape((1, *image.shape), name)
        if not any(self._ask):
            return
        (ask_size, ask_channels), to = self._ask, self.convert
        size, channels = header(image, name)
        if to.size is None:
            check_size(size, name)
            self.first = name
        elif ask_size and size != to.size:
            raise UserError(
                f"{self.first} has {to.size[0]} x {to.size[1]} pixels and {name} {size[0]} x "
                f"{size[1]}",
                "bring all to one size with `image_size=64`, for example",
            )
        if ask_channels and to.channels == 1 < channels:
            raise ColorError
        self.convert = to._replace(size=to.size or size, channels=to.channels or channels)
