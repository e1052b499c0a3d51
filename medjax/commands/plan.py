"""Which runs a sweep has, what they are called, and how far each of them is."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medjax import config as plain
from medjax.config import Config
from medjax.errors import InputError
from medjax.training import folder as workdir

# What tells the repetitions of one arm apart.
REPEATS = ("seed", "split.seed", "split.fold")
LONGEST = 120  # Characters of a folder's name.
BASELINE = "as configured"  # The arm that overrides nothing.
# What decides who is tested, and on what: arms that differ in it can't be compared.
JUDGED = {
    "data": (
        *("source", "folder", "tasks", "patients", "films", "seed"),
        *("first_patient", "prevalence"),
    ),
    "split": ("test", "cut", "folds"),
}


class Run(NamedTuple):
    """One training of a sweep.

    name: of its folder below arms/, of the overrides alone: it stays when others come.
    arm: what it is but for its seed or fold, and `repeat`, these.
    overrides: of the sweep's config, by dotted field.
    """

    name: str
    arm: str
    repeat: str
    overrides: dict[str, Any]

    def folder(self, sweep: Path) -> Path:
        """The workdir of this run."""
        return sweep / "arms" / self.name


def runs(config: Config, sweep: Iterable[Mapping[str, Any]]) -> list[Run]:
    """The runs of a config's `sweep()`, checked before anything runs.

    Args:
      config: what all have in common.
      sweep: the overrides of each: {'optim.learning_rate': 1e-3, 'seed': 3}. A
        section given as a dict is replaced as a whole.

    Raises:
      InputError: a field that the config doesn't have, a value of another type, two
        runs of the same overrides, arms that would be judged on other images, or no
        run.
    """
    found: dict[str, Run] = {}
    judged: dict[str, tuple[str, dict]] = {}
    for overrides in sweep:
        asked = _judged(configured(config, overrides))
        run = _named(dict(overrides))
        if run.name in found:
            raise InputError(f"sweep(): {run.name} is there twice: give each a seed")
        found[run.name] = run
        name, known = judged.setdefault(run.repeat, (run.name, asked))
        for field, value in asked.items():
            if value != known[field]:
                raise InputError(
                    f"sweep(): {run.name} has {field}={value}, {name} {known[field]}: "
                    "they'd be judged on other images; give each a sweep of its own"
                )
    if not found:
        raise InputError("sweep(): yields no run: yield a dict of overrides for each")
    return list(found.values())


def _judged(config: Config) -> dict[str, str]:
    """{dotted field: value} of JUDGED, as text."""
    asked = plain.as_json(config)
    return {
        f"{section}.{name}": json.dumps(asked[section].get(name))
        for section, names in JUDGED.items()
        for name in names
    }


def configured(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config of one run.

    Raises:
      InputError: as `runs`.
    """
    if not isinstance(overrides, Mapping):
        raise InputError(f"sweep(): yields {overrides!r}: yield a dict of overrides")
    found = config.copy_and_resolve_references().unlock()
    for field, value in overrides.items():
        *above, last = field.split(".")
        section = found
        for name in above:
            section = section.get(name) if isinstance(section, Config) else None
        if not isinstance(section, Config) or last not in section:
            near = plain.nearest(field, found)
            raise InputError(
                f"sweep(): the config has no field {field!r}"
                + (f". Did you mean {near!r}?" if near else "")
            )
        try:
            section[last] = Config(value) if isinstance(value, Mapping) else value
        except TypeError as error:
            why = str(error).splitlines()[0]
            raise InputError(f"sweep(): {field}={value!r}: {why}") from None
    return found.lock()


def claim(folder: Path, config: Config, found: list[Run]) -> None:
    """Writes the sweep's config.json and arms.json, or finds the same config there.

    Runs may be added to a sweep, and left out: what each says stays comparable.

    Raises:
      InputError: the folder holds a sweep of another config, or a run.
    """
    if (folder / "task.json").exists():
        raise InputError(f"{folder}: holds a run: give the sweep a folder of its own")
    path = folder / "config.json"
    if path.exists():
        workdir.refuse_other(
            folder, json.loads(path.read_text()), plain.as_json(config)
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain.as_json(config), indent=2))
    rows = [run._asdict() for run in found]
    (folder / "arms.json").write_text(json.dumps(rows, indent=1))


def read(folder: Path) -> tuple[Config, list[Run]]:
    """Reads back what `claim` wrote.

    Raises:
      InputError: no sweep there.
    """
    path = folder / "arms.json"
    if not path.exists():
        raise InputError(f"{folder}: no arms.json: is this the workdir of a sweep?")
    rows = json.loads(path.read_text())
    found = [
        Run(**{**row, "overrides": plain.tuples(row["overrides"])}) for row in rows
    ]
    config = json.loads((folder / "config.json").read_text())
    return plain.of_json(config), found


def is_finished(run: Run, sweep: Path, config: Config) -> bool:
    """Whether all of the run's reports are written.

    Args:
      config: of this run.
    """
    names = ["report.json", *["report-target.json"] * (config.adapt.name != "none")]
    return all((run.folder(sweep) / name).exists() for name in names)


def error(run: Run, sweep: Path) -> str | None:
    """What made the run fail, one line; None if nothing did."""
    path = run.folder(sweep) / "error.txt"
    return path.read_text().splitlines()[0] if path.exists() else None


def write_error(folder: Path, line: str, details: str = "") -> None:
    """Writes error.txt: one line, then all that is known."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(f"{' '.join(line.split())}\n\n{details}".strip())


def _named(overrides: dict[str, Any]) -> Run:
    flat = dict(_flat(overrides))
    repeat = {field: flat.pop(field) for field in REPEATS if field in flat}
    arm, times = (
        ",".join(f"{field}={_text(value)}" for field, value in each.items())
        for each in (flat, repeat)
    )
    full = ",".join(part for part in (arm, times) if part) or "default"
    name = re.sub(r"[^\w.,=+-]", "_", full)[:LONGEST]
    if name != full:  # It says less than the overrides: a digest tells them apart.
        name = f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:6]}"
    return Run(name, arm or BASELINE, times, overrides)


def _flat(overrides: Mapping[str, Any], above: str = ""):
    """(dotted field, value) of nested dicts."""
    for field, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{field}.")
        else:
            yield f"{above}{field}", value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value)) or "none"
    return str(value)
