"""What `config.data` says of images and scans alike: regions, units, and their records."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from medjax.config import Config, effects, tuples
from medjax.data import intensity_units, nifti, prepared
from medjax.errors import InputError, check_choice

# How scans are read; a field that a source lacks has its default.
READING_DEFAULTS = {
    "spacing": (),
    "foreground": "body",
    "clip": intensity_units.CLIP,
    "windows": (),
}


def regions(config: Config) -> dict[str, tuple[int, ...]]:
    """The regions of `config.data` and their values in a mask.

    Raises:
      InputError: a region without a value, or regions that one mask can't hold.
    """
    values_of = {}
    for name in config.data.regions:
        if name not in config.data["values"]:
            raise InputError(f"data.values: has none for the region {name!r}")
        values_of[name] = tuple(config.data["values"][name])
    if not values_of:
        raise InputError("data.regions=(): name one or more")
    if len(values_of) < len(config.data.regions):
        raise InputError(f"data.regions={config.data.regions}: name each of them once")
    given = [value for values in values_of.values() for value in {*values}]
    exclusive = config.data.get("exclusive", False)
    shared = {value for value in given if exclusive and given.count(value) > 1}
    if twice := shared | {*given} & {*config.data.background}:
        raise InputError(
            f"data.values: {min(twice)} is in data.background too, or in two regions "
            "that data.exclusive keeps apart: give it one place"
        )
    nifti.check_regions(values_of)  # Now, and not after training.
    return values_of


def units_of(config: Config) -> tuple[str, ...]:
    """The unit of each sequence, by `data.units` or the modality; () if all are z-scores.

    Raises:
      InputError: an unknown unit, another number of them than of sequences, or windows
        or a clip that no sequence uses.
    """
    count, given = len(config.data.get("sequences", " ")), config.data.get("units", ())
    given = tuple(given) or (
        intensity_units.OF_MODALITY.get(config.modality, "z_scores"),
    )
    for unit in given:
        check_choice("data.units", unit, intensity_units.UNITS)
    if len(given) not in (1, count):
        raise InputError(
            f"data.units={given}: give one for all of data.sequences, or {count}"
        )
    windows = config.data.get("windows", ())
    if windows and "hounsfield" not in given:
        raise InputError(f"data.windows={windows}: are of CT: set data.units to it")
    for window in windows:
        if np.shape(window) != (2,) or not window[1] > 0:
            raise InputError(
                f"data.windows: {window!r} is no window: give ((centre, width), ...) in "
                "Hounsfield units, ((40, 400),) say"
            )
    clip = tuple(config.data.get("clip", intensity_units.CLIP))
    if "z_scores" not in given and clip != intensity_units.CLIP:
        raise InputError(
            f"data.clip={clip}: is of z-scores, and data.units={given} has none: leave it "
            f"at {intensity_units.CLIP}"
        )
    given *= count if len(given) == 1 else 1
    return given if {*given} - {"z_scores"} else ()


def check_alike(ours: Config, theirs: Config, where: str) -> None:
    """Refuses other data, of the config `where`, that aren't read as a run's own."""
    kinds = {ours.task, theirs.task}
    if len(kinds) == 2 and "segmentation" in kinds:
        raise InputError(
            f"{where}: its task is {theirs.task!r}, the run's {ours.task!r}: give data of "
            "the same kind"
        )
    here, there = (
        {
            name: tuples(c.data.get(name, default)) or default
            for name, default in READING_DEFAULTS.items()
        }
        | {"units": units_of(c) if "units" in c.data else ()}
        for c in (ours, theirs)
    )
    for name in here:
        if here[name] != there[name]:
            raise InputError(
                f"{where}: data.{name} is {there[name]!r}, the run's {here[name]!r}: set "
                "it"
            )


def ready(
    config: Config, folder: Path, files: dict[str, Path], begin: Callable
) -> None:
    """Prepares the data of a config in this folder, unless they are there.

    Args:
      files: what they are made of, see prepared.check_source.
      begin: () -> (how many items there are, the function that writes them).

    Raises:
      InputError: the files can't be used or have changed, or too many were left out.
    """
    limit = config.data.max_quarantined
    if not prepared.is_prepared(folder):
        total, write = begin()
        with Progress() as progress:
            bar = progress.add_task(f"prepare {config.data.source}", total=total)
            step = functools.partial(progress.advance, bar)
            write(files=files, max_quarantined=limit, progress=step)
    prepared.check_source(folder, files)
    left_out = prepared.left_out(folder)
    share = left_out / max(left_out + len(prepared.read_table(folder)), 1)
    if share > limit:
        raise InputError(
            f"{folder}: {share:.1%} of the files were left out, and "
            f"data.max_quarantined allows {limit:.1%}: see its quarantine.csv"
        )


def record_options(config: Config) -> dict[str, Any]:
    """The fields of `config.data` that change a record."""
    fields = config.data.to_dict().items()
    return {k: v for k, v in fields if "records" in effects(f"data.{k}")}


def digest(options: dict[str, Any], reader: int) -> str:
    """Returns a folder's digest: other options, or another reader, give another."""
    text = json.dumps([options, reader], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
