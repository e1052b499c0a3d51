"""Probability maps -> masks: a threshold, and which connected components stay."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from medjax.errors import InputError

CONNECTED = np.ones((3, 3, 3))  # Voxels that share a corner are one lesion.


class Post(NamedTuple):
    """What is done to a probability map before it counts; by default nothing.

    threshold: a voxel with this probability or more is inside.
    largest: whether only the largest component stays.
    smallest: components below it go, in mm^3.
    """

    threshold: float = 0.5
    largest: bool = False
    smallest: float = 0.0


THRESHOLDS = (0.5, 0.3, 0.4, 0.6, 0.7)
CANDIDATES = tuple(  # The default first: it wins a tie.
    Post(threshold, largest, smallest)
    for threshold, (largest, smallest) in itertools.product(
        THRESHOLDS, [(False, size) for size in (0, 3, 10, 30, 100, 300)] + [(True, 0)]
    )
)


def masks(
    probability: np.ndarray, spacing: Sequence[float], posts: Sequence[Post]
) -> np.ndarray:
    """Makes masks of probabilities.

    Args:
      probability: [D, H, W, K].
      spacing: [3] mm.
      posts: K, one a region.

    Returns:
      [D, H, W, K] bool.
    """
    found = []
    for k, post in enumerate(posts):
        component, size = components(probability[..., k] >= post.threshold)
        keep = kept(size * np.prod(spacing), post)
        found.append(np.append(False, keep)[component])
    return np.stack(found, axis=-1)


def kept(size: np.ndarray, post: Post) -> np.ndarray:
    """Which components stay, [N] bool, of their sizes [N] in mm^3."""
    keep = size >= post.smallest
    if post.largest and size.size:
        keep &= np.arange(size.size) == np.argmax(size)
    return keep


def choose(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
    *,
    candidates: Sequence[Post] = CANDIDATES,
) -> tuple[Post, ...]:
    """The post-processing of each region with the highest mean Dice.

    Args:
      cases: probability [D, H, W, K], label [D, H, W, K] and spacing [3] mm of the
        validation volumes, never of those to be judged. They are read once.
      candidates: of equally good ones the first is taken.

    Returns:
      K of the candidates.

    Raises:
      InputError: there is no case.
    """
    dice = [
        [
            _dices(probability[..., k], label[..., k] != 0, spacing, candidates)
            for k in range(label.shape[-1])
        ]
        for probability, label, spacing in cases
    ]
    if not dice:
        raise InputError(
            "post-processing is chosen on validation volumes, and there is none: "
            "leave it at its default"
        )
    return tuple(candidates[best] for best in np.mean(dice, axis=0).argmax(axis=1))


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components from 1, [D, H, W]; and their sizes in voxels, [N]."""
    component, count = ndimage.label(mask, CONNECTED)
    return component, np.bincount(component.ravel(), minlength=count + 1)[1:]


def _dices(probability, label, spacing, candidates) -> list[float]:
    """Each candidate's Dice; a threshold's components are found once."""
    found = {}
    for threshold in {post.threshold for post in candidates}:
        component, size = components(probability >= threshold)
        overlap = np.bincount(component[label], minlength=len(size) + 1)[1:]
        found[threshold] = size, overlap
    values = []
    for post in candidates:
        size, overlap = found[post.threshold]
        keep = kept(size * np.prod(spacing), post)
        whole = size[keep].sum() + label.sum()
        values.append(2 * overlap[keep].sum() / whole if whole else 1.0)
    return values
