"""Which images to look at: those that a model is surest and least sure of."""

from typing import NamedTuple

import numpy as np

from medjax.evaluation.inference import Predictions

KINDS = ("true_positive", "false_positive", "true_negative", "false_negative")
CERTAIN = ("most", "least")


class Example(NamedTuple):
    """An image, as row of the predictions, and why it was chosen for a task.

    task: the task's number; kind: one of KINDS; certain: one of CERTAIN.
    """

    row: int
    task: int
    kind: str
    certain: str


def choose(predictions: Predictions, threshold, *, each: int) -> list[Example]:
    """Takes of every task and kind the most certain images, and the least in turn.

    Certain is a probability far on its side of the threshold. Nothing is drawn at
    random: of equal probabilities the lower id comes first.

    Args:
      predictions: of the split that is judged.
      threshold: [T]; a task whose threshold is NaN has no kinds, and no images.
      each: images of a kind, of which it takes ceil(each / 2) certain ones.

    Returns:
      The examples by task, kind, and certainty; no image twice in one kind.
    """
    found = []
    for t, point in enumerate(np.asarray(threshold, np.float32)):
        if np.isnan(point):
            continue
        score, label, weight = (x[:, t] for x in predictions[2:])
        called, ill = score >= point, label >= 0.5
        for kind in KINDS:
            of_kind = (called == kind.endswith("positive")) & (weight > 0)
            of_kind &= (called == ill) == kind.startswith("true")
            rows = np.flatnonzero(of_kind)
            sure = score[rows] if kind.endswith("positive") else -score[rows]
            rows = rows[np.lexsort((predictions.id[rows], -sure))].tolist()
            most = (each + 1) // 2
            last = rows[most:][: -(each // 2) - 1 : -1]
            for certain, chosen in zip(CERTAIN, (rows[:most], last), strict=True):
                found += [Example(row, t, kind, certain) for row in chosen]
    return found
