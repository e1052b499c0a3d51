"""Volumes with a table: NIfTI files or DICOM series, one or several sequences a row.

They are prepared as scans to be segmented are, cropped or padded to one shape about the
body's middle, and stored in 16 bits: 0 outside of the body, and z-scores as
normalisation.z_scores reads them. Masks are further channels behind those of the image:
OUTSIDE a region or INSIDE, and 0 where nobody says.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data import intensity_units, liver_phantom, scan, series
from medjax.data.normalisation import HIGHEST, LOWEST
from medjax.data.prepared import Item
from medjax.data.records import Source
from medjax.data.scan import Scan
from medjax.data.sources import scan_files, tables

GREY_BITS = 16
OUTSIDE, INSIDE = 1, 2
# Of `read`, but for the units.
OPTIONS = ("spacing", "grids", "missing", "foreground", "margin", "clip", "windows")
log = logging.getLogger("medjax")


def volumes(
    *,
    folder: Path,
    sequences: Sequence[str],
    shape: Sequence[int],
    units: Sequence[str],
    windows: Sequence[tuple[float, float]],
    mask: str,
    regions: Sequence[str],
    values: Mapping[str, Sequence[int]],
    background: Sequence[int],
    **options: Any,
) -> Source:
    """A folder of volumes and a CSV file with one row a volume, see `tables.listed`.

    `shape` is D, H, W of the records, whose channels are intensity_units.channels; the
    options are of `read`, scan.read_scan and `tables.listed`.
    """
    how = {name: options.pop(name) for name in ("files", *OPTIONS) if name in options}
    how |= {"sequences": sequences, "units": units, "windows": windows}
    rows, names, paths, where = tables.listed(folder, **options)
    masks = tables.beside(folder, where, rows["image"], mask) if mask else {}
    find = functools.partial(
        scan_files.volumes_in, folder, sequences=sequences, files=how["files"]
    )
    there = [*paths.values(), *masks.values()]
    tables.warn_of_unlisted(where, lambda: find()[0], there)
    how |= {"regions": {name: values[name] for name in regions if mask}}
    cut: list[str] = []

    def load(name: str) -> tuple:
        drawn = Path(masks[name]) if name in masks else None
        case = read(paths[name], drawn, background=background, **how)
        _, height, width = case.image.shape[:3]
        if any(np.greater(case.image.shape[:3], shape)):
            cut.append(name)
        from_file = (width, height, *case.spacing[:0:-1].tolist())
        files_of = scan_files.of_row(
            Path(paths[name]), sequences=sequences, files=how["files"]
        )
        patients = series.patients_of(scan_files.ScanFiles(name, files_of).paths())
        return record(case, shape), from_file, patients, *case.alignments

    channels = intensity_units.channels(units, windows) or sequences
    whole = (*shape, len(channels) + len(how["regions"]))
    options = {"where": where, "bits": GREY_BITS}
    made = tables.from_rows(rows, load, tasks=names, shape=whole, **options)

    def items() -> Iterator[Item]:
        yield from made.items()
        if cut:
            log.warning(
                "%s: %d volumes are larger than data.shape, %s for one: their edges are "
                "cut off; give a larger shape or data.spacing, unless the rest shows all "
                "that counts",
                *(where, len(cut), min(cut)),
            )

    return made._replace(items=items)


def phantom(
    *,
    patients: int,
    first_patient: int,
    seed: int,
    shape: Sequence[int],
    spacing: Sequence[float],
    masks: bool,
) -> Source:
    """Synthetic livers with or without a lesion, see liver_phantom.py."""

    def items() -> Iterator[Item]:
        for number in range(first_patient, first_patient + patients):
            drawn = liver_phantom.patient(
                number, seed=seed, shape=shape, spacing=spacing
            )
            mask = drawn.mask if masks else None
            case = scan.make_scan(drawn.image, mask, drawn.affine)
            row = {"image": f"liver{number:05d}", "patient": number}
            row |= dict.fromkeys(("view", "sex", "official"), "")
            row |= dict.fromkeys(("age", "follow_up"), np.nan)
            row |= {"width": shape[2], "height": shape[1]}
            row |= {"spacing_x": spacing[2], "spacing_y": spacing[1]}
            yield Item(
                {**row, liver_phantom.FINDING: float(drawn.lesion)}, record(case, shape)
            )

    channels = 1 + masks
    return Source(
        (liver_phantom.FINDING,), (*shape, channels), patients, items, GREY_BITS
    )


def read(
    path: Path,
    mask: Path | None = None,
    *,
    sequences: Sequence[str],
    files: Mapping[str, str],
    units: Sequence[str] = (),
    windows: Sequence[tuple[float, float]] = (),
    regions: Mapping[str, Sequence[int]] | None = None,
    **options: Any,
) -> Scan:
    """Reads one volume, which a row of a table or a user names, as the network sees it.

    Its label has the regions of a mask; without one they are unknown: NaN.
    """
    sequence_files = scan_files.of_row(Path(path), sequences=sequences, files=files)
    options |= {"regions": regions or {}, "units": units or "z_scores"}
    case = scan.read_scan(sequence_files, mask, **options)
    if mask is None and regions:
        blank = np.full((*case.image.shape[:3], len(regions)), np.nan, np.float32)
        case = case._replace(label=blank)
    channels = intensity_units.channels(units, windows)
    return case._replace(image=intensity_units.normalise(case.image, channels))


def record(case: Scan, shape: Sequence[int]) -> np.ndarray:
    """A scan as it is stored, [*shape, C] uint16, or [*shape, C + K] with its masks."""
    image = centred(case.image, shape)
    unit = (image - LOWEST) / (HIGHEST - LOWEST)
    levels = np.clip(np.rint(unit * (2**GREY_BITS - 1)), 1, 2**GREY_BITS - 1)
    levels = np.where(image != 0, levels, 0).astype(np.uint16)
    if case.label is None:
        return levels
    known = np.where(case.label > 0, INSIDE, np.where(case.label == 0, OUTSIDE, 0))
    masks = centred(known.astype(np.uint16), shape)
    return np.concatenate([levels, masks], axis=-1)


def centred(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Crops or pads [D, H, W, ...] on both sides alike; to its own shape again: back."""
    more = np.subtract(shape, image.shape[:3])
    before = np.abs(more) // 2
    cut, pad = before * (more < 0), before * (more > 0)
    image = image[tuple(map(slice, cut, cut + shape))]
    pads = [*zip(pad, np.maximum(more, 0) - pad), *[(0, 0)] * (image.ndim - 3)]
    return np.pad(image, pads)
