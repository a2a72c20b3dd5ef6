"""Shared by all commands: typed flags, their help, and errors as one line with exit code 2."""

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from tqdm import tqdm
from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

from cae_jax import atomic, config
from cae_jax.cli import process
from cae_jax.cli.configs import config_names, load_config
from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.runs.interruption import Interrupted

Flags = TypeVar("Flags")
Item = TypeVar("Item")
Backend = Literal["auto", "xla", "matmul", "native", "cuda"]
DEFAULT_CONFIG = "fashion_mnist"
_CONFIG_HELP = f"A shipped config ({', '.join(config_names())}) or a Python file."


# The flags of a config by group. Training itself sets `image_shape` and `restarts`.
_GROUPS = {
    "run": "epochs batch_size microbatches seed on_nan max_skips",
    "data": "data image_size resize channels background split train_examples test_examples "
    "white black frames include exclude skip_unreadable max_pixels decode",
    "network": "model features widths loss rate precision",
    "noise": "noise noise_level pairs",
    "optimizer": "optimizer learning_rate schedule warmup_steps b1 b2 eps rho momentum "
    "weight_decay clip_norm",
}
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
_MAX_CHOICES = 13  # characters of choices in the first column of the help


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def flags(cls: type[Flags]) -> type[Flags]:
    """Makes a frozen dataclass of flags, whose help is one line each where possible."""
    docs = _field_docs(cls)
    for name, hint in cls.__annotations__.items():
        cls.__annotations__[name] = _flag(name, hint, docs.get(name))
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _flag(name: str, hint: Any, doc: str | None) -> Any:
    """The type of a flag, annotated with its help, a short placeholder and a short default."""
    bare, *metadata = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    metavar = _metavar(bare)
    if tyro.conf.Positional in metadata:
        metavar = f"{name.upper()} ..." if typing.get_origin(bare) is tuple else name.upper()
    arg = tyro.conf.arg(metavar=metavar, help=doc, help_behavior_hint=_default)
    return Annotated[(bare, arg, *metadata)]


def _metavar(hint: Any) -> str | None:
    """The placeholder for the value of a flag; None for a switch."""
    args = [arg for arg in typing.get_args(hint) if arg not in (type(None), ...)]
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = f"{{{','.join(map(str, args))}}}"
        return choices if len(choices) <= _MAX_CHOICES else "NAME"
    if origin is tuple:
        return f"{_metavar(args[0])} ..."
    return _metavar(args[0]) if args else _METAVARS.get(hint)


def _default(text: str) -> str:
    return "" if text in ("", "None", "False") else f"[{text}]"


def _field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
    field = r'^    (\w+): .*\n    """([\s\S]*?)"""'
    fields = re.findall(field, inspect.getsource(cls), re.MULTILINE)
    return {name: " ".join(doc.split()) for name, doc in fields}


def _grouped(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A rule for tyro: splits `TrainConfig` into the groups of its help."""
    if info.type is not TrainConfig:
        return None
    config = info.default if isinstance(info.default, TrainConfig) else TrainConfig()
    hints, docs = typing.get_type_hints(TrainConfig), _field_docs(TrainConfig)

    def group(title: str, names: list[str]) -> StructFieldSpec:
        fields = [(name, _flag(name, hints[name], docs[name])) for name in names]
        kind: Any = dataclasses.make_dataclass(title, fields)
        under: Any = Annotated[
            tyro.conf.OmitArgPrefixes[kind],
            tyro.conf.arg(name=title, prefix_name=False, help=""),
        ]
        return StructFieldSpec(title, under, kind(*(getattr(config, name) for name in names)))

    def instantiate(**groups: Any) -> TrainConfig:
        values = [item for group in groups.values() for item in vars(group).items()]
        return dataclasses.replace(config, **dict(values))

    fields = tuple(group(title, names.split()) for title, names in _GROUPS.items())
    return StructConstructorSpec(instantiate, fields)


_REGISTRY = tyro.constructors.ConstructorRegistry()
_REGISTRY.struct_rule(_grouped)
# Options of tyro for all commands.
STYLE: dict[str, Any] = {"registry": _REGISTRY, "config": (tyro.conf.FlagCreatePairsOff,)}


@flags
class DataFlags:
    """Where the data set is read from."""

    data_dir: Path | None = None
    """Directory of prepared images, else TFDS_DATA_DIR."""

    verify_data: bool = False
    """Verify all bytes of the prepared images."""

    workers: int | None = None
    """Processes that decode images; default: the cores."""


@flags
class ProcessFlags:
    """Several processes that train one run together."""

    distributed: bool = False
    """Processes as Slurm, MPI, Kubernetes or TPUs say."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where the others reach process 0."""

    num_processes: int | None = None
    """Processes that train together."""

    process_id: int | None = None
    """Of this one, from 0, which writes the run."""

    patience: float = 30
    """Seconds of silence that count as death."""


@flags
class ConfigFlags:
    """Base of the flags of a command that takes a config."""

    config: Annotated[str, tyro.conf.arg(help=_CONFIG_HELP)] = DEFAULT_CONFIG

    train: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig()

    unchanged: tyro.conf.SuppressFixed[tyro.conf.Fixed[TrainConfig]] = TrainConfig()
    """The config before flags override it; not a flag."""


Data = tyro.conf.OmitArgPrefixes[DataFlags]
Processes = tyro.conf.OmitArgPrefixes[ProcessFlags]


class Resumable(Interrupted):
    """Interrupted after the run began: the command that continues it must not overwrite."""


def parse(flags: type[Flags], arguments: Sequence[str] | None = None, **options: Any) -> Flags:
    """Parses a command line into a dataclass with tyro.

    Args:
        flags: dataclass whose fields are the flags and whose field docstrings are their help.
        arguments: words after the program. Default: those of this process.
        options: passed to `tyro.cli`.

    Raises:
        UserError: invalid arguments, with tyro's message in one line instead of a box.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if issubclass(flags, ConfigFlags):
        # The config first: it has the defaults of the other flags.
        missing = {
            field.name: tyro.MISSING
            for field in dataclasses.fields(flags)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        loaded = load_config(_config_of(arguments))
        options["default"] = flags(train=loaded, unchanged=loaded, **missing)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(flags, args=arguments, **STYLE, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(f"{_one_line(stderr.getvalue())}; see --help")


def check_used(flags: ConfigFlags) -> None:
    """Raises a `UserError` if a flag changes a field that the training ignores."""
    before = vars(flags.unchanged)
    changed = [name for name, value in vars(flags.train).items() if value != before[name]]
    config.check_used(flags.train, changed)


def _config_of(arguments: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    return parser.parse_known_args(arguments)[0].config or DEFAULT_CONFIG


@contextlib.contextmanager
def user_errors(program: str | None = None, flags: type | None = None) -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit code 2; bugs keep their traceback.

    Args:
        program: start of the line. Default: the name of the running script.
        flags: the dataclass of the flags, for `as_flags`.
    """
    try:
        yield
    except UserError as error:
        fail(as_flags(str(error), flags), program)


@contextlib.contextmanager
def interruptible(command: Sequence[str] = ()) -> Iterator[None]:
    """Ends the process with exit code 128 + signal if a signal interrupts a training.

    Args:
        command: command line that continues, which is printed. Default: that of this process.
    """
    try:
        yield
    except Interrupted as stop:  # raised by a training, which has saved its state
        words = [*(command or ["python", *sys.argv])]
        if isinstance(stop, Resumable):
            words = [word for word in words if word != "--overwrite"]
        process.end(stop.signal, words)


def fail(message: str, program: str | None = None) -> NoReturn:
    """Prints a one-line error and exits with code 2."""
    program = program or Path(sys.argv[0]).name
    with contextlib.suppress(OSError):  # the exit code is enough
        print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def progress(items: Iterable[Item], what: str, unit: str) -> "tqdm[Item]":
    """A bar over the items; none where the output is no terminal."""
    return tqdm(items, desc=what, unit=unit, leave=False, disable=None)


def print_values(values: Mapping[str, Any]) -> None:
    """Prints named values, one line each."""
    for name, value in values.items():
        print(f"{name.replace('_', ' '):<26} {_shown(value)}", flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        parts = (f"{name.replace('_', ' ')} {_shown(each)}" for name, each in value.items())
        return ", ".join(parts) or "none"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    if value is None:
        return "not reported"
    return f"{value:,}" if type(value) is int else str(value)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Writes the file of ``--json``, if that flag is given."""
    if path is not None:
        with atomic.writing(path):
            atomic.write_json(path.expanduser(), values)


def as_flags(message: str, flags: type | None = None) -> str:
    """Turns the parameters in backticks of a library message into flags.

    Args:
        message: such as "pass another `workdir`, or `overwrite=True`".
        flags: dataclass whose positional fields are written as in the help: "RUNS" for `runs`.
    """
    hints = typing.get_type_hints(flags, include_extras=True) if flags else {}
    metadata = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    not_flags = fields - set(" ".join(_GROUPS.values()).split())

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if tyro.conf.Positional in metadata.get(name, ()):
            return name.upper()
        if name in not_flags:
            return name
        name = "from" if name == "start_from" else name.replace("_", "-")
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"--no-{name}"
        return f"--{name}" if value is None else f"--{name} {_words(value)}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`", flag, message)


def literal(text: str) -> Any:
    """The value of a Python literal; other text stays."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError):
        return text


def _words(text: str) -> str:
    """A Python literal as written on a command line: no quotes, a tuple as several words."""
    value = literal(text)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _one_line(box: str) -> str:
    """The text in a box of tyro up to its first rule, without frame and colors.

    If stdout is not UTF-8, the box has a title with a rule instead of a frame. The prefix "Error
    parsing train:" of errors from `TrainConfig` is removed.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip().strip("│|").strip() for row in text.splitlines()]
    rows = [row for row in rows if row]
    framed = [row for row in rows if not re.fullmatch(r"[╭╰+].*[╮╯+]", row)]
    rows = framed if len(framed) < len(rows) else rows[2:]
    message = itertools.takewhile(lambda row: not re.fullmatch(r"[─-]{3,}", row), rows)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(message)).rstrip(".")
