"""The files of a run's folder, other than checkpoints and reports."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.errors import InputError
from medjax.evaluation.inference import Predictions

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
TOLD = 3  # Fields that differ, named in an error.


def claim(folder: Path, config: dict) -> None:
    """Writes config.json and environment.json, or finds the same config there.

    Raises:
      InputError: the folder holds a run of another config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists():
        refuse_other(folder, json.loads(path.read_text()), config)
    path.write_text(json.dumps(config, indent=2))
    _write_environment(folder / "environment.json")


def refuse_other(folder: Path, old: dict, config: dict) -> None:
    """Refuses another config than the one in the folder, field by field.

    Raises:
      InputError: it is another; the first fields that differ are named.
    """
    old, new = _fields(old), _fields(config)
    # As text: a NaN is another than itself.
    apart = [
        name
        for name in old | new
        if json.dumps(old.get(name)) != json.dumps(new.get(name))
    ]
    if apart:
        told = [f"config.{k} is {old.get(k)}, not {new.get(k)}" for k in apart[:TOLD]]
        more = f" and {len(apart) - TOLD} more differ" if len(apart) > TOLD else ""
        raise InputError(
            f"{folder}: holds a run whose {', '.join(told)}{more}: use another --workdir"
        )


def _fields(config: dict, above: str = "") -> dict:
    """{'optim.learning_rate': 0.1, ...} of nested dicts."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= _fields(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def read_config(folder: Path) -> dict:
    """Reads config.json back.

    Raises:
      InputError: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json: is this the workdir of a run?")
    return json.loads(path.read_text())


def environment() -> dict:
    """What the numbers depend on besides the config.

    revision and dirty are git's: the commit, and whether files differ from it; None
    where the code is no checkout.
    """
    here = Path(__file__)
    tracked = _git("ls-files", here.name) == here.name  # Not of a checkout around us.
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "devices": [str(device) for device in jax.devices()],
        "revision": _git("rev-parse", "HEAD") or None if tracked else None,
        "dirty": bool(_git("status", "--porcelain")) if tracked else None,
    }


def _write_environment(path: Path) -> None:
    """Writes environment.json; others that the run was begun in stay under `before`."""
    now, before = environment(), []
    if path.exists():
        old = json.loads(path.read_text())
        before = old.pop("before", [])
        if old != now:
            before.append(old)
    path.write_text(json.dumps(now | {"before": before}, indent=2))


def _git(*arguments: str) -> str:
    """What git says of this file's folder; '' where there is no git, or no checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", os.fspath(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def write_task(folder: Path, task: tuple) -> None:
    """Writes task.json: what the model says (names), and of images of which shape."""
    (folder / "task.json").write_text(json.dumps(task._asdict(), indent=2))


def read_task(folder: Path) -> dict:
    """Reads task.json back.

    Raises:
      InputError: the folder's training hasn't begun.
    """
    path = folder / "task.json"
    if not path.exists():
        raise InputError(f"{folder}: no task.json: train the run first")
    task = json.loads(path.read_text())
    return {k: tuple(v) if isinstance(v, list) else v for k, v in task.items()}


def write_predictions(
    path: Path,
    tasks: tuple[str, ...],
    image: pd.Series,
    found: Predictions,
    raw: np.ndarray | None = None,
) -> None:
    """Writes predictions/<split>.csv: image, patient, and two or three columns a task.

    Args:
      path: of the CSV.
      tasks: T names.
      image: names by id.
      found: probabilities and labels; an unknown label is left empty.
      raw: [N, T], the probabilities before calibration, by which a finding's images
        are ranked: a column T_raw each; None: they are ranked by `found`'s.
    """
    path.parent.mkdir(exist_ok=True)
    names = image[found.id].to_numpy()
    columns = {"image": names, "patient": found.patient}
    known = np.where(found.weight > 0, found.label, np.nan)
    for t, task in enumerate(tasks):
        columns[task] = found.probability[:, t]
        columns[f"{task}_label"] = known[:, t]
        if raw is not None:
            columns[f"{task}_raw"] = raw[:, t]
    pd.DataFrame(columns).to_csv(path, index=False)
