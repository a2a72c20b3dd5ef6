"""Handles signals and standard streams of a command's process.

A signal ends a command with one line and exit code 128 + signal, even before its imports. The
handler ends the process directly: an exception would become an `ImportError` while an extension is
initialised, and a traceback in a destructor. Training installs its own handlers
(`cae_jax.runs.interruption`).
"""

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from cae_jax import atomic

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(command: Sequence[str]) -> None:
    """Prepares the process of a command; call it only in the first line of the entry point.

    Args:
        command: the command line to print on a signal.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: end(number, command))
    sys.unraisablehook = _report_unless_interrupted
    _open_streams()


def finish() -> None:
    """Ignores signals once the work is done; the interpreter would exit silently."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end(number: int, command: Sequence[str]) -> NoReturn:
    """Prints the command that continues, removes temporary files and ends the process."""
    for path in list(atomic.temporaries):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # full, or within a print
        sys.stdout.flush()
    line = f"{signal.Signals(number).name}: to continue, run {shlex.join(command)}\n"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        os.write(1, line.encode(encoding, "backslashreplace"))
    # No exception: the interpreter would wait for a compilation that is still running.
    os._exit(128 + number)


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Ends the process if stdout cannot be written.

    Silently if nobody reads the pipe, as SIGPIPE would; otherwise with one line and exit code 2.
    """
    try:
        yield
    except SystemExit:
        _flush()
        raise
    except OSError:
        _flush("\n")  # fails again if stdout is the reason
        raise
    _flush()


def _report_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    # An interruption of training raised in a destructor; the next check raises it again.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _open_streams() -> None:
    """Opens closed streams, and lets all of them print any file name."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The next opened file would get this number, and the output.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush(text: str = "") -> None:
    _write(2)
    error = _write(1, text)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(128 + 13)  # of SIGPIPE, which not every system has
    if error is not None:
        with contextlib.suppress(OSError):
            print(
                f"cae-jax: error: stdout cannot be written ({error.strerror}); free space, or "
                "redirect it elsewhere",
                file=sys.stderr,
            )
        raise SystemExit(2)


def _write(number: int, text: str = "") -> OSError | None:
    """Flushes a standard stream; returns the error if that fails."""
    stream = sys.stdout if number == 1 else sys.stderr
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # Otherwise the interpreter would try again at exit and report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return error
    return None
