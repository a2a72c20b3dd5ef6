"""The learned probability of each whole number in a code, channel by channel.

A factorised prior as in Balle, Laparra and Simoncelli 2017, in the form of appendix 6.1 of Balle et
al. 2018: the cumulative distribution of a channel is the sigmoid of a small network of one input
that rises everywhere.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

_WIDTHS = (1, 3, 3, 3, 1)  # of the network of a channel, as in the paper
_SCALE = 10.0  # about the standard deviation of a channel at the start, as in the paper
_LAYERS = range(1, len(_WIDTHS))


class Density(nnx.Module):
    """The density of each channel of a code, independent of the others and of the place.

    Args:
        channels: C.
        rngs: the stream ``params`` initialises the biases.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        scale = _SCALE ** (1 / len(_LAYERS))
        for i in _LAYERS:
            n_in, n_out = _WIDTHS[i - 1 : i + 1]
            kernel = jnp.full((channels, n_out, n_in), math.log(math.expm1(1 / scale / n_out)))
            bias = jax.random.uniform(rngs.params(), (channels, n_out), minval=-0.5, maxval=0.5)
            setattr(self, f"kernel{i}", nnx.Param(kernel))
            setattr(self, f"bias{i}", nnx.Param(bias))
            if i < _LAYERS[-1]:
                setattr(self, f"factor{i}", nnx.Param(jnp.zeros((channels, n_out))))

    def bits(self, code_NxC: jax.Array, width: float = 1.0) -> jax.Array:
        """The information of each value, ``-log2`` of the mass around it: ``[N, C]``.

        The mass is that of an interval of some width with the value in the middle. Differentiable,
        also where it is too small for a float.
        """
        low, high = (self._logits(code_NxC + side * width / 2) for side in (-1, 1))
        # In the lower tail, where a difference of two sigmoids keeps its digits.
        flipped = low + high > 0
        low, high = jnp.where(flipped, -high, low), jnp.where(flipped, -low, high)
        low, high = jax.nn.log_sigmoid(low), jax.nn.log_sigmoid(high)
        # Of equal ones, which float32 gives far out, the derivative would be infinite.
        between = jnp.maximum(high - low, 1e-6)
        return (high + jnp.log(-jnp.expm1(-between))) / -math.log(2)

    def _logits(self, x_NxC: jax.Array) -> jax.Array:
        """The logits of the cumulative distribution: ``[N, C]``."""
        x_CxKxN = x_NxC.T[:, None]
        for i in _LAYERS:
            kernel, bias = getattr(self, f"kernel{i}")[...], getattr(self, f"bias{i}")[...]
            x_CxKxN = jnp.matmul(jax.nn.softplus(kernel), x_CxKxN, precision="highest")
            x_CxKxN = x_CxKxN + bias[..., None]
            if i < _LAYERS[-1]:
                factor = jnp.tanh(getattr(self, f"factor{i}")[...])[..., None]
                x_CxKxN = x_CxKxN + factor * jnp.tanh(x_CxKxN)
        return x_CxKxN[:, 0].T
