"""Reads PyTorch's two file formats without torch, and the weights in them.

The weights are a state dict, or those of a whole pickled module. The pickle is read as
data by an interpreter of the few instructions that torch writes.
`pickle.Unpickler` with `find_class` and `persistent_load` would be shorter, but isn't
safe enough. Its containers can't be restricted: hashing a deeply nested tuple that is a
dict's key overflows C's stack and ends the process. One instruction of 5 bytes makes
its memo take gigabytes. BUILD sets attributes of whatever `find_class` returned. Here
names get a meaning of our own: a storage is a dtype and a key, a tensor a view of it,
an object the name of its class and its attributes. Nothing is imported or called.
"""

import io
import itertools
import math
import pickletools
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from medjax.errors import InputError

# The format before torch 1.6 begins with this number as a pickle of its own.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher")
STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
SIZE = "torch.Size"
PARAMETERS = tuple(
    f"torch._utils._rebuild_parameter{end}" for end in ("", "_with_state")
)
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Schedulers keep their milestones in a Counter.
DICTS = ("collections.OrderedDict", "collections.Counter")
SETS = ("builtins.set", "__builtin__.set")
KNOWN = {*STORAGES, *TENSORS, *DICTS, *SETS, SIZE, *PARAMETERS}
# What the attributes of a module are made by, besides its weights: left out.
OTHERS = {
    *("torch.device", "functools.partial", "_codecs.encode", "numpy.dtype"),
    *("builtins.frozenset", "__builtin__.frozenset"),
    *(f"numpy.{c}.multiarray.{n}" for c in ("core", "_core") for n in ("scalar",)),
    *(f"numpy.{c}.multiarray._reconstruct" for c in ("core", "_core")),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# A set is read as a list.
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
EMPTY |= {"EMPTY_SET": list}
PLAIN = {  # Instructions that push their own argument: a number, a string or bytes.
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
    *("BINSTRING", "SHORT_BINSTRING"),  # Python 2's.
    *("BINBYTES", "SHORT_BINBYTES"),
}
# Modules of a hostile file may hold each other. Characters of a name; names in all.
LONGEST, MOST = 1000, 100_000
RESAVE = (
    "nothing of it was run; in PyTorch, save the state dict alone: "
    "torch.save(model.state_dict(), path)"
)


class Global(NamedTuple):
    """The name of a class or a function, which is never looked up."""

    name: str


class Object:
    """An instance of a class: the class's name, and attributes by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attributes = {}


class Storage(NamedTuple):
    """`size` elements, from number `start`, of those stored under `key`."""

    dtype: np.dtype
    key: str
    stored: int  # Number of elements under the key.
    start: int
    size: int


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides in elements, not yet checked."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


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
            if len(path) > LONGEST:
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


# ---------------------------------------------------------------- the pickle as data


def load(file: BinaryIO) -> tuple[object, list[Storage]]:
    """The next pickle of a file, and its storages as often as it names them.

    It holds containers, numbers, strings, a Tensor for each tensor and an Object for
    each instance of a class. A function or an instruction that neither a state dict nor
    a module needs is an InputError.
    """
    stack, marks, memo, storages = [], [], {}, []

    def pop(count=None):
        start = marks.pop() if count is None else len(stack) - count
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, argument, _ in pickletools.genops(file):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in PLAIN:
                stack.append(argument)
            case name if name in EMPTY:
                stack.append(EMPTY[name]())
            case "TUPLE":
                stack.append(tuple(pop()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(instruction.name[-1]))))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = pop(1 if instruction.name == "APPEND" else None)
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(2 if instruction.name == "SETITEM" else None)
                _set(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(Global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(Global(".".join(pop(2))))
            case "NEWOBJ":
                made, _ = pop(2)
                stack.append(_instance(made))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(_call(function, arguments))
            case "BINPERSID":
                word, *parts = stack.pop()
                if word == "module":  # A class; the older format adds its source code.
                    stack.append(parts[0])
                else:
                    storages.append(_storage(word, *parts))
                    stack.append(storages[-1])
            case "BUILD":
                [state] = pop(1)
                if not isinstance(stack[-1], Object):
                    # Versions of modules, which torch sets on the state dict.
                    _set(stack[-1], ())
                elif isinstance(state, dict):
                    _set(stack[-1].attributes, state.items())
            case name:
                raise InputError(f"its pickle has the instruction {name}; {RESAVE}")
    raise EOFError("the pickle has no end")


def _instance(made: Global) -> Object:
    if not isinstance(made, Global):
        raise TypeError("an instance of something other than a class")
    if made.name in KNOWN:
        raise InputError(f"its pickle has a NEWOBJ of {made.name}; {RESAVE}")
    return Object(made.name)


def _set(target: dict, items) -> None:
    if not isinstance(target, dict):
        raise TypeError("items set on something other than a dict")
    for key, value in items:
        # Hashing a deeply nested tuple overflows C's stack.
        if not isinstance(key, str | int | float | None):
            raise InputError(f"its pickle has a {type(key).__name__} as key; {RESAVE}")
        target[key] = value


def _call(function: Global, arguments: tuple) -> object:
    if not isinstance(function, Global):
        raise TypeError("called something other than a function")
    if function.name in OTHERS:
        return Object(function.name)
    if function.name not in KNOWN:
        name = f"{function.name!r:.100}"
        raise InputError(f"its pickle asks for {name}, no weights; {RESAVE}")
    if function.name in TENSORS:
        storage, offset, shape, strides, *_ = arguments
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    if function.name in PARAMETERS:
        return arguments[0]
    if function.name in SETS:
        return arguments[0] if arguments else []
    if function.name == SIZE:
        return tuple(*arguments)
    if function.name not in DICTS:
        raise TypeError(f"called {function.name}")
    made = {}
    for items in arguments:  # None, or, from Python 2, one list of pairs.
        _set(made, items.items() if isinstance(items, dict) else items)
    return made


def _storage(word, kind, key, location, count, view=None) -> Storage:
    """A storage's persistent id; the older format has `view`, a part of it."""
    if word != "storage" or not isinstance(key, str):
        raise TypeError("a persistent id that is no storage")
    _, start, size = view or (None, 0, count)
    if not 0 <= start <= start + size <= count:
        raise InputError("a view leaves its storage; get the file again")
    return Storage(np.dtype(STORAGES[kind.name]), key, count, start, size)
