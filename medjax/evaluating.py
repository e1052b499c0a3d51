"""A finished run's numbers: on a split of its own data, or on other films."""

import functools
from pathlib import Path

import pandas as pd

from medjax import calibrating, explaining, fitting, segmenting
from medjax.build import adapt, finished, model, plain, start, study
from medjax.build.plain import Config
from medjax.cohort import splits
from medjax.data import schema
from medjax.errors import InputError
from medjax.evaluation import operating, results
from medjax.reports import heatmaps, page
from medjax.training import journal, workdir


def evaluate(folder: Path, *, split: str = "test", other: Config | None = None) -> dict:
    """Reports a run on one of its splits, or on all films of other data.

    Args:
      folder: of the run.
      split: 'test', 'validation', 'train', or 'target': the test images of the data
        that the run was adapted to.
      other: a config whose data are evaluated as a whole instead; `split` then
        only names the report.

    Returns:
      The results, see evaluation/results.py; also written as `report.*` (for
      another split than test `report-<split>.*`) and `predictions/<split>.csv`.

    Raises:
      InputError: no run there, or no such split.
    """
    config = plain.read_config(folder)
    if config.task == segmenting.TASK:
        return segmenting.evaluate(folder, split=split, other=other)
    _check_split(config, split, other)
    data = study.data(config)
    manifest = splits.read(folder / "splits.csv")
    study.audit(config, manifest, data)
    task = data.task
    network = model.network(config, task)
    number, state = start.restore(config, folder, network, task)
    predict = functools.partial(fitting.predictions, config, network, state)
    chosen, validation = calibrating.settle(
        *(config, folder, number, data, manifest),
        validation=lambda: predict(data.side(manifest, "validation")),
    )
    if validation is not None:
        _write(folder, "validation", data, validation)
    about = {"split": split, "checkpoint": number, **plain.about(config)}
    if other is not None:
        data, manifest = _strangers(config, data, manifest, other, split)
        about |= {"source": plain.about(other)["source"], "split_by": "other"}
    elif split == adapt.SPLIT:
        data, manifest = _target(config, folder, data)
        about["source"] = config.adapt.data.source
    raw = predict(data.side(manifest, split))
    found = calibrating.calibrated(chosen.calibration, raw)
    _write(folder, split, data, found)
    summary = about | results.summarise(
        found,
        tasks=task.names,
        exclusive=task.exclusive,
        threshold=[chosen.thresholds[name] for name in task.names],
        chosen=operating.describe(**plain.operating(config)),
        uncalibrated=raw.probability if chosen.calibration.fit else None,
        prevalence=plain.prevalence(config, len(task.names)),
        **plain.bootstrap(config),
    )
    calibrating.tell(summary, chosen.calibration)
    name = "report" if split == "test" else f"report-{split}"
    written = page.write(summary, journal.read(folder / "metrics.jsonl"), folder, name)
    page.show(summary)
    print(f"report: {written}")
    return summary


def localise(folder: Path, *, split: str, other: Config | None, **how: str) -> dict:
    """Reports where a run's heatmaps lie in the films whose findings have boxes.

    Args:
      folder: of a finished run.
      split: 'test', 'validation' or 'train'; with other data, the report's name.
      other: a config of films that are judged as a whole instead.
      how: method and stage of the heatmaps, see explaining.explainer.

    Returns:
      See explaining.localise; also written as `localisation.json` (for another split
      than test `localisation-<split>.json`).

    Raises:
      InputError: no finished run there, or no film with a box.
    """
    run = finished.read(folder)
    _check_split(run.config, split, other)
    if other is None:
        data, manifest = study.data(run.config), splits.read(folder / "splits.csv")
        study.audit(run.config, manifest, data)
        ids = manifest["id"][manifest["split"] == split].to_numpy()
    else:
        data = _same_task(study.data(other), run.task)
        ids = data.table["id"].to_numpy()
    found = {"split": split, **explaining.localise(run, data, ids, **how)}
    name = "localisation" if split == "test" else f"localisation-{split}"
    written = heatmaps.write(found, folder / f"{name}.json")
    print(f"localisation: {written}")
    return found


def _check_split(config: Config, split: str, other: Config | None) -> None:
    """Refuses a split that isn't there, and its name for other data."""
    sides = (*splits.SPLITS, *[adapt.SPLIT] * (config.adapt.name != "none"))
    if other is None and split not in sides:
        raise InputError(f"--split={split}: use one of {', '.join(sides)}")
    if other is not None and (split in sides or not split.isidentifier()):
        raise InputError(f"--split={split}: give the report on other data its own name")


def _strangers(
    config: Config,
    data: study.Data,
    manifest: pd.DataFrame,
    other: Config,
    split: str,
) -> tuple[study.Data, pd.DataFrame]:
    """Other data under the run's task, and all their images as one split."""
    trained = set(manifest["patient"][manifest["split"] == "train"])
    target = adapt.target(config, data)
    found = _same_task(study.data(other), data.task)
    if target is not None and target.data.path == found.path:
        print(
            f"note: {len(target.ids)} of these images were seen without labels: "
            f"--split={adapt.SPLIT} is about others"
        )
    shared = len(trained & set(found.table["patient"]))
    if shared:
        print(f"note: {shared} patient numbers occur in training too: other people?")
    return found, found.table.assign(split=split)


def _target(
    config: Config, folder: Path, data: study.Data
) -> tuple[study.Data, pd.DataFrame]:
    """The data that a run was adapted to, and their test images as the split."""
    found, _ = adapt.target(config, data)
    manifest = splits.read(folder / "target.csv")
    study.audit(config, manifest, found)
    return found, manifest[manifest["split"] == "test"].assign(split=adapt.SPLIT)


def _same_task(data: study.Data, task: study.Task) -> study.Data:
    """Other data under a run's task.

    Raises:
      InputError: they lack a finding, or have images of another shape.
    """
    missing = set(task.names) - set(schema.tasks_of(data.table))
    if missing:
        raise InputError(f"--config: its data know nothing of {', '.join(missing)}")
    if data.task.shape != task.shape:
        raise InputError(
            f"--config: its images are {data.task.shape}, the run's {task.shape}: "
            "set data.side to the run's"
        )
    return data._replace(task=task)


def _write(folder: Path, split: str, data: study.Data, found) -> None:
    path = folder / "predictions" / f"{split}.csv"
    workdir.write_predictions(path, data.task.names, data.table["image"], found)
