"""Chest films in the layouts of PhysioNet's MIMIC-CXR-JPG and VinDr-CXR"""

import collections
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.data import image_files, prepared
from medjax.data.records import Source
from medjax.data.sources import cells, tables
from medjax.data.sources.chest_xray import chexpert_labels, chexpert_source
from medjax.errors import InputError, check_choice

MIMIC_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
MIMIC_VIEWS = {"LL": "LATERAL", "LAO": "", "RAO": ""}  # Others keep their names.
MIMIC_COLUMNS = {
    "dicom": "dicom_id",
    "patient": "subject_id",
    "study": "study_id",
    "view": "ViewPosition",
    "width": "Columns",
    "height": "Rows",
    "date": "StudyDate",
    "time": "StudyTime",
}
log = logging.getLogger("medjax")


def mimic_cxr(
    *,
    folder: Path,
    side: int,
    labels: str = "chexpert",
    uncertain: str = "ignore",
    blank: str = "zeros",
    views: Sequence[str] = ("PA", "AP"),
    bits: int = 8,
) -> Source:
    """MIMIC-CXR-JPG: `files/p10/p10000032/s50414267/*.jpg` and four tables, gzipped or not.

    The official splits are those of `mimic-cxr-*-split.csv`. Follow-ups are numbered by
    the dates of a patient's studies. Findings of a study without a row of labels are
    unknown.

    Source: Johnson et al., MIMIC-CXR-JPG, PhysioNet (2019), doi 10.13026/8360-t248.
    """
    check_choice("data.labels", labels, ("chexpert", "negbio"))
    folder = tables.existing(folder)
    text, path = _mimic_table(folder)
    text["official"] = _mimic_splits(folder, text["dicom"])
    date = cells.numbers(text, "date", path) + cells.numbers(text, "time", path) / 1e6
    first = date.groupby(text["study"]).transform("min")
    order = first.groupby(text["patient"]).rank(method="dense") - 1
    text["follow_up"] = order.map("{:g}".format).where(order.notna(), "")
    text["view"] = text["view"].replace(MIMIC_VIEWS)
    table = cells.metadata(text.drop(columns=["dicom", "study", "date", "time"]), path)
    path = cells.only(folder, f"mimic-cxr-*-{labels}.csv")
    given = cells.read_csv(path)
    cells.select(given, {"study": "study_id"}, path)
    if given["study_id"].duplicated().any():
        study = given["study_id"][given["study_id"].duplicated()].iloc[0]
        raise InputError(f"{path}: lists the study {study} twice: keep one row")
    options = {"uncertain": uncertain, "blank": blank, "where": path}
    given = given.set_index("study_id")
    numbers = chexpert_labels(given, given.index.to_series(), **options)
    if unlisted := sorted({*text["study"]} - {*given.index}):
        log.warning(
            "%s: has no row of %d of %d studies, such as %s: their labels are unknown",
            *(path, len(unlisted), text["study"].nunique(), unlisted[0]),
        )
    numbers = numbers.reindex(text["study"]).set_axis(table.index)
    return chexpert_source(table, numbers, folder, side, views, bits)


def _mimic_table(folder: Path) -> tuple[pd.DataFrame, Path]:
    """The cells of the table of metadata, with the path of each `image`."""
    path = cells.only(folder, "mimic-cxr-*-metadata.csv")
    text = cells.select(cells.read_csv(path), MIMIC_COLUMNS, path)
    patient = "p" + text["patient"]
    text["image"] = (
        "files/" + patient.str[:3] + "/" + patient + "/s" + text["study"] + "/"
    ) + (text["dicom"] + ".jpg")
    return text, path


def _mimic_splits(folder: Path, dicom: pd.Series) -> list[str]:
    path = cells.only(folder, "mimic-cxr-*-split.csv", needed=False)
    if path is None:
        return [""] * len(dicom)
    columns = {"dicom": "dicom_id", "split": "split"}
    listed = cells.select(cells.read_csv(path), columns, path)
    strange = ~listed["split"].isin(list(MIMIC_SPLITS))
    if strange.any():
        raise InputError(
            f"{path}: the split {listed['split'][strange].iloc[0]!r} is none of "
            f"{', '.join(MIMIC_SPLITS)}: correct it"
        )
    counts = listed["dicom"].value_counts().reindex(dicom, fill_value=0)
    if (counts != 1).any():
        raise InputError(
            f"{path}: has {counts[counts != 1].iloc[0]} rows of the dicom_id "
            f"{counts.index[counts != 1][0]}: give it one, or remove the table to sample "
            "all splits"
        )
    splits = listed.set_index("dicom")["split"].map(MIMIC_SPLITS)
    return splits[dicom].tolist()


VINDR_PARTS = ("train", "test")
VINDR_NAMES = {"Other disease": "Other diseases"}  # The two parts differ.
BOX = ("x_min", "y_min", "x_max", "y_max")


def vindr_cxr(
    *, folder: Path, side: int, readers: str = "majority", bits: int = 8
) -> Source:
    """VinDr-CXR: `train/` and `test/` of DICOM, and `annotations/` of each.

    `image_labels_*.csv` has a row for each image and reader, of which three have read
    each training film; the test films have one row, on which five have agreed. The
    findings are those of its columns; 'No finding' is their absence, and by 'majority'
    one that just half of the readers see is unknown. Boxes are any reader's of a finding
    that the film has. The data set names no patients: each film counts as another's, and
    copies are found by their pixels.

    Source: Nguyen et al., Scientific Data 9 (2022) 429; physionet.org/content/vindr-cxr.
    """
    check_choice("data.readers", readers, ("majority", "any"))
    folder = tables.existing(folder)
    parts = [_vindr_labels(folder, part, readers) for part in VINDR_PARTS]
    parts = [part for part in parts if part is not None]
    tasks = tuple(parts[0].columns.drop("official"))
    if any(set(part) != set(parts[0]) for part in parts):
        strange = min(set(parts[0]) ^ set(parts[1]))
        raise InputError(f"{folder}: only one of its tables has the column {strange!r}")
    labels = pd.concat(parts)
    text = pd.DataFrame({"image": labels.index, "official": [*labels["official"]]})
    table = cells.metadata(text.assign(patient=text["image"]), folder)
    values = labels[[*tasks]].set_axis(table.index)
    paths = _vindr_paths(folder)
    listed = (paths[image] for image in table["image"] if image in paths)
    tables.warn_of_unlisted(folder, paths.values, listed)
    present = {task: {*labels.index[labels[task] == 1]} for task in tasks}
    return tables.source(
        pd.concat([table, values], axis=1),
        lambda image: image_files.read(paths.get(image, folder / f"{image}.dicom")),
        tasks=tasks,
        shape=(side, side, 1),
        where=folder,
        bits=bits,
        boxes=_vindr_boxes(folder, present),
    )


def _vindr_paths(folder: Path) -> dict[str, Path]:
    """Image -> its file, in any format that `image_files.read` reads."""
    folders = [folder / part for part in VINDR_PARTS if (folder / part).is_dir()]
    paths = [path for part in folders for path in image_files.image_paths(part)[0]]
    if (twice := prepared.first_duplicate(path.stem for path in paths)) is not None:
        names = " and ".join(str(path) for path in paths if path.stem == twice)
        raise InputError(f"{names}: are of one image: keep one of them")
    return {path.stem: path for path in paths}


def _vindr_labels(folder: Path, part: str, readers: str) -> pd.DataFrame | None:
    """[N, T + 1]: the findings of each image, and its official split."""
    annotations = folder / "annotations"
    needed = part == "train"
    path = cells.only(annotations, f"image_labels_{part}.csv", needed=needed)
    if path is None:
        return None
    text = cells.read_csv(path).rename(columns=VINDR_NAMES)
    text = text.rename(columns={"image_id": "image"})
    if "image" not in text:
        raise InputError(f"{path}: has no column 'image_id': correct its header")
    rows = text.reindex(columns=["image", "rad_id"], fill_value="")
    rows["rad_id"] = rows["rad_id"].str.strip().str.casefold()
    for image, reader in rows[rows.duplicated()].itertuples(index=False):
        by = f" by the reader {reader!r}" if reader else ", and nothing says by whom"
        raise InputError(
            f"{path}: lists {image} twice{by}: keep one row of each reader"
        )
    names = text.columns.drop(["image", "rad_id", "No finding"], errors="ignore")
    cells.warn_of_none(text, names, text["image"], path)
    values = np.stack([cells.numbers(text, name, path) for name in names], axis=1)
    given = cells.findings(values, names, text["image"], path)
    share = given.groupby(text["image"].to_numpy(), sort=False).mean()
    if readers == "any":
        labels = (share > 0).astype(float).where(share.notna())
    else:
        labels = (share > 0.5).astype(float).where(share.notna() & (share != 0.5))
    return labels.assign(official=part)


def _vindr_boxes(folder: Path, present: dict[str, set[str]]) -> dict[str, list[tuple]]:
    """Image -> boxes of the findings that it has, in pixels of its file."""
    boxes = collections.defaultdict(list)
    for part in VINDR_PARTS:
        path = cells.only(
            folder / "annotations", f"annotations_{part}.csv", needed=False
        )
        if path is None:
            continue
        columns = {"image": "image_id", "task": "class_name"} | {b: b for b in BOX}
        listed = cells.select(cells.read_csv(path), columns, path)
        for name in BOX:
            listed[name] = cells.numbers(listed, name, path)
        listed["task"] = listed["task"].replace(VINDR_NAMES)
        listed = listed.dropna(how="all", subset=[*BOX])
        for image, task, *box in listed.itertuples(index=False):
            if image in present.get(task, ()):
                boxes[image].append((task, *box))
    return boxes
