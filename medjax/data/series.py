"""A folder of one DICOM series -> a volume whose axes lie alike, or one error."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut

from medjax.data import nifti
from medjax.data.nifti import Volume
from medjax.errors import InputError
from medjax.geometry import grid
from medjax.geometry.itk import RAS_TO_LPS

UNEVEN = 0.02  # Share of the usual distance between slices that one may be off.
TURNED = 1e-3  # What a direction's cosine may differ between slices.
# Numbers, and how many.
GEOMETRY = {
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
CONVERT = "convert the series to NIfTI, with dcm2niix for example"


class Slice(NamedTuple):
    """What a header says of where a slice lies; the names are DICOM's.

    Rows and columns are pixels, the spacing is mm between rows, then columns, and the
    orientation is the direction of a row and of a column, in LPS.
    """

    SeriesInstanceUID: str
    Rows: int
    Columns: int
    PixelSpacing: np.ndarray
    ImageOrientationPatient: np.ndarray
    ImagePositionPatient: np.ndarray


def read(folder: str | os.PathLike) -> Volume:
    """Reads a series of single slices, sorted by where they lie in the patient.

    The values are the file's after its modality LUT or rescaling. The order of the
    file names and of InstanceNumber plays no role.

    Args:
      folder: of DICOM files of one series; other files are passed over.

    Returns:
      Its `stored` grid is [columns, rows, slices], as converters to NIfTI have it.

    Raises:
      InputError: no DICOM file, fewer than two slices, several series, frames or
        colours, slices that differ in size, direction or spacing, two slices in one
        place, a slice that is missing, or a file that can't be decoded.

    Source: DICOM PS3.3 C.7.6.2.1.1, the image plane.
    """
    folder = Path(folder)
    slices = {path: _header(path) for path in _files(folder)}
    if len(slices) < 2:
        raise InputError(
            f"{folder}: holds {len(slices)} DICOM slices; give a series of two or more"
        )
    _check_alike(slices)
    paths = _sorted(folder, slices)
    first, last = slices[paths[0]], slices[paths[-1]]
    across, down = np.split(first.ImageOrientationPatient, 2)
    between_rows, between_columns = first.PixelSpacing
    start, end = first.ImagePositionPatient, last.ImagePositionPatient
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = across * between_columns, down * between_rows
    lps[:3, 2], lps[:3, 3] = (end - start) / (len(paths) - 1), start
    affine = grid.check_affine(f"{folder}: its affine", RAS_TO_LPS @ lps)
    voxels = np.stack([_pixels(path).T for path in paths], axis=-1)
    volume = nifti.canonical(voxels, affine)
    return volume._replace(voxels=np.ascontiguousarray(volume.voxels))


def _files(folder: Path) -> list[Path]:
    """Those of DICOM's magic."""
    found = []
    try:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name == "DICOMDIR":
                continue
            if path.is_file():
                with open(path, "rb") as file:
                    if file.read(132)[128:] == b"DICM":
                        found.append(path)
    except OSError as error:
        why = f"{folder}: can't be read ({error.strerror})"
        raise InputError(f"{why}; give a folder that you may read") from error
    return found


def _header(path: Path) -> Slice:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        several = int(header.get("NumberOfFrames") or 1) > 1
        colour = header.get("SamplesPerPixel", 1) != 1
        values = {name: header.get(name) for name in Slice._fields}
        absent = [name for name, value in values.items() if value in (None, "")]
        if several or colour:
            raise InputError(f"holds {'several frames' if several else 'colours'}")
        if absent:
            raise InputError(f"has no {absent[0]}")
        for name, count in GEOMETRY.items():
            values[name] = np.array(values[name], float).reshape(count)
        found = Slice(**values)
        axes = found.ImageOrientationPatient.reshape(2, 3)
        if not np.allclose(axes @ axes.T, np.eye(2), 0, 10 * TURNED):
            raise InputError("has an ImageOrientationPatient of no right angle")
        if not np.isfinite(found.ImagePositionPatient).all():
            raise InputError("has an ImagePositionPatient that is no place")
        if not (found.PixelSpacing > 0).all():
            raise InputError("has a PixelSpacing that isn't positive")
    except InputError as error:
        raise InputError(f"{path}: {error}; {CONVERT}") from None
    except Exception as error:  # pydicom raises a dozen types on a damaged file.
        raise InputError(f"{path}: can't be read ({_why(error)}); {CONVERT}") from error
    return found


def _check_alike(slices: dict[Path, Slice]) -> None:
    """Refuses slices that aren't of one stack."""
    (first, one), *others = slices.items()
    for path, other in others:
        for name in Slice._fields[:-1]:  # All but the position.
            a, b = getattr(one, name), getattr(other, name)
            same = np.allclose(a, b, 0, TURNED) if name in GEOMETRY else a == b
            if not same:
                raise InputError(
                    f"{path}: has the {name} {b}, and {first.name} has {a}; "
                    "give a folder of one series of parallel slices"
                )


def _sorted(folder: Path, slices: dict[Path, Slice]) -> list[Path]:
    """The slices along their normal; refuses gaps and doubles."""
    one = next(iter(slices.values()))
    normal = np.cross(*np.split(one.ImageOrientationPatient, 2))
    place = {path: normal @ s.ImagePositionPatient for path, s in slices.items()}
    paths = sorted(place, key=place.get)
    steps = np.diff([place[path] for path in paths])
    usual = float(np.median(steps))
    for below, above, step in zip(paths[:-1], paths[1:], steps, strict=True):
        names = f"{below.name} and {above.name}"
        if step < 1e-3 * max(usual, 1):
            raise InputError(f"{folder}: {names} lie in one place; remove one of them")
        if abs(step - usual) > UNEVEN * usual:
            raise InputError(
                f"{folder}: {names} are {step:g} mm apart, others {usual:g} mm; "
                "add the slice that is missing, or export the series again"
            )
    return paths


def _pixels(path: Path) -> np.ndarray:
    """[rows, columns] float32 in the file's units."""
    try:
        dataset = pydicom.dcmread(path)
        pixels = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
        if pixels.shape != (dataset.Rows, dataset.Columns):
            raise ValueError(f"its pixels are {pixels.shape}")
    except Exception as error:  # As above.
        why = f"{path}: can't be decoded ({_why(error)})"
        raise InputError(f"{why}; export the series again") from error
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: holds voxels that are no numbers; export it again")
    return pixels


def _why(error: Exception) -> str:
    return " ".join(str(error).split())
