"""CSV files -> columns of patients, ages, findings and classes, or one clear error.

The columns are those that prepared.py lists; `where` is the data set that an error names.
"""

import csv
import gzip
import logging
import math
import re
import zlib
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.errors import InputError

FROM_FILE = ["width", "height", "spacing_x", "spacing_y"]  # Where the table is blank.
VIEW_WORDS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL"}
SEX_WORDS = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
OFFICIAL = ("train", "validation", "test", "")
OPTIONAL = ("view", "sex", "age", "follow_up", "official")
MAX_AGE = 120  # Years.
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")  # As programs write a blank.
# Names of columns, in letters alone, that say an image shows no finding.
NO_FINDING = ("nofinding", "nofindings", "normal")
SUPPORT_DEVICES = "Support Devices"  # CheXpert's normal films may show these.
# What columns of them are called, in letters alone; years only, so no age_months.
CALLED = {
    "sex": r"(patient|subject|participant)?s?(biological)?(sex|gender)(atbirth)?",
    "age": r"(patient|subject|participant)?s?age(at(scan|visit|study|exam|baseline))?"
    r"(in)?(y|yrs?|years?)?",
}
UNKNOWN = (*MISSING, "unknown", "?", "#ref!", "#value!")  # No class is called so.
NOBODY = (*UNKNOWN, "none", "-")
CORRECT = "correct it, or leave it blank where unknown"
ROUNDED_NUMBER = r"\d([.,]\d+)?[eE]\+\d+"
# What spreadsheets make of 1-7, MAR1 or 3/4: a date.
MONTH = r"(jan|feb|m[aä]r|mrz|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])\.?"
DATE = (
    rf"(?i:\d{{1,2}}[-. ]+{MONTH}([-. ]\d{{2,4}})?|{MONTH}[- ]\d{{2}}(\d\d)?"
    r"|(19|20)\d\d-\d\d-\d\d( 00:00(:00)?)?"
    r"|\d{1,2}(?P<sign>[./])\d{1,2}(?P=sign)(19|20)\d\d)"
)
log = logging.getLogger("medjax")


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
            lines = ((reader.line_num, row) for row in reader)
            rows = [(line, row) for line, row in lines if any(map(str.strip, row))]
        if not rows:
            raise csv.Error("it is empty")
        if any("\0" in name for name in rows[0][1]):
            raise UnicodeError
    except UnicodeError:
        raise InputError(f"{path}: isn't UTF-8: save it as 'CSV UTF-8'") from None
    except FileNotFoundError:
        raise InputError(f"{path}: isn't there: correct its name") from None
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
        if row == header:
            raise InputError(
                f"{path}: line {line} repeats the header, as where two tables are joined: "
                "remove it"
            )
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
            f"{', '.join(map(repr, table))}: correct the name"
        )
    return pd.DataFrame({new: table[old] for new, old in columns.items()})


def called(columns: Iterable[str], name: str) -> str:
    """The column that is called `name`, "sex" or "age", in the shortest way; '' if none."""
    letters = {c: "".join(filter(str.isalpha, c)).casefold() for c in columns}
    fitting = [c for c in letters if re.fullmatch(CALLED[name], letters[c])]
    return min(fitting, key=lambda c: len(letters[c]), default="")


def warn_of_unread(columns: Iterable[str], named: Container[str], where: object):
    """Warns of a column of sexes or ages that no field of `data` names."""
    for name in ("sex", "age"):
        if name not in named and (column := called(columns, name)):
            log.warning(
                "%s: %r isn't read: with data.%s=%r results are told apart by it",
                *(where, column, name, column),
            )


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
    table["view"] = meaning(columns["view"], VIEW_WORDS, where)
    table["sex"] = meaning(columns["sex"], SEX_WORDS, where)
    sexes = table[table["sex"] != ""].groupby("patient", sort=False)["sex"].nunique()
    if len(both := sexes.index[sexes > 1]):
        log.warning(
            "%s: %d patients, %s say, have rows of either sex: one id may be two people's",
            *(where, len(both), both[0]),
        )
    for name in ("age", "follow_up", *FROM_FILE):
        table[name] = numbers(columns, name, where)
    strange = ~table["age"].between(0, MAX_AGE) & table["age"].notna()
    why = f"not from 0 to {MAX_AGE} years: {CORRECT}"
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
    wrong = names.str.casefold().isin(NOBODY) | names.str.fullmatch(ROUNDED_NUMBER)
    why = "which may be several people, as a missing or rounded id is: give each an id"
    refuse(wrong, names, table["image"], where, why)
    dates = names[names.str.fullmatch(DATE)]
    if len(dates):
        log.warning(
            "%s: the patients of %d rows are dates, such as %r: a spreadsheet may have "
            "made them of ids such as 1-7; restore them, or one person may be two",
            *(where, len(dates), dates.iloc[0]),
        )
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


def warn_of_none(
    table: pd.DataFrame, names: Sequence[str], images: pd.Series, where: object
) -> None:
    """Warns of rows [N] that have a finding of these names and, by a column, none."""
    for none in table:
        if "".join(filter(str.isalpha, none)).casefold() not in NO_FINDING:
            continue
        others = [name for name in names if name not in (none, SUPPORT_DEVICES)]
        said = table[[none, *others]].apply(pd.to_numeric, errors="coerce") > 0.5
        both = (said[none] & said[others].any(axis=1)).to_numpy()
        if both.any():
            log.warning(
                "%s: %d rows have a finding and say %r, such as that of %s: the finding "
                "counts",
                *(where, both.sum(), none, images[both].iloc[0]),
            )


def one_hot(index: np.ndarray, names: Sequence[str], where: object) -> pd.DataFrame:
    """A column a class, of [N], the number of an image's one class; -1 is unknown."""
    if len(names) < 2:
        raise InputError(
            f"{where}: {len(names)} class(es): a classifier needs two or more"
        )
    label = np.eye(len(names))[index]
    label[index < 0] = math.nan
    return pd.DataFrame(label, columns=list(names))
