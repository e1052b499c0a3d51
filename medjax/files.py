"""Writes files that are there whole or not at all, and keeps two processes apart."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from medjax.errors import InputError

log = logging.getLogger("medjax")


def unfinished(path: Path) -> Path:
    """A name beside the path for a file that isn't whole yet; nobody else uses it."""
    return path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, whose file becomes that of the path: whole or not at all."""
    partial = unfinished(path)
    try:
        with naming(path):
            yield partial
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8; bytes of a file's name that aren't UTF-8 are escaped."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, of a value as JSON."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
      InputError: the file is gone or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "is gone"
    except ValueError as error:
        why = f"is damaged ({error})"
    raise InputError(f"{path}: {why}: bring it back, or make its folder again")


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes; '' if it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError name this path if it names none, as where the disk is full."""
    try:
        yield
    except OSError as error:
        if " requested and " in str(error):  # NumPy: so many bytes, 0 written.
            error.errno = errno.ENOSPC
        error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def held(folder: Path, *, wait: str = "") -> Iterator[None]:
    """Keeps other processes out of a folder, which is made; ends with this process.

    With `wait`, what another process is doing there, it is waited for. On a file system
    without locks nobody is kept out.

    Raises:
      InputError: another process holds it.
    """
    ours = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InputError(
                    f"{folder}: another process is at work in it: wait for it, or use "
                    "another --workdir"
                ) from None
            log.warning("%s: another process %s: waiting for it", folder, wait)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
        if ours:
            with contextlib.suppress(OSError):
                folder.rmdir()  # If it is still empty.


def escaped(text: str) -> str:
    """A file's name as `write_text` writes it."""
    return text.encode(errors="backslashreplace").decode()


def write_table(path: Path, table: pd.DataFrame, **options) -> None:
    """As `write_text`, of a table without its index; options of DataFrame.to_csv."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", **options))
