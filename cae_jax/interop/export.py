"""A trained autoencoder as one file that is used without cae_jax.

docs/export.md shows what each format holds and how it is loaded.
"""

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from cae_jax import atomic
from cae_jax.config import to_dict
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder

Format = Literal["stablehlo", "safetensors", "onnx"]
Function = Literal["reconstruct", "encode", "decode"]

# Rises whenever names, shapes or meaning of what is written change.
FORMAT_VERSION = 1
PLATFORMS = ("cpu", "cuda", "tpu")
# jax.export serialises with flatbuffers, which jax does not ask for by itself.
_PACKAGES = {"stablehlo": "flatbuffers", "safetensors": "safetensors", "onnx": "onnx"}


def check(format: str, function: str | None = None) -> None:
    """Refuses what cannot be exported here, before anything is loaded.

    Raises:
        UserError: an unknown format or function, a function of safetensors, which hold none, or
            the package that writes the format is missing.
    """
    if format not in get_args(Format):
        raise UserError(f"format is {format!r}; it takes {', '.join(get_args(Format))}")
    if function not in (None, *get_args(Function)):
        raise UserError(f"function is {function!r}; it takes {', '.join(get_args(Function))}")
    if format == "safetensors" and function is not None:
        raise UserError(
            f"function is {function}, but safetensors hold the parameters alone; leave it out, or "
            "take format stablehlo or onnx"
        )
    package = _PACKAGES[format]
    if importlib.util.find_spec(package) is None:
        raise UserError(f'format {format} needs {package}; pip install -e ".[export]"')


def serialise(autoencoder: Autoencoder, format: Format, function: Function | None = None) -> bytes:
    """The content of an export file.

    Args:
        autoencoder: loaded with any method.
        format: ``"stablehlo"``, ``"safetensors"`` or ``"onnx"``.
        function: which one of the autoencoder; None is ``"reconstruct"``, and all there is for
            ``"safetensors"``.

    Raises:
        UserError: see `check`.
    """
    check(format, function)
    if format == "safetensors":
        return to_safetensors(autoencoder)
    if format == "stablehlo":
        return to_stablehlo(autoencoder, function or "reconstruct")
    return to_onnx(autoencoder, function or "reconstruct")


def to_stablehlo(autoencoder: Autoencoder, function: Function = "reconstruct") -> bytes:
    """One function as `jax.export` serialises it, for any batch of at least 1 image.

    Its parameters are constants in it. It takes and gives float32: images ``[n, 28, 28, 1]`` in
    [0, 1], codes ``[n, *code_shape]``. It is lowered for `PLATFORMS` and has no derivative.
    """
    # Computed as matmuls, whichever way it was loaded: the native step is a call into a library
    # of this machine.
    model = autoencoders.build(autoencoder.config, nnx.Rngs(0), "phase")
    nnx.update(model, nnx.state(autoencoder.model, nnx.Param))
    functions = {
        "reconstruct": lambda x: nnx.sigmoid(model(x)),
        "encode": model.encode,
        "decode": lambda x: nnx.sigmoid(model.decode(x)),
    }

    def call(x: jax.Array) -> jax.Array:
        return functions[function](x)

    shape = autoencoder.code_shape if function == "decode" else autoencoders.IMAGE_SHAPE
    argument = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("n"), *shape), jnp.float32)
    with _without_source_locations():
        exported = jax_export.export(jax.jit(call), platforms=PLATFORMS)(argument)
    return bytes(exported.serialize(vjp_order=0))


def to_onnx(autoencoder: Autoencoder, function: Function = "reconstruct") -> bytes:
    """One function as an ONNX model, see `cae_jax.interop.onnx`, with `metadata`."""
    from cae_jax.interop import onnx  # here, since onnx is an extra

    return onnx.to_onnx(
        autoencoder.model.layers(),
        parameters(autoencoder),
        autoencoder.code_shape,
        function,
        metadata(autoencoder),
    )


def to_safetensors(autoencoder: Autoencoder) -> bytes:
    """All parameters, float32, named layer.kernel and layer.bias, and `metadata`.

    Kernels of convolutions are ``[3, 3, in, out]``, those of dense layers ``[in, out]``.
    """
    from safetensors.numpy import save

    return save(parameters(autoencoder), metadata(autoencoder))


def parameters(autoencoder: Autoencoder) -> dict[str, np.ndarray]:
    """The parameters by name, in the order of the layers."""
    layers = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    return {
        f"{row.name}.{name}": np.asarray(layers[row.name][name])
        for row in autoencoder.model.layers()
        if row.parameters
        for name in ("kernel", "bias")
    }


def metadata(autoencoder: Autoencoder) -> dict[str, str]:
    """What is kept beside the parameters: under ``cae_jax``, as JSON, format_version and config."""
    # One entry, for safetensors writes several in an order that changes from time to time.
    values = {"format_version": FORMAT_VERSION, "config": to_dict(autoencoder.config)}
    return {"cae_jax": json.dumps(values)}


def check_path(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is loaded.

    Raises:
        UserError: it is a folder or a device, or its own folder does not exist.
    """
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written; give a file in a folder that exists")


def write(path: Path, content: bytes) -> None:
    """Writes a file whole, in place of one that may be there, or not at all.

    Raises:
        UserError: it cannot be written.
    """
    check_path(path)
    try:
        atomic.write_bytes(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}); give another file, or free space"
        ) from error


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Keeps the paths of this machine, which JAX notes for its error messages, out of a file."""
    name = "jax_traceback_in_locations_limit"
    limit = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)
