"""Which scans a segmentation learns from: prepared volumes, and who is on which side."""

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from rich.progress import Progress

from medjax.cohort import split as splits
from medjax.config import Config
from medjax.data import loader, nifti, scan, volumes
from medjax.data import prepared as store
from medjax.data.phantom import brain
from medjax.data.sources import scans
from medjax.data.sources.scans import ScanFiles
from medjax.data.volumes import Prepared
from medjax.errors import InputError

SOURCES = {"folders": scans.in_folders, "decathlon": scans.in_decathlon}
FINDING = ("sequences", "files", "mask", "part")  # What SOURCES take.
READING = ("background", "spacing", "grids", "missing", "margin", "clip")
PHANTOM = "brain_phantom"
BRATS = {  # A mask's values in each region.
    "whole": (brain.NECROSIS, brain.OEDEMA, brain.ENHANCING),
    "core": (brain.NECROSIS, brain.ENHANCING),
    "enhancing": (brain.ENHANCING,),
}
HALF = ", half "  # Between a volume's name and its side, in the manifest.


def data(config: Config) -> Prepared:
    """The prepared volumes of `config.data`; they are made where they are missing.

    Raises:
      InputError: an unknown source, files that are refused, more of them than may be
        left out, or files that have changed since the volumes were made.
    """
    options = _options(config)
    text = json.dumps(options, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{config.data.source}-{digest}"
    folder = Path(config.data.records).expanduser() / "volumes" / name
    if not store.is_prepared(folder):
        _prepare(config, folder, options)
    prepared = volumes.read_prepared(folder)
    source = Path(config.data.get("folder", "")).expanduser()
    if config.data.source != PHANTOM and source.is_dir():
        files = (path for one in found(config, source) for path in one.paths())
        digests = store.digest_files(source, files, folder / "seen.json")
        store.check_source(folder, digests)
    left_out = store.left_out(folder)
    share = left_out / (left_out + len(prepared.table))
    if share > config.data.max_quarantined:
        raise InputError(
            f"{folder}: {share:.1%} of the patients were left out, and "
            f"data.max_quarantined allows {config.data.max_quarantined:.1%}: see its "
            "quarantine.csv"
        )
    return prepared


def as_stored(config: Config, prepared: Prepared) -> Iterator[scan.Scan]:
    """The prepared patients once more, on their files' grids and in their files' units.

    They are read one at a time, when they are asked for.
    """
    ready = set(prepared.table["image"])
    for one in _patients(config, units="own"):
        if one.name in ready:
            yield one.read()


def _options(config: Config) -> dict:
    """What of `config.data` changes a voxel."""
    others = ("records", "max_quarantined", "split")
    return {k: v for k, v in config.data.to_dict().items() if k not in others}


def _patients(config: Config, units: str = "z_scores") -> list[volumes.UnreadScan]:
    """Everybody of `config.data`, to be read on its grid; in 'own' units on theirs."""
    if config.data.source == PHANTOM:
        return _phantoms(units, **_options(config))
    reading = _reading(config) | ({"spacing": ()} if units == "own" else {})
    return volumes.from_files(
        found(config, config.data.folder),
        regions=_regions(config),
        patient=config.data.get("patient", ""),
        units=units,
        **reading,
    )


def _prepare(config: Config, folder: Path, options: dict) -> None:
    """Makes the volumes of `config.data` in that folder."""
    if config.data.source == PHANTOM:
        sequences, regions = brain.SEQUENCES, BRATS
    else:
        sequences, regions = config.data.sequences, _regions(config)
    read = _patients(config)
    with Progress() as progress:
        bar = progress.add_task(f"prepare {folder.name}", total=len(read))
        volumes.prepare(
            read,
            folder,
            sequences=sequences,
            regions=regions,
            options=options,
            max_quarantined=config.data.max_quarantined,
            progress=lambda: progress.advance(bar),
        )


def found(config: Config, path: str, *, masks: bool = True) -> list[ScanFiles]:
    """The files of the patients in a folder, laid out as `config.data.source` says.

    Raises:
      InputError: an unknown source, or no patient there.
    """
    source = config.data.source
    if source == PHANTOM:
        own = {s: f"*_{s}.nii.gz" for s in brain.SEQUENCES}
        mask = "*_seg.nii.gz" if masks else ""
        return scans.in_folders(
            Path(path), sequences=brain.SEQUENCES, files=own, mask=mask
        )
    if source not in SOURCES:
        known = ", ".join(map(repr, (PHANTOM, *SOURCES)))
        raise InputError(f"data.source={source!r} is unknown: use {known}")
    find = SOURCES[source]
    takes = inspect.signature(find).parameters  # Only one layout has patterns.
    options = {
        name: config.data[name]
        for name in FINDING
        if name in config.data and name in takes
    }
    if not masks:
        options.pop("mask", None)
    if "files" in options:
        options["files"] = options["files"].to_dict()
    people = find(Path(path), **options)
    return people if masks else [one._replace(mask=None) for one in people]


def to_predict(config: Config, images: list[str]) -> list[volumes.UnreadScan]:
    """Patients' files without their masks, to be read as the run's own were."""
    regions = BRATS if config.data.source == PHANTOM else _regions(config)
    wanted = [one for path in images for one in found(config, path, masks=False)]
    return volumes.from_files(
        wanted, regions=regions, labelled=False, patient="(.*)", **_reading(config)
    )


def manifest(config: Config, prepared: Prepared) -> pd.DataFrame:
    """Who trains, validates and tests, by `config.data.split`.

    'patients' samples them as `config.split` says. 'leave_one_out' tests on one
    patient, number `config.split.fold`; 'halves' trains on the left hemispheres and
    tests on the right ones of the same people, which flatters. Both leave nobody to
    validate, and 'all' nobody to test either.

    Raises:
      InputError: an unknown split, or too few patients for it.
    """
    way, c = config.data.split, config.split
    table = prepared.table[["id", "image", "patient"]]
    if way == "patients":
        shares = {"test": c.test, "validation": c.validation}
        return splits.split(table, (), seed=config.seed, minority=0.0, **shares)
    if way == "all":
        return table.assign(split="train")
    if way == "leave_one_out":
        people = np.unique(table["patient"])
        if len(people) < 2 or not 0 <= c.fold < len(people):
            raise InputError(
                f"split.fold={c.fold}: the number of the patient to test, 0 to "
                f"{len(people) - 1}; leave_one_out needs two patients at least"
            )
        tested = table["patient"] == people[c.fold]
        return table.assign(split=np.where(tested, "test", "train"))
    if way == "halves":
        sides = [
            table.assign(image=table["image"] + HALF + half, split=split)
            for half, split in (("left", "train"), ("right", "test"))
        ]
        both = pd.concat(sides, ignore_index=True)
        return both.assign(id=np.arange(len(both)))
    raise InputError(
        f"data.split={way!r}: use 'patients', 'leave_one_out', 'halves' or 'all'"
    )


def check(config: Config, prepared: Prepared, folder: Path) -> pd.DataFrame:
    """The manifest of a run, which must be the one that its config makes of the data.

    Raises:
      InputError: the data or splits.csv have changed since.
    """
    written = splits.read(folder / "splits.csv")
    if not written.equals(manifest(config, prepared)[list(written)]):
        raise InputError(
            f"{folder}/splits.csv: isn't the split of these data by this config: the "
            "files or the split have changed; train again in a new workdir"
        )
    return written


def parts(
    prepared: Prepared, manifest: pd.DataFrame, side: str
) -> dict[str, volumes.Part]:
    """The volumes of one side, or halves of them, by their names in the manifest."""
    numbers = dict(zip(prepared.table["image"], prepared.table["id"], strict=True))
    chosen = manifest[manifest["split"] == side]
    named = {}
    for image, patient in zip(chosen["image"], chosen["patient"], strict=True):
        name, _, half = image.partition(HALF)
        named[image] = volumes.Part(numbers[name], int(patient), half or "whole")
    return named


def train_batches(
    config: Config, prepared: Prepared, parts: list[volumes.Part]
) -> loader.TrainBatches:
    """Device batches of whole volumes; `config.train.batch` counts patches.

    Raises:
      InputError: the devices can't share them.
    """
    shards = jax.device_count() * config.patch.each
    if config.train.batch % shards:
        raise InputError(
            f"train.batch={config.train.batch}: give a multiple of {shards}, the "
            f"patches of a volume (patch.each={config.patch.each}) times the devices"
        )
    return loader.TrainBatches(
        volumes.Volumes(prepared, parts, config.patch.size),
        seed=config.seed,
        batch=config.train.batch // shards,
        devices=jax.local_device_count(),
        threads=config.train.threads,
        ahead=1,  # Whole volumes are large, and a step is long.
    )


def _regions(config: Config) -> dict[str, tuple[int, ...]]:
    """Region -> its values, in the order of `config.data.regions`.

    Raises:
      InputError: a region without values, or regions that no mask can be written of.
    """
    values = config.data["values"]
    for name in config.data.regions:
        if name not in values:
            raise InputError(f"data.values: has none for the region {name!r}")
    regions = {name: tuple(values[name]) for name in config.data.regions}
    nifti.paint(np.zeros(len(regions)), regions)  # Now, and not after training.
    return regions


def _reading(config: Config) -> dict:
    return {name: config.data[name] for name in READING if name in config.data}


def _phantoms(
    units: str, source: str, patients: int, first_patient: int, **options
) -> list[volumes.UnreadScan]:
    """Synthetic patients, drawn when they are read."""

    def read(number: int) -> scan.Scan:
        one = brain.patient(number, **options)
        return scan.make_scan(one.image, one.label, one.affine, units=units)

    numbers = range(first_patient, first_patient + patients)
    return [
        volumes.UnreadScan(
            f"{source}{number:04d}", number, functools.partial(read, number)
        )
        for number in numbers
    ]
