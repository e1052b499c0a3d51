"""Images with a table: any CSV file, and what all layouts with a table share.

A table's cells become the columns that prepared.py lists, or one clear error; `where`
is the data set that the error names.
"""

import csv
import gzip
import logging
import math
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.data import images, prepared
from medjax.data.dicom import Film
from medjax.data.prepared import Item, Source
from medjax.errors import InputError, check_choice

FROM_FILE = ["width", "height", "spacing_x", "spacing_y"]  # Where the table is blank.
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL"}
SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
OFFICIAL = ("train", "validation", "test", "")
OPTIONAL = ("view", "sex", "age", "follow_up", "official")
OLDEST = 120  # Years.
CHANNELS = (1, 3)  # Grey and colour.
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")  # As programs write a blank.
NOBODY = (*MISSING, "none", "unknown", "-", "?", "#ref!", "#value!")
CORRECT = "correct it, or leave it blank where unknown"
ROUNDED = r"\d(\.\d+)?[eE]\+\d+"
log = logging.getLogger("medjax")


def existing(folder: Path) -> Path:
    """The folder, or an error that names the config's field."""
    path = Path(folder).expanduser()
    if not os.fspath(folder) or not path.is_dir():
        raise InputError(f"data.folder={str(folder)!r} is no folder: set data.folder")
    return path


def only(folder: Path, pattern: str, *, needed: bool = True) -> Path | None:
    """The one table of that name, or gzipped; a backup has another suffix."""
    paths = [*sorted(folder.glob(pattern)), *sorted(folder.glob(f"{pattern}.gz"))]
    if len(paths) > 1:
        raise InputError(
            f"{folder}: holds {paths[0].name} and {paths[1].name}: keep one of them"
        )
    if needed and not paths:
        raise InputError(f"{folder}: no {pattern}: is this the data set's folder?")
    return paths[0] if paths else None


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Every cell as text; a blank one is ''. Rows are as long as the header."""
    opened = gzip.open if Path(path).suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(row)]
        if not rows:
            raise csv.Error("it is empty")
        if any("\0" in name for name in rows[0][1]):
            raise UnicodeError
    except UnicodeError:
        raise InputError(f"{path}: isn't UTF-8: save it as 'CSV UTF-8'") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: is no CSV ({why}): correct it") from None
    _, header = rows.pop(0)
    if len(header) == 1:
        for sign in ",;\t|":
            if sign in header[0] and sign != separator:
                raise InputError(
                    f"{path}: its fields are separated by {sign!r}: separate them by "
                    f"{separator!r}"
                )
    names = [*header]
    while len(names) > 1 and not names[-1]:  # Commas at the ends of all lines.
        names.pop()
    if len({*names}) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: has two columns {name!r}: rename or remove one")
    for line, row in rows:
        if not len(names) <= len(row) <= len(header) or any(row[len(names) :]):
            raise InputError(
                f"{path}: the row that ends in line {line} has {len(row)} fields, the "
                f"header {len(names)}: correct that row, or the header"
            )
    cells = [row[: len(names)] for _, row in rows]
    return pd.DataFrame(cells, columns=names, dtype=str)


def select(table: pd.DataFrame, columns: dict[str, str], where: Path) -> pd.DataFrame:
    """The columns {new name: old name}, renamed."""
    missing = [old for old in columns.values() if old not in table]
    if missing:
        raise InputError(
            f"{where}: the table has no column {missing[0]!r}, only "
            f"{', '.join(table)}: correct the name"
        )
    return pd.DataFrame({new: table[old] for new, old in columns.items()})


def numbers(table: pd.DataFrame, name: str, where: Path) -> pd.Series:
    """A column of text as numbers; blank is NaN."""
    column = pd.to_numeric(table[name], errors="coerce")
    strange = column.isna() & (table[name].str.strip() != "")
    refuse(strange, table[name], table["image"], where, f"no number: {CORRECT}")
    return column


def refuse(
    strange: pd.Series, cells: pd.Series, images: pd.Series, where: object, why: str
) -> None:
    """Raises an InputError of the first of the cells [N] that is strange."""
    if strange.any():
        image, cell = images[strange].iloc[0], cells[strange].iloc[0]
        raise InputError(f"{where}: the {cells.name} of {image} is {cell!r}, {why}")


def source(
    table: pd.DataFrame,
    read: Callable[[str], Film],
    *,
    shape: tuple[int, ...],
    bits: int,
    **rest: Any,
) -> Source:
    """The images of a table, resized once.

    Args:
      read: reads the image of a name; one that raises an InputError is left out.
      shape, bits: of the records, (S, S, C) with C = 1 or 3, and 8 or 16.
      table, rest: see `from_rows`.
    """
    check_choice("data.bits", bits, (8, 16))

    def load(image: str) -> tuple[np.ndarray, tuple, list[str]]:
        film = read(image)
        height, width = film.pixels.shape[:2]
        fitted = images.fit(film.pixels, shape, bits)
        return fitted, (width, height, *film.spacing), [film.patient]

    return from_rows(table, load, shape=shape, bits=bits, **rest)


def from_rows(
    table: pd.DataFrame,
    load: Callable[[str], tuple[np.ndarray, tuple, list[str]]],
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
        FROM_FILE are taken from the image where they are NaN.
      load: a name -> its record, the values of FROM_FILE and the PatientIDs of its
        DICOM files, see identity.warn_of_headers; one that raises an InputError is
        left out.
      tasks: names of the findings or classes.
      shape, bits: of the records.
      boxes: image -> (finding, x0, y0, x1, y1), in pixels of `frame`.
      frame: width and height; None: those of each image's file.
      left_out: (file, reason) of files for quarantine that are in no row.
    """
    prepared.check_tasks(tasks)
    if (image := prepared.first_duplicate(table["image"])) is not None:
        raise InputError(f"{where}: the table lists {image} twice: keep one row")

    people: list[tuple[str, int | str]] = []

    def item(row: dict) -> Item:
        try:
            content, from_file, ids = load(row["image"])
        except InputError as error:
            return Item(row, None, reason=str(error))
        people.extend((id, row["patient"]) for id in ids)
        file = dict(zip(FROM_FILE, from_file, strict=True))
        # The table's values count first: the files may be resized copies.
        file = {k: v if math.isnan(row[k]) else row[k] for k, v in file.items()}
        file |= {k: int(file[k]) for k in ("width", "height")}
        scale = np.tile(np.divide(shape[0], frame or from_file[:2]), 2)
        marks = [
            (task, *(scale * box).tolist())
            for task, *box in boxes.get(row["image"], ())
        ]
        return Item({**row, **file}, content, marks)

    def items() -> Iterator[Item]:
        cells = table.itertuples(index=False, name=None)
        rows = (dict(zip(table.columns, row, strict=True)) for row in cells)
        yield from prepared.in_parallel(item, rows)
        identity.warn_of_headers(people)
        for file, reason in left_out:
            yield Item({"image": file}, None, reason=reason)

    total = len(table) and len(table) + len(left_out)
    return Source(tuple(tasks), tuple(shape), total, items, bits)


def metadata(text: pd.DataFrame, where: object) -> pd.DataFrame:
    """The columns that are no label, of N rows of text; blank is unknown.

    The text has `image`, `patient` and any of OPTIONAL and FROM_FILE. Patients are
    integers where all of them are printed so, else text. A view or sex that prepared.py
    doesn't list is unknown.
    """
    absent = {*OPTIONAL, *FROM_FILE} - {*text}
    text = text.assign(**dict.fromkeys(absent, ""))
    columns = text.apply(lambda column: column.str.strip()).assign(image=text["image"])
    table = columns[["image", "official"]].copy()
    table["patient"] = _patients(columns, where)
    table["view"] = meaning(columns["view"], VIEWS, where)
    table["sex"] = meaning(columns["sex"], SEXES, where)
    for name in ("age", "follow_up", *FROM_FILE):
        table[name] = numbers(columns, name, where)
    strange = ~table["age"].between(0, OLDEST) & table["age"].notna()
    why = f"not from 0 to {OLDEST} years: {CORRECT}"
    refuse(strange, columns["age"], table["image"], where, why)
    official = table["official"].rename("official split")
    why = "none of 'train', 'validation', 'test' and blank: correct it"
    refuse(~official.isin(OFFICIAL), official, table["image"], where, why)
    return table


def meaning(cells: pd.Series, meanings: dict[str, str], where: object) -> pd.Series:
    """[N], what each cell means, in any case; '' for others, which a warning counts."""
    values = cells.str.upper().map(meanings).fillna("")
    strange = cells[(values == "") & ~cells.str.lower().isin(("", *MISSING))]
    if len(strange):
        log.warning(
            "%s: the %s of %d rows counts as unknown: %r, say, is none of %s",
            *(where, cells.name, len(strange), strange.iloc[0], ", ".join(meanings)),
        )
    return values


def _patients(table: pd.DataFrame, where: object) -> pd.Series:
    """[N] the patients' own ids, text or integers."""
    names = table["patient"]
    if (names == "").any():
        image = table["image"][names == ""].iloc[0]
        raise InputError(f"{where}: {image} has no patient: correct the table")
    wrong = names.str.casefold().isin(NOBODY) | names.str.fullmatch(ROUNDED)
    why = "which may be several people, as a missing or rounded id is: give each an id"
    refuse(wrong, names, table["image"], where, why)
    if names.str.fullmatch(r"\d+(\.0+)?").all():  # Spreadsheets write 7 as 7.0.
        names = names.str.replace(r"\.0+$", "", regex=True)
    identity.refuse_spellings(names, f"{where}: patients")
    return identity.column(names)


def findings(
    values: np.ndarray, names: Sequence[str], images: pd.Series, where: object
) -> pd.DataFrame:
    """A column a finding, of [N, T] in [0, 1]; NaN is unknown.

    `images` [N] are their names, for messages.
    """
    strange = ~np.isnan(values) & ~((values >= 0) & (values <= 1))
    if strange.any():
        row, task = np.argwhere(strange)[0]
        raise InputError(
            f"{where}: {names[task]} of {images.iloc[row]} is {values[row, task]:g}, "
            "not from 0 (absent) to 1 (present): correct it"
        )
    return pd.DataFrame(values.astype(float), columns=list(names), index=images.index)


def one_hot(index: np.ndarray, names: Sequence[str], where: object) -> pd.DataFrame:
    """A column a class, of [N], the number of an image's one class; -1 is unknown."""
    if len(names) < 2:
        raise InputError(
            f"{where}: {len(names)} class(es): a classifier needs two or more"
        )
    label = np.eye(len(names))[index]
    label[index < 0] = math.nan
    return pd.DataFrame(label, columns=list(names))


def table(
    *, folder: Path, side: int, channels: int = 1, bits: int = 8, **columns: Any
) -> Source:
    """A folder of images and a CSV file with one row an image.

    Args:
      side: S, pixels.
      channels: 1, grey, or 3, colour.
      bits: of a pixel of the records, 8 or 16.
      columns: of `listed`.
    """
    check_choice("data.channels", channels, CHANNELS)
    rows, names, files, path = listed(folder, **columns)
    return source(
        rows,
        lambda image: images.read(files[image]),
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
      table: the CSV file, below the folder or anywhere.
      labels: columns of 0 (absent), 1 (present), a soft label between or blank
        (unknown); an image may have several findings.
      classes: one column of class names, blank where unknown; an image has exactly
        one. Classes become tasks in the order of their sorted names.
      image: the column of the paths below the folder.
      patient, view, sex, age, follow_up, official: names of their columns, '' for none.
        The sex may be 'female' or 'male', too.
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
    raw = read_csv(path)
    columns = {"image": image, "patient": patient}
    others = zip(OPTIONAL, (view, sex, age, follow_up, official), strict=True)
    columns |= {name: column for name, column in others if column}
    rows = metadata(select(raw, columns, path), path)
    if classes:
        text = select(raw, {"class": classes}, path)["class"].str.strip()
        names = sorted(set(text) - {""})
        if missing := [name for name in names if name.casefold() in MISSING]:
            raise InputError(
                f"{path}: {classes} is {missing[0]!r} in some rows: leave it blank where "
                "it is unknown, or rename the class"
            )
        identity.refuse_spellings(names, f"{path}: classes")
        targets = one_hot(pd.Index(names).get_indexer(text), names, path)
    else:
        text = select(raw, {name: name for name in labels}, path)
        text = text.assign(image=rows["image"])  # For a message about a strange cell.
        values = [numbers(text, name, path).to_numpy(float) for name in labels]
        targets = findings(np.stack(values, axis=1), labels, rows["image"], path)
    files = _files(folder, rows["image"], path)
    return pd.concat([rows, targets], axis=1), tuple(targets), files, path


def beside(folder: Path, where: Path, images: pd.Series, column: str) -> dict[str, str]:
    """Image -> the file that a column names beside it, such as its mask, if it does."""
    names = select(read_csv(where), {column: column}, where)[column].str.strip()
    named = names != ""
    files = _files(existing(folder), names[named], where)
    return dict(zip(images[named], map(files.get, names[named]), strict=True))


def files(
    *, folder: Path, table: str, image: str, mask: str = "", **_
) -> dict[str, Path]:
    """The table and the images and masks that it lists, see `sources.FILES`."""
    folder = Path(folder).expanduser()
    path = folder / Path(table).expanduser()
    if not path.is_file():
        return {}
    columns = {name: name for name in (image, mask) if name}
    listed = select(read_csv(path), columns, path).melt()["value"]
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
