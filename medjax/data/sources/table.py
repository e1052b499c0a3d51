"""A folder of images with a CSV file: a row an image."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medjax.data.prepared import Item, Source
from medjax.data.sources import tables
from medjax.errors import InputError


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
    """Images below a folder and what a CSV file says of them.

    Exactly one of `labels` and `classes` is given. The other settings that name a
    column may be '' but for `image` and `patient`; what has no column is unknown.

    Args:
      folder: of the images.
      side: S, pixels; images are squeezed to a square once, here.
      table: the CSV file, below the folder or anywhere.
      image: the column of the files' paths below the folder.
      patient: the column that says whom an image shows. Whole numbers stay; names
        are numbered from 0 in their sorted order.
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

    Raises:
      InputError: no such column, an image without a patient, a cell that isn't what
        its column holds, or a path that leads out of the folder.
    """
    if bool(labels) == bool(classes):
        raise InputError(
            "data.labels and data.classes: give one of them, the columns of findings "
            "or the column of an image's one class"
        )
    if not patient:
        raise InputError(
            "data.patient='': name the column that says whom an image shows; without "
            "it a patient may train and test"
        )
    tables.check_channels(channels)
    folder = tables.existing(folder)
    path = folder / Path(table).expanduser()
    raw = tables.read_csv(path)
    columns = {"image": image, "patient": patient}
    optional = (view, sex, age, follow_up, official)
    columns |= {k: v for k, v in zip(tables.OPTIONAL, optional, strict=True) if v}
    rows = tables.metadata(tables.select(raw, columns, path), path)
    if classes:
        found = _classes(raw, classes, path)
    else:
        found = _labels(raw, labels, rows["image"], path)
    files = _files(folder, rows["image"], path)

    def load(row: dict) -> Item:
        return tables.load(row, files[row["image"]], shape)

    shape = (side, side, channels)
    rows = pd.concat([rows, found], axis=1)
    return tables.source(rows, load, tasks=tuple(found), shape=shape, where=path)


def _labels(
    raw: pd.DataFrame, labels: Sequence[str], images: pd.Series, where: Path
) -> pd.DataFrame:
    """The columns of findings as numbers."""
    text = tables.select(raw, {name: name for name in labels}, where)
    text = text.assign(image=images)  # For the message about a strange cell.
    values = [tables.numbers(text, name, where).to_numpy(float) for name in labels]
    return tables.findings(np.stack(values, axis=1), labels, images, where)


def _classes(raw: pd.DataFrame, column: str, where: Path) -> pd.DataFrame:
    """The column of class names as a column a class."""
    text = tables.select(raw, {"class": column}, where)["class"].str.strip()
    names = sorted(set(text) - {""})
    return tables.one_hot(pd.Index(names).get_indexer(text), names, where)


def _files(folder: Path, images: pd.Series, where: Path) -> dict[str, Path]:
    """Image -> its file, which must lie below the folder and have one row.

    What a table says is not trusted: a row, or a link that it names, might lead to
    any file of this machine.
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
