"""Describes devices to compile for without having them."""

import os
import tomllib
from importlib import resources, util
from typing import Any, Literal, NamedTuple

import jax

from cae_jax.errors import UserError, installing

# Fields of GpuDeviceInfoProto that all cards in targets.toml have in common.
_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "device_vendor": "NVIDIA Corporation",
    "device_address_bits": 64,
    "driver_version": "13.0.0",
    "runtime_version": "13.0.0",
    "compile_time_toolkit_version": "13.0.0",
    "dnn_version": "9.12.0",
}

# With these libtpu asks no machine what it is, and does not print that none answers.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Target(NamedTuple):
    """A device to compile for.

    Attributes:
        title: its full name.
        platform: as JAX names it.
        memory: bytes.
        devices: several of them, as many as were asked for.
        capability: compute capability of a GPU.
    """

    title: str
    platform: Literal["gpu", "tpu"]
    memory: int
    devices: list[Any]
    capability: str | None = None

    @property
    def sharding(self) -> jax.sharding.Sharding:
        """Compiles a program for the first device when its arguments have it."""
        return jax.sharding.SingleDeviceSharding(self.devices[0])


def find(name: str, devices: int = 1) -> Target:
    """Finds a device by its name; a TPU's may be followed by a topology, as in ``v5e:2x4``.

    Raises:
        UserError: an unknown name or topology, one with fewer devices, or XLA's compiler for it is
            not installed.
    """
    kind, _, topology = name.partition(":")
    table = _table()
    entry = table.get(kind)
    if entry is None or (topology and "gpu" in entry):
        raise UserError(
            f"`target` is {name}; it takes one of {', '.join(table)}, a TPU also with a topology "
            "such as v5e:2x4"
        )
    if "gpu" in entry:
        _require(kind, "jax_plugins.xla_cuda13", "cuda13")
        described, memory = _describe_gpu(entry), entry["gpu"]["device_memory_size"]
        described["topology"] = f"1x1x{devices}"
        number = entry["gpu"]["cuda_compute_capability"]
        capability = f"{number['major']}.{number['minor']}"
        found = _devices("cuda", devices, **described)
        return Target(entry["title"], "gpu", memory, found, capability)
    _require(kind, "libtpu", "tpu")
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    topology = f"{kind}:{topology or entry['topology']}"
    found = _devices("tpu", devices, topology_name=topology)
    return Target(entry["title"], "tpu", entry["memory"], found)


def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("cae_jax.ops").joinpath("targets.toml").read_text("utf-8"))


def _require(kind: str, module: str, extra: str) -> None:
    try:
        found = util.find_spec(module)
    except ModuleNotFoundError:  # the package around it
        found = None
    if found is None:
        raise UserError(f"the compiler for `target` {kind} is missing: {installing(extra)}")


def _devices(platform: str, count: int, **description: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform=platform, **description)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"XLA does not take this `target` ({reason})") from error
    if not 1 <= count <= len(found.devices):
        raise UserError(
            f"`devices` is {count} and the `target` has {len(found.devices)}; give a TPU with its "
            "topology, such as v5e:2x4"
        )
    return found.devices[:count]


def _describe_gpu(entry: dict[str, Any]) -> dict[str, str]:
    """The argument that describes a GPU: a GpuTargetConfigProto as text."""
    title, capability = entry["title"], entry["gpu"]["cuda_compute_capability"]
    version = f"Compute Capability {capability['major']}.{capability['minor']}"
    config = {
        "gpu_device_info": {**_GPU, **entry["gpu"], "name": title, "platform_version": version},
        "platform_name": "CUDA",
        "dnn_version_info": {"major": 9, "minor": 12},
        "device_description_str": title,
    }
    return {"target_config": _text_proto(config)}


def _text_proto(message: dict[str, Any]) -> str:
    """A protocol buffer as text."""
    fields = []
    for name, value in message.items():
        if isinstance(value, dict):
            fields.append(f"{name} {{ {_text_proto(value)} }}")
        elif isinstance(value, str) and name != "feature_extension":  # an enumeration
            fields.append(f'{name}: "{value}"')
        else:
            fields.append(f"{name}: {value}")
    return " ".join(fields)
