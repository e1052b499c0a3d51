"""Two masks compared: how far their surfaces are apart, and lesion by lesion.

The surface of a mask passes between its voxels: it is what marching cubes finds in
every cube of 2 x 2 x 2 neighbours of which some are inside and some outside. Such a
cube is a surface element: a point, the cube's middle, and the area of its triangles.
Elements are weighted by their area, so that neither a slanted surface nor a coarse
axis counts too much. Outside the image is outside the mask.

A lesion is a connected component, by faces, edges or corners.

`spacing` is [3] mm along D, H, W. A mask [D, H, W] is where an array isn't 0.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial import KDTree

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # Corner i is bit i of a code.


class Distances(NamedTuple):
    """From each element of one surface to the nearest of the other, ascending, in mm;
    infinite where the other surface is empty."""

    true: np.ndarray  # [N], from the true surface.
    true_area: np.ndarray  # [N], the elements' areas in mm^2.
    predicted: np.ndarray  # [M], from the predicted surface, and its areas.
    predicted_area: np.ndarray


def distances(
    predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float]
) -> Distances:
    """Measures from each mask's surface to the other's.

    Source: the definition of Nikolov et al., Clinically applicable segmentation of head
    and neck anatomy (J. Med. Internet Res. 23 (2021) e26151), as in their
    `surface-distance` package, with which all numbers agree.
    """
    other, other_area = elements(predicted, spacing)
    true, true_area = elements(label, spacing)
    there, back = KDTree(other).query(true)[0], KDTree(true).query(other)[0]
    first, second = np.argsort(there), np.argsort(back)
    return Distances(there[first], true_area[first], back[second], other_area[second])


def hausdorff(apart: Distances, percent: float = 95.0) -> float:
    """The distance within which `percent` of each surface lies from the other, in mm.

    The larger one of both directions; percent=100 is the Hausdorff distance. NaN if
    both surfaces are empty.
    """
    reached = []
    for distance, area in (apart[:2], apart[2:]):
        if distance.size:
            share = np.cumsum(area) / area.sum()
            place = np.searchsorted(share, percent / 100)
            reached.append(float(distance[min(place, distance.size - 1)]))
    return max(reached, default=np.nan)


def average_distance(apart: Distances) -> float:
    """The mean distance over the area of both surfaces, in mm; NaN if both are empty.

    Source: Heimann et al., IEEE Trans. Med. Imaging 28 (2009) 1251, average symmetric
    surface distance, here weighted by area.
    """
    distance, area = (np.concatenate(both) for both in (apart[::2], apart[1::2]))
    return float(distance @ area / area.sum()) if area.size else np.nan


def surface_dice(apart: Distances, tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces that lies near the other.

    Surfaces up to the tolerance apart, in mm, count as the same. In [0, 1]; NaN if both
    surfaces are empty.
    """
    distance, area = (np.concatenate(both) for both in (apart[::2], apart[1::2]))
    near = distance <= tolerance
    return float(area[near].sum() / area.sum()) if area.size else np.nan


def elements(
    mask: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The surface elements of a mask.

    Returns:
      points: [N, 3] mm, from the middle of the image's first voxel.
      area: [N] mm^2.
    """
    mask = np.asarray(mask) != 0
    inside = box(mask)
    if inside is None:
        return np.zeros((0, 3)), np.zeros(0)
    mask = np.pad(mask[inside], 1)
    code = np.zeros(np.array(mask.shape) - 1, np.uint8)
    for bit, corner in enumerate(CORNERS):
        cut = (slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))
        code |= mask[tuple(cut)].astype(np.uint8) << bit
    place = np.argwhere((code > 0) & (code < 255))
    spacing = np.asarray(spacing, np.float64)
    # An area's normal along one axis grows with the spacing along the two others.
    normal = triangles() * (spacing.prod() / spacing)
    area = np.linalg.norm(normal, axis=-1).sum(axis=-1)
    first = [side.start for side in inside]
    return (place + first - 0.5) * spacing, area[code[tuple(place.T)]]


def box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask of bool; None if it is empty."""
    return next(iter(ndimage.find_objects(mask.astype(np.uint8))), None)


@functools.cache
def triangles() -> np.ndarray:
    """[256, 4, 3]: of each code the triangles' normals, as long as their areas.

    For voxels of 1 mm; a code with fewer than four triangles is padded with zeros. The
    side with fewer corners is cut off, each group of corners that edges connect for
    itself: so a surface is closed, and the same for a mask and its complement.
    """
    table = np.zeros((256, 4, 3))
    for code in range(1, 255):
        few = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        if few.sum() > 4:
            few = 1 - few
        group, count = ndimage.label(few)
        normals = np.concatenate([_cut(group == n) for n in range(1, count + 1)])
        table[code, : len(normals)] = normals
    return table


def _cut(corners: np.ndarray) -> np.ndarray:
    """The polygon that cuts corners [2, 2, 2] off a cube, as its triangles' normals.

    It passes through the middles of the edges that lead away. One that isn't flat is
    spanned by the fan of triangles with the largest area.
    """
    edges = np.array(
        [
            (corner, end)
            for corner in np.argwhere(corners)
            for end in CORNERS
            if np.abs(corner - end).sum() == 1 and not corners[end]
        ]
    )
    away = (edges[:, 1] - edges[:, 0]).sum(axis=0)
    middle = edges.mean(axis=1)
    spoke = middle - middle.mean(axis=0)
    x = np.cross(away, spoke[0])
    y = np.cross(away, x) / np.linalg.norm(away)
    ring = middle[np.argsort(np.arctan2(spoke @ y, spoke @ x))]
    fans = []
    for turn in range(len(ring)):
        first, *others = np.roll(ring, turn, axis=0)
        fans.append(
            [np.cross(a - first, b - first) / 2 for a, b in itertools.pairwise(others)]
        )
    return np.array(max(fans, key=lambda fan: np.linalg.norm(fan, axis=-1).sum()))


CONNECTED = np.ones((3, 3, 3))  # Voxels that share a corner are one lesion.
LESION_OVERLAP = 0.1  # IoU from which on a predicted lesion is a true one.
LESION_DILATION = 3.0  # mm: lesions that touch when dilated by it are one lesion.


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components from 1, [D, H, W]; and their sizes in voxels, [N]."""
    component, count = ndimage.label(mask, CONNECTED)
    return component, np.bincount(component.ravel(), minlength=count + 1)[1:]


def matched(lesions: tuple, guesses: tuple) -> int:
    """How many lesions are found: pairs of a true and a predicted lesion.

    A lesion has one partner, with an IoU of LESION_OVERLAP or more: one large
    prediction finds one lesion at most, and one that is everywhere finds none. Of all
    ways to pair them, the one with the highest total IoU counts.

    Args:
      lesions, guesses: `components` of the truth and the prediction.

    Source: Maier-Hein, Reinke et al., Metrics reloaded, Nat. Methods 21 (2024) 195:
    one-to-one assignment by IoU, with a low cut-off for small structures.
    """
    (true, sizes), (predicted, others) = lesions, guesses
    inside = (true > 0) & (predicted > 0)
    shape = len(sizes), len(others)
    pairs = (true[inside] - 1) * len(others) + predicted[inside] - 1
    both = np.bincount(pairs, minlength=math.prod(shape)).reshape(shape)
    iou = both / (sizes[:, None] + others - both)
    iou[iou < LESION_OVERLAP] = 0
    rows, columns = optimize.linear_sum_assignment(iou, maximize=True)
    return int(np.count_nonzero(iou[rows, columns]))


def lesion_scores(
    predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float], *, worst: float
) -> tuple[float, float]:
    """The mean Dice and HD95 over the lesions of two masks that aren't both empty.

    True components that touch when dilated by LESION_DILATION are one lesion. It is
    compared with all predicted components that touch it, dilated. A lesion without any
    has a Dice of 0 and the `worst` distance, and so has each predicted component
    without a lesion.

    Source: Moawad et al., The Brain Tumor Segmentation (BraTS-METS) Challenge 2023,
    arXiv:2306.00838, as in github.com/rachitsaluja/BraTS-2023-Metrics, whose dilation by
    3 voxels is that of gliomas. That leaves out lesions up to 50 mm^3; here all count.
    """
    near, lesions = components(_dilated(label, spacing))
    part, sizes = components(predicted)
    dices, away, touched = [], [], np.zeros(len(sizes) + 1, bool)
    for n, box in enumerate(ndimage.find_objects(near), start=1):
        touching = np.zeros(len(sizes) + 1, bool)
        touching[part[box][near[box] == n]] = True
        touching[0] = False
        touched |= touching
        true, other = label & (near == n), touching[part]
        dices.append(dice(other, true))
        away.append(min(hausdorff(distances(other, true, spacing)), worst))
    false = len(sizes) - np.count_nonzero(touched)
    count = len(lesions) + false
    return sum(dices) / count, (sum(away) + false * worst) / count


def _dilated(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask of bool, dilated by LESION_DILATION along each axis, by faces and edges.

    With voxels of 1 mm these are the three dilations of BraTS. Along an axis with
    longer steps there are fewer, none where a step is longer than LESION_DILATION.
    """
    steps = np.floor(LESION_DILATION / np.asarray(spacing) + 0.01).astype(int)
    for n in range(steps.max()):
        # Each axis takes its steps evenly among those of the finest one.
        still = (n + 1) * steps // steps.max() == n * steps // steps.max()
        away = np.abs(np.indices((3, 3, 3)) - 1)
        structure = (away.sum(axis=0) <= 2) & ~away[still].any(axis=0)
        mask = ndimage.binary_dilation(mask, structure)
    return mask


def dice(predicted: np.ndarray, label: np.ndarray) -> float:
    """The Dice overlap of two masks of bool; 1 of two empty ones."""
    whole = int(predicted.sum()) + int(label.sum())
    return 2 * int((predicted & label).sum()) / whole if whole else 1.0
