"""Reads and writes the files of Keras, and turns the weights in one into a run.

Keras itself does the reading and writing, in a process that is started for it: this package is
imported without Keras, and a file that crashes or stalls the HDF5 library costs one line.
"""

from typing import TYPE_CHECKING, Any

from cae_jax.interop.keras.process import Weights, matching, read, write

if TYPE_CHECKING:
    from cae_jax.interop.keras.run import import_run

__all__ = ["Weights", "import_run", "matching", "read", "write"]


def __getattr__(name: str) -> Any:
    # Imported on first use: it takes seconds, which neither a refused file nor Keras should cost.
    if name == "import_run":
        from cae_jax.interop.keras.run import import_run

        return import_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
