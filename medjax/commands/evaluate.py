"""A finished run's numbers: on a split of its own data, or on other films."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from medjax import config as plain
from medjax.cohort import split as splits
from medjax.config import Config
from medjax.data import prepared
from medjax.errors import InputError
from medjax.evaluation import bands, results, subgroups, thresholds
from medjax.evaluation import thresholds as operating
from medjax.evaluation.predict import Predictions
from medjax.reports import images, report
from medjax.tasks import (
    adapt,
    calibrating,
    corrupting,
    explaining,
    finished,
    fitting,
    parts,
    segmenting,
    start,
    study,
)
from medjax.training import devices, journal
from medjax.training import folder as provenance
from medjax.training import folder as workdir
from medjax.training.fixed import Frozen


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
    network = parts.network(config, task)
    number, state = start.restore(config, folder, network, task)
    predict = functools.partial(fitting.predictions, config, network, state)
    validates = functools.cache(lambda: predict(data.side(manifest, "validation")))
    chosen, validation = calibrating.settle(
        *(config, folder, number, data, manifest), validation=validates
    )
    if validation is not None:
        ranked = _raw(chosen, task, validates())
        _write(folder, "validation", data, validation, ranked)
    about = {"split": split, "checkpoint": number, **plain.about(config)}
    about["external"] = other is not None or split == adapt.SPLIT
    about["cohort"] = splits.account(
        data.table, manifest, task.names, study.same_images(data)
    )
    about["source"] = _source(config, split, other)
    if other is not None:
        data, manifest = _strangers(config, data, manifest, other, split)
        about["split_by"] = "other"
    elif split == adapt.SPLIT:
        data, manifest = _target(config, folder, data)
    raw = predict(data.side(manifest, split))
    if not devices.first():  # All predict; one reports.
        return {}
    found = calibrating.calibrated(chosen.calibration, raw)
    ranked = _raw(chosen, task, raw)
    _write(folder, split, data, found, ranked)
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
    by = found if ranked is None else raw  # Which the curves are of, too.
    summary["bands"] = bands.bands(by, **common)
    summary["explorer"] = thresholds.explorer(found, tasks=task.names, threshold=points)
    groups = subgroups.by_metadata(data.table.set_index("id").loc[found.id])
    summary["subgroups"] = subgroups.summarise(
        found, groups, threshold=points, ranked=ranked, **common
    )
    summary |= _before(folder, split, _stamps(chosen, about["source"]))
    films, each = {}, config.evaluation.get("gallery", 0)
    if each and devices.alone():
        run = finished.Run(config, task, network, state, chosen)
        films = explaining.gallery(run, data, found, each=each)
    elif each:
        print("note: no gallery: all processes would have to draw; evaluate with one")
    name = "report" if split == "test" else f"report-{split}"
    written = report.write(
        *(summary, journal.read(folder / "metrics.jsonl"), folder, name),
        config=plain.as_json(config),
        environment=json.loads((folder / "environment.json").read_text()),
        films=films,
    )
    report.show(summary)
    print(f"report: {written}")
    return summary


def localise(folder: Path, *, split: str, other: Config | None, **how: str) -> dict:
    """Reports where a run's heatmaps lie in the films whose findings have boxes.

    The split's page, if there is one, is renewed.

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
    stamp = _stamps(run.frozen, _source(run.config, split, other))["localisation"]
    found = {"split": split, **stamp, **explaining.localise(run, data, ids, **how)}
    written = images.write_heatmaps(found, _file(folder, "localisation", split))
    print(f"localisation: {written}")
    if _file(folder, "report", split).exists():
        evaluate(folder, split=split, other=other)
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
    stamp = _stamps(run.frozen, _source(run.config, split, other))["robustness"]
    found = {"split": split, **stamp, **corrupting.corrupt(run, data, ids, films)}
    written = corrupting.write(found, _file(folder, "robustness", split))
    corrupting.show(found)
    print(f"robustness: {written}")
    if _file(folder, "report", split).exists():
        evaluate(folder, split=split, other=other)
    return found


def _file(folder: Path, kind: str, split: str) -> Path:
    """Where the JSON of that kind stands for a split."""
    return folder / f"{kind if split == 'test' else f'{kind}-{split}'}.json"


def _raw(chosen: Frozen, task: study.Task, said: Predictions) -> np.ndarray | None:
    """[N, T], by which findings are ranked; None: by what is told, see results.py."""
    mended = chosen.calibration.fit is not None and not task.exclusive
    return said.probability if mended else None


def _source(config: Config, split: str, other: Config | None) -> str:
    """Which data a split's images are of."""
    if other is not None:
        return other.data.source
    return (config.adapt if split == adapt.SPLIT else config).data.source


def _stamps(chosen: Frozen, source: str) -> dict[str, dict]:
    """{kind: what its numbers depend on}: of others, they aren't this run's any more."""
    seen = {"checkpoint": chosen.checkpoint, "source": source}
    told = {"rule": chosen.rule, "value": chosen.value}
    told["calibration"] = chosen.calibration.method
    return {"robustness": seen | told, "localisation": seen}


def _before(folder: Path, split: str, stamps: dict[str, dict]) -> dict[str, dict]:
    """{kind: what `corrupt` or `localise` wrote under these stamps}."""
    found = {}
    for kind, stamp in stamps.items():
        path = _file(folder, kind, split)
        written = json.loads(path.read_text()) if path.exists() else {}
        if stamp.items() <= written.items():
            found[kind] = written
        elif written:
            print(f"note: {path} is of other choices or data: left out of the page")
    return found


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
    missing = set(task.names) - set(prepared.tasks_of(data.table))
    if missing:
        raise InputError(f"--config: its data know nothing of {', '.join(missing)}")
    if data.task.shape != task.shape:
        raise InputError(
            f"--config: its images are {data.task.shape}, the run's {task.shape}: "
            "set data.side to the run's"
        )
    return data._replace(task=task)


def _write(folder: Path, split: str, data: study.Data, found, ranked) -> None:
    path = folder / "predictions" / f"{split}.csv"
    if devices.first():
        image = data.table["image"]
        workdir.write_predictions(path, data.task.names, image, found, ranked)
