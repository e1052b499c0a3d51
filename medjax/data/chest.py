"""Chest films: the phantom, and folders laid out as ChestX-ray14 or CheXpert are."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.data import phantom as phantoms
from medjax.data import reading
from medjax.data.records import Item, Source, in_parallel
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
FILMS_A_SHARD = 4096
OLDEST = 120  # Years; NIH's table holds ages up to 414.


def phantom(
    *,
    side: int,
    patients: int,
    films: int,
    seed: int = 0,
    first_patient: int = 0,
    contrast: float = 1.0,
    prevalence: Sequence[float] = phantoms.PREVALENCE,
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
    chunk = 32  # Patients a call: enough to fill the cores, few enough for memory.
    key = jax.random.key(seed)
    draw = functools.partial(
        phantoms.patients,
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
    step = max(1, FILMS_A_SHARD // films)
    shards = [
        functools.partial(shard, numbers[start : start + step])
        for start in range(0, patients, step)
    ]
    return Source(phantoms.FINDINGS, patients * films, shards)


def _phantom_item(drawn: dict[str, np.ndarray], patient: int, film: int, side: int):
    boxes = [
        (task, *map(float, box))
        for task, box in zip(phantoms.FINDINGS, drawn["box"], strict=True)
        if not np.isnan(box).any()
    ]
    row = {
        "image": f"{patient:08d}_{film:03d}",
        "patient": patient,
        "view": phantoms.VIEWS[drawn["view"]],
        "sex": phantoms.SEXES[drawn["sex"]],
        "age": float(drawn["age"]),
        "width": side,
        "height": side,
        "spacing_x": phantoms.FIELD_MM / side,
        "spacing_y": phantoms.FIELD_MM / side,
        "official": "",
        **dict(zip(phantoms.FINDINGS, map(float, drawn["label"]), strict=True)),
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
    folder = _existing(folder)
    table = _read_csv(_one(folder, "Data_Entry_2017*.csv*"))
    columns = {
        "image": "Image Index",
        "findings": "Finding Labels",
        "patient": "Patient ID",
        "age": "Patient Age",
        "sex": "Patient Gender",
        "view": "View Position",
        # The header has commas inside its last two names.
        "width": "OriginalImage[Width",
        "height": "Height]",
        "spacing_x": "OriginalImagePixelSpacing[x",
        "spacing_y": "y]",
    }
    table = _renamed(table, columns, folder)
    table["patient"] = pd.to_numeric(table["patient"])
    # The first release of the table says '058Y'.
    age = pd.to_numeric(table["age"].str.extract(r"(\d+)")[0])
    table["age"] = age.where(age <= OLDEST)
    for name in ("width", "height", "spacing_x", "spacing_y"):
        table[name] = pd.to_numeric(table[name])
    found = table["findings"].str.split("|")
    for task in NIH_TASKS:
        table[task] = [float(task in findings) for findings in found]
    strange = set().union(*found) - {*NIH_TASKS, "No Finding"}
    if strange:
        raise InputError(
            f"{folder}: Finding Labels holds {sorted(strange)[0]!r}, which is none of "
            "ChestX-ray14's findings: correct the table"
        )
    table["official"] = ""
    for name, part in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        if (folder / name).exists():
            listed = (folder / name).read_text().split()
            table.loc[table["image"].isin(listed), "official"] = part
    boxes = _nih_boxes(folder, side)
    paths = {path.name: path for path in sorted(folder.glob("images*/**/*.png"))}
    if not paths:
        raise InputError(f"{folder}: no images/**.png: is this the data set's folder?")
    unlisted = sorted(paths.keys() - set(table["image"]))

    def load(row: dict) -> Item:
        path = paths.get(row["image"], folder / "images" / row["image"])
        return _load(row, path, side, boxes.get(row["image"], ()))

    return _folder_source(
        NIH_TASKS, table.drop(columns="findings"), load, unlisted=unlisted
    )


def _nih_boxes(folder: Path, side: int) -> dict[str, list[tuple]]:
    """Image name -> boxes in pixels of the S x S film; empty without a list."""
    if not list(folder.glob("BBox_List_2017.csv*")):
        return {}
    path = _one(folder, "BBox_List_2017.csv*")
    columns = {
        "image": "Image Index",
        "task": "Finding Label",
        "x": "Bbox [x",
        "y": "y",
        "w": "w",
        "h": "h]",
    }
    listed = _renamed(_read_csv(path), columns, path)
    listed["task"] = listed["task"].replace("Infiltrate", "Infiltration")
    scale = side / NIH_BOX_SIDE
    boxes: dict[str, list[tuple]] = {}
    for image, task, *box in listed.itertuples(index=False):
        x, y, w, h = (float(value) * scale for value in box)
        boxes.setdefault(image, []).append((task, x, y, x + w, y + h))
    return boxes


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
      views: which films are kept, of 'PA', 'AP', 'LATERAL' and '' (a frontal film of unknown view).

    Raises:
      InputError: no table, a missing column, an unknown policy or label.
    """
    for name, value, known in (
        ("uncertain", uncertain, tuple(UNCERTAIN)),
        ("blank", blank, ("zeros", "ignore")),
    ):
        if value not in known:
            raise InputError(f"data.{name}={value!r}: use one of {', '.join(known)}")
    folder = _existing(folder)
    parts = [_read_csv(_one(folder, "train.csv*")).assign(official="train")]
    if list(folder.glob("valid.csv*")):
        parts.append(_read_csv(_one(folder, "valid.csv*")).assign(official="test"))
    columns = {
        "image": "Path",
        "sex": "Sex",
        "age": "Age",
        "side": "Frontal/Lateral",
        "view": "AP/PA",
        "official": "official",
    }
    raw = pd.concat(parts, ignore_index=True)
    table = _renamed(raw, columns, folder)
    # 'CheXpert-v1.0-small/train/patient00001/...': the first part is the folder.
    table["image"] = table["image"].str.replace(r"^CheXpert[^/]*/", "", regex=True)
    number = table["image"].str.extract(r"patient(\d+)")[0]
    if number.isna().any():
        path = table["image"][number.isna()].iloc[0]
        raise InputError(f"{folder}: Path {path!r} names no patient00000: correct it")
    table["patient"] = number.astype(int)
    table["sex"] = table["sex"].map({"Male": "M", "Female": "F"}).fillna("")
    table["age"] = pd.to_numeric(table["age"])
    lateral = table.pop("side") == "Lateral"
    known = table["view"].where(table["view"].isin(["PA", "AP"]), "")
    table["view"] = known.where(~lateral, "LATERAL")
    meaning = {"1": 1.0, "0": 0.0, "-1": UNCERTAIN[uncertain]}
    meaning[""] = 0.0 if blank == "zeros" else math.nan
    for task in CHEXPERT_TASKS:
        if task not in raw:
            raise InputError(f"{folder}: the tables have no column {task!r}")
        text = raw[task].str.replace(r"\.0$", "", regex=True)
        strange = ~text.isin(list(meaning))
        if strange.any():
            raise InputError(
                f"{folder}: {task} is {text[strange].iloc[0]!r} for "
                f"{table['image'][strange].iloc[0]}: use 1, 0, -1 or blank"
            )
        table[task] = text.map(meaning)
    table = table[table["view"].isin(list(views))].reset_index(drop=True)
    for name in ("width", "height", "spacing_x", "spacing_y"):
        table[name] = math.nan  # Only the file knows.
    return _folder_source(
        CHEXPERT_TASKS, table, lambda row: _load(row, folder / row["image"], side)
    )


def _folder_source(
    tasks: tuple[str, ...],
    table: pd.DataFrame,
    load: Callable[[dict], Item],
    unlisted: Iterable[str] = (),
) -> Source:
    """A table's films in shards; files that no row names go to quarantine."""

    def shard(start: int) -> Iterator[Item]:
        rows = table.iloc[start : start + FILMS_A_SHARD].to_dict("records")
        yield from in_parallel(load, rows)
        if start + FILMS_A_SHARD >= len(table):
            for name in unlisted:
                yield Item({"image": name}, None, reason="the table has no row for it")

    starts = range(0, len(table), FILMS_A_SHARD)
    shards = [functools.partial(shard, start) for start in starts]
    return Source(tasks, len(table) + len(list(unlisted)), shards)


def _load(row: dict, path: Path, side: int, boxes: Sequence[tuple] = ()) -> Item:
    """Reads and resizes one film; what can't be read becomes a reason."""
    try:
        film = reading.read(path)
    except InputError as error:
        return Item(row, None, reason=str(error))
    height, width = film.pixels.shape
    known = {"width": width, "height": height}
    known |= {"spacing_x": film.spacing[0], "spacing_y": film.spacing[1]}
    # What the table says of the original stands; files may be resized copies.
    known = {k: v if math.isnan(row[k]) else row[k] for k, v in known.items()}
    known |= {k: int(known[k]) for k in ("width", "height")}
    return Item({**row, **known}, reading.resize(film.pixels, side)[..., None], boxes)


def _existing(folder: Path) -> Path:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.folder={str(folder)!r} is no folder: set data.folder")
    return folder


def _one(folder: Path, pattern: str) -> Path:
    """The newest table of that name: the one that sorts last."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: no {pattern}: is this the data set's folder?")
    return found[-1]


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: is no CSV ({why}): fetch it again") from None


def _renamed(table: pd.DataFrame, columns: dict[str, str], where: Path) -> pd.DataFrame:
    missing = [old for old in columns.values() if old not in table]
    if missing:
        raise InputError(f"{where}: the table has no column {missing[0]!r}")
    table = table[list(columns.values())]
    return table.rename(columns={old: new for new, old in columns.items()})
