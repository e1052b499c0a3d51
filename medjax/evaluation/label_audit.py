"""Does an augmentation keep the label? A trained model, asked about changed images.

An augmentation is right if the label of the changed image is that of the image. A
reader would have to say so; a model that has learnt the findings is a stand-in that
reads a thousand images in a second. What it can't see, it can't miss: an op may spoil
a finding that the model never knew, so look at the pictures too.
"""

import numpy as np
from chex import Array

from medjax.evaluation import bootstrap
from medjax.evaluation.predict import Predictions

# Of the config's strength; 0 is the image as it is.
STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def compare(
    plain: Predictions,
    changed: Predictions,
    *,
    threshold: np.ndarray,
    key: Array,
    replicates: int,
) -> dict:
    """How far a change of the images moves what a model says of them.

    Args:
      plain: of the images as they are.
      changed: of the same images, in the same order, changed.
      threshold: [T], from which on a probability is called positive; NaN calls none.
      key: of the bootstrap over patients.
      replicates: of the bootstrap.

    Returns:
      moved: [T], the mean absolute change of the probability, of known labels.
      flipped: [T], the share of calls that change; NaN without a threshold.
      drop: an Interval of [T], AUROC of the images as they are minus that of the
        changed ones, paired; mean_drop: an Interval of []. The intervals are of 95 %
        for all T + 1 together (Bonferroni): of many findings one falls by chance.
    """
    known = plain.weight > 0
    calls = [p.probability >= threshold for p in (plain, changed)]
    flipped = np.where(np.isnan(threshold), np.nan, calls[0] != calls[1])
    found = bootstrap.difference(
        plain.probability,
        changed.probability,
        plain.label,
        plain.weight,
        plain.patient,
        key=key,
        replicates=replicates,
        level=1 - 0.05 / (len(threshold) + 1),
    )
    return {
        "moved": _mean(np.abs(changed.probability - plain.probability), known),
        "flipped": _mean(flipped, known),
        "drop": found["auroc"],
        "mean_drop": found["mean_auroc"],
    }


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[T] means over the known labels; NaN where there is none."""
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
