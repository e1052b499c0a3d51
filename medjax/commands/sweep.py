"""The command `sweep`: trains the runs that aren't finished, and compares them all."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax import tasks
from medjax.commands import arms, executors, train_population
from medjax.commands.arms import SweepRun
from medjax.config import Config, affecting, read_config
from medjax.errors import InputError, check_choice
from medjax.evaluation import bootstrap, seeds
from medjax.files import read_json
from medjax.reports import comparison_page, page
from medjax.tasks import comparison, parts
from medjax.tasks.check import check_ranges
from medjax.training import journal

EXECUTORS = ("local", "population", "slurm")


def sweep(
    config: Config,
    overrides: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    executor: str = "local",
    baseline: str = "",
    slurm: Mapping[str, Any] | None = None,
) -> dict:
    """Trains every run that isn't finished, and compares them all.

    Args:
      config: what all runs have in common.
      overrides: of each run, see `arms.runs`.
      folder: of the sweep; arms/<name>/ are ordinary runs, and beside them come
        sweep.html, sweep.json and sweep.csv. The same call resumes the sweep: finished
        runs stay, stopped ones go on, failed ones are tried again.
      executor: 'local', 'population' or 'slurm', see executors.py.
      baseline: the arm that the others are compared with; '': the first.
      slurm: options of submitit's executor.

    Returns what sweep.json holds, see `gather`.

    Raises:
      InputError: a mistake in the overrides or the data, before anything runs.
    """
    check_choice("--executor", executor, EXECUTORS)
    if slurm and executor != "slurm":
        raise InputError("--slurm: only goes with --executor=slurm")
    runs = arms.runs(config, overrides)
    names = list(dict.fromkeys(run.arm for run in runs))
    check_choice("--baseline", baseline or names[0], names)
    arms.claim(folder, config, runs)
    left = [
        run
        for run in runs
        if arms.error(run, folder) is not None or not arms.is_finished(run, folder)
    ]
    done = len(runs) - len(left)
    print(f"sweep: {len(runs)} runs of {len(names)} arms, {done} of them finished")
    if left:
        here = executor == "population"
        configs = {run.name: arms.configured(config, run.overrides) for run in left}
        if here:
            train_population.use_cores([*configs.values()])
        executors.prepare(folder, _to_prepare(configs), here=here)

    def say(run: SweepRun) -> None:
        nonlocal done
        done += 1
        outcome = _outcome(run, folder, tasks.of(config).comparison)
        print(f"{done}/{len(runs)} {run.name}: {outcome}", flush=True)

    run_all = getattr(executors, executor)
    if left and not run_all(folder, left, say, **(slurm or {})):
        print("stopped: the same command goes on from here")
    results = gather(folder, baseline=baseline)
    path = comparison_page.write_sweep(results, folder)
    comparison_page.show_sweep(results)
    print(f"sweep: {path}")
    return results


def _to_prepare(left: Mapping[str, Config]) -> list[str]:
    """The first run of all that read the same records.

    A run with a value that can't be needs no records, and says so itself.
    """
    first = {}
    for name, config in left.items():
        with contextlib.suppress(InputError):
            check_ranges(config)
            first.setdefault(json.dumps(affecting(config, "records")), name)
    return [*first.values()]


def _outcome(run: SweepRun, folder: Path, how: comparison.Kind) -> str:
    """One line for the terminal."""
    row = _row(run, folder, how.primary)
    if row["state"] == "failed":
        return f"failed: {row['error']}"
    if row["state"] == "unfinished":
        return "stopped"
    score = row[how.primary]
    text = "undefined" if score is None else f"{score:.3f}"
    return f"mean {page.label(how.primary)} {text}"


def gather(folder: Path, *, baseline: str = "") -> dict:
    """All that the page of a sweep shows.

    Returns:
      source, model, repeats; primary: the metric that is tested; runs: see `_row`;
      curves: {arm: see `_curve`}; compared: see `_compare`, with the cost of each arm's
      finished runs; None where no run is finished, or where `incomparable` gives the
      reason.
    """
    config, runs = arms.read(folder)
    how = tasks.of(config).comparison
    names = tuple(dict.fromkeys(run.arm for run in runs))
    repeats = tuple(dict.fromkeys(run.repeat for run in runs))
    rows = [_row(run, folder, how.primary) for run in runs]
    results = {
        **{name: parts.about(config)[name] for name in ("source", "model")},
        "primary": how.primary,
        "repeats": repeats,
        "runs": rows,
        "curves": {
            arm: _curve([r for r in runs if r.arm == arm], folder, how.primary)
            for arm in names
        },
        "compared": None,
        "incomparable": None,
    }
    finished = {
        (names.index(run.arm), repeats.index(run.repeat)): run.folder(folder)
        for run, row in zip(runs, rows, strict=True)
        if row["state"] == "finished"
    }
    if not finished:
        return results
    number = names.index(baseline) if baseline else 0
    try:
        compared = _compare(config, finished, names, len(repeats), number)
    except InputError as error:  # What each run came to is worth a page without it.
        return results | {"incomparable": str(error)}
    waiting = sum(row["state"] == "unfinished" for row in rows)
    if waiting:
        why = f"{waiting} of {len(rows)} runs are unfinished"
        compared["best"] |= {"arm": None, "why": why}
    for arm, row in compared["arms"].items():
        ended = [r for r in rows if r["arm"] == arm and r["state"] == "finished"]
        row["cost"] = {
            kind: _spread(r[kind] for r in ended)["estimate"]
            for kind in ("seconds", "memory")
        }
    return results | {"compared": compared}


def _compare(
    config: Config,
    folders: dict[tuple[int, int], Path],
    names: tuple[str, ...],
    repeats: int,
    baseline: int,
) -> dict:
    """Compares finished runs, {(arm, repeat): folder}.

    Returns films, patients, replicates, same_images (whether all seeds were tested on
    the same), prepared (fields of `data` in which the runs prepared the same images
    otherwise) and what seeds.compare returns, with each arm's calibration_error.
    """
    how, options = tasks.of(config).comparison, parts.bootstrap(config)
    check_data(folders.values())
    kinds = [how] * len(folders)
    findings, tables = comparison.read([*folders.values()], kinds, "test")
    first, *others = tables
    tables = dict(zip(folders, tables, strict=True))
    shape = (len(names), repeats)
    grid = comparison.side_by_side(tables, shape, findings, folders, how)
    patients = len(np.unique(grid.patient))
    reports = {at: read_json(path / "report.json") for at, path in folders.items()}
    compared = {
        "films": len(grid.truth),
        "patients": patients,
        "replicates": options["replicates"],
        "same_images": all(table.index.equals(first.index) for table in others),
        "prepared": comparison.prepared_otherwise(map(read_config, folders.values())),
        **seeds.compare(
            how.measure(grid, **options),
            arms=names,
            tasks=findings,
            primary=how.primary,
            patients=patients,
            baseline=baseline,
            images=_trained_on(reports.values(), findings),
        ),
    }
    for a, arm in enumerate(names):
        ours = [report for at, report in reports.items() if at[0] == a]
        compared["arms"][arm]["calibration_error"] = _calibration(how, grid, a, ours)
    return compared


def _trained_on(reports: Iterable[dict], findings: tuple[str, ...]) -> np.ndarray:
    """[T], the training images with each finding, on average over the runs."""
    sides = [report["cohort"]["sides"]["train"]["tasks"] for report in reports]
    return np.mean(
        [[side[name]["positives"] for name in findings] for side in sides], 0
    )


def _calibration(
    how: comparison.Kind, grid: comparison.ArmsBySeeds, arm: int, reports: list[dict]
):
    """An arm's calibration error, {} where it has none.

    `before` is the mean over the runs, uncalibrated, and its SD; `used` is of the
    probabilities that all other numbers are of: its interval by patients over all runs,
    and the SD of the runs' own.
    """
    if how.calibration is None or not reports:
        return {}
    errors = [report["calibration"]["mean"] for report in reports]
    before, used = (
        [e[side]["calibration_error"]["estimate"] for e in errors if e[side]]
        for side in ("before", "after")
    )
    together = bootstrap.as_json(how.calibration(grid, arm))
    used = together | {"sd": _spread(used or before)["sd"]}
    return {"before": _spread(before), "used": used}


def check_data(folders: Iterable[Path]) -> None:
    """Refuses runs whose data were prepared alike, and changed between them."""
    first: dict[str, tuple[dict, Path]] = {}
    for folder in folders:
        alike = json.dumps(affecting(read_config(folder), "records"))
        data = read_json(folder / "provenance.json")["data"]
        before, other = first.setdefault(alike, (data, folder))
        if data != before:
            raise InputError(
                f"{other} and {folder}: the data changed between these runs: remove the "
                "folders of the older ones, and they are trained again"
            )


def _row(run: SweepRun, sweep: Path, metric: str) -> dict:
    """A run on the page: its state, its mean score over the tasks, and its cost."""
    error, finished = arms.error(run, sweep), arms.is_finished(run, sweep)
    folder = run.folder(sweep)
    lines = journal.read(folder / "metrics.jsonl")
    mean = read_json(folder / "report.json")["mean"] if finished else {}
    return {
        "name": run.name,
        "arm": run.arm,
        "repeat": run.repeat,
        "state": "failed" if error else "finished" if finished else "unfinished",
        "error": error,
        metric: mean[metric]["estimate"] if finished else None,
        "seconds": lines[-1].get("seconds") if lines else None,
        "memory": max((line.get("memory", 0) for line in lines), default=0) or None,
    }


def _curve(runs: list[SweepRun], sweep: Path, metric: str) -> dict:
    """An arm's validation score by step, over the repeats that reached the step."""
    values: dict[int, list] = {}
    for run in runs:
        for line in journal.read(run.folder(sweep) / "metrics.jsonl"):
            if line.get(f"validation_{metric}") is not None:
                values.setdefault(line["step"], []).append(line[f"validation_{metric}"])
    steps = sorted(values)
    kinds = {"mean": np.mean, "low": np.min, "high": np.max}
    curve = {k: [float(of(values[s])) for s in steps] for k, of in kinds.items()}
    return {"step": steps, **curve}


def _spread(values) -> dict[str, float | None]:
    """The mean of the values that aren't None, and their SD."""
    values = [value for value in values if value is not None]
    return {
        "estimate": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }
