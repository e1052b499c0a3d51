"""Records of images: written once, as ArrayRecord files beside their table.

Beside the files that prepared.py lists, the folder holds hashes.bin (to find
near-duplicates) and boxes.csv (the known places of findings). A record holds what its row
of the table does, and `pixels`, [H, W, C] or [D, H, W, C] uint8 or uint16.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from medjax.cohort import appearance, duplicates, identity
from medjax.data import prepared
from medjax.data.images import eight_bits
from medjax.data.prepared import Item
from medjax.errors import InputError
from medjax.files import write_table

OURS = ("", "mean", "macro average")  # Rows of reports, which no finding may be.
SPLIT = "films"  # The one TFDS split of the records.
VERSION = tfds.core.Version("1.1.0")  # 1.1.0: patients as text.
RECORDS_PER_FILE = 4096
BUFFERED = 64  # Images: TFDS rewrites its metadata at every call that adds records.
log = logging.getLogger("medjax")


class Source(NamedTuple):
    """Where images come from."""

    tasks: tuple[str, ...]  # Names of the findings or classes.
    shape: tuple[int, ...]  # Of every image, (H, W, C) or (D, H, W, C).
    total: int  # How many items, those that will be left out included.
    # Makes the items one after the other: not all images fit into memory.
    items: Callable[[], Iterable[Item]]
    bits: int = 8  # Of a pixel; or 16.


def folder(records: Path, name: str) -> Path:
    """Where the images of that name lie, prepared or not."""
    return Path(records).absolute() / "images" / name / str(VERSION)


def prepare(source: Source, *, records: Path, name: str, **how: Any) -> Path:
    """Writes a source's images into `folder(records, name)`; `how`: see `prepared.write`.

    Raises:
      InputError: as `prepared.write`; no image; a finding's name that the table can't hold.
    """
    if source.total < 1:
        raise InputError(
            "the data has no image: check data.folder, data.views and data.patients"
        )
    check_tasks(source.tasks)
    path = folder(records, name)
    prepared.write(
        prepared.in_parallel(_with_hashes, source.items()),
        path,
        columns=prepared.COLUMNS + source.tasks,
        store=lambda partial: _writer(partial, source, name),
        unit="files",
        **how,
    )
    return path


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuses a finding without a name, or with one that the table already has."""
    twice = prepared.first_duplicate(tasks)
    for task in tasks:
        if task.strip().lower() in OURS or task == twice or task in prepared.COLUMNS:
            why = "twice" if task == twice else "which is blank or a name of ours"
            raise InputError(
                f"the data has a finding or class {task!r}, {why}: rename it"
            )


def tasks_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The names of a table's findings or classes."""
    return tuple(name for name in table.columns if name not in prepared.COLUMNS)


def pixels_of(folder: Path) -> tuple[tuple[int, ...], int]:
    """The shape of prepared images, (H, W, C) or (D, H, W, C), and a pixel's bits.

    Raises:
      InputError: records are damaged or gone, or others than the table's.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        records = builder.as_data_source(SPLIT)
        count = len(records)
        _ = records[0], records[count - 1]
    except Exception:  # noqa: BLE001 TFDS and ArrayRecord raise many kinds.
        raise prepared.damaged(folder / "images-films.array_record") from None
    if count != len(prepared.read_table(folder)):
        raise prepared.damaged(folder / "table.csv")
    pixels = builder.info.features["pixels"]
    return pixels.shape, 8 * np.dtype(pixels.np_dtype).itemsize


def read_hashes(folder: Path) -> np.ndarray:
    """The hashes of prepared images, [N, 4, 32] uint8, in the table's order."""
    return np.fromfile(folder / "hashes.bin", np.uint8).reshape(-1, 4, 32)


@contextlib.contextmanager
def _writer(folder: Path, source: Source, name: str) -> Iterator[Callable]:
    """The writer of images, hashes and boxes, see `prepared.write`."""
    # TFDS' default encoding widens every pixel to 64 bits on the way: 100 times slower
    # to write, 10 times to read.
    kind = np.dtype(f"uint{source.bits}")
    pixels = tfds.features.Tensor(shape=source.shape, dtype=kind, encoding="bytes")
    label = tfds.features.Tensor(shape=(len(source.tasks),), dtype=np.float32)
    features = {
        k: tfds.features.Text() if v is str else v for k, v in prepared.KINDS.items()
    }
    features |= {"pixels": pixels, "label": label}
    identity = tfds.core.DatasetIdentity(
        name="images",
        config_name=name,
        version=VERSION,
        data_dir=os.fspath(folder),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Images, resized once.",
        features=tfds.features.FeaturesDict(features),
    )
    writer = tfds.core.SequentialWriter(
        info, RECORDS_PER_FILE, file_format="array_record"
    )
    writer.initialize_splits([SPLIT])
    waiting: list[dict] = []
    boxes: list[tuple] = []
    dim: list[str] = []
    with open(folder / "hashes.bin", "wb") as hashes_file:

        def add(id: int, item: Item) -> dict[str, Any]:
            pixels, hashes = item.content
            if appearance.is_dim(pixels):
                dim.append(item.row["image"])
            boxes.extend((id, *box) for box in item.boxes)
            hashes_file.write(hashes.tobytes())
            row = {"id": id, **item.row}
            record = {name: row[name] for name in prepared.COLUMNS}
            record["patient"] = str(row["patient"])
            label = np.array([row[task] for task in source.tasks], np.float32)
            waiting.append(record | {"pixels": pixels, "label": label})
            if len(waiting) == BUFFERED:
                writer.add_examples({SPLIT: waiting})
                waiting.clear()
            return row

        yield add
    writer.add_examples({SPLIT: waiting})
    writer.close_all()
    if warning := appearance.dim(len(dim), source.bits):
        log.warning("%s (%s for one)", warning, min(dim))
    corners = pd.DataFrame(boxes, columns=["id", "task", "x0", "y0", "x1", "y1"])
    write_table(folder / "boxes.csv", corners)


def _with_hashes(item: Item) -> Item:
    """The content becomes (pixels, hashes [4, 32] uint8)."""
    if item.content is None:
        return item
    hashes = duplicates.hashes(eight_bits(item.content))
    return item._replace(content=(item.content, hashes))


def patient_codes(folder: Path) -> np.ndarray:
    """[N] int32: the rank of each image's patient among the sorted ids."""
    patients = pd.read_csv(
        folder / "table.csv", usecols=["patient"], dtype=str, keep_default_na=False
    )["patient"]
    return pd.factorize(identity.column(patients), sort=True)[0].astype(np.int32)
