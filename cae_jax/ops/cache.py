"""Caches compiled programs in the user's cache directory, which may be deleted at any time."""

import os
import re
import warnings
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Returns ``$XDG_CACHE_HOME/cae_jax`` or ``~/.cache/cae_jax``; creates it, private to the user.

    Raises:
        OSError: it cannot be created, or other users can write to it: its content is executed.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cae_jax"
    except RuntimeError as error:  # as in a container whose user has no name
        raise FileNotFoundError("there is no home directory") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    # Not on Windows, where the folder has the rights of the user's profile.
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f"{folder} belongs to or can be written by others; chmod 700 it")
    return folder


def use_compilation_cache() -> None:
    """Makes JAX cache its compiled programs below the user's cache directory.

    ``JAX_COMPILATION_CACHE_DIR`` takes precedence. Without a usable directory nothing is cached,
    which only costs seconds at the next start.
    """
    import jax  # deferred: a command that only shows its help must not wait for it

    if (own := jax.config.values["jax_compilation_cache_dir"]) is not None:
        _replace_damaged_entries(Path(own))
        return
    try:
        folder = cache_folder() / "xla"
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _replace_damaged_entries(folder)
    # JAX's default threshold of one second would exclude most of these small programs.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _replace_damaged_entries(folder: Path) -> None:
    """Removes entries that JAX cannot read or write, instead of showing its warnings.

    JAX compiles such a program and writes it to the cache only if it has no entry. It does not
    write entries in one step either: one that another process is writing cannot be read.
    """
    show = warnings.showwarning
    damaged = r"Error \w+ persistent compilation cache entry for '(.+?)'"

    def handle(message: Warning | str, *arguments: Any, **options: Any) -> None:
        if match := re.match(damaged, str(message)):
            for path in folder.glob(f"{match[1]}-*"):
                path.unlink(missing_ok=True)
        else:
            show(message, *arguments, **options)

    warnings.showwarning = handle
