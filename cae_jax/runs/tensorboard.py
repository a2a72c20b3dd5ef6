"""The history for TensorBoard: scalars in an event file, written at once.

tensorboardX's own ``SummaryWriter`` writes in a thread, and waits for ever for one that a full disk
has ended.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_PROTO: Any = event_pb2  # its classes are made when it is imported


class Writer:
    """Adds scalars to an event file of a folder; use `open_writer`."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # TensorBoard forgets what a broken-off process has written of this step and later ones.
        start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._events.write_event(_PROTO.Event(step=first_step, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step, by name.

        Raises:
            OSError: they cannot be written.
        """
        for name, value in values.items():
            event = _PROTO.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


@contextlib.contextmanager
def open_writer(folder: Path, first_step: int) -> Iterator[Writer]:
    """`Writer` for a ``with`` statement.

    Args:
        folder: is created.
        first_step: from which on what is there already is superseded.
    """
    writer = Writer(folder, first_step)
    try:
        yield writer
    finally:
        writer.close()
