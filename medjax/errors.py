"""The exception for mistakes that a user can correct, and what raises it."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class InputError(ValueError):
    """Names the file or field, what is wrong with it, and the remedy, in one line.

    `launch.py` prints it without a stack trace and exits with 2; everything else
    is a fault of ours and keeps its trace.
    """


def check_choice(field: str, value: object, choices: Iterable) -> None:
    """Raises InputError for a value of a field or a flag that is none of the choices."""
    if value not in choices:
        use = ", ".join(map(repr, choices))
        raise InputError(f"{field}={value!r} is unknown: use {use}")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextlib.contextmanager
def reading(path: object, remedy: str, kinds: Any = Exception) -> Iterator[None]:
    """Turns an error of these kinds into an InputError that names the file.

    Damaged bytes raise errors of many types. An InputError brings its own remedy.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__
    except kinds as error:
        why = getattr(error, "strerror", "") or " ".join(str(error).split())[:200]
        why = why or "it is cut off"
        if isinstance(error, FileNotFoundError):
            remedy = "give an existing file"
        raise InputError(f"{path}: can't be read ({why}); {remedy}") from error
