"""Runs the notebook from top to bottom and stores it with its outputs.

python -m benchmarks.run_notebook
"""

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tyro

from cae_jax import TrainConfig, UserError, atomic, data
from cae_jax.cli import common

ROOT = Path(__file__).resolve().parent.parent
# Progress bars, which show nothing without the kernel that drew them.
WIDGET = "application/vnd.jupyter.widget-view+json"
# Paths of this machine, which the outputs must not contain.
MACHINE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|Users|work|var|mnt|opt|private)/\S*")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Runs a notebook from top to bottom and stores it with its outputs."""

    notebook: tyro.conf.Positional[Path] = ROOT / "notebooks" / "convolutional_autoencoders.ipynb"
    """The notebook; replaced only if every cell succeeds."""

    timeout: int = 3600
    """Time limit per cell in seconds."""


def main() -> None:
    with common.user_errors():
        flags = common.parse(Flags)
        try:
            import nbclient
            import nbformat
        except ModuleNotFoundError as error:
            raise UserError(f'{error.name} is missing: pip install -e ".[notebook]"') from error
        try:
            notebook = nbformat.read(flags.notebook, as_version=4)
        except (OSError, nbformat.reader.NotJSONError) as error:
            raise UserError(f"{flags.notebook} is not a notebook ({error})") from error
        os.environ.pop("CAE_JAX_NOTEBOOK_QUICK", None)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for split in ("train", "test"):
            data.load_split(TrainConfig(), split)  # so that no cell announces its preparation
        with tempfile.TemporaryDirectory() as folder:
            nbclient.NotebookClient(
                notebook,
                timeout=flags.timeout,
                kernel_name="python3",
                record_timing=False,
                store_widget_state=False,
                resources={"metadata": {"path": folder}},
            ).execute()
        strip(notebook)
        nbformat.validate(notebook)
        with atomic.writing(flags.notebook):
            atomic.write_text(flags.notebook, nbformat.writes(notebook) + "\n")
        print(f"{flags.notebook}: {flags.notebook.stat().st_size / 1e6:.2f} MB")


def strip(notebook: Any) -> None:
    """Removes timings, widgets and the kernel's metadata from a notebook that has been run.

    Raises:
        UserError: an output contains a path of this machine.
    """
    for cell in code_cells(notebook):
        cell.metadata = {}
        cell.outputs = joined(out for out in cell.outputs if WIDGET not in out.get("data", {}))
        found = MACHINE.search("\n".join(map(text_of, cell.outputs)))
        if found:
            raise UserError(f"the output of cell {cell.id} has the path {found.group()}; change it")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "code_sha256": digest(notebook),
    }


def joined(outputs: Iterable[Any]) -> list[Any]:
    """Merges consecutive outputs of the same stream."""
    merged: list[Any] = []
    for output in outputs:
        last: Any = merged[-1] if merged else {}
        if output.output_type == "stream" and output.get("name") == last.get("name"):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output: Any) -> str:
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def digest(notebook: Any) -> str:
    """Returns the SHA-256 of the code cells, to tell whether the outputs are up to date."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    main()
