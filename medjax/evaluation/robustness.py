"""What corrupted films cost a run: its mean AUROC, and calls that change."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import averaging, cells, replicates
from medjax.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from medjax.evaluation.inference import Predictions
from medjax.evaluation.intervals import Interval

KINDS = ("auroc", "drop", "agreement")


def summarise(
    clean: Predictions,
    corrupted: dict[str, np.ndarray],
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    key: Array,
    replicates: int,
    told: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict:
    """Compares what a run says of corrupted films with what it says of the same films.

    Args:
      clean: of N films as they are.
      corrupted: {name of corruptions.CORRUPTIONS: [5, N, T] probability}, of the same
        films in the same order, at each severity.
      tasks: T names.
      exclusive: whether an image has exactly one of them, as a class: its one call is
        then the likeliest, whatever the thresholds.
      threshold: [T], frozen; a task of NaN has no calls.
      key, replicates: of the bootstrap over patients, the same draws for all.
      told: [N, T] -> [N, T], the calibration of these probabilities, by which calls
        are made; they are ranked as they are. None: there is none.

    Returns:
      films, patients, replicates; clean: {auroc: interval}; corruptions: {name:
      {parameter, severities: [{severity, value, auroc, drop, agreement: interval,
      tasks: {T: AUROC}}]}}; mean: [{severity, auroc, drop, agreement}], the mean over
      the corruptions. auroc is the mean over the tasks that have one on the clean
      films; drop, how much lower it is than theirs; agreement, the share of calls that
      stay. An interval is {estimate, low, high, undefined, why}, of 95 %, see
      cells.interval.
    """
    rows = (clean.weight > 0).any(axis=1)  # As in intervals.bootstrap.
    names, patient = np.unique(clean.patient[rows], return_inverse=True)
    threshold = np.asarray(threshold, np.float32)
    told = told or (lambda probability: probability)
    measure = functools.partial(
        _measure,
        clean=told(clean.probability[rows]),
        label=clean.label[rows],
        weight=clean.weight[rows],
        patient=patient.astype(np.int32),
        threshold=threshold,
        key=key,
        exclusive=exclusive,
        patients=names.size,
        replicates_=replicates,
    )
    before, _ = jax.device_get(
        measure(clean.probability[rows], told(clean.probability[rows]))
    )
    defined = ~np.isnan(before[0])
    before = np.asarray(averaging.macro(before, defined))
    found, columns = {}, {}
    for name, probability in corrupted.items():
        severities = []
        for severity, one in zip(SEVERITIES, probability, strict=True):
            areas, agreement = jax.device_get(measure(one[rows], told(one[rows])))
            auroc = np.asarray(averaging.macro(areas, defined))
            column = np.stack([auroc, before - auroc, agreement])
            columns[name, severity] = column
            severities.append(
                {
                    "severity": severity,
                    "value": CORRUPTIONS[name].values[severity - 1],
                    **_intervals(column, names.size),
                    "tasks": dict(zip(tasks, map(cells.number, areas[0]), strict=True)),
                }
            )
        parameter = CORRUPTIONS[name].parameter
        found[name] = {"parameter": parameter, "severities": severities}
    return {
        "films": len(clean.id),
        "patients": len(np.unique(clean.patient)),
        "replicates": replicates,
        "clean": {"auroc": _interval(before, "auroc", names.size)},
        "corruptions": found,
        "mean": [
            {
                "severity": severity,
                **_intervals(
                    np.mean([columns[n, severity] for n in found], axis=0), names.size
                ),
            }
            for severity in SEVERITIES
        ],
    }


@functools.partial(jax.jit, static_argnames=("exclusive", "patients", "replicates_"))
def _measure(
    score,
    told,
    *,
    clean,
    label,
    weight,
    patient,
    threshold,
    key,
    exclusive,
    patients,
    replicates_,
) -> tuple[Array, Array]:
    """AUROC [1 + R, T] and agreement [1 + R]: of the films as they are, then drawn."""
    judged = ~jnp.isnan(threshold)
    same = ((told >= threshold) == (clean >= threshold)) & judged
    if exclusive:
        judged = jnp.array([True])
        same = (jnp.argmax(told, axis=1) == jnp.argmax(clean, axis=1))[:, None]
    calls = jnp.stack([same.sum(axis=1), jnp.full(len(score), judged.sum())], axis=1)
    calls = jax.ops.segment_sum(calls.astype(jnp.float32), patient, patients)

    def of(counts):
        area, _ = replicates.replicate_areas(score, label, weight, patient, counts)
        weights = counts.T.astype(jnp.float32)
        stay, all_ = jnp.matmul(weights, calls, precision="highest").T
        return area, jnp.where(all_ > 0, stay / jnp.maximum(all_, 1), jnp.nan)

    drawn = replicates.in_chunks(
        lambda numbers: of(replicates.multiplicities(key, numbers, patients)),
        replicates_,
    )
    whole = of(jnp.ones((patients, 1), jnp.uint8))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), whole, drawn)


def _intervals(column: np.ndarray, patients: int) -> dict[str, dict]:
    """Of KINDS, [3, 1 + R]."""
    return {
        kind: _interval(values, kind, patients)
        for kind, values in zip(KINDS, column, strict=True)
    }


def _interval(values: np.ndarray, kind: str, patients: int) -> dict:
    """Of an estimate and R replicates, [1 + R], of so many patients."""
    low, high = jnp.nanquantile(values[1:], jnp.array([0.025, 0.975]))
    found = Interval(values[0], low, high, np.isnan(values[1:]).sum())
    why = "no threshold" if kind == "agreement" else "undefined in every task"
    behind = {"patients": patients, "replicates": len(values) - 1}
    return cells.interval(found, why, kind=kind, **behind)
