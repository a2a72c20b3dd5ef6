"""Writes the history as scalars of a TensorBoard event file, synchronously.

tensorboardX's own ``SummaryWriter`` writes in a thread, and hangs once a full disk has ended it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_PROTO: Any = event_pb2  # its classes are created at import


class Writer:
    """Adds scalars to an event file.

    Args:
        folder: directory of the event file; created.
        first_step: values of this step and later ones that the directory already holds are
            superseded.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # Tells TensorBoard to drop what an interrupted process wrote from this step on.
        start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._events.write_event(_PROTO.Event(step=first_step, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step, by name.

        Raises:
            OSError: the file cannot be written.
        """
        for name, value in values.items():
            event = _PROTO.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        self._events.close()
