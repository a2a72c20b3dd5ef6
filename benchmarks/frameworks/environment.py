"""Collects what a timing depends on besides the program: versions, flags, machine, load."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("cae-jax", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "tensorflow")
_PACKAGES += ("tensorflow-cpu", "torch")
_PREFIXES = ("JAX_", "XLA_", "CAE_JAX_", "OMP_", "MKL_", "TF_", "KERAS_", "CUDA_VISIBLE", "CXX")


def collect() -> dict[str, Any]:
    """Returns the environment of this process as JSON types."""
    # Not at the top: the workers of other frameworks, which import this module, do without JAX.
    from cae_jax.runs.environment import processor

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": processor(),
        "cpu_count": cpu_count(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if _counts(k)},
        "load_average": list(os.getloadavg()),
        "git_revision": _git_revision(),
    }


def _counts(variable: str) -> bool:
    """Whether a variable may change a time; TF_CLI is of Terraform."""
    return variable.startswith(_PREFIXES) and not variable.startswith("TF_CLI")


def cpu_count() -> int:
    """Returns the number of CPUs available to this process."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _git_revision() -> str | None:
    """Returns the commit of the sources, with ``+`` for uncommitted changes."""
    folder = Path(__file__).parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
        revision, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.strip() + ("+" if changes else "")
