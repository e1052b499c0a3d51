"""Prepared volumes on disk: a pair of arrays a patient, and a table of them all.

    0.image.npy   [D, H, W, C] float16, z-scores
    0.label.npy   [D, H, W, K] uint8; not there for a patient without a mask
    0.grid.json   the affine, and the grid of the patient's file
    table.csv     one row a patient, see COLUMNS
    data.json     sequences, regions with their values, and the options
    digests.json  of the bytes of each array's file
    quarantine.csv  patients left out, and why

The arrays are plain .npy, so a loader maps them and reads only the part it needs.
"""

import csv
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax.data import mri
from medjax.data.nifti import Grid
from medjax.data.scan import Case
from medjax.data.sources.scans import Found, patient_numbers
from medjax.errors import InputError

# Then voxels_<region>, blank without a mask, and has_<sequence>, 1 or 0.
COLUMNS = (
    "id",  # int, that of the files' names.
    "image",  # str, the patient's folder or file.
    "patient",  # int, the unit of every split and interval.
    "official",  # 'train', 'test' or ''.
    "depth",  # int, voxels, as are the next two.
    "height",
    "width",
    "spacing_d",  # float, mm, as are the next two.
    "spacing_h",
    "spacing_w",
)

DIGESTS = "digests.json"


class Patient(NamedTuple):
    """One volume on its way into the prepared folder.

    name: of the patient, or of the volume where a patient has several.
    patient: the patient's number.
    read: makes the case when it is asked for, so that one is in memory at a time; an
      InputError of it quarantines the patient.
    official: 'train', 'test' or ''.
    """

    name: str
    patient: int
    read: Callable[[], Case]
    official: str = ""


class Prepared(NamedTuple):
    """A prepared folder.

    table: COLUMNS, voxels_<region> and has_<sequence>.
    sequences: [C] names of the image's channels.
    regions: [K] names of the label's channels -> their values in a mask's file.
    options: what the data was prepared with.
    """

    folder: Path
    table: pd.DataFrame
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    options: dict[str, Any]


def from_files(
    found: Sequence[Found],
    *,
    regions: Mapping[str, Sequence[int]],
    labelled: bool = True,
    patient: str = "",
    **options,
) -> list[Patient]:
    """What `prepare` takes, of patients that `patients` found.

    Args:
      found: their files.
      regions: region -> the mask's values.
      labelled: whether a patient without a mask is quarantined.
      patient: see patients.patient_numbers.
      options: of `mri.read_case`.

    Raises:
      InputError: nobody said which volumes show the same patient.
    """

    def read(one: Found) -> Case:
        if labelled and one.mask is None:
            raise InputError(f"{one.name}: has no mask; add it, or mend data.mask")
        return mri.read_case(one.files, one.mask, regions=regions, **options)

    numbers = patient_numbers([one.name for one in found], patient)
    return [
        Patient(one.name, number, functools.partial(read, one), one.official)
        for number, one in zip(numbers, found, strict=True)
    ]


def prepare(
    patients: Sequence[Patient],
    folder: Path,
    *,
    sequences: Sequence[str],
    regions: Mapping[str, Sequence[int]],
    options: Mapping[str, Any],
    max_quarantined: float = 0.0,
    progress: Callable[[], None] = lambda: None,
) -> Prepared:
    """Writes cases as a prepared folder, which is there whole or not at all.

    Args:
      patients: files' or a phantom's; one at a time is in memory.
      folder: to be made.
      sequences: [C] names of the image's channels.
      regions: [K] names of the label's channels -> values that a written mask has.
      options: plain data, written down.
      max_quarantined: share of the patients that may be left out, in [0, 1].
      progress: called once a patient.

    Raises:
      InputError: the folder exists, no patient, two of one name, or too many of them
        quarantined: `<folder>-quarantine.csv` then says why.
    """
    folder = Path(folder).absolute()
    names = [patient.name for patient in patients]
    if not names:
        raise InputError("the data has no patient: check data.folder and data.files")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two patients are called {twice[0]!r}: rename one of them")
    if folder.exists():
        raise InputError(f"{folder}: exists; remove it to prepare the data again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        rows, left_out = _write_all(patients, partial, sequences, regions, progress)
        _write_rows(partial / "quarantine.csv", ["file", "reason"], left_out)
        share = len(left_out) / len(patients)
        if not rows or share > max_quarantined:
            kept = folder.with_name(f"{folder.name}-quarantine.csv")
            shutil.copyfile(partial / "quarantine.csv", kept)
            raise InputError(
                f"{len(left_out)} of {len(patients)} patients can't be used "
                f"({share:.1%}, data.max_quarantined allows {max_quarantined:.1%}); "
                f"the first: {left_out[0][1]}; see {kept}, then mend the files or "
                "raise data.max_quarantined"
            )
        pd.DataFrame(rows).to_csv(partial / "table.csv", index=False)
        about = {
            "sequences": list(sequences),
            "regions": {name: list(values) for name, values in regions.items()},
            "options": dict(options),
        }
        (partial / "data.json").write_text(json.dumps(about, indent=1))
        digests = {path.name: _digest(path) for path in sorted(partial.glob("*.npy"))}
        (partial / DIGESTS).write_text(json.dumps(digests, indent=1))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_prepared(folder)


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` made that folder."""
    return (Path(folder) / "data.json").is_file()


def read_prepared(folder: Path) -> Prepared:
    """Opens a prepared folder.

    Raises:
      InputError: it is none.
    """
    folder = Path(folder)
    if not is_prepared(folder):
        raise InputError(f"{folder}: is no prepared data; prepare it first")
    about = json.loads((folder / "data.json").read_text())
    table = pd.read_csv(
        folder / "table.csv",
        dtype={"image": str, "official": str},
        keep_default_na=False,  # A patient may be called 'NA'.
        na_values={name: [""] for name in _regions(about["regions"])},
    )
    return Prepared(
        folder,
        table,
        tuple(about["sequences"]),
        {name: tuple(values) for name, values in about["regions"].items()},
        about["options"],
    )


def load(prepared: Prepared, id: int) -> Case:
    """One case; its arrays are mapped, and read where they are touched."""
    image, label, where = (
        prepared.folder / f"{id}.{kind}"
        for kind in ("image.npy", "label.npy", "grid.json")
    )
    grid = json.loads(where.read_text())
    affine = np.array(grid["affine"])
    row = prepared.table.set_index("id").loc[id]
    return Case(
        np.load(image, mmap_mode="r"),
        np.load(label, mmap_mode="r") if label.exists() else None,
        row[_sequences(prepared.sequences)].to_numpy(np.float32),
        np.linalg.norm(affine[:3, :3], axis=0),
        affine,
        Grid(tuple(grid["original_shape"]), np.array(grid["original_affine"])),
    )


def _write_all(
    patients, folder, sequences, regions, progress
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Rows of the table, and (patient, reason) of those left out."""
    rows, left_out = [], []
    for patient in patients:
        try:
            case = patient.read()
        except InputError as error:
            left_out.append((patient.name, str(error)))
        else:
            rows.append(_write(case, len(rows), patient, folder, sequences, regions))
            del case  # The next one is read into its place.
        progress()
    return rows, left_out


def _write(
    case: Case, id: int, patient: Patient, folder: Path, sequences, regions
) -> dict[str, Any]:
    """Writes one case's files, and returns its row."""
    count, wanted = case.image.shape[-1], len(sequences)
    if count != wanted or len(case.presence) != wanted:
        raise ValueError(f"{patient.name}: {count} channels for {wanted} sequences")
    np.save(folder / f"{id}.image.npy", case.image.astype(np.float16))
    voxels = [None] * len(regions)
    if case.label is not None:
        np.save(folder / f"{id}.label.npy", case.label.astype(np.uint8))
        voxels = np.sum(case.label, axis=(0, 1, 2), dtype=np.int64).tolist()
    where = {
        "affine": case.affine.tolist(),
        "original_shape": list(map(int, case.original.shape)),
        "original_affine": case.original.affine.tolist(),
    }
    (folder / f"{id}.grid.json").write_text(json.dumps(where))
    known = (id, patient.name, patient.patient, patient.official)
    sizes = (*case.image.shape[:3], *(f"{mm:.9g}" for mm in case.spacing))
    return {
        **dict(zip(COLUMNS, known + sizes, strict=True)),
        **dict(zip(_regions(regions), voxels, strict=True)),
        **dict(zip(_sequences(sequences), case.presence.astype(int), strict=True)),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _regions(names: Iterable[str]) -> list[str]:
    return [f"voxels_{name}" for name in names]


def _sequences(names: Iterable[str]) -> list[str]:
    return [f"has_{name}" for name in names]


def _write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
