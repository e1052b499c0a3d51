"""The commands: the parts that build/ makes, put to work."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from medjax import config as plain
from medjax.cohort import split
from medjax.commands import evaluate
from medjax.commands import gallery as augment_gallery
from medjax.config import Config
from medjax.data import images as reading
from medjax.data import prepared, volumes
from medjax.errors import InputError
from medjax.evaluation import predict as inference
from medjax.tasks import (
    adapt,
    augment_audit,
    augmentation,
    calibrating,
    explaining,
    finished,
    fitting,
    parts,
    screening,
    segmenting,
    start,
    study,
    survey,
)
from medjax.training import devices
from medjax.training import folder as provenance
from medjax.training import folder as workdir


def prepare(config: Config) -> study.Data | volumes.Prepared:
    """Makes the records of `config.data`, and says what became of the files.

    Raises:
      InputError: the raw files aren't there, or too many can't be read.
    """
    if config.task == segmenting.TASK:
        return segmenting.prepare(config)
    data = study.data(config)
    left_out = prepared.left_out(data.path)
    print(f"prepared: {data.path} ({len(data.table)} images, {left_out} quarantined)")
    return data


def explore(config: Config, folder: Path) -> Path:
    """Writes explore.html and explore.json of `config.data`, and returns the page."""
    if config.task == segmenting.TASK:
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
        provenance.sides(folder),
        run.predict,
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


def train(config: Config, folder: Path) -> bool:
    """Trains, or goes on training, and reports the test split.

    Args:
      config: of the run.
      folder: the run's; holds everything that comes out.

    Returns:
      Whether the run is complete: not after SIGTERM, say, with everything saved.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    if config.task == segmenting.TASK:
        # The cores share a classifier's update as well on one device, and XLA compiles
        # it faster: DenseNet-121's in 16 instead of 24 s.
        devices.use_cores(config.train.batch // config.patch.each)
    check_hosts(config)
    if config.task == segmenting.TASK:
        return segmenting.train(config, folder)
    fit = begin(config, folder)
    complete = config.transfer.mode == "features" or fitting.by_steps(fit)
    if complete:
        finish(fit)
    return complete


def begin(config: Config, folder: Path) -> fitting.Fit:
    """Makes all that comes before the first step.

    Raises:
      InputError: a mistake in the config or the data.
    """
    calibrating.check(config)
    with devices.in_turn():
        data = prepare(config)
        plain.prevalence(config, len(data.task.names))
        config, weights = start.settle(config, data.task)
        manifest = study.manifest(config, data)
        target = adapt.target(config, data)
        if devices.first():
            _write_down(config, folder, data, manifest, target, weights)
    sides = ", ".join(f"{n} {s}" for s, n in manifest["split"].value_counts().items())
    print(f"images: {sides}")
    ids = manifest["id"][manifest["split"] == "train"].to_numpy()
    label = data.label(ids)
    plan = study.plan(config, label)
    if plan is not None:
        print(plan.describe(data.task.names, label))
        ids = ids[plan.index]
    network = parts.network(config, data.task)
    state = parts.initial_state(
        config,
        network,
        data.task,
        label,
        variables=start.variables(parts.fresh(config, network), weights, data.task),
    )
    print(f"model: {fitting.counts(state.params, network.frozen)}")
    validation = manifest["id"][manifest["split"] == "validation"].to_numpy()
    return fitting.Fit(config, folder, network, state, data, ids, validation, target)


def check_hosts(config: Config) -> None:
    """Refuses what several processes would all write, or fit one beside the other."""
    alone = ""
    if config.task == segmenting.TASK:
        alone = f"task={config.task!r}"
    elif config.transfer.mode == "features":
        alone = f"transfer.mode={config.transfer.mode!r}"
    elif study.treats(config, study.SYNTHETIC):
        alone = f"imbalance={config.imbalance!r}"
    elif config.adapt.name != "none":
        alone = f"adapt.name={config.adapt.name!r}"
    if alone and not devices.alone():
        raise InputError(f"{alone}: isn't for several processes: start one")


def _write_down(
    config: Config,
    folder: Path,
    data: study.Data,
    manifest: pd.DataFrame,
    target: adapt.Target | None,
    weights: start.Start | None,
) -> None:
    """Writes what the run is, or finds the same run there."""
    workdir.claim(folder, plain.as_json(config))
    for caveat in augmentation.caveats(config):
        print(f"note: {caveat}")
    if config.explore and not (folder / "explore.html").exists():
        print(f"explored: {survey.survey(config, data, folder)}")
    provenance.hold(
        *(folder, data.path, manifest),
        target=None if target is None else (target.data.path, target.manifest),
        weights=None if weights is None else weights.variables,
    )
    split.write(manifest, folder / "splits.csv")
    workdir.write_task(folder, data.task)
    trains = manifest["id"][manifest["split"] == "train"].to_numpy()
    screening.record(folder, data, trains)
    if target is not None:
        split.write(target.manifest, folder / "target.csv")
        print(f"target: {len(target.ids)} images without their labels")


def finish(fit: fitting.Fit) -> None:
    """Does what follows the last step, and reports the test split."""
    config = fit.config
    if config.transfer.mode == "features":
        fitting.classifier(fit, fit.state)
    elif study.treats(config, study.SYNTHETIC):
        where = fit.folder / "checkpoints"
        number, state = parts.restore(config, where, fit.network, fit.data.task)
        fitting.classifier(fit, state, number)
    if config.adapt.name == "adabn":
        fitting.restate(fit)
    evaluate.evaluate(fit.folder)
    if fit.target is not None:
        evaluate.evaluate(fit.folder, split=adapt.SPLIT)


def predict(
    folder: Path,
    *,
    images: list[str],
    out: Path,
    explain: Path | None = None,
    **how: str,
) -> list[str]:
    """Writes a run's probabilities, calibrated as its report's are, for new images.

    Args:
      folder: of a finished run.
      images: files or folders.
      out: CSV: image, then a column a task, in the run's order; where an image has
        one of several classes, the likeliest comes before them, as `class`. Last,
        `warning`: how an image is unlike the training films, see domain.py.
      explain: folder of pictures of what speaks for each finding that is seen.
      how: method and stage of the heatmaps, see explaining.explainer.

    Returns:
      One line for each file that could not be read; they have no row.

    Raises:
      InputError: no finished run there, or no image.
    """
    if plain.read_config(folder).task == segmenting.TASK:
        if explain is not None:
            raise InputError("--explain: this run makes masks, which need no heatmap")
        if out.suffix == ".csv":
            raise InputError(f"{folder}: the run makes masks: give --out=DIR, a folder")
        return segmenting.predict(folder, images=images, out=out)
    run = finished.read(folder)
    if len(run.task.shape) > 3:
        raise InputError(f"{folder}: the run reads volumes; predict reads 2-D images")
    explainer = explaining.explainer(run, **how)  # Before hours of predictions.
    paths = [path for image in images for path in reading.image_paths(image)]
    screen = screening.screen(folder)
    answers = inference.predict_files(
        paths,
        run.predict,
        shape=run.task.shape,
        look=screen.look,
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
    table["warning"] = [screen.warnings.get(path, "") for path in table["image"]]
    table.to_csv(out, index=False)
    print(f"predictions: {out} ({len(rows)} images, {len(unread)} unreadable files)")
    print(screen.verdict())
    if explain is not None:
        number = explaining.draw(run, explainer, table, explain)
        print(f"heatmaps: {explain} ({number} pictures)")
    return unread
