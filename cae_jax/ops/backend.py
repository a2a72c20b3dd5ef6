"""Defines the backends that compute a network, and chooses one.

A backend implements the three layers of the convolutional network as functions (`Backend.layers`),
and optionally a kernel that computes the whole network in one call. To add one, add a file to this
folder and a line to `choose`.
"""

import contextlib
import functools
import math
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax

from cae_jax.config import NAMED, Loss
from cae_jax.errors import UserError, installing
from cae_jax.ops import cuda, matmul, native, tpu, xla
from cae_jax.ops.compiler import UnavailableError

Name = Literal["xla", "matmul", "native", "cuda"]


class Backend(NamedTuple):
    """One way to compute a network.

    Attributes:
        name: as in `choose`.
        reason: why it was chosen, the end of a sentence.
        layers: has ``prepare``, ``conv_pool``, ``conv``, ``upsample_conv`` and ``dense``, such as
            the module `cae_jax.ops.xla`.
        max_batch: maximum number of images per inference call.
        kernel: optional; any of ``bce_and_grad``, ``mse_and_grad``, ``losses``, ``encode`` and
            ``decode`` of the whole network, each a function of the parameters and arrays;
            ``bce_of_batch`` and ``mse_of_batch``, see `cae_jax.ops.cuda.Kernel`; and ``soap``, see
            `cae_jax.training.soap.scale_by_soap`.
    """

    name: Name
    reason: str
    layers: Any
    max_batch: int
    kernel: Any = None

    def with_precision(self, precision: str) -> "Backend":
        """The same backend, whose layers multiply in a `TrainConfig.precision`."""
        if precision == "float32":
            return self
        names = ("prepare", "dense", "conv", "conv_pool", "upsample_conv")
        functions = {name: getattr(self.layers, name) for name in names}
        for name in names[:2]:
            functions[name] = functools.partial(functions[name], precision=precision)
        return self._replace(layers=types.SimpleNamespace(**functions))

    def call(self, entry: str, reference: Callable, params: Any, *arrays: jax.Array) -> Any:
        """``reference(params, *arrays)``, computed by the kernel's `entry` if it has one.

        The derivative is that of the reference.
        """
        function = getattr(self.kernel, entry, None)
        if function is None:
            return reference(params, *arrays)
        differentiable = jax.custom_vjp(function)
        differentiable.defvjp(
            lambda *args: (function(*args), args), lambda args, dy: jax.vjp(reference, *args)[1](dy)
        )
        return differentiable(params, *arrays)

    def with_gradient(
        self, loss: Callable[..., jax.Array], kind: Loss = "bce"
    ) -> Callable[..., jax.Array]:
        """A loss ``loss(params, *arrays)`` whose gradient by `params` comes from the kernel."""
        value_and_grad = getattr(self.kernel, f"{kind}_and_grad", None)
        if value_and_grad is None:
            return loss

        # The kernel computes value and gradient together. The compiler drops the other derivatives
        # where, as in training, they are unused.
        def forward(params, *arrays):
            value, grads = value_and_grad(params, *arrays)
            return value, (grads, params, arrays)

        def backward(residuals, dy):
            grads, params, arrays = residuals
            _, vjp = jax.vjp(lambda *arrays: loss(params, *arrays), *arrays)
            return jax.tree.map(lambda grad: grad * dy, grads), *vjp(dy)

        fused = jax.custom_vjp(lambda *args: value_and_grad(*args)[0])
        fused.defvjp(forward, backward)
        return fused


# Of an image of Fashion-MNIST, with which `max_batch` was tried on a CPU.
_VALUES = math.prod(NAMED["fashion_mnist"])
# With twice as many images in a call, the matmul form on a CPU takes twice as long for each.
XLA = Backend("xla", "requested", xla, max_batch=256)
MATMUL = Backend("matmul", "requested", matmul, max_batch=256)
# Other forms of the two, for other devices.
_GROUPED = MATMUL._replace(layers=matmul.grouped)
_TPU = XLA._replace(layers=tpu)


def choose(
    network: Any,
    name: str = "auto",
    platform: str | None = None,
    precision: str = "float32",
    capability: str | None = None,
) -> Backend:
    """Chooses the backend that computes a network.

    Args:
        network: its `cae_jax.models.topology.Topology`.
        name: a `Name`, or ``"auto"``: on a CPU the native kernel if available, on a GPU on which
            it was measured to be right and faster cuda, on a TPU xla, otherwise matmul;
            docs/performance.md has the counts behind this choice.
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``. Default: that of the default device.
        precision: of the config. The kernels native and cuda take ``"float32"`` only.
        capability: compute capability of an NVIDIA GPU that need not be here. Default: that of the
            default device, on which cuda is then compared with matmul at its first use.

    Raises:
        UserError: an unknown name, a backend that does not support this device or network, or a
            missing device.
    """
    check_device()
    platform = platform or jax.default_backend()
    names = get_args(Name)
    if name not in (*names, "auto"):
        raise UserError(f"`backend` is {name!r}; it takes auto, {', '.join(names)}")
    if network.model != "conv":
        if name not in ("auto", "matmul"):
            raise UserError(
                f"`backend` is {name}; the fully connected model {network.model} takes auto or "
                "matmul"
            )
        reason = f"every layer of the model {network.model} is a matmul"
        return MATMUL._replace(reason=reason).with_precision(precision)
    by_matmul, by_xla = _forms(network, platform, precision)
    if name in ("xla", "matmul"):
        return by_xla if name == "xla" else by_matmul
    if name == "auto" and platform == "tpu":
        return by_xla._replace(reason="a TPU has units for convolutions")
    on_gpu = name == "cuda" or (name == "auto" and platform == "gpu")
    try:
        if network.quantised:
            raise UnavailableError("it has no code of whole numbers, as of a `rate`")
        if precision != "float32":
            raise UnavailableError(f"it computes in float32, not {precision}")
        if on_gpu:
            return _cuda(network, name, platform, by_matmul, capability)
        return _native(network, name, platform)
    except UnavailableError as error:
        if name != "auto":
            raise UserError(
                f"the {name} backend is unavailable: {error}; set `backend='matmul'` or "
                "`backend='auto'`"
            ) from None
        return by_matmul._replace(
            reason=f"{'cuda' if on_gpu else 'native'} is unavailable: {error}"
        )


def _native(network: Any, name: str, platform: str) -> Backend:
    if platform != "cpu":
        raise UnavailableError(f"it is for the CPU, and the device is a {platform}")
    threads = 1 + (os.cpu_count() or 1)  # one more calls it
    needed = threads * native.MAX_LANES * network.native_bytes
    if name == "auto" and needed > device_memory() // 2:
        raise UnavailableError(f"it would take {needed / 1e9:,.1f} GB")
    kernel = native.Kernel(network.kernel_sizes, network.image_shape, network.code_shape)
    reason = "requested" if name == "native" else "a CPU with a C++ compiler"
    # The kernel keeps its own working set in the cache, and every call has a cost. Each thread
    # computes whole groups of images.
    by_native = Backend("native", reason, matmul, max_batch=4096, kernel=kernel)
    return limit_batch(by_native, network.image_shape, native.MAX_LANES, os.cpu_count() or 1)


def _cuda(
    network: Any, name: str, platform: str, by_matmul: Backend, capability: str | None
) -> Backend:
    if platform != "gpu":
        raise UnavailableError(f"it is for NVIDIA GPUs, and the device is a {platform}")
    kinds = {getattr(each, "compute_capability", "unknown") for each in jax.local_devices()}
    if capability is None and len(kinds) > 1:
        raise UnavailableError(f"the GPUs are of several kinds: {', '.join(sorted(kinds))}")
    there = capability or kinds.pop()
    measured = there in cuda.MEASURED
    if name == "auto" and not measured:
        raise UnavailableError(f"not measured on this GPU, of compute capability {there}")
    compiled = cuda.register("network.cu", network.kernel_sizes, there)
    soap = functools.partial(cuda.soap, capability=there)
    kernel = cuda.Kernel(compiled, network.image_shape, network.code_shape, soap)
    if capability is None and (differs := cuda.disagrees(kernel, network, by_matmul.layers)):
        return by_matmul._replace(reason=f"cuda {differs}")
    reason = "requested" if name == "cuda" else "a GPU on which it was measured to be faster"
    reason += "" if measured else ", not measured on this GPU"
    return by_matmul._replace(name="cuda", reason=reason, max_batch=4096, kernel=kernel)


def _forms(network: Any, platform: str, precision: str) -> tuple[Backend, Backend]:
    """The backends matmul and xla, for a device."""
    by_matmul = (_GROUPED if platform == "gpu" else MATMUL).with_precision(precision)
    by_xla = (_TPU if platform == "tpu" else XLA).with_precision(precision)
    if platform != "cpu":
        return by_matmul, by_xla
    return limit_batch(by_matmul, network.image_shape), limit_batch(by_xla, network.image_shape)


def limit_batch(
    backend: Backend, image_shape: tuple[int, ...], group: int = 1, least: int = 1
) -> Backend:
    """Scales `max_batch` down for larger images.

    Args:
        backend: for a CPU.
        image_shape: of one image.
        group: number of images that the backend computes together; `max_batch` is a multiple.
        least: minimum number of groups per call.
    """
    values = max(_VALUES, math.prod(image_shape))
    groups = backend.max_batch * _VALUES // values // group
    return backend._replace(max_batch=group * max(least, groups))


def device_memory() -> int:
    """Bytes of memory that the default device has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return limit
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit of the container
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def check_device() -> None:
    """Initialises the device that JAX computes on.

    Raises:
        UserError: ``JAX_PLATFORMS`` names a missing device.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the first without a message
        asked = jax.config.values["jax_platforms"]
        if not asked:
            raise
        reason = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS is {asked}, and JAX has no such device here{reason}; leave it out, or "
            f"install the package of the device, such as {installing('cuda13')}"
        ) from error
