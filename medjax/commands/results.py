"""What the runs of a sweep came to, gathered for its page."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medjax.commands import compare, plan
from medjax.commands.plan import Run
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import seeds
from medjax.evaluation.seeds import Runs
from medjax.tasks import parts
from medjax.training import folder as workdir
from medjax.training import journal

SPLIT = "test"  # What every run reports at its end.


class Grid(NamedTuple):
    """The runs of a sweep by arm and by repeat (its seed, its fold), in their order."""

    seeds: tuple[str, ...]
    repeats: tuple[str, ...]
    run: dict[tuple[str, str], Run]


def gather(folder: Path, *, baseline: str = "") -> dict:
    """Everything that the page of a sweep says.

    Args:
      folder: of the sweep.
      baseline: the arm that others are compared with; '': the first.

    Returns:
      source, model, repeats; runs: [{name, arm, repeat, state, error, auroc, seconds,
      memory}], the state 'finished', 'failed' or 'unfinished'; curves: {arm: {step,
      mean, low, high}}, validation AUROC over the seeds; compared: evaluation.arms's,
      and same_images, whether all repeats were tested on the same; to its arms are
      added calibration_error {before, after: {estimate, sd}} and cost {seconds,
      memory}, both of the finished runs; None where no run is finished, or where
      incomparable, else None, says why they can't be compared.

    Raises:
      InputError: no such arm.
    """
    config, runs = plan.read(folder)
    grid = Grid(
        tuple(dict.fromkeys(run.arm for run in runs)),
        tuple(dict.fromkeys(run.repeat for run in runs)),
        {(run.arm, run.repeat): run for run in runs},
    )
    if baseline and baseline not in grid.arms:
        raise InputError(f"--baseline={baseline}: use one of {', '.join(grid.arms)}")
    rows = [_row(run, folder, plan.configured(config, run.overrides)) for run in runs]
    own = {(row["arm"], row["repeat"]): row for row in rows}
    finished = [at for at in own if own[at]["state"] == "finished"]
    found = {
        "source": config.data.source,
        "model": config.model.name,
        "repeats": grid.repeats,
        "runs": rows,
        "curves": {arm: _curve(grid, arm, folder) for arm in grid.arms},
        "compared": None,
        "incomparable": None,
    }
    if not finished:
        return found
    try:
        found["compared"] = compared = _compare(
            *(grid, finished, folder),
            baseline=grid.arms.index(baseline) if baseline else 0,
            **parts.bootstrap(config),
        )
    except InputError as error:  # What each run came to is worth a page without it.
        return found | {"incomparable": str(error)}
    waiting = sum(row["state"] == "unfinished" for row in rows)
    if waiting:
        why = f"{waiting} of {len(rows)} runs are unfinished"
        compared["best"] |= {"arm": None, "why": why}
    for arm, row in compared["arms"].items():
        ends = [at for at in finished if at[0] == arm]
        row["cost"] = {
            kind: _spread(own[at][kind] for at in ends)["estimate"]
            for kind in ("seconds", "memory")
        }
        reports = [_report(grid.run[at].folder(folder)) for at in ends]
        row["calibration_error"] = {
            side: _spread(_calibration_error(report, side) for report in reports)
            for side in ("before", "after")
        }
    return found


def mean_auroc(run: Run, sweep: Path) -> float | None:
    """Of a finished run's report."""
    return _report(run.folder(sweep))["mean"]["auroc"]["estimate"]


def _row(run: Run, sweep: Path, config: Config) -> dict:
    """What the page says of one run."""
    error, finished = plan.error(run, sweep), plan.is_finished(run, sweep, config)
    lines = journal.read(run.folder(sweep) / "metrics.jsonl")
    return {
        "name": run.name,
        "arm": run.arm,
        "repeat": run.repeat,
        "state": "failed" if error else "finished" if finished else "unfinished",
        "error": error,
        "auroc": mean_auroc(run, sweep) if finished else None,
        "seconds": lines[-1].get("seconds") if lines else None,
        "memory": max((line.get("memory", 0) for line in lines), default=0) or None,
    }


def _curve(grid: Grid, arm: str, sweep: Path) -> dict:
    """The validation AUROC by step, over the repeats that reached the step."""
    values: dict[int, list] = {}
    for repeat in grid.repeats:
        run = grid.run.get((arm, repeat))
        lines = journal.read(run.folder(sweep) / "metrics.jsonl") if run else []
        for line in lines:
            if line.get("validation_auroc") is not None:
                values.setdefault(line["step"], []).append(line["validation_auroc"])
    steps = sorted(values)
    kinds = {"mean": np.mean, "low": np.min, "high": np.max}
    curve = {k: [float(of(values[s])) for s in steps] for k, of in kinds.items()}
    return {"step": steps, **curve}


def _compare(
    grid: Grid, finished: list[tuple[str, str]], sweep: Path, **options
) -> dict:
    """Compares the finished runs, see arms.compare.

    Raises:
      InputError: see `_side_by_side`, or runs of other findings.
    """
    folders = {at: grid.run[at].folder(sweep) for at in finished}
    tasks = tuple(workdir.read_task(folders[finished[0]])["names"])
    tables = {at: compare.read(folders[at], SPLIT, tasks) for at in finished}
    runs = _side_by_side(grid, tables, folders, tasks, sweep)
    found = seeds.compare(runs, arms=grid.arms, tasks=tasks, **options)
    one = tables[finished[0]].index
    same = all(table.index.equals(one) for table in tables.values())
    return found | {"same_images": same}


def _side_by_side(
    grid: Grid,
    tables: dict[tuple[str, str], pd.DataFrame],
    folders: dict[tuple[str, str], Path],
    tasks: tuple[str, ...],
    sweep: Path,
) -> Runs:
    """What all finished runs say, from the tables of their predictions.

    Raises:
      InputError: arms of one repeat were judged on other images, or an image has
        another patient or label in another repeat.
    """
    first: dict[str, tuple[str, str]] = {}
    for at, table in tables.items():
        known = first.setdefault(at[1], at)
        compare.check(tables[known], table, tasks, (folders[known], folders[at]))
    truth = ["patient", *(f"{task}_label" for task in tasks)]
    every = pd.concat([tables[at][truth] for at in first.values()])
    every = every.groupby(level=0).agg(["min", "max"])
    lowest, highest = (every.xs(k, axis=1, level=1)[truth] for k in ("min", "max"))
    if not lowest.equals(highest):
        image = lowest.index[(lowest != highest).any(axis=1)][0]
        raise InputError(
            f"{sweep}: image {image} has another patient or label in some runs: compare "
            "runs of the same data"
        )
    shape = (len(grid.arms), len(grid.repeats), len(every), len(tasks))
    probability, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for (arm, repeat), table in tables.items():
        at = grid.arms.index(arm), grid.repeats.index(repeat)
        rows = every.index.get_indexer(table.index)
        label = table[truth[1:]].to_numpy(float)
        probability[(*at, rows)] = table[list(tasks)].to_numpy(np.float32)
        weight[(*at, rows)] = ~np.isnan(label)
    label = np.nan_to_num(lowest[truth[1:]].to_numpy(float))
    return Runs(probability, label, weight, lowest["patient"].to_numpy())


def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def _calibration_error(report: dict, side: str) -> float | None:
    """Of the probabilities before or after calibration, if the report says it."""
    found = (report.get("calibration") or {}).get("mean", {}).get(side)
    return found["calibration_error"]["estimate"] if found else None


def _spread(values) -> dict[str, float | None]:
    """{estimate, sd}: the mean of what is known, and the standard deviation of several."""
    known = [value for value in values if value is not None]
    return {
        "estimate": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }
