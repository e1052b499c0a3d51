"""Synthetic liver MRI with lesions or without: data whose label needs three dimensions.

Bright vessels cross the liver. Half of the patients have two or three lesions as bright,
the others a piece of a vessel as long as these together, and as wide as a slice of one
may be. In a slice all are discs, as many and as wide on average: only their shape across
slices tells them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

FINDING = "lesion"
VESSELS, LESIONS = (1, 4), (2, 4)  # Least, and most plus one.
RADIUS = (4.5, 6.5)  # mm, of vessels and lesions.
LEAN = 0.35  # mm to a side for each mm up, at most.
TISSUE, BRIGHT = 100.0, 170.0


class Liver(NamedTuple):
    """One synthetic patient; axes as in `nifti.Volume`."""

    image: np.ndarray  # [D, H, W, 1] float32, 0 outside of the liver.
    lesion: bool
    mask: np.ndarray  # [D, H, W, 1] bool, the lesions.
    affine: np.ndarray  # [4, 4].


def patient(
    number: int, *, seed: int, shape: Sequence[int], spacing: Sequence[float]
) -> Liver:
    """Draws the patient of a number >= 0, independently of all others.

    Args:
      shape: D, H, W; spacing: mm. The liver fills the volume.
    """
    rng = np.random.default_rng([seed, number])
    size = np.multiply(shape, spacing)
    lines = [(np.arange(n) + 0.5) * s - n * s / 2 for n, s in zip(shape, spacing)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    half = size * rng.uniform(0.40, 0.48, 3)
    inside = np.sum((points / half) ** 2, axis=-1) < 1
    lesion = bool(rng.random() < 0.5)

    def vessel(radius: float, middle: np.ndarray) -> np.ndarray:
        """[D, H, W] mm, how far each voxel lies inside of it."""
        lean = rng.uniform(-LEAN, LEAN, 2)
        away = points[..., 1:] - middle[1:] - points[..., :1] * lean
        return radius - np.linalg.norm(away, axis=-1)

    gaps = [
        vessel(rng.uniform(*RADIUS), rng.uniform(-0.28, 0.28, 3) * size)
        for _ in range(rng.integers(*VESSELS))
    ]
    radii, vessels = rng.uniform(*RADIUS, rng.integers(*LESIONS)), len(gaps)
    if lesion:
        for radius in radii:
            middle = rng.uniform(-0.22, 0.22, 3) * size
            gaps.append(radius - np.linalg.norm(points - middle, axis=-1))
    else:
        middle = rng.uniform(-0.22, 0.22, 3) * size
        width = radii[0] * np.sqrt(1 - rng.uniform() ** 2)  # As of a lesion's slice.
        ends = radii.sum() - np.abs(points[..., 0] - middle[0] / 2)
        gaps.append(np.minimum(vessel(width, middle), ends))
    mask = np.max(gaps[vessels * lesion :], axis=0) > 0
    share = np.clip(0.5 + np.max(gaps, axis=0) / np.mean(spacing), 0, 1)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 4 / np.array(spacing))
    tissue = TISSUE * (1 + 0.06 * texture / texture.std())
    image = tissue + (BRIGHT - TISSUE) * share + rng.normal(0, 5, shape)
    image = np.where(inside, np.maximum(image, 1), 0)[..., None].astype(np.float32)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], range(4)] = *(np.array(spacing) * (1, -1, -1)), 1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Liver(image, lesion, (mask & inside & lesion)[..., None], affine)
