"""A MedMNIST file: small pictures or volumes, their labels and their splits."""

import functools
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from medjax.data import images, prepared
from medjax.data.prepared import Item, Source
from medjax.data.sources import tables
from medjax.errors import InputError

SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Errors of the decoders; RuntimeError means an encrypted file.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
DAMAGE += (MemoryError, RuntimeError)


def medmnist(
    *,
    file: Path,
    side: int,
    task: str = "multiclass",
    names: Sequence[str] = (),
) -> Source:
    """A `.npz` file in MedMNIST's layout.

    For each of train, val and test it holds NAME_images, uint8 [N, H, W] (grey),
    [N, H, W, 3] (colour) or [N, S, S, S] (volumes), and NAME_labels, integers
    [N, L]. Its splits are the official ones. It names no patients, so each image
    counts as another patient: the audit can't detect a patient in two splits, and
    intervals are too narrow where a patient has several images.

    Args:
      file: the .npz file; nothing in it is unpickled.
      side: S, pixels; pictures are resized to it, volumes must have it.
      task: 'multiclass': L = 1, the number of the image's one class; 'multilabel':
        0 or 1 for each of L findings.
      names: of the classes or findings; () names them '0', '1' and so on.
    """
    if task not in ("multiclass", "multilabel"):
        raise InputError(f"data.task={task!r}: use 'multiclass' or 'multilabel'")
    file = Path(file).expanduser()
    sizes, label = _contents(file)
    sample = sizes["train"][1:]
    rows = pd.DataFrame(
        [
            (f"{name}_{n:06d}", split)
            for name, split in SPLITS.items()
            for n in range(sizes[name][0])
        ],
        columns=["image", "official"],
    )
    number = rows.index.astype(str)
    rows = tables.metadata(rows.assign(patient=number), file)
    rows["height"], rows["width"] = sample[:2]  # A volume is a cube.
    targets = _labels(label, task, tuple(names), rows["image"], file)
    rows = pd.concat([rows, targets], axis=1)
    shape = _shape(sample, side, file)

    def items() -> Iterator[Item]:
        make = functools.partial(_item, shape=shape)
        for name, split in SPLITS.items():
            part = rows[rows["official"] == split].to_dict("records")
            arrays = _arrays(file, f"{name}_images", len(part))
            yield from prepared.in_parallel(make, zip(part, arrays, strict=True))

    return Source(tuple(targets), shape, len(rows), items)


def _item(pair: tuple[dict, np.ndarray], *, shape: tuple[int, ...]) -> Item:
    """Makes a row and its image [H, W], [H, W, 3] or [D, H, W] an item."""
    row, pixels = pair
    if len(shape) == 3:
        return Item(row, images.fit(pixels.astype(np.float32) / 255, shape))
    return Item(row, pixels.reshape(shape))


def _shape(sample: tuple[int, ...], side: int, where: Path) -> tuple[int, ...]:
    """The shape of the records, of one image's shape in the file."""
    if len(sample) == 2 or sample[-1] == 3:
        return (side, side, 3 if len(sample) == 3 else 1)
    if sample != (side,) * 3:
        raise InputError(
            f"{where}: the volumes are {' x '.join(map(str, sample))} and data.side="
            f"{side}: a volume isn't resized, so set data.side to its side"
        )
    return (*sample, 1)


def _labels(
    label: np.ndarray, task: str, names: Sequence[str], images: pd.Series, where: Path
) -> pd.DataFrame:
    """[N, L] integers -> a column a class or finding."""
    if task == "multiclass":
        if label.shape[1] != 1:
            raise InputError(
                f"{where}: {label.shape[1]} labels an image can't be one class: set "
                "data.task='multilabel'"
            )
        index = label[:, 0]
        classes = int(index.max()) + 1
        if index.min() < 0 or names and classes > len(names):
            raise InputError(
                f"{where}: classes from {index.min()} to {index.max()}, and data.names "
                f"has {len(names)}: number them from 0 and name every one"
            )
        return tables.one_hot(index, names or [*map(str, range(classes))], where)
    count = label.shape[1]
    if names and len(names) != count:
        raise InputError(
            f"data.names has {len(names)} names: {where} has {count} findings"
        )
    names = names or [*map(str, range(count))]
    return tables.findings(label.astype(float), names, images, where)


def _contents(path: Path) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Returns the shapes of the three arrays of images, and all labels [N, L]."""
    sizes, labels = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in SPLITS:
                with _open(archive, f"{name}_images", path) as file:
                    sizes[name], kind = _header(file)
                _check_images(sizes[name], sizes["train"], kind, name, path)
                with _open(archive, f"{name}_labels", path) as file:
                    label = np.lib.format.read_array(file, allow_pickle=False)
                if label.ndim != 2 or label.dtype.kind not in "iub":
                    raise InputError(
                        f"{path}: {name}_labels is {label.dtype} {label.shape}: "
                        "integers [N, L] are read"
                    )
                if len(label) != sizes[name][0]:
                    raise InputError(
                        f"{path}: {sizes[name][0]} {name}_images and {len(label)} "
                        f"{name}_labels: they must be as many"
                    )
                labels.append(label.astype(np.int64))
    except InputError:  # A ValueError too.
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from None
    if len({label.shape[1] for label in labels}) > 1:
        raise InputError(f"{path}: the splits have different numbers of labels")
    if not sum(map(len, labels)):
        raise InputError(f"{path}: holds no image: fetch it again")
    return sizes, np.concatenate(labels)


def _open(archive: zipfile.ZipFile, key: str, where: Path) -> BinaryIO:
    if f"{key}.npy" not in archive.namelist():
        raise InputError(f"{where}: has no array {key!r}: is it a MedMNIST file?")
    return archive.open(f"{key}.npy")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and type of an array, and stops before its first number."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of its format is unknown")
    shape, transposed, kind = np.lib.format.read_array_header_1_0(file)
    if transposed:
        raise ValueError("its first axis is not its outermost in memory")
    return shape, kind


def _check_images(shape, first, kind, name: str, where: Path) -> None:
    """Refuses images of another shape or type than the train split's."""
    if kind != np.uint8 or len(shape) not in (3, 4) or min(shape[1:]) < 1:
        raise InputError(
            f"{where}: {name}_images is {kind} {shape}: uint8 [N, H, W], [N, H, W, 3] "
            "or [N, S, S, S] are read"
        )
    if shape[1:] != first[1:]:
        raise InputError(
            f"{where}: {name}_images are {shape[1:]} and train_images {first[1:]}: "
            "they must be alike"
        )


def _arrays(path: Path, key: str, number: int) -> Iterator[np.ndarray]:
    """Yields an array's images one by one, as they are decompressed."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            shape, _ = _header(file)
            for _ in range(number):
                data = file.read(math.prod(shape[1:]))
                yield np.frombuffer(data, np.uint8).reshape(shape[1:])
    except DAMAGE as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    why = " ".join(str(error).split()) or "it ends too early"
    return InputError(f"{path}: can't be read ({why}): fetch the .npz file again")
