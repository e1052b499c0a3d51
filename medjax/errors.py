"""The exception for mistakes that a user can correct."""


class InputError(ValueError):
    """Names the file or field, what is wrong with it, and the remedy, in one line.

    `launch.py` prints it without a stack trace and exits with 2; everything else
    is a fault of ours and keeps its trace.
    """
