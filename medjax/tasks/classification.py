"""Findings or classes of images: the functions behind the commands, see task.Task."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from rich.progress import track
from scipy.special import expit

from medjax.cohort import grey_levels
from medjax.config import Config
from medjax.data import images as reading
from medjax.data import loader, nifti, scan
from medjax.data import prepared as store
from medjax.data.sources import volumes
from medjax.errors import InputError, some
from medjax.evaluation import compare as statistics
from medjax.evaluation import (
    conformal,
    decisions,
    novelty,
    predict,
    results,
    segmentation,
    subgroups,
    thresholds,
)
from medjax.files import read_json, write_json, write_table
from medjax.tasks import (
    adapt,
    compare,
    explain,
    exported,
    films,
    fixed,
    imbalance,
    parts,
    refit,
    splitting,
    survey,
)
from medjax.tasks.check import check as check_any
from medjax.tasks.task import Finished, Run, Task
from medjax.training import devices, step
from medjax.training import folder as workdir

DOMAIN = "domain.json"  # What a run's training images look like.
FILMS = 2000  # Enough for the 0.5th percentile.
TOLERANCE = 1.0  # mm, of the surfaces of masks beside the answer.
SMALL = 128  # Pixels of a side up to which cores don't share an operation well.


def check(config: Config, shards: int) -> None:
    """Refuses mistakes that can be seen before the images are read."""
    exclusive = films.is_exclusive(config)
    fixed.check(config, exclusive=exclusive)
    c = config.data
    if config.evaluation.ordered and not (
        exclusive and (c.tasks or "classes" not in c)
    ):
        raise InputError(
            "evaluation.ordered=True: is of classes (task='multiclass'), and a table's are "
            "sorted by name: name the grades in their order in data.tasks"
        )
    adapt.method(config)
    output = films.expected(config)
    if output.masks and (config.adapt.name != "none" or not parts.has_steps(config)):
        raise InputError(
            "data.mask: masks are drawn by training, without adapt.name and with another "
            "transfer.mode than 'features': change these, or set data.mask=''"
        )
    if config.intensity.name == "as_pretrained":  # The weights aren't read yet.
        config = config.copy_and_resolve_references().unlock()
        config.intensity = {"name": "standardise_each"}
    network = parts.classifier(config, output)
    if output.spacing:
        parts.check_grid(network, output)
    check_any(config, network, output, batch=shards)


def data(config: Config) -> films.Data:
    """The prepared images; refuses a prevalence for another number of tasks."""
    prepared = films.data(config)
    fixed.prevalence(config, len(prepared.output.names))  # Refuses a wrong number.
    return prepared


def batches(config: Config, data: films.Data, ids, target, *, on_host: bool = False):
    """The endless training data, with the target's images where the loss adapts."""
    seen = target.images() if config.adapt.name in adapt.BY_LOSS else None
    return splitting.train_batches(config, data.films(ids), seen, on_host=on_host)


def validate(config, network, data: films.Data, ids, state) -> dict[str, float]:
    """Mean AUROC and average precision."""
    return results.means(predictions(config, network, state, data.films(ids)))


def predictions(config: Config, network, state, images) -> predict.Predictions:
    """The uncalibrated predictions of images, once each; every host predicts a part."""
    mine = images.part(jax.process_index(), jax.process_count())
    predicted = predict.predict(
        splitting.evaluation_batches(config, mine),
        functools.partial(network.predict, state),
    )
    return devices.gather(predicted, len(images))


def refit_(run: Run) -> None:
    """Fits the classifier, or re-estimates batch statistics, as the config asks."""
    config = run.config
    if not run.has_steps:
        refit.classifier(run, run.state)
    elif imbalance.treats(config, imbalance.REFITS):
        where = run.folder / "checkpoints"
        number, state = parts.restore(config, where, run.network, run.data.output)
        refit.classifier(run, state, number)
    if config.adapt.name == "adabn":
        refit.restate(run)


def fix(run: Finished, data: films.Data, manifest: pd.DataFrame) -> Finished:
    """With new choices come new predictions/validation.csv."""
    members: list[predict.Predictions] = []

    def validation() -> predict.Predictions:
        apart = [
            _members(run._replace(state=networks), data, ids)
            for networks, ids in run.held_out(manifest)
        ]
        members.extend(apart[0] if len(apart) == 1 else ())
        means = map(_mean, apart)
        return jax.tree.map(lambda *columns: np.concatenate(columns), *means)

    chosen, raw = fixed.settle(
        *(run.config, run.folder, run.number, data, manifest), validation=validation
    )
    run = run._replace(fixed=chosen)
    if raw is not None:
        write_predictions(run, data, "validation", raw, members)
    return run


def read_fixed(run: Finished) -> Finished:
    """The run with its thresholds and calibration, which must be up to date."""
    chosen = fixed.read(run.folder)
    if chosen is None:
        raise fixed.unfinished(run.folder)
    if why := fixed.stale(run.config, chosen, run.number):
        raise InputError(f"{run.folder}: {why}: evaluate the run again first")
    return run._replace(fixed=chosen)


def uncalibrated(run: Finished, raw: predict.Predictions) -> np.ndarray | None:
    """[N, T], the probabilities of findings before calibration.

    None for classes, which a softmax's calibration mixes, and without a calibration.
    """
    fitted = run.fixed.calibration.fit is not None and not run.output.exclusive
    return raw.probability if fitted else None


def write_predictions(
    run: Finished,
    data: films.Data,
    split: str,
    raw: predict.Predictions,
    members: Sequence[predict.Predictions],
) -> predict.Predictions:
    """Writes predictions/<split>.csv; returns the calibrated predictions."""
    calibrated = run.fixed.apply(raw)
    if devices.first():
        workdir.write_predictions(
            run.folder / "predictions" / f"{split}.csv",
            run.output.names,
            data.table,
            calibrated,
            uncalibrated(run, raw),
            threshold=None if run.output.exclusive else run.thresholds,
            more=answers(run, calibrated.probability)
            | spread(run, [member.probability for member in members]),
        )
    return calibrated


def spread(run: Finished, members: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The columns T_spread: the standard deviation of the members' calibrated
    probabilities [N, T]; none of a single network."""
    if len(members) < 2:
        return {}
    deviation = np.std([run.fixed.calibrated(p) for p in members], axis=0)
    return {
        f"{task}_spread": deviation[:, t] for t, task in enumerate(run.output.names)
    }


def _members(run: Finished, data: films.Data, ids) -> list[predict.Predictions]:
    """The uncalibrated predictions of each network."""
    return [
        predictions(run.config, run.network, state, data.films(ids))
        for state in step.members(run.state)
    ]


def _mean(members: Sequence[predict.Predictions]) -> predict.Predictions:
    """The predictions of the members' mean probability."""
    if len(members) == 1:
        return members[0]
    z = np.asarray(step.log_odds_of_mean(np.stack([m.log_odds for m in members])))
    return members[0]._replace(probability=expit(z), log_odds=z)


def _without_copies(run: Finished, data: films.Data, ids) -> predict.Predictions | None:
    """The predictions without evaluation.copies, where there are some."""
    config = run.config.copy_and_resolve_references()
    if not config.evaluation.copies:
        return None
    config.evaluation.copies = 0
    network = parts.classifier(config, run.output)
    return predictions(config, network, run.state, data.films(ids))


def answers(run: Finished, probability: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of conformal.columns; none without an error rate."""
    if run.fixed.limits is None:
        return {}
    return conformal.columns(
        run.fixed.limits, probability, run.output.names, run.output.exclusive
    )


def other(run: Finished, data: films.Data) -> films.Data:
    """Other data under the run's names; refuses data that it can't be judged on."""
    names, table = list(run.output.names), data.table
    present = [name for name in names if name in store.tasks_of(table)]
    missing = sorted({*names} - {*present})
    if missing and not (run.output.exclusive and present):
        raise InputError(
            f"--config: its data know nothing of {', '.join(missing)}, which the run "
            f"predicts: name its {'classes' if run.output.exclusive else 'findings'} as "
            "the run does, or add a column for each, blank where unknown"
        )
    for what in ("shape", "spacing", "sequences", "masks"):
        theirs, ours = (getattr(output, what) for output in (data.output, run.output))
        if theirs != ours and (theirs or what != "masks"):
            field = "side" if what == "shape" and not ours[3:] else what
            field = "regions" if what == "masks" else field
            raise InputError(
                f"--config: the {what} of its images is {theirs}, the run's {ours}: set "
                f"data.{field} to the run's"
            )
    if run.output.exclusive and not data.output.exclusive:
        raise InputError("--config: its images have findings, the run's have classes")
    if run.output.exclusive:
        label = table[present]
        # No image shows a class that these data don't have.
        absent = label[present[0]].mask(label[present[0]].notna(), 0.0)
        table = table.assign(**dict.fromkeys(missing, absent))
        # Another class is no negative of the run's: these images have no label here.
        others = label.notna().all(axis=1) & ~np.isclose(label.sum(axis=1), 1)
        table = table[~others]
        if others.any():
            print(
                f"note: {others.sum()} of {len(others)} images are of classes that the run "
                "doesn't know: they are left out"
            )
    return data._replace(table=table, output=run.output)


def measure(
    run: Finished, data: films.Data, manifest: pd.DataFrame, split: str
) -> tuple[dict, dict]:
    """Predicts a split, writes its predictions, and measures them."""
    config, output = run.config, run.output
    ids = splitting.ids_in(manifest, split)
    if np.isnan(data.label(ids)).all():
        raise InputError(f"--split={split}: no image of it has a known label")
    members = _members(run, data, ids)
    single = _without_copies(run, data, ids)
    if not devices.first():  # All predict; one reports.
        return {}, {}
    raw = _mean(members)
    calibrated = write_predictions(run, data, split, raw, members)
    known = (raw.weight > 0).any(axis=1)
    if not known.all():
        print(f"note: {(~known).sum()} of {len(known)} images have no label: left out")
        calibrated, raw, members, single = jax.tree.map(
            lambda x: x[known], (calibrated, raw, members, single)
        )
    points, calibration = run.thresholds, run.fixed.calibration
    common = {"tasks": output.names, **parts.bootstrap(config)}
    summary = results.summarise(
        calibrated,
        exclusive=output.exclusive,
        threshold=points,
        chosen=thresholds.describe(**fixed.operating(config)),
        uncalibrated=raw.probability if calibration.fit else None,
        prevalence=fixed.prevalence(config, len(output.names)),
        operating={
            name: np.array([each[task] for task in output.names], np.float32)
            for name, each in (run.fixed.points or {}).items()
        },
        ordered=config.evaluation.get("ordered", False),
        **common,
    )
    fixed.describe(summary, run.fixed)
    if run.fixed.limits is not None:
        summary["conformal"] = conformal.summarise(
            calibrated,
            run.fixed.limits,
            tasks=output.names,
            exclusive=output.exclusive,
        )
    if len(members) > 1:
        summary["ensemble"] = statistics.gain(raw, members, **parts.bootstrap(config))
    if single is not None:
        summary["copies"] = statistics.gain(raw, [single], **parts.bootstrap(config))
    summary["decisions"] = decisions.curves(calibrated, **common)
    summary["bands"] = thresholds.bands(calibrated, **common)
    summary["explorer"] = thresholds.explorer(
        calibrated, tasks=output.names, threshold=points
    )
    groups = subgroups.by_metadata(data.table.set_index("id").loc[calibrated.id])
    summary["subgroups"] = subgroups.summarise(
        calibrated, groups, threshold=points, **common
    )
    if output.masks:
        summary["masks"] = _measured_masks(run, data, ids)
        rows = summary["masks"].get("rows", [])
        write_table(
            run.folder / "predictions" / f"{split}_masks.csv", pd.DataFrame(rows)
        )
    pictures, each = {}, config.evaluation.gallery
    if each and devices.alone():
        pictures = explain.gallery(run, data, calibrated, each=each)
    elif each:
        print("note: no gallery: all processes would have to draw; evaluate with one")
    return summary, pictures


def _measured_masks(run: Finished, data: films.Data, ids: np.ndarray) -> dict:
    """A segmentation.Summary of the volumes that have a mask; {} if none has.

    A voxel from the probability 0.5 on is inside.
    """
    names = data.table.set_index("id")[["image", "patient"]]
    batches = splitting.evaluation_batches(run.config, data.films(ids))
    draw, rows = functools.partial(run.network.masks, run.state), []
    for batch in predict.each(batches, draw, "log_odds", ("id", "mask")):
        for id, mask, z in zip(*(batch.get(k, ()) for k in ("id", "mask", "log_odds"))):
            drawn, true = (z > 0) & (mask > 0), mask == volumes.INSIDE
            name, patient = names.loc[id]
            rows += [
                {"name": name, "patient": patient, "region": region}
                | segmentation.measure(
                    *(drawn[..., k], true[..., k], run.output.spacing),
                    tolerance=TOLERANCE,
                )
                for k, region in enumerate(run.output.masks)
                if mask.any()
            ]
    if not rows:
        return {}
    measured = segmentation.summarise(rows, **parts.bootstrap(run.config))
    return measured | {"tolerance": TOLERANCE}


def record(folder: Path, data: films.Data, ids: np.ndarray) -> None:
    """Writes domain.json: what 2-D training images look like; once."""
    path = folder / DOMAIN
    if len(data.output.shape) != 3 or path.exists():
        return
    ids = np.unique(ids)
    if len(ids) > FILMS:
        ids = np.sort(np.random.default_rng(0).choice(ids, FILMS, replace=False))
    batches = loader.evaluation_batches(data.films(ids), batch=256, devices=1)
    images = (
        reading.eight_bits(image)
        for batch in batches
        for image in batch["image"][0][batch["id"][0] >= 0]
    )
    table = data.table.set_index("id").loc[ids]
    reference = novelty.reference(images, table["width"] / table["height"])
    write_json(path, reference)


def _is_ours(path: Path) -> bool:
    """Whether a CSV is of `predict_`, by its first and its last column."""
    with open(path, "rb") as file:
        columns = file.readline().strip().split(b",")
    return (columns[0], columns[-1]) == (b"image", b"warning")


def predict_(
    run: Finished,
    *,
    images: list[str],
    out: Path,
    explain_in: Path | None = None,
    **how: str | None,
) -> list[str]:
    """Writes a CSV of calibrated probabilities, a row for each image that can be read.

    Its columns are the image; of classes the likeliest, `class`; a column a task; of
    findings also T_threshold and T_call, 1 from the fixed threshold on; those of
    conformal.columns and `spread`; T_log_odds, by which images are ranked (float32 has
    ties at 1); and `warning`: how an image is unlike the training images, see
    novelty.py. `explain_in` gets pictures of the evidence for each finding that is
    seen. A run that draws masks writes them into the folder OUT_masks.
    """
    names = list(run.output.names)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out={out}: can't be written: give a new file.csv")
    if out.is_file() and out.stat().st_size and not _is_ours(out):
        raise InputError(f"--out={out}: isn't of predict: give a new file.csv")
    if len(run.output.shape) > 3 and not run.output.spacing:
        raise InputError(
            f"{run.folder}: the run was trained on the volumes of a MedMNIST file, and "
            "predict reads NIfTI files and DICOM series: train with data.source=volumes"
        )
    explainer = explain.explainer(run, **how)  # Before hours of predictions.
    drawn_in = out.with_name(f"{out.stem}_masks")
    listed = [films.find(run.config, image) for image in images]
    paths = [path for found, _ in listed for path in found]
    others = [path.name for _, left_out in listed for path in left_out]
    if run.output.masks and (twice := store.first_duplicate(map(_stem, paths))):
        raise InputError(
            f"--images: two volumes would have the masks {twice}_label.nii.gz: predict "
            "them apart"
        )
    flat = len(run.output.shape) == 3
    reference = read_json(run.folder / DOMAIN) if flat else None
    warnings: dict[Path, str] = {}

    def load(path: Path) -> np.ndarray:
        image, film = films.read(run.config, run.output, path)
        if reference is not None:
            small = reading.eight_bits(image)
            unlike = novelty.warning(film.pixels, small, reference)
            few = grey_levels.is_dim(image)
            dim = f"fewer than {grey_levels.DIM} levels of grey" * few
            warnings[path] = "; ".join(filter(None, (unlike, dim)))
        return image

    states = step.members(run.state)

    def members(image: np.ndarray) -> np.ndarray:  # -> log-odds [D, B, M, T]
        each = [jax.device_get(run.network.predict(one, image)) for one in states]
        return np.stack(each, axis=2)

    options = splitting.shape(run.config)
    predicted = predict.predict_files(paths, members, load=load, **options)
    read, rows, unread = [], [np.zeros((0, len(states), len(names)), np.float32)], []
    for path, answer in track(predicted, "predict", total=len(paths)):
        if isinstance(answer, str):
            unread.append(answer)
        else:
            read.append(path)
            rows.append(answer[None])
    log_odds = np.concatenate(rows)
    each = expit(log_odds)
    probability = run.fixed.calibrated(each.mean(axis=1))
    mean = np.asarray(step.log_odds_of_mean(log_odds.swapaxes(0, 1)))
    ranking = zip(names, run.fixed.ranking(mean).T, strict=True)
    table = pd.DataFrame(probability, columns=names)
    table.insert(0, "image", read)
    if run.output.exclusive:
        likeliest = table[names].idxmax(axis=1) if read else []
        table.insert(1, "class", likeliest)
    else:
        table = workdir.with_calls(table, names, run.thresholds)
    more = answers(run, probability) | spread(run, each.swapaxes(0, 1))
    more |= {f"{name}_log_odds": z for name, z in ranking}
    table = table.assign(**more)
    table["warning"] = [warnings.get(path, "") for path in table["image"]]
    write_table(out, table)
    print(f"predictions: {out} ({len(read)} images, {len(unread)} unreadable files)")
    if others:
        names = some(others, most=10)
        print(f"left out: {len(others)} files that are no images ({names})")
    if reference is not None:
        print(
            f"warnings: {sum(map(bool, warnings.values()))} of {len(warnings)} images "
            "look unlike the training images (see the column warning)"
        )
    if run.output.masks:
        for path in track(read, "draw masks"):
            _draw_masks(run, path, drawn_in)
        print(f"masks: {drawn_in} ({len(read)} files)")
    if explain_in is not None:
        number = explain.draw(run, explainer, table, explain_in)
        print(f"heatmaps: {explain_in} ({number} pictures)")
    return unread


def _stem(path: Path) -> str:
    """A volume's name without its suffix."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _draw_masks(run: Finished, path: Path, folder: Path) -> None:
    """Writes a volume's masks as NAME_label.nii.gz on the grid of its first sequence."""
    image, case = films.read(run.config, run.output, path)
    rows = loader.pad({"image": image[None]}, 1, jax.local_device_count())["image"]
    z = jax.device_get(run.network.masks(run.state, rows))[0, 0]
    mask = volumes.centred(z > 0, case.image.shape[:3]).astype(np.uint8)
    whole = scan.to_original(mask, case, order=0)
    label = nifti.paint(whole, films.regions_of(run.config))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_stem(path)}_label.nii.gz"
    nifti.write(file, label, case.original, case.header)


def share(config: Config) -> int:
    """The rows that a CPU's cores share, a device each; 0: all cores are one device.

    The quickstart's step took 0.29 to 0.48 s on one device of two cores, 0.29 s on one
    core, and takes 0.14 s on two devices. A step of larger images is as fast on one
    device, and XLA compiles it faster: DenseNet-121's in 16 instead of 24 s.
    """
    small = config.data.get("side", SMALL + 1) <= SMALL
    return config.train.batch // config.train.accumulate if small else 0


TASK = Task(
    unit="images",
    output=films.Output,
    check=check,
    share=share,
    data=data,
    explore=survey.survey,
    split=splitting.split,
    untested=lambda config: "",
    audit=splitting.audit,
    network=parts.classifier,
    batches=batches,
    validate=validate,
    record=record,
    refit=refit_,
    fix=fix,
    fixed=read_fixed,
    other=other,
    measure=measure,
    predict=predict_,
    program=exported.of_images,
    comparison=compare.FINDINGS,
    refused={},
)
