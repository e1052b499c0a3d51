"""Decision curves: is anybody better off if the model's probabilities decide?

Who treats from a probability t on says that a missed finding is as bad as (1 - t) / t
needless treatments. The net benefit counts both in found patients: the share of true
positives minus t / (1 - t) times that of false positives. It is compared with treating all
and treating none, whose net benefit is 0.

Source: Vickers & Elkin, Med. Decis. Making 26 (2006) 565.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import bootstrap
from medjax.evaluation.predict import Predictions

POINTS = 60  # Thresholds of a curve.
LEAST, MOST = 0.2, 0.9  # Between them a curve ends, at WIDE times the prevalence.
WIDE = 5


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
    predictions: Predictions, *, tasks: Sequence[str], key: Array, replicates: int
) -> dict[str, dict]:
    """{task: `Curve` as JSON} of the (calibrated) probabilities.

    The intervals are of bootstrap.normal, over patients. A task with fewer than
    bootstrap.LEAST patients of either class is left out.
    """
    rows, patient, patients = bootstrap.numbered(
        predictions.weight, predictions.patient
    )
    score, label, weight = (np.asarray(x, float)[rows] for x in predictions[2:5])
    label = np.where(weight > 0, label, 0)
    positive, negative = weight * label, weight * (1 - label)
    enough = [
        bootstrap.count(x > 0, patient)[:-1] >= bootstrap.LEAST
        for x in (positive, negative)
    ]
    results = {}
    for t in np.flatnonzero(np.all(enough, axis=0)).tolist():
        share = positive[:, t].sum() / weight[:, t].sum()
        end = np.clip(WIDE * share, LEAST, MOST)
        # In float32, as probabilities are: 0.03 is at the threshold 0.03.
        threshold = np.round(np.linspace(0, end, POINTS + 1)[1:], 6).astype(np.float32)
        place = np.searchsorted(threshold, score[:, t].astype("f4"), side="right")
        table = np.zeros((patients, 2, POINTS + 1))
        for part, mass in enumerate((positive, negative)):
            np.add.at(table, (patient, part, place), mass[:, t])
        # [P, 2, G]: each patient's true and false positives at each threshold.
        called = np.cumsum(table[..., ::-1], axis=-1)[..., ::-1][..., 1:]
        data = *(x.astype(np.float32) for x in (called, table.sum(axis=-1))), threshold
        benefit = bootstrap.resample(
            _benefit, data, patients, key=key, replicates=replicates
        )
        model, all_, gain = (
            bootstrap.at(bootstrap.normal(benefit), n) for n in range(3)
        )
        columns = *model[:3], all_.estimate, *gain[:3]
        results[tasks[t]] = Curve(threshold, *(np.asarray(x, float) for x in columns))
    return bootstrap.as_json(
        {
            task: Curve(*(np.round(column, 6) for column in curve))
            for task, curve in results.items()
        }
    )


def _benefit(data: tuple, counts: Array | None) -> Array:
    """A statistic: the net benefit of the model and of treating all, and the gain,
    [R, 3, G]; data: called [P, 2, G], of all [P, 2], the thresholds [G]."""
    called, of_all, threshold = data
    called = bootstrap.reweigh(called, counts)  # [R, 2, G]
    of_all = bootstrap.reweigh(of_all, counts)[..., None]
    odds = threshold / (1 - threshold)
    both = jnp.stack([called, jnp.broadcast_to(of_all, called.shape)], axis=-3)
    both = both / of_all.sum(axis=-2, keepdims=True)[..., None, :, :]
    benefit = both[..., 0, :] - odds * both[..., 1, :]  # [R, 2, G]
    gain = benefit[..., 0, :] - jnp.maximum(benefit[..., 1, :], 0)
    return jnp.concatenate([benefit, gain[..., None, :]], axis=-2)
