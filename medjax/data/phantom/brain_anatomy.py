"""A schematic healthy brain in mm, drawn analytically; brain.py makes scans of it.

Coordinates are the patient's, in mm from the middle of the volume: z towards the
head, y towards the back, x towards the left. A gap is the distance in mm to a
surface, roughly, and positive inside. Every function takes points of any spacing, so
that a patient looks the same at every resolution.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

FIELD_MM = 260.0  # The side of the cube in which smooth noise is defined.

# The patient's build: (low, high) of uniform draws, in mm unless noted.
BUILD = {
    "half_width": (60.0, 68.0),
    "half_length": (76.0, 86.0),
    "half_height": (54.0, 62.0),
    "sulcus_depth": (14.0, 21.0),
    "sulcus_width": (0.0, 0.8),  # half of it; wide with age
    "cortex": (2.9, 3.6),
    "ventricle": (3.5, 8.5),  # the radius of the lateral ones
    "asymmetry": (-1.0, 1.0),  # of the lateral ventricles
    "midline": (-2.0, 2.0),  # how far the fissure bends
    "tilt": (-0.06, 0.06),  # radians, of the head, within axial slices
    "nod": (-0.08, 0.08),  # within sagittal slices
}
# Lateral ventricle: z, y, x of points along it, and its width there as a ratio.
HORNS = (
    ((4.0, -34.0, 11.0, 0.5), (14.0, -14.0, 9.0, 1.0)),
    ((14.0, -14.0, 9.0, 1.0), (19.0, 12.0, 11.0, 0.9)),
    ((19.0, 12.0, 11.0, 0.9), (10.0, 34.0, 23.0, 1.15)),
    ((10.0, 34.0, 23.0, 1.15), (4.0, 58.0, 22.0, 0.35)),
    ((10.0, 34.0, 23.0, 1.15), (-17.0, 10.0, 31.0, 0.45)),
)
NUCLEI = (  # Deep grey matter: centre and half axes, z, y, x.
    ((5.0, 11.0, 11.0), (9.0, 15.0, 8.0)),  # thalamus
    ((8.0, -20.0, 15.0), (10.0, 10.0, 5.0)),  # head of the caudate
    ((3.0, -3.0, 26.0), (10.0, 17.0, 5.5)),  # lentiform nucleus
    ((-21.0, 14.0, 27.0), (5.0, 18.0, 5.0)),  # hippocampus
)


def fill(gap: np.ndarray, edge: float) -> np.ndarray:
    """1 inside (gap > 0), 0 outside, a smooth step `edge` mm to either side."""
    t = np.clip(0.5 + 0.5 * gap / edge, 0, 1)
    return t * t * (3 - 2 * t)


def blend(gap: np.ndarray, other: np.ndarray, width: float) -> np.ndarray:
    """The larger of two gaps, with the cleft between them rounded over `width` mm."""
    near = np.clip(1 - np.abs(gap - other) / width, 0, None)
    return np.maximum(gap, other) + near * near * (width / 4)


def axes(shape: Sequence[int], spacing: Sequence[float]) -> list[np.ndarray]:
    """z [D], y [H] and x [W] of the voxels' centres, mm from the middle."""
    return [
        ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
        for n, s in zip(shape, spacing, strict=True)
    ]


def noise(
    rng: np.random.Generator,
    points: Sequence[np.ndarray],
    step: float,
    *,
    band: bool = False,
) -> np.ndarray:
    """Smooth noise [D, H, W] of mean 0 and deviation 1 with details of `step` mm.

    A cubic B-spline over a lattice that is fixed in millimetres: one small matrix
    product an axis, and the same field at every resolution.

    Args:
      points: z [D], y [H], x [W] mm.
      band: removes slow waves, so that level sets are about evenly spaced.
    """
    count = int(FIELD_MM / step) + 4
    field = rng.standard_normal((count,) * 3, np.float32)
    if band:
        slow = field
        for axis in range(3):
            slow = sum(np.roll(slow, k, axis) for k in range(-2, 3)) / 5
        field -= slow
    for mm in points:  # Each turn takes the first axis and appends the new one.
        place = np.clip(mm, -FIELD_MM / 2, FIELD_MM / 2) + FIELD_MM / 2
        t = np.abs(place[:, None] / step + 1 - np.arange(count, dtype=np.float32))
        near = 2 / 3 - t**2 + t**3 / 2
        weight = np.where(t < 1, near, np.clip(2 - t, 0, None) ** 3 / 6)
        field = np.tensordot(field, weight, axes=(0, 1))
    return field / 0.332  # The deviation of the spline between white lattice points.


def norm(*parts: np.ndarray) -> np.ndarray:
    """The Euclidean norm."""
    return np.sqrt(sum(part * part for part in parts))


def ellipsoid(points, centre, half, power: float = 2.0) -> np.ndarray:
    """Gap of a (super)ellipsoid along the ray from its centre.

    Args:
      points, centre, half: z, y, x each; arrays are broadcast.
    """
    off = [p - c for p, c in zip(points, centre, strict=True)]
    u = [np.abs(o / h) for o, h in zip(off, half, strict=True)]
    if power == 2:
        ratio = norm(*u)
    else:
        ratio = sum(x**power for x in u) ** (1 / power)
    return norm(*off) * (1 / np.maximum(ratio, 1e-3) - 1)


def outline(points: Sequence[np.ndarray], build, bumps: np.ndarray) -> SimpleNamespace:
    """Gaps [D, H, W] of cerebrum, cerebellum and brainstem.

    Args:
      points: z, y, x, full arrays.
      bumps: [D, H, W] noise that makes the surface uneven.
    """
    z, y, x = points
    wide = build.half_width * (1 + 0.08 * np.clip(y / 60, -1, 1))
    half = (build.half_height, build.half_length, wide)
    cerebrum = ellipsoid(points, (10.0, 0.0, 0.0), half, 2.3) + 1.6 * bumps
    # The base: frontal lobes on the orbits, temporal lobes below, the tentorium.
    floor = -40 + 24 * fill(-34 - y, 9) + 27 * fill(y - 26, 16)
    floor += np.where(np.abs(y) < 40, 26, 0) * fill(17 - np.abs(x), 7)
    floor = np.minimum(floor, -13)
    cerebrum = -blend(-cerebrum, floor - z, 12)
    below = ellipsoid(points, (-36.0, 43.0, 0.0), (26.0, 32.0, 52.0), 2.2)
    below += 1.2 * bumps
    below = np.minimum(below, np.abs(x) - 1 + 0.6 * np.clip(62 - y, 0, None))
    below = np.minimum(below, -1.5 - cerebrum)
    along = np.clip((-4 - z) / 70, 0, 1)
    stem = 12 - 4 * along - norm(y - 6 - 14 * along, 0.9 * x)
    stem = np.minimum(stem, z + 76)
    pons = ellipsoid(points, (-28.0, 4.0, 0.0), (14.0, 14.0, 17.0))
    stem = np.where(z > 0, -9.0, np.maximum(stem, pons))
    hull = blend(blend(cerebrum, below, 14), stem, 10)  # Cisterns fill the clefts.
    return SimpleNamespace(cerebrum=cerebrum, cerebellum=below, stem=stem, hull=hull)


def ventricles(points: Sequence[np.ndarray], build) -> np.ndarray:
    """Gap of the lateral ventricles, the third and the fourth."""
    z, y, x = points
    radius = build.ventricle * (1 + 0.15 * build.asymmetry * np.sign(x))
    side = np.abs(x)
    gap = np.full(side.shape, -99, np.float32)
    for start, end in HORNS:
        *a, first = start
        *b, last = end
        line = np.subtract(b, a).astype(np.float32)
        off = z - a[0], y - a[1], side - a[2]
        t = sum(o * p for o, p in zip(off, line, strict=True)) / (line @ line)
        t = np.clip(t, 0, 1)
        away = norm(*(o - t * p for o, p in zip(off, line, strict=True)))
        gap = np.maximum(gap, radius * (first + t * (last - first)) - away)
    gap = np.minimum(gap, side - 1)  # The septum.
    slit = build.ventricle / 4
    third = np.minimum(slit - side, ellipsoid((z, y), (-1, 6), (10.0, 17.0)))
    fourth = ellipsoid(points, (-34.0, 20.0, 0.0), (8.0, 3.5, 5.0))
    return np.maximum(gap, np.maximum(third, fourth))


def nuclei(points: Sequence[np.ndarray]) -> np.ndarray:
    """Gap of the deep grey nuclei of both sides."""
    z, y, x = points
    both = z, y, np.abs(x)
    return np.maximum.reduce([ellipsoid(both, *nucleus) for nucleus in NUCLEI])


def depth(points, outside: np.ndarray, folds: np.ndarray, build, spacing) -> np.ndarray:
    """How deep [D, H, W] in mm under the nearest CSF: surface, sulcus or fissure.

    Sulci are sheets where the noise `folds` is 0, from the surface to the sulcus'
    depth. Between two of them is a gyrus.

    Args:
      points: z, y, x.
      outside: the cerebrum's gap.
      folds: [D, H, W] noise, banded.
    """
    z, y, x = points
    slope = norm(*np.gradient(folds, *spacing))
    sheet = np.abs(folds) / np.maximum(slope, 1e-3) - build.sulcus_width
    gap = np.minimum(outside, np.maximum(sheet, outside - build.sulcus_depth))
    bend = build.midline * np.sin(y / 40)
    callosum = ellipsoid((z, y), (0.0, 4.0), (27.0, 42.0))
    midline = np.maximum(np.abs(x - bend) - 0.4 - build.sulcus_width, callosum)
    plane = np.abs(z + 7 - 0.35 * y + 5 * np.sin((y + x) / 11)) - 0.5
    short = 0.5 * np.abs(y + 4) + 33 - np.abs(x)
    sylvian = np.maximum(plane - build.sulcus_width, short)
    return np.minimum(gap, np.minimum(midline, sylvian))


def folia(points: Sequence[np.ndarray], gap: np.ndarray) -> np.ndarray:
    """Share [D, H, W] of grey matter in the cerebellum: leaves about a white core."""
    z, y, x = points
    turn = np.arctan2(z + 40, y - 22 + 0.2 * np.abs(x)) * 26
    leaves = fill(np.cos(turn * 2 * np.pi / 7) - 0.1, 0.7)
    return np.maximum(leaves, fill(3.5 - gap, 2)) * fill(13 - gap, 5)
