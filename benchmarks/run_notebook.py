"""Runs the lesson from top to bottom and stores it with its outputs.

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

from cae_jax import UserError, atomic, data
from cae_jax.cli import common

ROOT = Path(__file__).resolve().parent.parent
# Progress bars: what is left of them without the process that drew them is nothing to look at.
WIDGET = "application/vnd.jupyter.widget-view+json"
# What the outputs must not tell about the machine.
MACHINE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|Users|work|var|mnt|opt|private)/\S*")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Runs a notebook from top to bottom and stores it with its outputs."""

    notebook: tyro.conf.Positional[Path] = ROOT / "notebooks" / "convolutional_autoencoders.ipynb"
    """The notebook, which is replaced only if every cell succeeds."""

    timeout: int = 3600
    """Seconds that a cell may take."""


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
            raise UserError(f"{flags.notebook} is no notebook ({error})") from error
        os.environ.pop("CAE_JAX_NOTEBOOK_QUICK", None)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for split in ("train", "test"):
            data.load_split("fashion_mnist", split)  # so that no cell announces its preparation
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
        atomic.write_text(flags.notebook, nbformat.writes(notebook) + "\n")
        print(f"{flags.notebook}: {flags.notebook.stat().st_size / 1e6:.2f} MB")


def strip(notebook: Any) -> None:
    """Leaves what is worth keeping of a notebook that has just been run.

    Raises:
        UserError: an output tells a path of this machine.
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
    """The outputs with texts that follow each other in one piece."""
    whole: list[Any] = []
    for output in outputs:
        if whole and output.output_type == "stream" and output.get("name") == whole[-1].get("name"):
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output: Any) -> str:
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def digest(notebook: Any) -> str:
    """SHA-256 of the code that the outputs belong to."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    main()
