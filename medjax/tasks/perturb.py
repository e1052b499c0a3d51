"""A finished run on changed images: corrupted ones, and augmented ones."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.progress import Progress
from scipy.special import expit

from medjax.augment import patches, policy
from medjax.config import Config, config_as_json
from medjax.data.normalisation import unit_range
from medjax.errors import InputError
from medjax.evaluation import corruptions, inference, robustness
from medjax.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from medjax.files import write_json, write_table
from medjax.reports import explore_page
from medjax.reports.page import interval, show_table
from medjax.tasks import films, parts, splitting
from medjax.tasks.task import Finished

MATTERS = 0.01  # AUROC; a smaller drop at the config's strength changes no conclusion.


def corrupt(
    run: Finished, data: films.FilmData, ids: np.ndarray, most: int = 0
) -> dict:
    """Measures a run on images at every severity of every corruption.

    `most` of the images `ids` at most, chosen by their ids alone; 0: all. Returns
    robustness.summarise's.
    """
    if len(data.output.shape) != 3:
        raise InputError("--corrupt: corrupts 2-D images, and this run reads volumes")
    ids = fewer(ids, most)
    if not ids.size:
        raise InputError("--corrupt: no film in this split")
    config = run.config
    key = jax.random.key(config.seed + 3)
    ranking: dict[str, list] = {name: [] for name in CORRUPTIONS}
    clean = []
    exclusive = run.output.exclusive
    with Progress() as progress:
        bar = progress.add_task("corrupt", total=len(ids))
        for batch in splitting.evaluation_batches(config, data.films(ids)):
            clean.append(_predicted(run, [batch]))
            for name, by_batch in ranking.items():
                of_batch = []
                for severity in SEVERITIES:
                    change = functools.partial(_corrupt, name, severity, key)
                    of_batch.append(_predicted(run, [_changed(batch, change)]).ranking)
                by_batch.append(np.stack(of_batch))
            progress.advance(bar, len(clean[-1].id))
    return robustness.summarise(
        inference.Predictions(*map(np.concatenate, zip(*clean, strict=True))),
        {name: np.concatenate(each, axis=1) for name, each in ranking.items()},
        tasks=run.output.names,
        exclusive=exclusive,
        # Of classes the log-odds are calibrated already.
        calibrate=lambda z: expit(z) if exclusive else run.fixed.calibrated(expit(z)),
        threshold=run.thresholds,
        **parts.bootstrap(config),
    )


def fewer(ids: np.ndarray, films: int) -> np.ndarray:
    """Draws so many of the ids, ascending; a smaller number takes a subset. 0: all."""
    if films < 0:
        raise InputError(f"--films={films}: give a number of films, or 0 for all")
    order = np.random.default_rng(0).permutation(np.sort(ids))
    return np.sort(order[: films or None])


def write(results: dict, path: Path) -> Path:
    """Writes .json, and .csv beside it, of `corrupt`, and prints the mean curve."""
    write_json(path, results)
    measures = robustness.DROP_MEASURES
    rows = [
        {"corruption": name, "parameter": corruption["parameter"], **row}
        for name, corruption in results["corruptions"].items()
        for row in corruption["severities"]
    ]
    rows += [{"corruption": "mean", **row} for row in results["mean"]]
    for row in rows:
        for measure in measures:
            ends = row[measure]
            row[measure] = ends["estimate"]
            row |= {f"{measure}_{end}": ends[end] for end in ("low", "high")}
    columns = [f"{k}{end}" for k in measures for end in ("", "_low", "_high")]
    columns = ["corruption", "severity", "parameter", "value", *columns]
    numbers = pd.DataFrame(rows, columns=columns, dtype=object)  # 50 isn't 50.0.
    write_table(path.with_suffix(".csv"), numbers)
    table = [("0", interval(results["clean"]["auroc"]), "", "")]
    for row in results["mean"]:
        table.append((str(row["severity"]), *(interval(row[k]) for k in measures)))
    title = f"{results['films']} images, {len(results['corruptions'])} corruptions"
    headings = ("severity", "mean AUROC", "drop", "calls that stay")
    show_table(title, headings, table)
    return path


def _predicted(run: Finished, batches: Iterable[dict]) -> inference.Predictions:
    """The run's calibrated predictions."""
    return run.fixed.apply(inference.predict(batches, run.log_odds))


def _changed(batch: dict, change: Callable) -> dict:
    """The batch [D, B, ...] with images changed by (image [B, ...], id [B]) -> image."""
    image = batch["image"]
    flat = image.reshape(-1, *image.shape[2:])
    changed = np.asarray(change(flat, batch["id"].reshape(-1)))
    return {**batch, "image": changed.reshape(image.shape)}


def _corrupt(name: str, severity: int, key: jax.Array, image, id) -> np.ndarray:
    """The images corrupted, in as many bits as the records have."""
    unit = unit_range(image)
    corrupted = corruptions.corrupt(name, key, unit, id, severity=severity)
    white = np.iinfo(image.dtype).max
    return np.rint(np.asarray(corrupted) * white).astype(image.dtype)


@functools.partial(jax.jit, static_argnames=("op", "spacing"))
def _augment(key, image, id, *, op: Callable, spacing: tuple) -> jax.Array:
    """The images in [0, 1], changed by one op as in epoch 0; volumes have a spacing."""
    zeros = jnp.zeros_like(id)
    batch = {"image": image, "id": id, "epoch": zeros, "occurrence": zeros}
    augment, how = policy.augment_batch, {"prepare": lambda image: image}
    if spacing:
        augment, how = patches.prepare_whole, how | {"spacing": spacing}
    return augment(key, batch, ops=(op,), **how)["image"]


def audit(run: Finished, data: films.FilmData, manifest: pd.DataFrame) -> Path:
    """Writes augment.html and augment.json: does an augmentation keep the label?

    On the run's validation split, because the result may change the config.
    """
    config, names = run.config, run.output.names
    images = data.films(splitting.ids_in(manifest, "validation"))
    plain = _predicted(run, splitting.evaluation_batches(config, images))
    # The example shows as many findings as any image does.
    example = images[int(np.argmax((plain.label * plain.weight).sum(axis=1)))]
    strips: dict = {op: [unit_range(example["image"])] for op in config.augment.ops}
    rows: dict[str, list] = {op: [] for op in config.augment.ops}
    options = {"tasks": names, "threshold": run.thresholds, **parts.bootstrap(config)}
    for strength in robustness.STRENGTHS:
        for name, op in parts.ops(config, strength=strength).items():
            key, how = jax.random.key(config.seed), {"spacing": run.output.spacing}
            change = functools.partial(_augment, key, op=op, **how)
            batches = splitting.evaluation_batches(config, images)
            batches = (_changed(batch, change) for batch in batches)
            augmented = _predicted(run, batches)
            compared = robustness.compare(plain, augmented, **options)
            rows[name].append({"strength": strength, **compared})
            image, id = (np.asarray(example[k])[None] for k in ("image", "id"))
            strips[name].append(np.asarray(change(image, id))[0])
    summary = {
        "source": config.data.source,
        "split": "validation",
        "images": len(plain.id),
        "patients": len(np.unique(plain.patient)),
        "replicates": config.evaluation.replicates,
        "strengths": robustness.STRENGTHS,
        "tasks": names,
        "example": str(data.table["image"][int(example["id"])]),
        "ops": {op: _judged(op, config, at) for op, at in rows.items()},
    }
    return explore_page.write_audit(summary, strips, run.folder)


def _judged(op: str, config: Config, at: list[dict]) -> dict:
    """The op's numbers, and whether its label still holds at the config's strength."""
    row = next(row for row in at if row["strength"] == 1)
    drops = {"all findings together": row["mean_drop"]}
    drops |= {task: change["drop"] for task, change in row["tasks"].items()}
    spoilt = [
        f"{task} by {drop['estimate']:.3f} ({drop['low']:.3f} to {drop['high']:.3f})"
        for task, drop in drops.items()
        if drop["low"] is not None and drop["low"] > 0 and drop["estimate"] > MATTERS
    ]
    verdict = (
        f"{op} changes what the model sees as disease: AUROC falls for "
        + ", ".join(spoilt)
        if spoilt
        else f"{op} keeps the label, as far as this model sees: no AUROC falls by more "
        f"than {MATTERS} beyond chance."
    )
    options = config_as_json(config)["augment"].get(op, {})
    return {"options": options, "sound": not spoilt, "verdict": verdict, "at": at}
