"""A patient's sequences -> a scan on one grid, ready for a network and for the way back.

`read_scan` reads files, for `prepare` and for `predict` alike, and `make_scan` resamples
them, crops to the body and makes z-scores. The scan keeps its file's grid, to which
`to_original` takes a prediction back.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from medjax.data import alignment, intensity_units, nifti, series
from medjax.data.alignment import Alignment
from medjax.data.foreground import box, inside, on_zero
from medjax.data.nifti import Grid, SequenceFile
from medjax.errors import InputError, check_choice
from medjax.geometry import grid

NEAR = 0.05  # A mask's value is rounded to a whole number that is as near.
MAX_HIDDEN_SHARE = 0.01  # Largest share of a region's voxels where the image is 0.
REMEDIES = {  # For a label that lies outside of the foreground.
    "head": "'body', which keeps all large parts, or 'none'",
    "body": "'nonzero', where one value surrounds the body, or 'none'",
    "nonzero": "'none'",
    "none": "'body'",  # A sequence is resampled, and ends before the mask does.
}
log = logging.getLogger("medjax")


class Scan(NamedTuple):
    """One patient's scan, prepared; axes as in `nifti.Volume`."""

    # [D, H, W, C] float32: z-scores or other units, and 0 outside of the foreground.
    image: np.ndarray
    label: np.ndarray | None  # [D, H, W, K] uint8, 0 or 1; regions may overlap.
    presence: np.ndarray  # [C] float32, 1, or 0 for a missing sequence, 0 everywhere.
    affine: np.ndarray  # [4, 4] float64, indices of D, H, W to RAS millimetres.
    original: Grid  # Of the first sequence's file, as it is stored there.
    header: nibabel.Nifti1Header | None = None  # That file's, if it is NIfTI.
    alignments: tuple[Alignment, ...] = ()  # Of sequences of other files.
    foreground: str = "body"  # What isn't background, see foreground.KINDS.

    @property
    def spacing(self) -> np.ndarray:
        """[3] mm along D, H, W."""
        return grid.spacing_of(self.affine)


def read_scan(
    files: Mapping[str, SequenceFile | None],
    mask: Path | None = None,
    *,
    regions: Mapping[str, Sequence[int]],
    background: Sequence[int] = (0,),
    grids: str = "refuse",
    compare: bool = True,
    missing: str = "refuse",
    foreground: str = "body",
    units: str | Sequence[str] = "z_scores",
    **options,
) -> Scan:
    """Reads, checks and prepares one patient.

    Args:
      files: sequence -> its file, in the order of the channels; None is missing.
      mask: the segmentation, on the grid of the first sequence.
      regions: region -> the mask's values that make it up, in the order of the
        label's channels. BraTS: whole (1, 2, 4), core (1, 4), enhancing (4,).
      background: the mask's other values, which belong to no region.
      grids: 'refuse' sequences on different grids, or 'align' each file's with the
        first: register it rigidly and resample it, but where it lies on that grid
        and is off by less than the thickest slice.
      compare: whether it warns of sequences on one grid that don't show the same.
      missing: 'refuse' a patient without one of the sequences, or 'fill' it with 0.
      foreground: what stays of the image, one of `foreground.KINDS`.
      units: of the scan's image, see `make_scan`.
      options: of `make_scan`.

    Raises:
      InputError: a file that can't be read, a sequence of one value or of another unit,
        a missing sequence, grids that differ, sequences of two people, a mask of other
        values, or a region where the image is 0.
    """
    for name, value, other in (("grids", grids, "align"), ("missing", missing, "fill")):
        check_choice(f"data.{name}", value, ("refuse", other))
    present = _present(files, missing)
    for name, file in present.items():
        if mask is not None and file.path.resolve() == mask.resolve():
            raise InputError(
                f"{mask}: is both {name} and the mask: correct one of them"
            )
    units = (units,) * len(files) if isinstance(units, str) else units
    unit_of = dict(zip(files, units, strict=True))
    volumes, floors = _read(present, foreground, unit_of)
    reference, first = next(iter(volumes.values())), next(iter(present.values())).path
    compared = [n for n in present if compare and unit_of[n] != "suv"]
    image = np.zeros((*reference.voxels.shape, len(files)), np.float32)
    alignments = []
    for channel, name in enumerate(files):
        if name in present:
            moving = volumes.pop(name), present[name].path
            volume, similar = alignment.placed(
                *(reference, first, *moving), grids, compare=name in compared
            )
            alignments += [Alignment(name, *similar)] if similar else []
            image[..., channel] = volume.voxels
    alignment.check_distinct(image, tuple(files), first.parent)
    label = None
    if mask is not None:
        volume = nifti.read(mask)
        remedy = f"give the mask on the grid of {first.name}"
        alignment.check_grid(reference, volume, first, mask, remedy)
        label = _label(mask, volume.voxels, regions, background)
    prepared = make_scan(
        image,
        label,
        reference.affine,
        presence=np.array([name in present for name in files], np.float32),
        original=reference.stored,
        foreground=foreground,
        units=units,
        floors=[floors.get(name, 0) for name in files],
        **options,
    )
    for name, seen in zip(files, prepared.image.any(axis=(0, 1, 2)), strict=True):
        if name in present and not seen:
            raise InputError(
                f"{present[name].path}: {name} has one value inside of "
                f"data.foreground={foreground!r}; give an image, not a mask, or a "
                "smaller data.spacing"
            )
    if mask is not None:
        _check_shown(mask, prepared, regions, foreground)
    return prepared._replace(header=reference.header, alignments=tuple(alignments))


def _present(
    files: Mapping[str, SequenceFile | None], missing: str
) -> dict[str, SequenceFile]:
    """The sequences that are there; refuses none, and a missing one unless it is filled."""
    present = {name: file for name, file in files.items() if file is not None}
    if not present:
        raise InputError(f"none of the sequences {', '.join(files)} is there")
    if missing == "refuse" and len(present) < len(files):
        name = next(name for name in files if name not in present)
        raise InputError(
            f"{next(iter(present.values())).path.parent}: has no {name}; add it, correct "
            "its pattern in data.files, or set data.missing='fill'"
        )
    return present


def _read(
    files: Mapping[str, SequenceFile], foreground: str, units: Mapping[str, str]
) -> tuple[dict, dict]:
    """Reads each file once, and refuses constant images; see `foreground.on_zero`."""
    read_stack = functools.cache(functools.partial(nifti.read, stack=True))
    volumes, floors = {}, {}
    for name, (path, channel, needed) in files.items():
        if channel is None:
            volume = (series if path.is_dir() else nifti).read(path)
        else:
            volume = read_stack(path)
            count = volume.voxels.shape[-1]
            if channel >= count:
                raise InputError(
                    f"{path}: holds {count} volumes, and {name} would be number "
                    f"{channel + 1}; correct data.sequences"
                )
            if needed not in (None, count):
                raise InputError(
                    f"{path}: holds {count} volumes, and {needed} have a name; name all "
                    "in their order, in data.sequences or a dataset.json"
                )
            volume = volume._replace(voxels=volume.voxels[..., channel])
        if (value := volume.voxels.min()) == volume.voxels.max():
            raise InputError(f"{path}: {name} is {value:g} everywhere; export it again")
        voxels = volume.voxels
        if units[name] == "suv" and path.is_dir():
            voxels = voxels * np.float32(intensity_units.suv_factor(path))
        try:
            voxels = intensity_units.checked(voxels, units[name])
        except InputError as error:
            raise InputError(f"{path}: {name} {error}") from None
        voxels, floors[name] = on_zero(voxels, foreground)
        volumes[name] = volume._replace(voxels=voxels)
    return volumes, floors


def _check_shown(
    path: Path, scan: Scan, regions: Mapping[str, Sequence[int]], foreground: str
) -> None:
    """Refuses a mask much of which lies outside of the foreground."""
    dark = ~scan.image.any(axis=-1)
    for name, region in zip(regions, np.moveaxis(scan.label, -1, 0), strict=True):
        hidden, total = np.sum(region[dark]), np.sum(region)
        text = f"{path}: {hidden} of {total} voxels of {name} lie where the image is 0"
        if hidden > MAX_HIDDEN_SHARE * total:
            raise InputError(
                f"{text}, outside of data.foreground={foreground!r}; correct the mask, "
                f"or set data.foreground={REMEDIES[foreground]}"
            )
        if hidden:
            log.warning("%s", text)


def _label(path: Path, voxels: np.ndarray, regions, background) -> np.ndarray:
    """[D, H, W, K] uint8, of a mask's values; scaled integers come back as 0.99999."""
    whole = np.rint(voxels)
    near = NEAR if whole.any() else 0  # A mask that was divided by 255 isn't empty.
    voxels = np.where(np.abs(voxels - whole) <= near, whole, voxels)
    allowed = {*background, *(v for values in regions.values() for v in values)}
    strange = set(np.unique(voxels).tolist()) - allowed
    if strange:
        names = ", ".join(f"{name} {tuple(values)}" for name, values in regions.items())
        raise InputError(
            f"{path}: holds the value {min(strange):.6g}, which is in no region ({names}) "
            f"and no background {tuple(background)}; correct data.regions, or the mask"
        )
    masks = [np.isin(voxels, values) for values in regions.values()]
    return np.stack(masks, axis=-1).astype(np.uint8)


def make_scan(
    image: np.ndarray,
    label: np.ndarray | None,
    affine: np.ndarray,
    *,
    presence: np.ndarray | None = None,
    original: Grid | None = None,
    spacing: Sequence[float] = (),
    margin: float = 5.0,
    foreground: str = "body",
    clip: tuple[float, float] = intensity_units.CLIP,
    units: str | Sequence[str] = "z_scores",
    floors: float | Sequence[float] = 0.0,
) -> Scan:
    """Prepares arrays that lie on one grid; they are as in `Scan`, in any units.

    The foreground is found before resampling, which would blur its edge. It and the
    regions are interpolated linearly and thresholded at 0.5, so that a region inside
    another stays inside. A coarser grid loses small lesions: of 49 and 140 lesions of
    two patients with multiple sclerosis at 1 mm, 38 and 98 returned from 1.5 mm.

    Args:
      presence: None: all sequences are present.
      original: None: this grid.
      spacing: [3] mm along D, H, W (feet to head, front to back, right to left), or
        () to keep the grid's.
      margin: mm kept around the foreground; a label outside is never cropped.
      foreground: as in `read_scan`.
      clip: percentiles within the foreground to which intensities are clipped first: a
        bright vessel must not set the scale. (0, 100) clips nothing.
      units: of the scan's image, 'z_scores', or the image's own, which aren't clipped:
        'hounsfield', 'suv' or 'own'; of all channels, or [C].
      floors: what was subtracted from each channel, and is added to its own units.

    Raises:
      InputError: a spacing that isn't three positive numbers, or no foreground.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, supplement: z-scores
    inside the brain's mask, and crops to it.
    """
    present = np.ones(image.shape[-1]) if presence is None else np.asarray(presence)
    start = Grid(image.shape[:3], np.asarray(affine, np.float64))
    spacings = grid.spacing_of(start.affine)
    masks = inside(image[..., present > 0], spacings, foreground)[..., None]
    if label is not None:
        masks = np.concatenate([masks, label > 0], axis=-1)
    target = _target(start, spacing)
    if target is not start:
        image = grid.antialiased(image, start.affine, *target)
        masks = np.asarray(grid.resample(masks, start.affine, *target)) >= 0.5
    if not masks[..., 0].any():
        raise InputError(
            f"data.foreground={foreground!r} is empty: the image has one value, or "
            "next to none"
        )
    extent = box(masks.any(axis=-1), margin / grid.spacing_of(target.affine))
    moved = target.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [side.start for side in extent]
    image, masks = image[extent], masks[extent]
    body = masks[..., 0]
    scored = np.broadcast_to(np.asarray(units) == "z_scores", present.shape)
    scores = _z_scores(image, body, present * scored, clip)
    if not scored.all():
        own = image + np.asarray(floors, np.float32)
        own[own == 0] = intensity_units.NOT_0  # 0 is background.
        own = np.where(body[..., None] & (present > 0), own, 0).astype(np.float32)
        scores = np.where(scored, scores, own)
    image = scores
    label = None if label is None else masks[..., 1:].astype(np.uint8)
    present = present.astype(np.float32)
    scan = Scan(image, label, present, moved, original or start)
    return scan._replace(foreground=foreground)


def _target(start: Grid, spacing: Sequence[float]) -> Grid:
    """The grid of that spacing with the same centre; `start` if it has the spacing."""
    if len(spacing) == 0:
        return start
    target = np.asarray(spacing, np.float64)
    if target.shape != (3,) or not (np.isfinite(target) & (target > 0)).all():
        raise InputError(f"data.spacing={tuple(spacing)}: give three lengths in mm")
    step = target / grid.spacing_of(start.affine)
    if np.allclose(step, 1, rtol=1e-3):  # A header's float32 is rounded.
        return start
    shape = np.maximum(np.rint(start.shape / step).astype(int), 1)
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (np.array(start.shape) - 1) / 2 - step * (shape - 1) / 2
    return Grid(tuple(map(int, shape)), start.affine @ scale)


def _z_scores(image, brain, present, clip) -> np.ndarray:
    """Mean 0 and deviation 1 inside the brain, for each channel that is present.

    A voxel of exactly 0 isn't counted: it lies outside of a sequence's field of view.
    """
    out = np.zeros(image.shape, np.float32)
    for channel in np.flatnonzero(present):
        values = image[..., channel][brain]
        seen = values[values != 0]
        if seen.size == 0:
            continue
        low, high = np.percentile(seen, clip)
        seen = np.clip(seen, low, high).astype(np.float64)
        mean, std = seen.mean(), seen.std()
        if std > 1e-5 * abs(mean):  # Below that, it is float32's rounding.
            out[..., channel][brain] = (np.clip(values, low, high) - mean) / std
    return out


def to_original(array: np.ndarray, scan: Scan, *, order: int = 1) -> np.ndarray:
    """Takes [D, H, W, K] to the grid of the scan's file; 0 outside of the box.

    The order is 1 for probabilities (float32), 0 for masks (their own dtype).
    """
    return np.asarray(grid.resample(array, scan.affine, *scan.original, order=order))
