"""What the commands share: typed flags, and errors as one line with exit code 2."""

import argparse
import ast
import contextlib
import dataclasses
import io
import itertools
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro

from cae_jax.cli import process
from cae_jax.cli.configs import config_names, load_config
from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.runs.interruption import Interrupted, Interruption

Flags = TypeVar("Flags")
Backend = Literal["auto", "xla", "matmul", "native"]
DEFAULT_CONFIG = "fashion_mnist"
_CONFIG_HELP = f"Name of a shipped config ({', '.join(config_names())}) or path of a Python file."


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Where the data set is read from."""

    data_dir: Path | None = None
    """Directory of prepared images; None takes TFDS_DATA_DIR, else TFDS's own default."""

    verify_data: bool = False
    """Compare all bytes of the prepared images with their SHA-256; otherwise file sizes only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """Base of the flags of a command that takes a config."""

    config: Annotated[str, tyro.conf.arg(help=_CONFIG_HELP)] = DEFAULT_CONFIG

    train: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)
    """Override single fields of the config."""


class Resumable(Interrupted):
    """Interrupted after the run began: the command that continues it must not overwrite."""


def parse(flags: type[Flags], arguments: Sequence[str] | None = None, **options: Any) -> Flags:
    """Parses a command line into a dataclass with tyro.

    Args:
        flags: dataclass whose fields are the flags and whose field docstrings are their help.
        arguments: without the program; None takes those of this process.
        options: passed to `tyro.cli`.

    Raises:
        UserError: arguments that do not fit; tyro draws a box around its message, this is one line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if issubclass(flags, ConfigFlags):
        # The file comes first: it gives the defaults of the other flags.
        missing = {
            field.name: tyro.MISSING
            for field in dataclasses.fields(flags)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        options["default"] = flags(train=load_config(_config_of(arguments)), **missing)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(flags, args=arguments, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(f"{_one_line(stderr.getvalue())}; see --help")


def _config_of(arguments: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    return parser.parse_known_args(arguments)[0].config or DEFAULT_CONFIG


@contextlib.contextmanager
def user_errors(program: str | None = None, flags: type | None = None) -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit code 2; bugs keep their traceback.

    Args:
        program: what the line starts with; None takes the name of the running script.
        flags: the dataclass of the flags, for `as_flags`.
    """
    try:
        yield
    except UserError as error:
        fail(as_flags(str(error), flags), program)


@contextlib.contextmanager
def interruptible(command: Sequence[str] = ()) -> Iterator[None]:
    """Ends the process at SIGINT or SIGTERM with exit code 128 + signal.

    Args:
        command: command line to continue with, which is printed; () takes that of this process.
    """
    command = [*(command or ["python", *sys.argv])]
    with process.ending(command):
        try:
            try:
                yield
            except ImportError:  # what an extension makes of a signal while it is imported
                Interruption().check()
                raise
        except Interrupted as stop:  # of a training, which has saved its state
            if isinstance(stop, Resumable):
                command = [word for word in command if word != "--overwrite"]
            process.end(stop.signal, command)


def fail(message: str, program: str | None = None) -> NoReturn:
    """Prints a one-line error and exits with code 2."""
    program = program or Path(sys.argv[0]).name
    with contextlib.suppress(OSError):  # the exit code remains
        print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def as_flags(message: str, flags: type | None = None) -> str:
    """Turns the parameters in backticks of a library message into flags.

    Args:
        message: such as "pass another `workdir`, or `overwrite=True`".
        flags: dataclass whose positional fields are named as in the help, "RUNS" for `runs`.
    """
    hints = typing.get_type_hints(flags, include_extras=True) if flags else {}
    positional = {
        name
        for name, hint in hints.items()
        if tyro.conf.Positional in getattr(hint, "__metadata__", ())
    }

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name in positional:
            return name.upper()
        name = name.replace("_", "-")
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"--no-{name}"
        return f"--{name}" if value is None else f"--{name} {_words(value)}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`", flag, message)


def _words(literal: str) -> str:
    """A Python literal as it stands on a command line: no quotes, a tuple as several words."""
    try:
        value = ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return literal
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
