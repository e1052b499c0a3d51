"""Bands about the ROC and precision-recall curves, from the bootstrap over patients.

Each replicate's curve is read at one grid, and the band is where the middle 95 % of
them pass, point by point: it holds for each point, not for the curve as a whole.

A replicate isn't sorted. Each patient's images are counted once between a few hundred
fixed thresholds (thresholds.knots), and the counts of all replicates are one product of
matrices. So a replicate's ROC curve is straight between two of its points where the
whole one bends; with as many thresholds as scores nothing is approximated.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from medjax.evaluation import bootstrap, thresholds
from medjax.evaluation.areas import in_chunks, multiplicities
from medjax.evaluation.predict import Predictions

Array = jax.Array
GRID = np.linspace(0, 1, 101)  # Of the false positive rate and of the recall.


def bands(
    predictions: Predictions,
    *,
    tasks: Sequence[str],
    key: Array,
    replicates: int,
    level: float = 0.95,
    most: int = thresholds.MOST,
) -> dict[str, dict[str, dict]]:
    """Where the curves of other patients would pass.

    Args:
      predictions: of the split that is judged.
      tasks: T names.
      key, replicates, level: as of `intervals.bootstrap`, whose replicates these are.
      most: thresholds a task.

    Returns:
      {task: {roc: {fpr, low, high}, precision_recall: {recall, low, high}}}, lists of
      one length: sensitivity at each false positive rate, and precision at the
      strictest threshold of at least each recall (but 0). A task with fewer than
      support.LEAST patients of either class is left out.
    """
    score, label, weight = (np.asarray(x, np.float32) for x in predictions[2:])
    label = np.where(weight > 0, label, 0)
    rows = (weight > 0).any(axis=1)
    names, patient = np.unique(predictions.patient[rows], return_inverse=True)
    enough = [
        bootstrap.count(weight * one > 0, predictions.patient)[:-1] >= bootstrap.LEAST
        for one in (label, 1 - label)
    ]
    columns = np.flatnonzero(np.all(enough, axis=0)).tolist()
    if not columns:
        return {}
    score, label, weight = (x[rows][:, columns] for x in (score, label, weight))
    place = np.full(score.shape, most, np.int32)  # Unknown: beyond the last.
    for t in range(len(columns)):
        known = weight[:, t] > 0
        cuts = thresholds.knots(score[:, t], label[:, t], weight[:, t], most=most)
        place[known, t] = np.searchsorted(-cuts, -score[known, t])
    found = _quantiles(
        *(place, weight * label, weight * (1 - label), patient.astype(np.int32)),
        *(key, level),
        patients=names.size,
        replicates=replicates,
        most=most,
    )
    roc, recall = np.round(np.asarray(found, float), 5)  # [2, T, G] each
    return {
        tasks[column]: {
            "roc": _lists("fpr", GRID, roc[:, t]),
            "precision_recall": _lists("recall", GRID[1:], recall[:, t, 1:]),
        }
        for t, column in enumerate(columns)
    }


def _lists(name: str, grid: np.ndarray, ends: np.ndarray) -> dict[str, list[float]]:
    low, high = ends.tolist()
    return {name: np.round(grid, 2).tolist(), "low": low, "high": high}


@functools.partial(jax.jit, static_argnames=("patients", "replicates", "most"))
def _quantiles(
    place, positive, negative, patient, key, level, *, patients, replicates, most
) -> Array:
    """The ends of both bands, [2 curves, 2 ends, T, G].

    Args:
      place: [N, T] int, the first threshold that calls an image positive.
      positive, negative: [N, T], an image's weight as either class.
      patient: [N] int below `patients`.
    """
    ends = jnp.stack([(1 - level) / 2, (1 + level) / 2])

    def chunk(numbers):
        drawn = multiplicities(key, numbers, patients).astype(jnp.float32)

        def task(columns):  # One at a time: of 25,000 patients a table takes 40 MB.
            place, positive, negative = columns
            each = jnp.stack([positive, negative], axis=1)
            table = jnp.zeros((patients, most, 2))
            table = table.at[patient, place].add(each, mode="drop")
            cells = jnp.einsum("pr,pkc->rkc", drawn, table, precision="highest")
            return jax.vmap(_read)(jnp.cumsum(cells, axis=1))

        found = jax.lax.map(task, (place.T, positive.T, negative.T))
        return jnp.moveaxis(found, 1, 0)  # [R, T, 2, G]

    value = in_chunks(chunk, replicates)
    return jnp.transpose(jnp.nanquantile(value, ends, axis=0), (2, 0, 1, 3))


def _read(counts: Array) -> Array:
    """Sensitivity and precision of one replicate along the grid, [2, G].

    Args:
      counts: [K, 2], true and false positives at each threshold.
    """
    tp, fp = jnp.pad(counts, ((1, 0), (0, 0))).T
    both = (tp[-1] > 0) & (fp[-1] > 0)
    grid = jnp.asarray(GRID, jnp.float32)
    tpr, fpr = tp / jnp.maximum(tp[-1], 1e-30), fp / jnp.maximum(fp[-1], 1e-30)
    first = jnp.searchsorted(tpr, grid * (1 - 1e-5))
    precision = tp[first] / jnp.maximum(tp[first] + fp[first], 1e-30)
    sensitivity = jnp.interp(grid, fpr, tpr)
    return jnp.where(both, jnp.stack([sensitivity, precision]), jnp.nan)
