"""A DICOM file -> a film in [0, 1], as its header wants it displayed."""

import math
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.pixels import get_decoder

from medjax.data.film import Film, check_size, spoilt
from medjax.errors import InputError


def decode(file: BinaryIO) -> Film:
    """Decodes a grey film of one frame.

    The stored values go through the modality LUT or rescaling, then the VOI LUT, or
    else the first VOI window, or else the range that BitsStored allows; MONOCHROME1
    is inverted. The spacing is PixelSpacing, or else ImagerPixelSpacing.

    Args:
      file: a DICOM file, open for reading; it is read from its beginning.

    Raises:
      InputError: truncated, damaged, zero-sized, of more than 200 megapixels, of
        several frames, in colour, or compressed as no installed decoder reads it.
        The file's name is for the caller to add.
    """
    try:
        file.seek(0)
        # The header alone first: a cine of gigabytes is refused before it is read.
        _check(pydicom.dcmread(file, stop_before_pixels=True))
        file.seek(0)
        dataset = pydicom.dcmread(file)
        if not dataset.get("PixelData"):
            raise spoilt("holds no PixelData: it is truncated or no image")
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            table = _display_table(dataset).astype(np.float32)
        return Film(table[_codes(dataset)], _spacing(dataset))
    except InputError:
        raise
    except Exception as error:  # pydicom raises a dozen types on a damaged file.
        why = " ".join(str(error).split())
        raise spoilt(f"can't be decoded ({why})") from error


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
    syntax = header.file_meta.TransferSyntaxUID
    if not (decoder := get_decoder(syntax)).is_available:
        plugins = ", or ".join(decoder.missing_dependencies)
        raise InputError(
            f"is compressed as {syntax.name!r}; install a plug-in that decodes it "
            f"({plugins}): pip install 'pylibjpeg[all]'"
        )


def _codes(dataset: pydicom.Dataset) -> np.ndarray:
    """Returns the stored bits, [H, W] unsigned, clear of what lies above them."""
    stored = dataset.pixel_array
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise spoilt(f"decodes to a shape of {stored.shape}")
    return stored.view(f"u{stored.itemsize}") & ((1 << dataset.BitsStored) - 1)


def _display_table(dataset: pydicom.Dataset) -> np.ndarray:
    """Returns what each code of BitsStored bits is shown as, float64 in [0, 1]."""
    bits = dataset.BitsStored
    values = np.arange(1 << bits)
    if dataset.PixelRepresentation == 1:
        values -= values >> (bits - 1) << bits  # Two's complement.
    if modality := dataset.get("ModalityLUTSequence"):
        values, high = _lookup(values, modality[0], dataset)
        low = 0.0
    else:
        values = values * _first(dataset, "RescaleSlope", 1.0)
        values += _first(dataset, "RescaleIntercept", 0.0)
        low, high = values.min(), values.max()
        if low == high:
            raise spoilt("has a RescaleSlope of 0")
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if voi := dataset.get("VOILUTSequence"):
        values, high = _lookup(values, voi[0], dataset)
        shown = values / high
    elif center is not None and width is not None:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        shown = _window(values, center, width, function.upper())
    else:
        shown = (values - low) / (high - low)
    shown = np.clip(shown, 0, 1)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _lookup(values, item: pydicom.Dataset, dataset) -> tuple[np.ndarray, float]:
    """Returns the LUT's entries at these values, and the greatest they could be.

    Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1.
    """
    entries, first, bits = item.LUTDescriptor
    entries = entries or 1 << 16  # As 16 bits can't say 65536.
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if dataset.original_encoding[1] else ">u2")
    table = np.asarray(table, np.float64)
    if table.size < entries or not 8 <= bits <= 16:
        raise spoilt(f"has a LUT of {table.size} entries of {bits} bits for {entries}")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(int)
    return table[index], 2.0**bits - 1


def _window(values, center: float, width: float, function: str) -> np.ndarray:
    """Maps a VOI window onto [0, 1].

    Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, with y from 0 to 1.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise spoilt(f"has the VOILUTFunction {function!r}")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise spoilt(f"has a WindowWidth of {width:g}")
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
    """Returns an element's first value, finite, or `absent` where it has none."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return absent
    if not math.isfinite(value):
        raise spoilt(f"has a {name} of {value}")
    return float(value)


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Returns (x, y) in mm a pixel; NaN where absent or not a length."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        if value := dataset.get(name):
            y, x = (float(v) for v in value)  # DICOM: between rows, then columns.
            if 0 < x < math.inf and 0 < y < math.inf:
                return x, y
    return math.nan, math.nan
