"""Errors that a user can cause. A command line shows their text, one line, without a traceback (common.cli).

The text names the file, key or flag, what was expected, what was found, and the fix. Every other exception is a defect
of this repository, except what the operating system refuses (`is_expected`). All rooms may import this module; it
imports nothing.
"""


class UserError(ValueError):
    """Wrong input: a flag, a key of a config, the content of a file, numbers that are not finite."""


class FileError(UserError, OSError):
    """A file or folder that is missing, cannot be read or cannot be written."""


def is_expected(error: BaseException) -> bool:
    """Whether a user can correct the cause: our own errors, and the operating system's, which have an error number.

    An OSError without a number comes from a library, which raises it for reasons of its own.
    """
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)
