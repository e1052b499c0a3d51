"""Curves as lines of SVG, which charts.html writes into a page.

matplotlib takes a tenth of a second a picture, and a report has fifty; and a page's own
script and style sheet can reach what stands in it as SVG.

The pictures of report.html, of what `report.json` and metrics.jsonl hold.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.reports.page import label

APART = 0.4  # Pixels; points nearer than this to the last one drawn are left out.
SQUARE = (206.0, 206.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Frame(NamedTuple):
    """Where data lie in a picture.

    size: width and height of the picture, pixels.
    x, y: the data's ends along each axis; x runs right, y up.
    left, right, top, bottom: pixels left free.
    """

    size: tuple[float, float]
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    left: float = 38.0
    right: float = 8.0
    top: float = 8.0
    bottom: float = 36.0

    def across(self, x) -> np.ndarray:
        """Pixels from the left."""
        share = (np.asarray(x, float) - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.size[0] - self.left - self.right)

    def down(self, y) -> np.ndarray:
        """Pixels from the top."""
        share = (np.asarray(y, float) - self.y[0]) / (self.y[1] - self.y[0])
        return self.top + (1 - share) * (self.size[1] - self.top - self.bottom)


def line(frame: Frame, x: Sequence, y: Sequence, *, steps: bool = False) -> str:
    """The path through points of data; `steps` goes up or down first, then along."""
    points = _thinned(frame, x, y)
    if not steps:
        return _path(points)
    (x0, y0), rest = points[0], points[1:]
    return f"M{_n(x0)} {_n(y0)}" + "".join(f"V{_n(y)}H{_n(x)}" for x, y in rest)


def area(frame: Frame, x: Sequence, low: Sequence, high: Sequence) -> str:
    """The closed path between two curves over the same x; None in one ends a part."""
    known = [a is not None and b is not None for a, b in zip(low, high, strict=True)]
    parts, start = [], None
    for n, there in enumerate([*known, False]):
        if there and start is None:
            start = n
        if not there and start is not None:
            part = slice(start, n)
            up = _thinned(frame, x[part], low[part])
            back = _thinned(frame, x[part], high[part])[::-1]
            parts.append(_path([*up, *back]) + "Z")
            start = None
    return "".join(parts)


def chart(
    frame: Frame,
    *,
    title: str,
    labels: tuple[str, str],
    ticks: tuple[Sequence, Sequence] = (SHARES, SHARES),
    lines: Sequence[tuple[str, str]] = (),
    points: Sequence[tuple[str, float, float]] = (),
) -> dict:
    """A picture as charts.html's macro draws it.

    Args:
      frame: of the data.
      title: what it shows, for who can't see it.
      labels: of x and y.
      ticks: data values on x and on y; or (value, text).
      lines: (class of the style sheet, path), the first at the bottom.
      points: (class, x, y) in data.
    """
    return {
        "frame": frame,
        "title": title,
        "labels": labels,
        "x": [(_n(frame.across(v)), text) for v, text in map(_tick, ticks[0])],
        "y": [(_n(frame.down(v)), text) for v, text in map(_tick, ticks[1])],
        "lines": lines,
        "points": [
            (kind, _n(frame.across(x)), _n(frame.down(y))) for kind, x, y in points
        ],
        "ends": {
            "left": _n(frame.left),
            "right": _n(frame.size[0] - frame.right),
            "top": _n(frame.top),
            "bottom": _n(frame.size[1] - frame.bottom),
            "middle": _n((frame.left + frame.size[0] - frame.right) / 2),
            "centre": _n((frame.top + frame.size[1] - frame.bottom) / 2),
        },
    }


def rounded(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], few of them."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, last + 1)]


def _tick(tick) -> tuple[float, str]:
    if isinstance(tick, tuple):
        return tick
    return tick, f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:g}"


def _thinned(frame: Frame, x: Sequence, y: Sequence) -> list[tuple[float, float]]:
    """Pixels of the points, without those that nobody could tell from the last."""
    kept: list[tuple[float, float]] = []
    every = list(zip(frame.across(x).tolist(), frame.down(y).tolist(), strict=True))
    for point in every:
        if not kept or math.dist(point, kept[-1]) >= APART:
            kept.append(point)
    if kept[-1] != every[-1]:
        kept.append(every[-1])
    return kept


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value) -> str:
    """A pixel's number, to a tenth."""
    return f"{float(value):.1f}".removesuffix(".0")


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
        lines = [("chance", line(frame, *DIAGONAL))]
        band = results.get("bands", {}).get(task)
        if band:
            parts = (band["roc"][name] for name in ("fpr", "low", "high"))
            lines.append(("band", area(frame, *parts)))
        at = [one["metrics"][k]["estimate"] for k in ("specificity", "sensitivity")]
        found[task] = chart(
            frame,
            title=f"ROC curve of {label(task)}",
            labels=("1 − specificity", "sensitivity"),
            lines=[*lines, ("curve", line(frame, fpr, tpr))],
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
        lines = [("chance", line(frame, [0, 1], [chance, chance]))]
        band = results.get("bands", {}).get(task)
        if band:
            parts = (band["precision_recall"][k] for k in ("recall", "low", "high"))
            lines.append(("band", area(frame, *parts)))
        curve = line(frame, [0, *recall], [precision[0], *precision], steps=True)
        at = [one["metrics"][k]["estimate"] for k in ("sensitivity", "ppv")]
        found[task] = chart(
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
        lines, points = [("chance", line(frame, [0, top], [0, top]))], []
        for n, side in enumerate(sides):
            kind = "" if n == len(sides) - 1 else "-before"
            xy = np.sqrt(side["predicted"]), np.sqrt(side["observed"])
            lines += [(f"curve{kind}", line(frame, *xy))]
            points += [(f"point{kind}", x, y) for x, y in zip(*xy, strict=True)]
        ends = zip(*(sides[-1][k] for k in ("predicted", "low", "high")), strict=True)
        ends = [end for end in ends if None not in end and end[1] < end[2]]
        lines += [
            ("whisker", line(frame, *np.sqrt([[x, x], [low, high]])))
            for x, low, high in ends
        ]
        found[task] = chart(
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
        band = [("band", area(frame, *zip(*ends, strict=True)))] if ends else []
        found[name] = chart(
            frame,
            title=f"{label(name)}: mean AUROC at severities 0 to 5",
            labels=("severity", "mean AUROC"),
            ticks=(range(6), rounded(low, 1, most=5)),
            lines=[
                ("chance", line(frame, [0, 5], [y[0], y[0]])),
                *band,
                ("curve", line(frame, x, y)),
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
        lines.append(("mark", line(frame, [at, at], list(ends))))
    for kind, row in series.items():
        lines.append((kind, line(frame, *zip(*row, strict=True))))
        if len(row) < 40:
            points += [(kind.replace("curve", "point"), *xy) for xy in row]
    y = SHARES if ends == (0, 1) else rounded(*ends, most=5)
    return chart(
        frame,
        title=f"{name.capitalize()}, over the steps",
        labels=("step", name),
        ticks=(rounded(0, max(last, 1), most=5), y),
        lines=lines,
        points=points,
    )
