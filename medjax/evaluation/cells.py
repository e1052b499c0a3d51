"""Numbers as a report's JSON has them: what is undefined is None, and says why."""

import math

import numpy as np

from medjax.evaluation.intervals import Interval


def interval(found: Interval, why: str) -> dict:
    """{estimate, low, high, undefined, why}; why: it has no estimate, if it has none."""
    cells = {name: number(value) for name, value in found._asdict().items()}
    return cells | {"why": why if cells["estimate"] is None else ""}


def of_task(found: Interval, t: int) -> Interval:
    """One of T tasks' intervals."""
    return Interval(*(part[t] for part in found))


def number(value) -> float | None:
    """NaN is None."""
    value = float(value)
    return None if math.isnan(value) else value


def numbers(values: np.ndarray) -> list[float | None]:
    """Six decimals of each: enough to draw."""
    return [number(round(float(value), 6)) for value in values]
