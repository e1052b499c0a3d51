"""What a run chooses before it sees the test split, and keeps: frozen for all others.

The operating points are in thresholds.json, and what mends the probabilities, whose
unit the points have, in calibration.json.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from medjax.errors import InputError
from medjax.evaluation import calibration as recalibration

KINDS = {
    kind.__name__: kind
    for kind in (recalibration.Logistic, recalibration.Isotonic, recalibration.Softmax)
}


class Calibration(NamedTuple):
    """How a run's probabilities are mended, and what that was learnt from.

    method: as config.evaluation.calibration names it.
    fit: of the run's tasks; None mends nothing.
    fitted_on: 'validation', 'train', or None without a fit; films: how many images.
    why: {task: why it keeps its probabilities}.
    """

    method: str
    fit: recalibration.Fit | None
    fitted_on: str | None
    films: int | None
    why: dict[str, str]


NONE = Calibration("none", None, None, None, {})


class Frozen(NamedTuple):
    """What is chosen before the test split is seen, for one checkpoint.

    checkpoint: its number of updates.
    thresholds: {task: of its calibrated probability}; NaN where there is none.
    rule, value: of the thresholds, see operating.choose; rule None: not written down.
    calibration: of the probabilities.
    """

    checkpoint: int
    thresholds: dict[str, float]
    rule: str | None = None
    value: float | None = None
    calibration: Calibration = NONE


def write(folder: Path, frozen: Frozen) -> None:
    """Writes calibration.json and thresholds.json; NaN is written as null."""
    calibration, tasks = frozen.calibration, list(frozen.thresholds)
    parts = {} if calibration.fit is None else calibration.fit._asdict()
    numbers = {
        "checkpoint": frozen.checkpoint,
        "method": calibration.method,
        "fitted_on": calibration.fitted_on,
        "films": calibration.films,
        "kind": type(calibration.fit).__name__ if parts else None,
        "tasks": {
            task: {name: each[t] for name, each in parts.items()}
            for t, task in enumerate(tasks)
        },
        "why": calibration.why,
    }
    (folder / "calibration.json").write_text(json.dumps(numbers, indent=2))
    values = {k: None if math.isnan(v) else v for k, v in frozen.thresholds.items()}
    numbers = {
        "checkpoint": frozen.checkpoint,
        "rule": frozen.rule,
        "value": frozen.value,
        "calibration": calibration.method,
        "tasks": values,
    }
    (folder / "thresholds.json").write_text(json.dumps(numbers, indent=2))


def read(folder: Path) -> Frozen | None:
    """Reads back what `write` wrote; None before the first evaluation.

    Raises:
      InputError: the two files don't belong together.
    """
    path = folder / "thresholds.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    tasks = {k: math.nan if v is None else v for k, v in found["tasks"].items()}
    calibration = NONE  # Runs of an older medjax have none.
    if found.get("calibration", "none") != "none":
        calibration = _read_calibration(folder, found, list(tasks))
    return Frozen(
        found["checkpoint"],
        tasks,
        found.get("rule"),
        found.get("value"),
        calibration,
    )


def _read_calibration(folder: Path, thresholds: dict, tasks: list) -> Calibration:
    """calibration.json of these thresholds."""
    path = folder / "calibration.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    asked = thresholds["checkpoint"], thresholds["calibration"]
    if (found.get("checkpoint"), found.get("method")) != asked:
        raise InputError(
            f"{path}: not the calibration of the thresholds in thresholds.json: delete "
            "both, and evaluate the run again"
        )
    fit = None
    if found["kind"] is not None:
        kind = KINDS[found["kind"]]
        fit = kind(*([found["tasks"][t][name] for t in tasks] for name in kind._fields))
    rest = {name: found[name] for name in ("method", "fitted_on", "films", "why")}
    return Calibration(fit=fit, **rest)
