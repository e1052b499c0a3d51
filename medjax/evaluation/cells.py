"""Numbers as a report's JSON has them: what is undefined is None, and says why."""

import math

import numpy as np

from medjax.evaluation import support
from medjax.evaluation.intervals import Interval

MANY = 0.01  # Of the replicates: so many undefined ones are worth a word.
ROUNDING = 1e-6  # Of float32 areas: nearer ends are one.


def interval(
    found: Interval, why: str, *, patients: int, replicates: int, kind: str = ""
) -> dict:
    """{estimate, low, high, undefined, why}, without ends where they would mislead.

    Of fewer than support.LEAST patients a bootstrap can't speak. Where nothing varies
    between replicates its interval would have no width: a share of 0 or 1 gets the
    exact one, and anything else none.

    Args:
      found: of one number, of `replicates`.
      why: it has no estimate, if it has none.
      patients: in what it is a share of.
      kind: the metric's name, if it is one of support.SHARES or support.AREAS.

    Returns:
      why says why there is no estimate, or no interval, or how many replicates the
      interval leaves out if they are more than MANY; '' if all is there.
    """
    cell = {name: number(value) for name, value in found._asdict().items()}
    estimate, low, high, undefined = cell.values()
    if estimate is None:
        return cell | {"why": why}
    if patients < support.LEAST:
        return cell | {"low": None, "high": None, "why": support.FEW}
    if low is None:
        return cell | {"why": "undefined in every replicate: no interval"}
    if high - low < ROUNDING:
        if kind in support.SHARES and min(estimate, 1 - estimate) == 0:
            low, high = support.exact(estimate, patients)
            return cell | {"low": low, "high": high, "why": ""}
        perfect = kind in support.AREAS and estimate > 1 - ROUNDING
        same = "no pair out of order" if perfect else "the same in every replicate"
        return cell | {"low": None, "high": None, "why": f"{same}: no interval"}
    lacking = undefined > MANY * replicates
    note = f"undefined in {undefined:.0f} of {replicates:,} replicates"
    return cell | {"why": note if lacking else ""}


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
