"""Comparisons -> a page, JSON and CSV: two runs, or the arms of a sweep."""

from pathlib import Path

import pandas as pd

from medjax.files import write_json, write_table
from medjax.reports import charts, page
from medjax.reports.page import interval, label, number, p_value, show_table, within

ALPHA = 0.05
ESTIMATE = ("estimate", "low", "high", "sd")  # Columns of sweep.csv.
PREPARED = (
    "The runs differ in {}: a difference is that of their models and of how the same "
    "images were prepared."
)
DIFFERENCE = (*ESTIMATE, "patients", "p", "holm")


def write_pair(results: dict, folder: Path) -> Path:
    """Writes against.html and against.json to the folder, and returns the page's path.

    The results are of tasks.comparison.pair, of findings or of masks; with split, source,
    the `primary` metric, which is tested, and runs: two of {folder, model, imbalance}.
    """
    write_json(folder / "against.json", results)
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
        what=_what(results),
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
    """Prints the difference of the primary metric of every task, and its p after Holm,
    and that of the mean, which is tested alone."""
    metric = results["primary"]
    tasks = [
        (label(task), row["metrics"], p_value(row["holm"]))
        for task, row in results["tasks"].items()
    ]
    rows = []
    mean = "mean", results["mean"], p_value(results["p"])
    for name, metrics, p in (*tasks, mean):
        pair = metrics[metric]
        both = (number(pair[run], 3) for run in ("one", "other"))
        rows.append((name, *both, interval(pair["difference"]), p))
    title = " against ".join(run["folder"] for run in results["runs"])
    headings = ("", label(metric), "against", "difference", "p")
    show_table(title, headings, rows, summary=True)
    for _, sentence in _of_preparation(results):
        print(f"note: {sentence}")


def _verdicts(results: dict) -> list[tuple[str, str]]:
    """(good or bad, sentence) on the mean, and on the tasks that differ after Holm; and
    on images that were prepared otherwise."""
    metric = results["primary"]
    gaps = {
        label(task): row["metrics"][metric]["difference"] | {"holm": row["holm"]}
        for task, row in results["tasks"].items()
    }
    sentences = [_of_mean(results)]
    sentences += [
        (side, f"{run} has the higher {label(metric)} for {', '.join(names)}.")
        for side, run, names in zip(("good", "bad"), "AB", _differing(gaps))
        if names
    ]
    if all(gap["holm"] is None for gap in gaps.values()):
        sentences.append(("", f"No {_what(results)} could be tested."))
    elif len(sentences) == 1:
        why = f"a difference of the {label(metric)} is not ruled out for any of them"
        what = f"{_what(results)}s"
        sentences.append(("", f"Of the {what} alone none is significant; {why}."))
    return sentences + _of_preparation(results)


def _of_preparation(results: dict) -> list[tuple[str, str]]:
    """The verdict on images that the runs prepared otherwise, if they did."""
    fields = results.get("prepared")
    return [("", PREPARED.format(", ".join(fields)))] if fields else []


def _what(results: dict) -> str:
    """What the compared numbers are of."""
    return "region" if results["primary"] == "dice" else "finding"


def _of_mean(results: dict) -> tuple[str, str]:
    """(good or bad, sentence) on the primary test, that of the mean."""
    name = f"mean {within(results['primary'])}"
    gap, p = results["mean"][results["primary"]]["difference"], results["p"]
    if p is None:
        return "", f"The {name} could not be tested."
    numbers = f"{interval(gap, sign=True)}, {p_value(p, named=True)}"
    if p < ALPHA:
        side, run = ("good", "A") if gap["estimate"] > 0 else ("bad", "B")
        return side, f"{run} has the higher {name}: A − B is {numbers}."
    return "", f"The {name} may be the same: A − B is {numbers}."


def _differing(gaps: dict[str, dict]) -> tuple[list[str], list[str]]:
    """The names of the differences that are significant: above 0, and below."""
    names = [name for name, gap in gaps.items() if _significant(gap)]
    higher = [name for name in names if gaps[name]["estimate"] > 0]
    return higher, [name for name in names if gaps[name]["estimate"] < 0]


def _significant(gap: dict) -> bool:
    """Whether a difference is significant after Holm."""
    return gap["holm"] is not None and gap["holm"] < ALPHA


def write_sweep(results: dict, folder: Path) -> Path:
    """Writes sweep.html, sweep.json and sweep.csv of what sweep.gather returns."""
    write_json(folder / "sweep.json", results)
    compared, metric = results["compared"], results["primary"]
    baseline = compared["arms"][compared["baseline"]] if compared else {"mean": []}
    metrics = sorted(baseline["mean"], key=lambda name: name != metric)
    _write_csv(compared["arms"] if compared else {}, metrics, folder / "sweep.csv")
    return page.write(
        folder / "sweep.html",
        "sweep.html",
        results=results,
        compared=compared,
        verdicts=[verdict(results), *_of_preparation(compared or {})],
        others=metrics[1:],
        forests=_forests(compared, metric) if compared else [],
        curves=_curves(results["curves"], label(metric)),
        significant=_significant,
        alpha=ALPHA,
    )


def show_sweep(results: dict) -> None:
    """Prints every arm's mean primary metric and its difference, and the verdicts."""
    metric = results["primary"]
    arms = results["compared"]["arms"] if results["compared"] else {}
    width, repeats = max(map(len, arms), default=0), len(results["repeats"])
    for arm, row in arms.items():
        mean, text = row["mean"][metric], "baseline"
        if row["difference"]:
            gap = row["difference"]["mean"][metric]
            holm = f"{p_value(gap['holm'], True)} after Holm"
            text = f"{interval(gap, sign=True)}  {holm}"
        of = "" if row["seeds"] == repeats else f" of {repeats}"
        seeds = f"{row['seeds']}{of} seeds, SD {number(mean['sd'], 3)}"
        print(f"{arm:{width}}  {interval(mean)}  {seeds}  {text}")
    for run in results["runs"]:
        if run["error"]:
            print(f"failed: {run['name']}: {run['error']}")
    for _, sentence in (verdict(results), *_of_preparation(results["compared"] or {})):
        print(sentence)


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
    gaps = {
        arm: row["difference"]["mean"][metric]
        for arm, row in results["compared"]["arms"].items()
        if row["difference"]
    }
    baseline = results["compared"]["baseline"]
    differing = [
        f"{side} than {baseline}: {', '.join(names)}"
        for side, names in zip(("higher", "lower"), _differing(gaps))
        if names
    ]
    if differing:
        after = "; ".join(differing)
        return "", f"No arm is the best: {best['why']}. After Holm, {after}."
    unfinished = any(run["state"] == "unfinished" for run in results["runs"])
    yet = " yet" if unfinished else ""
    return "", f"No difference shown{yet}: {best['why']}."


def _forests(compared: dict, metric: str) -> list[tuple[str, dict]]:
    """(caption, chart) of every arm's mean metric and of its difference."""
    means, gaps = [], []
    for arm, row in compared["arms"].items():
        name, mean = arm.replace(",", ",\n"), row["mean"][metric]
        seeds = [value for value in mean["each"] if value is not None]
        if mean["low"] is not None:
            means.append(charts.Row(name, mean, dots=seeds))
        gap = row["difference"] and row["difference"]["mean"][metric]
        if gap and gap["low"] is not None:
            gaps.append(charts.Row(name, gap, "" if _significant(gap) else "ink"))
    less = f"{label(metric)} minus that of {compared['baseline']}"
    forests = {
        "Mean over the seeds with its interval by patients; grey: the seeds": charts.forest(
            means, title=f"{label(metric)} of every arm", name=f"mean {within(metric)}"
        ),
        "Difference, by patients and seeds; blue: significant after Holm": charts.forest(
            gaps, title="Differences", name=less, reference=0
        ),
    }
    return [(caption, chart) for caption, chart in forests.items() if chart]


def _curves(curves: dict, score: str) -> dict[str, dict]:
    """{arm: chart} of the validation score by step, the other arms in grey.

    One step makes no curve.
    """
    curves = {arm: curve for arm, curve in curves.items() if len(curve["step"]) > 1}
    if not curves:
        return {}
    low = min(min(curve["low"]) for curve in curves.values()) - 0.02
    high = max(max(curve["high"]) for curve in curves.values()) + 0.02
    last = max(curve["step"][-1] for curve in curves.values())
    frame = charts.Frame(charts.SQUARE_SIZE, x=(0, last), y=(low, high))
    lines = {
        arm: charts.line(frame, curve["step"], curve["mean"])
        for arm, curve in curves.items()
    }
    pictures = {}
    for arm, curve in curves.items():
        band = charts.area(frame, *(curve[k] for k in ("step", "low", "high")))
        others = [("faint", line) for line in lines.values()]
        pictures[arm] = charts.chart(
            frame,
            title=f"Validation {score} of {arm} by step",
            labels=("step", f"validation {score}"),
            lines=[*others, ("band", band), ("curve", lines[arm])],
            points=[("point s0", *xy) for xy in zip(curve["step"], curve["mean"])],
        )
    return pictures


def _write_csv(arms: dict, metrics: list[str], path: Path) -> None:
    """Writes one row an arm, task (or their mean, or a group's) and metric."""
    rows = []
    for arm, row in arms.items():
        gaps = row["difference"] or {"mean": {}, "groups": {}, "tasks": {}}
        parts = {"mean": (row["mean"], gaps["mean"])}
        for kind, word in (("groups", "mean of the {}"), ("tasks", "{}")):
            for name, values in row[kind].items():
                parts[word.format(name)] = values, gaps[kind].get(name, {})
        rows += [
            [arm, task, metric, row["seeds"]]
            + [values[metric][k] for k in ESTIMATE]
            + [gaps.get(metric, {}).get(k) for k in DIFFERENCE]
            for task, (values, gaps) in parts.items()
            for metric in metrics
        ]
    between = [f"difference_{k}" for k in DIFFERENCE]
    columns = ["arm", "task", "metric", "seeds", *ESTIMATE, *between]
    write_table(path, pd.DataFrame(rows, columns=columns, dtype=object))
