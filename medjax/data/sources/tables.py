"""What folders of films with a table beside them have in common.

What any data set says of its images -> the columns of schema.py, or one error.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.data import images, prepared
from medjax.data.prepared import Item, Source
from medjax.errors import InputError

FROM_FILE = ["width", "height", "spacing_x", "spacing_y"]  # Where the table is blank.


def existing(folder: Path) -> Path:
    """The folder, or an error that names the config's field."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.folder={str(folder)!r} is no folder: set data.folder")
    return folder


def newest(folder: Path, pattern: str) -> Path:
    """The newest table of that name: the one that sorts last."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: no {pattern}: is this the data set's folder?")
    return found[-1]


def read_csv(path: Path) -> pd.DataFrame:
    """Every cell as the text that it is; a blank one is ''."""
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
    found = pd.to_numeric(table[name], errors="coerce")
    strange = found.isna() & (table[name].str.strip() != "")
    if strange.any():
        text, image = table.loc[strange, [name, "image"]].iloc[0]
        raise InputError(
            f"{where}: the {name} of {image} is {text!r}, no number: correct the table"
        )
    return found


def only(column: pd.Series, values: Sequence[str]) -> pd.Series:
    """The column with '' for everything that is none of the values."""
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
    """The films of a table, in its order.

    Args:
      table: one row a film, with the columns of schema.py but the id.
      load: makes a row an item.
      tasks: names of the findings or classes.
      shape: of the items' pixels.
      where: the table or its folder, for messages.
      left_out: (file, reason) of files for quarantine that no row names.
    """
    prepared.check_names(tasks)
    twice = table["image"].duplicated()
    if twice.any():
        image = table["image"][twice].iloc[0]
        raise InputError(f"{where}: the table lists {image} twice: keep one row")
    size = prepared.FILMS_A_SHARD

    def shard(start: int) -> Iterator[Item]:
        part = table.iloc[start : start + size].itertuples(index=False, name=None)
        rows = (dict(zip(table.columns, row, strict=True)) for row in part)
        yield from prepared.in_parallel(load, rows)
        if start + size >= len(table):
            for file, reason in left_out:
                yield Item({"image": file}, None, reason=reason)

    starts = range(0, len(table), size)
    shards = [functools.partial(shard, start) for start in starts]
    films = len(table) and len(table) + len(left_out)
    return Source(tuple(tasks), tuple(shape), films, shards)


def load(
    row: dict, path: Path, shape: tuple[int, ...], boxes: Sequence[tuple] = ()
) -> Item:
    """Reads and resizes one film; what can't be read becomes a reason.

    Args:
      row: of the table; NaN where only the file knows.
      path: of the file.
      shape: (S, S, C) of the item's pixels, C = 1 or 3.
      boxes: (finding, x0, y0, x1, y1), in pixels of the S x S film.
    """
    try:
        film = images.read(path, shape[-1])
    except InputError as error:
        return Item(row, None, reason=str(error))
    height, width = film.pixels.shape[:2]
    found = {"width": width, "height": height}
    found |= {"spacing_x": film.spacing[0], "spacing_y": film.spacing[1]}
    # What the table says of the original stands; files may be resized copies.
    found = {k: v if math.isnan(row[k]) else row[k] for k, v in found.items()}
    found |= {k: int(found[k]) for k in ("width", "height")}
    pixels = images.resize(film.pixels, shape[0]).reshape(shape)
    return Item({**row, **found}, pixels, boxes)


VIEWS = ("PA", "AP", "LATERAL")
SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
OFFICIAL = ("train", "validation", "test", "")
OPTIONAL = ("view", "sex", "age", "follow_up", "official")
LARGEST = 2**31 - 1  # A batch holds patients as int32.


def metadata(text: pd.DataFrame, where: object) -> pd.DataFrame:
    """The columns that are no label; what only the file knows is NaN.

    Args:
      text: N rows of text, `image`, `patient` and any of OPTIONAL; blank is
        unknown. Patients that are not all whole numbers from 0 are numbered in
        the order of their sorted names. A view or sex that is none of
        schema.py's is unknown.
      where: the data set, for messages.

    Raises:
      InputError: an image without a patient, an age or follow-up that is no
        number, or an official split of another name.
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
        image, found = table.loc[strange, ["image", "official"]].iloc[0]
        raise InputError(
            f"{where}: the official split of {image} is {found!r}: use 'train', "
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
      images: [N] names, for messages.
      where: the data set, for messages.
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
      index: [N] int, which class an image has; -1 is unknown.
      names: [K], of the classes.
      where: the data set, for messages.
    """
    if len(names) < 2:
        raise InputError(
            f"{where}: {len(names)} class(es), and telling them apart needs two"
        )
    label = np.eye(len(names))[index]
    label[index < 0] = math.nan
    return pd.DataFrame(label, columns=list(names))


def check_channels(channels: int) -> None:
    """Refuses what is neither grey nor colour."""
    if channels not in (1, 3):
        raise InputError(f"data.channels={channels}: use 1 (grey) or 3 (colour)")
