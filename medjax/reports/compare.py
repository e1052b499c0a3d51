"""Two runs compared -> one self-contained HTML page, and JSON."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.reports.card import seen
from medjax.reports.page import (
    ACCENT,
    INK,
    SOFT,
    interval,
    label,
    probability,
    render,
    svg,
)

ALPHA = 0.05


def write(summary: dict, folder: Path) -> Path:
    """Writes against.html and against.json.

    Args:
      summary: `evaluation.comparison.compare`'s, and split, source, runs: two of
        {folder, model, imbalance}.
      folder: where to.

    Returns:
      The page's path.
    """
    (folder / "against.json").write_text(json.dumps(summary, indent=1))
    html = render(
        "against.html",
        found=summary,
        seen=seen(summary["split"]),
        verdicts=_verdicts(summary),
        forest=_forest(summary),
        probability=probability,
    )
    path = folder / "against.html"
    path.write_text(html)
    return path


def show(summary: dict) -> None:
    """Prints the difference of the AUROC of every task, and its p after Holm."""
    table = Table(title=" against ".join(run["folder"] for run in summary["runs"]))
    for heading in ("", "AUROC", "against", "difference", "p (Holm)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for task, found in summary["tasks"].items():
        table.add_row(label(task), *_cells(found), probability(found["holm"]))
    table.add_section()
    table.add_row("mean", *_cells({"metrics": summary["mean"]}), "")
    Console(soft_wrap=True).print(table)


def _cells(found: dict) -> list[str]:
    auroc = found["metrics"]["auroc"]
    both = (auroc[run] for run in ("one", "other"))
    texts = ["–" if value is None else f"{value:.3f}" for value in both]
    return [*texts, interval(auroc["difference"])]


def _verdicts(summary: dict) -> list[tuple[str, str]]:
    """(good or bad, sentence) on the findings whose AUROC differs after Holm."""
    sides: dict[str, list] = {"good": [], "bad": []}
    tested = 0
    for task, found in summary["tasks"].items():
        tested += found["holm"] is not None
        if found["holm"] is not None and found["holm"] < ALPHA:
            better = found["metrics"]["auroc"]["difference"]["estimate"] > 0
            sides["good" if better else "bad"].append(label(task))
    sentences = [
        (side, f"{name} has the higher AUROC for {', '.join(sides[side])}.")
        for side, name in (("good", "A"), ("bad", "B"))
        if sides[side]
    ]
    if not tested:
        return [("", "No finding could be tested.")]
    return sentences or [("", "No finding's AUROC differs beyond chance.")]


def _forest(summary: dict) -> str:
    """The differences of the AUROC with their intervals, a line a task."""
    rows = [(label(k), one["metrics"]) for k, one in summary["tasks"].items()]
    rows = [*rows, ("Mean", summary["mean"])]
    rows = [(k, m["auroc"]["difference"]) for k, m in rows]
    rows = [(name, one) for name, one in rows if one["low"] is not None]
    figure = Figure(figsize=(7.2, 0.8 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=SOFT, lw=0.8, ls=":")
    for y, (name, one) in enumerate(rows):
        colour = INK if name == "Mean" else ACCENT
        axes.plot([one["low"], one["high"]], [y, y], color=colour, lw=1.6)
        axes.plot(one["estimate"], y, "o", color=colour, ms=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, A − B", fontsize=8)
    return svg(figure)
