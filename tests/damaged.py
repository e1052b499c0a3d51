"""Damaged files: how each form is made, mutated, and read by medjax and by another.

`Reader` reads them in a process of its own, whose doings are watched.
"""

import csv
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import h5py
import nibabel
import numpy as np
import pydicom
import safetensors.numpy
import small
from absl import flags
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from test_torch_pickle import archive, storage, tensor

import launch
from medjax import config, tasks
from medjax.data import image_files, nifti, sources
from medjax.data.sources import cells
from medjax.errors import InputError
from medjax.models import weights
from medjax.training.checkpoint import Checkpoints

SECONDS, WAIT, MEGABYTES = 10, 120, 2048  # That a file may take: CPU, clock, memory.
ACTS: list[str] = []  # What the file that is read now made Python do.


class Form(NamedTuple):
    """How to make an undamaged file, and two ways to read one, which must agree.

    Where a form has checksums, the other way is what was written. The tolerance is
    the largest mean difference, as a share of the largest number.
    """

    suffix: str
    make: Callable[[np.random.Generator], bytes]
    ours: Callable[[Path], Any]
    theirs: Callable[[Path], Any]
    tolerance: float = 0.0


def grey(rng: np.random.Generator, side: int = 48) -> np.ndarray:
    """Smooth tissue, [side, side] uint8."""
    smooth = cv2.resize(rng.normal(size=(8, 8)), (side, side), interpolation=2)
    return np.clip(128 + 50 * smooth, 0, 255).astype(np.uint8)


def picture(rng, kind):
    pixels, file = grey(rng), io.BytesIO()
    colour = Image.fromarray(np.stack([pixels, grey(rng), 255 - pixels], axis=-1))
    choices = [Image.fromarray(pixels), colour]
    if kind == "PNG":
        deep = Image.fromarray(pixels.astype(np.uint16) * 257)
        choices += [deep, colour.quantize(), colour.convert("RGBA")]
    options = {"progressive": bool(rng.integers(2))} if kind == "JPEG" else {}
    choices[rng.integers(len(choices))].save(file, kind, **options)
    return file.getvalue()


def our_picture(path):
    return image_files.read(path, channels=1).pixels


def their_picture(path):
    with Image.open(path) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.asarray(image, np.float32) / 65535
    return np.asarray(image.convert("RGB").convert("L"), np.float32) / 255


def dicom_file(rng):
    name = ("CT_small.dcm", "MR_small.dcm")[rng.integers(2)]
    return Path(get_testdata_file(name, download=False)).read_bytes()


def their_dicom(path):
    file = pydicom.dcmread(path)
    values = apply_modality_lut(file.pixel_array, file)
    values = apply_voi_lut(values, file, index=0).astype(float)
    dark = file.PhotometricInterpretation == "MONOCHROME1"
    return spread(-values if dark else values)


def spread(values: np.ndarray) -> np.ndarray:
    """To [0, 1]: pydicom orders the greys, but doesn't say which are black and white."""
    return (values - values.min()) / max(np.ptp(values), 1e-9)


def nifti_file(rng):
    voxels = np.stack([grey(rng, 16) for _ in range(12)])
    voxels = voxels.astype(rng.choice([np.int16, np.float32, np.uint8]))
    affine = np.array([[-1, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def our_nifti(path):
    volume = nifti.read(path)
    return volume.voxels, abs(float(np.linalg.det(volume.affine)))


def their_nifti(path):
    image = nibabel.as_closest_canonical(nibabel.load(path))
    voxels = image.get_fdata(dtype=np.float32).reshape(image.shape[:3])
    unit = {"meter": 1000, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1)
    size = abs(float(np.linalg.det(image.affine))) * unit**3
    return voxels.transpose(2, 1, 0)[:, ::-1, ::-1], size


def npz_file(rng):
    file, arrays = io.BytesIO(), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.stack([grey(rng, 8) for _ in range(3)])
        arrays[f"{split}_labels"] = np.array([[0], [1], [rng.integers(2)]])
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def our_npz(path):
    source = sources.IMAGES["medmnist"](file=path, side=8)
    items = list(source.items())
    labels = [[item.row[task] for task in source.tasks] for item in items]
    return np.stack([item.content[..., 0] for item in items]), np.argmax(labels, axis=1)


def their_npz(path):
    with np.load(path) as file:
        images, labels = (
            np.concatenate(
                [file[f"{side}_{name}"] for side in ("train", "val", "test")]
            )
            for name in ("images", "labels")
        )
    return images, labels[:, 0]


def csv_file(rng):
    notes = ("", '"a, b"', '"two\nlines"', "caf\u00e9", "0.5")
    lines = ["image,patient,mass,note"]
    for n in range(20):
        lines.append(f"{n:03d}.png,{n // 2},{rng.integers(2)},{rng.choice(notes)}")
    return ("\n".join(lines) + "\n").encode()


def our_csv(path):
    table = cells.read_csv(path)
    return [[*table], *table.to_numpy().tolist()]


def their_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file, strict=True)
        table = [row for row in rows if any(map(str.strip, row))]
    while table and not any(row[-1] for row in table) and len({*map(len, table)}) == 1:
        table = [row[:-1] for row in table]  # A column without a name or a cell.
    return table


def our_config(path):
    """As `train` takes it, as far as it is checked before data are read."""
    try:
        launch.parse(["launch.py", "train", f"--config={path}"])
        values = launch.config()
        tasks.of(values).check(values, 1)
        return config.config_as_json(values)
    except SystemExit:  # It printed one line.
        raise InputError(path.name) from None
    finally:
        flags.FLAGS.unparse_flags()


WEIGHTS = {
    "conv/kernel": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("<f4"),
    "conv/bias": np.random.default_rng(1).normal(size=4).astype("<f4"),
}


def contents(arrays: dict[str, np.ndarray]) -> list[tuple]:
    """What can be compared whatever a framework calls its arrays."""
    arrays = map(np.asarray, arrays.values())
    return sorted((a.shape, a.dtype.str, a.tobytes()) for a in arrays)


def our_weights(path):
    return contents(weights.read(path))


def pth_file(rng):
    state, storages = {}, {}
    for key, (name, array) in enumerate(WEIGHTS.items()):
        steps = tuple(step // array.itemsize for step in array.strides)
        state[name] = tensor(storage(str(key), array.size), 0, array.shape, steps)
        storages[str(key)] = array.tobytes()
    return archive(state, storages)


def h5_file(rng):
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        layer = root.create_group("layers/conv2d/vars")
        layer.attrs["name"] = "conv"
        for number, array in enumerate(WEIGHTS.values()):
            layer.create_dataset(str(number), data=array)
    return file.getvalue()


def their_h5(path):
    with h5py.File(path) as root:
        layer = root["layers/conv2d/vars"]
        return contents({name: layer[name][()] for name in layer})


def keras_file(rng):
    layer = {"class_name": "Conv2D", "config": {"name": "conv"}}
    model = {"class_name": "Functional", "config": {"layers": [layer]}}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archived:
        archived.writestr("config.json", json.dumps(model))
        archived.writestr("model.weights.h5", h5_file(rng))
    return file.getvalue()


TREE = {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "n": np.int32(7)}


def checkpoint_file(rng):
    """A folder, as a zip file."""
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder, "in")) as checkpoints:
            checkpoints.save(3, TREE, {"at": 1}, score=0.5)
        file = shutil.make_archive(f"{folder}/out", "zip", f"{folder}/in")
        return Path(file).read_bytes()


def our_checkpoint(path):
    with Checkpoints(path) as checkpoints:
        empty = {name: np.zeros_like(leaf) for name, leaf in TREE.items()}
        restored = checkpoints.restore(empty)
    return restored.data, *(np.asarray(restored.state[name]) for name in TREE)


SCAN = (our_nifti, their_nifti, 1e-3)
FORMS = {
    "PNG": Form(".png", lambda r: picture(r, "PNG"), our_picture, their_picture, 0.01),
    "JPEG": Form(
        ".jpg", lambda r: picture(r, "JPEG"), our_picture, their_picture, 0.01
    ),
    "DICOM": Form(
        ".dcm", dicom_file, lambda path: spread(our_picture(path)), their_dicom, 0.02
    ),
    "NIfTI": Form(".nii", nifti_file, *SCAN),
    "NIfTI.gz": Form(".nii.gz", lambda rng: gzip.compress(nifti_file(rng)), *SCAN),
    "npz": Form(".npz", npz_file, our_npz, their_npz),
    "CSV": Form(".csv", csv_file, our_csv, their_csv),
    "config": Form(
        ".json",
        lambda rng: small.get_config().to_json(indent=1).encode(),
        our_config,
        lambda path: json.loads(path.read_text()),
    ),
    "pth": Form(".pth", pth_file, our_weights, lambda path: contents(WEIGHTS)),
    "h5": Form(".weights.h5", h5_file, our_weights, their_h5),
    "keras": Form(".keras", keras_file, our_weights, lambda path: contents(WEIGHTS)),
    "safetensors": Form(
        ".safetensors",
        lambda rng: safetensors.numpy.save(WEIGHTS),
        our_weights,
        lambda path: contents(safetensors.numpy.load_file(path)),
    ),
    "checkpoint": Form(
        "", checkpoint_file, our_checkpoint, lambda path: ({"at": 1}, *TREE.values())
    ),
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages bytes as disks, transfers and hands do."""
    if not data:
        return b""
    data, size = bytearray(data), len(data)
    at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 8)))
    way = rng.choice(["bits", "head", "cut", "lose", "repeat", "zero", "number"])
    if way in ("bits", "head"):
        for place in rng.integers(size if way == "bits" else min(size, 400), size=3):
            data[place] ^= 1 << rng.integers(8)
    elif way == "cut":
        del data[at:]
    elif way == "lose":
        del data[at : at + length]
    elif way == "repeat":
        data[at:at] = data[at : at + length]
    elif way == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        number = int(rng.choice([0, 1, 127, 255, 2**15, 2**31 - 1, 2**32 - 1]))
        width = int(rng.choice([1, 2, 4, 8]))
        data[at : at + width] = (number % 256**width).to_bytes(width, "little")
    return bytes(data)


def write(form: str, folder: Path, data: bytes, rng=None) -> Path:
    """Writes a file; with a generator, mutated, of a folder one of its files."""
    path = folder / f"file{FORMS[form].suffix}"
    if form != "checkpoint":
        path.write_bytes(data if rng is None else mutated(data, rng))
        return path
    zipfile.ZipFile(io.BytesIO(data)).extractall(path)
    if rng is not None:
        file = rng.choice(sorted(p for p in path.rglob("*") if p.is_file()))
        file.write_bytes(mutated(file.read_bytes(), rng))
    return path


class Reader:
    """Reads files in another process; `close` ends it."""

    def __init__(self, form: str):
        self.form = form
        self.close = lambda: None
        self._start()

    def _start(self):
        self.close()
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))
        self.close = self.pool.shutdown
        with tempfile.TemporaryDirectory() as folder:  # The first one imports all.
            data = FORMS[self.form].make(np.random.default_rng(0))
            verdict = self._read(write(self.form, Path(folder), data))
        if verdict[0] != "right":
            raise SystemExit(f"{self.form}: an undamaged file: {verdict}")
        self.pool.submit(watch).result()

    def _read(self, path):
        return self.pool.submit(judge, self.form, path).result()

    def read(self, path: Path) -> tuple[str, str]:
        """The verdict of `judge`, or "died": of a signal, also of too much time."""
        try:
            return self._read(path)
        except BrokenProcessPool:
            self._start()
            return "died", f"a crash, or over {SECONDS} s"


def watch() -> None:
    """From now on, a reader's process is silent, and notes what it does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    sys.addaudithook(lambda event, about: ACTS.extend(act(event, about)))


def act(event: str, about: tuple) -> list[str]:
    """What runs, unpickles, connects or writes, of Python's audit events."""
    runs = event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
    runs |= event in ("pickle.find_class", "socket.connect", "os.remove", "os.rename")
    writes = event == "open" and about[1] is not None and set(about[1]) & {*"wax+"}
    return [f"{event} {about[0]}"] if runs or writes else []


def judge(form: str, path: Path) -> tuple[str, str]:
    """A verdict, and why.

    Right, refused or alone (only the other way refuses) are no faults; differs,
    traceback, unnamed, memory and outside (executed or written) are.
    """
    ACTS.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # Both end the process.
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = compare(form, path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if outside := [what for what in ACTS if str(path.parent) not in what]:
        return "outside", outside[0]
    return ("memory", f"{grown} MB") if grown > MEGABYTES else verdict


def compare(form: str, path: Path) -> tuple[str, str]:
    try:
        ours = FORMS[form].ours(path)
    except InputError as error:
        text = str(error)
        names = path.name in text or form == "config"  # Whose fields are named.
        return ("refused" if names and "\n" not in text else "unnamed"), text
    except Exception as error:  # noqa: BLE001
        return "traceback", repr(error)
    try:
        theirs = FORMS[form].theirs(path)
    except Exception as error:  # noqa: BLE001
        return "alone", repr(error)
    return "right" if same(ours, theirs, FORMS[form].tolerance) else "differs", ""


def same(ours: Any, theirs: Any, tolerance: float) -> bool:
    if isinstance(ours, tuple | list):
        pairs = zip(ours, theirs)
        return len(ours) == len(theirs) and all(
            same(*pair, tolerance) for pair in pairs
        )
    if not isinstance(ours, np.ndarray | float):
        return ours == theirs
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        return False
    equal = (ours == theirs) | np.isnan(ours) & np.isnan(theirs)
    apart = np.mean(np.abs(np.where(equal, 0, ours - theirs)))
    return bool(apart <= tolerance * max(1, np.abs(theirs).max(initial=0)))
