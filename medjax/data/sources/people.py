"""Whose scans they are: patients by name, table or DICOM header, and their sex and age."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medjax.cohort import identity
from medjax.data import prepared, series
from medjax.data.sources import cells
from medjax.data.sources.scans import ScanFiles
from medjax.errors import InputError
from medjax.files import escaped

log = logging.getLogger("medjax")


def patient_table(patient: str, folder: Path) -> Path | None:
    """The CSV table that `data.patient` names, below the data's folder or anywhere."""
    if not patient.endswith(".csv"):
        return None
    return Path(folder).expanduser() / Path(patient).expanduser()


def patients(names: Sequence[str], patient: str, folder: Path) -> list[int | str]:
    """The patient of each scan, by a pattern (`identity.patients`) or a table.

    Args:
      names: of the scans; the table has one row of each, and maybe of others.
      patient: the pattern, or the name of a CSV table of the columns `scan` and
        `patient`.
    """
    if not (path := patient_table(patient, folder)):
        return identity.patients(names, patient)
    columns = {"image": "scan", "patient": "patient"}
    rows = cells.metadata(cells.select(cells.read_csv(path), columns, path), path)
    if (twice := prepared.first_duplicate(rows["image"])) is not None:
        raise InputError(f"{path}: lists the scan {twice!r} twice: keep one row")
    people = dict(zip(rows["image"], rows["patient"]))
    if missing := [name for name in map(escaped, names) if name not in people]:
        raise InputError(
            f"{path}: has no row of {len(missing)} of the {len(names)} scans, such as "
            f"{missing[0]!r}: add who it shows"
        )
    return [people[escaped(name)] for name in names]


def warn_of_headers(files: Sequence[ScanFiles], patients: Sequence[int | str]) -> None:
    """Warns where the PatientIDs of DICOM series say otherwise than `patients`."""
    people = zip(files, patients, strict=True)
    identity.warn_of_headers(
        (id, patient)
        for scan, patient in people
        for id in series.patients_of(scan.paths())
    )


def participants(folder: str, patients: Sequence[int | str]) -> pd.DataFrame:
    """[N] sex ('F', 'M' or '') and age of patients, by participants.tsv (BIDS).

    The file may lie in the data's folder; it is of these patients, with the prefix
    'sub-' or without it, or a warning says of whom it has no row.
    """
    ids = pd.Series(patients, dtype=object).astype(str).str.removeprefix("sub-")
    file = Path(folder).expanduser() / "participants.tsv"
    people = pd.DataFrame({"sex": "", "age": ""}, index=pd.Index([], dtype=object))
    if folder and file.is_file():
        table = cells.read_csv(file, "\t")
        table.columns = table.columns.str.lower()
        if "participant_id" not in table:
            raise InputError(
                f"{file}: has no column participant_id: add it, or remove it"
            )
        names = table["participant_id"].str.removeprefix("sub-")
        people = table.reindex(columns=["sex", "age"], fill_value="")
        people = people.assign(id=names).drop_duplicates().set_index("id")
        if (twice := prepared.first_duplicate(people.index)) is not None:
            raise InputError(
                f"{file}: has rows of {twice!r} that differ in sex or age: keep one"
            )
        people["sex"] = cells.meaning(people["sex"], cells.SEXES, file)
        ages = people["age"].str.strip().str.lower()
        ages = ages[pd.to_numeric(ages, errors="coerce").isna()]
        ages = ages[~ages.isin(["", *cells.MISSING])]
        if len(ages):
            log.warning(
                "%s: the age of %d patients is unknown: %r, say, is no number",
                *(file, len(ages), ages.iloc[0]),
            )
        if lacking := sorted({*ids} - {*people.index}):
            log.warning(
                "%s: has no row of %d of the %d patients, such as %r; it has rows of %s",
                *(file, len(lacking), ids.nunique(), lacking[0]),
                ", ".join(map(repr, people.index[:3])) or "nobody",
            )
    people["age"] = pd.to_numeric(people["age"], errors="coerce")
    return people.reindex(ids).fillna({"sex": ""}).reset_index(drop=True)
