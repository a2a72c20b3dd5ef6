"""The one exception for input that cannot be used."""


class UserError(ValueError):
    """Something given to cae-jax cannot be used.

    The message is one line: what was given, what is accepted and what to do next. The scripts
    print it to stderr and exit with code 2; every other exception is a bug and keeps its traceback.
    """
