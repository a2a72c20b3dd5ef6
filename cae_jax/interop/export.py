"""Exports a trained autoencoder as one file that works without cae_jax.

docs/export.md describes each format and how to load it.
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
from safetensors.numpy import save

from cae_jax import atomic
from cae_jax.config import to_shared
from cae_jax.errors import UserError, installing
from cae_jax.models.inference import Autoencoder
from cae_jax.ops import settings
from cae_jax.ops.backend import MATMUL

Format = Literal["stablehlo", "safetensors", "onnx"]
Function = Literal["reconstruct", "encode", "decode"]

# Increases whenever names, shapes or meaning of the content change.
FORMAT_VERSION = 1
PLATFORMS = ("cpu", "cuda", "tpu")
# jax.export serialises with flatbuffers, which jax does not depend on.
_PACKAGES = {"stablehlo": "flatbuffers", "onnx": "onnx"}


def check(format: str, function: str | None = None) -> None:
    """Refuses an export that is not possible here; call it before loading a run.

    Raises:
        UserError: an unknown format or function, a function with format safetensors, which holds
            parameters only, or the package that writes the format is missing.
    """
    if format not in get_args(Format):
        raise UserError(f"`format` is {format!r}; it takes {', '.join(get_args(Format))}")
    if function not in (None, *get_args(Function)):
        raise UserError(f"`function` is {function!r}; it takes {', '.join(get_args(Function))}")
    if format == "safetensors" and function is not None:
        raise UserError(
            f"`function` is {function!r}, but a safetensors file holds parameters only; leave "
            "`function` out, or choose the format stablehlo or onnx"
        )
    package = _PACKAGES.get(format)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"format {format} needs {package}; {installing('export')}")


@settings.ours()
def write(
    path: str | Path, autoencoder: Autoencoder, format: Format, function: Function | None = None
) -> None:
    """Writes an export file, whole or not at all; an existing file is replaced.

    Args:
        path: the file.
        autoencoder: any, whichever backend computes it.
        format: ``"stablehlo"``, ``"safetensors"`` or ``"onnx"``.
        function: None is ``"reconstruct"``; must be None for ``"safetensors"``.

    Raises:
        UserError: see `check`; or the file cannot be written.
    """
    check(format, function)
    if format == "safetensors":
        content = to_safetensors(autoencoder)
    else:
        convert = {"stablehlo": to_stablehlo, "onnx": to_onnx}[format]
        content = convert(autoencoder, function or "reconstruct")
    with atomic.output_file(path) as temporary:
        temporary.write_bytes(content)


def to_stablehlo(autoencoder: Autoencoder, function: Function = "reconstruct") -> bytes:
    """Serialises one function with `jax.export`, for any batch of at least 1 image.

    The parameters are constants in it. Input and output are float32: images ``[n, *image_shape]``
    in [0, 1], codes ``[n, *code_shape]``. It is lowered for `PLATFORMS` and has no derivative.
    """
    # As matmuls, whichever backend it was loaded with: the native kernel is a call into a library
    # of this machine.
    model, ops = autoencoder.model, MATMUL.with_precision(autoencoder.config.precision).layers
    compute = {
        "reconstruct": lambda x: nnx.sigmoid(model(x, ops)),
        "encode": lambda x: model.encode(x, ops),
        "decode": lambda x: nnx.sigmoid(model.decode(x, ops)),
    }[function]

    def call(x: jax.Array) -> jax.Array:  # its name is part of the file
        return compute(x)

    network = autoencoder.topology
    shape = network.code_shape if function == "decode" else network.image_shape
    argument = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("n"), *shape), jnp.float32)
    with _without_source_locations():
        exported = jax_export.export(jax.jit(call), platforms=PLATFORMS)(argument)
    return bytes(exported.serialize(vjp_order=0))


def to_onnx(autoencoder: Autoencoder, function: Function = "reconstruct") -> bytes:
    """Serialises one function as an ONNX model with `metadata`; see `cae_jax.interop.onnx`."""
    from cae_jax.interop import onnx  # not at the top: onnx is an optional dependency

    return onnx.to_onnx(
        autoencoder.topology,
        parameters(autoencoder),
        function,
        metadata(autoencoder),
    )


def to_safetensors(autoencoder: Autoencoder) -> bytes:
    """Serialises all parameters as float32, named layer.kernel and layer.bias, with `metadata`.

    Kernels of convolutions are ``[3, 3, in, out]``, those of dense layers ``[in, out]``. The layer
    ``density`` of a quantised network is its `cae_jax.models.density.Density`.
    """
    return save(parameters(autoencoder), metadata(autoencoder))


def parameters(autoencoder: Autoencoder) -> dict[str, np.ndarray]:
    """The parameters as float32 arrays by name, in the order of the layers."""
    values = nnx.to_pure_dict(nnx.state(autoencoder.model, nnx.Param))
    names = {layer.name: ("kernel", "bias") for layer in autoencoder.topology.weighted}
    if autoencoder.topology.quantised:
        names["density"] = tuple(values["density"])
    return {
        f"{layer}.{name}": np.asarray(values[layer][name])
        for layer, each in names.items()
        for name in each
    }


def metadata(autoencoder: Autoencoder) -> dict[str, str]:
    """The entry ``cae_jax`` of an exported file: format_version and config, as JSON."""
    # A single entry, because safetensors writes several in an order that varies between calls.
    values = {"format_version": FORMAT_VERSION, "config": to_shared(autoencoder.config)}
    return {"cae_jax": json.dumps(values)}


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Keeps source paths of this machine, which JAX stores for error messages, out of a file."""
    name = "jax_traceback_in_locations_limit"
    limit = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)
