"""evaluate --against: two runs on the same test patients, paired."""

from pathlib import Path

import numpy as np
import pandas as pd

from medjax import config as plain
from medjax.errors import InputError
from medjax.evaluation import compare as evaluation_compare
from medjax.evaluation.predict import Predictions
from medjax.reports import compare as reports_compare
from medjax.tasks import parts
from medjax.training import folder as workdir


def compare(folder: Path, other: Path, *, split: str = "test") -> Path:
    """Writes against.html and against.json of a run, and returns the page.

    Both runs' predictions/<split>.csv are read, so that no model is needed.

    Args:
      folder: of the run in question; the page is written there.
      other: of the run that it is compared with.
      split: that both were evaluated on.

    Raises:
      InputError: a run wasn't evaluated on it, or the two differ in their findings,
        images, patients or labels: then no difference is the models' alone.
    """
    names = tuple(workdir.read_task(folder)["names"])
    runs = [read(run, split, names) for run in (folder, other)]
    check(*runs, names, (folder, other))
    configs = [plain.read_config(run) for run in (folder, other)]
    summary = {
        "split": split,
        "source": configs[0].data.source,
        "runs": [
            {"folder": str(run), "model": c.model.name, "imbalance": c.imbalance}
            for run, c in zip((folder, other), configs, strict=True)
        ],
        **evaluation_compare.compare(
            *(
                _predictions(*run, names, split)
                for run in zip((folder, other), runs, configs, strict=True)
            ),
            tasks=names,
            **parts.bootstrap(configs[0]),
        ),
    }
    page = reports_compare.write(summary, folder)
    reports_compare.show(summary)
    print(f"against: {page}")
    return page


def read(folder: Path, split: str, names: tuple[str, ...]) -> pd.DataFrame:
    """A run's predictions, a row an image, in the order of the images' names.

    Args:
      folder: of the run.
      split: that it was evaluated on.
      names: of the findings, which must be its own.

    Raises:
      InputError: a run of other findings or of masks, one that wasn't evaluated on
        the split, or an image that is there twice.
    """
    if plain.read_config(folder).task == "segmentation":
        raise InputError(f"{folder}: --against compares classifiers, and it segments")
    found = tuple(workdir.read_task(folder)["names"])
    if set(found) != set(names):
        apart = ", ".join(sorted(set(found) ^ set(names)))
        raise InputError(
            f"{folder}: the two runs don't have the same findings ({apart}): compare "
            "runs of the same task"
        )
    path = folder / "predictions" / f"{split}.csv"
    if not path.exists():
        raise InputError(f"{path}: not there: evaluate that run on --split={split}")
    table = pd.read_csv(
        path, dtype={"image": str}, keep_default_na=False, na_values=[""]
    )
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise InputError(
            f"{path}: image {twice.iloc[0]} occurs twice, and can't be paired: give "
            "the images of the data names of their own"
        )
    return table.set_index("image").sort_index()


def check(
    one: pd.DataFrame,
    other: pd.DataFrame,
    names: tuple[str, ...],
    folders: tuple[Path, Path],
) -> None:
    """Refuses two runs that were judged on other images, patients or labels.

    Args:
      one, other: as `read` returns them.
      names: of the findings.
      folders: of both runs, for the message.

    Raises:
      InputError: they were.
    """
    for here, there, run in ((one, other, folders[1]), (other, one, folders[0])):
        missing = here.index.difference(there.index)
        if len(missing):
            raise InputError(
                f"{run}: its predictions lack {len(missing)} of the images of the "
                f"other run, such as {missing[0]}: compare runs of the same split"
            )
    for name in ("patient", *(f"{name}_label" for name in names)):
        first, second = one[name].to_numpy(float), other[name].to_numpy(float)
        differs = ~((first == second) | (np.isnan(first) & np.isnan(second)))
        if differs.any():
            at = int(np.argmax(differs))
            values = [
                "unknown" if np.isnan(x[at]) else f"{x[at]:g}" for x in (first, second)
            ]
            what = (
                "patient"
                if name == "patient"
                else f"{name.removesuffix('_label')} label"
            )
            raise InputError(
                f"{folders[1]}: the {what} of {differs.sum()} images is another, such "
                f"as of {one.index[at]}: {values[1]}, and {values[0]} in {folders[0]}: "
                "compare runs of the same data"
            )


def _predictions(
    folder: Path, table: pd.DataFrame, config: plain.Config, names, split: str
) -> Predictions:
    """What `read` returned, ranked as the run's own report ranks: see results.py.

    Raises:
      InputError: its ranks are lost: isotonic regression ties them, and an older
        medjax kept nothing else.
    """
    label = table[[f"{name}_label" for name in names]].to_numpy(np.float32)
    known = ~np.isnan(label)
    raw = [f"{name}_raw" for name in names]
    if not set(raw) <= set(table.columns):
        if config.evaluation.calibration == "isotonic":
            raise InputError(
                f"{folder}: its predictions are calibrated by isotonic regression, "
                f"which ties them: evaluate it again on --split={split}"
            )
        raw = list(names)
    return Predictions(
        np.arange(len(table)),
        table["patient"].to_numpy(),
        table[raw].to_numpy(np.float32),
        np.where(known, label, 0).astype(np.float32),
        known.astype(np.float32),
    )
