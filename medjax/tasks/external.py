"""External tests: leakage audit, and differences to the results of the run's own test.

A run's own test is audited too, against the runs whose weights it began with.
Two reports of one model on different patients are compared as JSON: the interval of a
difference follows from those of both numbers, whatever these are of.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax.cohort import manifests
from medjax.cohort.describe import prevalence
from medjax.config import Config, read_config
from medjax.errors import InputError, check_choice
from medjax.evaluation import bootstrap
from medjax.files import write_table
from medjax.tasks import start
from medjax.training import workdir


class Claim(NamedTuple):
    """What a user says of the images that a run is judged on, see manifests.overlap."""

    other_hospital: bool = False  # So equal patient ids are of other people.
    allow_overlap: bool = False  # Reported under a warning instead of refused.


CLAIMS = {  # Of transfer.overlap.
    "refuse": Claim(),
    "other_hospital": Claim(other_hospital=True),
    "allow": Claim(allow_overlap=True),
}


class SeenImages(NamedTuple):
    """A run, and the images that it has seen."""

    folder: Path
    data: Any  # films.FilmData or scans.ScanData; None: gone.
    manifest: pd.DataFrame


def claim_of(config: Config) -> Claim:
    """What `config.transfer.overlap` says."""
    check_choice("transfer.overlap", config.transfer.overlap, CLAIMS)
    return CLAIMS[config.transfer.overlap]


def ancestors(config: Config, read: Callable) -> Iterator[SeenImages]:
    """The run whose weights a run begins with, the run that this one began with, ...

    read: config -> the data. Where they are gone, only patient ids can be compared.
    """
    while init := config.transfer.init:
        folder = start.place(init)
        if not (folder / "config.json").exists():
            return
        config, manifest = read_config(folder), workdir.sides(folder)
        try:
            data = read(config)
        except InputError as error:
            print(f"note: only patient ids were compared with {folder}: {error}")
            data = None
        yield SeenImages(folder, data, manifest)


def audit_test(
    config: Config, read: Callable, data: Any, manifest: pd.DataFrame
) -> dict:
    """Audits what the runs whose weights a run begins with have seen of its test."""
    tests = manifest[manifest["split"] == "test"]
    runs = [*ancestors(config, read)]
    if not runs or tests.empty:
        return {}
    return audit(runs, data, tests, claim_of(config))


def audit(
    runs: Iterable[SeenImages],
    data: Any,
    judged: pd.DataFrame,
    claim: Claim,
    path: Path | None = None,
) -> dict:
    """The largest overlap of the judged images with what one of the runs has seen.

    Args:
      judged: rows of the manifest of the data.
      path: where refused images of other data are listed; None: they are of the test of
        a run that isn't trained yet.

    Returns manifests.overlap's numbers, with `images` and the run's folder as `run`.

    Raises:
      InputError: an overlap that isn't allowed.
    """
    overlaps = []
    for folder, theirs, manifest in runs:
        used = manifest[manifest["split"] != manifests.UNUSED]
        copies = pd.DataFrame({"id": [], "other": []}, dtype=np.int64)
        if theirs is not None:
            ids = used["id"].to_numpy(), judged["id"].to_numpy()
            copies = theirs.copies(ids[0], data, ids[1])
        overlap = manifests.overlap(
            judged, used, copies, other_hospital=claim.other_hospital
        )
        ids, people = overlap.pop("ids"), overlap["patients"]
        counts = {"images": len(ids), "patients": len(people), "run": str(folder)}
        overlaps.append(overlap | counts)
        if not ids:
            continue
        what = (
            f"{len(ids)} of {len(judged)} images were seen in training or validation "
            f"of {folder} ({len(people)} patient ids, {overlap['pictures']} pictures), "
            f"e.g. {', '.join(overlap['examples'])}"
        )
        if not claim.allow_overlap:
            seen = judged[judged["id"].isin(ids)]
            raise InputError(f"{what}: {_remedy(seen, path, bool(people))}")
        print(f"warning: {what}: the results are too good")
    return max(overlaps, key=lambda overlap: overlap["images"])


def _remedy(seen: pd.DataFrame, path: Path | None, by_id: bool) -> str:
    """What to do about refused images; by_id: whether patients have equal ids."""
    if path is None:
        return (
            "give these patients to training, or set transfer.overlap='other_hospital' "
            "if equal ids are other people's, or 'allow' to report them under a warning"
        )
    write_table(path, seen[["image", "patient"]])
    people = "equal ids are other people's (--other-hospital), or "
    return (
        f"leave out those in {path}, or say that {people * by_id}they may be reported "
        "under a warning (--allow-overlap)"
    )


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
    masks, both = "regions" in external, (internal, external)
    first, second = map(_metrics, both)
    rows = [*first.values(), *second.values()]
    metrics = COMPARED["dice" if masks else "auroc"]
    names = [name for name in metrics if all(name in row for row in rows)]
    averaged, others = (
        {task for task, row in of.items() if row[names[0]]["estimate"] is not None}
        for of in (first, second)
    )
    means = [r["mean"] if averaged == others else {} for r in both]
    shift = [{task: _quantities(r, task) for task in second} for r in both]

    def pairs(before: dict, now: dict) -> dict:
        return {k: _numbers(before[k], v) for k, v in now.items() if k in before}

    compared = {
        "films": internal["volumes" if masks else "films"],
        "patients": internal["patients"],
        "metrics": names,
        "mean": pairs(*({k: m[k] for k in names if k in m} for m in means)),
        "tasks": {
            task: {name: _numbers(first[task][name], row[name]) for name in names}
            for task, row in second.items()
        },
        "shift": {task: pairs(*(of[task] for of in shift)) for task in second},
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
    """Collects what may differ in other data: {quantity: interval}."""
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
    calibration = results["tasks"][task]["calibration"]
    side = calibration["after"] or calibration["before"]
    shift = {name: side[name] for name in PROBABILITY}
    return {"prevalence": calibration["prevalence"]} | shift
