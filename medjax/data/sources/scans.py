"""Whose files are whose: folders of patients, and the Decathlon's layout.

A patient is a folder in which a sequence's pattern finds a file, or in the Medical
Segmentation Decathlon one file of several sequences. Hidden files, those that macOS
leaves ('._T1.nii.gz') among them, are never looked at.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medjax.data import nifti
from medjax.errors import InputError


class File(NamedTuple):
    """Where one sequence of a patient is.

    path: a NIfTI file, or a folder of one DICOM series.
    channel: which volume of a file of four axes; None in a file of one volume.
    """

    path: Path
    channel: int | None = None


class Found(NamedTuple):
    """The files of one patient.

    name: the folder's path below where it was looked for, or the file's stem.
    files: sequence -> its file, in the order of the channels; None is missing.
    mask: the segmentation, None is missing.
    official: 'train' or 'test' where the data set says so, else ''.
    """

    name: str
    files: dict[str, File | None]
    mask: Path | None = None
    official: str = ""

    def paths(self) -> list[Path]:
        """The files and folders that are there."""
        files = [file.path for file in self.files.values() if file is not None]
        return files + ([] if self.mask is None else [self.mask])


def in_folders(
    path: Path, *, sequences: Sequence[str], files: Mapping[str, str], mask: str = ""
) -> list[Found]:
    """Finds patients by the names of their files.

    A folder in which any of the patterns finds something is a patient; other folders
    are searched in turn. So a patient's own folder may be given, or one of patients,
    however deep they lie.

    Args:
      path: the folder.
      sequences: their names, in the order of the channels.
      files: sequence -> pattern below the patient's folder, such as 'T1.nii.gz',
        '*_t1ce.nii.gz' or 'anat/*_T1w.nii.gz'; it may find a folder, which is a DICOM
        series.
      mask: the segmentation's pattern; '' looks for none.

    Returns:
      Sorted by name.

    Raises:
      InputError: no such folder, no patient in it, a sequence without a pattern, or a
        pattern that finds two files of one patient.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"{path}: is no folder; give one of a patient or of patients")
    _check_sequences(sequences)
    for name in sequences:
        if not files.get(name):
            raise InputError(f"data.files has no pattern for the sequence {name!r}")
    patterns = {name: files[name] for name in sequences}
    found = []
    for folder, paths in _walk(path, patterns):
        name = path.resolve().name if folder == path else str(folder.relative_to(path))
        segmentation = _only(folder, mask) if mask else None
        matched = {s: File(p) if p else None for s, p in paths.items()}
        found.append(Found(name, matched, segmentation))
    if not found:
        patterns = ", ".join(repr(p) for p in patterns.values())
        raise InputError(f"{path}: no file in it matches {patterns}; mend data.files")
    return found


def in_decathlon(
    path: Path, *, sequences: Sequence[str], part: str = "training"
) -> list[Found]:
    """Finds patients as the Medical Segmentation Decathlon keeps them.

    Args:
      path: a task's folder with its dataset.json; or, to predict, a folder of images
        as imagesTs, or one image. dataset.json is then looked for beside and above,
        and without one the file's volumes are the sequences in their order.
      sequences: names of dataset.json's 'modality', all of them or some.
      part: 'training' (with masks) or 'test', of a task's folder.

    Returns:
      Sorted by name.

    Raises:
      InputError: no such file, no image, or a dataset.json that isn't the Decathlon's
        or has no such sequence.

    Source: Antonelli et al., Nature Communications 13 (2022) 4128.
    """
    path = Path(path).expanduser()
    _check_sequences(sequences)
    if part not in ("training", "test"):
        raise InputError(f"part={part!r} is unknown: use 'training' or 'test'")
    if not path.exists():
        raise InputError(f"{path}: does not exist; give a folder or a NIfTI file")
    described = next((f for f in _descriptions(path) if f.is_file()), None)
    channels = _channels(described, sequences)
    if described is not None and described.parent == path:
        pairs = _listed(described, part)
    else:
        images = [path] if path.is_file() else sorted(_visible(path.iterdir()))
        pairs, part = [(p, None) for p in images if nifti.is_volume(p)], ""
    if not pairs:
        raise InputError(f"{path}: holds no image (.nii.gz) of the {part or 'folder'}")
    official = {"training": "train", "test": "test", "": ""}[part]
    found = []
    for image, mask in sorted(pairs, key=lambda pair: _stem(pair[0])):
        files = {name: File(image, channels[name]) for name in sequences}
        found.append(Found(_stem(image), files, mask, official))
    return found


def patient_numbers(names: Sequence[str], pattern: str) -> list[int]:
    """Which volumes show the same patient: their numbers, in the order of appearance.

    Args:
      names: of the volumes: paths below the data's folder, or files.
      pattern: a regular expression, of which the first group that it finds in a name
        is the patient: '(.*?)/' where each patient's folder holds one for each visit,
        '(.*)' where every volume shows another patient. '' is that, too, unless two
        volumes lie in one folder.

    Raises:
      InputError: a pattern that isn't one or finds no patient; or none, and two volumes
        in one folder, which may be two visits of one patient.
    """
    if not pattern:
        above = [name.rpartition("/")[0] for name in names]
        shared = next((a for a in above if a and above.count(a) > 1), None)
        if shared is not None:
            raise InputError(
                f"{shared}: holds several volumes, and no split may part those of one "
                "patient: say which part of a name is the patient, data.patient="
                "'(.*?)/' for the first folder, or '(.*)' if each is another one"
            )
        pattern = "(.*)"
    people = {}
    for name in names:
        try:
            hit = re.search(pattern, name)
        except re.error as error:
            raise InputError(f"data.patient={pattern!r}: {error}") from None
        if not hit or not hit.groups() or not hit[1]:
            raise InputError(
                f"data.patient={pattern!r}: its first group finds no patient in {name!r}"
            )
        people.setdefault(hit[1], len(people))
    return [people[re.search(pattern, name)[1]] for name in names]


def _check_sequences(sequences: Sequence[str]) -> None:
    if not sequences or len(set(sequences)) < len(sequences):
        raise InputError(f"data.sequences={tuple(sequences)}: name each of them once")


def _walk(folder: Path, patterns: Mapping[str, str]) -> Iterator[tuple[Path, dict]]:
    """Each patient's folder, and sequence -> path or None."""
    paths = {name: _only(folder, pattern) for name, pattern in patterns.items()}
    if any(paths.values()):
        yield folder, paths
        return
    for below in sorted(_visible(folder.iterdir())):
        if below.is_dir():
            yield from _walk(below, patterns)


def _only(folder: Path, pattern: str) -> Path | None:
    """The one path that a pattern finds in a folder; None where it finds none."""
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


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _descriptions(path: Path) -> list[Path]:
    """Where a dataset.json may lie."""
    return [
        folder / "dataset.json" for folder in (path, path.parent, *path.parents[1:2])
    ]


def _channels(described: Path | None, sequences: Sequence[str]) -> dict[str, int]:
    """Sequence -> which volume of a file it is."""
    if described is None:
        return {name: channel for channel, name in enumerate(sequences)}
    modality = _json(described).get("modality")
    if not isinstance(modality, dict) or not all(n.isdigit() for n in modality):
        raise InputError(f"{described}: its 'modality' is no table of sequences")
    channels = {str(name): int(number) for number, name in modality.items()}
    for name in sequences:
        if name not in channels:
            known = ", ".join(map(repr, channels))
            raise InputError(
                f"data.sequences: {described} has no {name!r}, but {known}"
            )
    return channels


def _listed(described: Path, part: str) -> list[tuple[Path, Path | None]]:
    """(image, mask) of a part of the data set."""
    folder, listed = described.parent, _json(described).get(part)
    try:
        if part == "test":
            return [(folder / image, None) for image in listed]
        return [(folder / pair["image"], folder / pair["label"]) for pair in listed]
    except (TypeError, KeyError):
        raise InputError(f"{described}: its {part!r} is no list of images") from None


def _json(path: Path) -> dict:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    if not isinstance(read, dict):
        raise InputError(f"{path}: is no dataset.json of the Decathlon")
    return read
