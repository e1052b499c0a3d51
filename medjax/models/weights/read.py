"""Reads the weights that other frameworks wrote, without them and without trust.

Whoever gives a weight file gives it to a program that will believe it, so nothing in
one is run: pickles are read as data (`torch_file`), HDF5 may not point outside of
itself (`keras_file`), and no file is given more memory than it has bytes.

PyTorch's two file formats, and the state dict in them.
"""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from numpy.lib.stride_tricks import as_strided

from medjax.errors import InputError
from medjax.models.weights import keras
from medjax.models.weights.torch_pickle import Tensor, load

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
        start = file.read(len(MAGIC))
    if start.startswith(HDF5):
        return keras.read(path, path.stat().st_size)
    if start.startswith(ZIP):
        return _read_zip(path)
    if start == MAGIC:
        return read_legacy(path.read_bytes())
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
        if keras.INSIDE in file.namelist():
            return keras.read_zip(file)
        return read_zip(file)


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


# The format before torch 1.6 begins with this number as a pickle of its own.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_zip(file: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """One pickle, and an entry for each storage beside it."""
    names = file.namelist()
    pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError("a zip of neither PyTorch nor Keras; save the weights as one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names:
        _check_order(file.read(f"{folder}byteorder") == b"little")
    content, _ = load(io.BytesIO(file.read(pickles[0])))
    tensors = _state_dict(content)
    keys = {tensor.storage.key for tensor in tensors.values()}
    return _arrays(tensors, {key: file.read(f"{folder}data/{key}") for key in keys})


def read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic, version, machine, content, keys), then the storages."""
    file = io.BytesIO(data)
    _, _, (machine, _), (content, storages), (keys, _) = [load(file) for _ in range(5)]
    _check_order(machine["little_endian"])
    itemsize = {storage.key: storage.dtype.itemsize for storage in storages}
    entries, at = {}, file.tell()
    for key in keys:  # Each has its number of elements first.
        start = at + 8
        at = start + int.from_bytes(data[at:start], "little") * itemsize[key]
        entries[key] = memoryview(data)[start:at]
    return _arrays(_state_dict(content), entries)


def _check_order(little: bool) -> None:
    if not little:
        raise InputError("big-endian; save it again on a little-endian machine")


def _state_dict(content: object) -> dict[str, Tensor]:
    """The tensors of a checkpoint's model, by their names in the bare model.

    What a checkpoint has beside them (optimiser, epoch) is left out.
    """
    for _ in WRAPPERS:  # Not for ever: a dict may hold itself.
        inner = next((w for w in WRAPPERS if _is_dict(content, w)), None)
        content = content if inner is None else content[inner]
    if not isinstance(content, dict):
        raise InputError(f"holds a {type(content).__name__}, not a state dict")
    found = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            continue
        bare = str(name).removeprefix("module.")  # DataParallel's.
        if bare in found:
            raise InputError(f"has {bare} twice, once as module.{bare}; remove one")
        found[bare] = value
    if not found:
        keys = f"{list(content)[:5]}"[:100]
        raise InputError(f"no tensor among {keys}; save the state dict of a model")
    return found


def _is_dict(content: object, name: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(name), dict)


def _arrays(tensors: dict[str, Tensor], entries: dict) -> dict[str, np.ndarray]:
    return {name: _view(name, t, entries[t.storage.key]) for name, t in tensors.items()}


def _view(name: str, tensor: Tensor, data: bytes) -> np.ndarray:
    """A view of the bytes of its storage, which it may not leave."""
    storage, offset, shape, strides = tensor
    if len(data) != storage.stored * storage.dtype.itemsize:
        raise InputError(f"{name}: its storage is cut short; get the file again")
    count = math.prod(shape)
    # The element that is furthest from the start; none if there are no elements.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (count and last >= storage.size):
        raise InputError(f"{name} leaves its storage; get the file again")
    if count > storage.size:  # A stride of 0: small on disk, any size in memory.
        raise InputError(f"{name} repeats its elements; save it contiguous()")
    if count == 0:
        return np.empty(shape, storage.dtype)
    flat = np.ndarray(storage.stored, storage.dtype, data)[storage.start + offset :]
    steps = [step * storage.dtype.itemsize for step in strides]
    return as_strided(flat, shape, steps, writeable=False)
