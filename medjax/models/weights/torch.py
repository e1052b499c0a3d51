"""Reads PyTorch's two file formats without torch, and the weights in them.

The weights are a state dict, or those of a whole pickled module.
"""

import io
import itertools
import math
import zipfile
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from medjax.errors import InputError
from medjax.models.weights.pickled import RESAVE, Global, Object, Tensor, load

# The format before torch 1.6 begins with this number as a pickle of its own.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher")
# Modules of a hostile file may hold each other. Characters of a name; names in all.
MAX_NAME_BYTES, MOST = 1000, 100_000


def read_zip(file: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """A zip of one pickle and an entry for each storage."""
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
    """The tensors of a checkpoint's model, by their names without wrappers.

    A checkpoint's other contents (optimiser, epoch) are left out.
    """
    for _ in WRAPPERS:  # A limit, because a dict may contain itself.
        if isinstance(content, dict):
            inner = [content.get(wrapper) for wrapper in WRAPPERS]
            inner = [value for value in inner if isinstance(value, dict | Object)]
            content = inner[0] if inner else content
    if isinstance(content, Object):
        content = dict(_of_module(content))
    if not isinstance(content, dict):
        kind = type(content).__name__
        kind = repr(content.name) if isinstance(content, Global) else f"a {kind}"
        raise InputError(f"holds {kind:.100}, not a state dict; {RESAVE}")
    tensors = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            continue
        bare = str(name).removeprefix("module.")  # DataParallel's.
        if bare in tensors:
            raise InputError(f"has {bare} twice, once as module.{bare}; remove one")
        tensors[bare] = value
    if not tensors:
        keys = f"{list(content)[:5]}"[:100]
        raise InputError(f"no tensor among {keys}; save the state dict of a model")
    return tensors


def _of_module(module: Object) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a torch.nn.Module, named as in its state dict."""
    names, waiting, size = ("_parameters", "_buffers", "_modules"), [("", module)], 0
    endless = InputError(f"its modules don't end, or their names; {RESAVE}")
    while waiting:
        prefix, module = waiting.pop()
        parts = [module.attributes.get(name) for name in names]
        if not all(isinstance(part, dict) for part in parts):
            raise InputError(f"holds a {module.name!r:.100}, no module; {RESAVE}")
        hidden = module.attributes.get("_non_persistent_buffers_set") or ()
        size += 1 + sum(map(len, [*parts, hidden]))
        if size > MOST:
            raise endless
        hidden = {name for name in hidden if isinstance(name, str)}
        parts[1] = {k: v for k, v in parts[1].items() if k not in hidden}
        children = []
        for name, value in itertools.chain(*(part.items() for part in parts)):
            path = f"{prefix}{name}"
            if len(path) > MAX_NAME_BYTES:
                raise endless
            if isinstance(value, Tensor):
                yield path, value
            elif isinstance(value, Object):
                children.append((f"{path}.", value))
        waiting += reversed(children)


def _arrays(tensors: dict[str, Tensor], entries: dict) -> dict[str, np.ndarray]:
    return {name: _view(name, t, entries[t.storage.key]) for name, t in tensors.items()}


def _view(name: str, tensor: Tensor, data: bytes) -> np.ndarray:
    """A view of the bytes of its storage, checked to stay inside them."""
    storage, offset, shape, strides = tensor
    if len(data) != storage.stored * storage.dtype.itemsize:
        raise InputError(f"{name}: its storage is cut short; get the file again")
    count = math.prod(shape)
    # The element furthest from the start, if there are any elements.
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
