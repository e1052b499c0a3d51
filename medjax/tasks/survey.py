"""The command `explore`: what the images of a config look like, before training."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax.cohort import appearance, describe, manifests
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import discrimination
from medjax.reports import explore_page
from medjax.reports.pictures import middle, resize
from medjax.tasks import films, imbalance, parts, splitting
from medjax.training import head

FOLDS = 5
FLOOR_IMAGES = 3000  # At most, by which the floor is estimated.


def survey(config: Config, data: films.FilmData, folder: Path) -> Path:
    """Writes explore.html and explore.json: the cohort, its pixels and its split."""
    table, tasks = data.table, data.output.names
    manifest = splitting.split(config, data)
    kind = "multiclass" if data.output.exclusive else "multilabel"
    facts = describe.describe(table, tasks, manifest, task=kind)
    everyone = data.films(table["id"].to_numpy())
    pixels = (
        (batch["id"].reshape(-1), batch["image"].reshape(-1, *data.output.shape))
        for batch in splitting.evaluation_batches(config, everyone)
    )
    facts |= {
        "source": config.data.source,
        "sample": describe.pick(table, tasks, boxes=_read(data, "boxes")),
        "pixels": appearance.statistics(pixels, jax.jit(parts.preparation(config))),
        "confounders": _confounders(config, data),
        "floor": floor(config, data, manifest),
        "weights": _weights(config, data, manifest),
        "split": verdict(config, data, manifest),
        "duplicates": pairs(data, manifest),
        "quarantine": _read(data, "quarantine").to_dict("records"),
    }
    if warning := facts["pixels"]["dim"]:
        print(f"warning: {warning}")
    mean = facts["floor"]["mean"]
    print(
        "floor: logistic regression on 32 x 32 pixels has a mean AUROC of "
        f"{mean['estimate']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
    )
    images = {id: everyone.picture(id) for id in explore_page.wanted(facts)}
    folder.mkdir(parents=True, exist_ok=True)
    return explore_page.write(facts, images, folder)


def _read(data: films.FilmData, name: str) -> pd.DataFrame:
    return pd.read_csv(data.path / f"{name}.csv", keep_default_na=False)


def _confounders(config: Config, data: films.FilmData) -> dict:
    """{covariate: {task: interval of the AUROC with the covariate as the score}}."""
    names = data.output.names
    label = data.table[list(names)].to_numpy(float)
    intervals = {}
    for covariate, score in describe.confounders(data.table).items():
        known = ~np.isnan(label) & ~np.isnan(score)[:, None]
        scores = np.repeat(score[:, None], len(names), axis=1)
        areas = _aurocs(config, scores, label, known, data.table["patient"])
        intervals[covariate] = dict(zip(names, areas[:-1], strict=True))
    return intervals


def floor(config: Config, data: films.FilmData, manifest: pd.DataFrame) -> dict:
    """The AUROC of logistic regression on 32 x 32 pixels, without the test images.

    It is cross-validated by patient. A network that isn't better has learnt nothing
    that needs a network. Of a volume, the middle slice counts.

    Returns {task: interval of the AUROC, and 'mean': that of their mean}.
    """
    rows = manifest["id"][manifest["split"] != "test"].to_numpy()
    rng = np.random.default_rng(config.seed)
    ids = np.sort(rng.permutation(rows)[:FLOOR_IMAGES])
    images = data.films(ids)
    pixels = np.stack(
        [resize(middle(images.picture(i)), 32, 32).ravel() for i in range(len(ids))]
    ).astype(np.float32)
    label, names = data.label(ids), data.output.names
    patient, people = pd.factorize(data.table["patient"].iloc[ids])
    fold = rng.permutation(len(people))[patient] % FOLDS
    known = (~np.isnan(label)).astype(np.float32)
    how = {"between": head.no_points(len(names)), "exclusive": data.output.exclusive}
    decay = 500 * FOLDS / (FOLDS - 1) / len(ids)  # That of scikit-learn's C = 0.001.
    score = np.zeros_like(known)
    for held in range(FOLDS):
        out = fold == held
        # The held-out images have no weight, so that all folds share a program.
        weight = known * ~out[:, None]
        layer = head.refit(pixels, np.nan_to_num(label), weight, decay=decay, **how)
        # Without the bias, which is low where the held-out fold has many positives.
        score[out] = (pixels[out] - pixels.mean(axis=0)) @ np.asarray(layer["kernel"])
    areas = _aurocs(config, score, label, known, patient)
    return dict(zip((*names, "mean"), areas, strict=True))


def _aurocs(config: Config, score, label, known, patient) -> list[dict[str, float]]:
    """The interval of each task's AUROC, of scores [N, T], and last of their mean."""
    areas = discrimination.intervals(
        *(score, np.nan_to_num(label), known, patient, None),
        **parts.bootstrap(config),
    )
    columns = map(np.append, areas["auroc"][:3], areas["mean_auroc"][:3])
    ends = ("estimate", "low", "high")
    return [
        dict(zip(ends, area, strict=True))
        for area in np.stack([*columns], axis=1).tolist()
    ]


def _weights(config: Config, data: films.FilmData, manifest: pd.DataFrame) -> dict:
    """{scheme: {part: {task: weight}}} of the training images, or {scheme: error}."""
    label = data.label(splitting.ids_in(manifest, "train"))
    kind = data.output.names, label, data.output.exclusive
    called = {"w": "", "w_pos": "positive", "w_neg": "negative"}
    schemes: dict = {}
    for scheme in imbalance.WEIGHTS:
        try:
            weights = imbalance.class_weights(config, *kind, scheme)
        except InputError as error:
            schemes[scheme] = str(error)
            continue
        schemes[scheme] = {
            called[part]: dict(zip(data.output.names, w.tolist(), strict=True))
            for part, w in weights.items()
        }
    return schemes


def verdict(config: Config, data: films.FilmData, manifest: pd.DataFrame) -> dict:
    """The counts of each split, and whether the audit allows training."""
    reached = manifests.reached(data.table, manifest, data.output.names)
    sound, why = True, "No patient and no picture is on two sides."
    if config.split.by == "image":
        sound = False
        why = "Split by image: patients are on several sides, and results flatter."
    try:
        splitting.audit(config, data, manifest)
    except InputError as error:
        sound, why = False, str(error)
    return {"reached": reached.to_dict("records"), "sound": sound, "verdict": why}


def pairs(data: films.FilmData, manifest: pd.DataFrame) -> list[dict]:
    """The pairs of images that show one picture, and their splits."""
    rows = manifest.set_index("id")
    shown = []
    for pair in data.pairs().to_dict("records"):
        first, second = rows.loc[pair["id"]], rows.loc[pair["other"]]
        pair |= {
            "image": first["image"],
            "other_image": second["image"],
            "split": first["split"],
            "other_split": second["split"],
            "same_patient": bool(first["patient"] == second["patient"]),
        }
        shown.append(pair)
    return shown
