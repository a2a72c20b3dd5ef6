"""Reads or writes a file of Keras in this process: ``python -m`` with read or write, file, folder.

The folder holds the input and the output; with exit code 2, the one line of a `UserError`.
"""

import resource
import sys
from pathlib import Path

from cae_jax.errors import UserError

# Bytes: far more than the networks take (0.5 GiB, and 10 MB for each thread of a large machine),
# less than a hostile file may ask for; no core dump after a crash.
_LIMITS = {resource.RLIMIT_DATA: 2**34, resource.RLIMIT_FSIZE: 2**31, resource.RLIMIT_CORE: 0}


def main(mode: str, path: Path, scratch: Path) -> None:
    for limit, most in _LIMITS.items():
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    # Keras imports it where it is installed, which is a quarter of the time that Keras takes.
    sys.modules["sklearn"] = None  # pyright: ignore[reportArgumentType]
    try:
        from cae_jax.interop.keras import worker

        if mode == "read":
            worker.read(path, scratch).save(scratch / "weights.npz")
        else:
            worker.write(scratch)
    except (UserError, ImportError) as error:
        (scratch / "refusal.txt").write_text(str(error))
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
