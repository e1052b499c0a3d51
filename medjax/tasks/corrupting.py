"""evaluate --corrupt: a run on corrupted films, beside the same films as they are."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from medjax import config as plain
from medjax.errors import InputError
from medjax.evaluation import predict as inference
from medjax.evaluation import robustness
from medjax.evaluation import robustness as corruptions
from medjax.evaluation.robustness import CORRUPTIONS, SEVERITIES
from medjax.reports.page import interval
from medjax.tasks import study
from medjax.tasks.finished import Run


def corrupt(run: Run, data: study.Data, ids: np.ndarray, films: int = 0) -> dict:
    """Measures a run on every corruption of some films, at every severity.

    Args:
      run: whose calibrated predictions and frozen thresholds are judged.
      data: whose films.
      ids: [N] of those that may be used.
      films: so many of them at most, chosen by their ids alone; 0: all.

    Returns:
      What robustness.summarise says.

    Raises:
      InputError: there is no film, or they are volumes.
    """
    if len(data.task.shape) != 3:
        raise InputError("--corrupt: corrupts films, and this run reads volumes")
    ids = fewer(ids, films)
    if not ids.size:
        raise InputError("--corrupt: no film in this split")
    config = run.config
    key = jax.random.key(config.seed + 3)
    cells = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    said: dict[tuple, list] = {cell: [] for cell in cells}
    clean = []
    batches = study.evaluation_batches(config, data.films(ids))
    # Findings are ranked by what the network says, as in the report: see results.py.
    predict = run.predict if run.task.exclusive else run.uncalibrated
    with Progress() as progress:
        bar = progress.add_task("corrupt", total=len(ids))
        for batch in batches:
            clean.append(inference.predict([batch], predict))
            for name, severity in cells:
                changed = _changed(name, key, batch, severity)
                found = inference.predict([changed], predict)
                said[name, severity].append(found.probability)
            progress.advance(bar, len(clean[-1].id))
    return robustness.summarise(
        inference.Predictions(*map(np.concatenate, zip(*clean, strict=True))),
        {
            name: np.stack([np.concatenate(said[name, s]) for s in SEVERITIES])
            for name in CORRUPTIONS
        },
        tasks=run.task.names,
        exclusive=run.task.exclusive,
        told=None if run.task.exclusive else run.calibrated,
        threshold=np.array([run.thresholds[name] for name in run.task.names]),
        **plain.bootstrap(config),
    )


def fewer(ids: np.ndarray, films: int) -> np.ndarray:
    """So many of the ids, ascending; fewer of them are among more. 0: all.

    Raises:
      InputError: a negative number.
    """
    if films < 0:
        raise InputError(f"--films={films}: give a number of films, or 0 for all")
    order = np.random.default_rng(0).permutation(np.sort(ids))
    return np.sort(order[: films or None])


def write(found: dict, path: Path) -> Path:
    """Writes .json, and .csv beside it, of `corrupt`; returns the JSON's path."""
    path.write_text(json.dumps(found, indent=1))
    ends = [f"{k}{end}" for k in robustness.KINDS for end in ("", "_low", "_high")]
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["corruption", "severity", "parameter", "value", *ends])
        for name, one in found["corruptions"].items():
            for row in one["severities"]:
                about = [name, row["severity"], one["parameter"], row["value"]]
                writer.writerow([*about, *_ends(row)])
        for row in found["mean"]:
            writer.writerow(["mean", row["severity"], "", "", *_ends(row)])
    return path


def show(found: dict) -> None:
    """Prints the mean curve."""
    table = Table(
        title=f"{found['films']} films, {len(found['corruptions'])} corruptions"
    )
    for heading in ("severity", "mean AUROC", "drop", "calls that stay"):
        table.add_column(heading, justify="right")
    table.add_row("0", interval(found["clean"]["auroc"]), "", "")
    for row in found["mean"]:
        table.add_row(
            str(row["severity"]), *(interval(row[k]) for k in robustness.KINDS)
        )
    Console(soft_wrap=True).print(table)


def _changed(name: str, key, batch: dict, severity: int) -> dict:
    """The batch with its images [D, B, ...] corrupted, as 8 bits: as records are."""
    image = batch["image"]
    flat = image.reshape(-1, *image.shape[2:]).astype(np.float32) / 255
    ids = batch["id"].reshape(-1)
    found = corruptions.corrupt(name, key, flat, ids, severity=severity)
    found = np.rint(np.asarray(found) * 255).astype(np.uint8)
    return {**batch, "image": found.reshape(image.shape)}


def _ends(row: dict) -> list:
    return [
        row[k][end] for k in robustness.KINDS for end in ("estimate", "low", "high")
    ]
