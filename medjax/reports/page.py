"""Results -> one self-contained HTML page, JSON and CSV."""

import csv
import json
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.reports.drawing import (
    ACCENT,
    INK,
    SOFT,
    count,
    interval,
    label,
    render,
    svg,
)

COLUMNS = (
    "auroc",
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


def write(results: dict, curve: list[dict], folder: Path, name: str) -> Path:
    """Writes NAME.html, NAME.json and NAME.csv.

    Args:
      results: `evaluation.results.summarise`'s, and split, source, model, split_by,
        steps, checkpoint.
      curve: the lines of metrics.jsonl.
      folder: where to.
      name: of the files.

    Returns:
      The page's path.
    """
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1))
    _write_csv(results, folder / f"{name}.csv")
    html = render(
        "report.html",
        results=results,
        columns=COLUMNS,
        means=MEANS,
        ratios=RATIOS,
        confused=_confused(results),
        roc=_roc(results),
        precision_recall=_precision_recall(results),
        training=_training(curve, results["checkpoint"]),
    )
    path = folder / f"{name}.html"
    path.write_text(html)
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


def _confused(results: dict) -> list[tuple[str, list]]:
    """(class, [(count, its share of the row)]) of the classes' confusion matrix."""
    matrix = results["classes"]["matrix"] if "classes" in results else []
    return [
        (name, [(n, n / max(sum(row), 1)) for n in row])
        for name, row in zip(results["tasks"], matrix, strict=False)
    ]


def _write_csv(results: dict, path: Path) -> None:
    """One row a task, and one of each mean."""
    ends = [f"{name}{end}" for name in MEASURED for end in ("", "_low", "_high")]
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
                    *_ends(found["metrics"]),
                    found["note"],
                ]
            )
        for kind in MEANS:
            writer.writerow([kind, *[""] * len(counts), *_ends(results[kind]), ""])


def _ends(metrics: dict) -> list:
    return [
        metrics[name][end] for name in MEASURED for end in ("estimate", "low", "high")
    ]


def _roc(results: dict) -> list[tuple[str, str]]:
    """(task, picture) of each ROC curve, with the operating point on it."""
    pictures = []
    for task, found in results["tasks"].items():
        fpr, tpr = found["roc"]["fpr"], found["roc"]["tpr"]
        if None in fpr or None in tpr:
            continue
        at = [found["metrics"][k]["estimate"] for k in ("specificity", "sensitivity")]
        point = None if None in at else (1 - at[0], at[1])
        picture = _square(
            [0, 1], (fpr, tpr), point, "1 − specificity", "sensitivity", "default"
        )
        pictures.append((task, picture))
    return pictures


def _precision_recall(results: dict) -> list[tuple[str, str]]:
    """(task, picture) of each precision-recall curve."""
    pictures = []
    for task, found in results["tasks"].items():
        curve = found["precision_recall"]
        if not curve["recall"] or None in curve["recall"]:
            continue
        metrics = {name: one["estimate"] for name, one in found["metrics"].items()}
        chance = found["positives"] / (found["positives"] + found["negatives"])
        point = metrics["sensitivity"], metrics["ppv"]
        picture = _square(
            [chance, chance],
            ([0, *curve["recall"]], [curve["precision"][0], *curve["precision"]]),
            None if None in point else point,
            *("sensitivity", "PPV"),
            "steps-pre",
        )
        pictures.append((task, picture))
    return pictures


def _square(chance, curve, point, x: str, y: str, steps: str) -> str:
    """A curve in the unit square, the line of chance, and the operating point."""
    figure = Figure(figsize=(2.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], chance, color=SOFT, lw=0.8, ls=":")
    axes.plot(*curve, color=ACCENT, lw=1.6, drawstyle=steps)
    if point:
        axes.plot(*point, "o", color=INK, ms=4)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    return svg(figure)


def _training(curve: list[dict], checkpoint: int) -> str:
    """Loss and validation scores over the steps; '' before the first line."""
    loss = [(line["step"], line["loss"]) for line in curve if "loss" in line]
    if not loss:
        return ""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*loss, strict=True), color=ACCENT, lw=1.4)
    left.set_ylabel("training loss, nats an image", fontsize=8)
    for name, colour in (("auroc", ACCENT), ("average_precision", SOFT)):
        key = f"validation_{name}"
        points = [(line["step"], line[key]) for line in curve if line.get(key)]
        if points:
            right.plot(*zip(*points, strict=True), "o-", color=colour, lw=1.4, ms=3)
            right.plot([], [], color=colour, label=label(name))
    right.axvline(checkpoint, color=INK, lw=0.8, ls="--", label="checkpoint used")
    right.set_ylabel("validation, mean over tasks", fontsize=8)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=8)
    return svg(figure)
