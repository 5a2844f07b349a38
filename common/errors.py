"""Errors that a user can cause. A command line shows their text, one line, without a traceback (common.cli).

The text names the file, key or flag, what was expected, what was found, and the fix. Every other exception is a defect
of this repository. All rooms may import this module; it imports nothing.
"""


class UserError(ValueError):
    """Wrong input: a flag, a key of a config, the content of a file, numbers that are not finite."""


class FileError(UserError, OSError):
    """A file or folder that is missing, cannot be read or cannot be written."""
