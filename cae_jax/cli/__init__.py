"""The command `cae-jax`: one module per command, imported only when it is called.

This module has no slow imports: signal handlers are installed before those (`cae_jax.__main__`).
"""

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

COMMANDS = (
    *("train", "evaluate", "reconstruct", "encode", "decode", "compress", "decompress", "score"),
    *("summary", "curves", "report", "export", "import", "benchmark", "compile"),
)
# Variables that change how JAX computes, see `cae_jax.ops.settings`.
_UNUSED = ("JAX_ENABLE_X64", "JAX_DISABLE_JIT", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_TRANSFER_GUARD")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        arguments: the command and its flags; without any, the commands are listed. Default: those
            of this process.
    """
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        run(name, flags)
    elif name in ("-h", "--help"):
        print("usage: cae-jax COMMAND [flags]\n")
        for each in COMMANDS:
            print(f"  {each:<11}  {(module(each).__doc__ or '').splitlines()[0]}")
        print("\ncae-jax COMMAND --help lists the flags of a command.")
        print("cae-jax --tyro-print-completion bash prints its shell completion (also zsh, tcsh).")
    elif name.startswith("--tyro-"):
        import tyro

        from cae_jax.cli import common

        commands = {each: module(each).Flags for each in COMMANDS}
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="cae-jax", args=[name, *flags], **common.STYLE
        )
    else:
        from cae_jax.cli import common

        common.fail(f"{name} is not a command; give one of {', '.join(COMMANDS)}", "cae-jax")


def run(name: str, arguments: Sequence[str]) -> None:
    """Parses the flags of a command and runs it."""
    from cae_jax.cli import common

    for variable in [each for each in os.environ if each.startswith(_UNUSED)]:
        del os.environ[variable]  # before JAX is imported
    program, command = f"cae-jax {name}", module(name)
    with (
        common.user_errors(program, command.Flags),
        common.interruptible(["cae-jax", name, *arguments]),
    ):
        # tyro breaks the line before an indented one itself.
        description = (command.__doc__ or "").replace("\n\n    ", "\n    ")
        flags = common.parse(command.Flags, arguments, prog=program, description=description)
        try:
            command.run(flags)
        except (AssertionError, RuntimeError):
            if "jax" in sys.modules:
                from cae_jax.ops import backend

                backend.check_device()  # raises a `UserError` if the device is the reason
            raise


def module(name: str) -> ModuleType:
    """The module of a command, with its `Flags` and its function `run(flags)`."""
    return importlib.import_module(f"cae_jax.cli.{'import_' if name == 'import' else name}")
