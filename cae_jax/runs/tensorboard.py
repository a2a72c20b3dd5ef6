"""Writes the history as scalars of a TensorBoard event file, synchronously.

tensorboardX's own ``SummaryWriter`` writes in a thread, and hangs once a full disk has ended it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Columns of the history that are written.
SCALARS = ("loss", "val_loss", "val_psnr", "images_per_second")


class Writer:
    """Adds scalars to an event file, which the first of them creates.

    Args:
        folder: directory of the event file; created.
        first_step: values of this step and later ones that the directory already holds are
            superseded.
    """

    def __init__(self, folder: Path, first_step: int):
        self._folder, self._first_step = folder, first_step
        self._events: Any = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step, by name.

        Raises:
            OSError: the file cannot be written.
        """
        from tensorboardX.proto import event_pb2  # imported during the first epoch
        from tensorboardX.summary import scalar

        proto: Any = event_pb2  # its classes are created at import
        self._events = self._events or self._open(proto)
        for name, value in values.items():
            event = proto.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _open(self, proto: Any) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(exist_ok=True)
        events = EventsWriter(str(self._folder / "events"))
        # Tells TensorBoard to drop what an interrupted process wrote from this step on.
        start = proto.SessionLog(status=proto.SessionLog.START)
        events.write_event(proto.Event(step=self._first_step, session_log=start))
        return events
