"""Compiles C++ for this machine, once, and keeps the results in the user's cache folder."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jaxlib.version import __version__ as jaxlib_version

from cae_jax.ops.cache import cache_folder

logger = logging.getLogger(__name__)

# Suffix of the folder of a compilation, in the cache folder.
_TEMPORARY = ".tmp"

# What makes a library of a source, for any compiler here.
SHARED = ("-shared", "-fPIC")

# Compile-time constants of a kernel: names of macros and their values.
Sizes = tuple[tuple[str, str], ...]


class UnavailableError(RuntimeError):
    """A kernel is unavailable here; the message says why, in one line."""


def library(
    sources: Sequence[Path], flags: Sequence[str], prefix: str, title: str
) -> tuple[ctypes.CDLL, str]:
    """Compiles a shared library, unless it is in the cache, and loads it.

    Args:
        sources: the first is compiled and includes the others.
        flags: of the compiler, beside `SHARED`.
        prefix: of the library's name.
        title: what it is, for the log.

    Returns:
        The library, and a digest of everything it depends on.

    Raises:
        UnavailableError: the compiler is missing or fails, or the library cannot be kept or loaded.
    """
    compiler, flags = command(), [*SHARED, *flags]
    digest = key(sources, compiler, flags)
    line = [*compiler, *flags, "-isystem", jax.ffi.include_dir(), str(sources[0])]

    def compile_to(output: Path) -> None:
        logger.info("Compiling %s (once, some seconds)", title)
        result = subprocess.run([*line, "-o", str(output)], capture_output=True, text=True)
        if result.returncode != 0 or not output.exists():
            lines = [line for line in result.stderr.splitlines() if "error" in line]
            message = " ".join((lines or ["no message"])[0].split())
            raise UnavailableError(f"{line[0]} fails: {message}")

    try:
        return ctypes.CDLL(str(keep(f"{prefix}-{digest}.so", compile_to))), digest
    except OSError as error:
        raise UnavailableError(f"its library cannot be kept or loaded ({error})") from error


def keep(name: str, make: Callable[[Path], None]) -> Path:
    """The path of a file in the cache folder, made unless it is there and whole.

    Its last 32 bytes are the SHA-256 of the others.

    Args:
        name: of the file, which says everything that it depends on.
        make: writes the file; one process at a time does.

    Raises:
        OSError: it cannot be kept.
    """
    path = cache_folder() / name
    if not _is_whole(path):
        with _alone(path.parent):
            if not _is_whole(path):  # another process may have made it meanwhile
                # In the cache folder, on the same disk as the file's place.
                with tempfile.TemporaryDirectory(suffix=_TEMPORARY, dir=path.parent) as folder:
                    output = Path(folder) / name
                    make(output)
                    content = output.read_bytes()
                    output.write_bytes(content + hashlib.sha256(content).digest())
                    output.replace(path)
    return path


def key(sources: Sequence[Path], compiler: Sequence[str], flags: Sequence[str]) -> str:
    """A digest of everything that a library depends on."""
    contents = [path.read_bytes() for path in sources]
    parts = (contents, _version(compiler), flags, _cpu(), jaxlib_version)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def command() -> list[str]:
    """CXX if it is set, else the system's compiler, as the first words of a command.

    Raises:
        UnavailableError: there is none.
    """
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


def _version(compiler: Sequence[str]) -> str:
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


def _is_whole(path: Path) -> bool:
    """Whether a file is complete; a damaged library would crash the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]
