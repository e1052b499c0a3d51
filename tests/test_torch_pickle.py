"""PyTorch files made by hand, most of them hostile: read as data, never run."""

import io
import itertools
import os
import pickle
import struct
import zipfile
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import check_equal
from hypothesis import HealthCheck, example, given, settings

from medjax.errors import InputError
from medjax.models.weights import read

few = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Name(NamedTuple):
    """What a pickle imports."""

    text: str


class Call(NamedTuple):
    function: Name
    arguments: tuple


class Persistent(NamedTuple):
    id: tuple


class Raw(NamedTuple):
    code: bytes


class Instance(NamedTuple):
    """An object of a class, by its attributes."""

    made: Name | Persistent
    attributes: dict


def pickled(value):
    """The instructions that push a value, in the protocol 2 that torch writes."""
    match value:
        case Raw(code):
            return code
        case Name(text):
            module, _, name = text.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return pickled(function) + pickled(arguments) + b"R"
        case Persistent(id):
            return pickled(id) + b"Q"
        case Instance(made, attributes):
            return pickled(made) + b")\x81" + pickled(attributes) + b"b"
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case list():
            return b"](" + b"".join(map(pickled, value)) + b"e"
        case dict():
            items = itertools.chain.from_iterable(value.items())
            return b"}(" + b"".join(map(pickled, items)) + b"u"
        case _:  # None, bool, int, float, str.
            return pickle.dumps(value, 2)[2:-1]


def storage(key, count, kind="FloatStorage"):
    return Persistent(("storage", Name(f"torch.{kind}"), key, "cpu", count))


def tensor(stored, offset, shape, strides):
    hooks = Call(Name("collections.OrderedDict"), ())
    arguments = (stored, offset, shape, strides, False, hooks)
    return Call(Name("torch._utils._rebuild_tensor_v2"), arguments)


def archive(content, storages, *, compression=zipfile.ZIP_STORED, **more):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        z.writestr("a/data.pkl", b"\x80\x02" + pickled(content) + b".")
        for key, data in storages.items():
            z.writestr(f"a/data/{key}", data)
        for name, data in more.items():
            z.writestr(f"a/{name}", data)
    return file.getvalue()


X = np.arange(6, dtype="<f4")
ONE = tensor(storage("0", 6), 0, (2, 3), (3, 1))  # All of X.


def weights(content):
    return archive(content, {"0": X.tobytes()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_the_state_dict_is_taken_out_of_a_checkpoint(put, wrapper):
    inner = {"a.weight": ONE, "n": 3, "module.b": ONE, "x": None}
    content = {wrapper: inner, "epoch": 9, "optimizer": {"state": {0: {"step": ONE}}}}
    truth = {"a.weight": X.reshape(2, 3), "b": X.reshape(2, 3)}
    check_equal(read(put(weights(content))), truth)
    check_equal(read(put(weights({"model": content}))), truth)


def test_old_ways_of_saying_the_same(put):
    """Python 2's strings and OrderedDict, torch 0.1's tensors, module versions."""
    old = Call(
        Name("torch._utils._rebuild_tensor"), (storage("0", 6), 1, (2, 2), (3, 1))
    )
    pairs = Raw(b"](](U\x17denselayer1.norm.1.bias" + pickled(old) + b"ee")
    content = Call(Name("collections.OrderedDict"), (pairs,))
    versions = Raw(
        pickled(content) + pickled({"_metadata": {"": {"version": 2}}}) + b"b"
    )
    truth = {"denselayer1.norm.1.bias": np.array([[1, 2], [4, 5]], np.float32)}
    check_equal(read(put(weights(content))), truth)
    check_equal(read(put(weights(versions))), truth)


def test_a_view_of_a_storage_in_the_old_format(put):
    name = Name("torch.FloatStorage")
    view = Persistent(("storage", name, "7", "cuda:0", 6, ("8", 2, 3)))
    content = {"w": tensor(view, 1, (2,), (1,)), "all": ONE_OF_7}
    check_equal(read(put(legacy(content, ["7"], X))), {"w": X[3:5], "all": X})
    for start, size in ((4, 3), (-2, 3), (0, 7), (-1, 8), (5, -2)):
        beyond = Persistent(("storage", name, "7", "cpu", 6, ("8", start, size)))
        content = {"w": tensor(beyond, 0, (1,), (1,))}
        with pytest.raises(InputError, match="a view leaves its storage"):
            read(put(legacy(content, ["7"], X)))
    out = {"w": tensor(view, 1, (3,), (1,))}  # Within the storage, but not the view.
    with pytest.raises(InputError, match="w leaves its storage"):
        read(put(legacy(out, ["7"], X)))


def test_storages_of_what_is_left_out_are_passed_over(put):
    other = tensor(storage("3", 2, "DoubleStorage"), 0, (2,), (1,))
    content = {"model": {"w": ONE_OF_7}, "optimizer": {"state": other}}
    check_equal(read(put(legacy(content, ["3", "7"], np.ones(2), X))), {"w": X})


ONE_OF_7 = tensor(storage("7", 6), 0, (6,), (1,))


def legacy(content, keys, *arrays, little=True):
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    parts = [0x1950A86A20F9469CFC6C, 1001, machine, content, keys]
    data = b"".join(b"\x80\x02" + pickled(part) + b"." for part in parts)
    for array in arrays:
        data += struct.pack("<q", array.size) + array.tobytes()
    return data


NET = Name("nets.Net")


def module(modules=None, *, made=NET, **parameters):
    parts = {"_parameters": parameters, "_buffers": {}, "_modules": modules or {}}
    return Instance(made, {"training": True, **parts})


def test_a_module_of_a_class_with_its_source(put):
    """As torch before 1.6 saved it, with the source code of the class."""
    made = Persistent(("module", NET, "nets.py", "import os; os.abort()"))
    inner = module(made=made, w=ONE_OF_7, bias=None)
    content = {"state_dict": module({"a": inner, "b": None}, v=ONE_OF_7)}
    check_equal(read(put(legacy(content, ["7"], X))), {"v": X, "a.w": X})


def test_modules_that_hold_each_other_are_refused(put):
    """A circle, 40 modules that hold the next one twice: 2 ** 40 names, a long name."""
    start = b"cnets\nNet\n)\x81q\x00"
    parts = b"X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}"
    child = b"X\x08\x00\x00\x00_modules}(X\x01\x00\x00\x00ah\x00"
    circle = start + b"}(" + parts + child + b"uub"
    both = pickled(module(w=ONE)) + b"q\x01"
    for _ in range(40):
        twice = b"X\x08\x00\x00\x00_modules}(X\x01\x00\x00\x00ah\x01"
        twice += b"X\x01\x00\x00\x00bh\x01uub"
        both += b"cnets\nNet\n)\x81}(" + parts + twice + b"q\x01"
    long = pickled(module(**{"w" * 2000: ONE}))
    for code in (circle, both, long):
        with pytest.raises(InputError, match="its modules don't end"):
            read(put(weights(Raw(code))))


@few
@given(
    count=st.integers(0, 30),
    offset=st.integers(-1, 20),
    axes=st.lists(st.tuples(st.integers(-1, 4), st.integers(-2, 9)), max_size=3),
)
@example(count=2, offset=0, axes=[(2**62, 2**62)])
@example(count=2, offset=2**70, axes=[])
@example(count=2, offset=0, axes=[(0, 1), (2**70, 1)])
@example(count=6, offset=0, axes=[(6, 0)])
@example(count=5, offset=0, axes=[(6, 0)])
@example(count=0, offset=0, axes=[(0, 1)])
def test_a_tensor_stays_in_its_storage(put, count, offset, axes):
    shape, strides = [list(part) for part in zip(*axes, strict=True)] or ([], [])
    values = np.arange(count, dtype="<f4")
    saved = tensor(storage("0", count), offset, tuple(shape), tuple(strides))
    path = put(archive({"w": saved}, {"0": values.tobytes()}))
    small = max([*shape, offset]) < 100
    inside = small and min([offset, *shape, *strides]) >= 0
    if inside:
        reached = [
            offset + sum(i * s for i, s in zip(index, strides, strict=True))
            for index in itertools.product(*map(range, shape))
        ]
        inside = len(reached) <= count and max(reached, default=0) < max(count, 1)
    if inside:
        expected = values[reached].reshape(shape)
        check_equal(read(path), {"w": expected})
    else:
        with pytest.raises(InputError, match=r"weights\.pth"):
            read(path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_program_in_a_file_is_named_and_not_run(put, tmp_path):
    name = f"{os.system.__module__}.system"
    trap = tmp_path / "trap"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        code = pickle.dumps({"w": 1, "x": Evil(trap)}, protocol)
        code = code.replace(b"\x80" + bytes([protocol]), b"", 1)[:-1]
        for data in (weights(Raw(code)), legacy(Raw(code), [])):
            with pytest.raises(InputError, match=f"'{name}'.*nothing of it was run"):
                read(put(data))
        with pytest.raises(InputError, match="neither safetensors nor"):
            read(put(pickle.dumps(Evil(trap), protocol)))
    assert not trap.exists()


def nested(depth):
    return Raw(b")" + b"\x85" * depth)


SELF = b"}q\x00X\x05\x00\x00\x00modelh\x00s"  # A dict that is its own "model".
HOSTILE = {
    "builtins": (Call(Name("builtins.eval"), ("1",)), "'builtins.eval'"),
    "of torch": (Name("torch.load"), "'torch.load'"),
    "dtype": (Name("torch.float32"), "'torch.float32'"),
    "attribute of what is known": (Name("torch.Size.__init__"), "torch.Size.__init__"),
    "new object": (Raw(b"ctorch\nSize\n)\x81"), "NEWOBJ"),
    "instance of a function": (Raw(b"cos\nsystem\n)\x81"), "holds a 'os.system'"),
    "attribute by name": (
        module(w=ONE, x=Call(Name("builtins.getattr"), (Name("os"), "system"))),
        "'builtins.getattr'",
    ),
    "call in a module": (
        module({"a": Call(Name("os.system"), ("touch trap",))}, w=ONE),
        "'os.system'",
    ),
    "call by copyreg": (
        module(w=Call(Name("copyreg.__newobj__"), (Name("os.system"), "ls"))),
        "'copyreg.__newobj__'",
    ),
    "class that is called": (
        module({"a": Call(NET, ())}, w=ONE),
        "'nets.Net'",
    ),
    "partial that is called": (
        module(w=Call(Call(Name("functools.partial"), (Name("os.system"),)), ("ls",))),
        "damaged",
    ),
    "module without parts": (Instance(NET, {"w": ONE}), "no module"),
    "module without weights": (module(w=None), "no tensor"),
    "parts of another type": (Instance(Name("a.B"), {"_modules": [ONE]}), "no module"),
    "source of a class that is none": (
        Persistent(("module", "x", "", "")),
        "a str, not",
    ),
    "instance": (Raw(b"(ios\nsystem\n"), "INST"),
    "object": (Raw(b"(cos\nsystem\no"), "instruction OBJ"),
    "extension": (Raw(b"\x82\x01"), "EXT1"),
    "bytes by name": (Raw(b"V__class__\n"), "UNICODE"),
    "state of a function": (Raw(b"ctorch\nSize\n}b"), "damaged"),
    "state of a tensor": (Raw(pickled(ONE) + b"}b"), "damaged"),
    "calls a string": (Raw(b"X\x01\x00\x00\x00a)R"), "damaged"),
    "deep key": (Raw(b"}" + nested(200_000).code + b"Ns"), "tuple as key"),
    "deep value": (nested(200_000), "a tuple, not a state dict"),
    "own model": (Raw(SELF), "no tensor"),
    "list": ([ONE], "a list, not a state dict"),
    "nothing": ({}, "no tensor"),
    "no tensor": ({"epoch": 3, "lr": 0.1}, r"no tensor among \['epoch', 'lr'\]"),
    "twice": ({"a": ONE, "module.a": ONE}, "has a twice"),
    "other instructions": (Raw(b"}0"), "instruction POP"),
    "nothing to call": (Raw(b"R"), "damaged"),
    "other key": ({"a": tensor(storage("9", 6), 0, (6,), (1,))}, "damaged"),
    "outside": ({"a": tensor(storage("../data.pkl", 6), 0, (6,), (1,))}, "damaged"),
    "too much": ({"a": tensor(storage("0", 7), 0, (6,), (1,))}, "cut short"),
    "wider": ({"a": tensor(storage("0", 6, "LongStorage"), 0, (6,), (1,))}, "cut"),
    "objects": ({"a": tensor(storage("0", 6, "ObjStorage"), 0, (6,), (1,))}, "ObjS"),
    "no storage": ({"a": tensor("0", 0, (6,), (1,))}, "damaged"),
    "repeats": ({"a": tensor(storage("0", 6), 0, (9999,), (0,))}, "repeats"),
    "text for a size": ({"a": tensor(storage("0", 6), 0, "6", "1")}, "damaged"),
    "half an element": ({"a": tensor(storage("0", 6), 0.5, (1,), (1,))}, "damaged"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_state_dict_has_is_refused(put, what):
    content, message = HOSTILE[what]
    with pytest.raises(InputError, match=message) as caught:
        read(put(weights(content)))
    assert "weights.pth" in str(caught.value) and len(str(caught.value)) < 500


def test_a_zip_that_is_more_than_it_holds_is_refused(put):
    zeros = np.zeros(1_000_000, "<f4")
    saved = {"w": tensor(storage("0", zeros.size), 0, zeros.shape, (1,))}
    entry = {"0": zeros.tobytes()}
    assert read(put(archive(saved, entry)))["w"].shape == zeros.shape
    with pytest.raises(InputError, match="more than its size"):
        read(put(archive(saved, entry, compression=zipfile.ZIP_DEFLATED)))


def test_other_zips_and_other_machines(put):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("word/document.xml", "text")
    with pytest.raises(InputError, match="neither PyTorch nor Keras"):
        read(put(file.getvalue()))
    both = {"0": X.tobytes()}
    assert read(put(archive({"w": ONE}, both, byteorder=b"little")))
    for data in (
        archive({"w": ONE}, both, byteorder=b"big"),
        legacy({"w": ONE_OF_7}, ["7"], X, little=False),
    ):
        with pytest.raises(InputError, match="big-endian"):
            read(put(data))
