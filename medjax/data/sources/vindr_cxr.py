"""A folder in the layout of VinDr-CXR: films that several readers have labelled"""

import collections
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.data import images, prepared
from medjax.data.records import Source
from medjax.data.sources import cells, tables
from medjax.errors import InputError, check_choice

PARTS = ("train", "test")
NAMES = {"Other disease": "Other diseases"}  # The two parts differ.
BOX = ("x_min", "y_min", "x_max", "y_max")


def vindr_cxr(
    *, folder: Path, side: int, readers: str = "majority", bits: int = 8
) -> Source:
    """VinDr-CXR: `train/` and `test/` of DICOM, and `annotations/` of each.

    `image_labels_*.csv` has a row for each image and reader, of which three have read
    each training film; the test films have one row, on which five have agreed. The
    findings are those of its columns; 'No finding' is their absence. Boxes are any
    reader's of a finding that the film has. The data set names no patients: each film
    counts as another's, and copies are found by their pixels.

    Args:
      side: S, pixels.
      readers: a finding is present if more than half of its readers say so ('majority';
        unknown if just half do), or 'any' of them.
      bits: as in `tables.table`.

    Source: Nguyen et al., Scientific Data 9 (2022) 429; physionet.org/content/vindr-cxr.
    """
    check_choice("data.readers", readers, ("majority", "any"))
    folder = tables.existing(folder)
    parts = [_labels(folder, part, readers) for part in PARTS]
    parts = [part for part in parts if part is not None]
    tasks = tuple(parts[0].columns.drop("official"))
    if any(set(part) != set(parts[0]) for part in parts):
        strange = min(set(parts[0]) ^ set(parts[1]))
        raise InputError(f"{folder}: only one of its tables has the column {strange!r}")
    labels = pd.concat(parts)
    text = pd.DataFrame({"image": labels.index, "official": [*labels["official"]]})
    table = cells.metadata(text.assign(patient=text["image"]), folder)
    values = labels[[*tasks]].set_axis(table.index)
    paths = _paths(folder)
    present = {task: {*labels.index[labels[task] == 1]} for task in tasks}
    return tables.source(
        pd.concat([table, values], axis=1),
        lambda image: images.read(paths.get(image, folder / f"{image}.dicom")),
        tasks=tasks,
        shape=(side, side, 1),
        where=folder,
        bits=bits,
        boxes=_boxes(folder, present),
    )


def files(*, folder: Path, **_) -> dict[str, Path]:
    """The tables and all films, see `sources.FILES`."""
    folder = Path(folder).expanduser()
    annotations = sorted((folder / "annotations").glob("*.csv"))
    return {path.name: path for path in annotations} | _paths(folder)


def _paths(folder: Path) -> dict[str, Path]:
    """Image -> its file, in any format that `images.read` reads."""
    folders = [folder / part for part in PARTS if (folder / part).is_dir()]
    paths = [path for part in folders for path in images.image_paths(part)[0]]
    if (twice := prepared.first_duplicate(path.stem for path in paths)) is not None:
        names = " and ".join(str(path) for path in paths if path.stem == twice)
        raise InputError(f"{names}: are of one image: keep one of them")
    return {path.stem: path for path in paths}


def _labels(folder: Path, part: str, readers: str) -> pd.DataFrame | None:
    """[N, T + 1]: the findings of each image, and its official split."""
    annotations = folder / "annotations"
    needed = part == "train"
    path = cells.only(annotations, f"image_labels_{part}.csv", needed=needed)
    if path is None:
        return None
    text = cells.read_csv(path).rename(columns=NAMES)
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
    values = np.stack([cells.numbers(text, name, path) for name in names], axis=1)
    given = cells.findings(values, names, text["image"], path)
    share = given.groupby(text["image"].to_numpy(), sort=False).mean()
    if readers == "any":
        labels = (share > 0).astype(float).where(share.notna())
    else:
        labels = (share > 0.5).astype(float).where(share.notna() & (share != 0.5))
    return labels.assign(official=part)


def _boxes(folder: Path, present: dict[str, set[str]]) -> dict[str, list[tuple]]:
    """Image -> boxes of the findings that it has, in pixels of its file."""
    boxes = collections.defaultdict(list)
    for part in PARTS:
        path = cells.only(
            folder / "annotations", f"annotations_{part}.csv", needed=False
        )
        if path is None:
            continue
        columns = {"image": "image_id", "task": "class_name"} | {b: b for b in BOX}
        listed = cells.select(cells.read_csv(path), columns, path)
        for name in BOX:
            listed[name] = cells.numbers(listed, name, path)
        listed["task"] = listed["task"].replace(NAMES)
        for image, task, *box in listed.dropna().itertuples(index=False):
            if image in present.get(task, ()):
                boxes[image].append((task, *box))
    return boxes
