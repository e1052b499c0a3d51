"""Operating points and calibration: chosen before the test split is seen, and frozen.

Both are fitted to what the run says of its validation split; 'prior' alone comes from
the training labels, without a prediction. Whoever asks later reads what was frozen.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from medjax import config as plain
from medjax.cohort import balance
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import calibration as recalibration
from medjax.evaluation import reliability, thresholds
from medjax.evaluation.predict import Predictions
from medjax.tasks import finished, parts, study
from medjax.training import devices, fixed
from medjax.training.fixed import Calibration, Frozen

METHODS = ("none", "platt", "temperature", "isotonic", "prior")
SHIFTED = ("weighted_bce", "softmax_cross_entropy")  # Class weights shift their odds.
NO_OFFSETS = "no image in validation: one temperature for all classes instead"


def check(config: Config) -> None:
    """Refuses what could not be fitted, before the training.

    Raises:
      InputError: an unknown rule or method, or a method that isn't for such a run.
    """
    thresholds.check(**plain.operating(config))
    method = plain.calibration(config)
    field = f"evaluation.calibration={method!r}"
    if method not in METHODS:
        raise InputError(f"{field}: use one of {', '.join(METHODS)}")
    if method == "isotonic" and config.task == "multiclass":
        raise InputError(
            f"{field}: rises for each finding on its own, and classes sum to 1: use "
            "'platt' or 'temperature'"
        )
    if method == "prior" and config.loss.name not in SHIFTED:
        raise InputError(
            f"{field}: undoes the class weights of a cross-entropy, and loss.name="
            f"{config.loss.name!r} bends probabilities in other ways: use 'platt'"
        )


def settle(
    config: Config,
    folder: Path,
    number: int,
    data: study.Data,
    manifest: pd.DataFrame,
    validation: Callable[[], Predictions],
) -> tuple[Frozen, Predictions | None]:
    """A run's frozen choices; they are made where there are none, or others.

    Args:
      config: of the run.
      folder: of the run.
      number: of the checkpoint that is judged.
      data, manifest: of the run.
      validation: () -> what the model says of the validation split.

    Returns:
      The choices, and the calibrated validation predictions if they were made now.

    Raises:
      InputError: these are predictions of another split.
    """
    found = fixed.read(folder)
    stale = found and finished.stale(config, found, number)
    if found and not stale:
        return found, None
    if stale:
        print(f"note: {stale}: chosen again on validation")
    predicted = validation()
    validates = manifest["id"][manifest["split"] == "validation"]
    if not np.isin(predicted.id, validates).all():
        raise InputError(
            "calibration: images that aren't of the validation split; what is chosen on "
            "images that it is judged on flatters the run"
        )
    chosen = fit(config, data, manifest, predicted)
    predicted = calibrated(chosen, predicted)
    rule = plain.operating(config)
    points = thresholds.choose(predicted, split="validation", **rule).tolist()
    points = dict(zip(data.task.names, points, strict=True))
    found = Frozen(number, points, **rule, calibration=chosen)
    if devices.first():
        fixed.write(folder, found)
    return found, predicted


def calibrated(how: Calibration, found: Predictions) -> Predictions:
    """Predictions as the run says them."""
    probability = recalibration.calibrate(how.fit, found.probability)
    return found._replace(probability=probability.astype(np.float32))


def tell(summary: dict, how: Calibration) -> None:
    """Adds to results.summarise's what was mended, by what, and what wasn't and why."""
    about = {k: v for k, v in how._asdict().items() if k != "fit"}
    summary["calibration"] = about | summary["calibration"]
    for task, one in summary["tasks"].items():
        one["calibration"]["why"] = how.why.get(task, "")


def fit(
    config: Config, data: study.Data, manifest: pd.DataFrame, validation: Predictions
) -> Calibration:
    """What `config.evaluation.calibration` asks for.

    Args:
      config, data, manifest: of the run.
      validation: what the model says of the validation split.
    """
    method = plain.calibration(config)
    if method == "none":
        return fixed.NONE
    if method == "prior":
        trains = manifest["split"] == "train"
        label = data.label(manifest["id"][trains].to_numpy())
        return Calibration(method, *_prior(config, data.task, label))
    arrays = validation.probability, validation.label, validation.weight
    why = {}
    if data.task.exclusive:
        offsets = method == "platt"
        positives = (arrays[1] * arrays[2]).sum(axis=0, where=arrays[2] > 0)
        found = recalibration.fit_softmax(*arrays, offsets=offsets and positives.all())
        if offsets:
            missing = np.array(data.task.names)[positives == 0]
            why = dict.fromkeys(missing.tolist(), NO_OFFSETS)
    else:
        found = getattr(recalibration, f"fit_{method}")(*arrays)
    for t, task in enumerate(data.task.names):
        if not why.get(task) and not recalibration.moves(found, t):
            why[task] = _reason(arrays[1][:, t], arrays[2][:, t])
    return Calibration(method, found, "validation", len(validation.id), why)


def _prior(
    config: Config, task: study.Task, label: np.ndarray
) -> tuple[recalibration.Fit, str, int, dict[str, str]]:
    """Undoes what `config.imbalance` made of the prevalence in training.

    Args:
      label: [N, T] of the training images, NaN where unknown.
    """
    positives, negatives = balance.frequencies(label)
    plan = study.plan(config, label)
    shown = balance.frequencies(label if plan is None else label[plan.index])
    weights = parts.loss_arguments(config, task, label)
    if task.exclusive:
        negatives = positives.sum() - positives
        shown = shown[0] * weights["w"]
        trained = shown / shown.sum()
    else:
        up, down = shown[0] * weights["w_pos"], shown[1] * weights["w_neg"]
        trained = reliability.ratio(up, up + down)
    if study.treats(config, study.SYNTHETIC):  # All classes have as many points.
        trained = np.full(len(positives), 1 / len(positives) if task.exclusive else 0.5)
    true = reliability.ratio(positives, positives + negatives)
    fits = (true > 0) & (true < 1) & (trained > 0) & (trained < 1)
    shift = recalibration.prior_shift(
        *(np.where(fits, share, 0.5) for share in (trained, true)),
        exclusive=task.exclusive,
    )
    names = np.array(task.names)[~fits].tolist()
    return shift, "train", len(label), dict.fromkeys(names, "one class in training")


def _reason(label: np.ndarray, weight: np.ndarray) -> str:
    """Why a task keeps its probabilities; vectors [N] of the validation split."""
    known = label[weight > 0]
    if not known.size:
        return "no known label in validation"
    if not known.any():
        return "no positive image in validation"
    if known.all():
        return "no negative image in validation"
    return "no fit on validation is finite and rises"
