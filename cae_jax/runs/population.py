"""Trains a population: many models that become runs, group by group."""

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from cae_jax.config import RUN_MARK, TrainConfig, resolved
from cae_jax.errors import UserError
from cae_jax.models.inference import Autoencoder
from cae_jax.ops import settings
from cae_jax.runs import members
from cae_jax.runs.epochs import Chunks, NotFiniteError, Session
from cae_jax.runs.fit import train
from cae_jax.runs.folder import has_checkpoint, open_run
from cae_jax.runs.interruption import Interrupted
from cae_jax.runs.job import Job, find_devices, prepare
from cae_jax.runs.journal import Journal, epochs_before, newest_intact
from cae_jax.runs.load import load
from cae_jax.runs.members import Member, Population, is_written
from cae_jax.training import programs
from cae_jax.training.feed import bytes_of
from cae_jax.training.step import TrainState
from cae_jax.training.trainer import Trainer, hosted, member

logger = logging.getLogger(__name__)
# Between two saves of a member: a save takes as long as a short epoch.
LEAST_SECONDS = 5.0


class PopulationResult(NamedTuple):
    """The result of `fit_population`, by name of the member.

    Attributes:
        members: their configs and histories, and the steps at which they were stopped.
        autoencoders: the models after the last step of the members that have begun and were not
            stopped.
        steps: the most steps of any member since the start of training.
        interrupted: number of the signal that ended the training early; None without one.
    """

    members: dict[str, Member]
    autoencoders: dict[str, Autoencoder]
    steps: int
    interrupted: int | None = None


@settings.ours()
def fit_population(
    configs: Sequence[TrainConfig],
    workdir: str | Path = "runs/population",
    *,
    overwrite: bool = False,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    targets: tuple[np.ndarray, np.ndarray] | None = None,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
    chunk_steps: int | None = None,
    backend: str = "auto",
    device_budget: str | int | None = None,
    devices: int = 1,
    members_per_program: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> PopulationResult:
    """Trains many autoencoders; called again with the same directory, it resumes.

    They may differ in the seed and in numbers of the optimizer, see
    `cae_jax.training.programs.VARYING`. Each becomes a run in ``workdir/NAME``: at once if it is
    trained alone, at the end if one program trains several. A member whose loss, gradient or
    parameters become non-finite is stopped and keeps its last good checkpoint, if any.

    Args:
        configs: of the members.
        workdir: directory of the population; `cae_jax.runs.members` lists its files.
        overwrite: replace a run in `workdir`; a population with runs is never replaced.
        images, targets, data_dir, verify_data, workers, chunk_steps, backend, device_budget,
            on_chunk: as of `fit`.
        devices: of this machine, over which the models of a program are spread.
        members_per_program: models trained by one compiled program. None takes one for each device
            on a CPU, and otherwise as many as fit in memory. One at a time on a device, the results
            equal those of `fit` bit by bit; several together agree with them up to rounding.

    Raises:
        UserError: members that cannot share a program, and as `fit`; or all are stopped.
        Interrupted: a signal came before the training began.
    """
    programs.check_members(configs)
    workdir = Path(workdir).expanduser()
    budget = bytes_of(device_budget)
    with Session(chunk_steps, on_chunk=on_chunk) as session:
        where: Any = {"data_dir": data_dir, "verify_data": verify_data, "workers": workers}
        config, dataset, chosen = prepare(
            configs[0], workdir, backend, (images, targets), session.start, **where
        )
        fields = ("data", "pairs", "image_shape", "levels")
        shared = {name: getattr(config, name) for name in fields}
        configs = [resolved(dataclasses.replace(each, **shared)) for each in configs]
        programs.check_members(configs)  # once more, with the default learning rate
        on = find_devices(devices, None)
        session.check()
        with members.open_population(
            workdir, configs, chosen, dataset, members_per_program, devices, overwrite=overwrite
        ) as there:
            per_program = there.members.per_program
            swept = programs.swept(configs)
            job = Job(config, chosen, dataset, swept, budget, per_program, on)
            del dataset
            # A step of a group takes longer than one of a model.
            session.chunks = Chunks(chunk_steps, begin=max(1, 67 // per_program))
            return _train_groups(job, there, session)


def _train_groups(job: Job, there: Population, session: Session) -> PopulationResult:
    """Trains the groups of a population that are not finished, one after the other."""
    folder, named, stopped = there.folder.path, there.members.configs, there.members.stopped
    params, steps, interrupted, trained = {}, 0, None, False
    with there.folder.writing():
        job.record(folder)
    for first, group in there.groups():
        left = [name for name in group if not is_written(folder, name, group[name])]
        if set(left) - stopped.keys():
            names = f"{left[0]} to {left[-1]}" if len(left) > 1 else left[0]
            logger.info("Training %s (%d of %d)", names, first + len(group), len(named))
            try:
                with session.restored():
                    found, reached, interrupted = _train_group(job, there, first, group, session)
            except Interrupted as stop:  # between two groups
                session.ignore()
                found, reached, interrupted = {}, 0, stop.signal
            steps, trained, params = max(steps, reached), True, params | found
            if interrupted is not None:
                break
        if len(group) > 1:  # all are runs by now, or stopped
            there.folder.check()
            shutil.rmtree(group_folder(folder, first), ignore_errors=True)
    else:
        there.check_some_left()
        if not trained:
            logger.info(f"{folder} is finished after {job.config.epochs} epochs")
    # disable=None: silent unless the output is a terminal
    for name, config in tqdm(named.items(), "Reading members", leave=False, disable=None):
        if name not in {*params, *stopped} and is_written(folder, name, config):
            try:
                params[name] = load(folder / name).params
            except UserError as error:
                logger.warning("%s is left out of the result: %s", name, error)
    models = {
        name: job.autoencoder.with_params(config, jax.device_put(params[name]))
        for name, config in named.items()
        if name in params
    }
    result = members.of_population(folder)
    assert result is not None
    steps = max([steps, *(each.rows[-1].step for each in result.values() if each.rows)])
    return PopulationResult(result, models, steps, interrupted)


def group_folder(population: Path, first: int) -> Path:
    """The directory of the checkpoints of a group, by the index of its first member."""
    return population / f"{RUN_MARK}-group-{first}"


def _train_group(
    job: Job, there: Population, first: int, group: dict[str, TrainConfig], session: Session
) -> tuple[dict[str, nnx.State], int, int | None]:
    """Trains the members of a group.

    Returns:
        the parameters of the members that are not stopped, the steps since the start of training,
        and the number of a signal that ended the training early.
    """
    names, configs = [*group], [*group.values()]
    with contextlib.ExitStack() as stack:
        if len(group) == 1:
            place = there.folder.path / names[0]
            run = stack.enter_context(
                open_run(place, configs[0], overwrite=False, images=job.digest)
            )
            journal = Journal(run, run.config, least_seconds=LEAST_SECONDS)
        else:
            journal = GroupJournal(there, first, group, job)
        stack.enter_context(journal)
        try:
            progress, interrupted = train(job, configs, journal, session)
        except NotFiniteError:
            if len(group) == 1:  # a group of several has stopped each of its members
                there.stop(names[0], journal.stopped[0])
            return {}, max(journal.stopped.values()), None
    params = {
        name: member(progress.state, k, len(group)).params
        for k, name in enumerate(names)
        if k not in journal.stopped
    }
    return params, progress.step, interrupted


class GroupJournal(Journal):
    """The journal of a group of several models that one program trains.

    While they train they share a checkpoint, whose arrays have a first axis for the members. At
    the end each becomes a run.

    Args:
        there: the population, open.
        first: index of the first member of the group, which names its directory.
        group: configs of the members by name.
        job: of the population.
    """

    def __init__(
        self, there: Population, first: int, group: dict[str, TrainConfig], job: Job
    ) -> None:
        self._names, self._configs = [*group], [*group.values()]
        self._there, self._job = there, job
        place = group_folder(there.folder.path, first)
        super().__init__(there.folder, self._configs[0], place, LEAST_SECONDS)
        self.rows = [[] for _ in group]
        self._saved: TrainState | None = None

    def resume(self, like: Callable[[], TrainState], steps: int) -> TrainState | None:
        """As `Journal.resume`.

        A member that was stopped after the checkpoint is trained again, to the same end.
        """
        newest = newest_intact(self.folder, self._checkpoints)
        if newest is None:
            return None
        state = self._restore(newest, like)
        self._saved = jax.tree.map(np.asarray, state)
        for k, name in enumerate(self._names):
            if self._there.members.stopped.get(name, newest.step + 1) <= newest.step:
                self.stopped[k] = self._there.members.stopped[name]
        epochs, rows = epochs_before(newest, steps), iter(self._checkpoints.rows(newest.step) or [])
        for k, each in enumerate(self.rows):
            trained = (self.stopped[k] - 1) // steps if k in self.stopped else epochs
            each += itertools.islice(rows, trained)
        return state

    def is_finished(self) -> bool:
        """Returns False: a finished group consists of runs, and has no journal."""
        return False

    def begin(self, job: Job) -> None:
        """Does nothing: the runs are written at the end."""

    def _add(self, rows: Sequence[Any]) -> None:
        for each, row in zip(self.rows, rows, strict=True):
            each += [] if row is None else [row]

    def _to_save(self, state: TrainState) -> TrainState:
        self._saved = saved = hosted(state, len(self._names))
        return saved

    def stop(self, k: int, step: int) -> None:
        """Writes the last good state of a member as a run, and records that it is stopped."""
        super().stop(k, step)
        self._keep_last_good(k)
        self._there.stop(self._names[k], step)

    def _keep_last_good(self, k: int) -> None:
        """Writes the run of a member from the newest checkpoint, if its state there is finite."""
        self.folder.check()
        if self._saved is None or has_checkpoint(self.folder.path / self._names[k]):
            return  # the checkpoint is of a process that was interrupted since
        state = member(self._saved, k, len(self._names))
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            with self._run_of(k) as journal:
                rows = [row for row in self.rows[k] if row.step <= int(state.step)]
                journal.restate(state, rows)

    def finish(
        self, job: Job, trainer: Trainer, state: TrainState, check: Callable[[], None], k: int = 0
    ) -> None:
        """Writes the runs of the members that are not stopped."""
        for k, (name, config) in enumerate(zip(self._names, self._configs, strict=True)):
            if k in self.stopped or is_written(self.folder.path, name, config):
                continue
            check()
            self.folder.check()
            own = member(state, k, len(self._names))
            with self._run_of(k) as journal:
                journal.restate(own, self.rows[k])
                journal.finish(job, trainer, own, check, k)

    @contextlib.contextmanager
    def _run_of(self, k: int) -> Iterator[Journal]:
        """Creates the run of a member, and yields its journal."""
        path = self.folder.path / self._names[k]
        with (
            open_run(path, self._configs[k], overwrite=False, images=self._job.digest) as run,
            Journal(run, run.config) as journal,
        ):
            journal.begin(self._job)
            yield journal
