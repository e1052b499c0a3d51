"""Masks compared lesion by lesion: which are found, and how well each is outlined.

A lesion is a connected component, by faces, edges or corners.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, optimize

from medjax.evaluation import surface

CONNECTED = np.ones((3, 3, 3))  # Voxels that share a corner are one lesion.
OVERLAP = 0.1  # IoU from which on a predicted lesion is a true one.
REACH = 3.0  # mm by which lesions are dilated: what then touches is one lesion.


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components from 1, [D, H, W]; and their sizes in voxels, [N]."""
    component, count = ndimage.label(mask, CONNECTED)
    return component, np.bincount(component.ravel(), minlength=count + 1)[1:]


def matched(lesions: tuple, guesses: tuple) -> int:
    """How many lesions are found: pairs of a true and a predicted lesion.

    A lesion has one partner, with an IoU of OVERLAP or more: one large prediction finds
    one lesion at most, and one that is everywhere finds none. Of all ways to pair them,
    the one with the highest total IoU counts.

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
    iou[iou < OVERLAP] = 0
    rows, columns = optimize.linear_sum_assignment(iou, maximize=True)
    return int(np.count_nonzero(iou[rows, columns]))


def scores(
    predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float], *, worst: float
) -> tuple[float, float]:
    """The mean Dice and HD95 over the lesions of two masks that aren't both empty.

    True components that touch when dilated by REACH are one lesion. It is compared with
    all predicted components that touch it, dilated. A lesion without any has a Dice of
    0 and the `worst` distance, and so has each predicted component without a lesion.

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
        away.append(
            min(surface.hausdorff(surface.distances(other, true, spacing)), worst)
        )
    false = len(sizes) - np.count_nonzero(touched)
    count = len(lesions) + false
    return sum(dices) / count, (sum(away) + false * worst) / count


def _dilated(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask of bool, dilated by REACH along each axis, by faces and edges.

    With voxels of 1 mm these are the three dilations of BraTS. Along an axis with
    longer steps there are fewer, none where a step is longer than REACH.
    """
    steps = np.floor(REACH / np.asarray(spacing) + 0.01).astype(int)
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
