"""The arms of a sweep -> one self-contained HTML page, JSON and CSV."""

import csv
import functools
import json
from pathlib import Path

from medjax.reports import charts, page
from medjax.reports.page import interval, label, number, p_value, within

ALPHA = 0.05
GIB = 2**30


def write(found: dict, folder: Path) -> Path:
    """Writes sweep.html, sweep.json and sweep.csv.

    Args:
      found: of commands.sweep.gather; `primary` is the metric that is tested.
      folder: where to.

    Returns:
      The page's path.
    """
    (folder / "sweep.json").write_text(json.dumps(found, indent=1))
    _write_csv(found, folder / "sweep.csv")
    compared = found["compared"]
    return page.write(
        folder / "sweep.html",
        "sweep.html",
        found=found,
        compared=compared,
        verdict=verdict(found),
        states=_states(found),
        others=_metrics(found)[1:],
        forest=_forest(compared, found["primary"]) if compared else [],
        curves=_curves(found["curves"], label(found["primary"])),
        duration=duration,
        gib=_gib,
        shown=_shown,
        seeds=functools.partial(_seeds, found=found),
        alpha=ALPHA,
    )


def show(found: dict) -> None:
    """Prints every arm's mean primary metric and its difference, and the verdict."""
    metric = found["primary"]
    lines = [run["name"] + ": " + run["error"] for run in found["runs"] if run["error"]]
    arms = found["compared"]["arms"] if found["compared"] else {}
    width = max(map(len, arms), default=0)
    for arm, row in arms.items():
        mean, gap = row["mean"][metric], row["difference"]
        gap = gap and gap["mean"][metric]
        text = "baseline"
        if gap:
            text = (
                f"{interval(gap, sign=True)}  {p_value(gap['holm'], True)} after Holm"
            )
        seeds = f"{_seeds(row, found)} seeds, SD {number(mean['sd'], 3)}"
        print(f"{arm:{width}}  {interval(mean)}  {seeds}  {text}")
    print(*(f"failed: {line}" for line in lines), verdict(found)[1], sep="\n")


def verdict(found: dict) -> tuple[str, str]:
    """(class, sentences): the best arm, or what is shown where none is."""
    if found["incomparable"]:
        return "bad", f"The runs can't be compared: {found['incomparable']}"
    if not found["compared"]:
        return "", "No run is finished: there is nothing to compare."
    best, metric = found["compared"]["best"], found["primary"]
    apart = _apart(found["compared"], metric)
    if best["arm"] is not None:
        named = f"{best['arm']} has the highest mean {within(metric)}"
        return "good", f"{named}: {best['why']}."
    if apart:
        return "", f"No arm is the best: {best['why']}. After Holm, {apart}."
    if _states(found)["unfinished"]:
        return "", f"No difference shown yet: {best['why']}."
    return "", f"No difference shown: {best['why']}."


def _metrics(found: dict) -> list[str]:
    """The metrics of the comparison, the primary one first."""
    if not found["compared"]:
        return [found["primary"]]
    row = next(iter(found["compared"]["arms"].values()))
    return sorted(row["mean"], key=lambda metric: metric != found["primary"])


def _apart(compared: dict, metric: str) -> str:
    """Which arms differ from the baseline after Holm; '' where none does."""
    gaps = {
        arm: row["difference"]["mean"][metric]
        for arm, row in compared["arms"].items()
        if row["difference"] and _shown(row["difference"]["mean"][metric])
    }
    sides = []
    for side, sign in (("higher than", 1), ("lower than", -1)):
        names = [arm for arm, gap in gaps.items() if sign * gap["estimate"] > 0]
        if names:
            sides.append(f"{side} {compared['baseline']}: {', '.join(names)}")
    return "; ".join(sides)


def _seeds(row: dict, found: dict) -> str:
    """How many seeds an arm has, '4 of 5' where it lacks one."""
    number, all_ = row["seeds"], len(found["repeats"])
    return str(number) if number == all_ else f"{number} of {all_}"


def duration(seconds: float | None) -> str:
    """Prints '48 s', '12 min 5 s' or '3 h 20 min'."""
    if seconds is None:
        return page.DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _gib(size: float | None) -> str:
    return page.DASH if size is None else f"{size / GIB:.1f} GiB"


def _shown(gap: dict | None) -> bool:
    """Tells whether a difference is significant after Holm."""
    return bool(gap) and gap.get("holm") is not None and gap["holm"] < ALPHA


def _states(found: dict) -> dict[str, int]:
    """Counts the runs in each state."""
    states = [run["state"] for run in found["runs"]]
    return {k: states.count(k) for k in ("finished", "unfinished", "failed")}


def _forest(compared: dict, metric: str) -> list[tuple[str, dict]]:
    """Returns (caption, chart) of every arm's mean metric and of its difference."""
    means, gaps = [], []
    for arm, row in compared["arms"].items():
        name, mean = arm.replace(",", ",\n"), row["mean"][metric]
        seeds = [x for x in mean["each"] if x is not None]
        if mean["low"] is not None:
            means.append(charts.Row(name, mean, dots=seeds))
        gap = row["difference"] and row["difference"]["mean"][metric]
        if gap and gap["low"] is not None:
            gaps.append(charts.Row(name, gap, "" if _shown(gap) else "ink"))
    called = label(metric)
    less = f"{called} minus that of {compared['baseline']}"
    drawn = [
        (
            "Mean over the seeds with its interval by patients; grey: the seeds",
            charts.forest(
                means, title=f"{called} of every arm", name=f"mean {within(metric)}"
            ),
        ),
        (
            "Difference, by patients and seeds; blue: significant after Holm",
            charts.forest(gaps, title="Differences", name=less, reference=0),
        ),
    ]
    return [(caption, chart) for caption, chart in drawn if chart]


def _curves(curves: dict, called: str) -> dict[str, dict]:
    """Returns {arm: chart} of the validation metric by step, the other arms in grey."""
    curves = {arm: curve for arm, curve in curves.items() if curve["step"]}
    low = min((min(curve["low"]) for curve in curves.values()), default=0) - 0.02
    high = max((max(curve["high"]) for curve in curves.values()), default=1) + 0.02
    last = max((curve["step"][-1] for curve in curves.values()), default=1)
    frame = charts.Frame(charts.SQUARE, x=(0, last), y=(low, high))
    others = [
        ("faint", charts.line(frame, curve["step"], curve["mean"]))
        for curve in curves.values()
    ]
    drawn = {}
    for arm, curve in curves.items():
        step, mean = curve["step"], curve["mean"]
        drawn[arm] = charts.chart(
            frame,
            title=f"Validation {called} of {arm} by step",
            labels=("step", f"validation {called}"),
            ticks=(charts.rounded(*frame.x, most=4), charts.rounded(low, high)),
            lines=[
                *others,
                ("band", charts.area(frame, step, curve["low"], curve["high"])),
                ("curve", charts.line(frame, step, mean)),
            ],
            points=[("point s0", *xy) for xy in zip(step, mean, strict=True)],
        )
    return drawn


def _write_csv(found: dict, path: Path) -> None:
    """One row an arm, task (or their mean) and metric."""
    own, metrics_of = ("estimate", "low", "high", "sd"), _metrics(found)
    gap = (*own, "patients", "p", "holm")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        between = [f"difference_{name}" for name in gap]
        writer.writerow(["arm", "task", "metric", "seeds", *own, *between])
        for arm, row in (found["compared"] or {"arms": {}})["arms"].items():
            difference = row["difference"] or {"mean": {}, "tasks": {}}
            parts = {"mean": row["mean"], **row["tasks"]}
            gaps = {"mean": difference["mean"], **difference["tasks"]}
            for task, metrics in parts.items():
                for metric in metrics_of:
                    other = gaps.get(task, {}).get(metric, {})
                    writer.writerow(
                        [
                            *(arm, task, metric, row["seeds"]),
                            *(metrics[metric][name] for name in own),
                            *(other.get(name) for name in gap),
                        ]
                    )
