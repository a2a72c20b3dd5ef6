"""The process of a command: its ends by signals and its standard streams.

A signal ends a command with one line and exit code 128 + signal, from before its imports on. The
handler ends the process where it is. An exception would become an `ImportError` in the
initialisation of an extension, and a traceback beside the right exit code in a destructor. A
training has handlers of its own while it runs (`cae_jax.runs.interruption`).
"""

import contextlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from cae_jax import atomic

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(command: Sequence[str]) -> None:
    """Prepares the process of a command; for the first line of its entry point, and nowhere else.

    Args:
        command: the command line, which a signal prints.
    """
    _handle_signals(command)
    sys.unraisablehook = _report_unless_interrupted
    _open_streams()


def finish() -> None:
    """Ignores signals: the work is done, and the interpreter would end without a line at one."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def ending(command: Sequence[str]) -> Iterator[None]:
    """Ends the process at SIGINT and SIGTERM within a ``with`` statement in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle_signals(command)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """Ends the process where stdout cannot be written.

    Quietly for a pipe that nobody reads, as SIGPIPE would; else with one line and exit code 2.
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


def _handle_signals(command: Sequence[str]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        end(number, command)

    for number in _SIGNALS:
        signal.signal(number, handle)


def _report_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    # The interruption of a training that comes in a destructor; its next check raises it again.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _open_streams() -> None:
    """Opens streams that are closed, and lets all of them show any name."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The next file that is opened would take the number, and receive what is printed.
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
    """Writes what a standard stream has in its buffer; returns why that fails."""
    stream = sys.stdout if number == 1 else sys.stderr
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # Else the interpreter would try again at its end, and report that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return error
    return None
