"""Compiles the kernels for a GPU, once, and registers what launches them with JAX.

Neither needs a device: the kernels are compiled by NVRTC, which comes with ``jax[cuda12]`` and
``jax[cuda13]``, the launcher by the system's C++ compiler.
"""

import ctypes
import functools
import hashlib
import logging
import re
from importlib import util
from pathlib import Path
from typing import NamedTuple

import jax

from cae_jax.ops import compiler
from cae_jax.ops.compiler import Sizes, UnavailableError

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
HEADERS = [FOLDER / "kernel.h", FOLDER / "array.h"]  # of the kernels
# The first is compiled and includes the others.
LAUNCHER = [FOLDER / name for name in ("launch.cc", "call.h", "array.h")]
LAUNCHER_FLAGS = ["-std=c++20", "-O2"]
THREADS = 512  # of a block: four for each lane of a multiprocessor, which hide what loads take
# KiB of shared memory that a block may have, by compute capability: CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability".
SHARED = {"7.5": 64, "8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99}
OPTIONS = ("--std=c++20", "--device-as-default-execution-space", "--ptxas-options=-v")
TARGET = "cae_jax_cuda"  # name of the launcher in a program


class Compiled(NamedTuple):
    """The kernels of one file for one kind of GPU.

    Attributes:
        target: what launches them.
        key: a digest of everything they depend on.
        threads: of a block.
        shared: bytes of shared memory of a block.
    """

    target: str
    key: str
    threads: int
    shared: int


@functools.cache
def register(name: str, sizes: Sizes, capability: str) -> Compiled:
    """Compiles kernels if necessary, and registers them.

    Args:
        name: of their file.
        sizes: compile-time constants, by name.
        capability: of the GPU, such as ``"9.0"``.

    Raises:
        UnavailableError: a compiler is missing or fails, or the sizes do not fit the GPU.
    """
    options = options_for(sizes, capability)
    nvrtc = Nvrtc()
    contents = [path.read_bytes() for path in (FOLDER / name, *HEADERS)]
    key = hashlib.sha256(repr((contents, options, nvrtc.version)).encode()).hexdigest()[:16]

    def compile_to(output: Path) -> None:
        logger.info("Compiling %s for the GPU (once, some seconds)", name)
        cubin, shared, _ = nvrtc.compile(name, options)
        output.write_bytes(f"{shared:8}".encode() + cubin)

    try:
        content = compiler.keep(f"cuda-{key}.cubin", compile_to).read_bytes()[:-32]
    except OSError as error:
        raise UnavailableError(f"its kernels cannot be kept ({error})") from error
    shared, cubin = int(content[:8]), content[8:]
    _launcher().cae_add(key.encode(), cubin, len(cubin))
    return Compiled(TARGET, key, THREADS, shared)


def options_for(sizes: Sizes, capability: str) -> list[str]:
    """The options with which the kernels are compiled; errors as of `register`."""
    if (shared := SHARED.get(capability)) is None:
        raise UnavailableError(
            f"it is for compute capability {', '.join(SHARED)}, and the device has {capability}"
        )
    macros = [*sizes, ("THREADS", str(THREADS)), ("SHARED_BYTES", str(1024 * shared))]
    architecture = f"--gpu-architecture=sm_{capability.replace('.', '')}"
    return [architecture, *OPTIONS, *(f"-D{name}={value}" for name, value in macros)]


@functools.cache
def _launcher() -> ctypes.CDLL:
    library, _ = compiler.library(LAUNCHER, LAUNCHER_FLAGS, "cuda", "the launcher of the kernels")
    library.cae_add.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    library.cae_add.restype = None
    stages = {"initialize": library.cae_initialize, "execute": library.cae_launch}
    handlers = {name: jax.ffi.pycapsule(function) for name, function in stages.items()}
    jax.ffi.register_ffi_target(TARGET, handlers, platform="CUDA")
    return library


class Nvrtc:
    """NVIDIA's compiler at run time.

    Attributes:
        version: of CUDA.

    Raises:
        UnavailableError: it is not installed.
    """

    def __init__(self) -> None:
        self._library = _find_nvrtc()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, name: str, options: list[str]) -> tuple[bytes, int, str]:
        """Compiles the kernels of a file.

        Returns:
            The binary code, bytes of shared memory of a block, and the log of the compiler.

        Raises:
            UnavailableError: why it fails.
        """
        program = ctypes.c_void_p()
        strings = ctypes.c_char_p * len(HEADERS)
        headers = strings(*(path.read_bytes() for path in HEADERS))
        names = strings(*(path.name.encode() for path in HEADERS))
        source = (FOLDER / name).read_bytes()
        arguments = (source, name.encode(), len(HEADERS), headers, names)
        self._call("CreateProgram", ctypes.byref(program), *arguments)
        try:
            texts = (ctypes.c_char_p * len(options))(*(each.encode() for each in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), texts)
            log = self._get(program, "ProgramLog").decode(errors="replace").rstrip("\0")
            if failed:
                raise UnavailableError(_reason(log))
            found = re.search(r"\bshared_bytes = (\d+)", self._get(program, "PTX").decode())
            assert found is not None
            return self._get(program, "CUBIN"), int(found[1]), log
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self._library, f"nvrtc{name}")(*arguments):
            raise UnavailableError(f"NVRTC fails: {name} has error {code}")


def _reason(log: str) -> str:
    """What the compiler says, in one line."""
    errors = [line for line in log.splitlines() if "error" in line] or ["no message"]
    if found := re.search(r'"(the shared memory .*?)"', log):
        return found[1]
    return f"NVRTC fails: {' '.join(errors[0].split())}"


def _find_nvrtc() -> ctypes.CDLL:
    major = "13" if _has("jax_plugins.xla_cuda13") else "12"
    folders = getattr(util.find_spec("nvidia"), "submodule_search_locations", None) or []
    wheels = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")]
    paths = [str(path) for path in wheels if path.name == f"libnvrtc.so.{major}"]
    for path in [*paths, f"libnvrtc.so.{major}"]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise UnavailableError(
        f"NVRTC, the compiler of CUDA {major}, is not found; jax[cuda{major}] brings it"
    )


def _has(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
