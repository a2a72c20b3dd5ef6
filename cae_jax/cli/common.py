"""What the scripts share: typed flags, and errors as one line with exit code 2."""

import argparse
import contextlib
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from cae_jax.errors import UserError
from cae_jax.runs.interruption import Interrupted, Interruption

Flags = TypeVar("Flags")


def parse(flags: type[Flags], **options: Any) -> Flags:
    """Parses the command line into a dataclass with tyro.

    tyro draws a box around an error; here its text comes out as one line.

    Args:
        flags: dataclass whose fields are the flags and whose field docstrings are their help.
        options: go to `tyro.cli`.
    """
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(flags, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    fail(f"{_one_line(stderr.getvalue())}; see --help")


def config_path(default: Path) -> Path:
    """The value of --config, which is needed before the other flags know their defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?", type=Path, default=default)
    return parser.parse_known_args()[0].config or default


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit code 2; bugs keep their traceback."""
    try:
        yield
    except UserError as error:
        fail(str(error))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the script at SIGINT or SIGTERM: the command that goes on, exit code 128 + signal."""
    with Interruption():
        try:
            yield
        except Interrupted as stop:
            print(f"{stop}: to go on, run {shlex.join(['python', *sys.argv])}", flush=True)
            # Not by an exception: a compilation that is still at work would be waited for.
            os._exit(128 + stop.signal)


def fail(message: str) -> NoReturn:
    """Prints a one-line error and exits with code 2."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _one_line(box: str) -> str:
    """The text of a box, without its frame, its colours and what stands below its first rule.

    Where stdout is not in UTF-8 a title with a rule stands in place of the frame.
    "Error parsing train:" in front of what `TrainConfig` says goes too: it is no flag.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip().strip("│|").strip() for row in text.splitlines()]
    rows = [row for row in rows if row]
    framed = [row for row in rows if not re.fullmatch(r"[╭╰+].*[╮╯+]", row)]
    rows = framed if len(framed) < len(rows) else rows[2:]
    message = itertools.takewhile(lambda row: not re.fullmatch(r"[─-]{3,}", row), rows)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(message)).rstrip(".")
