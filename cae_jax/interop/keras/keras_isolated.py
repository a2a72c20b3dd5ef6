"""`keras_weights.read` in a process of its own.

The library of HDF5 is written in C, and a damaged file can crash or stall it. What comes back from
the process is JSON and plain arrays.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from cae_jax.errors import UserError
from cae_jax.interop.keras import keras_weights

# Of which reading takes less than one.
_SECONDS = 60


def read(path: str | Path) -> keras_weights.Weights:
    """The weights of one of the project's networks, as Keras has saved it.

    Raises:
        UserError: as of `keras_weights.read`, and where it would have crashed.
    """
    command = [sys.executable, "-P", "-m", "cae_jax.interop.keras.keras_isolated", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.run(command, capture_output=True, env=environment, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path} cannot be read in {_SECONDS} s; save it anew in Keras") from None
    if process.returncode == 0:
        return _decode(process.stdout)
    if process.returncode == 2:
        raise UserError(process.stdout.decode())
    if process.returncode < 0:
        raise UserError(
            f"{path} cannot be read (it ends HDF5 with signal {-process.returncode}); save it anew "
            "in Keras"
        )
    raise RuntimeError(process.stderr.decode())


def main() -> None:
    try:
        weights = keras_weights.read(sys.argv[1])
    except UserError as error:
        print(error, end="")
        raise SystemExit(2) from None
    sys.stdout.buffer.write(_encode(weights))


def _encode(weights: keras_weights.Weights) -> bytes:
    facts = {**weights._asdict(), "params": [*weights.params]}
    content = io.BytesIO()
    content.write(json.dumps(facts).encode() + b"\n")
    for layer in weights.params.values():
        for which in ("kernel", "bias"):
            np.save(content, layer[which], allow_pickle=False)
    return content.getvalue()


def _decode(content: bytes) -> keras_weights.Weights:
    file = io.BytesIO(content)
    facts = json.loads(file.readline())
    facts["params"] = {
        name: {which: np.load(file, allow_pickle=False) for which in ("kernel", "bias")}
        for name in facts["params"]
    }
    return keras_weights.Weights(**{**facts, "features": tuple(facts["features"])})


if __name__ == "__main__":
    main()
