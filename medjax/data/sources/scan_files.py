"""The files of scans, and whose they are: by name, by table, or by DICOM header.

A patient is a folder in which sequences' patterns match. Hidden files are ignored, also
those that macOS leaves ('._T1.nii.gz').
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medjax.cohort import identity
from medjax.data import dicom, image_files, nifti, prepared, series
from medjax.data.nifti import SequenceFile
from medjax.data.sources import cells
from medjax.errors import InputError, reading, some
from medjax.files import escaped

NAMED = 20  # Files that a warning names.
TEXTS = (".csv", ".json", ".md", ".pdf", ".tsv", ".txt", ".xlsx")  # About the scans.
log = logging.getLogger("medjax")


class ScanFiles(NamedTuple):
    """The files of one scan of a patient; those that are missing are None."""

    name: str  # The folder's path below the data's folder, or the file's stem.
    sequences: dict[str, SequenceFile | None]  # In the order of the channels.
    mask: Path | None = None
    official: str = ""  # 'train' or 'test' where the data set says so.

    def paths(self) -> list[Path]:
        """The files and folders that are there."""
        files = [file.path for file in self.sequences.values() if file is not None]
        return files + ([] if self.mask is None else [self.mask])


def in_folders(
    path: Path, *, sequences: Sequence[str], files: Mapping[str, str], mask: str = ""
) -> list[ScanFiles]:
    """Finds patients by the names of their files, sorted by name.

    A folder in which any of the patterns matches is a patient; other folders are
    searched in turn. So `path` may be a patient's own folder, or a folder of patients
    at any depth. One with volumes that no pattern matches is warned of.

    `files` has each sequence's pattern below the patient's folder, such as 'T1.nii.gz',
    '*_t1ce.nii.gz' or 'anat/*_T1w.nii.gz'; it may match a folder, a DICOM series. `mask`
    is that of the segmentation.
    """
    path = existing(path)
    scans, patterns = [], _patterns(sequences, files)
    folders = _without_links(path, dict(_walk(path, patterns)))
    for folder, sequence_files in folders.items():
        name = path.resolve().name if folder == path else str(folder.relative_to(path))
        segmentation = _only(folder, mask) if mask else None
        scans.append(ScanFiles(name, sequence_files, segmentation))
    _warn_of_strangers(scans, folders)
    if not scans:
        patterns = ", ".join(map(repr, patterns.values()))
        raise InputError(
            f"{path}: no file in it matches {patterns}; correct data.files"
        )
    return scans


def _warn_of_strangers(scans: Sequence[ScanFiles], folders: Iterable[Path]) -> None:
    """Warns of files that are named after another patient's folder than their own."""
    names = {folder.name for folder in folders}
    for scan, folder in zip(scans, folders, strict=True):
        for path in scan.paths():
            ends = (match.start() for match in re.finditer(r"[\W_]", path.name))
            begins = {path.name[:end] for end in ends}
            if folder.name not in begins and (others := begins & names):
                log.warning(
                    "%s: is named after %s, and lies in %s: move or rename it, unless "
                    "they are one patient",
                    *(path, max(others, key=len), folder.name),
                )


def of_row(
    path: Path, *, sequences: Sequence[str], files: Mapping[str, str]
) -> dict[str, SequenceFile | None]:
    """The files of one scan; those that are missing are None.

    With `files`, see `in_folders`, the path is the folder in which they match. Without,
    it is a NIfTI file whose volumes are the sequences, or the folder of a DICOM series.
    """
    if files:
        if not path.is_dir():
            raise InputError(f"{path}: is no folder, in which data.files could match")
        matches = ((s, _only(path, p)) for s, p in _patterns(sequences, files).items())
        return {name: match and SequenceFile(match) for name, match in matches}
    check_sequences(sequences)
    if len(sequences) == 1:  # A file of several volumes is refused.
        return {sequences[0]: SequenceFile(path)}
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder, and data.sequences has {len(sequences)}: give each a "
            "pattern in data.files"
        )
    count = len(sequences)
    return {name: SequenceFile(path, n, count) for n, name in enumerate(sequences)}


def volumes_in(
    path: Path, *, sequences: Sequence[str], files: Mapping[str, str]
) -> tuple[list[Path], list[Path]]:
    """All that `of_row` reads in a folder, at any depth, or the path itself.

    And the other files beside NIfTI files; a warning names those beside patterns' files
    and DICOM slices.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return [path], []
    volumes, others = [], []
    if files:
        volumes = [folder for folder, _ in _walk(path, _patterns(sequences, files))]
    else:
        with reading(path, "correct its permissions", OSError):
            for folder, inside in image_files.walk(path):
                if any(map(dicom.is_dicom, inside)):
                    volumes.append(folder)
                elif not {*volumes} & {
                    *folder.parents
                }:  # A series' folder has no other.
                    volumes += filter(nifti.is_volume, inside)
                    others += [file for file in inside if not nifti.is_volume(file)]
    if not volumes:
        raise InputError(
            f"{path}: holds no volume; give one with NIfTI files or DICOM series, and "
            "with those of data.files, if that has patterns"
        )
    return sorted(volumes), others


def existing(path: Path) -> Path:
    """The path without `~`; refuses what is no folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"{path}: is no folder; give one of a patient or of patients")
    return path


def warn_of(files: Sequence[Path], folder: Path) -> None:
    """Names files of a folder that aren't taken, but for many of them."""
    if files:
        names = sorted(file.name for file in files)
        log.warning("%s: left out: %s", folder, some(names, most=NAMED))


def check_sequences(sequences: Sequence[str]) -> None:
    """Refuses none, and one that is named twice."""
    if not sequences or len(set(sequences)) < len(sequences):
        raise InputError(f"data.sequences={tuple(sequences)}: name each of them once")


def _patterns(sequences: Sequence[str], files: Mapping[str, str]) -> dict[str, str]:
    """The pattern of each sequence, in their order."""
    check_sequences(sequences)
    for name in sequences:
        if not files.get(name):
            raise InputError(f"data.files has no pattern for the sequence {name!r}")
    return {name: files[name] for name in sequences}


def _walk(
    folder: Path, patterns: Mapping[str, str], above: tuple[Path, ...] = ()
) -> Iterator[tuple[Path, dict]]:
    """Each patient's folder, and sequence -> file or None.

    A link to a folder above, which would lead in a circle, isn't followed; `above` are
    the real folders on the way.
    """
    paths = {name: _only(folder, pattern) for name, pattern in patterns.items()}
    if any(paths.values()):
        yield folder, {name: p and SequenceFile(p) for name, p in paths.items()}
        return
    above = (*above, folder.resolve())
    inside = sorted(visible(folder.iterdir()))
    folders = [path for path in inside if path.is_dir()]
    files = [path for path in inside if path.suffix.lower() not in TEXTS]
    files = [p for p in files if p not in folders and (p.suffix or not _is_text(p))]
    ours = (folder / "quarantine.csv").is_file()  # Records, see prepared.py.
    if (files or not inside) and not ours:
        names = some([path.name for path in files]) or "nothing"
        log.warning(
            "%s: left out, no pattern of data.files matches in it: it holds %s",
            *(folder, names),
        )
    for below in folders:
        if not any(real.is_relative_to(below.resolve()) for real in above):
            yield from _walk(below, patterns, above)


def _is_text(path: Path) -> bool:
    """Whether a file without a suffix is a README or the like, and no broken link."""
    return path.exists() and not dicom.is_dicom(path)


def _without_links(root: Path, folders: dict[Path, dict]) -> dict[Path, dict]:
    """Each real folder once, under its own name where it lies below the root."""
    places: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if root.resolve() / folder.relative_to(root) == real or real not in places:
            places[real] = folder
    for folder in set(folders) - set(places.values()):
        log.warning("%s: is a link to a patient that is read already", folder)
    return {folder: folders[folder] for folder in sorted(places.values())}


def _only(folder: Path, pattern: str) -> Path | None:
    """The one path that a pattern matches in a folder; None where there is none."""
    try:
        matches = sorted(visible(folder.glob(pattern)))
        if not matches and (folder / pattern).is_symlink():
            matches = [folder / pattern]  # It leads nowhere: it can't be read.
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"data.files: {pattern!r} is no pattern ({error})") from None
    if len(matches) > 1:
        raise InputError(
            f"{folder}: {pattern!r} matches {matches[0].name} and {matches[1].name}; "
            "give a pattern that only one of them matches"
        )
    return matches[0] if matches else None


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths that no dot hides."""
    return [path for path in paths if not path.name.startswith(".")]


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
    """Warns where names or PatientIDs of DICOM series say otherwise than `patients`."""
    people = [*zip(files, patients, strict=True)]
    identity.warn_of_names((scan.name, patient) for scan, patient in people)
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
        if (twice := prepared.first_duplicate(table.columns)) is not None:
            raise InputError(f"{file}: has two columns {twice!r}: rename or remove one")
        if "participant_id" not in table:
            raise InputError(
                f"{file}: has no column participant_id: add it, or remove it"
            )
        names = table["participant_id"].str.removeprefix("sub-")
        said = {name: cells.called(table, name) for name in ("sex", "age")}
        people = pd.DataFrame({n: table[c] if c else "" for n, c in said.items()})
        people = people.assign(id=names).drop_duplicates().set_index("id")
        if (twice := prepared.first_duplicate(people.index)) is not None:
            raise InputError(
                f"{file}: has rows of {twice!r} that differ in sex or age: keep one"
            )
        people["sex"] = cells.meaning(people["sex"], cells.SEX_WORDS, file)
        said = people["age"].str.strip()
        ages = pd.to_numeric(said, errors="coerce")
        people["age"] = ages.where(ages.between(0, cells.MAX_AGE))
        strange = people["age"].isna() & ~said.str.lower().isin(["", *cells.MISSING])
        if strange.any():
            log.warning(
                "%s: the age of %d patients is unknown: %r, say, is no age from 0 to %d years",
                *(file, strange.sum(), said[strange].iloc[0], cells.MAX_AGE),
            )
        if lacking := sorted({*ids} - {*people.index}):
            log.warning(
                "%s: has no row of %d of the %d patients, such as %r; it has rows of %s",
                *(file, len(lacking), ids.nunique(), lacking[0]),
                ", ".join(map(repr, people.index[:3])) or "nobody",
            )
    people["age"] = people["age"].astype(float)
    return people.reindex(ids).fillna({"sex": ""}).reset_index(drop=True)
