"""The network and the patches that a data set's fingerprint asks for.

Rules, without a trial. They were found on many data sets, and are a start.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, methods and
supplementary note 2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.fingerprint import Fingerprint, by
from medjax.errors import InputError

ANISOTROPIC = 3.0  # The coarse axis' spacing over any other's, beyond which it is so.
SMALLEST = 4  # Voxels an axis must keep in the coarsest level.
BATCH = 2  # The smallest, on which the size of a patch depends.
SHARE = 0.05  # Of the data set's voxels, the most in a batch.


class Plan(NamedTuple):
    """What a fingerprint asks for; sizes along D, H, W.

    spacing: mm to resample to.
    shape: voxels of the median box at that spacing.
    patch: voxels.
    batch: patches.
    strides: into each level from the one before; the first is the patch's own.
    kernels: of each level's convolutions.
    """

    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]


def propose(
    found: Fingerprint, *, voxels: int = BATCH * 128**3, levels: int = 6
) -> Plan:
    """The plan that follows from a fingerprint.

    Args:
      voxels: of a batch at full resolution: what the device's memory holds. 2 x 128^3
        is nnU-Net's for a GPU of about 10 GB.
      levels: of the network, at most.
    """
    if voxels < BATCH or levels < 1:
        raise InputError(
            f"voxels={voxels}, levels={levels}: give {BATCH} voxels or more, and 1 "
            "level or more"
        )
    spacing = target_spacing(found.spacing)
    shapes = np.maximum(np.rint(found.box * found.spacing / spacing), 1)
    shape = np.maximum(np.floor(np.median(shapes, axis=0)), 1).astype(int)
    patch, strides = patch_size(shape, spacing, voxels=voxels // BATCH, levels=levels)
    size = math.prod(patch)
    most = min(voxels, SHARE * float(shapes.prod(axis=1).sum()))
    return Plan(
        tuple(spacing.tolist()),
        tuple(shape.tolist()),
        patch,
        max(BATCH, int(most // size)),
        strides,
        kernel_sizes(spacing, strides, patch),
    )


def target_spacing(spacing: np.ndarray) -> np.ndarray:
    """The median over the cases; where one axis is coarse, finer along it.

    A median that is over ANISOTROPIC times each other axis' blurs the cases of thinner
    slices: the 10th percentile is taken, but nothing finer than the other axes.

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
    """Halves, level by level, what is fine and large: cubes in mm come out of it.

    An axis waits while its spacing is over twice the finest of those that can still be
    halved, and stays where it would have fewer than SMALLEST voxels.

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
    """The largest patch of a shape's aspect that a budget allows, and its strides.

    Starts with the whole and cuts, from the axis that lost the smallest share of it,
    as much as the network's total stride there.

    Args:
      shape: voxels of the median case.
      spacing: mm.
      voxels: the budget, 1 or more.
      levels: of the network, at most.

    Returns:
      The patch: within the shape and the budget, divisible by the total stride; no
      axis can grow by that. And the strides of each level.
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
    for axis in np.argsort(size / shape):  # What the cuts left over.
        room = voxels * int(size[axis]) // math.prod(size.tolist())
        most = min(room, int(shape[axis]))
        size[axis] = most - most % total[axis]
    return tuple(size.tolist()), strides


def kernel_sizes(
    spacing: Sequence[float], strides: Sequence[Sequence[int]], patch: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """1 along an axis until its spacing is at most twice the finest, and 3 from there.

    And 1 where a level has a single voxel.
    """
    total = np.cumprod(strides, axis=0)
    mm = np.array(spacing) * total
    fine = mm <= 2 * mm.min(axis=1, keepdims=True) * (1 + 1e-6)
    fine = np.logical_or.accumulate(fine)
    wide = np.where(fine & (np.array(patch) // total > 1), 3, 1)
    return tuple(map(tuple, wide.tolist()))


def describe(plan: Plan) -> list[str]:
    """Lines for the terminal."""
    strides = " ".join("x".join(map(str, stride)) for stride in plan.strides)
    flags = {
        "data.spacing": _flag(plan.spacing),
        "patch.size": _flag(plan.patch),
        "train.batch": plan.batch,
    }
    return [
        f"resample to {by(plan.spacing)} mm: the median case has {by(plan.shape)}",
        f"patch {by(plan.patch)} voxels, batch {plan.batch}",
        f"{len(plan.strides)} levels with strides {strides}",
        "that is " + " ".join(f"--config.{name}={v}" for name, v in flags.items()),
    ]


def _flag(values: Sequence[float]) -> str:
    """A tuple as a shell takes it."""
    return f'"({", ".join(f"{value:.4g}" for value in values)})"'
