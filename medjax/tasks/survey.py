"""The command `explore`: what the images of a config look like, before training."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.cohort import describe
from medjax.cohort import manifest as manifests
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import discrimination
from medjax.reports import explore as exploring
from medjax.tasks import films, parts


def survey(config: Config, data: films.Data, folder: Path) -> Path:
    """Writes explore.html and explore.json: the cohort, its pixels and its split."""
    table, tasks = data.table, data.output.names
    manifest = films.split(config, data)
    kind = "multiclass" if data.output.exclusive else "multilabel"
    facts = describe.describe(table, tasks, manifest, task=kind)
    everyone = data.films(table["id"].to_numpy())
    pixels = (
        (batch["id"].reshape(-1), batch["image"].reshape(-1, *data.output.shape))
        for batch in films.evaluation_batches(config, everyone)
    )
    facts |= {
        "source": config.data.source,
        "sample": describe.sample(table, tasks, boxes=_read(data, "boxes")),
        "pixels": describe.statistics(pixels, jax.jit(parts.preparation(config))),
        "confounders": _confounders(config, data),
        "weights": _weights(config, data, manifest),
        "split": _verdict(config, data, manifest),
        "duplicates": _pairs(data, manifest),
        "quarantine": _read(data, "quarantine").to_dict("records"),
    }
    images = {id: everyone[id]["image"] for id in exploring.wanted(facts)}
    folder.mkdir(parents=True, exist_ok=True)
    return exploring.write(facts, images, folder)


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
    label = data.label(films.ids_in(manifest, "train"))
    called = {"w": "", "w_pos": "positive", "w_neg": "negative"}
    schemes: dict = {}
    for scheme in parts.WEIGHTS:
        try:
            weights = parts.class_weights(config, data.output, label, scheme)
        except InputError as error:
            schemes[scheme] = str(error)
            continue
        schemes[scheme] = {
            called[part]: dict(zip(data.output.names, w.tolist(), strict=True))
            for part, w in weights.items()
        }
    return schemes


def _verdict(config: Config, data: films.Data, manifest: pd.DataFrame) -> dict:
    """The counts of each split, and whether the audit allows training."""
    reached = manifests.reached(data.table, manifest, data.output.names)
    sound, verdict = True, "No patient and no picture is on two sides."
    if config.split.by == "image":
        sound = False
        verdict = "Split by image: patients are on several sides, and results flatter."
    try:
        films.audit(config, data, manifest)
    except InputError as error:
        sound, verdict = False, str(error)
    return {"reached": reached.to_dict("records"), "sound": sound, "verdict": verdict}


def _pairs(data: films.Data, manifest: pd.DataFrame) -> list[dict]:
    """The pairs of images that show one picture, and their splits."""
    rows = manifest.set_index("id")
    pairs = []
    for pair in data.pairs().to_dict("records"):
        first, second = rows.loc[pair["id"]], rows.loc[pair["other"]]
        pair |= {
            "image": first["image"],
            "other_image": second["image"],
            "split": first["split"],
            "other_split": second["split"],
            "same_patient": bool(first["patient"] == second["patient"]),
        }
        pairs.append(pair)
    return pairs
