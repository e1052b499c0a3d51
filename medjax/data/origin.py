"""Whether the files that data were prepared from are still the same.

Prepared data are found again by their settings alone; a table that was mended since, or
a patient who was added, would go unseen.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from medjax.errors import InputError

TABLES = (".csv", ".txt", ".json", ".gz")  # Where labels and splits are.


def of_tables(folder: Path) -> dict[str, str]:
    """Name -> digest of a folder's own tables; of the images below it nothing."""
    files = sorted(path for path in Path(folder).expanduser().glob("*"))
    return {
        path.name: _digest(path)
        for path in files
        if path.is_file() and path.suffix in TABLES
    }


def of_files(folder: Path, paths: Iterable[Path], seen: Path) -> dict[str, str]:
    """Name below the folder -> digest; of a folder all its files.

    Args:
      folder: that all of them lie in.
      paths: files and folders.
      seen: a file of the sizes and times that the digests belong to, which is kept up
        to date: what still has them isn't read again, and a copy isn't a change.
    """
    known = json.loads(seen.read_text()) if seen.exists() else {}
    found = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                about = file.stat()
                stamp = [about.st_size, about.st_mtime_ns]
                name = str(file.relative_to(folder))
                *then, digest = known.get(name, [""])
                found[name] = [*stamp, digest if stamp == then else _digest(file)]
    if found != known:
        partial = seen.with_name(f"{seen.name}.partial-{os.getpid()}")
        partial.write_text(json.dumps(found, indent=1))
        partial.rename(seen)
    return {name: digest for name, (*_, digest) in found.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hold(prepared: Path, now: dict[str, str]) -> None:
    """Writes down what data were prepared from, or finds the same there.

    Args:
      prepared: the folder of the prepared data.
      now: of `of_tables` or `of_files`; nothing where the files are elsewhere, as on
        a machine that has the prepared data alone.

    Raises:
      InputError: a file was added, removed or changed.
    """
    path = prepared / "source.json"
    if not now:
        return
    if not path.exists():
        path.write_text(json.dumps(now, indent=1))
        return
    then = json.loads(path.read_text())
    changed = [
        name for name in sorted({*then, *now}) if then.get(name) != now.get(name)
    ]
    if changed:
        name = changed[0]
        what = "is new" if name not in then else "is gone" if name not in now else ""
        raise InputError(
            f"{name} {what or 'has changed'} since the data were prepared"
            f"{f', and {len(changed) - 1} files more' if changed[1:] else ''}: remove "
            f"{prepared} to prepare them again, or name another folder in data.records"
        )
