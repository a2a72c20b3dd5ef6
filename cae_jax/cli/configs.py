"""Loads configs by the name of a shipped one or the path of a Python file."""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from cae_jax.config import TrainConfig
from cae_jax.errors import UserError
from cae_jax.runs.interruption import Interrupted

# In a wheel the configs are inside the package, in a clone next to it.
_PACKAGE = Path(__file__).parent.parent
_CONFIGS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)


def config_names() -> list[str]:
    """Names of the shipped configs, in alphabetical order."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py"))


def load_config(config: str | Path) -> TrainConfig:
    """Runs a config file and returns the result of its ``get_config()``.

    Args:
        config: path of a Python file, or the name of a shipped config, such as ``"denoise"``.

    Raises:
        UserError: no such file or name, the file raises, or it returns no `TrainConfig`.
    """
    path = _config_path(config)
    try:
        with _beside(path):
            names = runpy.run_path(str(path))
            if "get_config" not in names:
                raise UserError("it has no get_config(); define one that returns a TrainConfig")
            loaded = names["get_config"]()
        if not isinstance(loaded, TrainConfig):
            kind = type(loaded).__name__
            raise UserError(f"get_config() returned a {kind}; return a TrainConfig")
        return loaded
    except Interrupted:  # a signal, not the file
        raise
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        text = " ".join(str(error).split())
        raise UserError(f"config {path} raised {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Lets a config import files from its own directory, and forgets them afterwards."""
    folder, before = str(path.absolute().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder):
                del sys.modules[name]


def _config_path(config: str | Path) -> Path:
    path, names = Path(config), config_names()
    if path.is_file():
        return path
    if str(config) in names:
        return _CONFIGS / f"{config}.py"
    what = f"{path} is not a file" if path.suffix == ".py" else f"{str(config)!r} is not known"
    raise UserError(f"config {what}; give one of {', '.join(names)} or a path to a Python file")
