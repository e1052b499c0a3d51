"""Chest films: the phantom, and folders laid out as NIH ChestX-ray14 is."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.data import images as reading
from medjax.data import prepared
from medjax.data.phantom import chest
from medjax.data.prepared import Item, Source
from medjax.data.sources import tables
from medjax.errors import InputError

NIH_TASKS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NIH_BOX_SIDE = 1024  # The boxes' coordinates, whatever the size of the files.
OLDEST = 120  # Years; NIH's table holds ages up to 414.


def phantom(
    *,
    side: int,
    patients: int,
    films: int,
    seed: int = 0,
    first_patient: int = 0,
    contrast: float = 1.0,
    prevalence: Sequence[float] = chest.PREVALENCE,
) -> Source:
    """Synthetic films with known truth.

    Args:
      side: S, pixels.
      patients: how many.
      films: of each patient.
      seed: of the whole data set.
      first_patient: its number; other numbers are other people.
      contrast: how visible the findings are, see `phantom.patient`.
      prevalence: [T] share of the films that show each finding.
    """
    if len(prevalence) != len(chest.FINDINGS):
        raise InputError(
            f"data.prevalence has {len(prevalence)} numbers: give one for each of "
            + ", ".join(chest.FINDINGS)
        )
    chunk = 32  # Patients a call: enough to fill the cores, few enough for memory.
    key = jax.random.key(seed)
    draw = functools.partial(
        chest.patients,
        films=films,
        side=side,
        contrast=contrast,
        prevalence=tuple(prevalence),
    )

    def shard(numbers: np.ndarray) -> Iterator[Item]:
        for start in range(0, len(numbers), chunk):
            wanted = numbers[start : start + chunk]
            # One compiled shape: the last chunk is filled up and cut off again.
            padded = np.resize(wanted, chunk)
            drawn = jax.device_get(draw(key, padded))
            for p, number in enumerate(wanted):
                for f in range(films):
                    one = {name: values[p, f] for name, values in drawn.items()}
                    yield _phantom_item(one, int(number), f, side)

    numbers = np.arange(first_patient, first_patient + patients)
    step = max(1, prepared.FILMS_A_SHARD // max(1, films))
    shards = [
        functools.partial(shard, numbers[start : start + step])
        for start in range(0, patients, step)
    ]
    return Source(chest.FINDINGS, (side, side, 1), patients * films, shards)


def _phantom_item(drawn: dict[str, np.ndarray], patient: int, film: int, side: int):
    boxes = [
        (task, *map(float, box))
        for task, box in zip(chest.FINDINGS, drawn["box"], strict=True)
        if not np.isnan(box).any()
    ]
    row = {
        "image": f"{patient:08d}_{film:03d}",
        "patient": patient,
        "view": chest.VIEWS[drawn["view"]],
        "sex": chest.SEXES[drawn["sex"]],
        "age": float(drawn["age"]),
        "width": side,
        "height": side,
        "spacing_x": chest.FIELD_MM / side,
        "spacing_y": chest.FIELD_MM / side,
        "official": "",
        "follow_up": float(film),
        **dict(zip(chest.FINDINGS, map(float, drawn["label"]), strict=True)),
    }
    return Item(row, drawn["pixels"], boxes)


def nih(*, folder: Path, side: int) -> Source:
    """A folder laid out as NIH ChestX-ray14 is.

    `images/**.png`, `Data_Entry_2017*.csv` and, where present, `BBox_List_2017.csv`
    (each may be gzipped), `train_val_list.txt` and `test_list.txt`. 'No Finding' is
    the absence of the 14, not a task.

    Args:
      folder: of the data set.
      side: S, pixels; films are squeezed to a square once, here.

    Raises:
      InputError: no table, a column or a label that isn't ChestX-ray14's, no image.
    """
    folder = tables.existing(folder)
    path = tables.newest(folder, "Data_Entry_2017*.csv*")
    columns = {
        "image": "Image Index",
        "findings": "Finding Labels",
        "patient": "Patient ID",
        "age": "Patient Age",
        "sex": "Patient Gender",
        "view": "View Position",
        "follow_up": "Follow-up #",
        # The header has commas inside its last two names.
        "width": "OriginalImage[Width",
        "height": "Height]",
        "spacing_x": "OriginalImagePixelSpacing[x",
        "spacing_y": "y]",
    }
    table = tables.select(tables.read_csv(path), columns, path)
    for name in ("patient", "follow_up", *tables.FROM_FILE):
        table[name] = tables.numbers(table, name, path)
    if table["patient"].isna().any():
        image = table["image"][table["patient"].isna()].iloc[0]
        raise InputError(f"{path}: {image} has no Patient ID: correct the table")
    table["patient"] = table["patient"].astype(int)
    table["age"] = _nih_age(table["age"])
    table["sex"] = tables.only(table["sex"], ("F", "M"))
    table["view"] = tables.only(table["view"], ("PA", "AP"))
    found = table.pop("findings").str.split("|")
    strange = set().union(*found) - {*NIH_TASKS, "No Finding"}
    if strange:
        raise InputError(
            f"{path}: Finding Labels holds {min(strange)!r}, which is none of "
            "ChestX-ray14's findings: correct the table"
        )
    for task in NIH_TASKS:
        table[task] = [float(task in findings) for findings in found]
    table["official"] = _nih_official(folder, table["image"])
    boxes = _nih_boxes(folder, side)
    paths, left_out = _nih_images(folder, set(table["image"]))

    def load(row: dict) -> Item:
        path = paths.get(row["image"], folder / "images" / row["image"])
        return tables.load(row, path, shape, boxes.get(row["image"], ()))

    shape = (side, side, 1)
    return tables.source(
        table, load, tasks=NIH_TASKS, shape=shape, where=path, left_out=left_out
    )


def _nih_age(text: pd.Series) -> pd.Series:
    """Years; the first release of the table says '058Y', '011M' and '003D'."""
    parts = text.str.extract(r"(\d+)\s*([YMD]?)")
    years = pd.to_numeric(parts[0]) / parts[1].map({"M": 12.0, "D": 365.25}).fillna(1.0)
    return years.where(years <= OLDEST)


def _nih_official(folder: Path, images: pd.Series) -> np.ndarray:
    """[N] 'train', 'test' or '', as the official lists say, where there are any."""
    listed = []
    for name in ("train_val_list.txt", "test_list.txt"):
        names = (folder / name).read_text().split() if (folder / name).exists() else []
        listed.append(images.isin(names))
    both = listed[0] & listed[1]
    if both.any():
        raise InputError(
            f"{folder}: {images[both].iloc[0]} is in train_val_list.txt and in "
            "test_list.txt: correct one of them"
        )
    return np.select(listed, ["train", "test"], "")


def _nih_images(folder: Path, listed: set[str]) -> tuple[dict[str, Path], list[tuple]]:
    """Image name -> file, and (file, reason) of the files that are left out."""
    paths, left_out = {}, []
    for path in reading.film_paths(folder):
        file = path.relative_to(folder)
        if not file.parts[0].startswith("images"):  # images/, or images_001/ and on.
            continue
        if path.name not in listed:
            left_out.append((str(file), "the table has no row for it"))
        elif path.name in paths:
            left_out.append((str(file), f"has the name of {paths[path.name]}"))
        else:
            paths[path.name] = path
    if not paths and not left_out:
        raise InputError(f"{folder}: no images/**.png: is this the data set's folder?")
    return paths, left_out


def _nih_boxes(folder: Path, side: int) -> dict[str, list[tuple]]:
    """Image name -> boxes in pixels of the S x S film; empty without a list."""
    if not list(folder.glob("BBox_List_2017.csv*")):
        return {}
    path = tables.newest(folder, "BBox_List_2017.csv*")
    columns = {
        "image": "Image Index",
        "task": "Finding Label",
        "x": "Bbox [x",
        "y": "y",
        "w": "w",
        "h": "h]",
    }
    listed = tables.select(tables.read_csv(path), columns, path)
    listed["task"] = listed["task"].replace("Infiltrate", "Infiltration")
    strange = ~listed["task"].isin(NIH_TASKS)
    if strange.any():
        task = listed["task"][strange].iloc[0]
        raise InputError(f"{path}: {task!r} is none of ChestX-ray14's findings")
    for name in ("x", "y", "w", "h"):
        listed[name] = tables.numbers(listed, name, path) * (side / NIH_BOX_SIDE)
    boxes: dict[str, list[tuple]] = {}
    for image, task, x, y, w, h in listed.itertuples(index=False):
        boxes.setdefault(image, []).append((task, x, y, x + w, y + h))
    return boxes
