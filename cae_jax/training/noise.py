"""Draws noise on the device, within the compiled programs.

Clean and noisy images are float32 ``[N, height, width, channels]`` in [0, 1]; values outside that
range are clipped. The noise of each pixel is independent. Sensor noise (gaussian, speckle, poisson)
is drawn for each channel; noise that replaces pixels (salt_and_pepper, masking, occlusion) replaces
all channels, including transparency.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cae_jax.config import MIX, PAIRS, check_level
from cae_jax.training import rows

# Photons at white up to which their number is drawn by inversion.
_FEW_PHOTONS = 16.0

Corruption = Callable[[jax.Array, jax.Array], jax.Array]


def build_corruption(noise: str, level: float | None = None) -> Corruption | None:
    """Builds ``corrupt(key, images)``, which returns noisy images; None for ``"none"``.

    Args:
        noise: ``"none"``, a key of `cae_jax.config.NOISES`, ``"mix"``, which draws one of them
            for each image, at its default level, or ``"pairs"``, which draws nothing.
        level: see `cae_jax.config.check_level`.

    Raises:
        UserError: unknown noise, or a level outside its range; ``corrupt`` raises it for a level
            in pixels that exceeds the images' shorter side.
    """
    check_level(noise, level)
    if noise == "none":
        return None
    if noise == PAIRS:
        return inputs_of_pairs
    if noise == MIX:
        return _mix
    return lambda key, images: _draw(noise, key, images, level)


def has_rows(noise: str, level: float | None) -> bool:
    """Whether `rows.from_row` draws the noise of some images without that of the others."""
    # JAX's own sampler, for more photons, accepts JAX's own keys only.
    sampled = noise == "poisson" and check_level(noise, level) > _FEW_PHOTONS
    return noise in ("none", PAIRS) or (rows.is_possible() and not sampled)


def inputs_of_pairs(_key: jax.Array, images: jax.Array) -> jax.Array:
    """The inputs among the channels of pairs, which are those of the target and of the input."""
    return images[..., images.shape[-1] // 2 :]


def targets(corrupt: Corruption | None, images: Any) -> Any:
    """What the network is to restore: the images, or their first channels if they are pairs."""
    return images[..., : images.shape[-1] // 2] if corrupt is inputs_of_pairs else images


def _draw(noise: str, key: jax.Array, images: jax.Array, level: float | None = None) -> jax.Array:
    return _DRAWS[noise](key, images, check_level(noise, level, images.shape[1:]))


def _gaussian(key: jax.Array, images: jax.Array, std: float) -> jax.Array:
    return _clip(images + std * jax.random.normal(key, images.shape, jnp.float32))


def _salt_and_pepper(key: jax.Array, images: jax.Array, fraction: float) -> jax.Array:
    uniform = _uniform_of_pixels(key, images)
    black, white = uniform < fraction / 2, uniform >= 1 - fraction / 2
    return jnp.where(white, 1.0, jnp.where(black, 0.0, images))


def _masking(key: jax.Array, images: jax.Array, fraction: float) -> jax.Array:
    return jnp.where(_uniform_of_pixels(key, images) < fraction, 0.0, images)


def _uniform_of_pixels(key: jax.Array, images: jax.Array) -> jax.Array:
    """One number for each pixel, ``[N, height, width, 1]``."""
    return jax.random.uniform(key, (*images.shape[:3], 1), jnp.float32)


def _speckle(key: jax.Array, images: jax.Array, std: float) -> jax.Array:
    return _clip(images * (1 + std * jax.random.normal(key, images.shape, jnp.float32)))


def _poisson(key: jax.Array, images: jax.Array, photons: float) -> jax.Array:
    rates = images * photons
    if photons > _FEW_PHOTONS:
        return _clip(jax.random.poisson(key, rates, dtype=jnp.int32).astype(jnp.float32) / photons)
    # By inversion (Devroye 1986, X.3.3): the number of values of the distribution function below a
    # uniform number. JAX's sampler loops until all pixels are done, which takes twenty times as
    # long. The truncated tail has a probability below 1e-9.
    uniform = jax.random.uniform(key, images.shape, jnp.float32)
    term = below = jnp.exp(-rates)
    count = jnp.zeros_like(rates)
    for n in range(1, math.ceil(photons + 7 * math.sqrt(photons)) + 8):
        count += uniform >= below
        term *= rates / n
        below += term
    return _clip(count / photons)


def _occlusion(key: jax.Array, images: jax.Array, side: float) -> jax.Array:
    """Blackens a square within the image; all positions are equally likely."""
    count, height, width, _ = images.shape
    corners = [int(size - side) + 1 for size in (height, width)]
    top, left = (
        jax.random.randint(k, (count, 1, 1, 1), 0, corner, jnp.int32)
        for k, corner in zip(jax.random.split(key), corners, strict=True)
    )
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return jnp.where(inside, 0.0, images)


def _mix(key: jax.Array, images: jax.Array) -> jax.Array:
    choice_key, *keys = jax.random.split(key, 1 + len(_DRAWS))
    choice = jax.random.randint(choice_key, (len(images), 1, 1, 1), 0, len(_DRAWS), jnp.int32)
    result = images
    for i, (k, noise) in enumerate(zip(keys, _DRAWS, strict=True)):
        result = jnp.where(choice == i, _draw(noise, k, images), result)
    return result


_DRAWS = {
    "gaussian": _gaussian,
    "salt_and_pepper": _salt_and_pepper,
    "masking": _masking,
    "speckle": _speckle,
    "poisson": _poisson,
    "occlusion": _occlusion,
}


def _clip(images: jax.Array) -> jax.Array:
    return jnp.clip(images, 0.0, 1.0)
