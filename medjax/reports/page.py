"""Results -> one self-contained HTML page, JSON and CSV."""

import base64
import csv
import io
import json
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

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
NAMES = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
}
INK, ACCENT, SOFT = "#1c2733", "#0b6e8f", "#9db4c0"


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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medjax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "label": label, "count": count}
    html = environment.get_template("report.html").render(
        results=results,
        columns=COLUMNS,
        roc=_roc(results),
        training=_training(curve, results["checkpoint"]),
    )
    path = folder / f"{name}.html"
    path.write_text(html)
    return path


def show(results: dict) -> None:
    """Prints AUROC and average precision of every task."""
    table = Table(title=f"{results['films']} films, {results['patients']} patients")
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
    Console(soft_wrap=True).print(table)


def interval(value: dict) -> str:
    """'0.912 (0.894-0.931)', or a dash where the metric is undefined."""
    if value["estimate"] is None:
        return "–"
    text = f"{value['estimate']:.3f}"
    if value["low"] is None:
        return text
    return f"{text} ({value['low']:.3f}–{value['high']:.3f})"


def label(name: str) -> str:
    """A metric's or a finding's name as it is read."""
    if name in NAMES:
        return NAMES[name]
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def count(value: float) -> str:
    """A count; soft labels make it fractional."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _write_csv(results: dict, path: Path) -> None:
    """One row a task, and one of the means."""
    ends = [f"{name}{end}" for name in COLUMNS for end in ("", "_low", "_high")]
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
        writer.writerow(["mean", *[""] * len(counts), *_ends(results["mean"]), ""])


def _ends(metrics: dict) -> list:
    return [
        metrics[name][end] for name in COLUMNS for end in ("estimate", "low", "high")
    ]


def _roc(results: dict) -> list[tuple[str, str]]:
    """(task, picture) of each ROC curve, with the operating point on it."""
    pictures = []
    for task, found in results["tasks"].items():
        if None in found["roc"]["fpr"] or None in found["roc"]["tpr"]:
            continue
        figure = Figure(figsize=(2.6, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":")
        axes.plot(found["roc"]["fpr"], found["roc"]["tpr"], color=ACCENT, lw=1.6)
        metrics = found["metrics"]
        point = metrics["specificity"]["estimate"], metrics["sensitivity"]["estimate"]
        if None not in point:
            axes.plot(1 - point[0], point[1], "o", color=INK, ms=4)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("1 − specificity", fontsize=8)
        axes.set_ylabel("sensitivity", fontsize=8)
        pictures.append((task, _svg(figure)))
    return pictures


def _training(curve: list[dict], checkpoint: int) -> str:
    """Loss and validation scores over the steps; '' before the first line."""
    loss = [(line["step"], line["loss"]) for line in curve if "loss" in line]
    if not loss:
        return ""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*loss, strict=True), color=ACCENT, lw=1.4)
    left.set_ylabel("training loss, nats a film", fontsize=8)
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
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as a data URI, so that the page needs no other file."""
    for axes in figure.axes:
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
