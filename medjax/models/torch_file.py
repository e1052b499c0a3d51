"""PyTorch's two file formats, and the state dict in them."""

import io
import math
import zipfile

import numpy as np
from numpy.lib.stride_tricks import as_strided

from medjax.errors import InputError
from medjax.models.torch_pickle import Tensor, load

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
