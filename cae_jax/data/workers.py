"""Applies a function to the items of a source in several processes, in their order.

Not those of `multiprocessing`, which import the main module of their parent: a script that calls
`cae_jax.fit` in its first line would start itself again and again. They import NumPy and Pillow
only, and end when their standard input does, however their parent ends.
"""

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar

from cae_jax.errors import UserError

Argument = TypeVar("Argument")
_PATIENCE = 1.0  # seconds of work in this process, below which others do not pay
_MOST, _BYTES = 64, 2**22  # items of a message to a process, and about its bytes
_SERVE = "from cae_jax.data.workers import serve; serve()"


class Outcome(NamedTuple):
    """What a function returned for an item, or raised."""

    value: Any
    error: Exception | None = None

    def result(self) -> Any:
        """The value; or raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


class ShortageError(UserError):
    """Memory or disk are short; what is prepared so far is kept."""


def cores() -> int:
    """The number of CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Workers:
    """Processes that live within a ``with`` statement, or as long as this object.

    Each works for a thread, which waits.

    Args:
        count: number of processes; with 1, this one does the work.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._spent = 0.0
        self._threads = ThreadPoolExecutor(count)
        self._end = weakref.finalize(self, _end, self._threads, self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def map(
        self, function: Callable[[Argument], Any], items: Iterable[Argument]
    ) -> Iterator[tuple[Argument, Outcome]]:
        """Applies a function to items; the first second of work is done in this process.

        Args:
            function: can be pickled, as its results; may change itself until it first succeeds.
            items: can be pickled; at most twice as many messages as processes are read ahead.

        Yields:
            each item and its outcome, in order.

        Raises:
            ShortageError: the system has killed a process.
        """
        items = iter(items)
        for item in items:
            started = time.perf_counter()
            outcome = _attempt(function, item)
            self._spent += time.perf_counter() - started
            yield item, outcome
            if self._count > 1 and self._spent > _PATIENCE and outcome.error is None:
                size = len(pickle.dumps((item, outcome)))
                yield from self._distribute(function, items, max(1, min(_MOST, _BYTES // size)))

    def _distribute(
        self, function: Callable[[Argument], Any], items: Iterator[Argument], length: int
    ) -> Iterator[tuple[Argument, Outcome]]:
        pending: deque[tuple[list[Argument], Future[list[Outcome]]]] = deque()
        while chunk := list(itertools.islice(items, length)):
            pending.append((chunk, self._threads.submit(self._call, function, chunk)))
            if len(pending) == 2 * self._count:
                first, outcomes = pending.popleft()
                yield from zip(first, outcomes.result(), strict=True)
        for chunk, outcomes in pending:
            yield from zip(chunk, outcomes.result(), strict=True)

    def _call(self, function: Callable[[Argument], Any], chunk: list[Argument]) -> list[Outcome]:
        """Has the process of this thread work."""
        if not hasattr(self._own, "process"):
            self._own.process = _started()
            self._processes.append(self._own.process)
        process: Any = self._own.process
        message = pickle.dumps((function, chunk))
        try:
            process.stdin.write(message)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = process.wait()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ShortageError(
                f"a process that decodes images ended {how}; the system kills one where memory is "
                "short",
                "continue with fewer, by `workers=1`",
            ) from error


def _end(threads: ThreadPoolExecutor, processes: list["subprocess.Popen[bytes]"]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()  # ends the wait of its thread
    threads.shutdown()
    for process in processes:
        with contextlib.suppress(OSError):  # of what a killed one has not read
            process.__exit__(None, None, None)


def _started() -> "subprocess.Popen[bytes]":
    variables = {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # whose threads NumPy would start
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | variables,
        start_new_session=True,  # Ctrl-C is for the parent, which ends its processes
    )


def serve() -> None:
    """Works in a process until its parent ends or needs it no more."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, items = pickle.load(sys.stdin.buffer)
            pickle.dump([_attempt(function, item) for item in items], results)
            results.flush()


def _attempt(function: Callable[[Any], Any], item: Any) -> Outcome:
    try:
        return Outcome(function(item))
    except Exception as error:  # which the reader raises, in the order of the items
        return Outcome(None, error)
