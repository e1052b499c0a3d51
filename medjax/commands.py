"""The commands: the parts that build/ makes, put to work."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from medjax import (
    augment_audit,
    augment_gallery,
    explaining,
    fitting,
    segmenting,
    survey,
)
from medjax.build import adapt, finished, model, plain, start, study
from medjax.build.plain import Config
from medjax.cohort import splits
from medjax.data import reading, schema, volumes
from medjax.errors import InputError
from medjax.evaluation import inference, operating, results
from medjax.reports import heatmaps, page
from medjax.training import journal, workdir

SEGMENTATION = "segmentation"  # The task whose commands are in segmenting.py.


def prepare(config: Config) -> study.Data | volumes.Prepared:
    """Makes the records of `config.data`, and says what became of the files.

    Raises:
      InputError: the raw files aren't there, or too many can't be read.
    """
    if config.task == SEGMENTATION:
        return segmenting.prepare(config)
    data = study.data(config)
    left_out = len(pd.read_csv(data.path / "quarantine.csv"))
    print(f"prepared: {data.path} ({len(data.table)} images, {left_out} quarantined)")
    return data


def explore(config: Config, folder: Path) -> Path:
    """Writes explore.html and explore.json of `config.data`, and returns the page."""
    if config.task == SEGMENTATION:
        return segmenting.explore(config, folder)
    page = survey.survey(config, prepare(config), folder)
    print(f"explored: {page}")
    return page


def audit_augment(folder: Path) -> Path:
    """Writes augment.html: whether a run's augmentations keep the label.

    Raises:
      InputError: no finished run there.
    """
    run = finished.read(folder)
    page = augment_audit.audit(
        run.config,
        study.data(run.config),
        splits.read(folder / "splits.csv"),
        functools.partial(run.network.predict, run.state),
        np.array([run.thresholds[name] for name in run.task.names]),
        folder,
    )
    print(f"augmentations: {page}")
    return page


def convert(source: Path, name: str, out: Path, *, channels: int) -> None:
    """Writes another framework's weights as a checkpoint that transfer.init can name.

    Args:
      source: .safetensors, .h5, .keras, .pth or .pt.
      name: of the architecture, as in model.name.
      out: a new folder.
      channels: of the images that the model is for.

    Raises:
      InputError: the file is damaged, hostile or of another network.
    """
    card = start.write_converted(source, name, out, channels=channels)
    left = f", {len(card['dropped'])} left out" if card["dropped"] else ""
    print(
        f"converted: {out} ({sum(card['rules'].values())} arrays{left}; see card.json)"
    )


def gallery(images: list[str], out: Path, **options) -> Path:
    """Writes the page of what each modality's policy does to images.

    Args:
      images: files or folders.
      out: the page.
      options: see augment_gallery.py.

    Raises:
      InputError: an unreadable image, an unknown modality, or none that fits it.
    """
    page = augment_gallery.gallery(images, out, **options)
    print(f"gallery: {page}")
    return page


def train(config: Config, folder: Path) -> None:
    """Trains, or goes on training, and reports the test split.

    Args:
      config: of the run.
      folder: the run's; holds everything that comes out.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    if config.task == SEGMENTATION:
        return segmenting.train(config, folder)
    operating.check(**plain.operating(config))
    data = prepare(config)
    config, weights = start.settle(config, data.task)
    workdir.claim(folder, plain.as_json(config))
    for caveat in model.augmentation_caveats(config):
        print(f"note: {caveat}")
    if config.explore and not (folder / "explore.html").exists():
        print(f"explored: {survey.survey(config, data, folder)}")
    manifest = study.manifest(config, data)
    splits.write(manifest, folder / "splits.csv")
    workdir.write_task(folder, data.task)
    target = adapt.target(config, data)
    if target is not None:
        splits.write(target.manifest, folder / "target.csv")
        print(f"target: {len(target.ids)} images without their labels")
    sides = ", ".join(f"{n} {s}" for s, n in manifest["split"].value_counts().items())
    print(f"images: {sides}")
    ids = manifest["id"][manifest["split"] == "train"].to_numpy()
    label = data.label(ids)
    plan = study.plan(config, label)
    if plan is not None:
        print(plan.describe(data.task.names, label))
        ids = ids[plan.index]
    network = model.network(config, data.task)
    state = model.initial_state(
        config,
        network,
        data.task,
        label,
        variables=start.variables(model.fresh(config, network), weights, data.task),
    )
    print(f"model: {fitting.counts(state.params, network.frozen)}")
    if config.transfer.mode == "features":
        where = folder / start.trained(config)
        fitting.classifier(config, where, network, state, data, ids)
    elif not fitting.by_steps(
        config,
        folder,
        network,
        state,
        data,
        ids=ids,
        validation=manifest["id"][manifest["split"] == "validation"].to_numpy(),
        target=target,
    ):
        return
    elif study.treats(config, study.SYNTHETIC):
        number, state = model.restore(
            config, folder / "checkpoints", network, data.task
        )
        where = folder / start.REFITTED
        fitting.classifier(config, where, network, state, data, ids, number)
    if config.adapt.name == "adabn":
        fitting.restate(config, folder, network, data.task, target)
    evaluate(folder)
    if target is not None:
        evaluate(folder, split=adapt.SPLIT)


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
    if config.task == SEGMENTATION:
        return segmenting.evaluate(folder, split=split, other=other)
    _check_split(config, split, other)
    data = study.data(config)
    manifest = splits.read(folder / "splits.csv")
    study.audit(config, manifest, data)
    task = data.task
    network = model.network(config, task)
    number, state = start.restore(config, folder, network, task)
    rule, frozen = plain.operating(config), workdir.read_thresholds(folder)
    if not frozen or frozen[0] != number:
        found = fitting.predictions(
            config, network, state, data.side(manifest, "validation")
        )
        _write(folder, "validation", data, found)
        chosen = operating.choose(found, split="validation", **rule).tolist()
        chosen = dict(zip(task.names, chosen, strict=True))
        frozen = number, chosen
        workdir.write_thresholds(folder, *frozen)
    if other is not None:
        trained = set(manifest["patient"][manifest["split"] == "train"])
        target = adapt.target(config, data)
        data = _same_task(study.data(other), task)
        if target is not None and target.data.path == data.path:
            print(
                f"note: {len(target.ids)} of these images were seen without labels: "
                f"--split={adapt.SPLIT} is about others"
            )
        shared = len(trained & set(data.table["patient"]))
        if shared:
            print(
                f"note: {shared} patient numbers occur in training too: other people?"
            )
        manifest = data.table.assign(split=split)
    elif split == adapt.SPLIT:
        data, _ = adapt.target(config, data)
        manifest = splits.read(folder / "target.csv")
        study.audit(config, manifest, data)
        manifest = manifest[manifest["split"] == "test"].assign(split=split)
    found = fitting.predictions(config, network, state, data.side(manifest, split))
    _write(folder, split, data, found)
    summary = results.summarise(
        found,
        tasks=task.names,
        exclusive=task.exclusive,
        threshold=[frozen[1][name] for name in task.names],
        chosen=operating.describe(**rule),
        **plain.bootstrap(config),
    )
    about = plain.about(config)
    if other is not None:
        about |= {"source": plain.about(other)["source"], "split_by": "other"}
    elif split == adapt.SPLIT:
        about["source"] = config.adapt.data.source
    summary = {"split": split, "checkpoint": number, **about, **summary}
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


def predict(
    folder: Path,
    *,
    images: list[str],
    out: Path,
    explain: Path | None = None,
    **how: str,
) -> list[str]:
    """Writes a run's probabilities for new image files.

    Args:
      folder: of a finished run.
      images: files or folders.
      out: CSV: image, then a column a task, in the run's order; where an image has
        one of several classes, the likeliest comes before them, as `class`.
      explain: folder of pictures of what speaks for each finding that is seen.
      how: method and stage of the heatmaps, see explaining.explainer.

    Returns:
      One line for each file that could not be read; they have no row.

    Raises:
      InputError: no finished run there, or no image.
    """
    if plain.read_config(folder).task == SEGMENTATION:
        if explain is not None:
            raise InputError("--explain: this run makes masks, which need no heatmap")
        if explain is not None or out.suffix == ".csv":
            raise InputError(
                f"{folder}: the run makes masks: give --out=DIR, a folder, and no "
                "--explain, which is for findings"
            )
        return segmenting.predict(folder, images=images, out=out)
    run = finished.read(folder)
    if len(run.task.shape) > 3:
        raise InputError(f"{folder}: the run reads volumes; predict reads 2-D images")
    explainer = explaining.explainer(run, **how)  # Before hours of predictions.
    paths = [path for image in images for path in reading.film_paths(image)]
    answers = inference.predict_files(
        paths,
        functools.partial(run.network.predict, run.state),
        shape=run.task.shape,
        **plain.shape(run.config),
    )
    rows, unread = [], []
    with Progress() as progress:
        for path, found in progress.track(
            answers, total=len(paths), description="predict"
        ):
            if isinstance(found, str):
                unread.append(found)
            else:
                rows.append([path, *found])
    out.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["image", *run.task.names])
    if run.task.exclusive:
        likeliest = table[list(run.task.names)].idxmax(axis=1) if rows else []
        table.insert(1, "class", likeliest)
    table.to_csv(out, index=False)
    print(f"predictions: {out} ({len(rows)} images, {len(unread)} unreadable files)")
    if explain is not None:
        number = explaining.draw(run, explainer, table, explain)
        print(f"heatmaps: {explain} ({number} pictures)")
    return unread


def _check_split(config: Config, split: str, other: Config | None) -> None:
    """Refuses a split that isn't there, and its name for other data."""
    sides = (*splits.SPLITS, *[adapt.SPLIT] * (config.adapt.name != "none"))
    if other is None and split not in sides:
        raise InputError(f"--split={split}: use one of {', '.join(sides)}")
    if other is not None and (split in sides or not split.isidentifier()):
        raise InputError(f"--split={split}: give the report on other data its own name")


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
