"""Principal component analysis: the best linear code of some size, as a baseline for the networks.

It is fitted to training images by subspace iteration with a random start (Halko, Martinsson and
Tropp 2011, https://doi.org/10.1137/090771806), which reads them in blocks: neither the images nor
their covariance need to fit in memory.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from cae_jax.data.encoded import Encoded
from cae_jax.evaluation.lazy import Images, parts
from cae_jax.models.autoencoders import scale

# On Fashion-MNIST the PSNR of test images is within 0.01 dB of that of an eigendecomposition of the
# covariance with 32, 128 and 256 values; with 4 passes within 0.07 dB.
_PASSES, _EXTRA = 8, 16
_BLOCK = 2**24  # values of images in a block, as floats 64 MB
_MAX_FLOPS, _MAX_DECODED = 3e12, 3e4  # half a minute on two cores


class Linear(NamedTuple):
    """A linear autoencoder of V values for each image and K for its code.

    Attributes:
        mean_V: of the training images, in [0, 1].
        basis_VxK: the principal components, of decreasing variance, orthonormal.
    """

    mean_V: np.ndarray
    basis_VxK: np.ndarray

    @property
    def parameters(self) -> int:
        """Values of the mean and the components."""
        return self.mean_V.size + self.basis_VxK.size

    def first(self, size: int) -> Self:
        """The one with a code of at most `size` values."""
        return self._replace(basis_VxK=self.basis_VxK[:, :size])

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Projects images ``[N, H, W, C]``, uint8 or floats in [0, 1]; float32, clipped to [0, 1].

        Floats are returned in the shape of `images`.
        """
        flat = images.reshape(len(images), -1)
        outputs = np.concatenate([_project(flat[part], *self) for part in _blocks(flat)])
        return outputs.reshape(images.shape)


def is_cheap(images: Images | Encoded, size: int) -> bool:
    """Whether `fit` takes half a minute or less on two cores."""
    flops = 4 * (_PASSES + 1) * math.prod(images.shape) * (size + _EXTRA)
    decoded = (_PASSES + 2) * len(images) if isinstance(images, Encoded) else 0
    return flops <= _MAX_FLOPS and decoded <= _MAX_DECODED


def fit(images: Images, size: int) -> Linear:
    """Fits the principal components of images.

    Args:
        images: uint8 ``[N, H, W, C]``, N at least 1.
        size: K, values of a code; fewer if the images have fewer values.
    """
    values = math.prod(images.shape[1:])
    size = min(size, values)
    mean = sum(_flat(images, part).sum(0, dtype=np.int64) for part in _blocks(images))
    mean_V = np.asarray(mean / (255 * len(images)), np.float32)
    basis = np.random.default_rng(0).standard_normal((values, min(size + _EXTRA, values)))
    for _ in range(_PASSES):
        basis = np.linalg.qr(_covariance_times(images, mean_V, basis))[0]
    # Rayleigh-Ritz: the directions of the subspace by their variance.
    variances = basis.T @ _covariance_times(images, mean_V, basis)
    _, rotation = np.linalg.eigh((variances + variances.T) / 2)  # of increasing variance
    return Linear(mean_V, (basis @ rotation[:, ::-1][:, :size]).astype(np.float32))


def _covariance_times(images: Images, mean_V: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The product of the images' covariance, up to a factor, and a matrix: float64."""
    narrow = jnp.asarray(basis, jnp.float32)
    total = np.zeros(basis.shape)
    for part in _blocks(images):
        total += np.asarray(_product(_flat(images, part), mean_V, narrow))
    return total


@jax.jit
def _product(images_NxV: jax.Array, mean_V: jax.Array, basis_VxK: jax.Array) -> jax.Array:
    centered = scale(images_NxV) - mean_V[None]
    codes_NxK = jnp.matmul(centered, basis_VxK, precision="highest")
    return jnp.matmul(centered.T, codes_NxK, precision="highest")


@jax.jit
def _project(images_NxV: jax.Array, mean_V: jax.Array, basis_VxK: jax.Array) -> jax.Array:
    codes_NxK = jnp.matmul(scale(images_NxV) - mean_V[None], basis_VxK, precision="highest")
    return jnp.clip(
        jnp.matmul(codes_NxK, basis_VxK.T, precision="highest") + mean_V[None], 0.0, 1.0
    )


def _blocks(images: Images) -> Iterator[slice]:
    return parts(len(images), max(1, _BLOCK // math.prod(images.shape[1:])))


def _flat(images: Images, part: slice) -> np.ndarray:
    block = np.asarray(images[part])
    return block.reshape(len(block), -1)
