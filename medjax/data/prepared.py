"""Prepared data: files are read, checked and resized once, and every run reads the result.

A prepared folder appears whole or not at all, and holds

    table.csv       one row an image or scan, in the order of the ids
    quarantine.csv  which files were left out, and why
    source.json     digests of the files that the data were made from
    alignments.csv  how alike sequences of several files are, where there are some

Images add the files that records.py lists, scans those of volumes.py. The table is all
that splitting, weighting and evaluation read. That of images has COLUMNS, and one
a finding or class: 1 present, 0 absent, between them a soft label, NaN unknown.
"""

import collections
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.data.alignment import Alignment
from medjax.errors import InputError, some
from medjax.files import (
    digest,
    escaped,
    held,
    naming,
    read_json,
    write_json,
    write_table,
    write_text,
)

# The columns of images; unknown is '' or NaN.
COLUMNS = (
    "id",  # int, the image's number, 0 to N - 1.
    "image",  # str, its name in its data set's own table.
    "patient",  # int or str, whom it shows, the unit of every split.
    "view",  # 'PA', 'AP' or 'LATERAL'.
    "sex",  # 'F' or 'M'.
    "age",  # float, years.
    "width",  # int, pixels of the original, as is the height.
    "height",
    "spacing_x",  # float, mm a pixel of the original, as is the next one.
    "spacing_y",
    "official",  # 'train', 'validation' or 'test' where the data set says so.
    "follow_up",  # float, its number in the patient's history, 0 first.
)
TEXT = ("image", "patient", "view", "sex", "official")
log = logging.getLogger("medjax")


class Item(NamedTuple):
    """One image or scan on its way into the store, or the reason why it is left out."""

    row: dict[str, Any]  # The table's columns but the id; or 'image', if left out.
    # Pixels of the source's shape and bits, or scan.Scan; None leaves the item out.
    content: Any
    boxes: Sequence[tuple] = ()  # (finding, x0, y0, x1, y1), in pixels of the image.
    reason: str = ""  # Why the item is left out.
    alignments: Sequence[Any] = ()  # alignment.Alignment of its sequences.


def write(
    items: Iterable[Item],
    folder: Path,
    *,
    columns: Sequence[str],
    store: Callable[[Path], contextlib.AbstractContextManager],
    unit: str,
    files: Mapping[str, Path] = {},
    max_quarantined: float = 0.0,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes a prepared folder: its table, its quarantine and what `store` adds.

    Args:
      store: opens the writer of a folder: (id, item) -> the item's row of the table.
      unit: what an item is, in the plural.
      files: what the items are made of, see `check_source`.
      max_quarantined: share of the items that may be left out, in [0, 1].
      progress: called once an item.

    Raises:
      InputError: the folder exists, nothing can be used, or too many items are left
        out. The list of those is then kept outside of the folder.
    """
    if folder.exists() and not is_prepared(folder):
        raise InputError(f"{folder}: exists; remove it to prepare the data again")
    partial = folder.with_name(f"{folder.name}.partial")
    with (
        naming(folder),
        held(folder.parent, wait="prepares data in it"),
        contextlib.ExitStack() as stack,
    ):
        if folder.exists():  # Another process has prepared it meanwhile.
            return
        shutil.rmtree(partial, ignore_errors=True)  # Of a process that was killed.
        partial.mkdir(parents=True)
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        rows, left_out, aligned = [], [], []
        made_of = digests(files, partial / "seen.json")
        write_json(partial / "source.json", made_of)
        with store(partial) as add:
            for item in items:
                if item.content is None:
                    left_out.append((escaped(item.row["image"]), escaped(item.reason)))
                else:
                    row = add(len(rows), item)
                    rows.append([row[name] for name in columns])
                    aligned += [(row["image"], *each) for each in item.alignments]
                del item  # The next one is read into its place.
                progress()
        quarantine = pd.DataFrame(left_out, columns=["file", "reason"])
        write_table(partial / "quarantine.csv", quarantine)
        total = len(rows) + len(left_out)
        share = len(left_out) / max(total, 1)
        if not rows or share > max_quarantined:
            kept = folder.with_name(f"{folder.name}-quarantine.csv")
            write_table(kept, quarantine)
            raise InputError(
                f"{len(left_out)} of {total} {unit} can't be used "
                f"({share:.1%}, data.max_quarantined allows {max_quarantined:.1%}); "
                f"the first: {left_out[0][1]}; see {kept}, then correct the files or "
                "raise data.max_quarantined"
            )
        if aligned:
            named = pd.DataFrame(aligned, columns=["image", *Alignment._fields])
            write_table(partial / "alignments.csv", named, float_format="%.4f")
        table = pd.DataFrame(rows, columns=list(columns))
        # 9 digits are what float32 can tell apart.
        write_table(partial / "table.csv", table, float_format="%.9g")
        partial.rename(folder)


def is_prepared(folder: Path) -> bool:
    """Whether that folder was prepared."""
    return (folder / "table.csv").is_file()


def read_table(folder: Path) -> pd.DataFrame:
    """Reads table.csv; empty text is '', an empty number NaN."""
    table = pd.read_csv(
        folder / "table.csv",
        dtype=dict.fromkeys(TEXT, str),
        keep_default_na=False,  # An image may be called 'NA'.
        na_values=[""],
    )
    text = [name for name in TEXT if name in table]
    table[text] = table[text].fillna("")
    return table.assign(patient=identity.column(table["patient"]))


def damaged(path: Path) -> InputError:
    """The error for a file of a prepared folder that is gone, or not as it was."""
    return InputError(
        f"{path}: is damaged or gone: remove its folder to prepare the data again"
    )


def mapped(path: Path) -> np.ndarray:
    """The array of a prepared folder's .npy file, read where it is touched."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise damaged(path) from None


def left_out(folder: Path) -> int:
    """How many files or patients are in quarantine.csv."""
    return len(read_list(folder / "quarantine.csv"))


def read_list(path: Path) -> pd.DataFrame:
    """A table beside the records, of what was left out or occurs twice."""
    try:
        return pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError):
        raise damaged(path) from None


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    counts = collections.Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)


def once(files: Sequence[Any], paths: Callable[[Any], Iterable[Path]]) -> list[Any]:
    """The files without those whose real paths came before; a warning names these."""
    first: dict[tuple[Path, ...], Any] = {}
    twice = []
    for file in files:
        real = tuple(path.resolve() for path in paths(file))
        if first.setdefault(real, file) is not file:
            twice.append(real[0].name)
    if twice:
        log.warning("given more than once, and read once: %s", some(twice))
    return [*first.values()]


def cores() -> int:
    """The number of CPU cores that this process may use, as SLURM or taskset say."""
    if hasattr(os, "sched_getaffinity"):  # Of Linux.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Maps over threads, in order, with a bounded number of results waiting.

    Decoding and resizing release the interpreter's lock, so threads use all cores.
    """
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# Checks that the source files haven't changed: prepared data are found by their settings
# alone, so a label or a picture that was corrected later would be missed.

TABLE_SUFFIXES = (".csv", ".csv.gz", ".txt", ".json")  # Files of labels and splits.


def digests(files: Mapping[str, Path], cache: Path) -> dict[str, str]:
    """Name -> digest of the files that exist; of a folder, each file below it.

    A file is read again only where the cache has another size or time of it.
    """
    stamps, paths = {}, {}
    for name, path in _flat(files):
        # ValueError: a table may hold a name that none can have.
        with contextlib.suppress(OSError, ValueError):
            stat = os.stat(path)
            stamps[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            paths[name] = path
    before = {}
    with contextlib.suppress(OSError, ValueError):  # It is a cache, and may be damaged.
        before = json.loads(cache.read_text())
    same = {k for k, stamp in stamps.items() if before.get(k, [""])[:-1] == stamp}
    values = {name: before[name][-1] for name in same}
    changed = [name for name in stamps if name not in same]
    read = in_parallel(lambda name: digest(paths[name]), changed)
    values |= zip(changed, read, strict=True)
    after = {name: [*stamp, values[name]] for name, stamp in stamps.items()}
    if after != before:
        with contextlib.suppress(OSError):  # The records may be read-only.
            write_text(cache, json.dumps(after))
    return {name: values[name] for name in stamps}


def _flat(files: Mapping[str, Path]) -> Iterator[tuple[str, str | Path]]:
    """Each file, and instead of a folder the files below it."""
    for name, path in files.items():
        if not os.path.isdir(path):
            yield name, path
            continue
        for folder, below, names in os.walk(path):
            below.sort()
            for file in sorted(names):
                whole = os.path.join(folder, file)
                yield f"{name}/{os.path.relpath(whole, path)}", whole


def check_source(folder: Path, files: Mapping[str, Path]) -> None:
    """Refuses files that aren't those of source.json, from which the data were made.

    The folder's seen.json caches digests. Without files, as on a machine that has the
    prepared data alone, nothing is checked; of tables without their pictures only the
    tables are.
    """
    now = digests(files, folder / "seen.json")
    path = folder / "source.json"
    before = read_json(path) if path.exists() else {}
    changed = [name for name in now if now[name] != before.get(name)]
    if not all(name.lower().endswith(TABLE_SUFFIXES) for name in now):
        changed += [name for name in before if name not in now]
    if changed:
        name = changed[0]
        change = "has changed" if name in now else "is gone"
        change = change if name in before else "is new"
        more = f", and {len(changed) - 1} files more" if changed[1:] else ""
        raise InputError(
            f"{name} {change} since the data were prepared{more}: remove {folder} to "
            "prepare them again, or name another folder in data.records"
        )
