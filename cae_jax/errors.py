"""Defines the exception for invalid input, and names files in what libraries raise."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(ValueError):
    """An argument, a file or a directory given to cae-jax is invalid.

    The message is one line: the given value, the accepted ones, what to do next. Parameters stand
    in backticks, which the commands turn into flags. The commands print the message to stderr and
    exit with code 2; every other exception is a bug and keeps its traceback.

    Args:
        problem: the given and the accepted values; or the whole message.
        advice: what to do next, where a caller may know better.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem, self.advice = problem, advice


@contextlib.contextmanager
def naming(
    name: object, kind: str, advice: str, *, raises: type[UserError] = UserError
) -> Iterator[None]:
    """Turns any exception into one line: "NAME is not KIND (reason); ADVICE".

    For libraries whose exceptions depend on how a file is damaged. A `UserError` passes.

    Args:
        name: of the file or folder.
        kind: what it should be.
        advice: what to do next.
        raises: the type of the error.
    """
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        problem = f"{name} cannot be read (permission denied)"
        raise raises(problem, "grant read permission") from error
    except Exception as error:
        raise raises(f"{name} is not {kind} ({reason_of(error)})", advice) from error


def installing(extra: str) -> str:
    """The command that installs an extra of the package, from its clone where it runs in one."""
    clone = Path(__file__).absolute().parent.parent
    source = f'-e "{clone}' if (clone / "pyproject.toml").exists() else '"cae-jax'
    return f'pip install {source}[{extra}]"'


def reason_of(error: BaseException) -> str:
    """The message of an exception in one line of at most 200 characters; its type without one."""
    return " ".join(str(error).split())[:200] or type(error).__name__
