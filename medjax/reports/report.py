"""Results -> one self-contained HTML page, JSON and CSV."""

import csv
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medjax.reports import charts
from medjax.reports import charts as figures
from medjax.reports.card import card, seen
from medjax.reports.page import count, interval, label, probability, render

COLUMNS = (
    "auroc",
    "partial_auroc",  # Absent from older reports, and from the CSV then.
    "average_precision",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "accuracy",
    "f1",
    "prevalence",
)
RATIOS = ("lr_positive", "lr_negative")  # Beside the confusion matrices.
MEASURED = (*COLUMNS, *RATIOS)
MEANS = {"mean": "Mean", "weighted": "By positives", "micro": "All labels as one"}


def write(
    results: dict,
    curve: list[dict],
    folder: Path,
    name: str,
    *,
    config: dict | None = None,
    environment: dict | None = None,
    films: dict | None = None,
) -> Path:
    """Writes NAME.html, NAME.json and NAME.csv.

    Args:
      results: `evaluation.results.summarise`'s, and split, source, model, split_by,
        steps, checkpoint. A section of the page is left out where its key is missing:
        bands, explorer (evaluation/bands.py, thresholds.py), calibration, subgroups,
        robustness, localisation (explaining.localise), cohort (cohort/manifest.py).
        external: whether the images are of other data than the training's.
      curve: the lines of metrics.jsonl.
      folder: where to.
      name: of the files.
      config: of the run, as JSON; environment: its environment.json.
      films: {task: {kind: [{image, probability, certain, boxes, picture, width,
        height}]}}, see explaining.gallery.

    Returns:
      The page's path.
    """
    _write_csv(results, folder / f"{name}.csv")
    measured = [list(found["metrics"]) for found in results["tasks"].values()]
    sections = {
        "roc": figures.roc(results),
        "precision_recall": figures.precision_recall(results),
        "explorer": _explorer(results),
        "reliability": figures.reliability(results),
        "robustness": figures.robustness(results),
        "films": films or {},
        "training": figures.training(curve, results["checkpoint"]),
        "settings": _flat(config or {}, "config."),
        "environment": _flat(environment or {}),
    }
    titles = _titles(results)
    there = sections | {
        "taken": "classes" in results,
        "findings": True,
        "confusion": True,
        "recall": sections["precision_recall"],
        "calibration": sections["reliability"],
        "subgroups": results.get("subgroups"),
        "localisation": "localisation" in results,
        "split": "cohort" in results,
        "card": True,
        "settings": config or environment,
    }
    html = render(
        "report.html",
        **sections,
        results=results,
        titles=titles,
        contents=[(id, title) for id, title in titles.items() if there[id]],
        columns=[n for n in COLUMNS if all(n in names for names in measured)],
        means=MEANS,
        ratios=RATIOS,
        confused=_confused(results),
        elsewhere={
            task: found["at_prevalence"]
            for task, found in results["tasks"].items()
            if found.get("at_prevalence")
        },
        marked=any(
            film["boxes"]
            for kinds in (films or {}).values()
            for shown in kinds.values()
            for film in shown
        ),
        seen=seen(results["split"]),
        card=card(results, config, environment),
        probability=probability,
    )
    path = folder / f"{name}.html"
    path.write_text(html)
    # Last, and whole or not at all: where it is, a run counts as finished.
    partial = folder / f"{name}.json.partial"
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(folder / f"{name}.json")
    return path


def show(results: dict) -> None:
    """Prints AUROC and average precision of every task."""
    table = Table(title=f"{results['films']} images, {results['patients']} patients")
    for heading in ("", "positives", "AUROC", "Average precision"):
        table.add_column(heading, justify="left" if not heading else "right")
    for task, found in results["tasks"].items():
        metrics = found["metrics"]
        table.add_row(
            label(task),
            count(found["positives"]),
            interval(metrics["auroc"]),
            interval(metrics["average_precision"]),
        )
    mean = results["mean"]
    table.add_section()
    table.add_row(
        "mean", "", interval(mean["auroc"]), interval(mean["average_precision"])
    )
    console = Console(soft_wrap=True)
    console.print(table)
    if "classes" in results:
        for name, value in results["classes"]["rates"].items():
            console.print(f"{label(name)} {interval(value)}", highlight=False)


def _titles(results: dict) -> dict[str, str]:
    """{id: heading} of all sections, in their order."""
    classes = "classes" in results
    return {
        "taken": "Who is taken for whom",
        "findings": "Each class against the rest" if classes else "Findings",
        "confusion": "Confusion matrices",
        "roc": "ROC curves",
        "recall": "Precision and recall",
        "explorer": "Threshold explorer",
        "calibration": "Calibration",
        "subgroups": "Groups of patients",
        "robustness": "Robustness",
        "localisation": "Where the heatmaps lie",
        "films": "Right and wrong calls",
        "training": "Training",
        "split": "The split and its audit",
        "card": "Model card",
        "settings": "Config and environment",
    }


def _explorer(results: dict) -> dict:
    """What the explorer's script reads: {tasks: {T: its counts, label, frozen}, chart}.

    frozen is the place of the frozen threshold among the task's, None if it has none.
    """
    tasks = {}
    for task, one in results.get("explorer", {}).items():
        point = results["tasks"][task]["threshold"]
        frozen = None
        if point is not None:
            frozen = int(np.argmin(np.abs(np.subtract(one["threshold"], point))))
        tasks[task] = {**one, "label": label(task), "frozen": frozen}
    if not tasks:
        return {}
    frame = charts.Frame(charts.SQUARE)
    chart = charts.chart(
        frame,
        title="ROC curve with the chosen threshold on it",
        labels=("1 − specificity", "sensitivity"),
        lines=[
            ("chance", charts.line(frame, *figures.DIAGONAL)),
            ("curve", charts.line(frame, *figures.DIAGONAL)),
        ],
        points=[("point", 0, 0)],
    )
    return {"tasks": tasks, "chart": chart}


def _flat(values: dict, prefix: str = "") -> dict[str, str]:
    """{dotted name: text} of what is nested."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) and value else json.dumps(value)
            found[prefix + name] = text
    return found


def _confused(results: dict) -> list[tuple[str, list]]:
    """(class, [(count, its share of the row)]) of the classes' confusion matrix."""
    matrix = results["classes"]["matrix"] if "classes" in results else []
    return [
        (name, [(n, n / max(sum(row), 1)) for n in row])
        for name, row in zip(results["tasks"], matrix, strict=False)
    ]


def _write_csv(results: dict, path: Path) -> None:
    """One row a task, and one of each mean."""
    measured = [n for n in MEASURED if n in results["mean"]]
    ends = [f"{name}{end}" for name in measured for end in ("", "_low", "_high")]
    counts = ["positives", "negatives", "unknown", "threshold", "tp", "fp", "fn", "tn"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", *counts, *ends, "note"])
        for task, found in results["tasks"].items():
            cells = {**found, **found["confusion"]}
            writer.writerow(
                [
                    task,
                    *(cells[name] for name in counts),
                    *_ends(found["metrics"], measured),
                    found["note"],
                ]
            )
        for kind in MEANS:
            writer.writerow(
                [kind, *[""] * len(counts), *_ends(results[kind], measured), ""]
            )


def _ends(metrics: dict, names: list[str]) -> list:
    return [metrics[name][end] for name in names for end in ("estimate", "low", "high")]
