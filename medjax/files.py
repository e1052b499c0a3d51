"""Writes files that are there whole or not at all."""

import os
from pathlib import Path

import pandas as pd


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8; bytes of a file's name that aren't UTF-8 are escaped."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def escaped(text: str) -> str:
    """A file's name as `write_text` writes it."""
    return text.encode(errors="backslashreplace").decode()


def write_table(path: Path, table: pd.DataFrame, **options) -> None:
    """As `write_text`, of a table without its index; options of DataFrame.to_csv."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", **options))
