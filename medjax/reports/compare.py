"""Two runs compared -> one self-contained HTML page, and JSON."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medjax.reports import charts, page
from medjax.reports.page import interval, label, number, p_value

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
    return page.write(
        folder / "against.html",
        "against.html",
        found=summary,
        verdicts=_verdicts(summary),
        forest=_forest(summary),
    )


def show(summary: dict) -> None:
    """Prints the difference of the AUROC of every task, and its p after Holm."""
    table = Table(title=" against ".join(run["folder"] for run in summary["runs"]))
    for heading in ("", "AUROC", "against", "difference", "p (Holm)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for task, found in summary["tasks"].items():
        table.add_row(label(task), *_cells(found), p_value(found["holm"]))
    table.add_section()
    table.add_row("mean", *_cells({"metrics": summary["mean"]}), "")
    Console(soft_wrap=True).print(table)


def _cells(found: dict) -> list[str]:
    auroc = found["metrics"]["auroc"]
    both = (auroc[run] for run in ("one", "other"))
    return [*(number(value, 3) for value in both), interval(auroc["difference"])]


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


def _forest(summary: dict) -> dict | None:
    """Returns a chart of the differences of the AUROC with their intervals."""
    metrics = {label(task): one["metrics"] for task, one in summary["tasks"].items()}
    metrics["Mean"] = summary["mean"]
    rows = [
        charts.Row(name, row["auroc"]["difference"], "ink" if name == "Mean" else "")
        for name, row in metrics.items()
        if row["auroc"]["difference"]["low"] is not None
    ]
    title = "Differences of the AUROC with their intervals"
    return charts.forest(rows, title=title, name="AUROC, A − B", reference=0)
