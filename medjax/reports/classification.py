"""What is special in the report of a classifier: curves, thresholds, heatmaps."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from medjax.evaluation import reliability
from medjax.evaluation.metrics import METRICS
from medjax.files import write_json, write_table
from medjax.reports import charts, pictures, segmentation
from medjax.reports.page import count, interval, label, number, percent, show_table

TEMPLATE = "classification.html"
RATIOS = ("lr_positive", "lr_negative")  # Beside the confusion matrices.
CSV = tuple(
    name
    for name, metric in METRICS.items()
    if (metric.kind == "ranking" or metric.rate) and name not in RATIOS
)
COUNTS = ("positives", "negatives", "unknown", "threshold", "tp", "fp", "fn", "tn")
AVERAGES = {
    "mean": "Macro average",
    "weighted": "Weighted average",
    "micro": "Micro average",
}
SHARES = charts.Frame(charts.SQUARE_SIZE)  # Both axes run from 0 to 1.
DIAGONAL = ([0, 1], [0, 1])
PROBABILITIES = (0.0, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0)  # Ticks.
FOOT_BARS = 20  # Bars under a reliability diagram,
FOOT = 0.2  # and the part of its height that they take.
FEW_IMAGES = 30  # Positive: with fewer, a finding's numbers and thresholds are weak.
TICK_GAP = 0.12  # Of an axis: ticks nearer to 0 than this run into its own.


def sections(results: dict, films: dict | None) -> dict:
    """What classification.html needs beside the results, see report.write.

    `films` are those of tasks.explain.gallery, {task: {kind: [{image, probability,
    certain, boxes, planes, picture, width, height}]}}; None for no pictures.
    """
    classes, tasks = "classes" in results, results["tasks"].values()
    films = films or {}
    drawn = [film for kinds in films.values() for row in kinds.values() for film in row]
    return {
        "item": "class" if classes else "finding",
        "items": "classes" if classes else "findings",
        "columns": [
            name for name in CSV if all(name in task["metrics"] for task in tasks)
        ],
        "averages": AVERAGES,
        "ratios": RATIOS,
        "measures": reliability.MEASURES,
        "few_is": FEW_IMAGES,
        "areas": _areas(results),
        "roc": roc(results),
        "precision_recall": precision_recall(results),
        "explorer": _explorer(results),
        "decisions": decisions(results),
        "risk": risk(results),
        "reliability": reliability_charts(results),
        "robustness": robustness(results),
        "films": films,
        "ramp": pictures.ramp() if films else "",
        "marked": any(film["boxes"] for film in drawn),
        "planes": any(film["planes"] for film in drawn),
    }


def show(results: dict) -> None:
    """Prints AUROC and average precision of every task."""
    rows = {label(name): task for name, task in results["tasks"].items()}
    rows["macro average"] = {"metrics": results["mean"]}
    show_table(
        f"{results['films']} images, {results['patients']} patients",
        ("", "positives", "AUROC", "Average precision"),
        [
            (
                name,
                count(row["positives"]) if "positives" in row else "",
                *(interval(row["metrics"][k]) for k in ("auroc", "average_precision")),
            )
            for name, row in rows.items()
        ],
        summary=True,
    )
    if "classes" in results:
        for name, value in results["classes"]["rates"].items():
            text = f"{label(name)} {interval(value)}"
            Console(soft_wrap=True).print(text, highlight=False)
    if results.get("masks"):
        segmentation.show(results["masks"])


def write_csv(results: dict, path: Path) -> None:
    """Writes one row a task, and one of each average."""
    measured = [name for name in (*CSV, *RATIOS) if name in results["micro"]]
    rows = [
        (name, task | task["confusion"], task["metrics"])
        for name, task in results["tasks"].items()
    ]
    rows += [(kind, {}, results[kind]) for kind in AVERAGES]
    ends = {"": "estimate", "_low": "low", "_high": "high"}
    table = [
        {"task": name}
        | {k: cells.get(k) for k in COUNTS}
        | {
            f"{m}{end}": metrics.get(m, {}).get(k)
            for m in measured
            for end, k in ends.items()
        }
        | {"note": cells.get("note", "")}
        for name, cells, metrics in rows
    ]
    write_table(path, pd.DataFrame(table, dtype=object))


def write_localisation(results: dict, path: Path) -> Path:
    """Writes tasks.explain.localise's results as JSON, prints them; returns the path."""
    write_json(path, results)
    of = f" of {results['stage']}" if results["stage"] else ""
    rows = {label(name): task for name, task in results["tasks"].items()}
    rows["all"] = results["all"]
    for measure, name in (("pointing", "Maximum in a box"), ("iou", "IoU with boxes")):
        table = []
        for task, row in rows.items():
            references = (number(row[measure][k], 2) for k in ("chance", "others"))
            cells = str(row["pairs"]), interval(row[measure], 2), *references
            table.append((task, *cells))
        headings = ("", "marked", name, "chance", "others")
        show_table(f"{name}: {results['method']}{of}", headings, table, summary=True)
    check = results["randomisation"]
    alike = (f"{k} {number(v, 2)}" for k, v in check["correlation"].items())
    console = Console(soft_wrap=True)
    console.print(
        "chance: the same heatmaps at random places; others: heatmaps of other "
        "patients with the finding"
    )
    console.print(
        "rank correlation with the heatmaps of random weights, from the last layer "
        "down to:",
        ", ".join(alike),
    )
    if not check["depends"]:
        console.print("note: these heatmaps hardly depend on what the model has learnt")
    return path


def roc(results: dict) -> dict[str, dict]:
    """{task: chart} of each ROC curve, its band and its operating point."""
    pictures = {}
    for name, task in results["tasks"].items():
        fpr, tpr = task["roc"]["fpr"], task["roc"]["tpr"]
        if None in fpr or None in tpr:
            continue
        at = [task["metrics"][k]["estimate"] for k in ("specificity", "sensitivity")]
        pictures[name] = _curve(
            f"ROC curve of {label(name)}",
            ("1 − specificity", "sensitivity"),
            chance=DIAGONAL,
            band=_band(results, name, "roc", "fpr"),
            curve=charts.line(SHARES, fpr, tpr),
            point=None if None in at else (1 - at[0], at[1]),
        )
    return pictures


def precision_recall(results: dict) -> dict[str, dict]:
    """{task: chart} of each precision-recall curve, as in `roc`."""
    pictures = {}
    for name, task in results["tasks"].items():
        recall, precision = (
            task["precision_recall"][k] for k in ("recall", "precision")
        )
        if not recall or None in recall:
            continue
        prevalence = task["positives"] / (task["positives"] + task["negatives"])
        at = [task["metrics"][k]["estimate"] for k in ("sensitivity", "ppv")]
        x, y = [0, *recall], [precision[0], *precision]
        pictures[name] = _curve(
            f"Precision-recall curve of {label(name)}",
            ("sensitivity", "PPV"),
            chance=([0, 1], [prevalence] * 2),
            band=_band(results, name, "precision_recall", "recall"),
            curve=charts.line(SHARES, x, y, steps=True),
            point=None if None in at else at,
        )
    return pictures


def _curve(title: str, labels: tuple, *, chance, band=(), curve: str, point) -> dict:
    """A chart of shares: chance, the band, the curve, the fixed threshold."""
    return charts.chart(
        SHARES,
        title=title,
        labels=labels,
        lines=[("chance", charts.line(SHARES, *chance)), *band, ("curve", curve)],
        points=[("point", *point)] if point else [],
    )


def _band(results: dict, task: str, kind: str, x: str) -> list[tuple[str, str]]:
    """The band of a curve, if the results have one."""
    band = results.get("bands", {}).get(task)
    if not band:
        return []
    edges = (band[kind][name] for name in (x, "low", "high"))
    return [("band", charts.area(SHARES, *edges))]


def risk(results: dict) -> dict[str, dict]:
    """{question: chart}: the error of conformal answers by the share left to a human."""
    pictures = {}
    for name, question in results.get("conformal", {}).get("questions", {}).items():
        x, y = ([row[k] for row in question["curve"]] for k in ("human", "wrong"))
        frame = charts.Frame(charts.SQUARE_SIZE, x=(0, 1), y=(0, max(0.05, *y)))
        pictures[name] = charts.chart(
            frame,
            title=f"Risk and coverage of {label(name)}",
            labels=("share of images for a human", "error of the other answers"),
            lines=[("curve", charts.line(frame, x, y))],
            points=[("point", *xy) for xy in zip(x, y, strict=True)],
        )
    return pictures


def decisions(results: dict) -> dict[str, dict]:
    """{task: chart} of each decision curve; `better`: the thresholds at which the model is
    better than treating all and none, '' for none."""
    pictures = {}
    for name, curve in results.get("decisions", {}).items():
        x, top = curve["threshold"], max([1e-3, *curve["high"], *curve["all"]])
        low = -0.15 * top
        frame = charts.Frame(charts.SQUARE_SIZE, x=(0, x[-1]), y=(low, 1.05 * top))
        ends = (np.clip(curve[end], low, None).tolist() for end in ("low", "high"))
        model, everybody = (np.clip(curve[k], low, None) for k in ("model", "all"))
        pictures[name] = charts.chart(
            frame,
            title=f"Decision curve of {label(name)}",
            labels=("probability from which on is treated", "net benefit"),
            lines=[
                ("chance", charts.line(frame, frame.x, [0, 0])),
                ("band", charts.area(frame, x, *ends)),
                ("curve s1", charts.line(frame, x, everybody)),
                ("curve s0", charts.line(frame, x, model)),
            ],
        )
        pictures[name]["better"] = _ranges(x, [low > 0 for low in curve["gain_low"]])
    return pictures


def _ranges(x: list[float], flags: list[bool]) -> str:
    """Where neighbours have the flag: '2.0 % to 5.0 %, 8.0 %'."""
    runs = itertools.groupby(zip(x, flags, strict=True), key=lambda pair: pair[1])
    ends = [[t for t, _ in run] for flag, run in runs if flag]
    spans = [dict.fromkeys(map(percent, (run[0], run[-1]))) for run in ends]
    return ", ".join(map(" to ".join, spans))


def reliability_charts(results: dict) -> dict[str, dict]:
    """{task: chart}: how often each probability came true.

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
        frame = charts.Frame(charts.SQUARE_SIZE, x=(0, top), y=(0, top))
        ticks = [(math.sqrt(v), f"{v:g}") for v in PROBABILITIES if v <= top**2]
        ticks = [tick for tick in ticks if tick[0] == 0 or tick[0] > TICK_GAP * top]
        lines, points = [("chance", charts.line(frame, [0, top], [0, top]))], []
        if counts := results.get("explorer", {}).get(name):
            lines.insert(0, ("bar pale", _spread(frame, counts)))
        for side in sides:
            series = "s0" if side is sides[-1] else "s1"
            xy = np.sqrt(side["predicted"]), np.sqrt(side["observed"])
            lines.append((f"curve {series}", charts.line(frame, *xy)))
            points += [(f"point {series}", x, y) for x, y in zip(*xy, strict=True)]
        ends = zip(*(sides[-1][k] for k in ("predicted", "low", "high")), strict=True)
        lines += [
            ("whisker", charts.line(frame, *np.sqrt([[x, x], [low, high]])))
            for x, low, high in ends
            if None not in (x, low, high) and low < high
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


def _spread(frame: charts.Frame, counts: dict) -> str:
    """Bars at the foot of a reliability diagram: how many images have a probability.

    `counts` are the explorer's of one task. The last bar holds all above the frame.
    """
    edges = np.linspace(0, frame.x[1], FOOT_BARS + 1)
    threshold = np.array(counts["threshold"])[::-1]
    called = np.add(counts["tp"], counts["fp"])[::-1]
    above = np.append(called, 0)[np.searchsorted(threshold, edges**2)]
    above[-1] = 0
    images = -np.diff(above)
    height = FOOT * frame.y[1] * images / max(images.max(), 1)
    return charts.bars(frame, edges[:-1], height, edges[1], np.zeros(FOOT_BARS))


def robustness(results: dict) -> dict[str, dict]:
    """{corruption, or 'mean': chart} of the mean AUROC by severity."""
    whole = results.get("robustness")
    if not whole:
        return {}
    rows = {"mean": whole["mean"]}
    rows |= {name: kind["severities"] for name, kind in whole["corruptions"].items()}
    clean = {"severity": 0, "auroc": whole["clean"]["auroc"]}
    rows = {
        name: [r for r in (clean, *row) if r["auroc"]["estimate"] is not None]
        for name, row in rows.items()
    }
    values = [r["auroc"][k] for row in rows.values() for r in row for k in r["auroc"]]
    low = min([0.5, *(v for v in values if isinstance(v, float))])
    frame, pictures = charts.Frame(charts.SQUARE_SIZE, x=(0, 5), y=(low, 1)), {}
    for name, row in rows.items():
        if not row:
            continue
        x, y = [r["severity"] for r in row], [r["auroc"]["estimate"] for r in row]
        ends = ([r["auroc"][end] for r in row] for end in ("low", "high"))
        pictures[name] = charts.chart(
            frame,
            title=f"{label(name)}: mean AUROC at severities 0 to 5",
            labels=("severity", "mean AUROC"),
            ticks=(range(6), None),
            lines=[
                ("chance", charts.line(frame, [0, 5], [y[0], y[0]])),
                ("band", charts.area(frame, x, *ends)),
                ("curve", charts.line(frame, x, y)),
            ],
            points=[("point", *xy) for xy in zip(x, y, strict=True)],
        )
    return pictures


def _areas(results: dict) -> dict | None:
    """A chart of every AUROC with its interval; None for fewer than two."""
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
    """What the explorer's script reads: {tasks: {T: counts, label, fixed}, chart}.

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
    chart = _curve(
        "ROC curve with the chosen threshold on it",
        ("1 − specificity", "sensitivity"),
        chance=DIAGONAL,
        curve=charts.line(SHARES, *DIAGONAL),
        point=(0, 0),
    )
    return {"tasks": tasks, "chart": chart}
