"""The volumes of a segmentation: prepared arrays, their split, their batches."""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax import losses
from medjax.cohort import duplicates, manifests, splits
from medjax.config import Config
from medjax.data import (
    brain_phantom,
    foreground,
    intensity_units,
    prepared,
    scan,
    sources,
    volumes,
)
from medjax.data.fingerprint import Pool
from medjax.data.intensity_units import Channel
from medjax.data.sources import scan_files
from medjax.data.sources.scan_files import ScanFiles
from medjax.data.volumes import Prepared
from medjax.errors import InputError, check_choice
from medjax.tasks import data_fields, splitting

SOURCE_FIELDS = ("sequences", "files", "mask", "part")  # What sources.SCANS take.
READING = ("background", "spacing", "grids", "missing", "foreground", "margin", "clip")
PHANTOM = "brain_phantom"
BRATS_REGIONS = {  # A mask's values in each region.
    "whole": (brain_phantom.NECROSIS, brain_phantom.OEDEMA, brain_phantom.ENHANCING),
    "core": (brain_phantom.NECROSIS, brain_phantom.ENHANCING),
    "enhancing": (brain_phantom.ENHANCING,),
}
SPLIT_KINDS = {  # Values of `data.split`, and which splits they fill.
    "patients": manifests.SPLITS,
    "leave_one_out": ("train", "test"),
    "halves": ("train", "test"),
    "all": ("train",),
}
AXIS_COLUMNS = ("depth", "height", "width")
log = logging.getLogger("medjax")


class MasksOutput(NamedTuple):
    """What a segmentation says of a volume; task.json of a run."""

    sequences: tuple[str, ...]  # C names of an image's channels, in their order.
    regions: dict[str, tuple[int, ...]]  # K channels of a mask -> values in a file.
    spacing: tuple[float, ...] = ()  # [3] mm along D, H, W, the median volume's.
    units: tuple[str, ...] = ()  # [C] of the sequences; () if all are z-scores.
    channels: tuple[Channel, ...] = ()  # The network's; () if all are z-scores.
    exclusive: bool = False  # Whether a voxel is in one region at most: softmax.

    stratified = ()  # Splits don't look at regions.
    masks = ()  # Beside what it says: it says nothing else.

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.regions)

    @property
    def inputs(self) -> int:
        """The number of channels that the network sees."""
        return len(self.channels or self.sequences)

    @property
    def apart(self) -> np.ndarray:
        """[K, K] bool: the regions that have no value in common."""
        values = [set(inside) for inside in self.regions.values()]
        return np.array([[a.isdisjoint(b) for b in values] for a in values])

    def classes(self, label: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and labels [N, K + 1] of a softmax, which has the background too."""
        rest = np.maximum(1 - np.sum(label, axis=1, keepdims=True), 0)
        return (*self.names, "background"), np.append(label, rest, axis=1)

    def check_loss(self, name: str) -> None:
        if name == "auc_margin" or (name in losses.SOFTMAX and not self.exclusive):
            raise InputError(
                f"loss.name={name!r}: is not of masks that may overlap: take "
                "'soft_dice', 'tversky', 'weighted_bce', 'focal' or a 'compound' of "
                "them; of regions that exclude each other set data.exclusive=True"
            )


class ScanData(NamedTuple):
    """Prepared volumes, or halves of them."""

    path: Path
    # One row a volume or half, see data/volumes.py; also its `volume` (the number of
    # its files), `half`, `sex`, `age` (see scan_files.participants) and a column a
    # region: 1 where it has any, NaN unknown.
    table: pd.DataFrame
    output: MasksOutput
    prepared: Prepared

    def label(self, ids: np.ndarray) -> np.ndarray:
        """[N, K]: 1 where a volume has the region, 0 where it hasn't, NaN unknown."""
        label = self.table.set_index("id").loc[ids, list(self.output.names)]
        return label.to_numpy(float)

    def weighted(self, ids: np.ndarray) -> np.ndarray:
        """[N, K], what class weights are computed from; NaN where a volume has no mask.

        The share of all these volumes' voxels in each region: a weight then compares
        voxels, whatever the volumes' sizes.
        """
        rows = self.table.set_index("id").loc[ids]
        voxels = rows[[f"voxels_{name}" for name in self.output.names]].to_numpy(float)
        total = rows[list(AXIS_COLUMNS)].prod(axis=1).to_numpy(float)[:, None]
        known = ~np.isnan(voxels)
        share = np.nansum(voxels, axis=0) / np.sum(total * known, axis=0)
        return np.where(known, share, np.nan)

    def parts(self, ids: np.ndarray) -> dict[str, volumes.Part]:
        """These volumes, or halves, by their names."""
        rows = self.table.set_index("id").loc[ids]
        return {
            row.image: volumes.Part(row.volume, row.half) for row in rows.itertuples()
        }

    def images(self, patch: Sequence[int], ids: np.ndarray) -> volumes.Volumes:
        """The training images: whole volumes, of which the device draws patches."""
        # One shape for all of the data: other splits share the compiled step.
        largest = np.maximum(self.table[list(AXIS_COLUMNS)].max(), patch)
        parts = [*self.parts(ids).values()]
        channels = self.output.channels
        return volumes.Volumes(self.prepared, parts, largest.tolist(), channels)

    def pairs(self) -> pd.DataFrame:
        """Pairs of volumes that show one image, `id` and `other`; halves have none."""
        if (self.table["half"] != "whole").any():
            return pd.DataFrame(columns=["id", "other"], dtype=int)
        return duplicates.alike(self._thumbnails(self.table["id"].to_numpy()))

    def copies(self, ids: np.ndarray, other: "ScanData", others: np.ndarray):
        """The pairs that show one image: `id` of these volumes, `other` of those."""
        thumbnails = self._thumbnails(ids), other._thumbnails(others)
        pairs = duplicates.alike(np.concatenate(thumbnails))
        pairs = duplicates.across(pairs, len(ids))
        return pairs.assign(
            id=ids[pairs["id"]], other=others[pairs["other"] - len(ids)]
        )

    def _thumbnails(self, ids: np.ndarray) -> np.ndarray:
        """[N, C, S, S, S]; halves have that of the whole volume."""
        rows = self.table.set_index("id").loc[ids, "volume"]
        return volumes.read_thumbnails(self.path)[rows]


def data(config: Config) -> ScanData:
    """The prepared volumes of `config.data`; they are made where they are missing.

    Raises:
      InputError: an unknown source, files that are refused, more of them than may be
        left out, or files that have changed since the volumes were made.
    """
    options = data_fields.record_options(config)
    if "units" in options:
        options["units"] = data_fields.units_of(config)
    name = f"{config.data.source}-{data_fields.digest(options, volumes.READER)}"
    folder = Path(config.data.records).expanduser() / "volumes" / name

    def begin() -> tuple[int, Callable]:
        output, patients = expected(config), _patients(config)
        names = {"sequences": output.sequences, "regions": output.regions}
        write = functools.partial(volumes.prepare, patients, folder, **names)
        return len(patients), functools.partial(write, options=options)

    data_fields.ready(config, folder, _files(config), begin)
    prepared = volumes.read_prepared(folder)
    spacing = tuple(prepared.table[[*volumes.SPACING_COLUMNS]].median().tolist())
    output = expected(config)._replace(spacing=spacing)
    return ScanData(folder, _table(config, prepared), output, prepared)


def scaled(config: Config, data: ScanData, ids: np.ndarray) -> ScanData:
    """Scales the CT of the data by these training volumes, see intensity_units.scaled.

    Its numbers are of the voxels of all regions, or of the whole foreground where there
    are none, or all are alike.
    """
    channels = list(data.output.channels)
    for n, channel in enumerate(channels):
        kind = data.output.units[channel.sequence]
        if kind == "hounsfield" and not config.data.windows:
            both = (_values(data, ids, channel.sequence, at) for at in (True, False))
            scaled = (intensity_units.scaled(channel, v) for v in both if v[1] > 0)
            channels[n] = next(scaled, channel)
    return data._replace(output=data.output._replace(channels=tuple(channels)))


def _values(data: ScanData, ids, sequence: int, labelled: bool) -> np.ndarray:
    """A sequence's mean, deviation and percentiles, over the regions or all of it."""
    pool = Pool()
    for part in data.parts(ids).values():
        image, label = volumes.read(data.path, part)
        image = np.asarray(image[..., [sequence]], np.float32)
        mask = image[..., 0] != 0
        if labelled:
            mask &= False if label is None else label.any(axis=-1)
        pool.add(image, mask)
    return pool.summary(1)[0]


def _files(config: Config) -> dict[str, Path]:
    """The files of all patients by their paths below the folder; {} if it isn't there."""
    source = Path(config.data.get("folder", "")).expanduser()
    if config.data.source == PHANTOM or not source.is_dir():
        return {}
    paths = [path for files in find(config, source) for path in files.paths()]
    paths += source.glob("dataset.json")  # It says which channel is which sequence.
    if table := scan_files.patient_table(config.data.get("patient", ""), source):
        paths.append(table)
    return {os.path.relpath(path, source): path for path in paths}


def expected(config: Config) -> MasksOutput:
    """Describes the run's output, as far as the config alone tells it."""
    if config.data.source == PHANTOM:
        return MasksOutput(brain_phantom.SEQUENCES, BRATS_REGIONS)
    if not config.data.sequences:
        raise InputError("data.sequences=(): name one or more")
    values, windows = data_fields.units_of(config), config.data.get("windows", ())
    return MasksOutput(
        tuple(config.data.sequences),
        _regions(config),
        units=values,
        channels=intensity_units.channels(values, windows),
        exclusive=config.data.get("exclusive", False),
    )


def _table(config: Config, prepared: Prepared) -> pd.DataFrame:
    """One row a volume, or with data.split='halves' one a half."""
    table = prepared.table.assign(volume=prepared.table["id"], half="whole")
    voxels = [f"voxels_{name}" for name in prepared.regions]
    if config.data.split == "halves":
        names = splits.halves(prepared.table)
        table = pd.concat([table, table], ignore_index=True)
        half = names["image"].str.split().str[-1]
        table = table.assign(id=names["id"], image=names["image"], half=half)
        for at, row in table.iterrows():
            part = volumes.Part(row["volume"], row["half"])
            _, label = volumes.read(prepared.folder, part)
            table.loc[at, voxels] = np.sum(label, axis=(0, 1, 2), dtype=np.int64)
            table.loc[at, "width"] = label.shape[2]
    folder = config.data.get("folder", "")
    about = scan_files.participants(folder, table["patient"])
    table = pd.concat([table, about], axis=1)
    known = table[voxels].notna().to_numpy()
    table[[*prepared.regions]] = (table[voxels] > 0).astype(float).where(known)
    return table


def as_stored(config: Config, prepared: Prepared) -> Iterator[scan.Scan]:
    """The prepared patients once more, on their files' grids and in their files' units.

    The foreground is the smallest of KINDS that holds the labels of all up to
    this patient; a head is looked for in brain MRI alone.
    """
    kinds = list(foreground.KINDS[config.modality != "brain_mri" :])
    own, ready = {"units": "own", "spacing": ()}, set(prepared.table["image"])
    own["compare"] = False  # They were warned of when they were prepared.
    patients = _patients(config, foreground=kinds.pop(0), **own)
    for n, name in enumerate([patient.name for patient in patients]):
        while name in ready:
            try:
                yield patients[n].read()
                break
            except InputError:  # It hides a label: all was read before.
                if not kinds:
                    raise
                patients = _patients(config, foreground=kinds.pop(0), **own)


def _patients(config: Config, **how: Any) -> list[volumes.UnreadScan]:
    """Lists the patients of `config.data`; `how` overrides how they are read."""
    if config.data.source == PHANTOM:
        drawn_so = ("spacing", "compare")
        how = {name: value for name, value in how.items() if name not in drawn_so}
        return _phantoms(how, **data_fields.record_options(config))
    files = find(config, config.data.folder)
    where = config.data.get("patient", ""), config.data.folder
    patients = scan_files.patients([scan.name for scan in files], *where)
    scan_files.warn_of_headers(files, patients)
    options = {"patients": patients, **_reading(config), **how}
    return volumes.from_files(files, regions=_regions(config), **options)


def find(config: Config, path: str, *, masks: bool = True) -> list[ScanFiles]:
    """The files of the patients in a folder, laid out as `config.data.source` says."""
    _check_source(config)
    layout, fields = sources.SCANS.get(config.data.source), config.data.to_dict()
    if layout is None:  # Files that are laid out as the phantom's would be.
        layout, fields = scan_files.in_folders, {"sequences": brain_phantom.SEQUENCES}
        fields["files"] = {s: f"*_{s}.nii.gz" for s in brain_phantom.SEQUENCES}
    takes = inspect.signature(layout).parameters  # Only one layout has patterns.
    options = {k: fields[k] for k in SOURCE_FIELDS if k in fields and k in takes}
    if not masks:
        options.pop("mask", None)
    patients = layout(Path(path), **options)
    return patients if masks else [files._replace(mask=None) for files in patients]


def to_predict(config: Config, images: list[str]) -> list[volumes.UnreadScan]:
    """Lists patients' files without masks, to be read as the run's own were."""
    files = [each for path in images for each in find(config, path, masks=False)]
    files = prepared.once(files, ScanFiles.paths)
    options = {"labelled": False, **_reading(config)}
    return volumes.from_files(files, regions=expected(config).regions, **options)


def split(config: Config, data: ScanData) -> pd.DataFrame:
    """The split that `data.split` asks for, not yet audited.

    'patients' samples them as `config.split` says. 'leave_one_out' tests on one
    patient, number `config.split.fold`; 'halves' trains on the left hemispheres and
    tests on the right ones of the same people, which flatters. Both leave nobody to
    validate, and 'all' nobody to test either.
    """
    way, table = config.data.split, data.table[["id", "image", "patient"]]
    if way == "all":
        return splits.everyone(table)
    if way == "halves":
        return splits.halves(data.prepared.table)
    if way == "leave_one_out":
        return splits.leave_one_out(table, config.split.fold)
    return splitting.split(config, data._replace(table=table))


def untested(config: Config) -> str:
    """Why a run of this config tests on nobody; '' where it tests."""
    way = config.data.split
    if "test" in SPLIT_KINDS.get(way, manifests.SPLITS):
        return ""
    return f"data.split={way!r} leaves nobody to test on: use 'patients'"


def audit(
    config: Config,
    data: ScanData,
    manifest: pd.DataFrame,
    *,
    needed: tuple[str, ...] | None = None,
) -> None:
    """As splitting.audit; 'halves' may leak. `needed`: None: those of `data.split`.

    The log names regions that no volume of a side has.
    """
    way = config.data.split
    by = "image" if way == "halves" else ""
    needed = SPLIT_KINDS[way] if needed is None else needed
    splitting.audit(config, data, manifest, by=by, needed=needed)
    for side in dict.fromkeys(manifest["split"]):
        label = data.label(splitting.ids_in(manifest, side))
        for name, there in zip(data.output.names, label.T, strict=True):
            if not (there != 0).any():  # NaN is unknown.
                log.warning("audit: no volume of %s has any %s", side, name)


def check_data(config: Config) -> None:
    """Refuses an unknown source or split, or a checkpoint that nobody can choose."""
    _check_source(config)
    clip, spacing = config.data.get("clip", (0, 100)), config.data.get("spacing", ())
    if len(clip) != 2 or clip[0] >= clip[1]:
        raise InputError(f"data.clip={clip}: give two percentiles, the lower one first")
    if len(spacing) not in (0, 3) or not all(0 < mm < np.inf for mm in spacing):
        raise InputError(f"data.spacing={spacing}: give three lengths in mm, or ()")
    counts = ("voxels", "patients")
    check_choice("resampling.count", config.resampling.count, counts)
    way = config.data.split
    check_choice("data.split", way, SPLIT_KINDS)
    if config.evaluation.checkpoint == "best" and way != "patients":
        raise InputError(
            f"evaluation.checkpoint='best': data.split={way!r} leaves nobody to "
            "validate: take 'last'"
        )


def _check_source(config: Config) -> None:
    choices = {"source": (PHANTOM, *sources.SCANS), "foreground": foreground.KINDS}
    for field, names in choices.items():
        check_choice(f"data.{field}", config.data.get(field, names[0]), names)


def _regions(config: Config) -> dict[str, tuple[int, ...]]:
    """The regions of `config.data.regions` and their values, which a mask can hold."""
    regions = data_fields.regions(config)
    ours = {"volume", "half", "sex", "age", "mean", "background", ""}
    if taken := {*ours, *volumes.VOLUME_COLUMNS} & {*regions}:
        raise InputError(f"data.regions: {min(taken)!r} is a name of ours: rename it")
    return regions


def _reading(config: Config) -> dict:
    reading = {name: config.data[name] for name in READING if name in config.data}
    if "sequences" in config.data:
        reading["units"] = data_fields.units_of(config) or "z_scores"
    return reading


def _phantoms(
    how: dict[str, Any], source: str, patients: int, first_patient: int, **options
) -> list[volumes.UnreadScan]:
    def read(number: int) -> scan.Scan:
        patient = brain_phantom.patient(number, **options)
        return scan.make_scan(patient.image, patient.label, patient.affine, **how)

    return [
        volumes.UnreadScan(f"{source}{n:04d}", n, functools.partial(read, n))
        for n in range(first_patient, first_patient + patients)
    ]
