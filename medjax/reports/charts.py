"""Curves as lines of SVG, which charts.html writes into a page.

matplotlib takes a tenth of a second a picture, and a report has fifty; and a page's own
script and style sheet can reach what stands in it as SVG.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
