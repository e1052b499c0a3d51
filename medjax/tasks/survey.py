"""The command `explore`: what the images of a config look like, before training."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.cohort import balance, describe
from medjax.cohort import manifest as manifests
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import discrimination
from medjax.reports import explore as exploring
from medjax.tasks import films, parts


def survey(config: Config, data: films.Data, folder: Path) -> Path:
    """Writes explore.html and explore.json: the cohort, its pixels and its split.

    Args:
      config: of the run to come.
      data: of the config.
      folder: gets both files; made if absent.

    Returns:
      The page's path.
    """
    table, tasks = data.table, data.output.names
    manifest = films.split(config, data)
    kind = "multiclass" if data.output.exclusive else "multilabel"
    facts = describe.describe(table, tasks, manifest, task=kind)
    everyone = data.films(table["id"].to_numpy())
    batches = films.evaluation_batches(config, everyone)
    facts |= {
        "source": config.data.source,
        "sample": describe.sample(table, tasks, boxes=_read(data, "boxes")),
        "pixels": describe.statistics(
            ((_flat(b["id"]), _flat(b["image"])) for b in batches),
            jax.jit(parts.preparation(config)),
        ),
        "confounders": _confounders(config, data),
        "weights": _weights(config, data, manifest),
        "split": _verdict(config, data, manifest),
        "duplicates": _pairs(data, manifest),
        "quarantine": _read(data, "quarantine").to_dict("records"),
    }
    images = {id: everyone[id]["image"] for id in exploring.wanted(facts)}
    folder.mkdir(parents=True, exist_ok=True)
    return exploring.write(facts, images, folder)


def _flat(array: np.ndarray) -> np.ndarray:
    """[D, B, ...] -> [D B, ...]."""
    return array.reshape(-1, *array.shape[2:])


def _read(data: films.Data, name: str) -> pd.DataFrame:
    return pd.read_csv(data.path / f"{name}.csv", keep_default_na=False)


def _confounders(config: Config, data: films.Data) -> dict:
    """{covariate: {task: interval of the AUROC with the covariate as the score}}."""
    names = data.output.names
    label = data.table[list(names)].to_numpy(float)
    intervals = {}
    for covariate, score in describe.confounders(data.table).items():
        known = ~np.isnan(label) & ~np.isnan(score)[:, None]
        areas = discrimination.intervals(
            np.repeat(score[:, None], len(names), axis=1),
            np.nan_to_num(label),
            known,
            data.table["patient"],
            np.full(len(names), np.nan),
            **parts.bootstrap(config),
        )["auroc"]
        intervals[covariate] = {
            name: {"estimate": e, "low": low, "high": high}
            for name, e, low, high in zip(names, *areas[:3], strict=True)
        }
    return intervals


def _weights(config: Config, data: films.Data, manifest: pd.DataFrame) -> dict:
    """{scheme: {part: {task: weight}}} of the training images, or {scheme: error}."""
    names = data.output.names
    label = data.label(films.ids_in(manifest, "train"))
    schemes: dict = {}
    for word, scheme in parts.WEIGHTS.items():
        options = {"scheme": scheme, "drop": config.resampling.drop}
        try:
            if data.output.exclusive:
                w = balance.multiclass_weights(label, classes=names, **options)
                weights = {"": w}
            else:
                w = balance.class_weights(label, tasks=names, **options)
                weights = {"positive": w.w_pos, "negative": w.w_neg}
        except InputError as error:
            schemes[word] = str(error)
        else:
            schemes[word] = {
                part: dict(zip(names, w.tolist(), strict=True))
                for part, w in weights.items()
            }
    return schemes


def _verdict(config: Config, data: films.Data, manifest: pd.DataFrame) -> dict:
    """The counts of each split, and whether the audit allows training."""
    reached = manifests.reached(data.table, manifest, data.output.names).to_dict(
        "records"
    )
    try:
        films.audit(config, data, manifest)
    except InputError as error:
        return {"reached": reached, "sound": False, "verdict": str(error)}
    if config.split.by == "image":
        verdict = "Split by image: patients are on several sides, and results flatter."
        return {"reached": reached, "sound": False, "verdict": verdict}
    verdict = "No patient and no picture is on two sides."
    return {"reached": reached, "sound": True, "verdict": verdict}


def _pairs(data: films.Data, manifest: pd.DataFrame) -> list[dict]:
    """The pairs of images that show one picture, and their splits."""
    known = manifest.set_index("id")[["image", "patient", "split"]]
    return [
        {
            **pair,
            "image": known.at[pair["id"], "image"],
            "other_image": known.at[pair["other"], "image"],
            "split": known.at[pair["id"], "split"],
            "other_split": known.at[pair["other"], "split"],
            "same_patient": known.at[pair["id"], "patient"]
            == known.at[pair["other"], "patient"],
        }
        for pair in data.pairs().to_dict("records")
    ]
