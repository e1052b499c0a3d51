"""The runs of a sweep: their overrides, their names, and how far each of them is."""

import difflib
import functools
import hashlib
import json
import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medjax import tasks
from medjax.config import (
    Config,
    affecting,
    config_as_json,
    fields,
    flatten,
    read_config,
    tuples,
)
from medjax.errors import InputError
from medjax.files import read_json, write_json, write_text
from medjax.training import workdir

# What tells the repetitions of one arm apart.
REPEATS = ("seed", "split.seed", "split.fold")
MAX_NAME = 120  # Characters of a folder's name.
BASELINE = "as configured"  # The arm that overrides nothing.


class SweepRun(NamedTuple):
    """One training of a sweep."""

    # Of its folder; made of the overrides alone, so that it stays when runs are added.
    name: str
    arm: str  # The overrides but the seed and the fold, as text.
    repeat: str  # Seed and fold.
    overrides: dict[str, Any]  # Of the sweep's config, by dotted field.

    def folder(self, sweep: Path) -> Path:
        return sweep / "arms" / self.name


def runs(config: Config, sweep: Iterable[Mapping[str, Any]]) -> list[SweepRun]:
    """The runs of a config's `sweep()`, checked before anything runs.

    `sweep` has the overrides of each: {'optim.learning_rate': 1e-3, 'seed': 3}. A
    section given as a dict is replaced as a whole.

    Raises:
      InputError: a field that the config doesn't have, a value of another type, two
        runs of the same overrides, arms that would be tested on other images or on
        none, or no run.
    """
    by_name: dict[str, SweepRun] = {}
    first: dict[str, tuple[str, dict]] = {}
    for overrides in sweep:
        changed = configured(config, overrides)
        tested_on = flatten(affecting(changed, "judged"))
        run = _named(dict(overrides))
        if run.name in by_name:
            raise InputError(f"sweep(): {run.name} is there twice: give each a seed")
        if reason := tasks.of(changed).untested(changed):
            raise InputError(f"sweep(): {run.name} can't be compared: {reason}")
        by_name[run.name] = run
        name, before = first.setdefault(run.repeat, (run.name, tested_on))
        for field in tested_on | before:
            here, there = (json.dumps(x.get(field)) for x in (tested_on, before))
            if here != there:
                raise InputError(
                    f"sweep(): {run.name} has {field}={here}, {name} {there}: they'd be "
                    "tested on other images; give each a sweep of its own"
                )
    if not by_name:
        raise InputError("sweep(): yields no run: yield a dict of overrides for each")
    return list(by_name.values())


def configured(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config of one run; raises as `runs`."""
    if not isinstance(overrides, Mapping):
        raise InputError(f"sweep(): yields {overrides!r}: yield a dict of overrides")
    changed = config.copy_and_resolve_references().unlock()
    for field, value in overrides.items():
        names = [*fields(changed)]
        if field not in names:
            near = difflib.get_close_matches(field, names, n=1)
            raise InputError(
                f"sweep(): the config has no field {field!r}"
                + (f". Did you mean {near[0]!r}?" if near else "")
            )
        *above, last = field.split(".")
        section = functools.reduce(operator.getitem, above, changed)
        try:
            section[last] = Config(value) if isinstance(value, Mapping) else value
        except TypeError as error:
            why = str(error).splitlines()[0]
            raise InputError(f"sweep(): {field}={value!r}: {why}") from None
    return changed.lock()


def claim(folder: Path, config: Config, planned: list[SweepRun]) -> None:
    """Writes the sweep's config.json and arms.json, or finds the same config there.

    Runs may be added to a sweep and left out: the others stay comparable.
    """
    if (folder / "task.json").exists():
        raise InputError(f"{folder}: holds a run: give the sweep a folder of its own")
    path = folder / "config.json"
    if path.exists():
        workdir.refuse_other(
            folder, config_as_json(read_config(folder)), config_as_json(config)
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config_as_json(config))
    rows = [run._asdict() for run in planned]
    write_json(folder / "arms.json", rows)


def read(folder: Path) -> tuple[Config, list[SweepRun]]:
    """Reads back what `claim` wrote."""
    path = folder / "arms.json"
    if not path.exists():
        raise InputError(f"{folder}: no arms.json: is this the workdir of a sweep?")
    rows = read_json(path)
    planned = [
        SweepRun(**{**row, "overrides": tuples(row["overrides"])}) for row in rows
    ]
    return read_config(folder), planned


def is_finished(run: SweepRun, sweep: Path) -> bool:
    """Whether all reports of the run are written."""
    folder = run.folder(sweep)
    names = ["report.json", *["report-target.json"] * (folder / "target.csv").exists()]
    return all((folder / name).exists() for name in names)


def error(run: SweepRun, sweep: Path) -> str | None:
    """Returns why the run failed, one line; None if it didn't."""
    path = run.folder(sweep) / "error.txt"
    return path.read_text().splitlines()[0] if path.exists() else None


def write_error(folder: Path, line: str, details: str = "") -> None:
    """Writes error.txt: one line, then the details."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "error.txt", f"{' '.join(line.split())}\n\n{details}".strip())


def _named(overrides: dict[str, Any]) -> SweepRun:
    flat = flatten(overrides)
    repeat = {field: flat.pop(field) for field in REPEATS if field in flat}
    arm, times = (
        ",".join(f"{field}={_text(value)}" for field, value in each.items())
        for each in (flat, repeat)
    )
    full = ",".join(part for part in (arm, times) if part) or "default"
    name = re.sub(r"[^\w.,=+-]", "_", full)[:MAX_NAME]
    if name != full:  # Two such names may be equal: a digest tells them apart.
        name = f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:6]}"
    return SweepRun(name, arm or BASELINE, times, overrides)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value)) or "none"
    return str(value)
