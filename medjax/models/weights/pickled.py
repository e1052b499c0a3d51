"""Reads a pickle as data, by an interpreter of the few instructions that torch writes.

`pickle.Unpickler` with `find_class` and `persistent_load` would be shorter, but isn't
safe enough. Its containers can't be restricted: hashing a deeply nested tuple that is a
dict's key overflows C's stack and ends the process. One instruction of 5 bytes makes
its memo take gigabytes. BUILD sets attributes of whatever `find_class` returned. Here
names get a meaning of our own: a storage is a dtype and a key, a tensor a view of it,
an object the name of its class and its attributes. Nothing is imported or called.
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
TORCH_SIZE = "torch.Size"
PARAMETERS = tuple(
    f"torch._utils._rebuild_parameter{end}" for end in ("", "_with_state")
)
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Schedulers keep their milestones in a Counter.
DICTS = ("collections.OrderedDict", "collections.Counter")
SETS = ("builtins.set", "__builtin__.set")
KNOWN = {*STORAGES, *TENSORS, *DICTS, *SETS, TORCH_SIZE, *PARAMETERS}
# What the attributes of a module are made by, besides its weights: left out.
LEFT_OUT = {
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
    if function.name in LEFT_OUT:
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
    if function.name == TORCH_SIZE:
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
