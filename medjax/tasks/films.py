"""The images of a classification: how they are read, prepared and labelled."""

import collections
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax import losses
from medjax.cohort import duplicates
from medjax.config import Config
from medjax.data import (
    foreground,
    image_files,
    intensity_units,
    liver_phantom,
    loader,
    prepared,
    records,
    sources,
)
from medjax.data.dicom import Film
from medjax.data.normalisation import unit_range, z_scores
from medjax.data.scan import Scan
from medjax.data.sources import scan_files, volumes
from medjax.errors import InputError, check_choice
from medjax.files import write_table
from medjax.tasks import data_fields
from medjax.training import workdir

LARGE_SIDE = 32  # Pixels of a side that suffice for any network.


class FindingsOutput(NamedTuple):
    """What a classifier says of an image; task.json of a run."""

    names: tuple[str, ...]  # T findings or classes.
    exclusive: bool  # Whether an image has exactly one of them.
    shape: tuple[int, ...]  # Of the image, (H, W, C) or (D, H, W, C).
    bits: int = 8  # Of a pixel, or 16.
    spacing: tuple[float, ...] = ()  # [3] mm along D, H, W of volumes that have one.
    sequences: tuple[str, ...] = ()  # [C] names of their channels.
    masks: tuple[str, ...] = ()  # [K] regions of the masks that it draws beside.

    @property
    def stratified(self) -> tuple[str, ...]:
        """Names the findings of which every side of a split gets its share."""
        return self.names

    def classes(self, label: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and labels [N, T] of a softmax."""
        return self.names, label

    def check_loss(self, name: str) -> None:
        """Refuses a loss of classes for findings, and the other way round."""
        if (name in losses.SOFTMAX) != self.exclusive:
            right, kind = "weighted_bce", "multilabel"
            if self.exclusive:
                right, kind = "softmax_cross_entropy", "multiclass"
            raise InputError(
                f"loss.name={name!r} is not for task={kind!r}: use {right!r}"
            )


class FilmData(NamedTuple):
    """Prepared images."""

    path: Path  # Folder of their records.
    table: pd.DataFrame  # One row an image, see data/prepared.py.
    output: FindingsOutput

    def films(self, ids: np.ndarray) -> loader.Images:
        """The images of these numbers, in this order."""
        channels = self.output.shape[-1]
        return loader.Images(self.path, ids, self.label(ids), channels)

    def label(self, ids: np.ndarray) -> np.ndarray:
        """[N, T] labels of these images, NaN where unknown."""
        label = self.table.set_index("id").loc[ids, list(self.output.names)]
        return label.to_numpy(float)

    weighted = label  # What class weights are computed from.

    def pairs(self) -> pd.DataFrame:
        """The pairs of records that show one image, kept beside the records."""
        path = self.path / f"duplicates-{duplicates.SEARCH}.csv"
        if not path.exists():
            write_table(path, _pairs((self, self.table["id"].to_numpy())))
        return prepared.read_list(path)

    def copies(self, ids: np.ndarray, other: "FilmData", others: np.ndarray):
        """The pairs that show one picture: `id` of these images, `other` of those."""
        pairs = _pairs((self, ids), (other, others))
        at = pairs["other"] - len(ids)
        return pairs.assign(id=ids[pairs["id"]], other=others[at])


def _pairs(*parts: tuple[FilmData, np.ndarray]) -> pd.DataFrame:
    """Pairs that show one image, numbered through the ids of one part, or across two."""
    films = [data.films(ids) for data, ids in parts]
    places = [(part, n) for part in films for n in range(len(part))]

    def across(pairs: pd.DataFrame) -> pd.DataFrame:
        return duplicates.across(pairs, len(films[0])) if len(parts) > 1 else pairs

    outputs, pairs = [data.output for data, _ in parts], []
    kinds = {(len(o.shape), o.spacing != (), o.sequences) for o in outputs}
    if len(kinds) == 1 and len(outputs[0].shape) == 4:
        scores = (z_scores(unit_range(part[n]["image"])) for part, n in places)
        thumbnails = [duplicates.thumbnail(np.asarray(volume)) for volume in scores]
        pairs.append(across(duplicates.alike(np.stack(thumbnails))))
    # Volumes without spacing may be shapes of one grey level, whose thumbnails are empty.
    if not (pairs and outputs[0].spacing):
        hashes = [records.read_hashes(data.path)[ids] for data, ids in parts]
        near = across(duplicates.candidates(np.concatenate(hashes)))
        seen = duplicates.confirm(near, lambda n: places[n][0].picture(places[n][1]))
        pairs.append(seen)
    return pd.concat(pairs).drop_duplicates(["id", "other"], ignore_index=True)


def is_exclusive(config: Config) -> bool:
    """Whether an image has exactly one of the classes."""
    return config.task == "multiclass"


def data(config: Config) -> FilmData:
    """The records of `config.data`; they are made where they are missing.

    Raises:
      InputError: an unknown source, refused files, or changed tables.
    """
    output, options = expected(config), data_fields.record_options(config)
    if "units" in options:
        options |= {
            "units": data_fields.units_of(config),
            "windows": config.data.windows,
        }
    kind = options.pop("source")
    check_choice("data.source", kind, sources.IMAGES)
    make = sources.IMAGES[kind]
    if "task" in inspect.signature(make).parameters:  # What the labels mean.
        options["task"] = config.task
    side = f"{config.data.side}px-" if "side" in config.data else ""
    name = f"{kind}-{side}{data_fields.digest(options, records.READER)}"
    root = Path(config.data.records).expanduser()
    path = records.folder(root, name)

    def begin() -> tuple[int, Callable]:
        source = make(**options)
        write = functools.partial(records.prepare, source, records=root, name=name)
        return source.total, write

    data_fields.ready(config, path, sources.FILES_OF[kind](**options), begin)
    table = prepared.read_table(path)
    columns = records.tasks_of(table)
    names = tuple(config.data.tasks) or columns
    # The phantom says 'mass', NIH 'Mass': a finding is called as it is asked for.
    spelt = {name.lower(): name for name in names if name not in columns}
    table = table.rename(columns={k: spelt.get(k.lower(), k) for k in columns})
    columns = records.tasks_of(table)
    for name in names:
        if name not in columns:
            raise InputError(f"data.tasks: {name!r} is none of {', '.join(columns)}")
    check_names(names)
    exclusive = is_exclusive(config)
    if exclusive:
        check_classes(table, names)
    pixels = records.pixels_of(path)
    *space, channels = pixels.shape[1:]
    shape, bits = (*space, channels - len(output.masks)), 8 * pixels.itemsize
    return FilmData(path, table, output._replace(names=names, shape=shape, bits=bits))


def expected(config: Config) -> FindingsOutput:
    """Describes the run's output, as far as the config alone tells it."""
    c = config.data
    spacing, sequences = tuple(c.get("spacing", ())), tuple(c.get("sequences", ()))
    side = min(c.get("side", LARGE_SIDE), LARGE_SIDE)
    shape = (side, side, 1)
    if spacing:
        shape = tuple(c.shape)
        for field, values in (("shape", shape), ("spacing", spacing)):
            if len(values) != 3 or not all(0 < n < np.inf for n in values):
                raise InputError(f"data.{field}={values}: give three positive numbers")
        of_channel, windows = data_fields.units_of(config), c.get("windows", ())
        if "hounsfield" in of_channel and not windows:
            raise InputError(
                "data.windows=(): CT to classify has no masks whose voxels could scale it: "
                "name windows in Hounsfield units, ((40, 400),) say, or set "
                "data.units='z_scores'"
            )
        channels = intensity_units.channels(of_channel, windows) or sequences or ("",)
        shape = (*shape, len(channels))
        kind = c.get("foreground", "body")
        check_choice("data.foreground", kind, foreground.KINDS)
    masks = tuple(regions_of(config))
    return FindingsOutput(
        ("", " "), is_exclusive(config), shape, 8, spacing, sequences, masks
    )


def regions_of(config: Config) -> dict[str, tuple[int, ...]]:
    """The regions of masks beside the labels, as data_fields.regions; {} without masks."""
    if config.data.get("masks", False):
        return {liver_phantom.FINDING: (1,)}
    return data_fields.regions(config) if config.data.get("mask", "") else {}


def find(config: Config, path: str) -> tuple[list[Path], list[Path]]:
    """The images in a file or a folder, and the other files beside them."""
    if not config.data.get("spacing", ()):
        return image_files.image_paths(path)
    return scan_files.volumes_in(path, **_layout(config))


def _layout(config: Config) -> dict[str, Any]:
    """Returns how a volume's files are found; a phantom's would be one file each."""
    data = config.data.to_dict()
    return {"sequences": data.get("sequences", ("",)), "files": data.get("files", {})}


def read(
    config: Config, output: FindingsOutput, path: Path
) -> tuple[np.ndarray, Film | Scan]:
    """An image as the network sees it, and what was read of its file."""
    if not output.spacing:
        film = image_files.read(path)
        return image_files.fit(film.pixels, output.shape, output.bits), film
    options = {k: v for k, v in config.data.items() if k in volumes.OPTIONS}
    options["units"] = data_fields.units_of(config)
    case = volumes.read(path, **_layout(config), **options)
    return volumes.record(case, output.shape[:-1]), case


def check_names(names: Sequence[str]) -> None:
    """Refuses findings whose columns in a table of predictions would be others'."""
    columns = collections.Counter(["image", "patient", "class", "plausible", "warning"])
    for name in names:
        columns.update([name, *(name + suffix for suffix in workdir.SUFFIXES)])
    if twice := [column for column, count in columns.items() if count > 1]:
        raise InputError(
            f"the data has a finding or class whose column {twice[0]!r} in the "
            "predictions would be there twice: rename it"
        )


def check_classes(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Refuses an image of several classes, or of none, and a single class."""
    label = table[list(classes)].to_numpy(float)
    unknown = np.isnan(label).all(axis=1)
    wrong = ~unknown & ~np.isclose(label.sum(axis=1), 1)  # NaN is wrong too.
    if wrong.any() or len(classes) < 2:
        image = [*table["image"][wrong], "every image"][0]
        raise InputError(
            f"task='multiclass': {image} has not exactly one of the classes "
            f"{', '.join(classes)}: set task='multilabel', or correct data.tasks"
        )
