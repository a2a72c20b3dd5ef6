"""SIGINT and SIGTERM as a request to stop at the next good moment."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Those that came during the outermost `Interruption`.
_received: list[int] = []
Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """Somebody asked to stop.

    Attributes:
        signal: number of the signal, SIGINT or SIGTERM.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interruption:
    """Takes SIGINT and SIGTERM over for a ``with`` statement, in the main thread.

    A signal raises `Interrupted`, at once unless a `patience` covers it. What was raised where
    Python ignores exceptions, as in a destructor, is raised again at the next `check` or the next
    statement of this module. In other threads, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._patience: float = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            previous: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
            if not any(
                getattr(handler, "__func__", None) is Interruption._handle
                for handler in previous.values()
            ):
                _received.clear()
            self._previous = previous
            for number in _SIGNALS:
                signal.signal(number, self._handle)
            self.check()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def patience(self, signals: float = math.inf) -> Iterator[None]:
        """So many signals are only noted, for `check` or the end of the statement to act on."""
        before, self._patience = self._patience, signals
        try:
            self._act()
            yield
        finally:
            self._patience = before
        self._act()

    def check(self) -> None:
        """Raises `Interrupted` if there was any signal."""
        if _received:
            raise Interrupted(_received[0])

    def ignore(self) -> None:
        """From now on no signal raises: for what must still be done after `Interrupted`."""
        self._patience = math.inf

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function gives that may keep Python waiting for long.

        Compilation and computation run in one piece outside of Python, which takes signals only
        between its own instructions. So they run in a thread, and the main one waits for it. Where
        `Interrupted` ends the wait, the thread goes on and its result is lost.
        """
        if not self._previous:
            return function(*arguments)
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # the caller's
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future.result()

    def _handle(self, number: int, _: object) -> None:
        _received.append(number)
        self._act()

    def _act(self) -> None:
        if len(_received) > self._patience:
            self.check()
