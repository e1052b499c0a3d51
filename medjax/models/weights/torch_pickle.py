"""Reads the pickle in a PyTorch file as data: no name in it is ever looked up.

Python's own unpickler imports and calls what a file names. This one knows the few
instructions that torch writes for a state dict, and gives names a meaning of its own:
a storage is a dtype and a key, a tensor a view to be made of it later.
"""

import pickletools
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from medjax.errors import InputError

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
CONTAINERS = {
    "collections.OrderedDict": dict,
    "collections.Counter": dict,  # Schedulers keep their milestones in one.
    "torch.Size": tuple,
}
REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = "torch._utils._rebuild_parameter"
KNOWN = {*STORAGES, *CONTAINERS, *REBUILD, PARAMETER}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
PLAIN = {  # Instructions that push their own argument: a number or a string.
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
    *("BINSTRING", "SHORT_BINSTRING"),  # Python 2's.
}
RESAVE = (
    "nothing of it was run; in PyTorch, save the state dict alone: "
    "torch.save(model.state_dict(), path)"
)


class Global(NamedTuple):
    """A name out of KNOWN, and nothing but its name."""

    name: str


class Storage(NamedTuple):
    """`size` elements of what is stored under `key`, beginning with number `start`."""

    dtype: np.dtype
    key: str
    stored: int  # Elements under the key.
    start: int
    size: int


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides in elements, not yet checked."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


def load(file: BinaryIO) -> tuple[object, list[Storage]]:
    """The next pickle of a file.

    Returns:
      content: containers, numbers, strings, and a Tensor for each tensor.
      storages: what its tensors were saved with, once for each time it is named.

    Raises:
      InputError: a name or an instruction that no state dict needs.
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
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(pop()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(instruction.name[-1]))))
            case "APPEND":
                stack[-2].append(stack.pop())
            case "APPENDS":
                items = pop()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(2 if instruction.name == "SETITEM" else None)
                _set(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(_global(".".join(pop(2))))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(_call(function, arguments))
            case "BINPERSID":
                storages.append(_storage(*stack.pop()))
                stack.append(storages[-1])
            case "BUILD":
                pop(1)  # Versions of the modules, which torch sets on the state dict.
                _set(stack[-1], ())
            case name:
                raise InputError(f"its pickle has the instruction {name}; {RESAVE}")
    raise EOFError("the pickle has no end")


def _global(name: str) -> Global:
    if name not in KNOWN:
        raise InputError(f"its pickle asks for {name!r:.100}, no weights; {RESAVE}")
    return Global(name)


def _set(target: dict, items) -> None:
    if not isinstance(target, dict):
        raise TypeError("items set on what is no dict")
    for key, value in items:
        # A tuple of tuples of ... overflows the stack of C where it is hashed.
        if not isinstance(key, str | int | float | None):
            raise InputError(f"its pickle has a {type(key).__name__} as key; {RESAVE}")
        target[key] = value


def _call(function: Global, arguments: tuple) -> object:
    if not isinstance(function, Global):
        raise TypeError("called what is no function")
    if function.name in REBUILD:
        storage, offset, shape, strides, *_ = arguments
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    if function.name == PARAMETER:
        return arguments[0]
    kind = CONTAINERS[function.name]
    if kind is tuple:
        return tuple(*arguments)
    made = {}
    for items in arguments:  # None, or, from Python 2, one list of pairs.
        _set(made, items.items() if isinstance(items, dict) else items)
    return made


def _storage(word, kind, key, location, count, view=None) -> Storage:
    """The persistent id of a storage: `view` is a part of it, of the older format."""
    if word != "storage" or not isinstance(key, str):
        raise TypeError("a persistent id of no storage")
    _, start, size = view or (None, 0, count)
    if not 0 <= start <= start + size <= count:
        raise InputError("a view leaves its storage; get the file again")
    return Storage(np.dtype(STORAGES[kind.name]), key, count, start, size)
