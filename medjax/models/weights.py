"""Reads the weights that other frameworks wrote, without them and without trust.

Whoever gives a weight file gives it to a program that will believe it, so nothing in
one is run: pickles are read as data (`torch_file`), HDF5 may not point outside of
itself (`keras_file`), and no file is given more memory than it has bytes.
"""

import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from medjax.errors import InputError
from medjax.models import keras_file, torch_file

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
# What the parsers raise where bytes are missing or make no sense.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,  # RecursionError too.
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    safetensors.SafetensorError,
)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Names and arrays of a weight file, both as its framework wrote them.

    The content tells the format, whatever the suffix: safetensors; PyTorch (.pth,
    .pt, .pth.tar; zip or older), where the state dict is taken out of a checkpoint
    and DataParallel's `module.` off its names; Keras (.keras, .weights.h5, .h5),
    where a name is the layers' and the variable's, `conv1_bn/gamma`, whichever of
    the three it was.

    Returns:
      [...] arrays by name, read-only where they share memory: torch's OIHW, Keras'
      HWIO.

    Raises:
      InputError: no file, no weights, damaged, or asking for more than weights do.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a weight file")
    try:
        arrays = _read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except DAMAGE as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{path}: damaged, or no weight file ({what}); get it again"
        ) from error
    if not arrays:
        raise InputError(f"{path}: holds no weights; save the trained model's")
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(len(torch_file.MAGIC))
    if start.startswith(HDF5):
        return keras_file.read(path, path.stat().st_size)
    if start.startswith(ZIP):
        return _read_zip(path)
    if start == torch_file.MAGIC:
        return torch_file.read_legacy(path.read_bytes())
    if start[8:9] == b"{":  # After the length of this header.
        return _read_safetensors(path.read_bytes())
    raise InputError(
        "neither safetensors nor a Keras or PyTorch file; save the weights as one"
    )


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """A zip of Keras or of torch. Neither compresses, so it can't hold more than it is.

    This keeps out bombs, of compression as well as of entries that overlap.
    """
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
            raise InputError("unpacks to more than its size; save it uncompressed")
        if keras_file.INSIDE in file.namelist():
            return keras_file.read_zip(file)
        return torch_file.read_zip(file)


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor["dtype"] not in SAFETENSORS:
            raise InputError(
                f"{name} is {tensor['dtype']}; save it as float32 (F32) or bfloat16"
            )
        dtype = np.dtype(SAFETENSORS[tensor["dtype"]])
        arrays[name] = np.ndarray(tensor["shape"], dtype, tensor["data"])
    return arrays
