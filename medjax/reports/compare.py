"""Comparisons -> a page, JSON and CSV: two runs, or the arms of a sweep."""

import functools
import json
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from medjax.reports import charts, page
from medjax.reports.page import interval, label, number, p_value, within

ALPHA = 0.05
ESTIMATE = ("estimate", "low", "high", "sd")  # Columns of sweep.csv.
DIFFERENCE = (*ESTIMATE, "patients", "p", "holm")


def write_pair(results: dict, folder: Path) -> Path:
    """Writes against.html and against.json, and returns the page's path.

    Args:
      results: of evaluation.compare, of findings or of masks; with split, source, the
        `primary` metric, which is tested, and runs: two of {folder, model, imbalance}.
      folder: where to.
    """
    (folder / "against.json").write_text(json.dumps(results, indent=1))
    metric = results["primary"]
    rows = {label(task): row["metrics"] for task, row in results["tasks"].items()}
    forest = [
        charts.Row(name, row[metric]["difference"], "ink" if name == "Mean" else "")
        for name, row in (rows | {"Mean": results["mean"]}).items()
        if row[metric]["difference"]["low"] is not None
    ]
    return page.write(
        folder / "against.html",
        "against.html",
        results=results,
        metrics=[*results["mean"]][:2],
        verdicts=_verdicts(results),
        forest=charts.forest(
            forest,
            title=f"Differences of the {label(metric)} with their intervals",
            name=f"{label(metric)}, A − B",
            reference=0,
        ),
    )


def show_pair(results: dict) -> None:
    """Prints the difference of the primary metric of every task, and its p after Holm."""
    metric = results["primary"]
    table = Table(title=" against ".join(run["folder"] for run in results["runs"]))
    for heading in ("", label(metric), "against", "difference", "p (Holm)"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = [
        (label(task), row["metrics"], p_value(row["holm"]))
        for task, row in results["tasks"].items()
    ]
    for name, metrics, p in (*rows, ("mean", results["mean"], "")):
        if name == "mean":
            table.add_section()
        pair = metrics[metric]
        both = (number(pair[run], 3) for run in ("one", "other"))
        table.add_row(name, *both, interval(pair["difference"]), p)
    Console(soft_wrap=True).print(table)


def _verdicts(results: dict) -> list[tuple[str, str]]:
    """(good or bad, sentence) on the tasks that differ after Holm."""
    metric = results["primary"]
    tested = {t: row for t, row in results["tasks"].items() if row["holm"] is not None}
    if not tested:
        return [("", "No finding could be tested.")]
    sentences = []
    for side, run, sign in (("good", "A", 1), ("bad", "B", -1)):
        higher = [
            label(task)
            for task, row in tested.items()
            if row["holm"] < ALPHA
            and sign * row["metrics"][metric]["difference"]["estimate"] > 0
        ]
        if higher:
            sentence = f"{run} has the higher {label(metric)} for {', '.join(higher)}."
            sentences.append((side, sentence))
    return sentences or [("", f"No finding's {label(metric)} differs beyond chance.")]


def write_sweep(results: dict, folder: Path) -> Path:
    """Writes sweep.html, sweep.json and sweep.csv, and returns the page's path.

    Args:
      results: of commands.sweep.gather; `primary` is the metric that is tested.
      folder: where to.
    """
    (folder / "sweep.json").write_text(json.dumps(results, indent=1))
    compared, metric = results["compared"], results["primary"]
    baseline = compared["arms"][compared["baseline"]] if compared else {"mean": []}
    metrics = sorted(baseline["mean"], key=lambda name: name != metric)
    _write_csv(compared["arms"] if compared else {}, metrics, folder / "sweep.csv")
    return page.write(
        folder / "sweep.html",
        "sweep.html",
        results=results,
        compared=compared,
        verdict=verdict(results),
        states=_states(results),
        others=metrics[1:],
        forests=_forests(compared, metric) if compared else [],
        curves=_curves(results["curves"], label(metric)),
        significant=_significant,
        seeds=functools.partial(_seeds, results),
        alpha=ALPHA,
    )


def show_sweep(results: dict) -> None:
    """Prints every arm's mean primary metric and its difference, and the verdict."""
    metric = results["primary"]
    arms = results["compared"]["arms"] if results["compared"] else {}
    width = max(map(len, arms), default=0)
    for arm, row in arms.items():
        mean, text = row["mean"][metric], "baseline"
        if row["difference"]:
            gap = row["difference"]["mean"][metric]
            holm = f"{p_value(gap['holm'], True)} after Holm"
            text = f"{interval(gap, sign=True)}  {holm}"
        seeds = f"{_seeds(results, row)} seeds, SD {number(mean['sd'], 3)}"
        print(f"{arm:{width}}  {interval(mean)}  {seeds}  {text}")
    for run in results["runs"]:
        if run["error"]:
            print(f"failed: {run['name']}: {run['error']}")
    print(verdict(results)[1])


def verdict(results: dict) -> tuple[str, str]:
    """(class, sentences): the best arm, or what is shown where none is."""
    if results["incomparable"]:
        return "bad", f"The runs can't be compared: {results['incomparable']}"
    if not results["compared"]:
        return "", "No run is finished: there is nothing to compare."
    best, metric = results["compared"]["best"], results["primary"]
    if best["arm"] is not None:
        name = f"{best['arm']} has the highest mean {within(metric)}"
        return "good", f"{name}: {best['why']}."
    if differing := _differing(results["compared"], metric):
        return "", f"No arm is the best: {best['why']}. After Holm, {differing}."
    yet = " yet" if _states(results)["unfinished"] else ""
    return "", f"No difference shown{yet}: {best['why']}."


def _differing(compared: dict, metric: str) -> str:
    """Which arms differ from the baseline after Holm; '' where none does."""
    gaps = {
        arm: row["difference"]["mean"][metric]
        for arm, row in compared["arms"].items()
        if row["difference"] and _significant(row["difference"]["mean"][metric])
    }
    sides = []
    for side, sign in (("higher", 1), ("lower", -1)):
        names = [arm for arm, gap in gaps.items() if sign * gap["estimate"] > 0]
        if names:
            sides.append(f"{side} than {compared['baseline']}: {', '.join(names)}")
    return "; ".join(sides)


def _seeds(results: dict, row: dict) -> str:
    """How many seeds an arm has, '4 of 5' where it lacks one."""
    number, every = row["seeds"], len(results["repeats"])
    return str(number) if number == every else f"{number} of {every}"


def _significant(gap: dict) -> bool:
    """Tells whether a difference is significant after Holm."""
    return gap["holm"] is not None and gap["holm"] < ALPHA


def _states(results: dict) -> dict[str, int]:
    """Counts the runs in each state."""
    states = [run["state"] for run in results["runs"]]
    return {k: states.count(k) for k in ("finished", "unfinished", "failed")}


def _forests(compared: dict, metric: str) -> list[tuple[str, dict]]:
    """Returns (caption, chart) of every arm's mean metric and of its difference."""
    means, gaps = [], []
    for arm, row in compared["arms"].items():
        name, mean = arm.replace(",", ",\n"), row["mean"][metric]
        seeds = [value for value in mean["each"] if value is not None]
        if mean["low"] is not None:
            means.append(charts.Row(name, mean, dots=seeds))
        gap = row["difference"] and row["difference"]["mean"][metric]
        if gap and gap["low"] is not None:
            gaps.append(charts.Row(name, gap, "" if _significant(gap) else "ink"))
    title, of = f"{label(metric)} of every arm", f"mean {within(metric)}"
    less = f"{label(metric)} minus that of {compared['baseline']}"
    forests = {
        "Mean over the seeds with its interval by patients; grey: the seeds": (
            charts.forest(means, title=title, name=of)
        ),
        "Difference, by patients and seeds; blue: significant after Holm": (
            charts.forest(gaps, title="Differences", name=less, reference=0)
        ),
    }
    return [(caption, chart) for caption, chart in forests.items() if chart]


def _curves(curves: dict, score: str) -> dict[str, dict]:
    """Returns {arm: chart} of the validation score by step, the other arms in grey."""
    curves = {arm: curve for arm, curve in curves.items() if curve["step"]}
    if not curves:
        return {}
    low = min(min(curve["low"]) for curve in curves.values()) - 0.02
    high = max(max(curve["high"]) for curve in curves.values()) + 0.02
    last = max(curve["step"][-1] for curve in curves.values())
    frame = charts.Frame(charts.SQUARE, x=(0, last), y=(low, high))
    lines = {
        arm: charts.line(frame, curve["step"], curve["mean"])
        for arm, curve in curves.items()
    }
    return {
        arm: charts.chart(
            frame,
            title=f"Validation {score} of {arm} by step",
            labels=("step", f"validation {score}"),
            ticks=(charts.rounded(0, last, most=4), charts.rounded(low, high)),
            lines=[
                *(("faint", line) for line in lines.values()),
                (
                    "band",
                    charts.area(frame, *(curve[k] for k in ("step", "low", "high"))),
                ),
                ("curve", lines[arm]),
            ],
            points=[("point s0", *xy) for xy in zip(curve["step"], curve["mean"])],
        )
        for arm, curve in curves.items()
    }


def _write_csv(arms: dict, metrics: list[str], path: Path) -> None:
    """Writes one row an arm, task (or their mean) and metric."""
    rows = []
    for arm, row in arms.items():
        gaps = row["difference"] or {"mean": {}, "tasks": {}}
        parts = {"mean": (row["mean"], gaps["mean"])}
        for task, values in row["tasks"].items():
            parts[task] = values, gaps["tasks"].get(task, {})
        rows += [
            [arm, task, metric, row["seeds"]]
            + [values[metric][k] for k in ESTIMATE]
            + [gaps.get(metric, {}).get(k) for k in DIFFERENCE]
            for task, (values, gaps) in parts.items()
            for metric in metrics
        ]
    between = [f"difference_{k}" for k in DIFFERENCE]
    columns = ["arm", "task", "metric", "seeds", *ESTIMATE, *between]
    pd.DataFrame(rows, columns=columns, dtype=object).to_csv(path, index=False)
