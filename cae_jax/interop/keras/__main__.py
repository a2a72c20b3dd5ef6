"""Reads or writes a file of Keras in this process: ``python -m`` with read or write, file, folder.

`cae_jax.interop.keras.process` starts it. The folder holds what goes in and what comes out; exit
code 2 says that it holds the one line of a `UserError`.
"""

import sys
from pathlib import Path

from cae_jax.errors import UserError
from cae_jax.interop.keras.process import Weights

# The first release, next to 3.12.4, in which all known holes of deserialisation are closed.
_KERAS = (3, 15, 1)


def main(mode: str, path: Path, scratch: Path) -> None:
    try:
        _check_keras()
        from cae_jax.interop.keras import worker

        if mode == "read":
            worker.read(path, scratch).save(scratch / "weights.npz")
        else:
            worker.write(Weights.load(scratch / "weights.npz"), scratch)
    except UserError as error:
        (scratch / "refusal.txt").write_text(str(error))
        raise SystemExit(2) from None


def _check_keras() -> None:
    try:
        import keras
    except ImportError as error:
        problem = f"Keras cannot be imported ({error})"
    else:
        if tuple(int(part) for part in keras.__version__.split(".")[:3]) >= _KERAS:
            return
        needed = ".".join(map(str, _KERAS))
        problem = f"Keras {keras.__version__} is installed; {needed} or later is needed"
    raise UserError(f'{problem}; run pip install "cae-jax[keras]"')


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
