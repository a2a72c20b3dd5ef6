"""Three ways of computing one network, and which of them to take."""

from typing import Literal, NamedTuple, get_args

import jax

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.ops.native import UnavailableError, of_features

Method = Literal["conv", "phase", "fused"]


class Choice(NamedTuple):
    """A method and the reason for it, the end of a sentence."""

    method: Method
    reason: str


def choose(config: TrainConfig, method: str = "auto") -> Choice:
    """The method that a config is computed by on the device at hand.

    Args:
        config: its model and features count.
        method: one of `Method`, or ``"auto"``: the fused step on a CPU where it can be had, else
            the phase form.

    Raises:
        UserError: no such method, or one that this device or model cannot have.
    """
    known = get_args(Method)
    if method not in (*known, "auto"):
        raise UserError(f"method is {method!r}; it takes auto, {', '.join(known)}")
    if config.model != "conv":
        if method not in ("auto", "phase"):
            raise UserError(
                f"method is {method}; the fully connected model {config.model} takes auto or phase"
            )
        return Choice("phase", f"every layer of the model {config.model} is a matmul")
    if method in ("conv", "phase"):
        return Choice(method, "as asked for")
    device = jax.default_backend()
    if method == "auto" and device != "cpu":
        return Choice("phase", f"the device is a {device}")
    try:
        if device != "cpu":
            raise UnavailableError(f"it is for the CPU, and the device is a {device}")
        of_features(config.features)
    except UnavailableError as reason:
        if method == "fused":
            raise UserError(
                f"method fused cannot be had: {reason}; take --method phase or auto"
            ) from None
        return Choice("phase", f"fused cannot be had: {reason}")
    return Choice("fused", "as asked for" if method == "fused" else "a CPU with a C++ compiler")
