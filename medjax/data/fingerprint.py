"""Measures a segmentation data set, and proposes a network and a patch size for it.

The proposal follows from rules that were found on many data sets, not from a trial on
this one: it is a starting point. Sizes and spacings are along D, H, W.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, methods and
supplementary note 2.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medjax.data.foreground import box
from medjax.data.scan import Scan

PERCENTILES = (0.5, 50.0, 99.5)
SAMPLES = 10_000  # Voxels of a scan that enter the percentiles: this bounds the memory.
ANISOTROPIC = 3.0  # Spacing of the coarse axis over any other's, above which it is.
MIN_AXIS = 4  # Voxels an axis must keep in the coarsest level.
BATCH = 2  # The smallest batch; the size of a patch depends on it.
# Of a batch at full resolution that fit into the device's memory: nnU-Net's number for
# a GPU of about 10 GB.
VOXELS = BATCH * 128**3
MAX_DEPTH = 6  # Of the network, at most.
WIDEST = 320  # Channels of a level, at most.
BATCH_SHARE = 0.05  # The largest batch, as a share of the data set's voxels.


class Fingerprint(NamedTuple):
    """N scans with C sequences and K regions."""

    sequences: tuple[str, ...]
    regions: tuple[str, ...]
    shape: np.ndarray  # [N, 3] voxels.
    box: np.ndarray  # [N, 3] voxels of the smallest box around all nonzero voxels.
    spacing: np.ndarray  # [N, 3] mm.
    present: np.ndarray  # [N, C] whether the sequence has a nonzero voxel.
    # [C, 5] mean, standard deviation and PERCENTILES of the voxels that are nonzero in
    # any sequence, over all scans; NaN if there are none. Then those in the regions.
    inside: np.ndarray
    foreground: np.ndarray
    volume: np.ndarray  # [N, K] ml of each region; NaN in a scan without a label.
    lesions: np.ndarray  # [N, K] components, by faces, edges or corners; NaN likewise.
    kind: str = "body"  # Of foreground that holds all labels, see foreground.KINDS.


class Proposal(NamedTuple):
    """A network, patches and batches."""

    spacing: tuple[float, ...]  # mm to resample to.
    shape: tuple[int, ...]  # Voxels of the median box at that spacing.
    patch: tuple[int, ...]  # Voxels.
    batch: int  # Patches.
    strides: tuple[tuple[int, ...], ...]  # Of each level; the first level's are 1.
    kernels: tuple[tuple[int, ...], ...]  # Of each level's convolutions.
    foreground: str  # One of foreground.KINDS.


def measure(
    scans: Iterable[Scan], *, sequences: Sequence[str], regions: Sequence[str]
) -> Fingerprint:
    """Measures one or more scans; one at a time is in memory, and numbers are kept."""
    rows, inside, foreground = [], Pool(), Pool()
    for scan in scans:
        image = np.asarray(scan.image)
        spacing = np.asarray(scan.spacing, float)
        label = None if scan.label is None else np.asarray(scan.label) > 0
        filled = image != 0
        mask = filled.any(axis=-1)
        inside.add(image, mask)
        volume = lesions = np.full(len(regions), np.nan)
        if label is not None:
            foreground.add(image, label.any(axis=-1))
            volume = label.sum((0, 1, 2)) * (np.prod(spacing) / 1000)
            touching = np.ones((3, 3, 3))
            masks = np.moveaxis(label, -1, 0)
            lesions = [ndimage.label(mask, touching)[1] for mask in masks]
        present = filled.any(axis=(0, 1, 2))
        sizes = mask.shape
        if mask.any():
            sizes = [side.stop - side.start for side in box(mask, np.zeros(3))]
        rows.append((mask.shape, sizes, spacing, present, volume, lesions))
    *facts, volume, lesions = map(np.array, zip(*rows))
    voxels = [pool.summary(len(sequences)) for pool in (inside, foreground)]
    measured = (*facts, *voxels, volume.astype(float), lesions.astype(float))
    return Fingerprint(tuple(sequences), tuple(regions), *measured, scan.foreground)


def describe(data: Fingerprint) -> list[str]:
    """Lines for the terminal."""
    shape, spacing = (np.median(x, axis=0) for x in (data.shape, data.spacing))
    finest, coarsest = data.spacing.min(axis=0), data.spacing.max(axis=0)
    line = f"{len(data.shape)} scans, median {by(shape)} voxels of {by(spacing)} mm"
    lines = [line + f" (from {by(finest)} to {by(coarsest)})"]
    for c, name in enumerate(data.sequences):
        mean, std, low, _, high = data.inside[c]
        line = f"  {name}: in {data.present[:, c].sum()} scans, "
        line += f"{mean:.4g} +- {std:.4g}, 99 % from {low:.4g} to {high:.4g}"
        if np.isfinite(data.foreground[c]).all():
            mean, std, *_ = data.foreground[c]
            line += f"; in the regions {mean:.4g} +- {std:.4g}"
        lines.append(line)
    labelled = np.isfinite(data.volume).all(axis=1)
    for k, name in enumerate(data.regions):
        shown = labelled & (data.volume[:, k] > 0)
        line = f"  {name}: in {shown.sum()} of {labelled.sum()} labelled scans"
        if shown.any():
            low, median, high = np.percentile(data.volume[shown, k], (0, 50, 100))
            line += f", {median:.3g} ml ({low:.3g} to {high:.3g}), components: "
            line += f"{np.median(data.lesions[shown, k]):.3g}"
        lines.append(line)
    return lines


class Pool:
    """Moments of all voxels and a bounded sample of them, scan by scan."""

    def __init__(self):
        self.moments, self.samples = [], []

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        values = image[mask]
        if len(values):
            mean = values.mean(axis=0, dtype=float)
            variance = ((values - mean) ** 2).mean(axis=0)
            self.moments.append((np.full_like(mean, len(values)), mean, variance))
            at = np.linspace(0, len(values) - 1, min(len(values), SAMPLES)).astype(int)
            self.samples.append(values[at].astype(np.float32))

    def summary(self, channels: int) -> np.ndarray:
        """[C, 5], see Fingerprint.inside."""
        if not self.moments:
            return np.full((channels, 2 + len(PERCENTILES)), np.nan)
        count, mean, variance = np.array(self.moments).swapaxes(0, 1)
        total = np.average(mean, axis=0, weights=count)
        spread = np.average(variance + (mean - total) ** 2, axis=0, weights=count)
        ranks = np.percentile(np.concatenate(self.samples), PERCENTILES, axis=0)
        return np.stack([total, np.sqrt(spread), *ranks], axis=1)


def by(values: Iterable[float]) -> str:
    """Sizes as text: 4 x 5 x 6."""
    return " x ".join(f"{value:.4g}" for value in values)


def propose(data: Fingerprint, *, voxels: int = VOXELS) -> Proposal:
    """Applies the rules to a fingerprint; `voxels` is the budget of a batch."""
    spacing = target_spacing(data.spacing)
    shapes = np.maximum(np.rint(data.box * data.spacing / spacing), 1)
    shape = np.maximum(np.floor(np.median(shapes, axis=0)), 1).astype(int)
    patch, strides = patch_size(
        shape, spacing, voxels=voxels // BATCH, levels=MAX_DEPTH
    )
    size = math.prod(patch)
    most = min(voxels, BATCH_SHARE * float(shapes.prod(axis=1).sum()))
    return Proposal(
        tuple(spacing.tolist()),
        tuple(shape.tolist()),
        patch,
        max(BATCH, int(most // size)),
        strides,
        kernel_sizes(spacing, strides, patch),
        data.kind,
    )


def target_spacing(spacing: np.ndarray) -> np.ndarray:
    """The median [3] of the spacings [N, 3], but finer along a coarse axis.

    If the median along one axis is more than ANISOTROPIC times that of the others, it
    would blur scans of thinner slices: the 10th percentile is taken, but nothing finer
    than the other axes.
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
    can still be halved, nor where it would have fewer than MIN_AXIS voxels. The first
    of the levels has strides of 1.
    """
    size, spacing = np.array(size), np.array(spacing)
    strides = [(1,) * len(size)]
    while len(strides) < levels and (large := size >= 2 * MIN_AXIS).any():
        finest = spacing[large].min()
        stride = np.where(large & (spacing <= 2 * finest * (1 + 1e-6)), 2, 1)
        size, spacing = size // stride, spacing * stride
        strides.append(tuple(stride.tolist()))
    return tuple(strides)


def patch_size(
    shape: Sequence[int], spacing: Sequence[float], *, voxels: int, levels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The largest patch that a budget of voxels allows, and the strides of each level.

    It starts with the whole shape (the median scan's) and repeatedly shortens the axis
    that lost the smallest share of its length, by the network's total stride along it.
    The patch is divisible by that stride, and no axis can grow by it.
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


def describe_proposal(proposal: Proposal, settings: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal; the last has the flags that make it of these settings.

    settings: the config's fields, dotted; what it doesn't have is no flag.
    """
    spacing, shape, patch, batch, strides, _, kind = proposal
    levels = " ".join("x".join(map(str, stride)) for stride in strides)
    return [
        f"foreground {kind}: the smallest that holds all labels",
        f"resample to {by(spacing)} mm: the median scan has {by(shape)} voxels",
        f"patch {by(patch)} voxels, batch {batch}",
        f"{len(strides)} levels with strides {levels}",
        "flags: " + " ".join(flags(proposal, settings)),
    ]


def flags(proposal: Proposal, settings: Mapping[str, Any]) -> list[str]:
    """The proposal as flags, quoted for a shell; see `describe_proposal`."""
    levels, width = len(proposal.strides), settings["model.widths"][0]
    values = {
        "data.foreground": proposal.foreground,
        "data.spacing": tuple(float(f"{mm:.4g}") for mm in proposal.spacing),
        "patch.size": proposal.patch,
        "patch.slices": False,
        "train.batch": proposal.batch,
        "model.strides": proposal.strides,
        "model.kernels": proposal.kernels,
        "model.widths": tuple(min(width * 2**n, WIDEST) for n in range(levels)),
        "model.deep": min(settings.get("model.deep", 0), levels - 1),
    }
    for name, number in {"model.blocks": levels, "model.up_blocks": levels - 1}.items():
        blocks = settings.get(name, 1)
        if not isinstance(blocks, int):
            values[name] = (*blocks, *blocks[-1:] * number)[:number]
    return [
        f"--config.{name}={shlex.quote(str(value))}"
        for name, value in values.items()
        if name in settings and value != settings[name]
    ]
