"""Trained models as folders of a few files, read wherever a run is read.

Those that ship with the package are ``pretrained/NAME``; `cae_jax.interop.model_hub` writes such a
folder of any run.

config.json             as in the directory of the run
model.safetensors       its parameters, as `cae-jax export` writes them
README.md               the model card
history.csv             as in the directory of the run; a folder from elsewhere may have none
tables.npz              likewise; the frequencies of a run for a `rate`
result.json             likewise; only in the package
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cae_jax.errors import UserError, naming

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
WEIGHTS = "model.safetensors"


def locate(run: str | Path) -> Path:
    """The directory of a run, or of a shipped model if ``pretrained/NAME`` does not exist here.

    Raises:
        UserError: no model of that name ships with the package.
    """
    run = Path(run).expanduser()
    if run.parts[:1] != (FOLDER.name,) or run.exists():
        return run
    if len(run.parts) == 2 and (FOLDER / run.parts[1] / WEIGHTS).is_file():
        return FOLDER / run.parts[1]
    names = sorted(f"{FOLDER.name}/{path.parent.name}" for path in FOLDER.glob(f"*/{WEIGHTS}"))
    raise UserError(
        f"there is no {run}, here or in the package, which has {', '.join(names)}; pass one of "
        "these, or a directory written by cae-jax train"
    )


def is_model(folder: Path) -> bool:
    """Whether a folder has the weights of a model, and is not a run with an export in it."""
    return (folder / WEIGHTS).is_file() and not (folder / "checkpoints").exists()


def read_params(
    folder: Path, like: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, np.ndarray]]:
    """Parameters of a model, by layer and name.

    Args:
        folder: of the model.
        like: arrays of the same names and shapes.

    Raises:
        UserError: the file is damaged, or its parameters are not those of the network.
    """
    from safetensors.numpy import load_file

    path = folder / WEIGHTS
    params: dict[str, dict[str, np.ndarray]] = {}
    advice = "restore it from a copy, or export the model again"
    with naming(path, "the weights of its config.json", advice):
        values = load_file(path)
        for layer, arrays in like.items():
            params[layer] = {kind: values.pop(f"{layer}.{kind}") for kind in arrays}
            for kind, value in params[layer].items():
                if value.shape != arrays[kind].shape or value.dtype != np.float32:
                    raise ValueError(
                        f"{layer}.{kind} is {value.dtype} {list(value.shape)}, not float32 "
                        f"{list(arrays[kind].shape)}"
                    )
        if values:
            raise ValueError(f"it also has {', '.join(sorted(values)[:3])}")
    return params
