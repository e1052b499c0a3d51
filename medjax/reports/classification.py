"""What is special in the report of a classifier: curves, thresholds, heatmaps."""

import csv
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medjax.reports import charts
from medjax.reports.page import count, interval, label, number

TEMPLATE = "classification.html"
COLUMNS = (
    "auroc",
    "partial_auroc",
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
AVERAGES = {
    "mean": "Macro average",
    "weighted": "Weighted average",
    "micro": "Micro average",
}
CALIBRATED = {  # How a calibration method is called in a sentence.
    "platt": "Platt scaling",
    "temperature": "temperature scaling",
    "isotonic": "isotonic regression",
    "prior": "a shift of the prior",
}
FINDING = ("finding", "findings")
BAND = ("low", "high")
DIAGONAL = ([0, 1], [0, 1])
PROBABILITIES = (0.0, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0)  # Ticks.
NEAR = 0.12  # Of an axis: ticks nearer to 0 than this run into its own.


def sections(results: dict, films: dict | None) -> dict:
    """Returns what classification.html needs beside the results.

    Args:
      results: see report.write.
      films: {task: {kind: [{image, probability, certain, boxes, picture, width,
        height}]}}, see explaining.gallery; None for no pictures.
    """
    tasks = results["tasks"]
    films = films or {}
    shown = [film for kinds in films.values() for row in kinds.values() for film in row]
    item, items = ("class", "classes") if "classes" in results else FINDING
    return {
        "item": item,
        "items": items,
        "columns": [
            name
            for name in COLUMNS
            if all(name in task["metrics"] for task in tasks.values())
        ],
        "averages": AVERAGES,
        "ratios": RATIOS,
        "calibrated": CALIBRATED,
        "areas": _areas(results),
        "matrix": _matrix(results),
        "elsewhere": {
            name: task["at_prevalence"]
            for name, task in tasks.items()
            if task.get("at_prevalence")
        },
        "roc": roc(results),
        "precision_recall": precision_recall(results),
        "explorer": _explorer(results),
        "reliability": reliability(results),
        "robustness": robustness(results),
        "films": films,
        "marked": any(film["boxes"] for film in shown),
    }


def show(results: dict) -> None:
    """Prints AUROC and average precision of every task."""
    table = Table(title=f"{results['films']} images, {results['patients']} patients")
    for heading in ("", "positives", "AUROC", "Average precision"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {label(name): task for name, task in results["tasks"].items()}
    rows["macro average"] = {"metrics": results["mean"]}
    for name, row in rows.items():
        if name == "macro average":
            table.add_section()
        metrics = (row["metrics"][k] for k in ("auroc", "average_precision"))
        positives = count(row["positives"]) if "positives" in row else ""
        table.add_row(name, positives, *map(interval, metrics))
    console = Console(soft_wrap=True)
    console.print(table)
    if "classes" in results:
        for name, value in results["classes"]["rates"].items():
            console.print(f"{label(name)} {interval(value)}", highlight=False)


def write_csv(results: dict, path: Path) -> None:
    """Writes one row a task, and one of each average."""
    measured = [n for n in MEASURED if n in results["mean"]]
    ends = [f"{name}{end}" for name in measured for end in ("", "_low", "_high")]
    counts = ["positives", "negatives", "unknown", "threshold", "tp", "fp", "fn", "tn"]
    rows = [
        (name, task | task["confusion"], task["metrics"])
        for name, task in results["tasks"].items()
    ]
    rows += [(kind, {}, results[kind]) for kind in AVERAGES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", *counts, *ends, "note"])
        for name, cells, metrics in rows:
            values = [
                metrics[metric][end]
                for metric in measured
                for end in ("estimate", "low", "high")
            ]
            writer.writerow(
                [name, *(cells.get(k, "") for k in counts), *values]
                + [cells.get("note", "")]
            )


def write_localisation(results: dict, path: Path) -> Path:
    """Writes as JSON how well heatmaps match the boxes, and prints it.

    Args:
      results: `explaining.localise`'s.
      path: of the JSON, which is returned.
    """
    path.write_text(json.dumps(results, indent=1))
    console = Console(soft_wrap=True)
    of = f" of {results['stage']}" if results["stage"] else ""
    rows = [(label(name), task) for name, task in results["tasks"].items()]
    rows.append(("all", results["all"]))
    for measure, name in (("pointing", "Maximum in a box"), ("iou", "IoU with boxes")):
        table = Table(title=f"{name}: {results['method']}{of}")
        table.add_column("")
        for heading in ("marked", name, "chance", "others"):
            table.add_column(heading, justify="right", no_wrap=True)
        for task, row in rows:
            references = (number(row[measure][k], 2) for k in ("chance", "others"))
            table.add_row(
                *(task, str(row["pairs"]), interval(row[measure], 2), *references),
                end_section=row is rows[-2][1],
            )
        console.print(table)
    console.print(
        "chance: the same heatmaps at random places; others: heatmaps of other "
        "patients with the finding"
    )
    check = results["randomisation"]
    alike = (f"{k} {number(v, 2)}" for k, v in check["correlation"].items())
    console.print(
        "rank correlation with the heatmaps of random weights, from the last layer "
        "down to:",
        ", ".join(alike),
    )
    if not check["depends"]:
        console.print("note: these heatmaps hardly depend on what the model has learnt")
    return path


def roc(results: dict) -> dict[str, dict]:
    """Returns {task: chart} of each ROC curve, its band and its operating point."""
    frame, pictures = charts.Frame(charts.SQUARE), {}
    for name, task in results["tasks"].items():
        fpr, tpr = task["roc"]["fpr"], task["roc"]["tpr"]
        if None in fpr or None in tpr:
            continue
        at = [task["metrics"][k]["estimate"] for k in ("specificity", "sensitivity")]
        pictures[name] = charts.chart(
            frame,
            title=f"ROC curve of {label(name)}",
            labels=("1 − specificity", "sensitivity"),
            lines=[
                ("chance", charts.line(frame, *DIAGONAL)),
                *_band(frame, results, name, "roc", "fpr"),
                ("curve", charts.line(frame, fpr, tpr)),
            ],
            points=[] if None in at else [("point", 1 - at[0], at[1])],
        )
    return pictures


def precision_recall(results: dict) -> dict[str, dict]:
    """Returns {task: chart} of each precision-recall curve, as in `roc`."""
    frame, pictures = charts.Frame(charts.SQUARE), {}
    for name, task in results["tasks"].items():
        recall, precision = (
            task["precision_recall"][k] for k in ("recall", "precision")
        )
        if not recall or None in recall:
            continue
        prevalence = task["positives"] / (task["positives"] + task["negatives"])
        curve = [0, *recall], [precision[0], *precision]
        at = [task["metrics"][k]["estimate"] for k in ("sensitivity", "ppv")]
        pictures[name] = charts.chart(
            frame,
            title=f"Precision-recall curve of {label(name)}",
            labels=("sensitivity", "PPV"),
            lines=[
                ("chance", charts.line(frame, [0, 1], [prevalence] * 2)),
                *_band(frame, results, name, "precision_recall", "recall"),
                ("curve", charts.line(frame, *curve, steps=True)),
            ],
            points=[] if None in at else [("point", *at)],
        )
    return pictures


def reliability(results: dict) -> dict[str, dict]:
    """Returns {task: chart}: how often each probability came true.

    Both axes are square roots, because the probabilities of a rare finding would
    otherwise all lie near 0.
    """
    pictures = {}
    for name, task in results["tasks"].items():
        sides = task.get("calibration", {})
        sides = [sides[k]["reliability"] for k in ("before", "after") if sides.get(k)]
        if not sides or not sides[0]["predicted"]:
            continue
        values = [s[k] for s in sides for k in ("predicted", "observed", "high")]
        top = max(v for part in values for v in part if v is not None)
        top = math.sqrt(min(1.0, 1.1 * max(top, 0.02)))
        frame = charts.Frame(charts.SQUARE, x=(0, top), y=(0, top))
        ticks = [(math.sqrt(v), f"{v:g}") for v in PROBABILITIES if v <= top**2]
        ticks = [tick for tick in ticks if tick[0] == 0 or tick[0] > NEAR * top]
        lines, points = [("chance", charts.line(frame, [0, top], [0, top]))], []
        for side in sides:
            series = "s0" if side is sides[-1] else "s1"
            xy = np.sqrt(side["predicted"]), np.sqrt(side["observed"])
            lines.append((f"curve {series}", charts.line(frame, *xy)))
            points += [(f"point {series}", x, y) for x, y in zip(*xy, strict=True)]
        ends = zip(*(sides[-1][k] for k in ("predicted", "low", "high")), strict=True)
        ends = [end for end in ends if None not in end and end[1] < end[2]]
        lines += [
            ("whisker", charts.line(frame, *np.sqrt([[x, x], [low, high]])))
            for x, low, high in ends
        ]
        pictures[name] = charts.chart(
            frame,
            title=f"Reliability diagram of {label(name)}",
            labels=("mean predicted probability", "share positive"),
            ticks=(ticks, ticks),
            lines=lines,
            points=points,
        )
    return pictures


def robustness(results: dict) -> dict[str, dict]:
    """Returns {corruption, or 'mean': chart} of the mean AUROC by severity."""
    whole = results.get("robustness")
    if not whole:
        return {}
    rows = {"mean": whole["mean"]}
    rows |= {name: one["severities"] for name, one in whole["corruptions"].items()}
    clean = {"severity": 0, "auroc": whole["clean"]["auroc"]}
    rows = {
        name: [r for r in (clean, *row) if r["auroc"]["estimate"] is not None]
        for name, row in rows.items()
    }
    values = [r["auroc"][k] for row in rows.values() for r in row for k in r["auroc"]]
    low = min([0.5, *(v for v in values if isinstance(v, float))])
    frame, pictures = charts.Frame(charts.SQUARE, x=(0, 5), y=(low, 1)), {}
    for name, row in rows.items():
        if not row:
            continue
        x, y = [r["severity"] for r in row], [r["auroc"]["estimate"] for r in row]
        band = charts.area(frame, x, *([r["auroc"][k] for r in row] for k in BAND))
        pictures[name] = charts.chart(
            frame,
            title=f"{label(name)}: mean AUROC at severities 0 to 5",
            labels=("severity", "mean AUROC"),
            ticks=(range(6), charts.rounded(low, 1, most=5)),
            lines=[
                ("chance", charts.line(frame, [0, 5], [y[0], y[0]])),
                ("band", band),
                ("curve", charts.line(frame, x, y)),
            ],
            points=[("point", *xy) for xy in zip(x, y, strict=True)],
        )
    return pictures


def _band(frame, results: dict, task: str, kind: str, x: str) -> list[tuple[str, str]]:
    """Returns the band of a curve, if the results have one."""
    band = results.get("bands", {}).get(task)
    if not band:
        return []
    return [("band", charts.area(frame, *(band[kind][k] for k in (x, *BAND))))]


def _areas(results: dict) -> dict | None:
    """Returns a chart of every AUROC with its interval; None for fewer than two."""
    rows = [
        charts.Row(label(name), task["metrics"]["auroc"])
        for name, task in results["tasks"].items()
        if task["metrics"]["auroc"]["low"] is not None
    ]
    if len(rows) < 2:
        return None
    if results["mean"]["auroc"]["low"] is not None:
        rows.append(charts.Row("Macro average", results["mean"]["auroc"], "ink"))
    return charts.forest(rows, title="AUROC with its interval", name="AUROC")


def _explorer(results: dict) -> dict:
    """Returns what the explorer's script reads: {tasks: {T: counts, ...}, chart}.

    `fixed` is the index of the fixed threshold among the task's, None if it has none.
    """
    tasks = {}
    for name, counts in results.get("explorer", {}).items():
        threshold, fixed = results["tasks"][name]["threshold"], None
        if threshold is not None:
            distance = np.abs(np.subtract(counts["threshold"], threshold))
            fixed = int(np.argmin(distance))
        tasks[name] = {**counts, "label": label(name), "fixed": fixed}
    if not tasks:
        return {}
    frame = charts.Frame(charts.SQUARE)
    chart = charts.chart(
        frame,
        title="ROC curve with the chosen threshold on it",
        labels=("1 − specificity", "sensitivity"),
        lines=[(kind, charts.line(frame, *DIAGONAL)) for kind in ("chance", "curve")],
        points=[("point", 0, 0)],
    )
    return {"tasks": tasks, "chart": chart}


def _matrix(results: dict) -> list[tuple[str, list]]:
    """Returns (class, [(count, its share of the row)]) of the confusion matrix."""
    matrix = results["classes"]["matrix"] if "classes" in results else []
    return [
        (name, [(n, n / max(sum(row), 1)) for n in row])
        for name, row in zip(results["tasks"], matrix, strict=False)
    ]
