"""The config: reading one back, and what each of its fields affects."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medjax.errors import InputError
from medjax.files import read_json

Config = ConfigDict

# What a field affects, by the longest of these names that it begins with:
#   records  the prepared data
#   judged   the patients that a run is tested on, or what is measured of them
#   network  the compiled model
#   program  the compiled update, which the arms of one program share
# A field without an effect changes numbers, the order of the images or the report. A
# run that is resumed must have the same value in every field.
EFFECTS: dict[str, tuple[str, ...]] = {
    "": ("program",),
    "adapt.weight": (),
    "data": ("records", "program"),
    "data.max_quarantined": ("program",),
    **dict.fromkeys(("data.records", "data.windows", "data.exclusive"), ("program",)),
    **dict.fromkeys(("data.split", "data.tasks"), ("judged", "program")),
    **dict.fromkeys(
        (
            *("data.source", "data.folder", "data.patients", "data.first_patient"),
            *("data.seed", "data.films", "data.prevalence"),
            *("data.regions", "data.values", "data.mask", "data.spacing"),
            *("data.shape", "data.without_tumour", "data.without_enhancing"),
        ),
        ("records", "judged", "program"),
    ),
    "evaluation": (),
    **dict.fromkeys(("evaluation.copies", "evaluation.flip"), ("network",)),
    "evaluation.tolerance": ("judged",),
    "explore": (),
    "imbalance": (),
    "intensity": ("network", "program"),
    "model": ("network", "program"),
    "optim.ema": (),
    "optim.learning_rate": (),
    "optim.weight_decay": (),
    "patch.size": ("network", "program"),
    "patch.slices": ("network", "program"),
    "resampling": (),
    "seed": (),
    "split": (),
    **dict.fromkeys(("split.test", "split.cut", "split.folds"), ("judged",)),
    "train.dtype": ("network", "program"),
    "transfer.decay": (),
    "transfer.every": (),
    "transfer.mode": ("network", "program"),
    "transfer.penalty": (),
}


def effects(field: str) -> tuple[str, ...]:
    """What a dotted field affects, see EFFECTS."""
    names = field.split(".")
    above = (".".join(names[:n]) for n in range(len(names), 0, -1))
    return next((EFFECTS[name] for name in above if name in EFFECTS), EFFECTS[""])


def affecting(config: Config, effect: str) -> dict:
    """The fields of a config with that effect, as nested plain data."""

    def part(section: dict, above: str) -> dict:
        chosen = {}
        for name, value in section.items():
            if isinstance(value, dict) and value:
                if below := part(value, f"{above}{name}."):
                    chosen[name] = below
            elif effect in effects(above + name):
                chosen[name] = value
        return chosen

    return part(config_as_json(config), "")


def named(module: Any, name: str, field: str, *first: str, **arguments) -> Callable:
    """The public function or network of that name, the value of a field.

    Args:
      first: names of its first parameters, which its callers give.
      arguments: are bound to it.

    Raises:
      InputError: there is none of that name, or it takes other arguments.
    """
    function = getattr(module, name, None)
    whole = getattr(function, "func", function)  # Of a partial.
    ours = str(getattr(whole, "__module__", "")).startswith("medjax.")
    kind = inspect.isfunction(whole) or hasattr(whole, "init")
    if name.startswith("_") or not ours or not kind:
        raise InputError(f"{field}={name!r}: {module.__name__} has none of that name")
    if not (first or arguments):
        return function
    signature = inspect.signature(function)
    if tuple(signature.parameters)[: len(first)] != first:
        raise InputError(f"{field}={name!r}: is another kind of function")
    try:
        signature.bind(*first, **arguments)
    except TypeError as error:
        raise InputError(f"{field}={name!r}: {error}") from None
    return functools.partial(function, **arguments)


def config_as_json(config: Config) -> dict:
    """The config as JSON holds it: tuples are lists."""
    return json.loads(config.to_json())


def tuples(value: Any) -> Any:
    """Plain data with tuples for its lists: flags may change tuples only."""
    if isinstance(value, dict):
        return {name: tuples(each) for name, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def flatten(values: dict, above: str = "") -> dict[str, Any]:
    """{'optim.learning_rate': 0.1, ...} of nested dicts; an empty dict is a value."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat


def fields(config: Config, above: str = "") -> Iterator[str]:
    """The dotted names of a config's fields and sections."""
    for name, value in config.items():
        yield f"{above}{name}"
        if isinstance(value, Config):
            yield from fields(value, f"{above}{name}.")


def get_config(path: str) -> Config:
    """The config of a run, for `--config=RUN/config.json`.

    ml_collections loads Python files only, and gives what follows a colon to their
    get_config: launch.py turns the flag into `--config=medjax/config.py:RUN/config.json`.

    Raises:
      OSError: the file isn't there, or is no config; launch.py shows it as one line.
    """
    try:
        values = json.loads(Path(path).read_bytes(), object_pairs_hook=_once)
    except ValueError as error:
        raise OSError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict) or "data" not in values:
        raise OSError(f"{path}: not the config.json of a run")
    return Config(tuples(values))


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """An object of a JSON file, in which no name is there twice."""
    if len(values := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return values


FIELDS = (  # That every run has; the last ones are the newest.
    *("seed", "explore", "modality", "task", "data", "split", "augment", "model"),
    *("transfer", "adapt", "loss", "imbalance", "resampling", "optim", "train"),
    *("evaluation", "ensemble", "resampling.defer", "transfer.overlap"),
)


def read_config(folder: Path) -> Config:
    """The config of a run; InputError: no run is there, or one of an older version."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json: is this the workdir of a run?")
    values = read_json(path)
    named = {*fields(Config(values))}
    if missing := [name for name in FIELDS if name not in named]:
        raise InputError(
            f"{path}: has no {missing[0]!r}: a run of an older medjax; read it with that "
            "version, or train it again"
        )
    return Config(tuples(values))
