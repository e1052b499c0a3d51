"""The pictures of report.html, of what `report.json` and metrics.jsonl hold."""

import math

import numpy as np

from medjax.reports import charts
from medjax.reports.charts import SHARES, SQUARE, Frame
from medjax.reports.drawing import label

WIDE = (360.0, 220.0)
DIAGONAL = ([0, 1], [0, 1])
SEEN = (0.0, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0)  # Ticks of probabilities.
NEAR = 0.12  # Of an axis: ticks nearer to 0 than this run into its own.


def roc(results: dict) -> dict[str, dict]:
    """{task: chart} of each ROC curve, its band, and the operating point on it."""
    frame, found = Frame(SQUARE), {}
    for task, one in results["tasks"].items():
        fpr, tpr = one["roc"]["fpr"], one["roc"]["tpr"]
        if None in fpr or None in tpr:
            continue
        lines = [("chance", charts.line(frame, *DIAGONAL))]
        band = results.get("bands", {}).get(task)
        if band:
            parts = (band["roc"][name] for name in ("fpr", "low", "high"))
            lines.append(("band", charts.area(frame, *parts)))
        at = [one["metrics"][k]["estimate"] for k in ("specificity", "sensitivity")]
        found[task] = charts.chart(
            frame,
            title=f"ROC curve of {label(task)}",
            labels=("1 − specificity", "sensitivity"),
            lines=[*lines, ("curve", charts.line(frame, fpr, tpr))],
            points=[] if None in at else [("point", 1 - at[0], at[1])],
        )
    return found


def precision_recall(results: dict) -> dict[str, dict]:
    """{task: chart} of each precision-recall curve, its band and operating point."""
    frame, found = Frame(SQUARE), {}
    for task, one in results["tasks"].items():
        recall, precision = (
            one["precision_recall"][k] for k in ("recall", "precision")
        )
        if not recall or None in recall:
            continue
        chance = one["positives"] / (one["positives"] + one["negatives"])
        lines = [("chance", charts.line(frame, [0, 1], [chance, chance]))]
        band = results.get("bands", {}).get(task)
        if band:
            parts = (band["precision_recall"][k] for k in ("recall", "low", "high"))
            lines.append(("band", charts.area(frame, *parts)))
        curve = charts.line(frame, [0, *recall], [precision[0], *precision], steps=True)
        at = [one["metrics"][k]["estimate"] for k in ("sensitivity", "ppv")]
        found[task] = charts.chart(
            frame,
            title=f"Precision-recall curve of {label(task)}",
            labels=("sensitivity", "PPV"),
            lines=[*lines, ("curve", curve)],
            points=[] if None in at else [("point", *at)],
        )
    return found


def reliability(results: dict) -> dict[str, dict]:
    """{task: chart}: how often each probability came true, before and after.

    Along square roots, or a rare finding's probabilities would all lie at 0.
    """
    found = {}
    for task, one in results["tasks"].items():
        sides = one.get("calibration", {})
        sides = [sides[k] for k in ("before", "after") if sides.get(k)]
        sides = [side["reliability"] for side in sides]
        if not sides or not sides[0]["predicted"]:
            continue
        every = [s[k] for s in sides for k in ("predicted", "observed", "high")]
        top = max(value for part in every for value in part if value is not None)
        top = math.sqrt(min(1.0, 1.1 * max(top, 0.02)))
        frame = Frame(SQUARE, x=(0, top), y=(0, top))
        ticks = [(math.sqrt(v), f"{v:g}") for v in SEEN if v <= top**2]
        ticks = [tick for tick in ticks if tick[0] == 0 or tick[0] > NEAR * top]
        lines, points = [("chance", charts.line(frame, [0, top], [0, top]))], []
        for n, side in enumerate(sides):
            kind = "" if n == len(sides) - 1 else "-before"
            xy = np.sqrt(side["predicted"]), np.sqrt(side["observed"])
            lines += [(f"curve{kind}", charts.line(frame, *xy))]
            points += [(f"point{kind}", x, y) for x, y in zip(*xy, strict=True)]
        ends = zip(*(sides[-1][k] for k in ("predicted", "low", "high")), strict=True)
        ends = [end for end in ends if None not in end and end[1] < end[2]]
        lines += [
            ("whisker", charts.line(frame, *np.sqrt([[x, x], [low, high]])))
            for x, low, high in ends
        ]
        found[task] = charts.chart(
            frame,
            title=f"Reliability diagram of {label(task)}",
            labels=("mean predicted probability", "share positive"),
            ticks=(ticks, ticks),
            lines=lines,
            points=points,
        )
    return found


def robustness(results: dict) -> dict[str, dict]:
    """{corruption, or 'mean': chart} of the mean AUROC by severity."""
    whole = results.get("robustness")
    if not whole:
        return {}
    rows = {"mean": whole["mean"]}
    rows |= {name: one["severities"] for name, one in whole["corruptions"].items()}
    clean = {"severity": 0, "auroc": whole["clean"]["auroc"]}
    ends = [one["auroc"] for row in rows.values() for one in (clean, *row)]
    ends = [v[k] for v in ends for k in ("low", "high", "estimate") if v[k] is not None]
    if not ends:
        return {}
    low = min(0.5, *ends)
    frame = Frame(SQUARE, x=(0, 5), y=(low, 1))
    found = {}
    for name, row in rows.items():
        row = [one for one in (clean, *row) if one["auroc"]["estimate"] is not None]
        if not row:
            continue
        x, y = zip(*((one["severity"], one["auroc"]["estimate"]) for one in row))
        ends = [(o["severity"], o["auroc"]["low"], o["auroc"]["high"]) for o in row]
        ends = [end for end in ends if None not in end]
        band = [("band", charts.area(frame, *zip(*ends, strict=True)))] if ends else []
        found[name] = charts.chart(
            frame,
            title=f"{label(name)}: mean AUROC at severities 0 to 5",
            labels=("severity", "mean AUROC"),
            ticks=(range(6), charts.rounded(low, 1, most=5)),
            lines=[
                ("chance", charts.line(frame, [0, 5], [y[0], y[0]])),
                *band,
                ("curve", charts.line(frame, x, y)),
            ],
            points=[("point", *xy) for xy in zip(x, y, strict=True)],
        )
    return found


def training(curve: list[dict], checkpoint: int) -> dict[str, dict]:
    """{'loss', 'validation': chart} over the steps; {} before the first line."""
    found = {}
    loss = [(one["step"], one["loss"]) for one in curve if one.get("loss") is not None]
    last = max([one["step"] for one in curve], default=0)
    if len(loss) > 1:
        high = max(value for _, value in loss)
        low = min(0.0, *(value for _, value in loss))
        found["loss"] = _over_steps(
            {"curve": loss}, last, (low, high), "training loss, nats an image"
        )
    scores = {}
    for kind, name in (("curve", "auroc"), ("curve-before", "average_precision")):
        key = f"validation_{name}"
        scores[kind] = [(o["step"], o[key]) for o in curve if o.get(key) is not None]
    scores = {kind: points for kind, points in scores.items() if points}
    if scores:
        found["validation"] = _over_steps(
            scores, last, (0, 1), "validation, mean over tasks", checkpoint
        )
    return found


def _over_steps(
    series: dict, last: int, ends, name: str, at: int | None = None
) -> dict:
    frame = Frame(WIDE, x=(0, max(last, 1)), y=ends, left=46)
    lines, points = [], []
    if at is not None:
        lines.append(("mark", charts.line(frame, [at, at], list(ends))))
    for kind, row in series.items():
        lines.append((kind, charts.line(frame, *zip(*row, strict=True))))
        if len(row) < 40:
            points += [(kind.replace("curve", "point"), *xy) for xy in row]
    y = SHARES if ends == (0, 1) else charts.rounded(*ends, most=5)
    return charts.chart(
        frame,
        title=f"{name.capitalize()}, over the steps",
        labels=("step", name),
        ticks=(charts.rounded(0, max(last, 1), most=5), y),
        lines=lines,
        points=points,
    )
