"""Findings or classes of images: the functions behind the commands, see task.Task."""

import jax
import numpy as np
import pandas as pd

from medjax.config import Config
from medjax.data import records
from medjax.errors import InputError
from medjax.evaluation import (
    conformal,
    decisions,
    ensemble,
    results,
    subgroups,
    thresholds,
)
from medjax.evaluation.inference import Predictions
from medjax.files import write_table
from medjax.tasks import (
    adapt,
    answers,
    comparison,
    explain,
    exported,
    films,
    fixed,
    imbalance,
    new_images,
    parts,
    refit,
    splitting,
    survey,
)
from medjax.tasks.check import check_parts, check_ranges
from medjax.tasks.task import Finished, Run, Task
from medjax.training import devices

SMALL_SIDE = 128  # Pixels of a side up to which cores don't share an operation well.


def check(config: Config, shards: int) -> None:
    """Refuses mistakes that can be seen before the images are read."""
    check_ranges(config)
    exclusive = films.is_exclusive(config)
    fixed.check_choices(config, exclusive=exclusive)
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
    if output.spacing or output.shape[0] < films.LARGE_SIDE:
        try:
            jax.eval_shape(network.init, jax.random.key(0))
        except TypeError as error:  # A patch reaches beyond the image.
            raise InputError(
                f"images of {output.shape[:-1]} are too small for model.name="
                f"{config.model.name!r}: give a larger data.side, or another model"
            ) from error
    check_parts(config, network, output, batch=shards)


def data(config: Config) -> films.FilmData:
    """The prepared images; refuses a prevalence for another number of tasks."""
    prepared = films.data(config)
    fixed.prevalence(config, len(prepared.output.names))  # Refuses a wrong number.
    return prepared


def batches(
    config: Config, data: films.FilmData, ids, target, *, on_host: bool = False
):
    """The endless training data, with the target's images where the loss adapts."""
    seen = target.images() if config.adapt.name in adapt.BY_LOSS else None
    return splitting.train_batches(config, data.films(ids), seen, on_host=on_host)


def validate(config, network, data: films.FilmData, ids, state) -> dict[str, float]:
    """Mean AUROC and average precision."""
    predicted = answers.predictions(config, network, state, data.films(ids))
    return results.mean_areas(predicted)


def refit_(run: Run) -> None:
    """Fits the classifier, or re-estimates batch statistics, as the config asks."""
    config = run.config
    if not run.has_steps:
        refit.refit_classifier(run, run.state)
    elif imbalance.treats(config, imbalance.REFITS):
        where = run.folder / "checkpoints"
        number, state = parts.restore(config, where, run.network, run.data.output)
        refit.refit_classifier(run, state, number)
    if config.adapt.name == "adabn":
        refit.restate(run)


def fix(run: Finished, data: films.FilmData, manifest: pd.DataFrame) -> Finished:
    """Chooses anew where needed, and then rewrites predictions/validation.csv."""
    members: list[Predictions] = []

    def validation() -> Predictions:
        apart = [
            answers.members_predictions(run._replace(state=networks), data, ids)
            for networks, ids in run.held_out(manifest)
        ]
        members.extend(apart[0] if len(apart) == 1 else ())
        means = map(answers.mean, apart)
        return jax.tree.map(lambda *columns: np.concatenate(columns), *means)

    chosen, raw = fixed.settle(
        *(run.config, run.folder, run.number, data, manifest), validation=validation
    )
    run = run._replace(fixed=chosen)
    if run.output.masks:
        answers.fix_masks(run, data, manifest)
    if raw is not None:
        answers.write(run, data, "validation", raw, members)
    return run


def read_fixed(run: Finished) -> Finished:
    """The run with its thresholds and calibration, which must be up to date."""
    chosen = fixed.read(run.folder)
    if chosen is None:
        raise fixed.unfinished(run.folder)
    if why := fixed.stale(run.config, chosen, run.number):
        raise InputError(f"{run.folder}: {why}: evaluate the run again first")
    return run._replace(fixed=chosen)


def other(run: Finished, data: films.FilmData) -> films.FilmData:
    """Other data under the run's names; refuses data that it can't be judged on."""
    names, table = list(run.output.names), data.table
    present = [name for name in names if name in records.tasks_of(table)]
    missing = sorted({*names} - {*present})
    if missing and not (run.output.exclusive and present):
        raise InputError(
            f"--config: its data know nothing of {', '.join(missing)}, which the run "
            f"predicts: name its {'classes' if run.output.exclusive else 'findings'} as "
            "the run does, or add a column for each, blank where unknown"
        )
    for what in ("shape", "sequences", "masks"):
        theirs, ours = (getattr(output, what) for output in (data.output, run.output))
        if theirs != ours and (theirs or what != "masks"):
            field = what
            if what == "shape" and not ours[3:]:
                field = "side" if theirs[:2] != ours[:2] else "channels"
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
    run: Finished, data: films.FilmData, manifest: pd.DataFrame, split: str
) -> tuple[dict, dict]:
    """Predicts a split, writes its predictions, and measures them."""
    config, output = run.config, run.output
    ids = splitting.ids_in(manifest, split)
    if np.isnan(data.label(ids)).all():
        raise InputError(f"--split={split}: no image of it has a known label")
    members = answers.members_predictions(run, data, ids)
    single = answers.without_copies(run, data, ids)
    if not devices.first():  # All predict; one reports.
        return {}, {}
    raw = answers.mean(members)
    calibrated = answers.write(run, data, split, raw, members)
    known = (raw.weight > 0).any(axis=1)
    if not known.all():
        print(f"note: {(~known).sum()} of {len(known)} images have no label: left out")
        calibrated, raw, members, single = jax.tree.map(
            lambda x: x[known], (calibrated, raw, members, single)
        )
    summary = _measured(run, raw, calibrated)
    options = parts.bootstrap(config)
    if len(members) > 1:
        summary["ensemble"] = ensemble.gain(raw, members, **options)
    if single is not None:
        summary["copies"] = ensemble.gain(raw, [single], **options)
    groups = subgroups.by_metadata(data.table.set_index("id").loc[calibrated.id])
    summary["subgroups"] = subgroups.summarise(
        calibrated, groups, threshold=run.thresholds, tasks=output.names, **options
    )
    if output.masks:
        summary["masks"] = answers.measure_masks(run, data, ids)
        rows = pd.DataFrame(summary["masks"].get("rows", []))
        write_table(run.folder / "predictions" / f"{split}_masks.csv", rows)
    pictures, each = {}, config.evaluation.gallery
    if each and devices.alone():
        pictures = explain.gallery(run, data, calibrated, each=each)
    elif each:
        print("note: no gallery: all processes would have to draw; evaluate with one")
    return summary, pictures


def _measured(run: Finished, raw: Predictions, calibrated: Predictions) -> dict:
    """The results of predictions of images with labels, before and after calibration."""
    config, output, chosen = run.config, run.output, run.fixed
    points, names, exclusive = run.thresholds, output.names, output.exclusive
    common = {"tasks": names, **parts.bootstrap(config)}
    summary = results.summarise(
        calibrated,
        exclusive=exclusive,
        threshold=points,
        chosen=thresholds.describe(**fixed.operating(config)),
        uncalibrated=raw.probability if chosen.calibration.fit else None,
        prevalence=fixed.prevalence(config, len(names)),
        operating={
            name: np.array([each[task] for task in names], np.float32)
            for name, each in (chosen.points or {}).items()
        },
        ordered=config.evaluation.get("ordered", False),
        **common,
    )
    fixed.describe(summary, chosen)
    if chosen.limits is not None:
        summary["conformal"] = conformal.summarise(
            calibrated, chosen.limits, tasks=names, exclusive=exclusive
        )
    summary["decisions"] = decisions.curves(calibrated, **common)
    summary["bands"] = thresholds.bands(calibrated, **common)
    summary["explorer"] = thresholds.explorer(calibrated, tasks=names, threshold=points)
    return summary


def share(config: Config) -> int:
    """The rows that a CPU's cores share, a device each; 0: all cores are one device.

    A step of small images takes half as long on two devices of one core each. One of
    larger images is as fast on one device, and XLA compiles that one faster.
    """
    small = config.data.get("side", SMALL_SIDE + 1) <= SMALL_SIDE
    return config.train.batch // config.train.accumulate if small else 0


TASK = Task(
    unit="images",
    output=films.FindingsOutput,
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
    record=new_images.record_novelty,
    refit=refit_,
    fix=fix,
    fixed=read_fixed,
    other=other,
    measure=measure,
    predict=new_images.predict,
    program=exported.of_images,
    comparison=comparison.FINDINGS,
    refused={},
)
