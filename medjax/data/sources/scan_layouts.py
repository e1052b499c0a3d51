"""Scans of public layouts: BraTS, BIDS, and the Medical Segmentation Decathlon.

Files of BraTS and BIDS say by their names whose they are; one of the Decathlon may hold
several sequences.
"""

import collections
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.data import image_files, nifti, prepared
from medjax.data.nifti import SequenceFile
from medjax.data.sources import scan_files
from medjax.data.sources.scan_files import ScanFiles
from medjax.errors import InputError, check_choice, reading

# The scan (subject and time point) and the sequence in a file's name, since 2023.
BRATS = re.compile(r"(BraTS-\w+-\d+-\d{3})-(\w+)\.nii(?:\.gz)?", re.IGNORECASE)
DECATHLON_PARTS = {"training": "train", "test": "test"}  # Theirs -> our splits.
log = logging.getLogger("medjax")


def in_decathlon(
    path: Path, *, sequences: Sequence[str], part: str = "training"
) -> list[ScanFiles]:
    """Finds patients in the layout of the Medical Segmentation Decathlon, by name.

    `path` is a task's folder with its dataset.json; or, to predict, a folder of images
    such as imagesTs, or one image. Then dataset.json may lie beside or above it; without
    one the file's volumes are the sequences in their order. The sequences are names of
    dataset.json's 'modality', all of them or some.

    Source: Antonelli et al., Nature Communications 13 (2022) 4128.
    """
    path = Path(path).expanduser()
    scan_files.check_sequences(sequences)
    check_choice("data.part", part, DECATHLON_PARTS)
    if not path.exists():
        raise InputError(f"{path}: does not exist; give a folder or a NIfTI file")
    above = (path, path.parent, *path.parents[1:2])
    descriptions = [folder / "dataset.json" for folder in above]
    description = next((f for f in descriptions if f.is_file()), None)
    channels = _channels(description, sequences)
    if description is not None and description.parent == path:
        pairs, official = _listed(description, part), DECATHLON_PARTS[part]
        listed = {image for image, _ in pairs}
        for folder in sorted({image.parent for image in listed}):
            scan_files.warn_of(
                [p for p in scan_files.visible(folder.glob("*")) if p not in listed],
                folder,
            )
    else:
        inside = [path] if path.is_file() else scan_files.visible(path.iterdir())
        pairs, official = [(p, None) for p in inside if nifti.is_volume(p)], ""
        scan_files.warn_of([p for p in inside if not nifti.is_volume(p)], path)
    if not pairs:
        raise InputError(
            f"{path}: holds no image (.nii.gz) of the {part if official else 'folder'}"
        )
    scans, count = [], max(channels.values()) + 1
    for image, mask in pairs:
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        files = {s: SequenceFile(image, channels[s], count) for s in sequences}
        scans.append(ScanFiles(name, files, mask, official))
    return sorted(scans, key=lambda scan: scan.name)


def in_brats(path: Path, *, sequences: Sequence[str]) -> list[ScanFiles]:
    """Finds the scans of a BraTS challenge since 2023, by name.

    `BraTS-GLI-00000-001-t1c.nii.gz` is the sequence t1c of the time point 001 of the
    subject BraTS-GLI-00000, whose scans are one patient's; `seg` is the mask. The files
    lie in a folder for each scan, or in one.
    """
    path = scan_files.existing(path)
    scan_files.check_sequences(sequences)
    scans = collections.defaultdict(dict)
    files = sorted(_below(path))
    scan_files.warn_of([file for file in files if not BRATS.fullmatch(file.name)], path)
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

    `path` is the data set's folder, or to predict that of a subject or a session. The
    sequences and the mask are ends of files' names before `.nii.gz`: 'T1w', 'ce-gd_T1w',
    'label-lesion_mask'.

    Source: Gorgolewski et al., Scientific Data 3 (2016) 160044.
    """
    path = scan_files.existing(path).absolute()
    scan_files.check_sequences(sequences)
    above = [
        folder for folder in (path, *path.parents) if folder.name.startswith("sub-")
    ]
    root = above[0].parent if above else path
    folders = [f for f in sorted(root.glob("[sS][uU][bB]*")) if f.is_dir()]
    subjects = above[:1] or [f for f in folders if f.name.startswith("sub-")]
    scan_files.warn_of([] if above else [f for f in folders if f not in subjects], root)
    scans = []
    for subject in subjects:
        sessions = [f for f in sorted(subject.glob("ses-*")) if f.is_dir()]
        if path.name.startswith("ses-"):
            sessions = [path]
        elif sessions:
            inside = [f for f in _below(subject) if not {*sessions} & {*f.parents}]
            scan_files.warn_of(inside, subject)
        for session in sessions or [subject]:
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
        raise InputError(
            f"{path}: no folder 'sub-*' in it holds a file {names}; correct "
            "data.sequences or data.folder"
        )
    return scans


def _scan(
    name: str, files: Mapping[str, Path | None], sequences: Sequence[str], mask: str
) -> ScanFiles:
    paths = {sequence: files.get(sequence) for sequence in sequences}
    present = {name: path and SequenceFile(path) for name, path in paths.items()}
    return ScanFiles(name, present, files.get(mask))


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
    for path in paths:
        says = {part.split("-")[0]: part for part in path.name.split("_")}
        for part in scan.split("/"):
            if (other := says.get(part.split("-")[0], part)) != part:
                raise InputError(
                    f"{path}: lies in the folder of {part}, and its name says {other}: "
                    "move or rename it"
                )
    return paths[0] if paths else None


def _below(folder: Path) -> list[Path]:
    """The files in a folder and below it, see image_files.walk, but for texts."""
    files = (file for _, inside in image_files.walk(folder) for file in inside)
    return [file for file in files if file.suffix.lower() not in scan_files.TEXTS]


def _channels(description: Path | None, sequences: Sequence[str]) -> dict[str, int]:
    """Sequence -> which volume of a file it is."""
    if description is None:
        return {name: channel for channel, name in enumerate(sequences)}
    modality = _json(description).get("modality")
    if not isinstance(modality, dict) or not all(n.isdigit() for n in modality):
        raise InputError(f"{description}: has no table 'modality' of sequences")
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
    """Lists (image, mask) of a part, 'training' or 'test', as dataset.json names them."""
    folder, listed = description.parent, _json(description).get(part)
    try:
        if part == "test":
            pairs = [(folder / image, None) for image in listed]
        else:
            pairs = [
                (folder / pair["image"], folder / pair["label"]) for pair in listed
            ]
    except (TypeError, KeyError):
        what = "images" if part == "test" else "pairs of 'image' and 'label'"
        raise InputError(f"{description}: its {part!r} is no list of {what}") from None
    files = (file for pair in pairs for file in pair if file)
    if (twice := prepared.first_duplicate(files)) is not None:
        raise InputError(f"{description}: its {part!r} has {twice} twice: correct it")
    names = {image.name for image, _ in pairs}
    for image, mask in pairs:
        if mask and mask.name != image.name and mask.name in names:
            log.warning(
                "%s: the mask of %s is named after another image, %s: look at both",
                *(description, image.name, mask.name),
            )
    return pairs


def _json(path: Path) -> dict:
    with reading(path, "get it again"):
        read = json.loads(path.read_bytes())  # UTF-8, with or without its mark.
    if not isinstance(read, dict):
        raise InputError(f"{path}: is no dataset.json of the Decathlon")
    return read
