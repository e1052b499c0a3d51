"""Which images to show: those that the model is most and least certain of."""

from typing import NamedTuple

import numpy as np

from medjax.evaluation.predict import Predictions

KINDS = ("true_positive", "false_positive", "true_negative", "false_negative")
CERTAIN = ("most", "least")


class Example(NamedTuple):
    """An image, by its row and its task's number; one of KINDS and one of CERTAIN."""

    row: int
    task: int
    kind: str
    certain: str


def choose(predictions: Predictions, threshold, *, each: int) -> list[Example]:
    """The images of every task and kind that the model is most and least certain of.

    An image is certain if its probability is far from the threshold. Nothing is drawn
    at random: of equal probabilities the lower id comes first.

    Args:
      threshold: [T]; a task whose threshold is NaN has no kinds, and no images.
      each: images of a kind; ceil(each / 2) of them are certain ones.

    Returns:
      The examples by task, kind, and certainty; no image twice in one kind.
    """
    examples = []
    for t, point in enumerate(np.asarray(threshold, np.float32)):
        if np.isnan(point):
            continue
        score, label, weight = (x[:, t] for x in predictions[2:5])
        called, positive = score >= point, label >= 0.5
        for kind in KINDS:
            of_kind = (called == kind.endswith("positive")) & (weight > 0)
            of_kind &= (called == positive) == kind.startswith("true")
            rows = np.flatnonzero(of_kind)
            certainty = score[rows] if kind.endswith("positive") else -score[rows]
            rows = rows[np.lexsort((predictions.id[rows], -certainty))].tolist()
            most = (each + 1) // 2
            least = rows[most:][: -(each // 2) - 1 : -1]
            for certain, chosen in zip(CERTAIN, (rows[:most], least), strict=True):
                examples += [Example(row, t, kind, certain) for row in chosen]
    return examples
