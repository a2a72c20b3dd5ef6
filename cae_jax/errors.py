"""Defines the exception for invalid input."""


class UserError(ValueError):
    """An argument, a file or a directory given to cae-jax is invalid.

    The message is one line: the given value, the accepted ones, what to do next. Parameters stand
    in backticks, which the commands turn into flags. The commands print the message to stderr and
    exit with code 2; every other exception is a bug and keeps its traceback.
    """
