"""How far probabilities can be trusted: calibration.py's numbers with intervals.

The bins are drawn once, on the images as they are. A patient's share in every sum
over images is then fixed, and all replicates of a bootstrap are one product.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import averaging, calibration, intervals, support
from medjax.evaluation.cells import interval, numbers, of_task
from medjax.evaluation.intervals import Interval
from medjax.evaluation.replicates import in_chunks, multiplicities

UNKNOWN = "no known label"


class Trust(NamedTuple):
    """What `measure` finds of T tasks.

    brier, calibration_error: [T], see calibration.py; predicted, prevalence: [T], the
    mean probability and the share of positives; mean_brier, mean_calibration_error:
    [], over the tasks that know a label; observed: [T, B], the share of positives in
    each bin of `diagram`.

    The calibration error of a sample is too high, and that of a replicate once more, so
    that its percentiles would lie above the truth. Its intervals are reflected about
    the estimate, and end at 0. Of a model without any error they still miss the 0 in
    two of five samples; from an error of 0.05 on they cover it as often as they say.

    Source: the basic bootstrap interval: Davison & Hinkley, Bootstrap Methods (1997),
    eq. 5.6.
    """

    brier: Interval
    calibration_error: Interval
    predicted: Interval
    prevalence: Interval
    mean_brier: Interval
    mean_calibration_error: Interval
    observed: Interval
    diagram: calibration.Reliability


def summarise(
    probability, label, weight, patient, *, uncalibrated, **bootstrap
) -> tuple[dict, list[dict]]:
    """`measure` before and after calibration, as plain data.

    Args:
      probability: [N, T] as they are said.
      label, weight, patient: see `measure`.
      uncalibrated: [N, T], as the model said them; None if these are the same.
      bootstrap: key and replicates.

    Returns:
      The errors' means {before, after}, and for each task {prevalence, before, after},
      see results.summarise.
    """
    rest = {"label": label, "weight": weight, "patient": patient, **bootstrap}
    before = measure(probability if uncalibrated is None else uncalibrated, **rest)
    after = None if uncalibrated is None else measure(probability, **rest)
    sides = {"before": before, "after": after}
    *of_tasks, of_all = support.count(weight > 0, patient)
    cell = functools.partial(interval, why=UNKNOWN, replicates=bootstrap["replicates"])
    mean = {
        name: side and _mean(side, functools.partial(cell, patients=of_all))
        for name, side in sides.items()
    }
    each = []
    for t, patients in enumerate(of_tasks):
        own = functools.partial(cell, patients=patients)
        prevalence = own(of_task(before.prevalence, t), kind="prevalence")
        of_side = {name: side and _side(side, t, own) for name, side in sides.items()}
        each.append({"prevalence": prevalence, **of_side})
    return mean, each


def _mean(trust: Trust, cell: Callable) -> dict:
    return {
        "brier": cell(trust.mean_brier),
        "calibration_error": cell(trust.mean_calibration_error),
    }


def _side(trust: Trust, t: int, cell: Callable) -> dict:
    """One task's errors and diagram; cell: Interval -> as `cells.interval` has it."""
    names = ("brier", "calibration_error", "predicted")
    full = trust.diagram.weight[t] > 0
    diagram = {
        "predicted": trust.diagram.predicted,
        "observed": trust.diagram.observed,
        "low": trust.observed.low,
        "high": trust.observed.high,
        "count": trust.diagram.weight,
    }
    return {
        **{name: cell(of_task(getattr(trust, name), t)) for name in names},
        "reliability": {k: numbers(part[t][full]) for k, part in diagram.items()},
    }


def measure(
    probability,
    label,
    weight,
    patient,
    *,
    key: Array,
    replicates: int = 1000,
    level: float = 0.95,
    bins: int = 10,
) -> Trust:
    """Brier score, calibration error and diagram with intervals clustered by patient.

    Args:
      probability, label, weight: [N, T], see calibration.py.
      patient: [N] integers.
      key: of the bootstrap, as intervals.bootstrap's: the same key draws the same
        patients, where all of them have a known label.
      replicates: how many.
      level: the intervals' nominal coverage.
      bins: B, of equal mass.
    """
    p, y, w = calibration.known(probability, label, weight)
    rows = (w > 0).any(axis=1)
    _, index = np.unique(np.asarray(patient)[rows], return_inverse=True)
    sums = _sums(p[rows], y[rows], w[rows], index, bins)
    found = _intervals(sums, key, level, replicates=replicates)
    found = jax.tree.map(np.asarray, found)
    for name in ("calibration_error", "mean_calibration_error"):
        found[name] = _reflected(found[name])
    return Trust(**found, diagram=calibration.reliability(p, y, w, bins=bins))


def _sums(p, y, w, patient: np.ndarray, bins: int) -> np.ndarray:
    """[P, T, 1 + 3 B] float32: each patient's squared errors, then of each bin the
    weights, and with these the probabilities and labels."""
    patients, tasks = patient.max() + 1, p.shape[1]
    place = patient[:, None] * bins + calibration.homes(p, w, bins)
    found = np.zeros((patients, tasks, 1 + 3 * bins), np.float32)
    for t in range(tasks):
        error = w[:, t] * (p[:, t] - y[:, t]) ** 2
        found[:, t, 0] = np.bincount(patient, error, patients)
        for part, x in enumerate((np.ones_like(p), p, y)):
            cells = np.bincount(place[:, t], w[:, t] * x[:, t], patients * bins)
            here = slice(1 + part * bins, 1 + (part + 1) * bins)
            found[:, t, here] = cells.reshape(patients, bins)
    return found


@functools.partial(jax.jit, static_argnames="replicates")
def _intervals(sums: Array, key: Array, level: float, *, replicates: int) -> dict:
    """The compiled part of `measure`."""

    def chunk(numbers):
        counts = multiplicities(key, numbers, len(sums)).astype(jnp.float32)
        drawn = jnp.einsum("pr,ptc->rtc", counts, sums, precision="highest")
        return _measures(drawn, defined)

    total = sums.sum(axis=0)
    bins = sums.shape[-1] // 3
    defined = total[:, 1 : 1 + bins].sum(axis=-1) > 0
    return intervals.percentiles(
        _measures(total, defined), in_chunks(chunk, replicates), level
    )


def _reflected(found: Interval) -> Interval:
    """The basic interval of a percentile interval; of a number >= 0."""
    estimate, low, high, _ = found
    return found._replace(
        low=np.clip(2 * estimate - high, 0, estimate),
        high=np.maximum(2 * estimate - low, estimate),
    )


def _measures(sums: Array, defined: Array) -> dict[str, Array]:
    """Trust's numbers of sums [..., T, 1 + 3 B]; defined: [T], for the means."""
    mass, predicted, positive = jnp.split(sums[..., 1:], 3, axis=-1)
    total = mass.sum(axis=-1)
    errors = {
        "brier": sums[..., 0] / total,  # NaN without a label: 0 / 0.
        "calibration_error": jnp.abs(predicted - positive).sum(axis=-1) / total,
    }
    return {
        **errors,
        "predicted": predicted.sum(axis=-1) / total,
        "prevalence": positive.sum(axis=-1) / total,
        **{f"mean_{k}": averaging.macro(v, defined) for k, v in errors.items()},
        "observed": positive / mass,
    }
