"""A DICOM file -> a film in [0, 1], displayed as its header asks for.

And a folder of one DICOM series -> a volume with canonical axes. What can't be read is
refused by one InputError; pydicom raises a dozen types on a damaged file.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from pydicom import uid
from pydicom.pixels import get_decoder, pixel_array

from medjax.data import nifti
from medjax.data.nifti import Volume
from medjax.errors import InputError, reading
from medjax.geometry import grid
from medjax.geometry.grid import RAS_TO_LPS

MAX_PIXELS = 200_000_000
# The first element of a file without a preamble: group 2 or 8, then a VR or a length.
BARE = re.compile(
    rb"([\x02\x08]\0.\0|\0[\x02\x08]\0.)([A-Z]{2}|..\0\0|\0\0..)", re.DOTALL
)
NATIVE = {  # (implicit VR, little endian) -> the syntax of a file that names none.
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}
log = logging.getLogger("medjax")


class Film(NamedTuple):
    """One film or picture as its file holds it, at its full size."""

    # [H, W] float32 in [0, 1], or [H, W, 3] RGB; in a film white (1) is dense.
    pixels: np.ndarray
    spacing: tuple[float, float]  # (x, y), mm a pixel; NaN where the file doesn't say.
    patient: str = ""  # DICOM's PatientID.


def begins(head: bytes) -> bool:
    """Whether a file that begins with these 132 bytes is DICOM; some lack a preamble."""
    return head[128:132] == b"DICM" or BARE.match(head) is not None


def is_visible(path: Path) -> bool:
    """Whether a path is a file, neither hidden nor an index; a pipe would block."""
    return not path.name.startswith(".") and path.name != "DICOMDIR" and path.is_file()


def is_dicom(path: Path) -> bool:
    """Whether a visible file, whatever its name, begins like DICOM."""
    if not is_visible(path):
        return False
    with path.open("rb") as file:
        return begins(file.read(132))


def check_size(height: int, width: int) -> None:
    """Refuses an image without pixels, or with more than MAX_PIXELS."""
    if height < 1 or width < 1:
        raise damaged(f"is {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"is {width} x {height} pixels, more than {MAX_PIXELS // 10**6} "
            "megapixels; shrink it first"
        )


def damaged(what: str) -> InputError:
    """The error for a file whose content is wrong: only a new copy helps."""
    return InputError(f"{what}; fetch or export the file again")


def decode(file: BinaryIO) -> Film:
    """Decodes a grey film of one frame.

    The stored values go through the modality LUT or rescaling, then the VOI LUT, or
    else the first VOI window, or else the range that BitsStored allows; MONOCHROME1
    is inverted, and padding is black. Values that need more bits than the header says
    have them, and a LUT has as many as it uses. The spacing is PixelSpacing, or else
    ImagerPixelSpacing.

    Raises:
      InputError: the file is truncated, damaged, zero-sized, of more than 200
        megapixels, of several frames, in colour, or in a compression that no
        installed decoder reads. The caller adds the file's name.
    """
    try:
        file.seek(0)
        # The header alone first: a cine of gigabytes is refused before it is read.
        _check(_open(file, stop_before_pixels=True))
        file.seek(0)
        dataset = _open(file)
        if not dataset.get("PixelData"):
            raise damaged("holds no PixelData: it is truncated or no image")
        stored = _stored(dataset)
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            first, table = _display_table(dataset, stored)
            table = table.astype(np.float32)
        pixels = table[stored.astype(np.int32) - first]
        return Film(pixels, _spacing(dataset), _patient(dataset))
    except InputError:
        raise
    except Exception as error:
        raise damaged(f"can't be decoded ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _open(file: BinaryIO | Path, **options) -> pydicom.Dataset:
    """A file's dataset, also without a preamble or meta information."""
    dataset = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = NATIVE[dataset.original_encoding]
    return dataset


def _check(header: pydicom.Dataset) -> None:
    check_size(int(header.Rows), int(header.Columns))
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"holds {frames} frames; export each as a file of its own")
    colour = header.PhotometricInterpretation
    if colour not in ("MONOCHROME1", "MONOCHROME2") or header.SamplesPerPixel != 1:
        raise InputError(f"is {colour}, not a grey film; convert it to MONOCHROME2")
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= min(16, allocated) or header.HighBit != stored - 1:
        raise InputError(
            f"stores {stored} of {allocated} bits up to bit {header.HighBit}, where 1 "
            "to 16 from bit 0 are read; export it with 16 bits"
        )
    _check_decoder(header)


def _check_decoder(header: pydicom.Dataset, why: str = "") -> None:
    """Refuses a compression that isn't decoded; `why` the decoders here can't do it."""
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InputError(
            f"is compressed as {syntax.name!r}, which isn't read; export it uncompressed"
        ) from None
    if why or not decoder.is_available:
        plugins = ", or ".join(decoder.missing_dependencies)
        raise InputError(
            f"is compressed as {syntax.name!r}{why}; install a plug-in that decodes it "
            f"({plugins}): pip install 'pylibjpeg[all]'"
        )


def _stored(dataset: pydicom.Dataset) -> np.ndarray:
    """[H, W], the stored values as pydicom decodes them, without unused bits.

    A JPEG has none: it may hold more bits than the header says.
    """
    _check_decoder(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    jpeg = syntax.is_encapsulated and syntax != uid.RLELossless
    unused = not jpeg or dataset.PixelRepresentation == 1
    try:
        stored = pixel_array(dataset, correct_unused_bits=unused)
    except RuntimeError as error:
        if "does not support" in str(error):
            _check_decoder(dataset, f", and it can't be decoded ({_line(error)})")
        raise
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise damaged(f"decodes to a shape of {stored.shape}")
    return stored


def _display_table(
    dataset: pydicom.Dataset, stored: np.ndarray
) -> tuple[int, np.ndarray]:
    """The lowest stored value, and the displayed values from it on, in [0, 1]."""
    signed = dataset.PixelRepresentation == 1
    ends = (int(stored.min()), int(stored.max()))
    needed = max(v.bit_length() if v >= 0 else (~v).bit_length() for v in ends)
    bits = max(dataset.BitsStored, needed + signed)
    if bits > 16:
        raise InputError(f"holds values of {bits} bits; export it with 16 bits")
    first = -(1 << bits - 1) if signed else 0
    codes = np.arange(first, first + (1 << bits))
    values, white = _rescaled(codes, dataset)
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if voi := dataset.get("VOILUTSequence"):
        values, white = _lookup(values, voi[0], dataset)
        shown = values / white
    elif center is not None and width is not None:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        shown = _window(values, center, width, function.upper())
    else:
        low, high = (0.0, white) if white else (values.min(), values.max())
        if low == high:
            raise damaged("has a RescaleSlope of 0")
        shown = (values - low) / (high - low)
    shown = np.clip(shown, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        limit = dataset.get("PixelPaddingRangeLimit")
        limit = padding if limit is None else limit
        ends = sorted(_with_sign(end, codes) for end in (padding, limit))
        shown[(codes >= ends[0]) & (codes <= ends[1])] = 0
    return first, shown


def _rescaled(values: np.ndarray, dataset) -> tuple[np.ndarray, float | None]:
    """Stored values in the file's units, and the white of its modality LUT."""
    if modality := dataset.get("ModalityLUTSequence"):
        return _lookup(values, modality[0], dataset)
    slope = _first(dataset, "RescaleSlope", 1.0)
    return values * slope + _first(dataset, "RescaleIntercept", 0.0), None


def _with_sign(value: int, values: np.ndarray) -> int:
    """A negative number that the file holds as an unsigned one: 64512 for -1024."""
    unsigned = value >= 1 << 15 and value > values.max()
    return value - (1 << 16) if unsigned else value


def _lookup(values, item: pydicom.Dataset, dataset) -> tuple[np.ndarray, float]:
    """The LUT's entries at these values, and the largest value of the entries' bits.

    Many descriptors say 16 bits where the entries use 12, which would be shown almost
    black: the bits in use count. A word holds one entry, or two of 8 bits.

    Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1.
    """
    entries, first, bits = item.LUTDescriptor
    entries = entries or 1 << 16  # 16 bits can't hold 65536.
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if dataset.original_encoding[1] else ">u2")
    table = np.asarray(table).astype("<u2")
    if bits == 8 and table.size < entries:
        table = table.view(np.uint8)
    if table.size < entries or not 8 <= bits <= 16:
        raise damaged(f"has a LUT of {table.size} entries of {bits} bits for {entries}")
    table = table[:entries].astype(np.float64)
    index = np.rint(values) - _with_sign(first, values)
    index = np.clip(index, 0, entries - 1).astype(int)
    return table[index], 2.0 ** max(8, int(table.max()).bit_length()) - 1


def _window(values, center: float, width: float, function: str) -> np.ndarray:
    """Maps a VOI window onto [0, 1].

    Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, with y from 0 to 1.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise damaged(f"has the VOILUTFunction {function!r}")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise damaged(f"has a WindowWidth of {width:g}")
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 u)) without its overflow; at |u| = 10 it is 0 or 1.
        u = np.clip(values - center, -10 * width, 10 * width) / width
        return 0.5 + 0.5 * np.tanh(2 * u)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return np.clip(values - center, -width / 2, width / 2) / width + 0.5


def _first(dataset: pydicom.Dataset, name: str, absent: float | None = None):
    """An element's first value, finite, or `absent` where it has none."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return absent
    if not math.isfinite(value):
        raise damaged(f"has a {name} of {value}")
    return float(value)


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float]:
    """(x, y) in mm a pixel; NaN where absent or not a length."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        if value := dataset.get(name):
            y, x = (float(v) for v in value)  # DICOM: between rows, then columns.
            if 0 < x < math.inf and 0 < y < math.inf:
                return x, y
    return math.nan, math.nan


UNEVEN = 0.02  # Tolerance of the distance between slices, as a share of the median.
TURNED = 1e-3  # Tolerance of a direction's cosine between slices.
# Elements that are numbers, and how many.
GEOMETRY = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
CONVERT = "convert the series to NIfTI, with dcm2niix for example"


class Slice(NamedTuple):
    """Where a slice lies, in DICOM's names: mm between rows, then columns; LPS."""

    SeriesInstanceUID: str
    Rows: int
    Columns: int
    PixelSpacing: np.ndarray
    ImageOrientationPatient: np.ndarray
    ImagePositionPatient: np.ndarray


def read(folder: str | os.PathLike) -> Volume:
    """Reads a folder's one series of single slices, sorted by their position.

    The values are the file's after its modality LUT or rescaling. File names and
    InstanceNumber don't matter. Hidden files and a DICOMDIR are skipped; other files
    that aren't DICOM, and what lies further down, are named in a warning. The `stored`
    grid is [columns, rows, slices], as converters to NIfTI write it.

    Raises:
      InputError: fewer than two slices, several series, frames or colours, slices that
        differ in size, direction or spacing, two slices in one place, a slice that is
        missing, a file that has a slice's suffix and is none, or that can't be decoded.

    Source: DICOM PS3.3 C.7.6.2.1.1, the image plane.
    """
    folder = Path(folder)
    with reading(folder, "give a folder that you may read", OSError):
        files = [path for path in sorted(folder.iterdir()) if is_visible(path)]
        images = [path for path in files if is_dicom(path)]
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
        if place != folder and is_visible(path) and (place == path or is_dicom(path)):
            return str(place.relative_to(folder))
    return ""


def headers(folder: Path, *names: str) -> list[pydicom.Dataset]:
    """These elements of a folder's DICOM files, in the order of the files' names."""
    options = {"stop_before_pixels": True, "specific_tags": [*names]}
    files = (path for path in sorted(folder.iterdir()) if is_dicom(path))
    return [_open(path, **options) for path in files]


def patients_of(paths: Iterable[Path]) -> list[str]:
    """The PatientID in the first slice of each series among them; '' where it has none."""
    ids = []
    for folder in filter(Path.is_dir, paths):
        with contextlib.suppress(Exception):  # What is damaged is refused later.
            slices = filter(is_dicom, sorted(folder.iterdir()))
            how = {"stop_before_pixels": True, "specific_tags": ["PatientID"]}
            ids.append(_patient(_open(next(slices), **how)))
    return ids


def _patient(header: pydicom.Dataset) -> str:
    return str(header.get("PatientID") or "").strip()


def _header(path: Path) -> Slice:
    try:
        header = _open(path, stop_before_pixels=True)
        _check(header)
        values = {name: header.get(name) for name in Slice._fields}
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
            f"{path}: can't be read ({_line(error)}); {CONVERT}"
        ) from error
    return position


def _check_alike(slices: dict[Path, Slice]) -> None:
    """Refuses slices that aren't of one stack."""
    (first, reference), *others = slices.items()
    for path, other in others:
        for name in Slice._fields[:-1]:  # All but the position.
            a, b = getattr(reference, name), getattr(other, name)
            same = np.allclose(a, b, 0, TURNED) if name in GEOMETRY else a == b
            if not same:
                raise InputError(
                    f"{path}: has the {name} {b}, and {first.name} has {a}; "
                    "give a folder of one series of parallel slices"
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
    return paths


def _pixels(path: Path) -> np.ndarray:
    """[rows, columns] float32 in the file's units."""
    with reading(path, "export the series again"):
        dataset = _open(path)
        pixels = _rescaled(_stored(dataset), dataset)[0].astype(np.float32)
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: holds voxels that are no numbers; export it again")
    return pixels
