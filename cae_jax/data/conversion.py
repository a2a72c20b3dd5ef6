"""Converts images of any mode to uint8 with the configured size and channels."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cae_jax.config import MAX_PIXELS, Background, Shape, TrainConfig
from cae_jax.data.files import (
    check_pixels,
    from_pixels,
    is_transparent,
    raw,
    reading,
    turned,
    upright,
)
from cae_jax.data.pixels import MODES, Range, RangeError, eight_bit_array, range_of
from cae_jax.errors import UserError


class Conversion(NamedTuple):
    """What images are converted to.

    Attributes:
        size: height and width; None keeps them.
        resize, background: see `TrainConfig`.
        channels: 1, 3 or 4.
        range: black and white of the images.
        frames, max_pixels: see `TrainConfig`.
    """

    size: tuple[int, ...] | None
    resize: str
    background: Background
    channels: int
    range: Range = Range()
    frames: str = "first"
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(
        cls, config: TrainConfig, size: tuple[int, ...] | None, channels: int
    ) -> "Conversion":
        """The conversion of the images of a config."""
        levels = range_of(config)
        options = (levels, config.frames, config.max_pixels)
        return cls(size, config.resize, config.background, channels, *options)

    @property
    def shape(self) -> Shape:
        """Height, width and channels of the results, where there is a size."""
        assert self.size is not None
        height, width = self.size
        return height, width, self.channels

    def __call__(self, image: Image.Image | np.ndarray, name: str) -> np.ndarray:
        """Converts one image.

        Args:
            image: of any size and mode; an array as of `eight_bit_array`.
            name: how an error names the image.

        Returns:
            uint8 ``[height, width, channels]``.

        Raises:
            UserError: damaged; another size, where `resize` is ``"none"``; pixels of another type
                or range, see `checked_array`.
        """
        if isinstance(image, np.ndarray):
            pixels = eight_bit_array(image, name, self.range)
            if pixels.shape[-1] == self.channels and self.size in (None, pixels.shape[:2]):
                return pixels
            image = from_pixels(pixels)
        else:
            with reading(name):
                if self.size is not None and self.resize != "none":
                    # A JPEG decodes at a fraction of its size; twice the target stays sharp.
                    image.draft(None, (2 * max(self.size), 2 * max(self.size)))
                image = self.eight_bits(image, name)
        mode = MODES[self.channels]
        image, border = _flat(image, self.background, mode == "RGBA")
        image = image if image.mode == mode else image.convert(mode)
        if self.size is not None and image.size != self.size[::-1]:
            height, width = self.size
            if self.resize == "none":
                raise UserError(
                    f"{name} has {image.height} x {image.width} pixels, and `image_size` is "
                    f"{height} x {width}",
                    "choose a `resize` of fit, crop or stretch",
                )
            image = _resized(image, (width, height), self.resize, border)
        return np.asarray(image).reshape(image.height, image.width, self.channels)

    def eight_bits(self, image: Image.Image, name: str) -> Image.Image:
        """Decodes an image and brings its values to 8 bits and its EXIF orientation upright.

        Raises:
            UserError: values of another type or range, or more pixels than `max_pixels`.
        """
        check_pixels(image, name, self.max_pixels)
        if (found := raw(image, name, self.range.concerns(np.dtype(np.uint16)))) is None:
            return _scaled(upright(image), self.range)
        levels, values = self.range, found.values
        if values.dtype.kind != "f" and values.max(initial=0) == 1 and levels == Range():
            raise RangeError(
                f"{name} has values up to 1, which is black for {values.dtype}",
                "save it as 8 bits, multiplied by 255, if 1 is white",
            )
        if levels.white is None and found.white is not None:
            levels = levels._replace(white=float(found.white))
        pixels = eight_bit_array(values, name, levels)
        result = from_pixels(pixels)
        if found.inverted:
            result = ImageOps.invert(result)
        if result.mode == "L" and "transparency" in image.info:
            visible = values != image.info["transparency"]
            result.putalpha(Image.fromarray(visible.astype(np.uint8) * np.uint8(255)))
        return turned(result, image)


def _scaled(image: Image.Image, levels: Range) -> Image.Image:
    """An image of 8 bits whose black and white may be others."""
    if image.mode == "1" or not levels.concerns(np.dtype(np.uint8)):
        return image
    opaque = "L" if image.mode == "L" else "RGB"
    image = image.convert("RGBA" if is_transparent(image) else opaque)
    table = eight_bit_array(np.arange(256, dtype=np.uint8), "", levels).tolist()
    whole = list(range(256))
    return image.point([x for band in image.getbands() for x in (whole if band == "A" else table)])


def values_of(image: Image.Image | np.ndarray, name: str, max_pixels: int) -> np.ndarray:
    """The values of an image as its file has them, without alpha, for `pixels.extremes`."""
    if isinstance(image, np.ndarray):
        return image
    check_pixels(image, name, max_pixels)
    with reading(name):
        if (found := raw(image, name, whole=True)) is not None:
            return found.values
        return np.asarray(image if image.mode in ("1", "L") else image.convert("RGB"))


def _flat(image: Image.Image, background: Background, keep: bool) -> tuple[Image.Image, str]:
    """Composes a transparent image over its background, unless it keeps its transparency.

    Returns:
        the image, and its background: ``"auto"`` is white behind dark images, else black.
    """
    if not is_transparent(image):
        return image, "white" if background == "white" else "black"
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    colors, alpha = image.convert("RGB"), image.getchannel("A")
    if background == "auto":
        light = np.asarray(colors.convert("L")) / 255 - 0.5
        background = "white" if (light * np.asarray(alpha, np.float64)).sum() < 0 else "black"
    if not keep:
        image = Image.composite(colors, Image.new("RGB", image.size, background), alpha)
    return image, background


def _resized(image: Image.Image, size: tuple[int, int], resize: str, border: str) -> Image.Image:
    """Resizes to a width and height with Lanczos's filter, which averages where it reduces."""
    method = Image.Resampling.LANCZOS
    if resize == "stretch":
        return image.resize(size, method)
    if resize == "crop":
        return ImageOps.fit(image, size, method)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    white = 255 if border == "white" else 0
    # The border of an image that keeps its transparency is transparent.
    color = {"L": white, "RGB": (white,) * 3, "RGBA": (white,) * 3 + (0,)}[image.mode]
    fitted = Image.new(image.mode, size, color)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted.paste(image.resize(inner, method), (left, top))
    return fitted
