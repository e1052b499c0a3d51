"""Whether a patient's sequences lie on one grid and show the same; else they are aligned.

Volumes are nifti.Volume; messages name their files.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medjax.data import nifti
from medjax.data.nifti import Volume
from medjax.errors import InputError
from medjax.geometry import grid, registration

# What is left of the similarity beside the alignment: up to CLEAR it is accepted, beyond
# FLAT refused, and between them compared with its mirror image: a person's own sequence
# is at least OWN times as similar. tests/README.md has the numbers.
CLEAR, FLAT, OWN = 0.7, 0.88, 1.05
# Sequences that lie on one grid are warned of beyond FLAT, or if they are less than OWN
# times as similar.
COPY = 0.9995  # Correlation of two sequences that are the same image.
log = logging.getLogger("medjax")


class Alignment(NamedTuple):
    """How alike a sequence and the first one are; see `registration.Registration`."""

    sequence: str
    before: float
    after: float
    beside: float
    mirrored: float  # `after` of its mirror image; NaN where it wasn't needed.


def placed(
    reference: Volume,
    first: Path,
    volume: Volume,
    path: Path,
    grids: str,
    *,
    compare: bool,
) -> tuple[Volume, tuple]:
    """A sequence on the first one's grid, and the numbers of its Alignment, if any.

    Arguments are as in scan.read_scan; `first` and `path` are the files.
    """
    similar = ()
    if path != first and grids == "align":
        volume, *similar = _align(reference, volume, first, path)
    remedy = "set data.grids='align', or give files of one grid"
    check_grid(reference, volume, first, path, remedy)
    if path != first and grids == "refuse" and compare:
        similar = _compare(reference, volume, first, path)
    return volume, tuple(similar)


def _on_one_grid(a: Volume, b: Volume) -> bool:
    """Whether the voxels of two volumes lie in the same places."""
    if a.voxels.shape != b.voxels.shape:
        return False
    apart = nifti.corners(a.voxels.shape, a.affine, b.affine)
    return apart.max() <= nifti.SAME * a.spacing.min()


def check_grid(a: Volume, b: Volume, path_a: Path, path_b: Path, remedy: str) -> None:
    """Refuses a volume on another grid."""
    if not _on_one_grid(a, b):
        of_a, of_b = (
            f"shape {v.voxels.shape}, affine {np.round(v.affine[:3], 3).tolist()}"
            for v in (a, b)
        )
        raise InputError(
            f"{path_b}: lies on another grid ({of_b}) than {path_a} ({of_a}); "
            + "; ".join(filter(None, (remedy, a.doubt or b.doubt)))
        )


def _align(
    reference: Volume, volume: Volume, first: Path, path: Path
) -> tuple[Volume, float, float, float, float]:
    """Registers a sequence to the reference, and refuses what doesn't show the same.

    Returns the aligned volume, and the numbers of `Alignment`.
    """
    fixed = reference.voxels, reference.affine
    matrix, before, after, beside = registration.register(
        *fixed, volume.voxels, volume.affine
    )
    verdict = (
        f"similarity with {first} {before:.3f} before the alignment, {after:.3f} after "
        f"it, of which {beside:.0%} is left beside it"
    )
    mirrored, same = np.nan, beside <= CLEAR
    if CLEAR < beside <= FLAT:
        turned = registration.register(*fixed, volume.voxels[..., ::-1], volume.affine)
        mirrored = turned.metric
        verdict += f"; its mirror image has {mirrored:.3f}"
        same = after - 1 >= OWN * (mirrored - 1)
    if not same:
        raise InputError(
            f"{path}: is of another person, a mirror image, or shows too little "
            f"({verdict}); give the patient's own sequence, or align it by another "
            "program, save it on the first one's grid and set data.grids='refuse'"
        )
    log.info("%s: %s", path, verdict)
    shape, affine = reference.voxels.shape, reference.affine
    shift = nifti.corners(shape, affine, matrix @ affine)
    if _on_one_grid(reference, volume) and shift.max() < reference.spacing.max():
        return volume, before, after, beside, mirrored
    stack = volume.voxels[..., None]
    aligned = grid.antialiased(stack, volume.affine, shape, affine, matrix)[..., 0]
    if aligned.min() == aligned.max():
        raise InputError(
            f"{path}: shows nothing of what {first} shows; give sequences of one patient"
        )
    return reference._replace(voxels=aligned), before, after, beside, mirrored


def _compare(
    reference: Volume, volume: Volume, first: Path, path: Path
) -> tuple[float, float, float, float]:
    """Warns of a sequence on the reference's grid that doesn't show the same there.

    Returns the numbers of `Alignment`. PET isn't compared: it is smooth by itself.
    """
    similar, beside, mirrored = registration.compare(
        reference.voxels, volume.voxels, reference.affine
    )
    if beside > FLAT or similar - 1 < OWN * (mirrored - 1):
        log.warning(
            "%s: may be of another person than %s, mirrored, not aligned or blurred "
            "(similarity %.3f, of which %.0f %% is left %g mm beside, and %.3f of its "
            "mirror image): look at both",
            *(path, first, similar, 100 * beside, registration.BESIDE, mirrored),
        )
    return similar, similar, beside, mirrored


def check_distinct(image: np.ndarray, names: Sequence[str], where: Path) -> None:
    """Warns of two of the sequences, [D, H, W, C] and [C], that are one image."""
    with np.errstate(divide="ignore", invalid="ignore"):  # A missing one is 0.
        alike = np.corrcoef(image[::2, ::2, ::2].reshape(-1, len(names)).T)
    for a, b in np.argwhere(np.triu(np.abs(np.atleast_2d(alike)) > COPY, 1)).tolist():
        log.warning(
            "%s: %s and %s are one image: give each its own file, or leave one away and "
            "set data.missing='fill'",
            *(where, names[a], names[b]),
        )
