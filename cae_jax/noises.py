"""The kinds of noise and the levels that they take; `cae_jax.training.noise` draws them."""

from typing import NamedTuple

from cae_jax.errors import UserError


class Levels(NamedTuple):
    """What the level of a noise means.

    Attributes:
        meaning: of the number, with its unit.
        default: where none is given.
        least, most: the range, both ends included.
        whole: whether it is a whole number.
    """

    meaning: str
    default: float
    least: float
    most: float
    whole: bool = False


NOISES = {
    "gaussian": Levels("standard deviation, white being 1", 0.5, 0.0, 1e3),
    "salt_and_pepper": Levels("fraction of the pixels", 0.3, 0.0, 1.0),
    "masking": Levels("fraction of the pixels", 0.5, 0.0, 1.0),
    "speckle": Levels("standard deviation of the factor", 0.7, 0.0, 1e3),
    "poisson": Levels("photons at white", 3.0, 1e-3, 1e6),
    "occlusion": Levels("side of the square in pixels", 12.0, 1.0, 28.0, whole=True),
}
# Every image gets one of the others at its default level.
MIX = "mix"


def check_level(noise: str, level: float | None) -> float:
    """The level of a noise, its default for None.

    Args:
        noise: ``"none"``, `MIX` or a key of `NOISES`.
        level: what was asked for.

    Returns:
        the level; 0 for ``"none"`` and `MIX`.

    Raises:
        UserError: no such noise, or a level that it does not take.
    """
    if noise in ("none", MIX):
        if level is not None:
            raise UserError(f"noise_level is {level!r}; noise {noise} takes none")
        return 0.0
    if noise not in NOISES:
        raise UserError(f"noise is {noise!r}; it takes none, {', '.join(NOISES)} or {MIX}")
    levels = NOISES[noise]
    if level is None:
        return levels.default
    in_range = levels.least <= level <= levels.most  # false for NaN
    if not in_range or (levels.whole and level != int(level)):
        raise UserError(
            f"noise_level is {level!r}; noise {noise} takes a {'whole ' * levels.whole}number from "
            f"{levels.least:g} to {levels.most:g}: {levels.meaning}"
        )
    return float(level)
