"""Which files belong to which patient: folders of patients, BraTS, BIDS, the Decathlon.

A patient is a folder in which a sequence's pattern matches a file, or in the Medical
Segmentation Decathlon one file of several sequences; files of BraTS and BIDS say whose
they are by their names. Hidden files are ignored, also those that macOS leaves
('._T1.nii.gz').
"""

import collections
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medjax.cohort import identity
from medjax.data import dicom, nifti, prepared
from medjax.data.nifti import SequenceFile
from medjax.data.sources import tables
from medjax.errors import InputError, check_choice, reading, some
from medjax.files import escaped

# The scan (subject and time point) and the sequence in a file's name, since 2023.
BRATS = re.compile(r"(BraTS-\w+-\d+-\d{3})-(\w+)\.nii(?:\.gz)?", re.IGNORECASE)
PARTS = {"training": "train", "test": "test"}  # Of the Decathlon -> our splits.
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

    Args:
      files: sequence -> pattern below the patient's folder, such as 'T1.nii.gz',
        '*_t1ce.nii.gz' or 'anat/*_T1w.nii.gz'; it may match a folder, which is a DICOM
        series.
      mask: the segmentation's pattern; '' for none.
    """
    path = _existing(path)
    scans, patterns = [], _patterns(sequences, files)
    folders = _without_links(path, dict(_walk(path, patterns)))
    for folder, sequence_files in folders.items():
        name = path.resolve().name if folder == path else str(folder.relative_to(path))
        segmentation = _only(folder, mask) if mask else None
        scans.append(ScanFiles(name, sequence_files, segmentation))
    if not scans:
        patterns = ", ".join(map(repr, patterns.values()))
        raise InputError(
            f"{path}: no file in it matches {patterns}; correct data.files"
        )
    return scans


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
    _check_sequences(sequences)
    if len(sequences) == 1:  # A file of several volumes is refused.
        return {sequences[0]: SequenceFile(path)}
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder, and data.sequences has {len(sequences)}: give each a "
            "pattern in data.files"
        )
    return {name: SequenceFile(path, n) for n, name in enumerate(sequences)}


def volumes_in(
    path: Path, *, sequences: Sequence[str], files: Mapping[str, str]
) -> list[Path]:
    """All that `of_row` reads in a folder, at any depth, or the path itself."""
    path = Path(path).expanduser()
    if files and path.is_dir():
        return [folder for folder, _ in _walk(path, _patterns(sequences, files))]
    if not path.is_dir():
        return [path]
    inside = sorted(_visible(path.iterdir()))
    if any(map(dicom.is_dicom, inside)):
        return [path]
    return [
        volume
        for below in inside
        if nifti.is_volume(below) or below.is_dir() and not below.is_symlink()
        for volume in volumes_in(below, sequences=sequences, files=files)
    ]


def in_decathlon(
    path: Path, *, sequences: Sequence[str], part: str = "training"
) -> list[ScanFiles]:
    """Finds patients in the layout of the Medical Segmentation Decathlon, by name.

    Args:
      path: a task's folder with its dataset.json; or, to predict, a folder of images
        such as imagesTs, or one image. Then dataset.json may lie beside or above it;
        without one the file's volumes are the sequences in their order.
      sequences: names of dataset.json's 'modality', all of them or some.
      part: 'training' (with masks) or 'test', of a task's folder.

    Source: Antonelli et al., Nature Communications 13 (2022) 4128.
    """
    path = Path(path).expanduser()
    _check_sequences(sequences)
    check_choice("data.part", part, PARTS)
    if not path.exists():
        raise InputError(f"{path}: does not exist; give a folder or a NIfTI file")
    above = (path, path.parent, *path.parents[1:2])
    descriptions = [folder / "dataset.json" for folder in above]
    description = next((f for f in descriptions if f.is_file()), None)
    channels = _channels(description, sequences)
    if description is not None and description.parent == path:
        pairs, official = _listed(description, part), PARTS[part]
        listed = {image for image, _ in pairs}
        for folder in sorted({image.parent for image in listed}):
            _warn_of([p for p in _visible(folder.glob("*")) if p not in listed], folder)
    else:
        images = [path] if path.is_file() else _visible(path.iterdir())
        pairs, official = [(p, None) for p in images if nifti.is_volume(p)], ""
        _warn_of([p for p in images if not nifti.is_volume(p)], path)
    if not pairs:
        raise InputError(
            f"{path}: holds no image (.nii.gz) of the {part if official else 'folder'}"
        )
    scans = []
    for image, mask in pairs:
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        files = {s: SequenceFile(image, channels[s]) for s in sequences}
        scans.append(ScanFiles(name, files, mask, official))
    return sorted(scans, key=lambda scan: scan.name)


def in_brats(path: Path, *, sequences: Sequence[str]) -> list[ScanFiles]:
    """Finds the scans of a BraTS challenge since 2023, by name.

    `BraTS-GLI-00000-001-t1c.nii.gz` is the sequence t1c of the time point 001 of the
    subject BraTS-GLI-00000, whose scans are one patient's; `seg` is the mask. The files
    lie in a folder for each scan, or in one.
    """
    path = _existing(path)
    _check_sequences(sequences)
    scans = collections.defaultdict(dict)
    files = sorted(_below(path))
    _warn_of([file for file in files if not BRATS.fullmatch(file.name)], path)
    for file in files:
        if match := BRATS.fullmatch(file.name):
            name, part = match.groups()
            if part in scans[name]:
                raise InputError(f"{scans[name][part]} and {file}: keep one of them")
            scans[name][part] = file
    if not scans:
        raise InputError(f"{path}: no file in it is named as BraTS-GLI-00000-000-t1c")
    there = {part for parts in scans.values() for part in parts}
    for name in sequences:
        if name not in there:
            names = ", ".join(map(repr, sorted(there - {"seg"})))
            raise InputError(f"data.sequences: no file of {path} is {name!r}: {names}")
    return [
        _scan(name, parts, sequences, "seg") for name, parts in sorted(scans.items())
    ]


def in_bids(path: Path, *, sequences: Sequence[str], mask: str = "") -> list[ScanFiles]:
    """Finds the sessions of a BIDS data set, `sub-01/ses-1` or `sub-01`, by name.

    Args:
      path: the data set's folder, or to predict that of a subject or a session.
      sequences: ends of files' names before `.nii.gz`: 'T1w', or 'ce-gd_T1w'.
      mask: the same of the segmentation, such as 'dseg' or 'label-lesion_mask', in the
        session's folder or in one of the data set's derivatives; '' for none.

    Source: Gorgolewski et al., Scientific Data 3 (2016) 160044.
    """
    path = _existing(path).absolute()
    _check_sequences(sequences)
    above = [
        folder for folder in (path, *path.parents) if folder.name.startswith("sub-")
    ]
    root = above[0].parent if above else path
    subjects = above[:1] or [f for f in sorted(root.glob("sub-*")) if f.is_dir()]
    scans = []
    for subject in subjects:
        sessions = [f for f in sorted(subject.glob("ses-*")) if f.is_dir()] or [subject]
        for session in [path] if path.name.startswith("ses-") else sessions:
            name = str(session.relative_to(root))
            places = [session, *sorted(root.glob(f"derivatives/*/{name}"))]
            files = {s: _ending(places[:1], name, s) for s in sequences}
            if not any(files.values()):
                log.warning("%s: left out, no file of data.sequences in it", session)
                continue
            files |= {mask: _ending(places, name, mask)} if mask else {}
            scans.append(_scan(name, files, sequences, mask))
    if not scans:
        names = ", ".join(f"'sub-*_{name}.nii.gz'" for name in sequences)
        raise InputError(f"{path}: no file in it is {names}; correct data.sequences")
    return scans


def _scan(
    name: str, files: Mapping[str, Path | None], sequences: Sequence[str], mask: str
) -> ScanFiles:
    paths = {sequence: files.get(sequence) for sequence in sequences}
    found = {name: path and SequenceFile(path) for name, path in paths.items()}
    return ScanFiles(name, found, files.get(mask))


def _ending(folders: Sequence[Path], scan: str, end: str) -> Path | None:
    """The one volume in a scan's folders whose name ends so.

    Of several that one whose name is the scan's and the end alone.
    """
    paths = [path for folder in folders for path in sorted(_below(folder))]
    ends = tuple(f"_{end}{suffix}" for suffix in (".nii", ".nii.gz"))
    paths = [path for path in paths if path.name.endswith(ends)]
    whole = tuple(scan.replace("/", "_") + tail for tail in ends)
    paths = [path for path in paths if path.name in whole] or paths
    if len(paths) > 1:
        raise InputError(
            f"{paths[0]} and {paths[1]}: both end in {end}; name a longer end in "
            "data.sequences or data.mask that only one of them has"
        )
    return paths[0] if paths else None


def _below(folder: Path) -> list[Path]:
    """The visible volumes in a folder and below it."""
    return [path for path in _visible(folder.rglob("*.nii*")) if path.is_file()]


def _existing(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"{path}: is no folder; give one of a patient or of patients")
    return path


def _warn_of(files: Sequence[Path], folder: Path) -> None:
    """Names files of a folder that aren't taken, but for many of them."""
    if files:
        names = sorted(file.name for file in files)
        log.warning("%s: left out: %s", folder, some(names, most=NAMED))


def _check_sequences(sequences: Sequence[str]) -> None:
    """Refuses none, and one that is named twice."""
    if not sequences or len(set(sequences)) < len(sequences):
        raise InputError(f"data.sequences={tuple(sequences)}: name each of them once")


def _patterns(sequences: Sequence[str], files: Mapping[str, str]) -> dict[str, str]:
    """The pattern of each sequence, in their order."""
    _check_sequences(sequences)
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
    inside = sorted(_visible(folder.iterdir()))
    folders = [path for path in inside if path.is_dir()]
    files = [path for path in inside if path.suffix.lower() not in TEXTS]
    files = [p for p in files if p not in folders and (p.suffix or not _is_text(p))]
    if files or not inside:
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
        matches = sorted(_visible(folder.glob(pattern)))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"data.files: {pattern!r} is no pattern ({error})") from None
    if len(matches) > 1:
        raise InputError(
            f"{folder}: {pattern!r} matches {matches[0].name} and {matches[1].name}; "
            "give a pattern that only one of them matches"
        )
    return matches[0] if matches else None


def _visible(paths) -> list[Path]:
    return [path for path in paths if not path.name.startswith(".")]


def _channels(description: Path | None, sequences: Sequence[str]) -> dict[str, int]:
    """Sequence -> which volume of a file it is."""
    if description is None:
        return {name: channel for channel, name in enumerate(sequences)}
    modality = _json(description).get("modality")
    if not isinstance(modality, dict) or not all(n.isdigit() for n in modality):
        raise InputError(f"{description}: its 'modality' is no table of sequences")
    channels = {str(name): int(number) for number, name in modality.items()}
    if len(channels) < len(modality):
        raise InputError(f"{description}: its 'modality' has a name twice; rename one")
    for name in sequences:
        if name not in channels:
            names = ", ".join(map(repr, channels))
            raise InputError(
                f"data.sequences: {description} has no {name!r}, but {names}"
            )
    return channels


def _listed(description: Path, part: str) -> list[tuple[Path, Path | None]]:
    """(image, mask) of a part of the data set."""
    folder, listed = description.parent, _json(description).get(part)
    try:
        if part == "test":
            return [(folder / image, None) for image in listed]
        return [(folder / pair["image"], folder / pair["label"]) for pair in listed]
    except (TypeError, KeyError):
        raise InputError(f"{description}: its {part!r} is no list of images") from None


def _json(path: Path) -> dict:
    with reading(path, "get it again"):
        read = json.loads(path.read_text())
    if not isinstance(read, dict):
        raise InputError(f"{path}: is no dataset.json of the Decathlon")
    return read


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
    rows = tables.metadata(tables.select(tables.read_csv(path), columns, path), path)
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
        for id in dicom.patients_of(scan.paths())
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
        table = tables.read_csv(file, "\t")
        table.columns = table.columns.str.lower()
        if "participant_id" not in table:
            raise InputError(
                f"{file}: has no column participant_id: add it, or remove it"
            )
        names = table["participant_id"].str.removeprefix("sub-")
        people = table[~names.duplicated()].set_index(names[~names.duplicated()])
        people = people.reindex(columns=["sex", "age"], fill_value="")
        people["sex"] = tables.meaning(people["sex"], tables.SEXES, file)
        if lacking := sorted({*ids} - {*people.index}):
            log.warning(
                "%s: has no row of %d of the %d patients, such as %r; it has rows of %s",
                *(file, len(lacking), ids.nunique(), lacking[0]),
                ", ".join(map(repr, people.index[:3])) or "nobody",
            )
    people["age"] = pd.to_numeric(people["age"], errors="coerce")
    return people.reindex(ids).fillna({"sex": ""}).reset_index(drop=True)
