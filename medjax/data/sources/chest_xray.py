"""Chest X-ray films: the phantom, NIH ChestX-ray14 and CheXpert."""

import collections
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.data import chest_phantom, image_files
from medjax.data.prepared import Item
from medjax.data.records import Source
from medjax.data.sources import cells, tables
from medjax.errors import InputError, check_choice, reading

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
CHEXPERT_TASKS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
UNCERTAIN = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0, "soft": 0.7}
NIH_BOX_FRAME = (1024, 1024)  # Of the boxes, whatever the size of the files.
PHANTOMS_AT_ONCE = 32  # Drawn in one call: enough for all cores, little memory.


def phantom(
    *,
    side: int,
    patients: int,
    films: int,
    seed: int = 0,
    first_patient: int = 0,
    contrast: float = 1.0,
    prevalence: Sequence[float] = chest_phantom.PREVALENCE,
) -> Source:
    """Synthetic films with known truth, see `chest.patient`."""
    tasks = chest_phantom.ALL[: len(prevalence)]
    if len(prevalence) not in (len(chest_phantom.FINDINGS), len(chest_phantom.ALL)):
        more = ", ".join(chest_phantom.EIGHT)
        raise InputError(
            f"data.prevalence has {len(prevalence)} numbers: give one for each of "
            f"{', '.join(chest_phantom.FINDINGS)}, or eight more for {more}"
        )
    options = {"contrast": contrast, "prevalence": tuple(prevalence)}

    def items() -> Iterator[Item]:
        numbers = np.arange(first_patient, first_patient + patients)
        for start in range(0, patients, PHANTOMS_AT_ONCE):
            chunk = numbers[start : start + PHANTOMS_AT_ONCE]
            # The last chunk is padded, so that one shape is compiled.
            padded = np.resize(chunk, PHANTOMS_AT_ONCE)
            key = jax.random.key(seed)
            drawn = chest_phantom.patients(
                key, padded, films=films, side=side, **options
            )
            drawn = jax.device_get(drawn)
            for p, f in np.ndindex(len(chunk), films):
                film = {name: values[p, f] for name, values in drawn.items()}
                yield _phantom_item(film, f, side, tasks)

    return Source(tasks, (side, side, 1), patients * films, items)


def _phantom_item(
    drawn: dict[str, np.ndarray], film: int, side: int, tasks: Sequence[str]
) -> Item:
    boxes = [
        (task, *map(float, box))
        for task, box in zip(tasks, drawn["box"], strict=True)
        if not np.isnan(box).any()
    ]
    patient = int(drawn["patient"])
    row = {
        "image": f"{patient:08d}_{film:03d}",
        "patient": patient,
        "view": chest_phantom.VIEWS[drawn["view"]],
        "sex": chest_phantom.SEXES[drawn["sex"]],
        "age": float(drawn["age"]),
        "width": side,
        "height": side,
        "spacing_x": chest_phantom.FIELD_MM / side,
        "spacing_y": chest_phantom.FIELD_MM / side,
        "official": "",
        "follow_up": float(film),
        **dict(zip(tasks, map(float, drawn["label"]), strict=True)),
    }
    return Item(row, drawn["pixels"], boxes)


def nih(*, folder: Path, side: int, bits: int = 8) -> Source:
    """A folder in the layout of NIH ChestX-ray14.

    `images/**.png`, one `Data_Entry_2017*.csv` and, where present, `BBox_List_2017.csv`
    (each may be gzipped), `train_val_list.txt` and `test_list.txt`. 'No Finding' is
    the absence of the 14 findings, not a task.
    """
    folder = tables.existing(folder)
    path = cells.only(folder, "Data_Entry_2017*.csv")
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
    text = cells.select(cells.read_csv(path), columns, path)
    cells.numbers(text, "patient", path)  # A patient has no name.
    text["official"] = _nih_official(folder, text["image"])
    table = cells.metadata(text.drop(columns="age"), path)
    table["age"] = _nih_age(text["age"])
    findings = text["findings"].str.split("|")
    strange = set().union(*findings) - {*NIH_TASKS, "No Finding"}
    if strange:
        raise InputError(
            f"{path}: Finding Labels holds {min(strange)!r}, which is none of "
            "ChestX-ray14's findings: correct the table"
        )
    for task in NIH_TASKS:
        table[task] = [float(task in names) for names in findings]
    none = {"No Finding": ["No Finding" in names for names in findings]}
    cells.warn_of_none(table.assign(**none), NIH_TASKS, table["image"], path)
    paths, left_out = _nih_images(folder, set(table["image"]))
    return tables.source(
        table,
        lambda image: image_files.read(paths.get(image, folder / "images" / image)),
        tasks=NIH_TASKS,
        shape=(side, side, 1),
        where=path,
        bits=bits,
        boxes=_nih_boxes(folder),
        frame=NIH_BOX_FRAME,
        left_out=left_out,
    )


def _nih_age(text: pd.Series) -> pd.Series:
    """Years; the first release of the table says '058Y', '011M' and '003D'."""
    parts = text.str.strip().str.extract(r"^(\d+(?:\.\d+)?)\s*([YMD]?)$")
    years = pd.to_numeric(parts[0]) / parts[1].map({"M": 12.0, "D": 365.25}).fillna(1.0)
    return years.where(years <= cells.MAX_AGE)  # There are ages up to 414.


def _nih_official(folder: Path, names: pd.Series) -> np.ndarray:
    """[N] 'train', 'test' or '', by the official lists where there are any."""
    paths = (folder / "train_val_list.txt", folder / "test_list.txt")
    if paths[0].exists() != paths[1].exists():
        raise InputError(
            f"{folder}: has one of train_val_list.txt and test_list.txt: add the other, "
            "or remove it to sample all splits"
        )
    if not paths[0].exists():
        return np.full(len(names), "")
    listed = []
    for path in paths:
        with reading(path, "save it as UTF-8"):
            listed.append(names.isin(path.read_text("utf-8-sig").split()))
    wrong = listed[0] == listed[1]
    if wrong.any():
        first = np.flatnonzero(wrong)[0]
        which = "both" if listed[0][first] else "none"
        raise InputError(
            f"{folder}: {names[first]} is in {which} of train_val_list.txt and "
            "test_list.txt: correct them, or remove both to sample all splits"
        )
    return np.select(listed, ["train", "test"], "")


def _nih_images(folder: Path, listed: set[str]) -> tuple[dict[str, Path], list[tuple]]:
    """Image name -> file, and (file, reason) of the files that are left out."""
    paths, left_out = {}, []
    for path in image_files.image_paths(folder)[0]:
        file = str(path.relative_to(folder))
        if not file.startswith("images"):  # images/, or images_001/ and on.
            continue
        if path.name not in listed:
            left_out.append((file, "the table has no row for it"))
        elif path.name in paths:
            left_out.append((file, f"has the name of {paths[path.name]}"))
        else:
            paths[path.name] = path
    if not paths and not left_out:
        raise InputError(f"{folder}: no images/**.png: is this the data set's folder?")
    return paths, left_out


def _nih_boxes(folder: Path) -> dict[str, list[tuple]]:
    """Image name -> boxes in pixels of NIH_BOX_FRAME; empty without a list."""
    path = cells.only(folder, "BBox_List_2017.csv", needed=False)
    if path is None:
        return {}
    columns = {
        "image": "Image Index",
        "task": "Finding Label",
        "x": "Bbox [x",
        "y": "y",
        "w": "w",
        "h": "h]",
    }
    listed = cells.select(cells.read_csv(path), columns, path)
    listed["task"] = listed["task"].replace("Infiltrate", "Infiltration")
    strange = ~listed["task"].isin(NIH_TASKS)
    if strange.any():
        task = listed["task"][strange].iloc[0]
        raise InputError(f"{path}: {task!r} is none of ChestX-ray14's findings")
    for name in ("x", "y", "w", "h"):
        listed[name] = cells.numbers(listed, name, path)
    boxes = collections.defaultdict(list)
    for image, task, x, y, w, h in listed.itertuples(index=False):
        boxes[image].append((task, x, y, x + w, y + h))
    return boxes


def chexpert(
    *,
    folder: Path,
    side: int,
    uncertain: str = "ignore",
    blank: str = "zeros",
    views: Sequence[str] = ("PA", "AP"),
    bits: int = 8,
) -> Source:
    """A folder in the layout of CheXpert: `train.csv`, `valid.csv`, `Path` below it.

    The official test split is valid.csv, which radiologists labelled. As in the data
    set's paper, a `blank` finding, which the report doesn't mention, is absent.
    """
    folder = tables.existing(folder)
    raw = cells.read_csv(cells.only(folder, "train.csv")).assign(official="train")
    if path := cells.only(folder, "valid.csv", needed=False):
        valid = cells.read_csv(path).assign(official="test")
        raw = pd.concat([raw, valid], ignore_index=True)
    columns = {
        "image": "Path",
        "sex": "Sex",
        "age": "Age",
        "side": "Frontal/Lateral",
        "view": "AP/PA",
        "official": "official",
    }
    text = cells.select(raw, columns, folder)
    # Without the first part of CheXpert-v1.0-small/train/patient00001/...
    text["image"] = text["image"].str.replace(r"^CheXpert[^/]*/", "", regex=True)
    text["patient"] = text["image"].str.extract(r"(patient\d+)")[0]
    if text["patient"].isna().any():
        path = text["image"][text["patient"].isna()].iloc[0]
        raise InputError(f"{folder}: Path {path!r} names no patient00000: correct it")
    text["view"] = text["view"].where(text["side"] != "Lateral", "LATERAL")
    table = cells.metadata(text, folder)
    study = table["image"].str.extract(r"/study(\d+)/")[0]
    table["follow_up"] = study.astype(float) - 1
    options = {"uncertain": uncertain, "blank": blank, "where": folder}
    labels = chexpert_labels(raw, table["image"], **options)
    return chexpert_source(table, labels, folder, side, views, bits)


def chexpert_source(
    table: pd.DataFrame,
    labels: pd.DataFrame,
    folder: Path,
    side: int,
    views: Sequence[str],
    bits: int,
) -> Source:
    """The films of these views, of metadata and `chexpert_labels`, row by row."""
    for view in views:
        check_choice("data.views", view, (*cells.VIEW_WORDS, ""))
    table = pd.concat([table, labels], axis=1)
    listed = (folder / image for image in table["image"])
    tables.warn_of_unlisted(folder, lambda: image_files.image_paths(folder)[0], listed)
    return tables.source(
        table[table["view"].isin(list(views))],
        lambda image: image_files.read(folder / image),
        tasks=CHEXPERT_TASKS,
        shape=(side, side, 1),
        where=folder,
        bits=bits,
    )


def chexpert_labels(
    table: pd.DataFrame, images: pd.Series, *, uncertain: str, blank: str, where: Path
) -> pd.DataFrame:
    """The findings of CheXpert's labeller as numbers, NaN where unknown.

    `table` has N rows of text; in the columns CHEXPERT_TASKS 1, 0, -1 or blank.
    """
    check_choice("data.uncertain", uncertain, UNCERTAIN)
    check_choice("data.blank", blank, ("zeros", "ignore"))
    meaning = {"1": 1.0, "0": 0.0, "-1": UNCERTAIN[uncertain], "": UNCERTAIN[blank]}
    text = cells.select(table, {task: task for task in CHEXPERT_TASKS}, where)
    cells.warn_of_none(table, CHEXPERT_TASKS, images, where)
    labels = {}
    for task in CHEXPERT_TASKS:
        column = text[task].str.replace(r"\.0$", "", regex=True)
        strange = ~column.isin(list(meaning))
        why = "none of 1, 0, -1 and blank: correct it"
        cells.refuse(strange, column, images, where, why)
        labels[task] = column.map(meaning)
    return pd.DataFrame(labels)
