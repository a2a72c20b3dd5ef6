"""Compiles the native kernel for this machine, once, and registers it with JAX."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jaxlib.version import __version__ as jaxlib_version

from cae_jax.ops.cache import cache_folder

logger = logging.getLogger(__name__)

# The first is compiled and includes the others.
SOURCES = [Path(__file__).with_name(name) for name in ("ffi.cc", "network.h", "conv.h", "simd.h")]
# Without -ffast-math: a value that is not finite must stay so. Its benefit here comes from the
# last three flags: fused multiply-adds, and no errno and floating-point traps, which nobody reads.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-Wno-psabi"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# Suffix of the folder of a compilation, in the cache folder.
_TEMPORARY = ".tmp"
ENTRIES = ("bce_and_grad", "mse_and_grad", "losses", "encode", "decode")

# Compile-time constants of the kernel: names of macros and their values.
Sizes = tuple[tuple[str, str], ...]


class UnavailableError(RuntimeError):
    """The native kernel is unavailable here; the message says why, in one line."""


@functools.cache
def register(sizes: Sizes) -> str:
    """Compiles the kernel if necessary, and registers its `ENTRIES` with JAX as ``NAME_ENTRY``.

    Returns:
        NAME.

    Raises:
        UnavailableError: the kernel is disabled, or the platform unsupported, or the compiler
            missing or failing.
    """
    library, key = _load(sizes)
    name = f"cae_jax_{key}"
    for entry in ENTRIES:
        function = jax.ffi.pycapsule(getattr(library, f"cae_{entry}"))
        jax.ffi.register_ffi_target(f"{name}_{entry}", function, platform="cpu")
    return name


def _load(sizes: Sizes) -> tuple[ctypes.CDLL, str]:
    if os.environ.get("CAE_JAX_NATIVE") == "0":
        raise UnavailableError("CAE_JAX_NATIVE=0 switches it off")
    if platform.system() not in ("Linux", "Darwin"):
        raise UnavailableError(f"it supports Linux and macOS, not {platform.system()}")
    compiler = _compiler()
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in sizes)]
    flags += shlex.split(os.environ.get("CAE_JAX_NATIVE_FLAGS", ""))
    key = _key(compiler, flags)
    command = [*compiler, *flags, "-isystem", jax.ffi.include_dir(), str(SOURCES[0])]
    try:
        path = cache_folder() / f"native-{key}.so"
        if not _is_whole(path):
            with _alone(path.parent):
                if not _is_whole(path):  # another process may have compiled it meanwhile
                    _compile(command, path)
        return ctypes.CDLL(str(path)), key
    except OSError as error:
        raise UnavailableError(f"its library cannot be kept or loaded ({error})") from error


def _key(compiler: list[str], flags: list[str]) -> str:
    """A digest of everything the library depends on."""
    sources = [path.read_bytes() for path in SOURCES]
    parts = (sources, _version(compiler), flags, _cpu(), jaxlib_version)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _compiler() -> list[str]:
    """CXX if it is set, else the system's compiler, as the first words of a command."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise UnavailableError(f"the compiler CXX={chosen[0]} is not found")
        return chosen
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise UnavailableError(
        "no C++ compiler is found (c++, g++, clang++ or CXX), with which training is about 6 times "
        "as fast"
    )


def _version(compiler: list[str]) -> str:
    command = [*compiler, "--version"]
    return f"{compiler} {subprocess.run(command, capture_output=True, text=True).stdout}"


def _cpu() -> str:
    """Describes the CPU, on which `-march=native` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.startswith(names))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time compile, and removes the files of killed ones."""
    import fcntl  # deferred: not on Windows, where this is not reached

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in folder.glob(f"*{_TEMPORARY}"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _compile(command: list[str], path: Path) -> None:
    """Compiles to a private folder and moves the library, with its SHA-256, to its place."""
    logger.info("Compiling the native kernel (once, some seconds)")
    # In the cache folder, on the same disk as the library's place.
    with tempfile.TemporaryDirectory(suffix=_TEMPORARY, dir=path.parent) as folder:
        output = Path(folder) / path.name
        result = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if result.returncode != 0 or not output.exists():
            lines = [line for line in result.stderr.splitlines() if "error" in line]
            message = " ".join((lines or ["no message"])[0].split())
            raise UnavailableError(f"{command[0]} fails: {message}")
        content = output.read_bytes()
        output.write_bytes(content + hashlib.sha256(content).digest())
        output.replace(path)


def _is_whole(path: Path) -> bool:
    """Whether the library is complete; a damaged one would crash the process.

    The SHA-256 is at its end, which the loader ignores.
    """
    if not path.exists():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]
