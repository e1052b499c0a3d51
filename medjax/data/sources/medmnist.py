"""A MedMNIST file: small pictures or volumes, their labels and their splits."""

import contextlib
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.data import image_files, prepared
from medjax.data.prepared import Item
from medjax.data.records import Source
from medjax.data.sources import cells
from medjax.errors import InputError, reading

OUR_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Errors of the decoders; RuntimeError means an encrypted file.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
DAMAGE += (MemoryError, RuntimeError)
log = logging.getLogger("medjax")


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
    intervals are too narrow where a patient has several images. Nothing is unpickled.

    Pictures are resized to `side` pixels; volumes must have it. The `task` 'multiclass'
    has L = 1, the number of the image's one class, 'multilabel' 0 or 1 for each finding.
    """
    file = Path(file).expanduser()
    shapes, label = _contents(file)
    sample = shapes["train"][1:]
    rows = pd.DataFrame(
        [
            (f"{name}_{n:06d}", split)
            for name, split in OUR_SPLITS.items()
            for n in range(shapes[name][0])
        ],
        columns=["image", "official"],
    )
    log.warning(
        "%s: names no patients, so each image counts as another patient, and a patient "
        "in two splits can't be detected",
        file,
    )
    rows = cells.metadata(rows.assign(patient=rows.index.astype(str)), file)
    rows["height"], rows["width"] = sample[:2]  # A volume is a cube.
    targets = _labels(label, task, tuple(names), rows["image"], file)
    rows = pd.concat([rows, targets], axis=1)
    shape = _shape(sample, side, file)

    def item(pair: tuple[dict, np.ndarray]) -> Item:
        row, pixels = pair
        if len(shape) == 3:
            return Item(row, image_files.fit(pixels.astype(np.float32) / 255, shape))
        return Item(row, pixels.reshape(shape))

    def items() -> Iterator[Item]:
        for name, split in OUR_SPLITS.items():
            part = rows[rows["official"] == split].to_dict("records")
            pairs = zip(part, _arrays(file, f"{name}_images"), strict=True)
            yield from prepared.in_parallel(item, pairs)

    return Source(tuple(targets), shape, len(rows), items)


def files(*, file: Path, **_) -> dict[str, Path]:
    """The one file, see `sources.FILES_OF`."""
    return {Path(file).name: Path(file).expanduser()}


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
    count = label.shape[1]
    if task == "multilabel":
        if names and len(names) != count:
            raise InputError(
                f"data.names has {len(names)} names: {where} has {count} findings"
            )
        names = names or [*map(str, range(count))]
        return cells.findings(label.astype(float), names, images, where)
    if count != 1:
        raise InputError(
            f"{where}: {count} labels an image can't be one class: set "
            "task='multilabel'"
        )
    least, most = label.min(), label.max()
    if least < 0 or names and most >= len(names):
        raise InputError(
            f"{where}: classes from {least} to {most}, and data.names has "
            f"{len(names)}: number them from 0 and name every one"
        )
    names = names or [*map(str, range(most + 1))]
    return cells.one_hot(label[:, 0], names, where)


def _contents(path: Path) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """The shapes of the three arrays of images, and all labels [N, L]."""
    shapes, labels = {}, []
    with _opened(path) as archive:
        for name in OUR_SPLITS:
            for key in (f"{name}_images", f"{name}_labels"):
                if f"{key}.npy" not in archive.namelist():
                    raise InputError(f"has no array {key!r}: is it a MedMNIST file?")
            with archive.open(f"{name}_images.npy") as file:
                shape, kind = _header(file)
            shapes[name] = shape
            if kind != np.uint8 or len(shape) not in (3, 4) or min(shape[1:]) < 1:
                raise InputError(
                    f"{name}_images is {kind} {shape}: uint8 [N, H, W], "
                    "[N, H, W, 3] or [N, S, S, S] are read"
                )
            if shape[1:] != shapes["train"][1:]:
                raise InputError(
                    f"{name}_images are {shape[1:]} and train_images "
                    f"{shapes['train'][1:]}: they must be alike"
                )
            with archive.open(f"{name}_labels.npy") as file:
                label = np.lib.format.read_array(file, allow_pickle=False)
            if label.ndim != 2 or label.dtype.kind not in "iub":
                raise InputError(
                    f"{name}_labels is {label.dtype} {label.shape}: "
                    "integers [N, L] are read"
                )
            if len(label) != shape[0]:
                raise InputError(
                    f"{shape[0]} {name}_images and {len(label)} "
                    f"{name}_labels: they must be as many"
                )
            labels.append(label.astype(np.int64))
    if len({label.shape[1] for label in labels}) > 1:
        raise InputError(f"{path}: the splits have different numbers of labels")
    if not sum(map(len, labels)):
        raise InputError(f"{path}: holds no image: fetch it again")
    return shapes, np.concatenate(labels)


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and type of an array, and stops before its first number."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of its format is unknown")
    shape, transposed, kind = np.lib.format.read_array_header_1_0(file)
    if transposed:
        raise ValueError("its first axis is not its outermost in memory")
    return shape, kind


def _arrays(path: Path, key: str) -> Iterator[np.ndarray]:
    """Yields an array's images one by one, as they are decompressed."""
    with _opened(path) as archive, archive.open(f"{key}.npy") as file:
        (count, *shape), _ = _header(file)
        for _ in range(count):
            yield np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file; what is damaged in it becomes one error."""
    with (
        reading(path, "fetch the .npz file again", DAMAGE),
        zipfile.ZipFile(path) as archive,
    ):
        yield archive
