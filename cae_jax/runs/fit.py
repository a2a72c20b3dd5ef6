"""Trains autoencoders, from their configs to the files of their runs."""

import contextlib
import importlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cae_jax.config import TrainConfig, differences, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.models import autoencoders
from cae_jax.models.inference import Autoencoder
from cae_jax.ops import settings
from cae_jax.runs.epochs import Progress, Session, run_epochs
from cae_jax.runs.folder import open_run
from cae_jax.runs.history import Row
from cae_jax.runs.interruption import Interrupted
from cae_jax.runs.job import Job, find_devices, prepare
from cae_jax.runs.journal import Follower, Journal
from cae_jax.runs.load import load
from cae_jax.runs.peers import Peers
from cae_jax.training.devices import of_first
from cae_jax.training.feed import bytes_of
from cae_jax.training.optimizer import warmup
from cae_jax.training.trainer import device_name, hosted

logger = logging.getLogger(__name__)
# On 1,006 photographs of 64 x 64 pixels, 960 steps gave 1.5 dB more than 240 in the same epochs.
_FEW_STEPS = 1000


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        autoencoder: the model after the last step.
        history: one row per epoch, including those before a resumption.
        steps: steps since the start of training.
        interrupted: number of the signal that ended the training early; None without one.
    """

    autoencoder: Autoencoder
    history: list[Row]
    steps: int
    interrupted: int | None = None


@settings.ours()
def fit(
    config: TrainConfig,
    workdir: str | Path = "runs/fit",
    *,
    overwrite: bool = False,
    start_from: str | Path | None = None,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    targets: tuple[np.ndarray, np.ndarray] | None = None,
    data_dir: str | Path | None = None,
    verify_data: bool = False,
    workers: int | None = None,
    chunk_steps: int | None = None,
    backend: str = "auto",
    device_budget: str | int | None = None,
    devices: int = 1,
    peers: Peers | None = None,
    on_epoch: Callable[[list[Row]], None] | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> FitResult:
    """Trains an autoencoder; called again with the same directory, it resumes.

    A finished run takes more epochs, see `TrainConfig.restarts`. On SIGTERM and SIGINT (Ctrl-C) it
    finishes the current chunk of steps, saves, and returns; a second signal does not wait for it.

    Args:
        config: the training.
        workdir: directory of the run; `cae_jax.runs.folder` lists its files.
        overwrite: replace the run in `workdir`, which is kept until the new one has a checkpoint.
        start_from: run of the same network, whose weights a new run begins with.
        images: training and test images in place of the data set, see `cae_jax.data.of_arrays`.
        targets: what these images are to become, such as clean ones; as `TrainConfig.pairs`.
        data_dir, verify_data, workers: see `cae_jax.data.load_split`.
        chunk_steps: steps between two checks for signals, see `cae_jax.runs.epochs.Chunks`.
        backend: see `cae_jax.ops.backend.choose`; a run keeps its backend unless another is named.
        device_budget: bytes of images on the device, such as ``"2GiB"``; a data set above it is
            streamed, to the same bits. Default: what the device reports, on a CPU half of the
            memory, less what the programs need.
        devices: of each process that train, of all at most `TrainConfig.microbatches`; any number
            of them gives the same bits.
        peers: the processes that train together, see `cae_jax.runs.peers.join`. Process 0 alone
            uses `workdir` and `start_from`.
        on_epoch: called after each epoch with the history so far.
        on_chunk: called after each chunk of steps with the steps since the start of training. Both
            are called under JAX's own settings, so ``JAX_ENABLE_X64`` does not apply in them.

    Raises:
        UserError: unusable data or directory, a run of another config, a number not finite.
        Interrupted: a signal came before there was a model.
    """
    workdir = Path(workdir).expanduser()
    budget = bytes_of(device_budget)
    session = Session(chunk_steps, on_epoch, on_chunk, peers)
    with session, session.peers.guard(), session.restored():
        where: Any = {"data_dir": data_dir, "verify_data": verify_data, "workers": workers}
        arrays = images, targets
        config, dataset, chosen = prepare(config, workdir, backend, arrays, session.start, **where)
        count, first = session.peers.count, session.peers.index == 0
        there = find_devices(devices, config, count)
        same = {**to_dict(config), "data": dataset.digest, "backend": chosen.name}
        _check_same(session.peers, "what they train", same)
        weights = _weights_of(config, start_from) if start_from is not None and first else None
        session.check()
        options = {"overwrite": overwrite, "images": dataset.digest}
        with _open_journal(session.peers, workdir, config, **options) as journal:
            job = Job(journal.config, chosen, dataset, (), budget, 1, there)
            del dataset  # those on the device remain
            _check_same(session.peers, "how they train", job.memory)
            return _fit(job, journal, session, weights)


def _check_same(peers: Peers, name: str, values: dict[str, Any]) -> None:
    """Refuses processes that differ in one of some values; `name` as of `Peers.exchange`."""
    # Without an end: one of them may prepare data for hours.
    first, *others = peers.exchange(name, values, within=math.inf)
    for k, other in enumerate(others, start=1):
        if found := differences(first, other):
            raise UserError(
                f"processes 0 and {k} differ in {', '.join(found)}; start all with the same "
                "command on the same images, and name `backend` and `device_budget` in all"
            )


@contextlib.contextmanager
def _open_journal(
    peers: Peers, workdir: Path, config: TrainConfig, **options: Any
) -> Iterator[Journal]:
    """The journal of a run: process 0 opens its directory, see `open_run`; the others follow."""
    if peers.index > 0:
        yield Follower(workdir, from_dict(peers.exchange("config", None, math.inf)[0]))
        return
    with open_run(workdir, config, **options) as folder, Journal(folder, folder.config) as journal:
        peers.exchange("config", to_dict(folder.config), math.inf)
        yield journal


def _fit(job: Job, journal: Journal, session: Session, weights: nnx.State | None) -> FitResult:
    progress, stopped = train(job, [job.config], journal, session, weights)
    session.ignore()  # all is written
    params = jax.device_put(progress.state.params)
    autoencoder = job.autoencoder.with_params(job.config, params)
    return FitResult(autoencoder, journal.rows[0], progress.step, stopped)


def _weights_of(config: TrainConfig, start_from: str | Path) -> nnx.State:
    """The parameters of a run of the same network."""
    source = load(start_from, backend="auto")
    if source.topology != autoencoders.abstract(config).topology:
        raise UserError(
            f"`start_from` {start_from} has the model {source.config.model} with features "
            f"{source.config.features}; give a run of {config.model} with {config.features}"
        )
    return nnx.state(source.model, nnx.Param)


def train(
    job: Job,
    configs: Sequence[TrainConfig],
    journal: Journal,
    session: Session,
    weights: nnx.State | None = None,
) -> tuple[Progress, int | None]:
    """Resumes a group, runs its remaining epochs and writes the results.

    Returns the progress, and the number of a signal that ended the training early.
    """
    epochs, workdir = configs[0].epochs, journal.folder.path
    state = journal.resume(lambda: job.empty_state(configs), job.steps)
    progress = Progress(job.initial_state(configs, weights) if state is None else state)
    if session.peers.count > 1:
        journal.follow(session.peers.exchange("the state", journal.report())[0])
        progress.state = of_first(progress.state)
    if state is None and weights is not None:
        journal.save(progress.state)  # whoever resumes the run need not name its origin
    if journal.is_finished():
        logger.info(f"{workdir} is finished after {epochs} epochs; more epochs continue it")
        return progress, None
    try:
        with session.restored():
            _run(job, configs, journal, progress, session)
    except Interrupted as stop:
        session.ignore()
        progress.state = hosted(progress.state, len(configs))
        if progress.step > 0:
            journal.save(progress.state)
        journal.wait()
        kept = f", which {workdir} keeps" if progress.step == journal.saved_step else ""
        logger.info(f"{stop} after step {progress.step} of {job.steps * epochs}{kept}")
        if not session.is_for_all:  # the others do not know
            raise
        return progress, stop.signal
    return progress, None


def _explain_steps(config: TrainConfig, steps: int) -> None:
    """Logs that the training of a config is short; `steps` are those of an epoch."""
    if (total := config.epochs * steps) < _FEW_STEPS:
        logger.info(
            f"A training of {total} steps is short: with few images, a smaller batch (--batch-size "
            "32) and more --epochs give better ones"
        )


def _explain_warmup(config: TrainConfig, steps: int) -> None:
    """Logs how the warm-up of a continued constant schedule differs from that of a whole one.

    Args:
        config: of the run.
        steps: in an epoch.
    """
    parts = [warmup(config, epochs * steps) for epochs in (*config.restarts[:1], config.epochs)]
    if config.schedule == "constant" and parts[0] < parts[-1]:
        logger.info(
            f"The warm-up took {parts[0]} steps, half of the first {config.restarts[0]} epochs; "
            f"with {config.epochs} epochs from the beginning it takes {parts[-1]}"
        )


def _run(
    job: Job,
    configs: Sequence[TrainConfig],
    journal: Journal,
    progress: Progress,
    session: Session,
) -> None:
    session.check()
    journal.begin(job)
    logger.info(f"Backend {job.backend.name}: {job.backend.reason}")
    # What saves and plots takes a second to import.
    for name in ("cae_jax.runs.orbax_io", "cae_jax.figures", "tensorboardX"):
        session.call(importlib.import_module, name)
    trainer = session.call(job.trainer, configs)
    logger.info(f"Compiled in {job.compile_seconds:.1f}s for {device_name()}")
    if journal.saved_step is not None:
        logger.info("%s resumes after step %d", journal.folder.path, journal.saved_step)
    _explain_steps(configs[0], trainer.steps)
    _explain_warmup(configs[0], trainer.steps)
    # Collectives wait for half a minute only, and one process may compile for longer.
    session.peers.exchange("the first step", None, within=math.inf)
    progress.state = trainer.put(progress.state)
    run_epochs(progress, trainer, journal, session)
    journal.wait()
    session.check()
    progress.state = hosted(progress.state, len(configs))
    journal.finish(job, trainer, progress.state, session.check)
