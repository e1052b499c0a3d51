"""Images with a table: any CSV file, and how all layouts with a table make records."""

import contextlib
import logging
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.data import image_files, prepared, records
from medjax.data.dicom import Film
from medjax.data.prepared import Item
from medjax.data.records import Source
from medjax.data.sources import cells
from medjax.errors import InputError, check_choice

CHANNELS = (1, 3)  # Grey and colour.
log = logging.getLogger("medjax")


def existing(folder: Path) -> Path:
    """The folder, or an error that names the config's field."""
    path = Path(folder).expanduser()
    if not os.fspath(folder) or not path.is_dir():
        raise InputError(f"data.folder={str(folder)!r} is no folder: set data.folder")
    return path


def source(
    table: pd.DataFrame,
    read: Callable[[str], Film],
    *,
    shape: tuple[int, ...],
    bits: int,
    **rest: Any,
) -> Source:
    """The images of a table, resized once to the `shape` (S, S, C), C = 1 or 3.

    `read` reads the image of a name; one that raises an InputError is left out. The
    others are of `from_rows`.
    """
    check_choice("data.bits", bits, (8, 16))
    doubts: dict[str, list[str]] = {}

    def load(image: str) -> tuple[np.ndarray, tuple, list[str]]:
        film = read(image)
        if film.doubt:
            doubts.setdefault(film.doubt, []).append(image)
        height, width = film.pixels.shape[:2]
        fitted = image_files.fit(film.pixels, shape, bits)
        return fitted, (width, height, *film.spacing), [film.patient]

    def items() -> Iterator[Item]:
        yield from made.items()
        for doubt, names in doubts.items():
            log.warning(
                "%d films, %s for one, are %s: look whether bone is white in them",
                *(len(names), min(names), doubt),
            )

    made = from_rows(table, load, shape=shape, bits=bits, **rest)
    return made._replace(items=items)


def from_rows(
    table: pd.DataFrame,
    load: Callable[[str], tuple],
    *,
    tasks: tuple[str, ...],
    shape: tuple[int, ...],
    where: Path,
    bits: int,
    boxes: Mapping[str, Sequence[tuple]] = {},
    frame: tuple[int, int] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
) -> Source:
    """The images of a table, in its order.

    Args:
      table: one row an image, with the columns of prepared.py but the id; those of
        cells.FROM_FILE are taken from the image where they are NaN.
      load: a name -> its record, the values of cells.FROM_FILE, the PatientIDs of its
        DICOM files, see identity.warn_of_headers, and the alignments of its sequences;
        one that raises an InputError is left out.
      boxes: image -> (finding, x0, y0, x1, y1), in pixels of `frame`.
      frame: width and height; None: those of each image's file.
      left_out: (file, reason) of files for quarantine that are in no row.
    """
    records.check_tasks(tasks)
    if (image := prepared.first_duplicate(table["image"])) is not None:
        raise InputError(f"{where}: the table lists {image} twice: keep one row")
    for image, marked in boxes.items():
        for task, x0, y0, x1, y1 in marked:
            if not (x0 < x1 and y0 < y1):  # NaN is wrong, too.
                raise InputError(
                    f"{where}: a box of {task} in {image} goes from {x0:g}, {y0:g} to "
                    f"{x1:g}, {y1:g}: correct it in the list of boxes, or remove it"
                )

    people: list[tuple[str, int | str]] = []

    def item(row: dict) -> Item:
        try:
            content, from_file, ids, *aligned = load(row["image"])
        except InputError as error:
            return Item(row, None, reason=str(error))
        people.extend((id, row["patient"]) for id in ids)
        file = dict(zip(cells.FROM_FILE, from_file, strict=True))
        # The table's values count first: the files may be resized copies.
        file = {k: v if math.isnan(row[k]) else row[k] for k, v in file.items()}
        file |= {k: int(file[k]) for k in ("width", "height")}
        scale = np.tile(np.divide(shape[0], frame or from_file[:2]), 2)
        marks = [
            (task, *(scale * box).tolist())
            for task, *box in boxes.get(row["image"], ())
        ]
        return Item({**row, **file}, content, marks, alignments=aligned)

    def items() -> Iterator[Item]:
        values = table.itertuples(index=False, name=None)
        rows = (dict(zip(table.columns, row, strict=True)) for row in values)
        yield from prepared.in_parallel(item, rows)
        identity.warn_of_headers(people)
        identity.warn_of_names(zip(table["image"], table["patient"], strict=True))
        for file, reason in left_out:
            yield Item({"image": file}, None, reason=reason)

    total = len(table) and len(table) + len(left_out)
    return Source(tuple(tasks), tuple(shape), total, items, bits)


def table(
    *, folder: Path, side: int, channels: int = 1, bits: int = 8, **columns: Any
) -> Source:
    """A folder of images and a CSV file with one row an image; `columns`: of `listed`."""
    check_choice("data.channels", channels, CHANNELS)
    rows, names, files, path = listed(folder, **columns)
    there = Path(folder).expanduser()
    warn_of_unlisted(path, lambda: image_files.image_paths(there)[0], files.values())
    return source(
        rows,
        lambda image: image_files.read(files[image]),
        tasks=names,
        shape=(side, side, channels),
        where=path,
        bits=bits,
    )


def listed(
    folder: Path,
    *,
    table: str = "labels.csv",
    image: str = "image",
    patient: str = "patient",
    labels: Sequence[str] = (),
    classes: str = "",
    view: str = "",
    sex: str = "",
    age: str = "",
    follow_up: str = "",
    official: str = "",
) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, str], Path]:
    """Reads a table of images: its rows, tasks, image -> its file, and the table's path.

    Exactly one of `labels` and `classes` is given.

    Args:
      labels: columns of 0 (absent), 1 (present), a soft label between or blank
        (unknown).
      classes: one column of class names, blank where unknown. Classes become tasks in
        the order of their sorted names.
      image: the column of the paths below the folder.
    """
    if bool(labels) == bool(classes):
        raise InputError(
            "data.labels and data.classes: give one of them, the columns of findings "
            "or the column of an image's one class"
        )
    if not patient:
        raise InputError(
            "data.patient='': name the column of patients; without it the same patient "
            "may be in training and test"
        )
    folder = existing(folder)
    path = folder / Path(table).expanduser()
    raw = cells.read_csv(path)
    columns = {"image": image, "patient": patient}
    others = zip(cells.OPTIONAL, (view, sex, age, follow_up, official), strict=True)
    columns |= {name: column for name, column in others if column}
    cells.warn_of_unread({*raw} - {*labels, classes}, columns, path)
    rows = cells.metadata(cells.select(raw, columns, path), path)
    for name, column in columns.items():
        if len(rows) and (rows[name].isna() | (rows[name] == "")).all():
            raise InputError(
                f"{path}: data.{name}={column!r}: no row says it: correct the column, or "
                f"set data.{name}=''"
            )
    if classes:
        text = cells.select(raw, {"class": classes}, path)["class"].str.strip()
        names = sorted(set(text) - {""})
        if missing := [name for name in names if name.casefold() in cells.UNKNOWN]:
            raise InputError(
                f"{path}: {classes} is {missing[0]!r} in some rows: leave it blank where "
                "it is unknown, or rename the class"
            )
        identity.refuse_spellings(names, f"{path}: classes")
        targets = cells.one_hot(pd.Index(names).get_indexer(text), names, path)
    else:
        identity.refuse_spellings(labels, f"{path}: data.labels")
        text = cells.select(raw, {name: name for name in labels}, path)
        text = text.assign(image=rows["image"])  # For a message about a strange cell.
        values = [cells.numbers(text, name, path).to_numpy(float) for name in labels]
        targets = cells.findings(np.stack(values, axis=1), labels, rows["image"], path)
        cells.warn_of_none(raw, labels, rows["image"], path)
    files = _files(folder, rows["image"], path)
    return pd.concat([rows, targets], axis=1), tuple(targets), files, path


def beside(folder: Path, where: Path, images: pd.Series, column: str) -> dict[str, str]:
    """Image -> the file that a column names beside it, such as its mask, if it does."""
    names = cells.select(cells.read_csv(where), {column: column}, where)[
        column
    ].str.strip()
    named = names != ""
    if (twice := prepared.first_duplicate(names[named])) is not None:
        raise InputError(f"{where}: {column} names {twice} twice: correct one of them")
    files = _files(existing(folder), names[named], where)
    return dict(zip(images[named], map(files.get, names[named]), strict=True))


def warn_of_unlisted(
    where: Path, find: Callable[[], Iterable[Path]], listed: Iterable[str | Path]
) -> None:
    """Names an image that `find` finds and no row lists: nobody would miss it."""
    with contextlib.suppress(InputError):  # What can't be read may not be of the data.
        rows = {*map(os.path.realpath, listed)}
        rest = [path for path in find() if os.path.realpath(path) not in rows]
        if rest:
            log.warning(
                "%s: has no row of %d images of the folder, %s for one: they are left out",
                *(where, len(rest), min(rest)),
            )


def files(
    *, folder: Path, table: str, image: str, mask: str = "", **_
) -> dict[str, Path]:
    """The table and the images and masks that it lists, see `sources.FILES_OF`."""
    folder = Path(folder).expanduser()
    path = folder / Path(table).expanduser()
    if not path.is_file():
        return {}
    columns = {name: name for name in (image, mask) if name}
    listed = cells.select(cells.read_csv(path), columns, path).melt()["value"]
    names = listed[listed.str.strip() != ""]
    return {table: path} | {name: os.path.join(folder, name) for name in names}


def _files(folder: Path, images: pd.Series, where: Path) -> dict[str, str]:
    """Image -> its file, which must lie below the folder and have one row.

    A table is not trusted: a path or a link in it might lead to any file of this
    machine.
    """
    root = os.path.realpath(folder)
    files = {}
    for image in images:
        path = PurePosixPath(image)
        plain = "\0" not in image and not path.is_absolute() and ".." not in path.parts
        real = os.path.realpath(folder / image) if plain else ""
        if not real.startswith(root + os.sep):
            raise InputError(
                f"{where}: the image {image!r} is no file below {folder}: give paths "
                "within it, without '..' or a link that leads out"
            )
        files[image] = real
    if (twice := prepared.first_duplicate(files.values())) is not None:
        names = " and ".join(name for name, file in files.items() if file == twice)
        raise InputError(f"{where}: {names} are the same file: keep one row")
    if files and not any(map(os.path.exists, files.values())):
        path = folder / next(iter(files))
        near = (
            p for p in path.parent.glob("*") if _folded(p.stem) == _folded(path.stem)
        )
        hint = f", but {p.name!a} is" if (p := next(near, None)) else ""
        hint = ", as its path is written with \\" if "\\" in path.name else hint
        raise InputError(
            f"{where}: no image of the table is there: {path} isn't{hint}: correct its "
            f"paths, or data.folder"
        )
    return files


def _folded(name: str) -> str:
    """A file's name in one case and one Unicode form: macOS writes an accent apart."""
    return unicodedata.normalize("NFKC", name).casefold()
