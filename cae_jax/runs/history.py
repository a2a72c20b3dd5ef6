"""Writes and reads the history of a run: ``history.csv`` and TensorBoard's events.

A row is an epoch. Each checkpoint has a copy of all rows; that of the newest checkpoint counts, and
the file of the run is written from it. Floats keep their exact value.
"""

import contextlib
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cae_jax import atomic
from cae_jax.errors import UserError
from cae_jax.runs import manifest, pretrained

NAME = "history.csv"
# Columns that are written for TensorBoard, where they have a value.
_SCALARS = ("loss", "val_loss", "val_psnr", "images_per_second", "val_bits")


class Row(NamedTuple):
    """The record of one epoch.

    Attributes:
        epoch: counted from 1.
        step: steps since the start of training.
        loss: mean training loss over the epoch's images, each as its step saw it, nats.
        val_loss: mean loss over the validation images after the epoch, with noise if the config
            has any.
        val_psnr: mean PSNR of their reconstructions in dB, against the clean images.
        val_psnr_input: mean PSNR of the noisy images themselves in dB; None without noise.
        skipped: number of updates skipped because of a loss or gradient that was not finite.
        epoch_seconds: seconds of training, without evaluation and compilation; of a resumed epoch,
            those after the resumption.
        images_per_second: training images in these seconds.
        val_bits: mean bits of a code of the validation images, by the learned density; None
            without a `rate`, where the file has no such column.
    """

    epoch: int
    step: int
    loss: float
    val_loss: float
    val_psnr: float
    val_psnr_input: float | None
    skipped: int
    epoch_seconds: float
    images_per_second: float
    val_bits: float | None = None


_COLUMNS = Row._fields[:-1]  # of a run without a `rate`
_HEADERS = {",".join(names) for names in (_COLUMNS, Row._fields)}


def read(path: Path) -> list[Row]:
    """Reads all complete rows; drops a last one that was cut off.

    Raises:
        UserError: a line is malformed.
    """
    try:
        text = path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it from a copy"
        ) from error
    rows = []
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.rstrip() not in _HEADERS:
            try:
                rows.append(_parse(line))
            except ValueError as error:
                raise UserError(
                    f"{path} has the line {line.strip()!r}; restore the file from a copy, or "
                    "train in another `workdir`"
                ) from error
    return rows


def _parse(line: str) -> Row:
    texts = line.rstrip().split(",")
    names = Row._fields if len(texts) > len(_COLUMNS) else _COLUMNS
    cells: dict[str, Any] = dict(zip(names, texts, strict=True))
    for name, text in cells.items():
        if name in ("epoch", "step", "skipped"):
            cells[name] = int(text)
        else:
            cells[name] = None if name == "val_psnr_input" and not text else float(text)
    return Row(**cells)


def replace(path: Path, rows: Sequence[Row]) -> None:
    """Replaces the file atomically by one with these rows; removes it if there are none."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic.replacing(path) as temporary:
        write(temporary, rows)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes a new file with these rows."""
    has_bits = any(row.val_bits is not None for row in rows)
    columns = Row._fields if has_bits else _COLUMNS
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *(row[: len(columns)] for row in rows)])


def of_run(run: Path) -> list[Row]:
    """Reads the history of a run from its newest intact checkpoint, or else from its file.

    Raises:
        UserError: no checkpoint has a copy, and a line of the file is malformed.
    """
    run = pretrained.locate(run)
    paths = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    for path in sorted(paths, key=lambda path: int(path.name), reverse=True):
        # Damaged, of a later version, unreadable, or removed in the meantime: the one before.
        with contextlib.suppress(manifest.DamagedError, manifest.NewerError, OSError):
            if NAME not in manifest.verify(path)["files"]:
                break  # of a version that kept no copies
            return read(path / NAME)
    return read(run / NAME)


class Events:
    """Writes the history for TensorBoard, to an event file that the first row creates.

    tensorboardX's ``SummaryWriter`` writes in a thread, which hangs once a full disk has ended it.

    Args:
        folder: directory of the event file; created.
        first_epoch: values of this and later epochs in earlier event files are superseded.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self._folder, self._first_epoch = folder, first_epoch
        self._events: Any = None

    def add(self, row: Row) -> None:
        """Writes a row; raises an `OSError` if the file cannot be written."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        proto: Any = event_pb2  # its classes are created at import
        if self._events is None:
            self._folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._folder / "events"))
            start = proto.SessionLog(status=proto.SessionLog.START)
            self._events.write_event(proto.Event(step=self._first_epoch, session_log=start))
        there = [name for name in _SCALARS if getattr(row, name) is not None]
        for name in there:
            summary = scalar(name, getattr(row, name))
            event = proto.Event(wall_time=time.time(), step=row.epoch, summary=summary)
            self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
