"""Compiles the native kernel for this machine, once, and registers it with JAX."""

import functools
import os
import platform
import shlex
from pathlib import Path

import jax

from cae_jax.ops import compiler
from cae_jax.ops.compiler import Sizes, UnavailableError

# The first is compiled and includes the others.
HEADERS = ("soap.h", "threads.h", "network.h", "conv.h", "simd.h")
SOURCES = [Path(__file__).with_name(name) for name in ("ffi.cc", *HEADERS)]
# Without -ffast-math: a value that is not finite must stay so. Its benefit here comes from the
# last three flags: fused multiply-adds, and no errno and floating-point traps, which nobody reads.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-Wno-psabi"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
ENTRIES = ("bce_and_grad", "mse_and_grad", "losses", "encode", "decode", "soap")


@functools.cache
def register(sizes: Sizes) -> str:
    """Compiles the kernel if necessary, and registers its `ENTRIES` with JAX as ``NAME_ENTRY``.

    Returns:
        NAME.

    Raises:
        UnavailableError: the kernel is disabled, or the platform unsupported, or the compiler
            missing or failing.
    """
    if os.environ.get("CAE_JAX_NATIVE") == "0":
        raise UnavailableError("CAE_JAX_NATIVE=0 switches it off")
    if platform.system() not in ("Linux", "Darwin"):
        raise UnavailableError(f"it supports Linux and macOS, not {platform.system()}")
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in sizes)]
    flags += shlex.split(os.environ.get("CAE_JAX_NATIVE_FLAGS", ""))
    library, key = compiler.library(SOURCES, flags, "native", "the native kernel")
    name = f"cae_jax_{key}"
    for entry in ENTRIES:
        function = jax.ffi.pycapsule(getattr(library, f"cae_{entry}"))
        jax.ffi.register_ffi_target(f"{name}_{entry}", function, platform="cpu")
    return name
