"""Proposes a network and a patch size from a data set's fingerprint.

These are rules, not the result of a trial on the data: they were found on many data
sets, and are a starting point.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, methods and
supplementary note 2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.fingerprint import Fingerprint, by
from medjax.errors import InputError

ANISOTROPIC = 3.0  # Spacing of the coarse axis over any other's, above which it is.
SMALLEST = 4  # Voxels an axis must keep in the coarsest level.
BATCH = 2  # The smallest batch; the size of a patch depends on it.
SHARE = 0.05  # The largest batch, as a share of the data set's voxels.


class Proposal(NamedTuple):
    """A network, patches and batches; sizes along D, H, W.

    spacing: mm to resample to.
    shape: voxels of the median box at that spacing.
    patch: voxels.
    batch: patches.
    strides: of each level, from the one before; the first level's are 1.
    kernels: of each level's convolutions.
    """

    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]


def propose(
    data: Fingerprint, *, voxels: int = BATCH * 128**3, levels: int = 6
) -> Proposal:
    """Applies the rules to a fingerprint.

    Args:
      data: of the data set.
      voxels: of a batch at full resolution that fit into the device's memory.
        2 x 128^3 is nnU-Net's number for a GPU of about 10 GB.
      levels: of the network, at most.
    """
    if voxels < BATCH or levels < 1:
        raise InputError(
            f"voxels={voxels}, levels={levels}: give {BATCH} voxels or more, and 1 "
            "level or more"
        )
    spacing = target_spacing(data.spacing)
    shapes = np.maximum(np.rint(data.box * data.spacing / spacing), 1)
    shape = np.maximum(np.floor(np.median(shapes, axis=0)), 1).astype(int)
    patch, strides = patch_size(shape, spacing, voxels=voxels // BATCH, levels=levels)
    size = math.prod(patch)
    most = min(voxels, SHARE * float(shapes.prod(axis=1).sum()))
    return Proposal(
        tuple(spacing.tolist()),
        tuple(shape.tolist()),
        patch,
        max(BATCH, int(most // size)),
        strides,
        kernel_sizes(spacing, strides, patch),
    )


def target_spacing(spacing: np.ndarray) -> np.ndarray:
    """The median spacing of the scans, but finer along a coarse axis.

    If the median along one axis is more than ANISOTROPIC times that of the others, it
    would blur scans of thinner slices: the 10th percentile is taken, but nothing finer
    than the other axes.

    Args:
      spacing: [N, 3] mm.

    Returns:
      [3] mm.
    """
    target = np.median(spacing, axis=0)
    coarse = int(np.argmax(target))
    others = np.delete(target, coarse).max()
    if target[coarse] > ANISOTROPIC * others:
        tenth = np.percentile(spacing[:, coarse], 10)
        target[coarse] = max(tenth, others)
    return target


def level_strides(
    size: Sequence[int], spacing: Sequence[float], *, levels: int
) -> tuple[tuple[int, ...], ...]:
    """Halves the fine and large axes, level by level, until voxels are about cubes.

    An axis isn't halved while its spacing is more than twice the finest of those that
    can still be halved, nor where it would have fewer than SMALLEST voxels.

    Args:
      size: voxels of the patch.
      spacing: mm.
      levels: at most.

    Returns:
      A tuple for each level, the first all ones.
    """
    size, spacing = list(size), list(spacing)
    strides = [(1,) * len(size)]
    while len(strides) < levels:
        large = [n >= 2 * SMALLEST for n in size]
        if not any(large):
            break
        finest = min(s for s, can in zip(spacing, large, strict=True) if can)
        stride = tuple(
            2 if can and s <= 2 * finest * (1 + 1e-6) else 1
            for s, can in zip(spacing, large, strict=True)
        )
        size = [n // k for n, k in zip(size, stride, strict=True)]
        spacing = [s * k for s, k in zip(spacing, stride, strict=True)]
        strides.append(stride)
    return tuple(strides)


def patch_size(
    shape: Sequence[int], spacing: Sequence[float], *, voxels: int, levels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The largest patch that a budget allows, with the proportions of a shape.

    It starts with the whole shape and repeatedly shortens the axis that lost the
    smallest share of its length, by the network's total stride along it.

    Args:
      shape: voxels of the median scan.
      spacing: mm.
      voxels: the budget, 1 or more.
      levels: of the network, at most.

    Returns:
      The patch: within the shape and the budget, divisible by the total stride, and
      no axis can grow by it. And the strides of each level.
    """
    shape = np.array(shape)
    size = shape.copy()
    while True:
        strides = level_strides(size, spacing, levels=levels)
        total = np.prod(strides, axis=0)
        size -= size % total
        if math.prod(size.tolist()) <= voxels:
            break
        axis = np.argmax(np.where(size > 1, size / shape, 0))
        size[axis] -= total[axis]
    for axis in np.argsort(size / shape):  # The cuts may have left some budget.
        room = voxels * int(size[axis]) // math.prod(size.tolist())
        most = min(room, int(shape[axis]))
        size[axis] = most - most % total[axis]
    return tuple(size.tolist()), strides


def kernel_sizes(
    spacing: Sequence[float], strides: Sequence[Sequence[int]], patch: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """1 along an axis until its spacing is at most twice the finest, and 3 from there.

    A level with a single voxel along an axis has 1.
    """
    total = np.cumprod(strides, axis=0)
    mm = np.array(spacing) * total
    fine = mm <= 2 * mm.min(axis=1, keepdims=True) * (1 + 1e-6)
    fine = np.logical_or.accumulate(fine)
    wide = np.where(fine & (np.array(patch) // total > 1), 3, 1)
    return tuple(map(tuple, wide.tolist()))


def describe(proposal: Proposal) -> list[str]:
    """Lines for the terminal."""
    spacing, shape, patch, batch, strides, _ = proposal
    levels = " ".join("x".join(map(str, stride)) for stride in strides)
    return [
        f"resample to {by(spacing)} mm: the median scan has {by(shape)} voxels",
        f"patch {by(patch)} voxels, batch {batch}",
        f"{len(strides)} levels with strides {levels}",
        (
            f"flags: --config.data.spacing={_flag(spacing)} "
            f"--config.patch.size={_flag(patch)} --config.train.batch={batch}"
        ),
    ]


def _flag(values: Sequence[float]) -> str:
    """A tuple quoted for a shell."""
    return f'"({", ".join(f"{value:.4g}" for value in values)})"'
