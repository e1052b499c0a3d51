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
      summary: of evaluation.compare.compare; with split, source, the `primary`
        metric, which is tested, and runs: two of {folder, model, imbalance}.
      folder: where to.

    Returns:
      The page's path.
    """
    (folder / "against.json").write_text(json.dumps(summary, indent=1))
    return page.write(
        folder / "against.html",
        "against.html",
        found=summary,
        metrics=[*summary["mean"]][:2],
        verdicts=_verdicts(summary),
        forest=_forest(summary),
    )


def show(summary: dict) -> None:
    """Prints the difference of the primary metric of every task, and its p after Holm."""
    metric = summary["primary"]
    table = Table(title=" against ".join(run["folder"] for run in summary["runs"]))
    for heading in ("", label(metric), "against", "difference", "p (Holm)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for task, row in summary["tasks"].items():
        cells = _cells(row["metrics"][metric])
        table.add_row(label(task), *cells, p_value(row["holm"]))
    table.add_section()
    table.add_row("mean", *_cells(summary["mean"][metric]), "")
    Console(soft_wrap=True).print(table)


def _cells(pair: dict) -> list[str]:
    both = (number(pair[run], 3) for run in ("one", "other"))
    return [*both, interval(pair["difference"])]


def _verdicts(summary: dict) -> list[tuple[str, str]]:
    """(good or bad, sentence) on the findings that differ after Holm."""
    metric = summary["primary"]
    sides: dict[str, list] = {"good": [], "bad": []}
    tested = 0
    for task, row in summary["tasks"].items():
        tested += row["holm"] is not None
        if row["holm"] is not None and row["holm"] < ALPHA:
            better = row["metrics"][metric]["difference"]["estimate"] > 0
            sides["good" if better else "bad"].append(label(task))
    sentences = [
        (side, f"{name} has the higher {label(metric)} for {', '.join(sides[side])}.")
        for side, name in (("good", "A"), ("bad", "B"))
        if sides[side]
    ]
    if not tested:
        return [("", "No finding could be tested.")]
    return sentences or [("", f"No finding's {label(metric)} differs beyond chance.")]


def _forest(summary: dict) -> dict | None:
    """Returns a chart of the differences of the primary metric with their intervals."""
    metric = summary["primary"]
    metrics = {label(task): row["metrics"] for task, row in summary["tasks"].items()}
    metrics["Mean"] = summary["mean"]
    rows = [
        charts.Row(name, row[metric]["difference"], "ink" if name == "Mean" else "")
        for name, row in metrics.items()
        if row[metric]["difference"]["low"] is not None
    ]
    title = f"Differences of the {label(metric)} with their intervals"
    return charts.forest(rows, title=title, name=f"{label(metric)}, A − B", reference=0)
