"""Trains a population: many models in one process, each of which becomes a run of its own.

.cae-jax            marks the directory; held locked by the training process
members.json        the config of each member, by name
environment.json    as of a run, with the members per program
checkpoints/        as of a run; each has the states of all members, and their histories
damaged/            as of a run
NAME/               a run for each member, once the training has ended; of a member that is stopped,
                    its last good checkpoint
members.md, .png    the members in comparison
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cae_jax import atomic
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import environment, members
from cae_jax.runs.checkpoints import Checkpoints
from cae_jax.runs.epochs import Chunks, save_at
from cae_jax.runs.fit import prepare
from cae_jax.runs.folder import (
    MEMBERS,
    OpenFolder,
    check_ours,
    checkpoint_folder,
    is_finished,
    open_folder,
    read_config,
)
from cae_jax.runs.interruption import Interrupted, Interruption
from cae_jax.runs.many_epochs import Progress, resume, run_epochs
from cae_jax.runs.members import Member, Members
from cae_jax.runs.split import Setup, Splitter
from cae_jax.training import population
from cae_jax.training.population import InTurn, Population, Together
from cae_jax.training.trainer import device_name

logger = logging.getLogger(__name__)


class FitManyResult(NamedTuple):
    """The result of `fit_many`, by name of the member.

    Attributes:
        members: config, history, and the step at which a member was stopped.
        autoencoders: the models after the last step, of the members that were not stopped.
        steps: since the start of training.
        interrupted: number of the signal that ended the training early; None without one.
    """

    members: dict[str, Member]
    autoencoders: dict[str, Autoencoder]
    steps: int
    interrupted: int | None = None


def fit_many(
    configs: Sequence[TrainConfig],
    workdir: str | Path = "runs/fit_many",
    *,
    overwrite: bool = False,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    chunk_steps: int | None = None,
    backend: str = "auto",
    members_per_program: int | None = None,
) -> FitManyResult:
    """Trains many autoencoders at once; called again with the same directory, it resumes.

    They may differ in their seed and in numbers of the optimizer, see
    `cae_jax.training.population.VARYING`. At the end each becomes a run in ``workdir/NAME``. A
    member with a loss, gradient or parameter that is not finite is stopped, and becomes a run only
    if it has a good checkpoint; the others go on.

    Args:
        configs: of the members.
        workdir: directory of the population; `cae_jax.runs.fit_many` lists its files.
        overwrite: start again where a population without runs of its members, or a run, exists.
        images, data_dir, verify_data, chunk_steps, backend: as of `cae_jax.fit`.
        members_per_program: how many members a program computes; None takes 1 on a CPU, where
            members take turns, each to the bits of a training alone, and on another device as many
            as its memory holds. More than 1 agree with a training alone up to rounding.

    Raises:
        UserError: members that cannot share a program, and as `cae_jax.fit`; or all are stopped.
        Interrupted: a signal came before the training began.
    """
    population.check_members(configs)
    chunks = Chunks(chunk_steps, begin=max(1, 67 // len(configs)))
    workdir = Path(workdir).expanduser()
    with Interruption() as interruption:
        where: Any = {"data_dir": data_dir, "verify_data": verify_data}
        config, split, chosen = prepare(configs[0], workdir, backend, interruption, images, **where)
        found = {name: getattr(config, name) for name in ("data", "image_shape", "features")}
        named = members.name_members([dataclasses.replace(each, **found) for each in configs])
        if there := members.read(workdir):  # whose order is that of the checkpoints
            named = {name: named[name] for name in (*there.configs, *named) if name in named}
        interruption.check()
        setup = Setup(named, autoencoders.abstract(config), chosen, split.train, split.test)
        size = _members_per_program(setup, members_per_program)
        with (
            _open(workdir, named, overwrite) as folder,
            Checkpoints(checkpoint_folder(workdir), setup.config, folder.check) as checkpoints,
        ):
            progress = resume(folder, checkpoints, setup)
            stopped = _train(setup, progress, size, interruption, chunks)
            return _result(setup, progress, stopped)


def _members_per_program(setup: Setup, asked: int | None) -> int:
    """How many members a program computes.

    Raises:
        UserError: more than the memory holds, or the native kernel.
    """
    if asked is not None and asked < 1:
        raise UserError(f"`members_per_program` is {asked}; it takes a whole number of at least 1")
    if asked == 1 or (asked is None and jax.default_backend() == "cpu"):
        return 1
    if setup.backend.kernel is not None:
        raise UserError(
            f"`members_per_program` is {asked}; the native kernel computes one member at a time: "
            "leave it out, or set `backend='matmul'`"
        )
    there = environment.device_memory()
    examples = len(setup.train_images)
    needed = population.needed_bytes(setup.config, setup.model, examples)
    held = setup.train_images.nbytes + setup.test_images.nbytes
    held += len(setup.members) * population.held_bytes(setup.config, setup.model, examples)
    fit = max(1, (there - held) // needed)
    if asked is not None and asked > fit:
        raise UserError(
            f"`members_per_program` is {asked}; {fit} fit: each takes about {needed / 1e6:,.0f} MB "
            f"and {there / 1e6:,.0f} MB are there"
        )
    return min(asked or fit, len(setup.members))


@contextlib.contextmanager
def _open(workdir: Path, named: dict[str, TrainConfig], overwrite: bool) -> Iterator[OpenFolder]:
    """Opens the directory of a population, new or with the same members.

    Raises:
        UserError: it has other members, or something else where a member's run goes.
    """
    there = members.read(workdir)
    runs = [name for name in there.configs if (workdir / name).exists()] if there else []
    if overwrite and runs:
        raise UserError(
            f"`workdir` {workdir} holds a population with runs such as {runs[0]}, which would be "
            "lost; choose another `workdir`"
        )
    with open_folder(workdir, overwrite=overwrite) as folder:
        there = members.read(workdir)
        if (workdir / "config.json").exists():
            raise UserError(f"`workdir` {workdir} holds a run; choose another `workdir`")
        if there is not None and there.configs != named:
            raise UserError(
                f"`workdir` {workdir} holds a population that differs in "
                f"{_difference(there.configs, named)}; choose another `workdir`"
            )
        for name, config in named.items():
            with atomic.writing(workdir / name, "choose another `workdir`"):
                _check_place(workdir / name, config)
        if there is None:
            with folder.writing():
                members.write(workdir, Members(named, {}, ended=False))
        yield folder


def _difference(there: dict[str, TrainConfig], now: dict[str, TrainConfig]) -> str:
    for name in (*there, *now):
        if name not in there or name not in now:
            return f"its members ({len(there)} there, {len(now)} now; such as {name})"
    old, new = ({name: to_dict(each[name]) for name in there} for each in (there, now))
    return next(
        f"{key} ({old[name][key]} there, {new[name][key]} now)"
        for name in there
        for key in new[name]
        if old[name][key] != new[name][key]
    )


def _check_place(path: Path, config: TrainConfig) -> None:
    """Refuses a directory that is not the run of this member, which may have been continued."""
    if (path.exists() and not path.is_dir()) or (path / MEMBERS).exists():
        raise UserError(f"{path} is not a run; choose another `workdir`")
    if not (path / "config.json").exists():
        check_ours(path)
        return
    there = read_config(path)
    same = dataclasses.replace(there, epochs=config.epochs, restarts=config.restarts) == config
    if not same or there.epochs < config.epochs:
        raise UserError(f"{path} is a run of another config; choose another `workdir`")


def _train(
    setup: Setup, progress: Progress, size: int, interruption: Interruption, chunks: Chunks
) -> int | None:
    """Runs the remaining epochs and writes the runs of the members, unless they are there.

    Returns:
        the number of a signal that ended the training early.
    """
    epochs = setup.config.epochs
    if progress.ended and not _unwritten(setup, progress):
        logger.info(f"{progress.folder.path} is finished after {epochs} epochs")
        return None
    try:
        _run(setup, progress, size, interruption, chunks)
    except Interrupted as stop:
        return save_at(stop, progress, interruption, setup.steps * epochs)
    return None


def _run(
    setup: Setup, progress: Progress, size: int, interruption: Interruption, chunks: Chunks
) -> None:
    interruption.check()
    workdir = progress.folder.path
    with progress.folder.writing():
        environment.record(workdir, setup.backend, setup.digest, members_per_program=str(size))
    logger.info(f"Backend {setup.backend.name}: {setup.backend.reason}")
    details: dict[str, Any] = {"backend": setup.backend.name, "members": len(setup.members)}
    if len(progress.rows) < setup.config.epochs:
        started = time.perf_counter()
        progress.population = interruption.call(_build, setup, size)
        details["compile_seconds"] = time.perf_counter() - started
        how = f"{size} by one program" if size > 1 else "in turn"
        logger.info(
            f"Members {how}: {len(setup.members)}; compiled in {details['compile_seconds']:.1f}s "
            f"for {device_name()}"
        )
        run_epochs(setup, progress, chunks, interruption)
        progress.checkpoints.wait()
        interruption.check()
    splitter = Splitter(setup, workdir)
    for k in _unwritten(setup, progress):
        progress.folder.check()
        state = population.member(progress.saved, k)
        splitter.write(setup.names[k], state, progress.rows_of(k), details)
        interruption.check()
    with progress.folder.writing():
        members.write_summary(workdir, progress.members(setup))
    logger.info(members.summary(progress.members(setup)))


def _build(setup: Setup, size: int) -> Population:
    images = (setup.train_images, setup.test_images)
    if size > 1:
        return Together(setup.configs, setup.model, setup.backend, *images, size)
    return InTurn(setup.configs, setup.model, setup.backend, *images)


def _unwritten(setup: Setup, progress: Progress) -> list[int]:
    """The members that have no run with results yet, without those that are stopped.

    A run that is there may have been continued.
    """

    def is_written(run: Path) -> bool:
        if not (run / "config.json").exists():
            return False
        longer = read_config(run).epochs
        return longer > setup.config.epochs or is_finished(run, longer)

    places = [progress.folder.path / name for name in setup.names]
    return [k for k, run in enumerate(places) if k not in progress.stopped and not is_written(run)]


def _result(setup: Setup, progress: Progress, interrupted: int | None) -> FitManyResult:
    shared = setup.autoencoder()
    models = {}
    for k, (name, config) in enumerate(setup.members.items()):
        if k not in progress.stopped:
            params = jax.device_put(population.member(progress.saved, k).params)
            models[name] = shared.with_params(config, params)
    return FitManyResult(progress.members(setup), models, progress.step, interrupted)
