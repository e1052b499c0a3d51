"""Folders laid out as CheXpert is."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medjax.data.prepared import Item, Source
from medjax.data.sources import tables
from medjax.errors import InputError

TASKS = (
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
VIEWS = ("PA", "AP", "LATERAL", "")
UNCERTAIN = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0, "soft": 0.7}


def chexpert(
    *,
    folder: Path,
    side: int,
    uncertain: str = "ignore",
    blank: str = "zeros",
    views: Sequence[str] = ("PA", "AP"),
) -> Source:
    """A folder laid out as CheXpert is: `train.csv`, `valid.csv`, `Path` below it.

    The official test split is valid.csv, which radiologists labelled.

    Args:
      folder: of the data set, the one that holds train.csv.
      side: S, pixels.
      uncertain: what a label of -1 becomes: 'ignore' (unknown), 'zeros', 'ones', or
        'soft' (0.7: likelier present than not).
      blank: what a finding that the report doesn't mention becomes: 'zeros', as in
        the data set's paper, or 'ignore'.
      views: which films are kept, of 'PA', 'AP', 'LATERAL' and '' (a frontal film
        of unknown view).

    Raises:
      InputError: no table, a missing column, an unknown policy or label.
    """
    policies = {"zeros": 0.0, "ignore": math.nan}
    meaning = {
        "1": 1.0,
        "0": 0.0,
        "-1": _choice("uncertain", uncertain, UNCERTAIN),
        "": _choice("blank", blank, policies),
    }
    for view in views:
        _choice("views", view, dict.fromkeys(VIEWS))
    folder = tables.existing(folder)
    train = tables.read_csv(tables.newest(folder, "train.csv*"))
    raw = train.assign(official="train")
    if list(folder.glob("valid.csv*")):
        valid = tables.read_csv(tables.newest(folder, "valid.csv*"))
        raw = pd.concat([raw, valid.assign(official="test")], ignore_index=True)
    columns = {
        "image": "Path",
        "sex": "Sex",
        "age": "Age",
        "side": "Frontal/Lateral",
        "view": "AP/PA",
        "official": "official",
        **{task: task for task in TASKS},
    }
    table = tables.select(raw, columns, folder)
    # 'CheXpert-v1.0-small/train/patient00001/...': the first part is the folder.
    table["image"] = table["image"].str.replace(r"^CheXpert[^/]*/", "", regex=True)
    number = table["image"].str.extract(r"patient(\d+)")[0]
    if number.isna().any():
        path = table["image"][number.isna()].iloc[0]
        raise InputError(f"{folder}: Path {path!r} names no patient00000: correct it")
    table["patient"] = number.astype(int)
    study = table["image"].str.extract(r"/study(\d+)/")[0]
    table["follow_up"] = study.astype(float) - 1
    table["sex"] = table["sex"].map({"Male": "M", "Female": "F"}).fillna("")
    table["age"] = tables.numbers(table, "age", folder)
    lateral = table.pop("side") == "Lateral"
    view = tables.only(table["view"], ("PA", "AP"))
    table["view"] = view.where(~lateral, "LATERAL")
    for task in TASKS:
        text = table[task].str.replace(r"\.0$", "", regex=True)
        strange = ~text.isin(list(meaning))
        if strange.any():
            raise InputError(
                f"{folder}: {task} is {text[strange].iloc[0]!r} for "
                f"{table['image'][strange].iloc[0]}: use 1, 0, -1 or blank"
            )
        table[task] = text.map(meaning)
    table = table[table["view"].isin(list(views))].reset_index(drop=True)
    table[tables.FROM_FILE] = math.nan

    def load(row: dict) -> Item:
        return tables.load(row, folder / row["image"], shape)

    shape = (side, side, 1)
    return tables.source(table, load, tasks=TASKS, shape=shape, where=folder)


def _choice(name: str, value: str, known: dict[str, float]) -> float:
    """The meaning of a setting's value."""
    if value not in known:
        options = ", ".join(map(repr, known))
        raise InputError(f"data.{name}={value!r}: use {options}")
    return known[value]
