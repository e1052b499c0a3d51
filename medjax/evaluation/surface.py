"""How far two masks' surfaces lie apart, in mm.

The surface of a mask passes between its voxels: it is what marching cubes finds in
every cube of 2 x 2 x 2 neighbours of which some are inside and some outside. Such a
cube is a surface element: a point, the cube's middle, and the area of its triangles.
Elements are weighted by their area, so that neither a slanted surface nor a coarse
axis counts too much. Outside the image is outside the mask.

Source: the definition of Nikolov et al., Clinically applicable segmentation of head
and neck anatomy (J. Med. Internet Res. 23 (2021) e26151), as in their `surface-distance`
package, with which all numbers agree; marching cubes: Lorensen & Cline (1987).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # Corner i is bit i of a code.


class Distances(NamedTuple):
    """From each element of one surface to the nearest of the other, ascending, in mm.

    true, true_area: [N], from the true surface, and the elements' areas in mm^2.
    predicted, predicted_area: [M], from the predicted one.

    Where the other surface is empty the distance is infinite.
    """

    true: np.ndarray
    true_area: np.ndarray
    predicted: np.ndarray
    predicted_area: np.ndarray


def distances(
    predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float]
) -> Distances:
    """Measures from each surface to the other.

    Args:
      predicted, label: [D, H, W], a mask is where they aren't 0.
      spacing: [3] mm along D, H, W.
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


def average(apart: Distances) -> float:
    """The mean distance over the area of both surfaces, in mm; NaN if both are empty.

    Source: Heimann et al., IEEE Trans. Med. Imaging 28 (2009) 1251, average symmetric
    surface distance, here weighted by area.
    """
    area = np.concatenate([apart.true_area, apart.predicted_area])
    distance = np.concatenate([apart.true, apart.predicted])
    return float(distance @ area / area.sum()) if area.size else np.nan


def dice(apart: Distances, tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces that lies near the other.

    Args:
      apart: the distances.
      tolerance: the distance up to which surfaces count as the same, in mm.

    Returns:
      In [0, 1]; NaN if both surfaces are empty.
    """
    area = np.concatenate([apart.true_area, apart.predicted_area])
    near = np.concatenate([apart.true, apart.predicted]) <= tolerance
    return float(area[near].sum() / area.sum()) if area.size else np.nan


def elements(
    mask: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The surface elements of a mask.

    Args:
      mask: [D, H, W], inside is where it isn't 0.
      spacing: [3] mm.

    Returns:
      points: [N, 3] mm, from the middle of the image's first voxel.
      area: [N] mm^2.
    """
    mask, first = _cropped(np.asarray(mask) != 0)
    code = np.zeros(np.array(mask.shape) - 1, np.uint8)
    for bit, corner in enumerate(CORNERS):
        cut = (slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))
        code |= mask[tuple(cut)].astype(np.uint8) << bit
    place = np.argwhere((code > 0) & (code < 255))
    spacing = np.asarray(spacing, np.float64)
    # An area's normal along one axis grows with the spacing along the two others.
    normal = triangles() * (spacing.prod() / spacing)
    area = np.linalg.norm(normal, axis=-1).sum(axis=-1)
    return (place + first - 0.5) * spacing, area[code[tuple(place.T)]]


def _cropped(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask's box with a margin of one voxel, and the box's first voxel."""
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append((inside[0], inside[-1] + 1) if inside.size else (0, 0))
    inner = mask[tuple(slice(*ends) for ends in box)]
    return np.pad(inner, 1), np.array([first for first, _ in box])


@functools.cache
def triangles() -> np.ndarray:
    """[256, 4, 3]: of each code the triangles' normals, as long as their areas.

    For voxels of 1 mm; a code with fewer than four triangles is padded with zeros.

    Where a face has two corners of each side across, the side with fewer corners in
    the cube is separated: so a surface is closed, and the same for a mask and its
    complement. A loop of edges that isn't flat is spanned by the triangles with the
    largest area.
    """
    table = np.zeros((256, 4, 3))
    for code in range(1, 255):
        inside = {corner: code >> bit & 1 for bit, corner in enumerate(CORNERS)}
        few = 1 if sum(inside.values()) <= 4 else 0
        fans = [_spanned(loop) for loop in _loops(inside, few)]
        normals = np.concatenate(fans)
        table[code, : len(normals)] = normals
    return table


def _loops(inside: dict[tuple, int], few: int) -> list[list[np.ndarray]]:
    """Closed loops of the middles of the edges that the surface of a cube crosses."""
    follows: dict[tuple, list] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        ring = [np.insert(uv, axis, side) for uv in ((0, 0), (0, 1), (1, 1), (1, 0))]
        value = [inside[tuple(corner)] for corner in ring]
        middle = [tuple((ring[i] + ring[i - 3]) / 2) for i in range(4)]  # i to i + 1
        crossed = [i for i in range(4) if value[i] != value[i - 3]]
        if len(crossed) == 4:  # Each of the few corners for itself.
            pairs = [(i - 1, i) for i in range(4) if value[i] == few]
        else:
            pairs = [tuple(crossed)] if crossed else []
        for a, b in pairs:
            follows.setdefault(middle[a], []).append(middle[b])
            follows.setdefault(middle[b], []).append(middle[a])
    loops = []
    while follows:
        loop = [next(iter(follows))]
        while ahead := [p for p in follows.pop(loop[-1], []) if p in follows]:
            loop.append(ahead[0])
        loops.append([np.array(point) for point in loop])
    return loops


def _spanned(loop: list[np.ndarray]) -> np.ndarray:
    """The normals of the largest fan of triangles, [len(loop) - 2, 3]."""
    fans = []
    for turn in range(len(loop)):
        first, *others = loop[turn:] + loop[:turn]
        fans.append(
            [np.cross(a - first, b - first) / 2 for a, b in itertools.pairwise(others)]
        )
    return np.array(max(fans, key=lambda fan: np.linalg.norm(fan, axis=-1).sum()))
