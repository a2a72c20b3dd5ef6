"""Creates, marks and locks the directory of a run.

.cae-jax               marks the directory as a run; held locked by the training process
config.json            the `TrainConfig`
environment.json       the backend, and whatever else changes numbers
history.csv            one row per epoch
checkpoints/           the newest three and the best
tensorboard/           the history for TensorBoard
summary.txt            the layer table
tables.npz             the frequencies for compression, of a run with a `rate`
history.png            loss over epochs
reconstructions.png    the first ten validation images, noisy inputs if any, and reconstructions
result.json            final and best metrics, versions, device; written last
detector.npz           what `cae-jax score` has fitted, see `cae_jax.runs.detectors`
damaged/               damaged checkpoints, set aside
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cae_jax import atomic
from cae_jax.config import (
    FORMAT,
    RUN_MARK,
    TrainConfig,
    differences,
    from_dict,
    known_shape,
    resolved,
    to_dict,
)
from cae_jax.errors import UserError
from cae_jax.runs import pretrained, replacement

try:
    import fcntl
except ImportError:  # Windows, where runs can be read
    fcntl = None

logger = logging.getLogger(__name__)
MEMBERS = "members.json"  # of a population, see `cae_jax.runs.members`
_MARK_LINE = b"cae-jax run 1\n"
_Parsed = TypeVar("_Parsed")


def checkpoint_folder(run: Path) -> Path:
    """Returns the directory of a run's checkpoints."""
    return run / "checkpoints"


def read_config(run: Path) -> TrainConfig:
    """Reads the config of a run.

    Raises:
        UserError: not a run directory, or its config is damaged or of a later version.
    """
    if os.path.isdir(run) and not os.access(run, os.X_OK):  # noqa: PTH112 - which raises then
        raise UserError(f"{run} cannot be read (permission denied); grant it")
    path = pretrained.locate(run) / "config.json"
    if not path.is_file() and (run / MEMBERS).is_file():
        raise UserError(
            f"{run} is a population; pass one of its members, a directory in it, after its training"
        )
    if not path.is_file():
        raise UserError(
            f"{run} is not a run directory: config.json is missing; pass a directory written by "
            "cae-jax train"
        )

    def parse(values: dict[str, Any]) -> TrainConfig:
        config = from_dict(values)
        return resolved(config) if known_shape(config) else config

    return read_json(path, parse)


def images_of(run: Path) -> str:
    """The digest of the images that a run was trained on; "" if its config identifies them."""
    try:
        return str(json.loads((run / "environment.json").read_bytes())["images"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # of earlier versions
        return ""


def moved(run: Path, there: TrainConfig, now: TrainConfig, digest: str) -> TrainConfig:
    """The config of a run with the path to its images and their decoding of another one.

    Only if the images there have the digest of the run.
    """
    same = digest != "" and digest == images_of(run)
    return dataclasses.replace(there, data=now.data, decode=now.decode) if same else there


def read_json(
    path: Path,
    parse: Callable[[dict[str, Any]], _Parsed],
    otherwise: str = "train in another `workdir`",
) -> _Parsed:
    """Parses the content of a JSON file that has a format.

    Args:
        path: the file.
        parse: of its content without the format.
        otherwise: advice for a damaged file that no copy has.

    Raises:
        UserError: it is damaged, does not parse, or is of a later version.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or type(number := values.pop("format", None)) is not int:
            raise ValueError("it holds no JSON object with a format")
        if number <= FORMAT:
            return parse(values)
    # RecursionError comes from nested brackets; AttributeError and TypeError from other JSON.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be used ({error}); restore it from a copy, or {otherwise}"
        ) from error
    raise UserError(
        f"{path.parent} has format {number} and this version reads up to {FORMAT}; update cae-jax"
    )


class OpenFolder:
    """The directory of a run while one process holds its lock.

    Attributes:
        path: of the directory.
        config: of the run, once it has one.
    """

    config: TrainConfig

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._folder = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        os.close(self._folder)
        os.close(self._lock)

    def check(self) -> None:
        """Raises a `UserError` if the path no longer leads to the directory that was locked."""
        if _same(self.path / RUN_MARK, self._lock) and _same(self.path, self._folder):
            return
        raise UserError(
            f"`workdir` {self.path} was moved, replaced or removed during the training, which ends "
            "here; continue it in its new place"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns a `FileNotFoundError` while the directory is read into a `UserError`."""
        try:
            yield
        except FileNotFoundError as error:
            self.check()
            raise UserError(f"{error} was removed while it was read; run again") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Checks the directory; turns an `OSError` while it is written into a `UserError`."""
        self.check()
        with _writing(self.path):
            yield


@contextlib.contextmanager
def open_run(
    run: Path, config: TrainConfig, *, overwrite: bool, images: str = ""
) -> Iterator[OpenFolder]:
    """Opens and locks a directory for training, new or of a run with the same config.

    If a finished run gets more epochs, its config gets a restart after those that it had; if its
    images have moved, their new path.

    Args:
        run, config: of the training.
        overwrite: replace the run that is there.
        images: digest of the images of the training; "" if the config identifies them.

    Raises:
        UserError: see `open_folder`; or it holds a run of another config.
    """
    with _writing(run):
        if (run / MEMBERS).exists():
            raise UserError(f"`workdir` {run} holds a population; choose another `workdir`")
    with open_folder(run, overwrite=overwrite) as folder:
        there = read_config(run) if (run / "config.json").exists() else None
        folder.config = config
        if there is not None:
            same = moved(run, there, config, images)
            folder.config = _agreed(run, same, config)
        if folder.config != there:
            with folder.writing():
                write_config(run, folder.config)
        yield folder


@contextlib.contextmanager
def open_folder(run: Path, *, overwrite: bool) -> Iterator[OpenFolder]:
    """Creates, marks and locks the directory of a run, which may have no config yet.

    Args:
        run: the directory; new, empty, or that of a run.
        overwrite: replace the run that is there, see `cae_jax.runs.replacement`.

    Raises:
        UserError: it holds other files, another process trains there, or it cannot be written.
    """
    if fcntl is None:
        raise UserError("training needs Linux or macOS, such as WSL; here runs can only be read")
    with _writing(run):
        if run.exists() and not run.is_dir():
            raise UserError(f"`workdir` {run} is a file; pass a directory")
        check_ours(run)
        folder = _opened(run, overwrite=overwrite)
    try:
        yield folder
    finally:
        with contextlib.closing(folder), contextlib.suppress(OSError, UserError):
            folder.check()  # another run's directory is not ours to settle
            replacement.settle(run, has_checkpoint(run))


def _opened(run: Path, *, overwrite: bool) -> OpenFolder:
    run.mkdir(parents=True, exist_ok=True)
    atomic.sync(run, needed=True)
    folder = OpenFolder(run, _locked(run))
    with contextlib.ExitStack() as stack:
        stack.callback(folder.close)
        replacement.settle(run, has_checkpoint(run))
        if not (overwrite and replacement.set_aside(run)):
            stack.pop_all()
            return folder
    run.resolve().mkdir()
    return OpenFolder(run, _locked(run))


def is_finished(run: Path, epochs: int) -> bool:
    """Whether a run has the results of its last epoch; a damaged file counts as none."""
    try:
        return json.loads((run / "result.json").read_bytes())["final"]["epoch"] == epochs
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def has_checkpoint(run: Path) -> bool:
    """Whether a run, or a run or group in the directory of a population, has a checkpoint."""
    paths = itertools.chain(run.glob("checkpoints/*"), run.glob("*/checkpoints/*"))
    return any(path.name.isdecimal() for path in paths)


def write_config(run: Path, config: TrainConfig) -> None:
    """Writes the config, which makes the directory a run that can be loaded."""
    atomic.write_json(run / "config.json", {"format": FORMAT, **to_dict(config)})


def _writing(run: Path) -> contextlib.AbstractContextManager[None]:
    advice = "choose another one, or free space or grant write permission and run again to resume"
    return atomic.writing(f"`workdir` {run}", advice)


def check_ours(run: Path) -> None:
    """Refuses a directory with other files than a run's."""
    if not run.is_dir():
        return
    mark, names = run / RUN_MARK, sorted(path.name for path in run.iterdir())
    is_file = mark.is_file() and not mark.is_symlink()
    ours = is_file or RUN_MARK not in names
    if ours and names:
        content = mark.read_bytes() if is_file else b""
        is_new = names == [RUN_MARK] and not content  # of a process killed in its first moment
        ours = is_new or content.startswith(_MARK_LINE) or _has_config(run)
    if not ours:
        raise UserError(
            f"`workdir` {run} is not empty and not a run of cae-jax: it holds "
            f"{', '.join(names[:3])}; choose another directory, new or empty"
        )


def _has_config(run: Path) -> bool:
    """Whether it is a run of an earlier version, which has no mark, or its mark is damaged."""
    if pretrained.is_model(run):
        return False
    try:
        read_config(run)
    except UserError:
        return False
    return True


def _locked(run: Path) -> int:
    """Marks a directory and locks it; the system releases the lock when the process ends."""
    assert fcntl is not None
    lock = os.open(run / RUN_MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 1000, len(_MARK_LINE)).decode(errors="replace").strip()
        os.close(lock)
        raise UserError(
            f"{holder or 'another process'} trains in {run}; wait for it, stop it, or choose "
            "another `workdir`"
        ) from None
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): make sure that no other process trains in it", run, error
        )
    os.ftruncate(lock, len(_MARK_LINE))  # the mark stays whole if the power fails here
    os.pwrite(lock, _MARK_LINE, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), len(_MARK_LINE))
    os.fsync(lock)
    atomic.sync(run)
    return lock


def _same(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file or directory."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _agreed(run: Path, there: TrainConfig, now: TrainConfig) -> TrainConfig:
    """The config of a run that is opened with another one, if they agree."""
    if now in (there, dataclasses.replace(there, restarts=())):
        return there
    finished = is_finished(run, there.epochs)
    if finished and now.epochs > there.epochs and not now.restarts:
        longer = dataclasses.replace(
            there, epochs=now.epochs, restarts=(*there.restarts, there.epochs)
        )
        if longer == dataclasses.replace(now, restarts=longer.restarts):
            return longer
    differing = differences(to_dict(there), to_dict(now))
    more = "" if finished else " once it is finished"
    raise UserError(
        f"`workdir` {run} holds a run that differs in {', '.join(differing)}; choose another "
        f"`workdir`, with `start_from={str(run)!r}` to begin with its weights if the network is "
        f"the same; the run itself takes more `epochs` alone{more}"
    )
