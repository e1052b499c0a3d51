"""A DICOM file -> a film in [0, 1], displayed as its header asks for.

What can't be read is refused by one InputError; pydicom raises a dozen types on a damaged
file.
"""

import math
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from pydicom import uid
from pydicom.pixels import get_decoder, pixel_array

from medjax.errors import InputError

MAX_PIXELS = 200_000_000
# The first element of a file without a preamble: group 2 or 8, then a VR or a length.
BARE = re.compile(
    rb"([\x02\x08]\0.\0|\0[\x02\x08]\0.)([A-Z]{2}|..\0\0|\0\0..)", re.DOTALL
)
NEEDED = ("Columns", "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated")
NEEDED += ("BitsStored", "HighBit", "PixelRepresentation")
NATIVE = {  # (implicit VR, little endian) -> the syntax of a file that names none.
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}


class Film(NamedTuple):
    """One film or picture as its file holds it, at its full size."""

    # [H, W] float32 in [0, 1], or [H, W, 3] RGB; in a film white (1) is dense.
    pixels: np.ndarray
    spacing: tuple[float, float]  # (x, y), mm a pixel; NaN where the file doesn't say.
    patient: str = ""  # DICOM's PatientID.
    doubt: str = ""  # How the file contradicts itself.


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
        check_header(dataset_of(file, stop_before_pixels=True))
        file.seek(0)
        dataset = dataset_of(file)
        if not dataset.get("PixelData"):
            raise damaged("holds no PixelData: it is truncated or no image")
        stored = stored_of(dataset)
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            first, table = _display_table(dataset, stored)
            table = table.astype(np.float32)
        pixels = table[stored.astype(np.int32) - first]
        return Film(pixels, _spacing(dataset), patient(dataset), _doubt(dataset))
    except InputError:
        raise
    except Exception as error:
        raise damaged(f"can't be decoded ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def dataset_of(file: BinaryIO | Path, **options) -> pydicom.Dataset:
    """A file's dataset, also without a preamble or meta information.

    What the functional groups of an enhanced file say of its first frame is there, too.
    """
    dataset = pydicom.dcmread(file, force=True, **options)
    for groups in ("Shared", "PerFrame"):
        for group in dataset.get(f"{groups}FunctionalGroupsSequence", ())[:1]:
            for part in (e.value[0] for e in group if e.VR == "SQ" and e.value):
                dataset.update({e.tag: e for e in part if e.tag not in dataset})
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = NATIVE[dataset.original_encoding]
    return dataset


def check_header(header: pydicom.Dataset) -> None:
    """Refuses what isn't one grey frame of at most 16 bits, in a compression that is read."""
    if header.get("Rows") is None:
        kind = getattr(header.get("SOPClassUID"), "name", "of no SOP class")
        raise InputError(
            f"has no Rows, so it is no image ({kind}); leave it out, or export it again"
        )
    for name in NEEDED:
        if header.get(name) in (None, ""):
            raise damaged(f"has no {name}")
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


def stored_of(dataset: pydicom.Dataset) -> np.ndarray:
    """[H, W], the stored values as pydicom decodes them, without unused bits.

    A JPEG has none: it may hold more bits than the header says.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    jpeg = syntax.is_encapsulated and syntax != uid.RLELossless
    unused = not jpeg or dataset.PixelRepresentation == 1
    try:
        stored = pixel_array(dataset, correct_unused_bits=unused)
    except RuntimeError as error:
        if "does not support" in str(error):
            _check_decoder(dataset, f", and it can't be decoded ({one_line(error)})")
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
    values, white = rescaled(codes, dataset)
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


def rescaled(values: np.ndarray, dataset) -> tuple[np.ndarray, float | None]:
    """Stored values in the file's units, and the white of its modality LUT."""
    if modality := dataset.get("ModalityLUTSequence"):
        return _lookup(values, modality[0], dataset)
    slope = _first(dataset, "RescaleSlope", 1.0)
    if not (slope and math.isfinite(slope)):
        raise damaged(f"has a RescaleSlope of {slope:g}")
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


def _doubt(dataset: pydicom.Dataset) -> str:
    """How two elements of a film disagree on which value is black; '' if they don't.

    Makers write a wrong shape, so viewers that obey it show such films inverted.

    Source: DICOM PS3.3 C.8.11.3.1.
    """
    colour = dataset.PhotometricInterpretation
    shape = dataset.get("PresentationLUTShape")
    if not shape or (shape == "INVERSE") == (colour == "MONOCHROME1"):
        return ""
    return f"{colour} with the PresentationLUTShape {shape}, which is ignored"


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float]:
    """(x, y) in mm a pixel; NaN where absent or not a length."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        if value := dataset.get(name):
            y, x = (float(v) for v in value)  # DICOM: between rows, then columns.
            if 0 < x < math.inf and 0 < y < math.inf:
                return x, y
    return math.nan, math.nan


def patient(header: pydicom.Dataset) -> str:
    """Its PatientID; '' where it has none."""
    return str(header.get("PatientID") or "").strip()
