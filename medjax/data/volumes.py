"""Prepared scans: a pair of arrays each, and the samples that training draws of them.

Beside the files that prepared.py lists, the folder holds

    0.image.npy   [D, H, W, C] float16, z-scores, or Hounsfield units or SUV
    0.label.npy   [D, H, W, K] uint8; absent for a scan without a mask
    data.json     sequences, regions with their values, and the options
    digests.json  digests of the arrays' files
    thumbnails.npy  [N, C, 2, S, S, S] float16, see cohort/duplicates.py

The arrays are plain .npy, so a loader maps them and reads only the part it needs.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from medjax.cohort import duplicates
from medjax.data import loader, prepared
from medjax.data.intensity_units import Channel, normalise
from medjax.data.prepared import Item
from medjax.data.scan import Scan, read_scan
from medjax.data.sources.scan_files import ScanFiles
from medjax.errors import InputError
from medjax.files import digest, escaped, read_json, write_json

# Then voxels_<region>, blank without a mask, and has_<sequence>, 1 or 0.
VOLUME_COLUMNS = (
    "id",  # int, the number in the files' names.
    "image",  # str, the patient's folder or file.
    "patient",  # int or str, the unit of every split and interval.
    "official",  # 'train', 'test' or ''.
    "depth",  # int, voxels, as are the next two.
    "height",
    "width",
    "spacing_d",  # float, mm, as are the next two.
    "spacing_h",
    "spacing_w",
)
SPACING_COLUMNS = VOLUME_COLUMNS[-3:]
READER = 1  # Raise it when scans are read into other arrays or rows, as records.READER.
DIGESTS = "digests.json"
THUMBNAILS = "thumbnails.npy"
REGION_POINTS = 1024  # Of each region and volume: patches are drawn about them.


class UnreadScan(NamedTuple):
    """One scan on its way into the prepared folder."""

    name: str  # Of the patient, or of the scan where a patient has several.
    patient: int | str
    read: Callable[[], Scan]  # An InputError of it quarantines the scan.
    official: str = ""  # 'train' or 'test'.


class Prepared(NamedTuple):
    """A prepared folder of scans."""

    folder: Path
    table: pd.DataFrame  # VOLUME_COLUMNS, voxels_<region> and has_<sequence>.
    sequences: tuple[str, ...]  # [C] names of the image's channels.
    # [K] names of the label's channels -> their values in a mask's file.
    regions: dict[str, tuple[int, ...]]


def from_files(
    files: Sequence[ScanFiles],
    *,
    regions: Mapping[str, Sequence[int]],
    labelled: bool = True,
    patients: Sequence[int | str] = (),
    **options,
) -> list[UnreadScan]:
    """What `prepare` and `predict` read, of files that sources/scan_files.py found.

    A scan without a mask is quarantined if they are to be labelled. Without `patients`,
    whom each scan shows, a patient has the scan's name.
    """

    def read(scan: ScanFiles) -> Scan:
        if labelled and scan.mask is None:
            raise InputError(f"{scan.name}: has no mask; add it, or correct data.mask")
        return read_scan(scan.sequences, scan.mask, regions=regions, **options)

    patients = patients or [scan.name for scan in files]
    return [
        UnreadScan(
            escaped(scan.name), patient, functools.partial(read, scan), scan.official
        )
        for patient, scan in zip(patients, files, strict=True)
    ]


def prepare(
    scans: Sequence[UnreadScan],
    folder: Path,
    *,
    sequences: Sequence[str],
    regions: Mapping[str, Sequence[int]],
    options: Mapping[str, Any],
    **how: Any,
) -> Prepared:
    """Writes scans as a prepared folder, see `Prepared`; `how`: see `prepared.write`.

    Raises:
      InputError: as `prepared.write`; no scan, or two of one name.
    """
    folder = Path(folder).absolute()
    if not scans:
        raise InputError("the data has no patient: check data.folder and data.files")
    if (name := prepared.first_duplicate(scan.name for scan in scans)) is not None:
        raise InputError(f"two patients are called {name!r}: rename one of them")

    @contextlib.contextmanager
    def store(partial: Path) -> Iterator[Callable]:
        about = {
            "sequences": list(sequences),
            "regions": {name: list(values) for name, values in regions.items()},
            "options": dict(options),
        }
        write_json(partial / "data.json", about)
        thumbnails: list[np.ndarray] = []

        def add(id: int, item: Item) -> dict[str, Any]:
            thumbnails.append(duplicates.thumbnail(item.content.image))
            return _write(item, id, partial, sequences, regions)

        yield add
        np.save(partial / THUMBNAILS, np.array(thumbnails))
        arrays = sorted(partial.glob("*.npy"))
        digests = {path.name: digest(path) for path in arrays}
        write_json(partial / DIGESTS, digests)

    prepared.write(
        map(_read, scans),
        folder,
        columns=(*VOLUME_COLUMNS, *_voxels(regions), *_has(sequences)),
        store=store,
        unit="patients",
        **how,
    )
    return read_prepared(folder)


def read_prepared(folder: Path) -> Prepared:
    """Opens a prepared folder, or raises an InputError."""
    folder = Path(folder)
    if not (folder / "data.json").is_file():
        raise InputError(f"{folder}: holds no prepared scans; prepare them first")
    about, table = read_json(folder / "data.json"), prepared.read_table(folder)
    arrays = read_json(folder / DIGESTS)
    listed = {f"{id}.image.npy" for id in table["id"]} == {
        name for name in arrays if name.endswith(".image.npy")
    }
    gone = [name for name in arrays if not (folder / name).exists()]
    if gone or not listed:
        raise prepared.damaged(folder / [*gone, "table.csv"][0])
    return Prepared(
        folder,
        table,
        tuple(about["sequences"]),
        {name: tuple(values) for name, values in about["regions"].items()},
    )


def _read(scan: UnreadScan) -> Item:
    row = {"image": scan.name, "patient": scan.patient, "official": scan.official}
    try:
        read = scan.read()
        return Item(row, read, alignments=read.alignments)
    except InputError as error:
        return Item(row, None, reason=str(error))


def _write(item: Item, id: int, folder: Path, sequences, regions) -> dict[str, Any]:
    """Writes one scan's files, and returns its row."""
    scan = item.content
    np.save(folder / f"{id}.image.npy", scan.image.astype(np.float16))
    voxels = [""] * len(regions)
    if scan.label is not None:
        np.save(folder / f"{id}.label.npy", scan.label.astype(np.uint8))
        voxels = np.sum(scan.label, axis=(0, 1, 2), dtype=np.int64).tolist()
    names = ("id", *VOLUME_COLUMNS[4:], *_voxels(regions), *_has(sequences))
    values = (id, *scan.image.shape[:3], *scan.spacing, *voxels, *scan.presence)
    return item.row | dict(zip(names, values, strict=True))


def _voxels(regions: Iterable[str]) -> list[str]:
    return [f"voxels_{name}" for name in regions]


def _has(sequences: Iterable[str]) -> list[str]:
    return [f"has_{name}" for name in sequences]


# Samples.


class Part(NamedTuple):
    """A volume, or one half of it."""

    id: int  # The volume's number in the prepared folder.
    half: str = "whole"  # Or the patient's 'left' or 'right'; W grows to the left.


def read(folder: Path, part: Part) -> tuple[np.ndarray, np.ndarray | None]:
    """A part's image [D, H, W, C] float16 and mask [D, H, W, K] uint8 or None, mapped."""

    def mapped(kind: str) -> np.ndarray | None:
        path = folder / f"{part.id}.{kind}.npy"
        if not path.exists():
            return None
        array = prepared.mapped(path)
        if part.half == "whole":
            return array
        right, left = np.array_split(array, [array.shape[2] // 2], axis=2)
        return left if part.half == "left" else right

    return mapped("image"), mapped("label")


def read_thumbnails(folder: Path) -> np.ndarray:
    """[N, C, 2, S, S, S] of all volumes, see cohort/duplicates.py."""
    thumbnails = prepared.mapped(folder / THUMBNAILS)
    if thumbnails.ndim != 6:
        raise prepared.damaged(folder / THUMBNAILS)
    return thumbnails


class Volumes:
    """A random-access source of whole volumes, padded to one shape.

    The whole volume goes to the device, which draws patches of it by key. A part may
    occur several times; the shape is `at_least` that of a patch. The C `channels` are
    made of the sequences, see intensity_units.normalise.
    """

    def __init__(
        self,
        prepared: Prepared,
        parts: Sequence[Part],
        at_least: Sequence[int],
        channels: Sequence[Channel] = (),
    ):
        self._channels = channels
        self._folder, self.parts = prepared.folder, tuple(parts)
        self._facts = {}
        for id, row in prepared.table.set_index("id").iterrows():
            spacing, presence = (
                row[[*names]].to_numpy(np.float32)
                for names in (SPACING_COLUMNS, _has(prepared.sequences))
            )
            if channels:
                presence = presence[[channel[0] for channel in channels]]
            self._facts[id] = {"spacing": spacing, "presence": presence}
        self.ids = np.array([part.id for part in self.parts], np.int32)
        self._occurrence = loader.occurrences(self.ids)
        shapes = [read(self._folder, part)[0].shape[:3] for part in set(self.parts)]
        self.shape = tuple(np.max([at_least, *shapes], axis=0).tolist())
        self._points: dict[Part, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> loader.Batch:
        """image [D, H, W, C] float16, 0 where there is none; label [D, H, W, K] uint8;
        size [3] int32 of the volume in it; points [K, REGION_POINTS, 3] int32, voxels
        of each region with repetition; present [K] bool, whether it has any; spacing
        [3] mm; presence [C] float32, 0 for a sequence that is missing; id, occurrence.
        """
        part = self.parts[index]
        image, label = read(self._folder, part)
        image = normalise(image, self._channels)
        if part not in self._points:
            points, present = foreground_points(label, seed=part.id)
            self._points[part] = {"points": points, "present": present}
        return {
            "image": self._padded(image),
            "label": self._padded(label),
            "size": np.array(image.shape[:3], np.int32),
            **self._points[part],
            **self._facts[part.id],
            "id": self.ids[index],
            "occurrence": self._occurrence[index],
        }

    def _padded(self, volume: np.ndarray) -> np.ndarray:
        whole = np.zeros((*self.shape, volume.shape[-1]), volume.dtype)
        whole[tuple(map(slice, volume.shape[:3]))] = volume
        return whole


def foreground_points(label: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each region of [D, H, W, K], for patches to be drawn about.

    Half of them are drawn from all voxels of the region, all equally likely. For the
    other half a connected component is drawn first, all equally likely, and then one
    of its voxels: otherwise a small lesion beside a large one would hardly ever be
    seen.

    Returns:
      points [K, REGION_POINTS, 3] int32, with repetition, 0 where there is none;
      present [K] bool.
    """
    rng = np.random.default_rng(seed)
    points = np.zeros((label.shape[-1], REGION_POINTS, 3), np.int32)
    present = label.any(axis=(0, 1, 2))
    for k in np.flatnonzero(present):
        components, number = ndimage.label(label[..., k], np.ones((3, 3, 3)))
        voxels = np.flatnonzero(components)
        component = components.ravel()[voxels]
        chance = 1 / np.bincount(component)[component] / number
        half = REGION_POINTS // 2
        chosen = [rng.choice(voxels, half), rng.choice(voxels, half, p=chance)]
        indices = np.concatenate(chosen)
        points[k] = np.stack(np.unravel_index(indices, label.shape[:3]), axis=1)
    return points, present
