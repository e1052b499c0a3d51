"""What any data set says of its images -> the columns of schema.py, or one error."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from medjax.data import folders
from medjax.errors import InputError

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
    table["view"] = folders.only(columns["view"], VIEWS)
    table["sex"] = columns["sex"].str.upper().map(SEXES).fillna("")
    table["official"] = columns["official"]
    for name in ("age", "follow_up"):
        table[name] = folders.numbers(columns, name, where)
    strange = ~table["official"].isin(OFFICIAL)
    if strange.any():
        image, found = table.loc[strange, ["image", "official"]].iloc[0]
        raise InputError(
            f"{where}: the official split of {image} is {found!r}: use 'train', "
            "'validation', 'test' or blank"
        )
    table[folders.FROM_FILE] = math.nan
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
