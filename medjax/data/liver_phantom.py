"""Synthetic liver MRI with a lesion or without: data whose label needs three dimensions.

Bright vessels cross the liver, and half of the patients have a lesion as bright and as
wide. In a slice the lesion is a disc, as a vessel is: only its shape across slices tells
it. Without a lesion there is one vessel more.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

FINDING = "lesion"
VESSELS = (3, 7)  # Least, and most plus one.
RADIUS = (3.0, 5.0)  # mm, of vessels and lesions.
LEAN = 0.35  # mm to a side for each mm up, at most.
TISSUE, BRIGHT = 100.0, 170.0


class Liver(NamedTuple):
    """One synthetic patient; axes as in `nifti.Volume`."""

    image: np.ndarray  # [D, H, W, 1] float32, 0 outside of the liver.
    lesion: bool
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
    share = np.zeros(shape)
    for _ in range(rng.integers(*VESSELS) + (not lesion)):
        lean = rng.uniform(-LEAN, LEAN, 2)
        middle = rng.uniform(-0.28, 0.28, 2) * size[1:]
        away = points[..., 1:] - middle - points[..., :1] * lean
        share = np.maximum(share, _filled(rng, away, spacing))
    if lesion:
        middle = rng.uniform(-0.22, 0.22, 3) * size
        share = np.maximum(share, _filled(rng, points - middle, spacing))
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 4 / np.array(spacing))
    tissue = TISSUE * (1 + 0.12 * texture / texture.std())
    image = tissue + (BRIGHT - TISSUE) * share + rng.normal(0, 8, shape)
    image = np.where(inside, np.maximum(image, 1), 0)[..., None].astype(np.float32)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], range(4)] = *(np.array(spacing) * (1, -1, -1)), 1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Liver(image, lesion, affine)


def _filled(rng, away: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The share of each voxel within a radius of a middle that is `away` in mm."""
    gap = rng.uniform(*RADIUS) - np.linalg.norm(away, axis=-1)
    return np.clip(0.5 + gap / np.mean(spacing), 0, 1)
