"""A folder in the layout of MIMIC-CXR-JPG: its tables of labels, metadata and splits"""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medjax.data.records import Source
from medjax.data.sources import cells, tables
from medjax.data.sources.chest_xray import (
    CHEXPERT_TASKS,
    chexpert_labels,
    chexpert_source,
)
from medjax.errors import InputError, check_choice

SPLITS = {"train": "train", "validate": "validation", "test": "test"}
VIEWS = {"LL": "LATERAL", "LAO": "", "RAO": ""}  # Others keep their names.
METADATA = {
    "dicom": "dicom_id",
    "patient": "subject_id",
    "study": "study_id",
    "view": "ViewPosition",
    "width": "Columns",
    "height": "Rows",
    "date": "StudyDate",
    "time": "StudyTime",
}


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

    Args:
      labels: whose table of labels: 'chexpert' or 'negbio'.
      uncertain, blank, views, side, bits: as in chest_xray.chexpert.

    Source: Johnson et al., MIMIC-CXR-JPG, PhysioNet (2019), doi 10.13026/8360-t248.
    """
    check_choice("data.labels", labels, ("chexpert", "negbio"))
    folder = tables.existing(folder)
    text, path = _metadata(folder)
    text["official"] = _official(folder, text["dicom"])
    date = cells.numbers(text, "date", path) + cells.numbers(text, "time", path) / 1e6
    first = date.groupby(text["study"]).transform("min")
    order = first.groupby(text["patient"]).rank(method="dense") - 1
    text["follow_up"] = order.map("{:g}".format).where(order.notna(), "")
    text["view"] = text["view"].replace(VIEWS)
    table = cells.metadata(text.drop(columns=["dicom", "study", "date", "time"]), path)
    path = cells.only(folder, f"mimic-cxr-*-{labels}.csv")
    columns = {name: name for name in ("study_id", *CHEXPERT_TASKS)}
    given = cells.select(cells.read_csv(path), columns, path)
    if given["study_id"].duplicated().any():
        study = given["study_id"][given["study_id"].duplicated()].iloc[0]
        raise InputError(f"{path}: lists the study {study} twice: keep one row")
    options = {"uncertain": uncertain, "blank": blank, "where": path}
    given = given.set_index("study_id")
    numbers = chexpert_labels(given, given.index.to_series(), **options)
    numbers = numbers.reindex(text["study"]).set_axis(table.index)
    return chexpert_source(table, numbers, folder, side, views, bits)


def files(*, folder: Path, labels: str, **_) -> dict[str, Path]:
    """The tables and the films that they list, see `sources.FILES`."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return {}
    found = {
        path.name: path
        for name in ("metadata", "split", labels)
        for path in folder.glob(f"mimic-cxr-*-{name}.csv*")
    }
    names = _metadata(folder)[0]["image"]
    return found | {name: os.path.join(folder, name) for name in names}


def _metadata(folder: Path) -> tuple[pd.DataFrame, Path]:
    """The cells of the table of metadata, with the path of each `image`."""
    path = cells.only(folder, "mimic-cxr-*-metadata.csv")
    text = cells.select(cells.read_csv(path), METADATA, path)
    patient = "p" + text["patient"]
    text["image"] = (
        "files/" + patient.str[:3] + "/" + patient + "/s" + text["study"] + "/"
    ) + (text["dicom"] + ".jpg")
    return text, path


def _official(folder: Path, dicom: pd.Series) -> list[str]:
    path = cells.only(folder, "mimic-cxr-*-split.csv", needed=False)
    if path is None:
        return [""] * len(dicom)
    columns = {"dicom": "dicom_id", "split": "split"}
    listed = cells.select(cells.read_csv(path), columns, path)
    strange = ~listed["split"].isin(list(SPLITS))
    if strange.any():
        raise InputError(
            f"{path}: the split {listed['split'][strange].iloc[0]!r} is none of "
            f"{', '.join(SPLITS)}: correct it"
        )
    counts = listed["dicom"].value_counts().reindex(dicom, fill_value=0)
    if (counts != 1).any():
        raise InputError(
            f"{path}: has {counts[counts != 1].iloc[0]} rows of the dicom_id "
            f"{counts.index[counts != 1][0]}: give it one, or remove the table to sample "
            "all splits"
        )
    splits = listed.set_index("dicom")["split"].map(SPLITS)
    return splits[dicom].tolist()
