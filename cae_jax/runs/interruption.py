"""Turns SIGINT and SIGTERM into a request to stop at the next safe point."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Signals received during the outermost `Interruption`.
_received: list[int] = []
Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """A signal requested a stop.

    Attributes:
        signal: number of the signal, SIGINT or SIGTERM.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interruption:
    """Handles SIGINT and SIGTERM within a ``with`` statement, in the main thread.

    A signal raises `Interrupted`, at once unless it is deferred. If Python ignores that exception,
    as in a destructor, the next `check` or `defer` raises it again; if a caller in C or C++ turns
    it into another one, the end of the statement or of `restored` does. Other threads receive no
    signals; there, this class does nothing.
    """

    def __init__(self) -> None:
        self._deferred: float = 0
        self._raised = 0  # the signal that raised `Interrupted` at once
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._raised = 0
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
            handlers = [getattr(each, "__func__", None) for each in self._previous.values()]
            if Interruption._handle not in handlers:  # the outermost one
                _received.clear()
            for number in _SIGNALS:
                signal.signal(number, self._handle)
            self.check()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._restore(error)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Raises `Interrupted` for an exception into which a caller in C or C++ turned it."""
        try:
            yield
        except Exception as error:
            self._restore(error)
            raise

    @contextlib.contextmanager
    def defer(self, signals: float = math.inf) -> Iterator[None]:
        """Defers the first `signals` signals, until `check` or the end of the statement."""
        before, self._deferred = self._deferred, signals
        try:
            self._act()
            yield
        finally:
            self._deferred = before
        self._act()

    @property
    def received(self) -> int:
        """The number of the first signal; 0 without one."""
        return _received[0] if _received else 0

    def check(self) -> None:
        """Raises `Interrupted` if a signal was received."""
        if _received:
            raise Interrupted(_received[0])

    def ignore(self) -> None:
        """Defers all further signals: after `Interrupted`, to clean up, or when all is written."""
        self._deferred, self._raised = math.inf, 0

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function in a thread, so that a signal can end the wait for it.

        Python handles signals only between its own instructions, and a compilation is a single call
        outside of Python. After `Interrupted` the thread continues, and its result is lost.
        """
        return self.start(function, *arguments).result() if self._previous else function(*arguments)

    @staticmethod
    def start(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Starts a function in a daemon thread."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # re-raised in the caller
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def _handle(self, number: int, _: object) -> None:
        _received.append(number)
        try:
            self._act()
        except Interrupted as stop:
            self._raised = stop.signal
            raise

    def _restore(self, error: BaseException | None) -> None:
        # An import of an extension raises an ImportError, and a cache of JAX a ValueError.
        if self._raised and isinstance(error, Exception):
            raise Interrupted(self._raised) from error

    def _act(self) -> None:
        if len(_received) > self._deferred:
            self.check()
