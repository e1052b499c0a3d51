"""Decision curves: is anybody better off if the model's probabilities decide?

Who treats from a probability t on says that a missed finding is as bad as (1 - t) / t
needless treatments. The net benefit counts both in found patients: the share of true
positives minus t / (1 - t) times that of false positives. It is compared with treating all
and treating none, whose net benefit is 0.

Source: Vickers & Elkin, Med. Decis. Making 26 (2006) 565.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.evaluation import bootstrap, discrimination
from medjax.evaluation.bootstrap import Resampled
from medjax.evaluation.inference import Predictions

POINTS = 60  # Thresholds of a curve.
MIN_END, MAX_END = 0.2, 0.9  # A curve ends between them, at END_RATIO x prevalence.
END_RATIO = 5


class Curve(NamedTuple):
    """The net benefit of one task at each threshold, [G]."""

    threshold: np.ndarray  # Probabilities from which on is treated.
    model: np.ndarray  # The model's, and its pointwise 95 % interval.
    low: np.ndarray
    high: np.ndarray
    all: np.ndarray  # Of treating all.
    gain: np.ndarray  # The model's minus the better one of treating all or none.
    gain_low: np.ndarray
    gain_high: np.ndarray


def curves(
    predictions: Predictions, *, tasks: Sequence[str], **draws
) -> dict[str, dict]:
    """{task: `Curve` as JSON} of the (calibrated) probabilities.

    Their intervals are those of bootstrap.combined, of the shares of true and false
    positives. A gain over both treating all and none is as uncertain as the less certain
    of them. A task with fewer than bootstrap.MIN_PATIENTS patients of either class is
    left out.
    """
    rows, patient, patients = bootstrap.numbered(
        predictions.weight, predictions.patient
    )
    score, label, weight = (np.asarray(x, float)[rows] for x in predictions[2:5])
    label = np.where(weight > 0, label, 0)
    positive, negative = weight * label, weight * (1 - label)
    rarer = discrimination.rarer_patients(label, weight, patient)
    results = {}
    for t in np.flatnonzero(rarer >= bootstrap.MIN_PATIENTS).tolist():
        share = positive[:, t].sum() / weight[:, t].sum()
        end = np.clip(END_RATIO * share, MIN_END, MAX_END)
        # In float32, as probabilities are: 0.03 is at the threshold 0.03.
        threshold = np.round(np.linspace(0, end, POINTS + 1)[1:], 6).astype(np.float32)
        place = np.searchsorted(threshold, score[:, t].astype("f4"), side="right")
        table = np.zeros((patients, 2, POINTS + 1))
        for part, mass in enumerate((positive, negative)):
            np.add.at(table, (patient, part, place), mass[:, t])
        # [P, 2, G]: each patient's true and false positives at each threshold.
        called = np.cumsum(table[..., ::-1], axis=-1)[..., ::-1][..., 1:]
        of_all = table.sum(axis=-1)
        sums = np.concatenate([called, of_all[..., None] - called], axis=1)
        # Of all images: true and false positives, false and true negatives.
        shares = sums.astype(np.float32), of_all.sum(axis=1)[:, None, None]
        results[tasks[t]] = _curve(
            bootstrap.resample(bootstrap.quotient, shares, patients, **draws),
            threshold,
            share,
            (of_all > 0).any(axis=1).sum(),
        )
    return bootstrap.as_json(
        {
            task: Curve(*(np.round(column, 6) for column in curve))
            for task, curve in results.items()
        }
    )


def _curve(
    shares: Resampled, threshold: np.ndarray, prevalence: float, patients: int
) -> Curve:
    """The curve of one task from the resampled shares [4, G] of as many patients."""
    intervals = bootstrap.exact(bootstrap.wilson(shares), patients)
    odds = threshold.astype(float) / (1 - threshold)
    factors = np.stack([np.ones_like(odds), -odds])
    # True and false positives count against treating none; false and true negatives,
    # the other way round, against treating all.
    over_none, over_all = (
        np.stack(
            bootstrap.combined(
                bootstrap.at(intervals, part), shares.drawn[:, part], sign * factors
            )
        )
        for part, sign in ((slice(0, 2), 1), (slice(2, 4), -1))
    )
    everybody = prevalence - odds * (1 - prevalence)
    return Curve(threshold, *over_none, everybody, *np.minimum(over_none, over_all))
