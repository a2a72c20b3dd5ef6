"""The trained models that ship with the package: ``pretrained/NAME`` wherever a run is read.

config.json, history.csv, result.json   as in the directory of the run that they come from
weights.safetensors                     its parameters, as `cae-jax export` writes them
README.md                               what it is, how good, and what it is not for
"""

from pathlib import Path
from typing import Any

import numpy as np

from cae_jax.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
WEIGHTS = "weights.safetensors"


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


def read_params(folder: Path) -> dict[str, Any] | None:
    """Parameters of a shipped model, by layer and name; None for the directory of a run."""
    if not (folder / WEIGHTS).is_file():
        return None
    from safetensors.numpy import load_file

    params: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(folder / WEIGHTS).items():
        layer, name = key.split(".")
        params.setdefault(layer, {})[name] = value
    return params
