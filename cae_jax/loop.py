"""`fit`: a whole training run with its files, its output and its resumption."""

import math
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tensorboardX
from flax import nnx

from cae_jax import datasets, figures, history, models, rundir, train
from cae_jax.checkpoint import Checkpoints, open_checkpoints
from cae_jax.config import TrainConfig, to_dict
from cae_jax.errors import UserError
from cae_jax.inference import Autoencoder
from cae_jax.programs import Programs, device_name
from cae_jax.summary import layer_table

_PACKAGES = ("cae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class FitResult(NamedTuple):
    """What `fit` gives.

    Attributes:
        autoencoder: the model after the last epoch.
        history: one row an epoch, those before a resumption included.
    """

    autoencoder: Autoencoder
    history: list[history.Row]


def fit(
    config: TrainConfig,
    workdir: str | Path = "runs/fit",
    *,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    archives: str | Path | None = None,
    chunk_steps: int = 67,
) -> FitResult:
    """Trains an autoencoder; called again with the same folder, it resumes.

    Args:
        config: what to train.
        workdir: folder of the run; `cae_jax.rundir` lists its files.
        overwrite: start anew where a run exists.
        data_dir: see `cae_jax.datasets.load`.
        archives: see `cae_jax.datasets.load`.
        chunk_steps: steps between two updates of the progress bar; without effect on the result.

    Raises:
        UserError: data or folder cannot be used, or the folder holds a run of another config.
    """
    if chunk_steps < 1:
        raise UserError(f"chunk_steps is {chunk_steps}; it takes a whole number of at least 1")
    workdir = Path(workdir)
    train_images, test_images = _load_images(config, data_dir, archives)
    rundir.open_run(workdir, config, overwrite=overwrite)

    init_key, order_key = jax.random.split(jax.random.key(config.seed))
    model = models.build(config, nnx.Rngs(params=init_key))
    rundir.write_text(workdir / "summary.txt", layer_table(model) + "\n")
    programs = Programs(config, model, train_images, test_images, order_key)
    compile_seconds = None
    with open_checkpoints(rundir.checkpoint_folder(workdir)) as checkpoints:
        state, rows = _resume(programs.init_state, checkpoints, workdir)
        if len(rows) < config.epochs:
            (workdir / "result.json").unlink(missing_ok=True)
            compile_seconds = programs.compile()
            state = _train(programs, state, rows, checkpoints, workdir, chunk_steps)

    nnx.update(model, state.params)
    autoencoder = Autoencoder(config, model)
    if (workdir / "result.json").exists():
        print(f"{workdir} is finished after {len(rows)} epochs; --overwrite starts anew")
    else:
        _write_results(workdir, autoencoder, rows, test_images[:10], compile_seconds)
    return FitResult(autoencoder, rows)


def _train(
    programs: Programs,
    state: train.TrainState,
    rows: list[history.Row],
    checkpoints: Checkpoints,
    workdir: Path,
    chunk_steps: int,
) -> train.TrainState:
    """Trains the epochs that `rows` lacks, adds them to it, and saves each."""
    epochs = programs.config.epochs
    if rows:
        print(f"{workdir} resumes after epoch {rows[-1].epoch}")
    folder = str(workdir / "tensorboard")
    with tensorboardX.SummaryWriter(folder, purge_step=len(rows) + 1) as writer:
        for epoch in range(len(rows) + 1, epochs + 1):
            state, row = programs.run_epoch(state, epoch, chunk_steps)
            if not (math.isfinite(row.loss) and math.isfinite(row.val_loss)):
                raise UserError(
                    f"loss {row.loss}, val_loss {row.val_loss} after epoch {epoch}; lower "
                    "--learning-rate or set --clip-norm, and give another --workdir or --overwrite"
                )
            # The checkpoint last: it never knows of an epoch that the others do not.
            history.append(workdir / "history.csv", row)
            rows.append(row)
            for name in ("loss", "val_loss", "images_per_second"):
                writer.add_scalar(name, getattr(row, name), row.epoch)
            writer.flush()
            checkpoints.save(state, row.val_loss)
            _print_row(row, epochs)
    return state


def _load_images(
    config: TrainConfig, data_dir: str | Path | None, archives: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    train_images, test_images = (
        datasets.load(config.dataset, split, data_dir=data_dir, archives=archives)[0][:examples]
        for split, examples in (("train", config.train_examples), ("test", config.test_examples))
    )
    if config.batch_size > len(train_images):
        raise UserError(
            f"batch_size is {config.batch_size}; it takes at most the {len(train_images)} images "
            f"of {config.dataset}"
        )
    return train_images, test_images


def _resume(
    state: train.TrainState, checkpoints: Checkpoints, workdir: Path
) -> tuple[train.TrainState, list[history.Row]]:
    """The newest saved state and the history up to it; the initial state if there is none."""
    path = workdir / "history.csv"
    step = checkpoints.latest_step() or 0
    rows = [row for row in history.read(path) if row.step <= step]
    epochs = [row.epoch for row in rows]
    if step != (rows[-1].step if rows else 0) or epochs != list(range(1, len(rows) + 1)):
        raise UserError(
            f"{path} does not fit the newest checkpoint, step {step}; restore what is missing, or "
            "start anew with --overwrite"
        )
    if not step and (workdir / "result.json").exists():
        raise UserError(
            f"{workdir} is finished but its checkpoints are gone; start anew with --overwrite"
        )
    history.rewrite(path, rows)
    return (checkpoints.restore(step, like=state) if step else state), rows


def _print_row(row: history.Row, epochs: int) -> None:
    print(
        f"Epoch {row.epoch}/{epochs} - {row.epoch_seconds:.1f}s - "
        f"{row.images_per_second:.0f} images/s - loss: {row.loss:.4f} - "
        f"val_loss: {row.val_loss:.4f}",
        flush=True,
    )


def _write_results(
    workdir: Path,
    autoencoder: Autoencoder,
    rows: list[history.Row],
    images: np.ndarray,
    compile_seconds: float | None,
) -> None:
    """The two pictures, then ``result.json``, whose presence says that the run is finished."""
    originals = images.astype(np.float32) / 255
    figures.save_rows(
        workdir / "reconstructions.png",
        {"original": originals, "reconstruction": autoencoder.reconstruct(images)},
    )
    columns = {name: [getattr(row, name) for row in rows] for name in history.Row._fields}
    figures.save_curves(workdir / "history.png", {workdir.name: columns})
    best = min(rows, key=lambda row: row.val_loss)
    rundir.write_json(
        workdir / "result.json",
        {
            "final": rows[-1]._asdict(),
            "best": best._asdict(),
            "epoch_seconds_median": float(np.median(columns["epoch_seconds"])),
            # Null where a resumption had nothing left to compile for.
            "compile_seconds": compile_seconds,
            "device": device_name(),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "config": to_dict(autoencoder.config),
        },
    )
