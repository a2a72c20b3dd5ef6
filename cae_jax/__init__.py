"""Convolutional autoencoders on images of any size, gray or in color.

``fit`` trains, ``fit_population`` trains many, ``load`` opens a trained run, ``TrainConfig`` says
what to train.

Array names carry their shape where they cross functions: ``x_BxHxWxC`` has rank 4. The letters:
N examples of a data set, B images of a batch, S steps of an epoch, H rows, W columns, C channels,
F output features.
"""

import contextlib
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cae_jax.config import TrainConfig
    from cae_jax.errors import UserError
    from cae_jax.models.inference import Autoencoder
    from cae_jax.runs.fit import FitResult, fit
    from cae_jax.runs.load import load
    from cae_jax.runs.population import PopulationResult, fit_population

__all__ = [
    "Autoencoder",
    "FitResult",
    "PopulationResult",
    "TrainConfig",
    "UserError",
    "fit",
    "fit_population",
    "load",
]

_MODULES = {
    "Autoencoder": "models.inference",
    "PopulationResult": "runs.population",
    "FitResult": "runs.fit",
    "TrainConfig": "config",
    "UserError": "errors",
    "fit": "runs.fit",
    "fit_population": "runs.population",
    "load": "runs.load",
}


class _Console(logging.Handler):
    """Shows the library's messages as plain lines: information on stdout, warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        # The streams of this moment: a notebook or a test may have replaced them.
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        # A training of hours must not end because nobody reads what it prints.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=stream, flush=True)


# A training of seconds to minutes without a word looks like one that hangs. One line silences it:
# logging.getLogger("cae_jax").setLevel(logging.WARNING)
_logger = logging.getLogger("cae_jax")
_logger.addHandler(_Console())
_logger.setLevel(logging.INFO)
_logger.propagate = False  # whoever has configured the root logger would see each line twice


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX, Orbax and matplotlib take seconds, which a command line that only
    # shows its help or refuses a flag should not cost.
    if name in _MODULES:
        return getattr(importlib.import_module(f"cae_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
