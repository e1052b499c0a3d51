"""A folder of one DICOM series -> a volume with canonical axes."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom

from medjax.data import dicom, nifti
from medjax.data.nifti import Volume
from medjax.errors import InputError, reading
from medjax.geometry import grid
from medjax.geometry.grid import RAS_TO_LPS

UNEVEN = 0.02  # Tolerance of the distance between slices, as a share of the median.
TURNED = 1e-3  # Tolerance of a direction's cosine between slices.
SLICE_TOLERANCE = 0.5  # Tolerance of a slice beside the line of all, in pixels.
# Elements that are numbers, and how many.
GEOMETRY = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
# What a series has one of: several are refused, or, if USUAL, warned of.
SAME_IN_SERIES = ("PatientID", "Modality", "RescaleType", "PhotometricInterpretation")
USUAL = ("FrameOfReferenceUID", "EchoTime", "ImageType", "PatientName")
USUAL += ("DiffusionBValue", "TemporalPositionIdentifier", "ConvolutionKernel")
COUNTS = ("ImagesInAcquisition", "NumberOfSlices")  # How many slices there should be.
CONVERT = "convert the series to NIfTI, with dcm2niix for example"
log = logging.getLogger("medjax")


class Slice(NamedTuple):
    """Where a slice lies, in DICOM's names: mm between rows, then columns; LPS."""

    SeriesInstanceUID: str
    Rows: int
    Columns: int
    PixelSpacing: np.ndarray
    ImageOrientationPatient: np.ndarray
    ImagePositionPatient: np.ndarray
    rescale: str  # 'none', 'identity', or 'own' units.
    said: dict[str, str]  # SAME_IN_SERIES, USUAL and COUNTS; '' is absent.


def read(folder: str | os.PathLike) -> Volume:
    """Reads a folder's one series of single slices, sorted by their position.

    The values are the file's after its modality LUT or rescaling. File names and
    InstanceNumber don't matter. Hidden files and a DICOMDIR are skipped; other files
    that aren't DICOM, and what lies further down, are named in a warning. The `stored`
    grid is [columns, rows, slices], as converters to NIfTI write it.

    Raises:
      InputError: fewer than two slices, several series, people, frames or colours,
        slices that differ in size, direction or spacing or lie beside each other, two
        slices in one place, a slice that is missing, a file that has a slice's suffix
        and is none, or that can't be decoded.

    Source: DICOM PS3.3 C.7.6.2.1.1, the image plane.
    """
    folder = Path(folder)
    with reading(folder, "give a folder that you may read", OSError):
        files = [path for path in sorted(folder.iterdir()) if dicom.is_visible(path)]
        images = [path for path in files if dicom.is_dicom(path)]
    slices = {path: _header(path) for path in images}
    below = _below(folder)
    if len(slices) < 2:
        hint = f", but {below} in it: correct data.files" if below else ""
        raise InputError(
            f"{folder}: holds {len(slices)} DICOM slices{hint}; give a series of two or "
            "more"
        )
    suffixes = {path.suffix for path in slices} - {""}
    others = [path for path in files if path not in slices]
    for path in others:
        if path.suffix in suffixes:
            raise InputError(
                f"{path}: is no DICOM, as others here are; export it again"
            )
    if names := [path.name for path in others] + [below] * (below != ""):
        log.warning("%s: left out: %s", folder, ", ".join(names))
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
    return nifti.canonical(voxels, affine)


def _below(folder: Path) -> str:
    """The first volume or folder of slices further down, by its path; '' for none."""
    for path in sorted(folder.rglob("*")):
        place = path if nifti.is_volume(path) else path.parent
        if (
            place != folder
            and dicom.is_visible(path)
            and (place == path or dicom.is_dicom(path))
        ):
            return str(place.relative_to(folder))
    return ""


def headers(folder: Path, *names: str) -> Iterator[pydicom.Dataset]:
    """These elements of a folder's DICOM files, in the order of the files' names."""
    options = {"stop_before_pixels": True, "specific_tags": [*names]}
    files = (path for path in sorted(folder.iterdir()) if dicom.is_dicom(path))
    return (dicom.dataset_of(path, **options) for path in files)


def patients_of(paths: Iterable[Path]) -> list[str]:
    """The PatientID in the first slice of each series among them; '' where it has none."""
    ids = []
    for folder in filter(Path.is_dir, paths):
        with contextlib.suppress(Exception):  # What is damaged is refused later.
            ids.append(dicom.patient(next(headers(folder, "PatientID"))))
    return ids


def _header(path: Path) -> Slice:
    try:
        header = dicom.dataset_of(path, stop_before_pixels=True)
        dicom.check_header(header)
        values = {name: header.get(name) for name in Slice._fields}
        values["rescale"] = _rescale(header)
        said = {name: header.get(name) for name in SAME_IN_SERIES + USUAL + COUNTS}
        values["said"] = {k: "" if v is None else str(v) for k, v in said.items()}
        for name, value in values.items():
            if value in (None, ""):
                raise InputError(f"has no {name}; {CONVERT}")
        for name, count in GEOMETRY.items():
            values[name] = np.array(values[name], float).reshape(count)
        position = Slice(**values)
        axes = position.ImageOrientationPatient.reshape(2, 3)
        if not np.allclose(axes @ axes.T, np.eye(2), 0, 10 * TURNED):
            raise InputError(
                f"has an ImageOrientationPatient of no right angle; {CONVERT}"
            )
        if not np.isfinite(position.ImagePositionPatient).all():
            raise InputError(
                f"has an ImagePositionPatient that is not finite; {CONVERT}"
            )
        if not (position.PixelSpacing > 0).all():
            raise InputError(f"has a PixelSpacing that isn't positive; {CONVERT}")
    except InputError as error:
        more = "" if CONVERT in str(error) else f"; or {CONVERT}"
        raise InputError(f"{path}: {error}{more}") from None
    except Exception as error:
        raise InputError(
            f"{path}: can't be read ({dicom.one_line(error)}); {CONVERT}"
        ) from error
    return position


def _rescale(header: pydicom.Dataset) -> str:
    """Tells how a slice is rescaled: 'none', 'identity' or 'own', see Slice."""
    names = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
    if not any(header.get(name) not in (None, "") for name in names):
        return "none"
    same = np.array_equal(dicom.rescaled(np.arange(2), header)[0], [0, 1])
    return "identity" if same else "own"


def _check_alike(slices: dict[Path, Slice]) -> None:
    """Refuses slices that aren't of one stack."""
    (first, reference), *others = slices.items()
    for path, other in others:
        for name in Slice._fields[:-3]:  # All but the position and the last two.
            a, b = getattr(reference, name), getattr(other, name)
            same = np.allclose(a, b, 0, TURNED) if name in GEOMETRY else a == b
            if not same:
                raise InputError(
                    f"{path}: has the {name} {b}, and {first.name} has {a}; "
                    "give a folder of one series of parallel slices"
                )
    for name in SAME_IN_SERIES + USUAL:
        values = {slice.said[name]: path for path, slice in slices.items()}
        values.pop("", None)
        if len(values) > 1:
            (a, path), (b, other), *_ = values.items()
            text = f"{path}: has the {name} {a}, and {other.name} has {b}"
            if name in SAME_IN_SERIES:
                raise InputError(f"{text}; give a folder of one series")
            log.warning("%s: are they of one series?", text)
    for name in COUNTS:
        counts = [s.said[name] for s in slices.values() if s.said[name].isdigit()]
        if (most := max(map(int, counts), default=0)) > len(slices):
            log.warning(
                "%s: holds %d slices, and their %s is %d: is it whole?",
                *(first.parent, len(slices), name, most),
            )
    plain = [path for path, slice in slices.items() if slice.rescale == "none"]
    if plain and any(slice.rescale == "own" for slice in slices.values()):
        raise InputError(
            f"{plain[0]}: has no rescaling, and others have; export the series again"
        )


def _sorted(folder: Path, slices: dict[Path, Slice]) -> list[Path]:
    """The slices along their normal; refuses gaps and duplicates."""
    first = next(iter(slices.values()))
    normal = np.cross(*np.split(first.ImageOrientationPatient, 2))
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
    corners = np.stack([slices[path].ImagePositionPatient for path in paths])
    line = np.linspace(corners[0], corners[-1], len(corners))  # Tilted, if it is.
    beside = np.linalg.norm(corners - line, axis=1)
    if beside.max() > SLICE_TOLERANCE * first.PixelSpacing.min() + UNEVEN * usual:
        raise InputError(
            f"{folder}: {paths[beside.argmax()].name} lies {beside.max():.3g} mm beside "
            f"the line of the other slices; {CONVERT}"
        )
    return paths


def _pixels(path: Path) -> np.ndarray:
    """[rows, columns] float32 in the file's units."""
    with reading(path, "export the series again"):
        dataset = dicom.dataset_of(path)
        pixels = dicom.rescaled(dicom.stored_of(dataset), dataset)[0].astype(np.float32)
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: holds voxels that are no numbers; export it again")
    return pixels
