"""Records of images: their pixels in one file, beside their table.

Beside the files that prepared.py lists, the folder holds

    pixels.npy  [N, H, W, C] or [N, D, H, W, C] uint8 or uint16, in the table's order
    hashes.npy  [N, 4, 32] uint8, to find near-duplicates
    boxes.csv   the known places of findings
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np
import pandas as pd

from medjax.cohort import appearance, duplicates, identity
from medjax.data import prepared
from medjax.data.image_files import eight_bits
from medjax.data.prepared import Item
from medjax.errors import InputError
from medjax.files import write_table

# Raise it when a reader or a phantom makes other pixels, hashes or rows than before: the
# images of older records are then prepared again, in another folder.
READER = 1
TAKEN = ("", "mean", "macro average")  # Rows of reports, which no finding may be.
PIXELS, HASHES = "pixels.npy", "hashes.npy"
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
    return Path(records).absolute() / "images" / name


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
        store=lambda partial: _writer(partial, source),
        unit="files",
        **how,
    )
    return path


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuses a finding without a name, or with one that the table already has."""
    identity.refuse_spellings(tasks, "findings or classes")
    twice = prepared.first_duplicate(tasks)
    for task in tasks:
        if task.strip().lower() in TAKEN or task == twice or task in prepared.COLUMNS:
            why = "twice" if task == twice else "which is blank or a name of ours"
            raise InputError(
                f"the data has a finding or class {task!r}, {why}: rename it"
            )


def tasks_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The names of a table's findings or classes."""
    return tuple(name for name in table.columns if name not in prepared.COLUMNS)


def pixels_of(folder: Path) -> np.ndarray:
    """All prepared images, [N, H, W, C] or [N, D, H, W, C], mapped: read where touched.

    Raises:
      InputError: they are damaged or gone, or others than the table's.
    """
    pixels = prepared.mapped(folder / PIXELS)
    if len(pixels) != len(prepared.read_table(folder)):
        raise prepared.damaged(folder / "table.csv")
    return pixels


def read_hashes(folder: Path) -> np.ndarray:
    """The hashes of prepared images, [N, 4, 32] uint8, in the table's order."""
    return prepared.mapped(folder / HASHES)


@contextlib.contextmanager
def _writer(folder: Path, source: Source) -> Iterator[Callable]:
    """The writer of images, hashes and boxes, see `prepared.write`."""
    hashes: list[np.ndarray] = []
    boxes: list[tuple] = []
    dim: list[str] = []
    kind = np.dtype(f"uint{source.bits}")

    def write_header(number: int) -> None:
        header = {"shape": (number, *source.shape), "descr": kind.str}
        file.seek(0)  # NumPy leaves room for a larger number.
        np.lib.format.write_array_header_1_0(file, header | {"fortran_order": False})

    with open(folder / PIXELS, "wb") as file:
        write_header(0)

        def add(id: int, item: Item) -> dict[str, Any]:
            pixels, of_image = item.content
            chex.assert_shape(pixels, source.shape)
            chex.assert_type(pixels, kind)
            if appearance.is_dim(pixels):
                dim.append(item.row["image"])
            boxes.extend((id, *box) for box in item.boxes)
            hashes.append(of_image)
            file.write(pixels.tobytes())
            return {"id": id, **item.row}

        yield add
        write_header(len(hashes))
    np.save(folder / HASHES, np.array(hashes))
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
