"""The config itself, and the plain values that it holds."""

import difflib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medjax.errors import InputError

Config = ConfigDict


def named(module: Any, name: str, field: str) -> Callable:
    """The public function of that name, which a field of the config asked for.

    Raises:
      InputError: there is none.
    """
    found = getattr(module, name, None)
    if name.startswith("_") or not callable(found):
        raise InputError(f"{field}={name!r}: {module.__name__} has none of that name")
    return found


def schedule(config: Config) -> dict[str, Any]:
    """When the loop logs, evaluates and ends, and the key of its random choices."""
    names = ("steps", "log_every", "evaluate_every")
    key = jax.random.key(config.seed + 1)
    return {"key": key, **{name: config.train[name] for name in names}}


def bootstrap(config: Config) -> dict[str, Any]:
    """The key and the number of replicates of the intervals."""
    key = jax.random.key(config.seed + 2)
    return {"key": key, "replicates": config.evaluation.replicates}


def operating(config: Config) -> dict[str, Any]:
    """What chooses a run's thresholds, see evaluation/operating.py."""
    rule = config.evaluation.get("rule", "youden")  # Runs of older configs have none.
    return {
        "rule": rule,
        "value": None if rule == "youden" else config.evaluation.value,
    }


def calibration(config: Config) -> str:
    """How the probabilities are mended; runs of older configs don't say it."""
    return config.evaluation.get("calibration", "none")


def prevalence(config: Config, tasks: int) -> np.ndarray | None:
    """[T], where the predictive values are asked for; None: as in the data alone.

    Raises:
      InputError: not one number, or one a task, between 0 and 1.
    """
    asked = config.evaluation.get("prevalence", ())
    found = np.atleast_1d(np.asarray(asked, float))
    if not found.size:
        return None
    if found.size not in (1, tasks) or not ((found > 0) & (found < 1)).all():
        raise InputError(
            f"evaluation.prevalence={asked}: give one number between 0 and 1, or one "
            f"for each of the {tasks} tasks"
        )
    return np.broadcast_to(found, tasks)


def shape(config: Config) -> dict[str, int]:
    """Rows a device (rounded up) and devices of an evaluation batch."""
    devices = jax.local_device_count()
    return {"batch": math.ceil(config.evaluation.batch / devices), "devices": devices}


def about(config: Config) -> dict[str, Any]:
    """What a report says of its run."""
    return {
        "source": config.data.source,
        "model": config.model.name,
        "imbalance": config.imbalance,
        "split_by": config.split.by,
        "steps": config.train.steps,
    }


def as_json(config: Config) -> dict:
    """The config as JSON holds it: tuples are lists."""
    return json.loads(config.to_json())


def of_json(found: dict) -> Config:
    """The config that `as_json` wrote: what flags may change are tuples, not lists."""
    return Config(tuples(found))


def tuples(value: Any) -> Any:
    """Plain data with tuples for its lists."""
    if isinstance(value, dict):
        return {name: tuples(each) for name, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def nearest(field: str, config: Config) -> str | None:
    """The dotted field of a config that is most like this one; None if none is."""
    near = difflib.get_close_matches(field, [*_fields(config)], n=1)
    return near[0] if near else None


def _fields(config: Config, above: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{above}{name}"
        if isinstance(value, Config):
            yield from _fields(value, f"{above}{name}.")


def read_config(folder: Path) -> Config:
    """The config of a run.

    Raises:
      InputError: no run there, or one of a medjax that had fewer sections.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json: is this the workdir of a run?")
    found = json.loads(path.read_text())
    for name in ("transfer", "adapt"):
        if found.get("task") != "segmentation" and name not in found:
            raise InputError(
                f"{folder}/config.json: has no {name}: the run is of an older medjax; "
                "read it with that, or train it again"
            )
    return ConfigDict(found)
