"""The arms of a sweep -> one self-contained HTML page, JSON and CSV."""

import csv
import json
import math
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.reports.drawing import (
    ACCENT,
    INK,
    SOFT,
    interval,
    probability,
    render,
    svg,
)

METRICS = ("auroc", "average_precision", "brier")
ALPHA = 0.05
COLOURS = (
    *("#0b6e8f", "#c25b12", "#5a4fa2", "#2c7a3f", "#b3261e"),
    *("#8a6d00", "#5c6f7c", "#a23b7c", "#1c2733", "#4a90d9"),
)
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
        forest=_forest(compared) if compared else "",
        curves=_curves(found["curves"]),
        probability=probability,
        signed=signed,
        duration=duration,
        gib=_gib,
        shown=_shown,
        alpha=ALPHA,
    )
    path = folder / "sweep.html"
    path.write_text(html)
    return path


def show(found: dict) -> None:
    """Prints every arm's mean AUROC and its difference, and the verdict."""
    console = Console(soft_wrap=True, highlight=False)
    if found["compared"]:
        table = Table()
        for heading in ("", "seeds", "AUROC", "SD of seeds", "difference", "p (Holm)"):
            table.add_column(heading, justify="left" if not heading else "right")
        for arm, row in found["compared"]["arms"].items():
            auroc = row["mean"]["auroc"]
            gap = row["difference"] and row["difference"]["mean"]["auroc"]
            table.add_row(
                arm,
                str(row["seeds"]),
                interval(auroc),
                _digits(auroc["sd"]),
                signed(gap) if gap else "baseline",
                probability(gap["holm"]) if gap else "",
            )
        console.print(table)
    for run in found["runs"]:
        if run["error"]:
            console.print(f"failed: {run['name']}: {run['error']}", markup=False)
    console.print(verdict(found)[1], markup=False)


def verdict(found: dict) -> tuple[str, str]:
    """(good or '', sentence): the best arm, or that no difference is shown."""
    if not found["compared"]:
        return "", "No run is finished: there is nothing to compare."
    best = found["compared"]["best"]
    if best["arm"] is None:
        return "", f"No difference shown: {best['why']}."
    return "good", f"{best['arm']} has the highest mean AUROC: {best['why']}."


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


def _forest(compared: dict) -> str:
    """Each arm's mean AUROC with its seeds, and its difference, side by side."""
    arms = compared["arms"]
    size = (9.4, 1.0 + 0.34 * len(arms))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvline(0, color=SOFT, lw=0.8, ls=":")
    for y, (arm, row) in enumerate(arms.items()):
        auroc = row["mean"]["auroc"]
        seeds = [x for x in auroc["each"] if x is not None]
        left.plot(seeds, [y + 0.22] * len(seeds), "o", color=SOFT, ms=3)
        if auroc["low"] is not None:
            left.plot([auroc["low"], auroc["high"]], [y, y], color=ACCENT, lw=1.6)
            left.plot(auroc["estimate"], y, "o", color=ACCENT, ms=4.5)
        gap = row["difference"] and row["difference"]["mean"]["auroc"]
        if gap and gap["low"] is not None:
            colour = ACCENT if _shown(gap) else INK
            right.plot([gap["low"], gap["high"]], [y, y], color=colour, lw=1.6)
            right.plot(gap["estimate"], y, "o", color=colour, ms=4.5)
    left.set_yticks(range(len(arms)), list(arms))
    left.invert_yaxis()
    left.set_xlabel("mean AUROC; grey: each seed", fontsize=8)
    right.set_xlabel(f"difference to {compared['baseline']}", fontsize=8)
    return svg(figure)


def _curves(curves: dict) -> str:
    """Validation AUROC over the steps, the mean and the span of the seeds."""
    curves = {arm: curve for arm, curve in curves.items() if curve["step"]}
    if not curves:
        return ""
    columns = min(len(curves), 4)
    rows = math.ceil(len(curves) / columns)
    size = (2.5 * columns + 0.6, 1.9 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for n, (panel, (arm, curve)) in enumerate(
        zip(panels, curves.items(), strict=False)
    ):
        for other in curves.values():
            panel.plot(other["step"], other["mean"], color=SOFT, lw=0.7)
        colour = COLOURS[n % len(COLOURS)]
        panel.fill_between(
            curve["step"], curve["low"], curve["high"], color=colour, alpha=0.2, lw=0
        )
        panel.plot(curve["step"], curve["mean"], "o-", color=colour, lw=1.5, ms=3)
        panel.set_title(arm, fontsize=7.5)
    for panel in panels[len(curves) :]:
        panel.remove()
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("validation AUROC", fontsize=8)
    return svg(figure)


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
