"""The members of a population: their names, their groups, and the directory with their runs.

.cae-jax            marks the directory; held locked by the training process
members.json        the config of each member, by name; which are stopped
environment.json    as of a run
.cae-jax-group-K/   the checkpoints of several members that are trained by one program, until each
                    is a run
damaged/            as of a run
NAME/               the run of a member
members.md, .png    the members in comparison, see `cae_jax.evaluation.members`
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cae_jax import atomic, data
from cae_jax.config import FORMAT, TrainConfig, differences, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.ops.backend import Backend, device_memory
from cae_jax.runs import history
from cae_jax.runs.folder import (
    MEMBERS,
    OpenFolder,
    check_ours,
    has_checkpoint,
    images_of,
    is_finished,
    moved,
    open_folder,
    read_config,
    read_json,
)
from cae_jax.training import programs

logger = logging.getLogger(__name__)


class Member(NamedTuple):
    """A member and its history.

    Attributes:
        config: of the member.
        rows: one for each completed epoch.
        stopped_at: the step since the start of training at which it became non-finite, if any.
    """

    config: TrainConfig
    rows: list[history.Row]
    stopped_at: int | None = None

    @property
    def val_loss(self) -> float:
        """Of the last epoch; NaN without one, or if the member is stopped."""
        return self.rows[-1].val_loss if self.rows and self.stopped_at is None else math.nan


class Members(NamedTuple):
    """The content of ``members.json``.

    Attributes:
        configs: by name, in the order of the groups.
        stopped: by name of a stopped member, the step at which it became non-finite.
        per_program: number of members of a group.
    """

    configs: dict[str, TrainConfig]
    stopped: dict[str, int]
    per_program: int


@dataclasses.dataclass
class Population:
    """The directory of a population while one process holds its lock."""

    folder: OpenFolder
    members: Members

    def groups(self) -> Iterator[tuple[int, dict[str, TrainConfig]]]:
        """The index of the first member of each group, and the members."""
        named = [*self.members.configs.items()]
        count = -(-len(named) // self.members.per_program)
        bounds = [len(named) * k // count for k in range(count + 1)]
        for first, last in itertools.pairwise(bounds):
            yield first, dict(named[first:last])

    def stop(self, name: str, step: int) -> None:
        """Records that a member is stopped, and logs it."""
        self.members.stopped[name] = step
        with self.folder.writing():
            write(self.folder.path, self.members)
        run = self.folder.path / name
        kept = f"{run} keeps its last good" if has_checkpoint(run) else "it has no"
        logger.warning(
            f"{name} is stopped: step {step} has a loss, gradient or parameter that is not finite; "
            f"{kept} checkpoint"
        )

    def check_some_left(self) -> None:
        """Raises a `UserError` if all members are stopped."""
        if len(self.members.stopped) < len(self.members.configs):
            return
        config = next(iter(self.members.configs.values()))
        skip = "" if config.on_nan == "skip" else ", or set `on_nan='skip'`"
        raise UserError(
            f"all members of {self.folder.path} have a loss, gradient or parameter that is not "
            f"finite, the last one at step {max(self.members.stopped.values())}; lower "
            f"`learning_rate`, set `clip_norm`{skip}, and train in another `workdir`"
        )


def name_members(configs: Sequence[TrainConfig]) -> dict[str, TrainConfig]:
    """Members by name: the fields in which they differ, such as ``learning_rate=0.01_seed=3``.

    The name always has the seed.
    """
    fields = [*programs.swept(configs), "seed"]
    return {
        "_".join(f"{field}={getattr(config, field)}" for field in fields): config
        for config in configs
    }


def read(folder: Path) -> Members | None:
    """Reads the members of a population; None if the directory is not one.

    Raises:
        UserError: the file is damaged or of a later version.
    """
    path = folder / MEMBERS
    if not os.path.lexists(path):
        return None

    def parse(values: dict[str, Any]) -> Members:
        configs = {name: from_dict(config) for name, config in values["members"].items()}
        stopped = {name: int(step) for name, step in values["stopped"].items()}
        per_program = int(values.get("per_program", 1))  # earlier versions have none
        if not configs or not configs.keys() >= stopped.keys() or per_program < 1:
            raise ValueError("it has no members, or others that are stopped")
        return Members(configs, stopped, per_program)

    return read_json(path, parse, "remove it and repeat the training, which keeps the members")


def write(folder: Path, members: Members) -> None:
    """Writes the members, which makes the directory that of a population."""
    configs = {name: to_dict(config) for name, config in members.configs.items()}
    values = {"members": configs, "stopped": members.stopped, "per_program": members.per_program}
    atomic.write_json(folder / MEMBERS, {"format": FORMAT, **values})


def of_population(folder: Path) -> dict[str, Member] | None:
    """The members of a population with the histories of their runs; None if it is not one.

    Its training need not have ended.

    Raises:
        UserError: a file is damaged.
    """
    if (there := read(folder)) is None:
        return None
    for name, config in there.configs.items():
        check(folder, name, config)
    return {
        name: Member(config, history.of_run(folder / name), there.stopped.get(name))
        for name, config in there.configs.items()
    }


@contextlib.contextmanager
def open_population(
    workdir: Path,
    configs: Sequence[TrainConfig],
    backend: Backend,
    dataset: data.Dataset,
    per_program: int | None,
    devices: int,
    *,
    overwrite: bool,
) -> Iterator[Population]:
    """Opens the directory of a population, new or with the same members.

    Args:
        workdir: the directory.
        configs: of the members.
        backend, dataset: of the training.
        per_program, devices: see `cae_jax.fit_population`.
        overwrite: replace a run in the directory.

    Raises:
        UserError: it has other members, or something else where a member's run goes; or too many
            members for a program.
    """
    named, there = name_members(configs), read(workdir)
    if there is not None and overwrite and any((workdir / name).exists() for name in there.configs):
        raise UserError(
            f"`workdir` {workdir} holds a population with runs such as {next(iter(there.configs))},"
            " which would be lost; choose another `workdir`"
        )
    if per_program is None and there is not None:
        per_program = there.per_program  # the groups on disk
    per_program = _members_per_program(named, backend, dataset, per_program, devices)
    now = Members(named, {}, per_program)
    with open_folder(workdir, overwrite=overwrite) as folder:
        before = read(workdir)
        there = _moved(workdir, before, now, dataset.digest)
        if (workdir / "config.json").exists():
            raise UserError(f"`workdir` {workdir} holds a run; choose another `workdir`")
        if there is not None and (difference := _difference(there, now)):
            raise UserError(
                f"`workdir` {workdir} holds a population that differs in {difference}; choose "
                "another `workdir`"
            )
        for name, config in named.items():
            with atomic.writing(workdir / name, "choose another `workdir`"):
                _check_place(workdir / name)
                check(workdir, name, config, dataset.digest)
        if there != before or there is None:
            with folder.writing():
                write(workdir, there or now)
        yield Population(folder, there or now)


def _members_per_program(
    members: dict[str, TrainConfig],
    backend: Backend,
    dataset: data.Dataset,
    asked: int | None,
    devices: int,
) -> int:
    """The number of members that a program trains; refuses more than fit."""
    if asked is not None and asked < 1:
        raise UserError(f"`members_per_program` is {asked}; it takes a whole number of at least 1")
    if asked is None and jax.default_backend() == "cpu":
        asked = min(devices, len(members))
    if asked == 1:
        return 1
    if backend.name == "native" and (asked is None or asked > devices):
        raise UserError(
            f"`members_per_program` is {asked}; the native kernel computes one member at a time on "
            f"each device; pass {devices}, or `backend='matmul'`"
        )
    config, there = next(iter(members.values())), device_memory()
    model = autoencoders.abstract(config)
    held, more = programs.needed_bytes(config, model, len(dataset.train))
    images = min(there // 2, sum(images.nbytes for images in dataset[:2]))  # more are streamed
    fit = max(1, (there - images) // (held + more)) * devices
    if asked is not None and asked > fit:
        raise UserError(
            f"`members_per_program` is {asked}; {fit} fit: each takes about "
            f"{(held + more) / 1e6:,.0f} MB of {there / 1e6:,.0f} MB; pass at most {fit}"
        )
    return min(asked or fit, len(members))


def _difference(there: Members, now: Members) -> str:
    """The first difference between two populations; "" without one."""
    if others := there.configs.keys() ^ now.configs.keys():
        counts = f"{len(there.configs)} there, {len(now.configs)} now"
        return f"its members ({counts}; such as {min(others)})"
    found = [
        difference
        for name, config in now.configs.items()
        for difference in differences(to_dict(there.configs[name]), to_dict(config))
    ]
    if there.per_program != now.per_program:
        found.append(f"`members_per_program` ({there.per_program} there, {now.per_program} now)")
    return next(iter(found), "")


def _moved(folder: Path, there: Members | None, now: Members, digest: str) -> Members | None:
    """The members of a population with the path that its images have now, if they are the same."""
    if there is None:
        return None
    one = next(iter(now.configs.values()))
    configs = {name: moved(folder, config, one, digest) for name, config in there.configs.items()}
    return there._replace(configs=configs)


def _check_place(path: Path) -> None:
    """Refuses a directory that is not a run."""
    if (path.exists() and not path.is_dir()) or (path / MEMBERS).exists():
        raise UserError(f"{path} is not a run; choose another `workdir`")
    if not (path / "config.json").exists():
        check_ours(path)


def is_written(population: Path, name: str, config: TrainConfig) -> bool:
    """Whether a member has its results, or was given more epochs since; raises as `check`."""
    check(population, name, config)
    run = population / name
    if not (run / "config.json").exists():
        return False
    epochs = read_config(run).epochs
    return epochs > config.epochs or is_finished(run, epochs)


def check(population: Path, name: str, config: TrainConfig, digest: str | None = None) -> None:
    """Raises a `UserError` if the run at a member's place is another one.

    The member may have been given more epochs since, or its images another path.

    Args:
        population: the directory.
        name: of the member.
        config: of the member.
        digest: of the images; by default as the population has recorded it.
    """
    run = population / name
    if not (run / "config.json").exists():
        return
    digest = images_of(population) if digest is None else digest
    there = moved(run, read_config(run), config, digest)
    same = dataclasses.replace(there, epochs=config.epochs, restarts=config.restarts) == config
    if not same or there.epochs < config.epochs or (digest and images_of(run) not in ("", digest)):
        raise UserError(
            f"{run} is not the member of that name but a run of another config or on other images; "
            "move it elsewhere, and repeat the training"
        )
