"""Which arm of a sweep is better, if any: differences to one arm, and the best."""

import jax
import numpy as np

from medjax.errors import InputError
from medjax.evaluation.comparison import holm
from medjax.evaluation.repeated import ALPHA, Runs, Values, gap, measure, number, spread

LEAST = 3  # Seeds without which no arm is named the best.


def compare(
    runs: Runs,
    *,
    arms: tuple[str, ...],
    tasks: tuple[str, ...],
    baseline: int = 0,
    key: jax.Array,
    replicates: int,
) -> dict:
    """Every arm's metrics, their differences to the baseline's, and the best arm.

    Args:
      runs: of the arms.
      arms: A names; tasks: T names.
      baseline: the arm that the others are compared with.
      key, replicates: of the bootstrap, clustered by patient.

    Returns:
      films, patients, replicates, baseline; arms: {arm: {seeds, mean: {metric:
      `spread`}, tasks: {task: {metric: spread}}, difference: None for the baseline,
      else {mean: {metric: `gap`}, tasks: {task: {metric: gap}}}}}; best: see `best`.
      Gaps of the AUROC have `holm`: those of the mean adjusted over the arms, those of
      the tasks over arms and tasks.

    Raises:
      InputError: fewer than two patients.
    """
    people = len(np.unique(runs.patient))
    if people < 2:
        raise InputError(f"{people} patient(s) were tested: a comparison needs two")
    values = measure(runs, key=key, replicates=replicates)
    found = {
        "films": len(runs.label),
        "patients": people,
        "replicates": replicates,
        "baseline": arms[baseline],
        "arms": {},
    }
    for a, arm in enumerate(arms):
        spreads = {name: spread(value, a) for name, value in values.items()}
        row = {"seeds": _seeds(values, a), **_by_task(spreads, tasks)}
        row["difference"] = None
        if a != baseline:
            gaps = {
                name: gap(value, a, baseline, patients=people)
                for name, value in values.items()
            }
            row["difference"] = _by_task(gaps, tasks)
        found["arms"][arm] = row
    differences = [row["difference"] for row in found["arms"].values()]
    differences = [each for each in differences if each]
    _adjust([each["mean"]["auroc"] for each in differences])
    _adjust(
        [each["tasks"][task]["auroc"] for each in differences for task in tasks],
    )
    found["best"] = best(values["auroc"], arms, patients=people)
    return found


def best(value: Values, arms: tuple[str, ...], *, patients: int) -> dict:
    """The arm with the highest mean AUROC, if the data allow to call it the best.

    The mean is over the seeds that all arms have, for an arm that lacks a hard seed
    would lead by that alone; an arm without any result takes no part. The data allow
    it if there are LEAST seeds, and the leader's difference to every other arm has
    a p below ALPHA / 2 (for the same data chose the leader), adjusted after Holm over
    these A - 1 comparisons, and is larger than its own standard deviation over the
    seeds, so that one more training wouldn't as soon turn it round. Of equal arms that
    names one in 5 % of the sweeps at most.

    Returns:
      {arm, leader, second, p, why}: arm is None where no difference is shown; second
      is the arm nearest to the leader, and p its adjusted one.
    """
    seeds = value.whole[:, :, -1]
    there = ~np.isnan(seeds)
    known = there.any(axis=1)
    if known.sum() < 2:
        return _verdict(None, None, None, None, "fewer than two arms have a result")
    shared = there[known].all(axis=0)
    if not shared.any():
        return _verdict(None, None, None, None, "no seed has a result of every arm")
    means = seeds[:, shared].mean(axis=1)
    order = [int(a) for a in np.argsort(-means) if known[a]]
    leader, others = order[0], order[1:]
    gaps = [gap(value, leader, other, patients=patients)[-1] for other in others]
    adjusted = holm([np.nan if one["p"] is None else one["p"] for one in gaps])
    names = arms[leader], arms[others[0]]
    second = names[1], number(adjusted[0])
    if min(one["seeds"] for one in gaps) < LEAST:
        why = f"fewer than {LEAST} seeds say nothing about another training"
        return _verdict(None, names[0], *second, why)
    for other, one, p in zip(others, gaps, adjusted, strict=True):
        if not p < ALPHA / 2:
            why = f"{names[0]} leads, and its difference to {arms[other]} may be chance"
            return _verdict(None, names[0], *second, why)
        if not one["estimate"] > one["sd"]:
            why = (
                f"{names[0]} leads {arms[other]} by less than one seed differs from "
                "another"
            )
            return _verdict(None, names[0], *second, why)
    why = "it differs from every other arm beyond other patients and other seeds"
    absent = [arm for arm, one in zip(arms, known, strict=True) if not one]
    if absent:
        why += f", but for {', '.join(absent)}, without a result"
    return _verdict(names[0], names[0], *second, why)


def _verdict(arm, leader, second, p, why: str) -> dict:
    return {"arm": arm, "leader": leader, "second": second, "p": p, "why": why}


def _adjust(gaps: list[dict]) -> None:
    """Adds `holm` to these gaps, one family of tests."""
    adjusted = holm([np.nan if one["p"] is None else one["p"] for one in gaps])
    for one, p in zip(gaps, adjusted, strict=True):
        one["holm"] = number(p)


def _by_task(found: dict[str, list[dict]], tasks: tuple[str, ...]) -> dict:
    """{metric: [T + 1]} -> {mean: {metric: one}, tasks: {task: {metric: one}}}."""
    return {
        "mean": {name: each[-1] for name, each in found.items()},
        "tasks": {
            task: {name: each[t] for name, each in found.items()}
            for t, task in enumerate(tasks)
        },
    }


def _seeds(values: dict[str, Values], arm: int) -> int:
    """How many seeds have a result."""
    return int((~np.isnan(values["auroc"].whole[arm, :, -1])).sum())
