"""External results beside the run's own test: how much changes, and what has shifted.

Both are reports of one model on different patients, as JSON. The interval of a
difference follows from those of both numbers, whatever these are of.
"""

import math

import numpy as np

from medjax.cohort.describe import prevalence
from medjax.evaluation import bootstrap

COMPARED = {  # Not PPV or average precision, which follow the prevalence.
    "auroc": ("auroc", "sensitivity", "specificity"),
    "dice": ("dice", "lesion_dice", "hd95", "sensitivity", "ppv"),
}
PROBABILITY = (
    *("predicted", "calibration_in_the_large", "calibration_slope"),
    *("calibration_intercept", "brier"),
)


def beside(internal: dict, external: dict) -> dict:
    """Every compared number of both reports.

    Returns:
      films, patients: of the internal report; metrics: names.
      mean: {metric: numbers}, where both are over the same findings, else {}.
      tasks: {finding or region: {metric: numbers}}.
      shift: {finding or region: {quantity: numbers}}: prevalence and calibration; of
        masks the share of volumes with the region and the volume's bias in ml.
      Numbers are {internal, external, difference}, each {estimate, low, high}.
    """
    masks = "regions" in external
    both = internal, external
    names = [
        name
        for name in COMPARED["dice" if masks else "auroc"]
        if all(name in row for r in both for row in _metrics(r).values())
    ]
    tasks = {
        task: {
            name: _numbers(*(_metrics(r)[task][name] for r in both)) for name in names
        }
        for task in _metrics(external)
    }
    averaged = [
        {t for t, row in _metrics(r).items() if row[names[0]]["estimate"] is not None}
        for r in both
    ]
    means = [
        name
        for name in names
        if averaged[0] == averaged[1] and all(name in r["mean"] for r in both)
    ]
    quantities = [(task, *(_quantities(r, task) for r in both)) for task in tasks]
    compared = {
        "films": internal["volumes" if masks else "films"],
        "patients": internal["patients"],
        "metrics": names,
        "mean": {name: _numbers(*(r["mean"][name] for r in both)) for name in means},
        "tasks": tasks,
        "shift": {
            task: {
                name: _numbers(before[name], value)
                for name, value in now.items()
                if name in before
            }
            for task, before, now in quantities
        },
    }
    return bootstrap.as_json(compared)


def comparable(internal: dict, external: dict) -> bool:
    """Whether both reports are of one model, with the same choices on validation."""
    first, second = (
        (
            report["checkpoint"],
            report.get("posts"),
            {name: task["threshold"] for name, task in report.get("tasks", {}).items()},
        )
        for report in (internal, external)
    )
    return first == second


def difference(internal: dict, external: dict) -> dict:
    """External minus internal, of other patients; no ends where one has none.

    Source: Zou & Donner, Construction of confidence limits about effect measures, Stat.
    Med. 27 (2008) 1693, eq. 4.
    """
    values = [[r[k] for k in ("estimate", "low", "high")] for r in (external, internal)]
    (a, low, high), (b, lower, upper) = values
    if a is None or b is None:
        return dict.fromkeys(("estimate", "low", "high"))
    apart = {"estimate": a - b, "low": None, "high": None}
    if None not in (low, high, lower, upper):
        apart["low"] = a - b - math.hypot(a - low, upper - b)
        apart["high"] = a - b + math.hypot(high - a, b - lower)
    return apart


def _numbers(internal: dict, external: dict) -> dict:
    ends = ("estimate", "low", "high")
    return {
        "internal": {k: internal[k] for k in ends},
        "external": {k: external[k] for k in ends},
        "difference": difference(internal, external),
    }


def _metrics(results: dict) -> dict[str, dict]:
    """{finding or region: {metric: interval}}."""
    if "regions" in results:
        return results["regions"]
    return {name: task["metrics"] for name, task in results["tasks"].items()}


def _quantities(results: dict, task: str) -> dict[str, dict]:
    """What may be another in other data: {quantity: interval}."""
    if "regions" in results:
        rows = [row for row in results["rows"] if row["region"] == task]
        present = np.array([float(row["true_ml"] > 0) for row in rows])
        share = prevalence(present, np.array([row["patient"] for row in rows]))
        bias = results["agreement"][task]["bias"]
        return {
            "prevalence": bootstrap.as_json(share),
            "true_ml": results["regions"][task]["true_ml"],
            "volume_bias": {"estimate": bias, "low": None, "high": None},
        }
    calibration = results["tasks"][task].get("calibration") or {}
    side = calibration.get("after") or calibration.get("before") or {}
    quantities = {name: side[name] for name in PROBABILITY if name in side}
    if "prevalence" in calibration:
        quantities = {"prevalence": calibration["prevalence"], **quantities}
    return quantities
