"""The settings of JAX under which the package computes, whatever those of its user."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.experimental

from cae_jax.errors import UserError

# jax.experimental has it in versions before 0.8.
_enable_x64: Any = vars(jax if hasattr(jax, "enable_x64") else jax.experimental)["enable_x64"]
# The process that has computed with JAX first; a fork lacks its threads.
_process: int | None = None


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Sets JAX's own defaults in this thread, so that all results have the same bits.

    Raises:
        UserError: in a fork of a process that has computed with JAX, where JAX would hang.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise UserError(
            "this process is a fork of one that has used JAX, in which JAX hangs; start it by "
            "multiprocessing.get_context('spawn'), or load the model in it only"
        )
    with (
        _enable_x64(False),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield
