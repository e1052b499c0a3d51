"""Images with a table: any CSV file, and what all layouts with a table share.

A table's cells become the columns that prepared.py lists, or one clear error; `where`
is the data set that the error names.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medjax.data import images, prepared
from medjax.data.prepared import Item, Source
from medjax.errors import InputError

FROM_FILE = ["width", "height", "spacing_x", "spacing_y"]  # Where the table is blank.
VIEWS = ("PA", "AP", "LATERAL")
SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
OFFICIAL = ("train", "validation", "test", "")
OPTIONAL = ("view", "sex", "age", "follow_up", "official")
LARGEST = 2**31 - 1  # A batch holds patients as int32.


def existing(folder: Path) -> Path:
    """The folder, or an error that names the config's field."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.folder={str(folder)!r} is no folder: set data.folder")
    return folder


def newest(folder: Path, pattern: str) -> Path:
    """The newest table of that name: the last in alphabetical order."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise InputError(f"{folder}: no {pattern}: is this the data set's folder?")
    return paths[-1]


def read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text; a blank one is ''."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: is no CSV ({why}): fetch it again") from None


def select(table: pd.DataFrame, columns: dict[str, str], where: Path) -> pd.DataFrame:
    """The columns {new name: old name}, renamed."""
    missing = [old for old in columns.values() if old not in table]
    if missing:
        raise InputError(
            f"{where}: the table has no column {missing[0]!r}, only "
            f"{', '.join(table)}: fetch it again, or correct the name"
        )
    return pd.DataFrame({new: table[old] for new, old in columns.items()})


def numbers(table: pd.DataFrame, name: str, where: Path) -> pd.Series:
    """A column of text as numbers; blank is NaN."""
    column = pd.to_numeric(table[name], errors="coerce")
    strange = column.isna() & (table[name].str.strip() != "")
    if strange.any():
        text, image = table.loc[strange, [name, "image"]].iloc[0]
        raise InputError(
            f"{where}: the {name} of {image} is {text!r}, no number: correct the table"
        )
    return column


def only(column: pd.Series, values: Sequence[str]) -> pd.Series:
    """The column with '' for every other value."""
    return column.where(column.isin(list(values)), "")


def source(
    table: pd.DataFrame,
    load: Callable[[dict], Item],
    *,
    tasks: tuple[str, ...],
    shape: tuple[int, ...],
    where: Path,
    left_out: Sequence[tuple[str, str]] = (),
) -> Source:
    """The images of a table, in its order.

    Args:
      table: one row an image, with the columns of prepared.py but the id.
      load: makes a row an item.
      tasks: names of the findings or classes.
      shape: of the images.
      left_out: (file, reason) of files for quarantine that are in no row.
    """
    prepared.check_tasks(tasks)
    if (image := prepared.first_duplicate(table["image"])) is not None:
        raise InputError(f"{where}: the table lists {image} twice: keep one row")

    def items() -> Iterator[Item]:
        cells = table.itertuples(index=False, name=None)
        rows = (dict(zip(table.columns, row, strict=True)) for row in cells)
        yield from prepared.in_parallel(load, rows)
        for file, reason in left_out:
            yield Item({"image": file}, None, reason=reason)

    total = len(table) and len(table) + len(left_out)
    return Source(tuple(tasks), tuple(shape), total, items)


def load(
    row: dict, path: Path, shape: tuple[int, ...], boxes: Sequence[tuple] = ()
) -> Item:
    """Reads and resizes one image; one that can't be read is left out with the reason.

    Args:
      row: of the table; NaN where the file's own value is to be taken.
      path: of the file.
      shape: (S, S, C) of the image, C = 1 or 3.
      boxes: (finding, x0, y0, x1, y1), in pixels of the S x S image.
    """
    try:
        film, image = images.load(path, shape)
    except InputError as error:
        return Item(row, None, reason=str(error))
    height, width = film.pixels.shape[:2]
    file = dict(zip(FROM_FILE, (width, height, *film.spacing), strict=True))
    # The table's values count first: the files may be resized copies.
    file = {k: v if math.isnan(row[k]) else row[k] for k, v in file.items()}
    file |= {k: int(file[k]) for k in ("width", "height")}
    return Item({**row, **file}, image, boxes)


def metadata(text: pd.DataFrame, where: object) -> pd.DataFrame:
    """The columns that are no label; FROM_FILE's are NaN.

    Args:
      text: N rows of text, `image`, `patient` and any of OPTIONAL; blank is unknown.
        Unless all patients are whole numbers from 0, they are numbered in the order of
        their sorted names. A view or sex that prepared.py doesn't list is unknown.
    """
    text = text.assign(**{name: "" for name in OPTIONAL if name not in text})
    columns = text.apply(lambda column: column.str.strip()).assign(image=text["image"])
    table = columns[["image"]].copy()
    table["patient"] = _patients(columns, where)
    table["view"] = only(columns["view"], VIEWS)
    table["sex"] = columns["sex"].str.upper().map(SEXES).fillna("")
    table["official"] = columns["official"]
    for name in ("age", "follow_up"):
        table[name] = numbers(columns, name, where)
    strange = ~table["official"].isin(OFFICIAL)
    if strange.any():
        image, official = table.loc[strange, ["image", "official"]].iloc[0]
        raise InputError(
            f"{where}: the official split of {image} is {official!r}: use 'train', "
            "'validation', 'test' or blank"
        )
    table[FROM_FILE] = math.nan
    return table


def _patients(table: pd.DataFrame, where: object) -> np.ndarray:
    """[N] int: the patients' own numbers, or their ranks among the sorted names."""
    names = table["patient"]
    if (names == "").any():
        image = table["image"][names == ""].iloc[0]
        raise InputError(f"{where}: {image} has no patient: correct the table")
    number = pd.to_numeric(names, errors="coerce")
    if ((number % 1 == 0) & number.between(0, LARGEST)).all():
        return number.to_numpy(int)
    return np.unique(names.to_numpy(str), return_inverse=True)[1]


def findings(
    values: np.ndarray, names: Sequence[str], images: pd.Series, where: object
) -> pd.DataFrame:
    """A column a finding, where an image may have several.

    Args:
      values: [N, T] in [0, 1]; NaN is unknown.
      names: [T], of the findings.
      images: [N] names, for messages, as `where`.
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
    """A column a class, where an image has exactly one.

    Args:
      index: [N] int, which class of the K names an image has; -1 is unknown.
    """
    if len(names) < 2:
        raise InputError(
            f"{where}: {len(names)} class(es): a classifier needs two or more"
        )
    label = np.eye(len(names))[index]
    label[index < 0] = math.nan
    return pd.DataFrame(label, columns=list(names))


def check_channels(channels: int) -> None:
    """Refuses anything but grey and colour."""
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: use 1 (grey) or 3 (colour)")


def table(
    *,
    folder: Path,
    side: int,
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
    channels: int = 1,
) -> Source:
    """A folder of images and a CSV file with one row an image.

    Exactly one of `labels` and `classes` is given. The other settings that name a
    column, except `image` and `patient`, may be '': then the value is unknown.

    Args:
      folder: of the images.
      side: S, pixels; images are resized to a square once, here.
      table: the CSV file, below the folder or anywhere.
      image: the column of the files' paths below the folder.
      patient: the column of patients. Whole numbers stay; names are numbered from 0 in
        their sorted order.
      labels: columns of 0 (absent), 1 (present), a soft label between or blank
        (unknown); an image may have several findings.
      classes: one column of class names, blank where unknown; an image has exactly
        one. Classes become tasks in the order of their sorted names.
      view: the column of 'PA', 'AP' or 'LATERAL'.
      sex: the column of 'F' or 'M', 'female' or 'male'.
      age: the column of years.
      follow_up: the column of the image's number in the patient's history, from 0.
      official: the column of 'train', 'validation', 'test' or blank.
      channels: 1, grey, or 3, colour.
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
    check_channels(channels)
    folder = existing(folder)
    path = folder / Path(table).expanduser()
    raw = read_csv(path)
    columns = {"image": image, "patient": patient}
    optional = (view, sex, age, follow_up, official)
    columns |= {k: v for k, v in zip(OPTIONAL, optional, strict=True) if v}
    rows = metadata(select(raw, columns, path), path)
    if classes:
        text = select(raw, {"class": classes}, path)["class"].str.strip()
        names = sorted(set(text) - {""})
        targets = one_hot(pd.Index(names).get_indexer(text), names, path)
    else:
        text = select(raw, {name: name for name in labels}, path)
        text = text.assign(image=rows["image"])  # For a message about a strange cell.
        values = [numbers(text, name, path).to_numpy(float) for name in labels]
        targets = findings(np.stack(values, axis=1), labels, rows["image"], path)
    files = _files(folder, rows["image"], path)

    def read(row: dict) -> Item:
        return load(row, files[row["image"]], shape)

    shape = (side, side, channels)
    rows = pd.concat([rows, targets], axis=1)
    return source(rows, read, tasks=tuple(targets), shape=shape, where=path)


def _files(folder: Path, images: pd.Series, where: Path) -> dict[str, Path]:
    """Image -> its file, which must lie below the folder and have one row.

    A table is not trusted: a path or a link in it might lead to any file of this
    machine.
    """
    root = os.path.realpath(folder)
    files: dict[str, Path] = {}
    named: dict[str, str] = {}
    for image in images:
        path = PurePosixPath(image)
        plain = "\0" not in image and not path.is_absolute() and ".." not in path.parts
        real = os.path.realpath(folder / image) if plain else ""
        if not real.startswith(root + os.sep):
            raise InputError(
                f"{where}: the image {image!r} is no file below {folder}: give paths "
                "within it, without '..' or a link that leads out"
            )
        if real in named and named[real] != image:
            raise InputError(
                f"{where}: {named[real]} and {image} are the same file: keep one row"
            )
        named[real] = image
        files[image] = Path(real)
    return files
