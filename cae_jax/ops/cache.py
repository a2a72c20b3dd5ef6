"""The folder of the user's cache: compiled programs, which can be made anew at any time."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cae_jax``, else ``~/.cache/cae_jax``, made if need be, private to the user.

    Raises:
        OSError: it cannot be made, or others can write to it: what it holds is executed.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cae_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to or can be written by others; chmod 700 it")
    return folder


def use_compilation_cache() -> None:
    """Has JAX keep what it compiles below the user's cache folder, and find it there again.

    Whoever has set ``JAX_COMPILATION_CACHE_DIR`` keeps that. Without a usable folder nothing is
    kept, which costs seconds at the next start and nothing else.
    """
    import jax  # here, so that a command line that only shows its help need not wait for it

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = cache_folder() / "xla"
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's own threshold of a second would leave most of these small programs out.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
