"""One patient's MRI: files -> sequences on one grid, checked, and prepared.

The order: the sequences are read with their axes turned alike, and brought onto one
grid where that is asked for; `cases.py` does the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax.data import dicom, nifti
from medjax.data.nifti import Grid, Volume
from medjax.data.scan import Case, make_case, resample
from medjax.data.sources.scans import File
from medjax.errors import InputError
from medjax.geometry import grid, register

SAME = 0.1  # Voxels by which the corners of one and the same grid may differ.


def read_case(
    files: Mapping[str, File | None],
    mask: Path | None = None,
    *,
    regions: Mapping[str, Sequence[int]],
    background: Sequence[int] = (0,),
    spacing: Sequence[float] = (),
    grids: str = "refuse",
    missing: str = "refuse",
    margin: float = 5.0,
    clip: tuple[float, float] = (0.1, 99.9),
    units: str = "z_scores",
) -> Case:
    """Reads, checks and prepares one patient.

    Args:
      files: sequence -> its file, in the order of the channels; None is missing.
      mask: the segmentation, on the grid of the first sequence; None has no label.
      regions: region -> the mask's values that make it up, in the order of the
        label's channels. BraTS: whole (1, 2, 4), core (1, 4), enhancing (4,).
      background: the mask's other values, which belong to no region.
      spacing: [3] mm along D, H, W (feet to head, front to back, right to left), or
        () to keep the file's.
      grids: 'refuse' sequences that lie on different grids, or 'align': register each
        to the first, rigidly, and resample it there.
      missing: 'refuse' a patient without one of the sequences, or 'fill' it with 0.
      margin: mm kept around the head.
      clip, units: percentiles within the head, and the image's units, see `make_case`.

    Raises:
      InputError: a file that `nifti.read` or `series.read` refuses, a sequence of one
        value, a missing sequence, grids that differ, or a mask of other values.
    """
    for name, value, known in (
        ("grids", grids, ("refuse", "align")),
        ("missing", missing, ("refuse", "fill")),
    ):
        if value not in known:
            options = " or ".join(map(repr, known))
            raise InputError(f"data.{name}={value!r} is unknown: use {options}")
    there = {name: file for name, file in files.items() if file is not None}
    if not there:
        raise InputError(f"none of the sequences {', '.join(files)} is there")
    first = next(iter(there.values()))
    if missing == "refuse" and len(there) < len(files):
        name = next(name for name in files if name not in there)
        raise InputError(
            f"{first.path.parent}: has no {name}; add it, mend its pattern in "
            "data.files, or set data.missing='fill'"
        )
    volumes = _read(there)
    reference = next(iter(volumes.values()))
    image = np.zeros((*reference.voxels.shape, len(files)), np.float32)
    for channel, name in enumerate(files):
        if name in there:
            aligned = _onto(reference, volumes.pop(name), first, there[name], grids)
            image[..., channel] = aligned
    label = None
    if mask is not None:
        label = _read_label(Path(mask), reference, first, regions, background)
    return make_case(
        image,
        label,
        reference.affine,
        presence=np.array([name in there for name in files], np.float32),
        original=reference.stored,
        spacing=spacing,
        margin=margin,
        clip=clip,
        units=units,
    )


def _read(files: Mapping[str, File]) -> dict[str, Volume]:
    """Reads each file once, and refuses what is no image."""
    stacks = {f.path: None for f in files.values() if f.channel is not None}
    stacks = {path: nifti.read_stack(path) for path in stacks}
    volumes = {}
    for name, (path, channel) in files.items():
        if channel is None:
            volume = (dicom if path.is_dir() else nifti).read(path)
        else:
            volume = stacks[path]
            if channel >= volume.voxels.shape[-1]:
                count = volume.voxels.shape[-1]
                raise InputError(
                    f"{path}: holds {count} volumes, and {name} would be number "
                    f"{channel + 1}; mend data.sequences"
                )
            volume = volume._replace(voxels=volume.voxels[..., channel])
        if volume.voxels.min() == volume.voxels.max():
            value = volume.voxels.flat[0]
            raise InputError(f"{path}: {name} is {value:g} everywhere; export it again")
        volumes[name] = volume
    return volumes


def _onto(
    reference: Volume, volume: Volume, first: File, file: File, grids: str
) -> np.ndarray:
    """A sequence's voxels on the reference's grid, [D, H, W]."""
    if _same(reference, volume):
        return volume.voxels
    if grids == "refuse":
        remedy = "set data.grids='align', or give files of one grid"
        raise InputError(_differ(first.path, reference, file.path, volume, remedy))
    found = register.register(
        reference.voxels, reference.affine, volume.voxels, volume.affine
    )
    target = Grid(reference.voxels.shape, reference.affine)
    stack = volume.voxels[..., None]
    aligned = resample(stack, volume.affine, target, found.matrix)[..., 0]
    if aligned.min() == aligned.max():
        raise InputError(
            f"{file.path}: shows nothing of what {first.path} shows; give sequences of "
            "one patient"
        )
    return aligned


def _read_label(
    path: Path, reference: Volume, first: File, regions, background
) -> np.ndarray:
    """[D, H, W, K] uint8."""
    volume = nifti.read(path)
    if not _same(reference, volume):
        remedy = f"give the mask on the grid of {first.path.name}"
        raise InputError(_differ(first.path, reference, path, volume, remedy))
    known = {*background, *(value for values in regions.values() for value in values)}
    strange = set(np.unique(volume.voxels).tolist()) - known
    if strange:
        names = ", ".join(f"{name} {tuple(values)}" for name, values in regions.items())
        raise InputError(
            f"{path}: holds the value {min(strange):g}, which is in no region ({names}) "
            f"and no background {tuple(background)}; mend data.regions, or the mask"
        )
    return np.stack(
        [np.isin(volume.voxels, values) for values in regions.values()], axis=-1
    ).astype(np.uint8)


def _same(one: Volume, other: Volume) -> bool:
    """Whether the voxels of two volumes lie in the same places."""
    if one.voxels.shape != other.voxels.shape:
        return False
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(one.voxels.shape) - 1)
    apart = grid.apply(one.affine, corners) - grid.apply(other.affine, corners)
    return np.linalg.norm(apart, axis=-1).max() <= SAME * one.spacing.min()


def _differ(first: Path, one: Volume, second: Path, other: Volume, remedy: str) -> str:
    def lies(volume):
        rows = np.round(volume.affine[:3], 3).tolist()
        return f"shape {volume.voxels.shape}, affine {rows}"

    return (
        f"{second}: lies on another grid ({lies(other)}) than {first} ({lies(one)}); "
        f"{remedy}"
    )
