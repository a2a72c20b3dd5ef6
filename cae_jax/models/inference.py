"""A trained autoencoder as functions of NumPy images."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import nnx
from jax.core import Tracer

from cae_jax.config import TrainConfig
from cae_jax.data.images import conversion_of, take_images
from cae_jax.data.pictures import take_pictures
from cae_jax.data.pixels import Range
from cae_jax.errors import UserError
from cae_jax.models import autoencoders, detection, tiles, topology
from cae_jax.ops import settings
from cae_jax.ops.backend import MATMUL, Backend, choose

logger = logging.getLogger(__name__)

Image = np.ndarray | PIL.Image.Image | str | os.PathLike[str]
Images = Image | Sequence[Image]


class Autoencoder:
    """A trained autoencoder: `encode`, `decode` and `reconstruct`.

    Images are arrays of uint8, uint16 (divided by 257), bool (True is white), or floats in [0, 1],
    of shape ``[N, height, width, channels]``, gray ones also ``[N, height, width]``, with any N
    including 0; or a PIL image or the name of an image or .npy file; or a list of those. A single
    image gives an N of 1. In a run with a `black` or `white` values are as its training images had
    them: floats in [0, 1] are nearly black where white is 4095. Images of 8 bits keep their white
    where that of the run is above 255 or below 1.
    ``resize=True`` converts images of other sizes and colors by the `resize` and `background` of
    the config, as a training on them would.

    Results are float32 NumPy arrays. At most ``backend.max_batch`` images are sent to the
    device in one call; each batch size is compiled once. An autoencoder can be pickled; unpickling
    chooses the same backend, or the default one if that is unavailable.

    Attributes:
        config: the config it was trained with.
        model: the Flax NNX module with the trained parameters.
        topology: the table of its layers.
        params: its parameters, an `nnx.State`.
        detector: tells images that are unlike those of the training; None without one.
    """

    detector: detection.Detector | None = None

    def __init__(
        self, config: TrainConfig, model: autoencoders.Model, backend: Backend = MATMUL
    ) -> None:
        self.config = config
        self.model = model
        self.topology = topology.from_config(config)
        self._image_shape = self.topology.image_shape
        self._conversion = conversion_of(config, self._image_shape)
        graphdef, self.params = nnx.split(model, nnx.Param)
        self._backend = backend
        self._passes = autoencoders.Passes(
            *map(jax.jit, autoencoders.make_passes(graphdef, backend))
        )

    def with_params(self, config: TrainConfig, params: nnx.State) -> "Autoencoder":
        """Returns the same network with other parameters, without compiling it again."""
        other = object.__new__(type(self))  # a copy by `copy` would be pickled
        vars(other).update(vars(self), config=config, params=params)
        other._conversion = conversion_of(config, self._image_shape)
        other.detector = None
        other.model = nnx.merge(nnx.graphdef(self.model), params)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs and the native kernel belong to this process.
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(self.params))
        return {
            "config": self.config,
            "params": params,
            "backend": self._backend.name,
            "detector": self.detector,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        config, name = state["config"], state["backend"]
        model = autoencoders.build_with(config, state["params"])
        try:
            backend = choose(model.topology, name, precision=config.precision)
        except UserError:  # pickled on another machine
            backend = choose(model.topology, precision=config.precision)
            taken = f"{backend.name}: {backend.reason}"
            logger.warning("Pickled with %s, loaded with %s", name, taken)
        self.__init__(config, model, backend)
        self.detector = state.get("detector")

    @property
    def of_pixels(self) -> "Autoencoder":
        """The same network for images of 8 bits or floats in [0, 1], as data sets have them.

        The white of a run applies to the images that a user has, and not once more to these.
        """
        other = self.with_params(self.config, self.params)
        other.detector = self.detector
        other._conversion = self._conversion._replace(range=Range())
        return other

    @property
    def max_batch(self) -> int:
        """The most images of a call to the device."""
        return self._backend.max_batch

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.topology.parameters

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of one image's code."""
        return self.topology.code_shape

    @property
    def digest(self) -> str:
        """SHA-256 of the names, shapes and values of its parameters."""
        return autoencoders.fingerprint(self.model).hex()

    def encode(self, images: Images, *, resize: bool = False) -> np.ndarray:
        """Encodes images to codes ``[N, *code_shape]``, each value at least 0.

        Raises:
            UserError: images of another shape, type or range, or a file that is not an image.
        """
        return self._batched(self._passes.encode, self._taken(images, resize), self.code_shape)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes ``[N, *code_shape]`` to images ``[N, *image_shape]`` in [0, 1].

        Raises:
            UserError: codes of another shape, or with non-finite values.
        """
        _refuse_traced(codes)
        try:
            codes = np.asarray(codes)
        except ValueError:
            raise UserError("the codes differ in length; pass them as encode gives them") from None
        if codes.shape[1:] != self.code_shape or codes.ndim == 0:
            raise UserError(
                f"codes have shape {list(codes.shape)}; this model takes "
                f"[N, {', '.join(map(str, self.code_shape))}], as its encode gives"
            )
        floats = np.issubdtype(codes.dtype, np.floating)
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            values = codes.astype(np.float32) if floats else codes
        if not floats or not np.isfinite(values).all():
            raise UserError(f"codes ({codes.dtype}) must be finite floats, as encode gives")
        return self._batched(self._passes.decode, values, self._image_shape)

    def reconstruct(
        self, images: Images, *, resize: bool = False, full_size: bool = False
    ) -> np.ndarray:
        """Encodes and decodes images: ``[N, *image_shape]`` in [0, 1].

        With `full_size` the images are pictures of any size and color, and come back with their own
        height, width and channels: the network is computed for their size from the same weights,
        see `cae_jax.models.tiles`. It takes a convolutional network, and pictures of one shape.

        Raises:
            UserError: see `encode`; a fully connected network, or pictures of several shapes.
        """
        if full_size:
            return self._at_full_size(images, resize)
        images = self._taken(images, resize)
        return self._batched(self._passes.reconstruct, images, self._image_shape)

    def logits(self, images: Images, *, resize: bool = False) -> np.ndarray:
        """The output of `reconstruct` before the sigmoid: ``[N, *image_shape]``, unbounded.

        Raises:
            UserError: see `encode`.
        """
        return self._batched(self._passes.logits, self._taken(images, resize), self._image_shape)

    def residuals(self, images: Images, *, resize: bool = False) -> np.ndarray:
        """How far reconstructions are from the images: ``[N, *image_shape]`` in [0, 1].

        Raises:
            UserError: see `encode`.
        """
        taken = self._taken(images, resize)
        floats = taken / np.float32(255) if taken.dtype == np.uint8 else taken
        outputs = self._batched(self._passes.reconstruct, taken, self._image_shape)
        return np.abs(outputs - floats)

    def score(
        self, images: Images, by: detection.By = "code", *, resize: bool = False
    ) -> detection.Scores:
        """Scores how unlike the training images are; needs a `detector`.

        Args:
            images: N images.
            by: ``"code"`` for images of another kind, ``"residual"`` for defects in images of the
                same kind, see `cae_jax.models.detection`.
            resize: as of `encode`.

        Raises:
            UserError: see `encode`; or there is no detector.
        """
        detector, taken = self._detector(), self._taken(images, resize)
        return detector.score(detection.features(self.of_pixels, taken), by)

    def anomaly_maps(self, images: Images, *, resize: bool = False) -> np.ndarray:
        """Where residuals are above those of calibration: ``[N, height, width]``, at least 0.

        What is above the residual that one in a hundred calibration images exceeds there, mean over
        the channels.

        Raises:
            UserError: see `score`.
        """
        limit = self._detector().limit_HxWxC
        return np.maximum(self.residuals(images, resize=resize) - limit, 0).mean(-1)

    def _detector(self) -> detection.Detector:
        if self.detector is None:
            raise UserError(
                "this autoencoder has no detector; `cae-jax score` fits one and keeps it in the "
                "run, or set `detector` to what cae_jax.models.detection.fit returns"
            )
        return self.detector

    def _at_full_size(self, images: Images, resize: bool) -> np.ndarray:
        tiles.check(self.topology)
        if resize:
            raise UserError("`resize` and `full_size` exclude each other; leave one out")
        pictures = [read().pixels for read in take_pictures(images, self._conversion)]
        if len({picture.shape for picture in pictures}) > 1:
            raise UserError("the pictures differ in shape; pass them one by one")
        floats = [
            picture / np.float32(255) if picture.dtype == np.uint8 else picture
            for picture in pictures
        ]
        fixed = self.topology, self.params, self.config.precision
        return np.stack([tiles.reconstruct(*fixed, each) for each in floats])

    def _taken(self, images: Images, resize: bool) -> np.ndarray:
        _refuse_traced(images)
        return take_images(images, self._conversion, resize=resize)

    @settings.ours()
    def _batched(
        self, function: Callable, inputs: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        outputs = [np.zeros((0, *shape), np.float32)]
        for start in range(0, len(inputs), self._backend.max_batch):
            batch = jnp.asarray(inputs[start : start + self._backend.max_batch])
            outputs.append(function(self.params, batch))
        return np.concatenate([np.asarray(output) for output in outputs])


def _refuse_traced(values: Any) -> None:
    """Refuses what `jax.jit` and other transformations pass in place of an array."""
    if isinstance(values, Tracer):
        raise UserError(
            "an Autoencoder takes and returns NumPy arrays; in a function that JAX transforms, "
            "call `autoencoder.model`, whose output are the logits of the images"
        )
