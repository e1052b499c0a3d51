"""Which ids are of one person: the user's own ids, and subjects in names of files.

Ids stay as the user wrote them. Two that differ in case, signs, Unicode form, leading
zeros, decimals, BIDS's sub- or session alone are refused: they may be one person, on two
sides of a split.
"""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

import pandas as pd

from medjax.errors import InputError, some

NUMBER = r"0|[1-9]\d{0,17}"  # Written as an integer is printed.
ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
# The subject in a name of BIDS (sub-01/ses-1/anat) or of BraTS, whose last three digits
# are the session (BraTS-GLI-00000-001).
SUBJECT = re.compile(
    r"(?:^|/)(sub-[^/_]+|BraTS-[A-Z]+-\d+(?=-\d{3}(?!\d)))", re.IGNORECASE
)
# What tells apart the scans of one person: P01_2, P01_v2, P01V2, P01_ses-2, P01_12m, P01b,
# P01 (2), P01_20190304, P01_1.5T, P01-retest. Longer numbers are people's: TCGA-02-0006.
SESSION = re.compile(
    r"(?:(?<=\d)(?:[^\w/]|_)[a-z]+"  # Any word behind a number.
    r"|(?:[^\w/]|_)(?:[a-z]{1,9}\d+[a-z]?|(?:[a-z]{1,9}[-_ ])?\d{1,3}[a-z]{0,6}|\(\d+\)"
    r"|(?:19|20)\d\d[-.]?\d\d[-.]?\d\d|\d\d[-.]\d\d[-.](?:19|20)\d\d|baseline"
    r"|follow-?up|(?:pre|post)-?(?:op)?|copy|old|new"
    r"|\d\.\d[a-z]?|(?:day|week|month)[-_ ]?\d{1,3}-\d{1,2}|left|right|axial|coronal"
    r"|sagittal|[a-z])|(?<=\d)[a-z](?:[a-z]{0,8}\d{1,3})?)$",
    re.IGNORECASE,
)
# The last word of a name without numbers, or its first one, and the rest: Doe_pre, PreDoe.
WORDS = (
    r"(?P<who>.*[^\W_])(?:[^\w/]|_|(?<=[a-z])(?=[A-Z]))(?P<word>[^\W_]+)$",
    r"^(?P<word>[^\W_]+?)(?:[^\w/]|_|(?<=[a-z])(?=[A-Z]))(?P<who>.+)$",
)
GROUP = 8  # Scans a name without a number: then it is a group's (HC_01), no person's.
log = logging.getLogger("medjax")


def column(text: pd.Series) -> pd.Series:
    """Ids as integers where all of them are printed so, else as text."""
    return text.astype("int64") if text.str.fullmatch(NUMBER).all() else text


def refuse_spellings(ids: Iterable[str], what: str) -> None:
    """Raises if two ids are the same but for their spelling; `what` names the field."""
    first: dict[str, tuple[str, str]] = {}
    for id in dict.fromkeys(map(str, ids)):
        spelt = _folded(id)
        other, before = first.setdefault(ZEROS.sub("", spelt), (id, spelt))
        # Of equal length, the zeros are inner digits of two codes: a01b2 and a1b02.
        if other != id and (before == spelt or len(before) != len(spelt)):
            raise InputError(
                f"{what}: {other!r} and {id!r} differ in case, signs, leading zeros, "
                "decimals, sub- or session alone: write one in one way, or rename one of two"
            )


def shared(ids: Iterable, others: Iterable) -> list[str]:
    """The ids, as text, that occur among the others in any spelling."""
    keys = {ZEROS.sub("", _folded(str(id))) for id in others}
    texts = sorted(set(map(str, ids)))
    return [text for text in texts if ZEROS.sub("", _folded(text)) in keys]


def warn_of_names(people: Iterable[tuple[str, int | str]]) -> None:
    """`warn_of_headers` of the subjects in names of BIDS and BraTS: (name, patient)s."""
    found = ((SUBJECT.search(name), patient) for name, patient in people)
    subjects = ((match[1] if match else "", patient) for match, patient in found)
    warn_of_headers(subjects, "subjects", "in names")


def warn_of_headers(
    people: Iterable[tuple[str, int | str]],
    ids: str = "PatientIDs",
    where: str = "of DICOM files",
) -> None:
    """Warns of patients with one PatientID, and of patients with several.

    `people` are the PatientID of each DICOM file or series, '' where it has none, and
    its patient. Where all have one PatientID, or each another, it says nothing.
    """
    rows = [(id, str(patient)) for id, patient in people if id]
    table = pd.DataFrame(rows, columns=["id", "patient"], dtype=object)
    if not 1 < table["id"].nunique() < len(table):
        return
    for id, name, what in (
        ("id", "patient", f"{ids} {where} are of several patients"),
        ("patient", "id", f"patients have several {ids} {where}"),
    ):
        groups = table.groupby(id)[name].unique()
        groups = groups[groups.map(len) > 1]
        for key in groups.index[:1]:
            log.warning(
                "%d %s, such as %r of %s: give one person one patient, or a split may "
                "part them; give two people two",
                *(len(groups), what, key, some([*map(repr, sorted(groups[key]))])),
            )


def _folded(id: str) -> str:
    """An id without its session, in the spelling that is compared."""
    if match := SUBJECT.search(id):
        id = id[: match.end()]
    id = unicodedata.normalize("NFKC", id).casefold().removeprefix("sub-")
    kinds = [(c, unicodedata.category(c)) for c in id.replace("\N{MINUS SIGN}", "-")]
    shown = "".join(
        "-" if kind == "Pd" else str(unicodedata.decimal(c, c))
        for c, kind in kinds
        if kind != "Cf"
    ).strip("='\" \t")  # Spreadsheets keep 007 as '007 or ="007".
    # 7.0 is 7, and 1,000 is 1000; P-7, P_7 and P 7 are P7; 2019_1 is 2019-1.
    whole = re.sub(r"^(\d+)\.0+$", r"\1", re.sub(r"(?<=\d),(?=\d{3}\b)", "", shown))
    return re.sub(r"(?<=[^\W\d_])-(?=\d)", "", re.sub(r"[\s_-]+", "-", whole))


def patients(names: Sequence[str], pattern: str) -> list[str]:
    """The patient of each scan, from the scan's name, a path below the data's folder.

    The first group of the pattern, a regular expression, matches the patient:
    '(.*?)/' where each patient's folder holds a folder for each visit, '(.*)' where
    every scan shows another patient. With '' the patient is the subject in names of BIDS
    or BraTS; under other names every scan shows another patient.

    Raises:
      InputError: a pattern that doesn't match; with '', names in which one patient may
        have several scans; two spellings of one id.
    """
    ids = [_match(pattern, name) for name in names] if pattern else _subjects(names)
    refuse_spellings(ids, "patients by data.patient")
    return ids


def _match(pattern: str, name: str) -> str:
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise InputError(f"data.patient={pattern!r}: {error}") from None
    if not match or not match.groups() or not match[1]:
        raise InputError(
            f"data.patient={pattern!r}: its first group finds no patient in {name!r}"
        )
    return match[1]


def _subjects(names: Sequence[str]) -> list[str]:
    """The subjects of BIDS and BraTS, and other names as they are."""
    ask = (
        "and a split must not divide the scans of one patient: say which part of a name "
        "is the patient, data.patient='(.*?)/' for the first folder, '(.*)_' for what "
        "precedes the last _, or '(.*)' if each scan shows another patient"
    )
    subjects, places, others = [], {}, []
    for name in names:
        if match := SUBJECT.search(name):
            subjects.append(match[1])
            place = name[: match.end()]
            if (other := places.setdefault(match[1], place)) != place:
                raise InputError(f"{other} and {place}: may be one patient, {ask}")
        else:
            subjects.append(name)
            others.append(name)
    above = pd.Series(
        [part for name in others for part in _folders(name)], dtype=object
    )
    for folder in above[above.str.casefold().duplicated()]:
        raise InputError(f"{folder}: holds several volumes, {ask}")
    ending = os.path.commonprefix([name[::-1] for name in others])[::-1]
    # What all names end in, such as _T1w, says nothing; one number may be a session's.
    same = re.search(r"[-_. ].*[a-z].*|$", ending, re.IGNORECASE)[0]
    names = [name.removesuffix(same) for name in others] if others[1:] else others
    names = pd.Series(names, dtype=object)
    stems = names.str.replace(SESSION, "", regex=True)
    # Without a number a stem may be a person's (Doe_1) or a group's (HC_01).
    numbered = stems.str.contains(r"\d[^/]*$")
    if stems.nunique() * max(stems.nunique(), GROUP) <= len(stems):
        stems = stems.where(numbered, names)
    for pattern in WORDS if not stems.str.casefold().duplicated().any() else ():
        stems = _without_visits(stems, pattern)
    # One stem of all names is the data set's, such as BraTS2021_00000.
    stems = stems.str.casefold()
    if stems.nunique() > 1 and stems.duplicated().any():
        first, second = (
            others[n] for n in stems.index[stems.duplicated(keep=False)][:2]
        )
        raise InputError(f"{first} and {second}: may be one patient, {ask}")
    return subjects


def _without_visits(names: pd.Series, pattern: str) -> pd.Series:
    """Strips words that tell visits from names: Doe_pre, Doe_post -> Doe.

    Such words are few, and are of several people; first names (Doe_John) are not.
    """
    parts = names[~names.str.contains(r"\d")].str.extract(pattern)
    parts = parts.assign(who=parts["who"].fillna(names), word=parts["word"].fillna(""))
    shared = parts.groupby("word")["who"].transform("nunique") > 1
    if 3 * parts["word"].nunique() > 2 * len(parts) or not shared.any():
        return names
    visited = parts["who"].isin(parts["who"][shared])
    return parts["who"][visited].reindex(names.index).fillna(names)


def _folders(name: str) -> list[str]:
    """'a/b/c' -> ['a', 'a/b'], all folders above."""
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
