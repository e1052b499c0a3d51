"""The arms of a sweep -> one self-contained HTML page, JSON and CSV."""

import csv
import functools
import json
from pathlib import Path

from matplotlib.figure import Figure

from medjax.reports.page import ACCENT, INK, SOFT, interval, probability, render, svg

METRICS = ("auroc", "average_precision", "brier")
ALPHA = 0.05
GIB = 2**30


def write(found: dict, folder: Path) -> Path:
    """Writes sweep.html, sweep.json and sweep.csv.

    Args:
      found: `sweeping.results.gather`'s.
      folder: where to.

    Returns:
      The page's path.
    """
    (folder / "sweep.json").write_text(json.dumps(found, indent=1))
    _write_csv(found, folder / "sweep.csv")
    compared = found["compared"]
    html = render(
        "sweep.html",
        found=found,
        compared=compared,
        verdict=verdict(found),
        states=_states(found),
        forest=_forest(compared) if compared else [],
        curves=_curves(found["curves"]),
        probability=probability,
        signed=signed,
        duration=duration,
        gib=_gib,
        digits=_digits,
        shown=_shown,
        seeds=functools.partial(_seeds, found=found),
        alpha=ALPHA,
    )
    path = folder / "sweep.html"
    path.write_text(html)
    return path


def show(found: dict) -> None:
    """Prints every arm's mean AUROC and its difference, and the verdict."""
    lines = [run["name"] + ": " + run["error"] for run in found["runs"] if run["error"]]
    arms = found["compared"]["arms"] if found["compared"] else {}
    width = max(map(len, arms), default=0)
    for arm, row in arms.items():
        auroc, gap = row["mean"]["auroc"], row["difference"]
        gap = gap and gap["mean"]["auroc"]
        text = "baseline"
        if gap:
            text = f"{signed(gap)}  p {probability(gap['holm'])} after Holm"
        seeds = f"{_seeds(row, found)} seeds, SD {_digits(auroc['sd'])}"
        print(f"{arm:{width}}  {interval(auroc)}  {seeds}  {text}")
    print(*(f"failed: {line}" for line in lines), verdict(found)[1], sep="\n")


def verdict(found: dict) -> tuple[str, str]:
    """(class, sentences): the best arm, or what is shown where none is."""
    if found["incomparable"]:
        return "bad", f"The runs can't be compared: {found['incomparable']}"
    if not found["compared"]:
        return "", "No run is finished: there is nothing to compare."
    best, apart = found["compared"]["best"], _apart(found["compared"])
    if best["arm"] is not None:
        return "good", f"{best['arm']} has the highest mean AUROC: {best['why']}."
    if apart:
        return "", f"No arm is the best: {best['why']}. After Holm, {apart}."
    if _states(found)["unfinished"]:
        return "", f"No difference shown yet: {best['why']}."
    return "", f"No difference shown: {best['why']}."


def _apart(compared: dict) -> str:
    """Which arms differ from the baseline after Holm; '' where none does."""
    gaps = {
        arm: row["difference"]["mean"]["auroc"]
        for arm, row in compared["arms"].items()
        if row["difference"] and _shown(row["difference"]["mean"]["auroc"])
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


def signed(gap: dict | None) -> str:
    """'+0.012 (-0.003 to +0.027)', or a dash where undefined."""
    if gap is None or gap["estimate"] is None:
        return "–"
    text = f"{gap['estimate']:+.3f}"
    if gap["low"] is None:
        return text
    return f"{text} ({gap['low']:+.3f} to {gap['high']:+.3f})"


def duration(seconds: float | None) -> str:
    """'48 s', '12 min 5 s', '3 h 20 min'."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size / GIB:.1f} GiB"


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shown(gap: dict | None) -> bool:
    """Whether a difference is one after Holm."""
    return bool(gap) and gap["holm"] is not None and gap["holm"] < ALPHA


def _states(found: dict) -> dict[str, int]:
    """How many runs are in each state."""
    states = [run["state"] for run in found["runs"]]
    return {k: states.count(k) for k in ("finished", "unfinished", "failed")}


def _forest(compared: dict) -> list[tuple[str, str]]:
    """(caption, picture): each arm's mean AUROC with its seeds, and its difference."""
    arms = compared["arms"]
    means, gaps = _panel(arms), _panel(arms)
    gaps.gca().axvline(0, color=SOFT, lw=0.8, ls=":")
    for y, row in enumerate(arms.values()):
        auroc = row["mean"]["auroc"]
        seeds = [x for x in auroc["each"] if x is not None]
        means.gca().plot(seeds, [y + 0.25] * len(seeds), "o", color=SOFT, ms=3)
        _whisker(means, y, auroc, ACCENT)
        gap = row["difference"] and row["difference"]["mean"]["auroc"]
        if gap:
            _whisker(gaps, y, gap, ACCENT if _shown(gap) else INK)
    means.gca().set_xlabel("mean AUROC", fontsize=8)
    gaps.gca().set_xlabel(f"AUROC minus that of {compared['baseline']}", fontsize=8)
    return [
        (
            "The mean over the seeds with its interval by patients; grey: seeds.",
            svg(means),
        ),
        ("The difference, by patients and seeds; blue: one after Holm.", svg(gaps)),
    ]


def _panel(arms: dict) -> Figure:
    """An empty figure with a line an arm, the first on top."""
    figure = Figure(figsize=(4.9, 0.9 + 0.36 * len(arms)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(arms)), [arm.replace(",", ",\n") for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    return figure


def _whisker(figure: Figure, y: int, value: dict, colour: str) -> None:
    if value["low"] is not None:
        axes = figure.gca()
        axes.plot([value["low"], value["high"]], [y, y], color=colour, lw=1.6)
        axes.plot(value["estimate"], y, "o", color=colour, ms=4.5)


def _curves(curves: dict) -> list[tuple[str, str]]:
    """(arm, picture): validation AUROC by step, among the other arms' means."""
    curves = {arm: curve for arm, curve in curves.items() if curve["step"]}
    low = min((min(curve["low"]) for curve in curves.values()), default=0)
    high = max((max(curve["high"]) for curve in curves.values()), default=1)
    pictures = []
    for arm, curve in curves.items():
        figure = Figure(figsize=(2.6, 1.9), layout="constrained")
        axes = figure.subplots()
        for other in curves.values():
            axes.plot(other["step"], other["mean"], color=SOFT, lw=0.7)
        steps, band = curve["step"], (curve["low"], curve["high"])
        axes.fill_between(steps, *band, color=ACCENT, alpha=0.2, lw=0)
        axes.plot(steps, curve["mean"], "o-", color=ACCENT, lw=1.5, ms=3)
        axes.set_ylim(low - 0.02, high + 0.02)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("validation AUROC", fontsize=8)
        pictures.append((arm, svg(figure)))
    return pictures


def _write_csv(found: dict, path: Path) -> None:
    """One row an arm, task (or their mean) and metric."""
    own = ("estimate", "low", "high", "sd")
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
                for metric in METRICS:
                    other = gaps.get(task, {}).get(metric, {})
                    writer.writerow(
                        [
                            *(arm, task, metric, row["seeds"]),
                            *(metrics[metric][name] for name in own),
                            *(other.get(name) for name in gap),
                        ]
                    )
