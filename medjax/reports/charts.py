"""Charts as SVG: curves, bands, bars, points and whiskers, drawn by macros.html.

SVG is quick to write (a report has fifty charts), the style sheet of the page colours
it, and a script of the page can move what is in it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.reports.page import label

MIN_STEP = 0.4  # Pixels; points nearer than this to the last one drawn are left out.
LETTER = 5.5  # Pixels, the mean width of a letter of a tick.
SQUARE_SIZE = (206.0, 206.0)
WIDE = (300.0, 190.0)
MARKED = 40  # Points of a curve up to which each is marked.


class Frame(NamedTuple):
    """Maps data to pixels."""

    size: tuple[float, float]  # Width and height of the picture, pixels.
    x: tuple[float, float] = (0.0, 1.0)  # The data's ends; x runs right, y up.
    y: tuple[float, float] = (0.0, 1.0)
    left: float = 42.0  # Pixels left free, as on the other sides.
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


class Row(NamedTuple):
    """One row of a forest plot.

    The name has one line or several, the interval no None; `series` is the class of its
    colour, and `dots` are further values, such as one of each seed.
    """

    name: str
    interval: dict
    series: str = ""
    dots: Sequence[float] = ()


def line(frame: Frame, x: Sequence, y: Sequence, *, steps: bool = False) -> str:
    """The path through points of data; `steps` go up or down first."""
    points = _thinned(frame, x, y)
    if not steps:
        return _path(points)
    (x0, y0), rest = points[0], points[1:]
    return f"M{_n(x0)} {_n(y0)}" + "".join(f"V{_n(y)}H{_n(x)}" for x, y in rest)


def area(frame: Frame, x: Sequence, low: Sequence, high: Sequence) -> str:
    """The closed path between two curves; None in one of them leaves a gap."""
    parts = []
    drawn = [None not in ends for ends in zip(low, high, strict=True)]
    for there, group in itertools.groupby(range(len(drawn)), drawn.__getitem__):
        if there:
            indices = list(group)
            part = slice(indices[0], indices[-1] + 1)
            back = _thinned(frame, x[part], high[part])[::-1]
            parts.append(_path([*_thinned(frame, x[part], low[part]), *back]) + "Z")
    return "".join(parts)


def bars(
    frame: Frame, start: Sequence, height: Sequence, width: float, base: Sequence
) -> str:
    """The path of bars from `start` to `start + width`, all above `base`."""
    left, right = frame.across(start), frame.across(np.asarray(start, float) + width)
    low, high = frame.down(base), frame.down(np.add(base, height))
    return "".join(
        f"M{_n(x)} {_n(y)}V{_n(top)}H{_n(end)}V{_n(y)}Z"
        for x, y, top, end in zip(left, low, high, right, strict=True)
    )


def chart(
    frame: Frame,
    *,
    title: str,
    labels: tuple[str, str],
    ticks: tuple[Sequence | None, Sequence | None] = (None, None),
    lines: Sequence[tuple[str, str]] = (),
    points: Sequence[tuple[str, float, float]] = (),
    legend: Sequence[tuple[str, str]] = (),
) -> dict:
    """A picture as macros.html draws it.

    Args:
      title: what it shows, for those who can't see it.
      labels: of x and y.
      ticks: data values on x and on y, or (value, text); None: round ones.
      lines: (classes of the style sheet, path), the first at the bottom.
      points: (classes, x, y) in data.
      legend: (classes, text).
    """
    (x0, x1), (y0, y1) = frame.across(frame.x), frame.down(frame.y)
    ends = {"left": x0, "right": x1, "top": y1, "bottom": y0}
    ends |= {"middle": (x0 + x1) / 2, "centre": (y0 + y1) / 2}
    x, y = (
        rounded(*along) if chosen is None else chosen
        for chosen, along in zip(ticks, (frame.x, frame.y), strict=True)
    )
    return {
        "frame": frame,
        "title": title,
        "labels": labels,
        "x": [(_n(frame.across(v)), text) for v, text in map(_tick, x)],
        "y": [(_n(frame.down(v)), text) for v, text in map(_tick, y)],
        "lines": lines,
        "points": [
            (kind, _n(frame.across(x)), _n(frame.down(y))) for kind, x, y in points
        ],
        "legend": legend,
        "ends": {name: _n(at) for name, at in ends.items()},
    }


def forest(
    rows: Sequence[Row], *, title: str, name: str, reference: float | None = None
) -> dict | None:
    """A chart of one whisker a row, from the top; None without rows.

    `name` is of the values; a dotted line marks the `reference`.
    """
    if not rows:
        return None
    values = [reference] if reference is not None else []
    for row in rows:
        values += [*(row.interval[k] for k in ("estimate", "low", "high")), *row.dots]
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.05
    longest = max(len(part) for row in rows for part in row.name.split("\n"))
    deep = max(row.name.count("\n") for row in rows)
    tall = max(24 if any(row.dots for row in rows) else 17, 12 + 12 * deep)
    frame = Frame(
        (400.0, 46.0 + tall * len(rows)),
        x=(low - room, high + room),
        y=(len(rows) - 0.5, -0.5),
        left=16 + LETTER * longest,
    )
    lines, points = [], []
    if reference is not None:
        lines.append(("chance", line(frame, [reference] * 2, frame.y)))
    for y, row in enumerate(rows):
        ends = row.interval["low"], row.interval["high"]
        lines.append((f"whisker {row.series}", line(frame, ends, [y, y])))
        points += [("dot", value, y + 0.28) for value in row.dots]
        points.append((f"point {row.series}", row.interval["estimate"], y))
    return chart(
        frame,
        title=title,
        labels=(name, ""),
        ticks=(None, [(y, row.name) for y, row in enumerate(rows)]),
        lines=lines,
        points=points,
    )


def training(curve: list[dict], checkpoint: int) -> list[dict]:
    """Charts of the loss and of every validation score over the steps.

    `curve` has the lines of metrics.jsonl; `checkpoint` is the step whose weights count.
    """
    scores: dict[str, list] = {}
    for row in curve:
        for key, value in row.items():
            if key == "loss" or key.startswith("validation_") and value is not None:
                name = label(key.removeprefix("validation_"))
                scores.setdefault(name, []).append((row["step"], value))
    last = max([row["step"] for row in curve], default=0)
    loss, charts = scores.pop("Loss", []), []
    if len(loss) > 1:
        charts.append(_over_steps("Training loss", {"": loss}, last))
    if scores:
        charts.append(_over_steps("Validation score", scores, last, checkpoint))
    return charts


def _over_steps(
    title: str, series: dict, last: int, checkpoint: int | None = None
) -> dict:
    """A chart of {name: [(step, value)]}; a score's axis reaches 1 at least."""
    values = [value for row in series.values() for _, value in row]
    least = [] if checkpoint is None else [1.0]
    frame = Frame(
        WIDE, x=(0, max(last, 1)), y=(min(0, *values), max(*values, *least)), left=46
    )
    lines, points, legend = [], [], []
    for number, (name, row) in enumerate(series.items()):
        lines.append((f"curve s{number}", line(frame, *zip(*row, strict=True))))
        if len(row) < MARKED:
            points += [(f"point s{number}", *xy) for xy in row]
        legend.append((f"curve s{number}", name))
    if checkpoint is not None:
        lines.insert(0, ("mark", line(frame, [checkpoint] * 2, frame.y)))
        legend.append(("mark", "checkpoint used"))
    return chart(
        frame,
        title=f"{title} over the steps",
        labels=("step", title.lower()),
        lines=lines,
        points=points,
        legend=legend if checkpoint is not None else (),
    )


def rounded(low: float, high: float) -> list[float]:
    """At most six multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, last + 1)]


def _tick(tick) -> tuple[float, str]:
    if isinstance(tick, tuple):
        return tick
    return tick, f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:g}"


def _thinned(frame: Frame, x: Sequence, y: Sequence) -> list[tuple[float, float]]:
    """Pixels without the points that nobody could tell from the last."""
    kept: list[tuple[float, float]] = []
    every = list(zip(frame.across(x).tolist(), frame.down(y).tolist(), strict=True))
    for point in every:
        if not kept or math.dist(point, kept[-1]) >= MIN_STEP:
            kept.append(point)
    if kept[-1] != every[-1]:
        kept.append(every[-1])
    return kept


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value) -> str:
    """Pixels to a tenth, as text."""
    return f"{float(value):.1f}".removesuffix(".0")
