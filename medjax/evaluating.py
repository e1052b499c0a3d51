"""A finished run's numbers: on a split of its own data, or on other films."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from medjax import calibrating, corrupting, explaining, fitting, segmenting
from medjax.build import adapt, finished, model, plain, start, study
from medjax.build.plain import Config
from medjax.cohort import account, splits
from medjax.data import schema
from medjax.errors import InputError
from medjax.evaluation import bands, operating, results, subgroups, thresholds
from medjax.reports import heatmaps, page
from medjax.training import hosts, journal, provenance, workdir


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
      another split than test `report-<split>.*`) and `predictions/<split>.csv`. Of
      several processes the first alone has and writes them; the others get {}.

    Raises:
      InputError: no run there, or no such split.
    """
    config = plain.read_config(folder)
    if config.task == segmenting.TASK:
        return segmenting.evaluate(folder, split=split, other=other)
    _check_split(config, split, other)
    data = study.data(config)
    manifest = provenance.sides(folder)
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
    about["cohort"] = account.account(
        data.table, manifest, task.names, study.same_images(data)
    )
    if other is not None:
        data, manifest = _strangers(config, data, manifest, other, split)
        about |= {"source": plain.about(other)["source"], "split_by": "other"}
    elif split == adapt.SPLIT:
        data, manifest = _target(config, folder, data)
        about["source"] = config.adapt.data.source
    raw = predict(data.side(manifest, split))
    if not hosts.first():  # All predict; one reports.
        return {}
    found = calibrating.calibrated(chosen.calibration, raw)
    _write(folder, split, data, found)
    points = [chosen.thresholds[name] for name in task.names]
    summary = about | results.summarise(
        found,
        tasks=task.names,
        exclusive=task.exclusive,
        threshold=points,
        chosen=operating.describe(**plain.operating(config)),
        uncalibrated=raw.probability if chosen.calibration.fit else None,
        prevalence=plain.prevalence(config, len(task.names)),
        **plain.bootstrap(config),
    )
    calibrating.tell(summary, chosen.calibration)
    common = {"tasks": task.names, **plain.bootstrap(config)}
    summary["bands"] = bands.bands(found, **common)
    summary["explorer"] = thresholds.explorer(found, tasks=task.names, threshold=points)
    groups = subgroups.by_metadata(data.table.set_index("id").loc[found.id])
    summary["subgroups"] = subgroups.summarise(
        found, groups, threshold=points, **common
    )
    tried = corrupting.read(_file(folder, "robustness", split), checkpoint=number)
    if tried is not None:
        summary["robustness"] = tried
    films, each = {}, config.evaluation.get("gallery", 0)
    if each and other is None and hosts.alone():  # All would have to draw.
        run = finished.Run(config, task, network, state, chosen)
        films = explaining.gallery(run, data, found, each=each)
    name = "report" if split == "test" else f"report-{split}"
    written = page.write(
        *(summary, journal.read(folder / "metrics.jsonl"), folder, name),
        config=plain.as_json(config),
        environment=json.loads((folder / "environment.json").read_text()),
        films=films,
    )
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
    data, ids = _films(run, folder, split, other)
    found = {"split": split, **explaining.localise(run, data, ids, **how)}
    written = heatmaps.write(found, _file(folder, "localisation", split))
    print(f"localisation: {written}")
    return found


def corrupt(
    folder: Path, *, split: str, other: Config | None = None, films: int = 0
) -> dict:
    """Reports what a run says of corrupted films; renews the split's page, if any.

    Args:
      folder: of a finished run.
      split, other: as in `localise`.
      films: so many of them at most; 0: all.

    Returns:
      See corrupting.corrupt; also written as `robustness.json` and `.csv` (for another
      split than test `robustness-<split>.*`).

    Raises:
      InputError: no finished run there, or no film.
    """
    run = finished.read(folder)
    data, ids = _films(run, folder, split, other)
    found = {"split": split, **corrupting.corrupt(run, data, ids, films)}
    written = corrupting.write(found, _file(folder, "robustness", split))
    corrupting.show(found)
    print(f"robustness: {written}")
    if _file(folder, "report", split).exists():
        evaluate(folder, split=split, other=other)
    return found


def _file(folder: Path, kind: str, split: str) -> Path:
    """Where the JSON of that kind stands for a split."""
    return folder / f"{kind if split == 'test' else f'{kind}-{split}'}.json"


def _films(
    run: finished.Run, folder: Path, split: str, other: Config | None
) -> tuple[study.Data, np.ndarray]:
    """Data and the ids of a split of a run's own, or of all films of other data."""
    _check_split(run.config, split, other)
    if other is not None:
        data = _same_task(study.data(other), run.task)
        return data, data.table["id"].to_numpy()
    data, manifest = study.data(run.config), provenance.sides(folder)
    study.audit(run.config, manifest, data)
    if split == adapt.SPLIT:
        data, manifest = _target(run.config, folder, data)
    return data, manifest["id"][manifest["split"] == split].to_numpy()


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
    manifest = provenance.sides(folder, "target.csv")
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
    if hosts.first():
        workdir.write_predictions(path, data.task.names, data.table["image"], found)
