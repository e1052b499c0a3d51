"""What is chosen on validation and then fixed: thresholds, calibration, masks' rules.

It is chosen before the test split is seen, and every later command reads it back:
thresholds.json, calibration.json (of the probabilities that the thresholds apply to),
and of a segmentation postprocessing.json (how probabilities become masks).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax.cohort import balance
from medjax.config import Config
from medjax.errors import InputError, check_choice
from medjax.evaluation import conformal, mask_metrics, recalibration, thresholds
from medjax.evaluation.bootstrap import as_json
from medjax.evaluation.inference import Predictions
from medjax.evaluation.mask_metrics import Post
from medjax.files import read_json, write_json
from medjax.tasks import imbalance
from medjax.tasks.films import FilmData, FindingsOutput
from medjax.tasks.splitting import ids_in
from medjax.training import devices

CALIBRATIONS = ("none", "platt", "temperature", "isotonic", "prior", "adjust")
SHIFTED = ("weighted_bce", "softmax_cross_entropy")  # Class weights shift their odds.
TOO_FEW = f"fewer than {recalibration.RISING} images of a class: Platt scaling instead"
NO_OFFSETS = "no image in validation: one temperature for all classes instead"
POSTS = "postprocessing.json"


class Calibration(NamedTuple):
    """How a run's probabilities are calibrated."""

    method: str  # As config.evaluation.calibration names it.
    fit: recalibration.Fit | None  # For the run's tasks; None changes nothing.
    fitted_on: str | None  # 'validation', 'train', or None without a fit.
    films: int | None  # How many images.
    why: dict[str, str]  # {task: why it isn't calibrated}.

    def facts(self) -> dict[str, Any]:
        """All but the fit, for files and reports."""
        return {k: v for k, v in self._asdict().items() if k != "fit"}


UNCALIBRATED = Calibration("none", None, None, None, {})


class Fixed(NamedTuple):
    """What is chosen on validation, for one checkpoint of a classification."""

    checkpoint: int  # Its number of updates.
    thresholds: dict[str, float]  # {task: on its calibrated probability}; NaN for none.
    rule: str  # Of the thresholds, see evaluation/thresholds.py.
    value: float | None
    calibration: Calibration = UNCALIBRATED
    positives: dict[str, float] | None = None  # {task: positive images in validation}.
    points: dict[str, dict[str, float]] | None = None  # See thresholds.operating.
    limits: conformal.Limits | None = None  # Of config.evaluation.error_rate, if any.

    def apply(self, raw: Predictions) -> Predictions:
        """The calibrated predictions."""
        return raw._replace(
            probability=self.calibrated(raw.probability),
            log_odds=self.ranking(raw.log_odds),
        )

    def ranking(self, log_odds: np.ndarray | None) -> np.ndarray | None:
        """[N, T], by which calibrated predictions are ranked, see recalibration.ranking."""
        return recalibration.ranking(self.calibration.fit, log_odds)

    def calibrated(self, probability: np.ndarray) -> np.ndarray:
        """[..., T] -> [..., T] float32."""
        flat = probability.reshape(-1, probability.shape[-1])
        flat = recalibration.calibrate(self.calibration.fit, flat)
        return flat.reshape(probability.shape).astype(np.float32)


def operating(config: Config) -> dict[str, Any]:
    """The rule that chooses a run's thresholds, and its value."""
    rule, value = config.evaluation.rule, config.evaluation.value
    return {"rule": rule, "value": None if rule == "youden" else value}


def prevalence(config: Config, tasks: int) -> np.ndarray | None:
    """[T], where the predictive values are asked for; None: as in the data alone.

    Raises:
      InputError: not one number, or one a task, between 0 and 1.
    """
    given = config.evaluation.prevalence
    values = np.atleast_1d(np.asarray(given, float))
    if not values.size:
        return None
    if values.size not in (1, tasks) or not ((values > 0) & (values < 1)).all():
        raise InputError(
            f"evaluation.prevalence={given}: give one number between 0 and 1, or one "
            f"for each of the {tasks} tasks"
        )
    return np.broadcast_to(values, tasks)


def check_choices(config: Config, *, exclusive: bool) -> None:
    """Refuses an unknown rule or method, or a method that isn't for such a run."""
    thresholds.check_rule(**operating(config))
    method = config.evaluation.calibration
    field = f"evaluation.calibration={method!r}"
    check_choice("evaluation.calibration", method, CALIBRATIONS)
    if method == "isotonic" and exclusive:
        raise InputError(
            f"{field}: rises for each finding on its own, and classes sum to 1: use "
            "'platt' or 'temperature'"
        )
    if method == "adjust" and not exclusive:
        raise InputError(
            f"{field}: makes classes equally frequent; a finding's images are all "
            "shifted alike, and its threshold moves with them: use 'platt'"
        )
    if method in ("prior", "adjust") and config.loss.name not in SHIFTED:
        raise InputError(
            f"{field}: undoes the class weights of a cross-entropy, and loss.name="
            f"{config.loss.name!r} bends probabilities in other ways: use 'platt'"
        )
    if method in ("prior", "adjust") and config.resampling.tau:
        raise InputError(f"{field}: doesn't know what resampling.tau did: use 'platt'")


def settle(
    config: Config,
    folder: Path,
    number: int,
    data: FilmData,
    manifest: pd.DataFrame,
    validation: Callable[[], Predictions],
) -> tuple[Fixed, Predictions | None]:
    """A run's fixed choices; they are made where there are none, or outdated ones.

    Args:
      number: of the checkpoint that is judged.
      validation: () -> the uncalibrated predictions of the validation split.

    Returns:
      The choices; and `validation`'s predictions, if they were made now.

    Raises:
      InputError: these are predictions of another split.
    """
    fixed = read(folder)
    reason = fixed and stale(config, fixed, number)
    if fixed and not reason:
        return fixed, None
    if reason:
        print(f"note: {reason}: chosen again on validation")
    raw = validation()
    if not np.isin(raw.id, ids_in(manifest, "validation")).all():
        raise InputError(
            "calibration: images that aren't of the validation split; what is chosen on "
            "images that it is judged on flatters the run"
        )
    rule = operating(config)
    fixed = Fixed(number, {}, **rule, calibration=fit(config, data, manifest, raw))
    calibrated = fixed.apply(raw)

    def named(values: np.ndarray) -> dict[str, float]:
        return dict(zip(data.output.names, values.tolist(), strict=True))

    points = thresholds.operating(calibrated)
    fixed = fixed._replace(
        thresholds=named(thresholds.choose(calibrated, **rule)),
        positives=named(np.sum(raw.label * raw.weight, axis=0, where=raw.weight > 0)),
        points={point: named(values) for point, values in points.items()},
    )
    if error := config.evaluation.error_rate:
        options = {"exclusive": data.output.exclusive, "error": error}
        fixed = fixed._replace(limits=conformal.fit(calibrated, **options))
    if devices.first():
        write(folder, fixed)
    return fixed, raw


def stale(config: Config, fixed: Fixed, number: int) -> str:
    """Says why fixed choices don't fit a config and a checkpoint; '' if they do."""
    now = {"checkpoint": number, **operating(config)}
    now |= {k: config.evaluation[k] for k in ("calibration", "error_rate")}
    then = fixed._asdict() | {"calibration": fixed.calibration.method}
    then["error_rate"] = 0.0 if fixed.limits is None else fixed.limits.error[0]
    for name, value in now.items():
        if then[name] != value:
            return f"thresholds.json is of {name} {then[name]!r}, not {value!r}"
    return ""


def describe(summary: dict, fixed: Fixed) -> None:
    """Adds to results.summarise's how it was calibrated, where it wasn't and why, and on
    how many positive images of validation this and the thresholds depend."""
    summary["calibration"] = fixed.calibration.facts() | summary["calibration"]
    for task, result in summary["tasks"].items():
        result["calibration"]["why"] = fixed.calibration.why.get(task, "")
        result["validation_positives"] = (fixed.positives or {}).get(task)


def fit(
    config: Config, data: FilmData, manifest: pd.DataFrame, validation: Predictions
) -> Calibration:
    """The calibration by `config.evaluation.calibration`; `validation` is uncalibrated."""
    method = config.evaluation.calibration
    if method == "none":
        return UNCALIBRATED
    if method in ("prior", "adjust"):
        label = data.label(ids_in(manifest, "train"))
        return Calibration(method, *_prior(config, data.output, label))
    probability, label, weight = validation[2:5]
    why = {}
    if data.output.exclusive:
        positives = (label * weight).sum(axis=0, where=weight > 0)
        offsets = method == "platt" and positives.all()
        fitted = recalibration.fit_softmax(probability, label, weight, offsets=offsets)
        if method == "platt":
            missing = np.array(data.output.names)[positives == 0]
            why = dict.fromkeys(missing.tolist(), NO_OFFSETS)
    else:
        fitted = getattr(recalibration, f"fit_{method}")(probability, label, weight)
        if method == "isotonic":
            few = np.array(data.output.names)[recalibration.few(label, weight)]
            why = dict.fromkeys(few.tolist(), TOO_FEW)
    for t, task in enumerate(data.output.names):
        if not recalibration.moves(fitted, t):
            why[task] = _reason(label[:, t], weight[:, t])
    return Calibration(method, fitted, "validation", len(validation.id), why)


def _prior(
    config: Config, output: FindingsOutput, label: np.ndarray
) -> tuple[recalibration.Fit, str, int, dict[str, str]]:
    """Undoes the change of the prevalence in training by `config.imbalance`.

    Or by "adjust" makes all classes equally frequent: post hoc logit adjustment with
    tau = 1, Menon et al. (ICLR 2021), eq. 9.

    `label` [N, T] is of the training images. Returns Calibration's other fields.
    """
    positives, negatives = balance.frequencies(label)
    epoch = imbalance.resampled(config, label)
    shown = balance.frequencies(label if epoch is None else label[epoch.index])
    weights = imbalance.loss_arguments(config, output, label)
    if output.exclusive:
        negatives = positives.sum() - positives
        shown = shown[0] * weights["w"]
        trained = shown / shown.sum()
    else:
        up, down = shown[0] * weights["w_pos"], shown[1] * weights["w_neg"]
        trained = recalibration.ratio(up, up + down)
    if imbalance.treats(config, imbalance.REFITS):  # All classes have as many points.
        trained = np.full(
            len(positives), 1 / len(positives) if output.exclusive else 0.5
        )
    true = recalibration.ratio(positives, positives + negatives)
    if config.evaluation.calibration == "adjust":
        true = (trained > 0) / np.sum(trained > 0)
    fits = (true > 0) & (true < 1) & (trained > 0) & (trained < 1)
    shift = recalibration.prior_shift(
        *(np.where(fits, share, 0.5) for share in (trained, true)),
        exclusive=output.exclusive,
    )
    names = np.array(output.names)[~fits].tolist()
    return shift, "train", len(label), dict.fromkeys(names, "one class in training")


def _reason(label: np.ndarray, weight: np.ndarray) -> str:
    """Why a task isn't calibrated; vectors [N] of the validation split."""
    labels = label[weight > 0]
    if not labels.size:
        return "no known label in validation"
    if not labels.any():
        return "no positive image in validation"
    if labels.all():
        return "no negative image in validation"
    return "no fit on validation is finite and rises"


def write(folder: Path, fixed: Fixed) -> None:
    """Writes calibration.json and thresholds.json; NaN is written as null."""
    fit = fixed.calibration.fit
    numbers = {} if fit is None else fit._asdict()
    calibration = {
        "checkpoint": fixed.checkpoint,
        **fixed.calibration.facts(),
        "kind": None if fit is None else type(fit).__name__,
        "tasks": {
            task: {name: each[t] for name, each in numbers.items()}
            for t, task in enumerate(fixed.thresholds)
        },
    }
    write_json(folder / "calibration.json", calibration)

    chosen = fixed._asdict() | {"calibration": fixed.calibration.method}
    chosen["tasks"] = chosen.pop("thresholds")
    chosen["limits"] = fixed.limits and fixed.limits.as_json()
    write_json(folder / "thresholds.json", as_json(chosen))


def read(folder: Path) -> Fixed | None:
    """Reads back what `write` wrote; None before the first evaluation.

    Raises:
      InputError: the two files don't belong together.
    """
    path = folder / "thresholds.json"
    if not path.exists():
        return None
    values = read_json(path)

    def numbers(values: dict[str, float | None]) -> dict[str, float]:
        return {k: math.nan if v is None else v for k, v in values.items()}

    chosen = values["thresholds"] = numbers(values.pop("tasks"))
    values["points"] = {k: numbers(v) for k, v in (values["points"] or {}).items()}
    if limits := values.get("limits"):
        values["limits"] = conformal.Limits.read(limits)
    calibration = UNCALIBRATED
    if values["calibration"] != UNCALIBRATED.method:
        calibration = _read_calibration(folder, values, list(chosen))
    return Fixed(**values | {"calibration": calibration})


def _read_calibration(folder: Path, thresholds: dict, tasks: list) -> Calibration:
    """calibration.json of these thresholds."""
    path = folder / "calibration.json"
    values = read_json(path) if path.exists() else {}
    expected = thresholds["checkpoint"], thresholds["calibration"]
    if (values.get("checkpoint"), values.get("method")) != expected:
        raise InputError(
            f"{path}: not the calibration of the thresholds in thresholds.json: delete "
            "both, and evaluate the run again"
        )
    fit = None
    if values["kind"] is not None:
        kind = getattr(recalibration, values["kind"])
        fit = kind(*([values["tasks"][t][k] for t in tasks] for k in kind._fields))
    return Calibration(fit=fit, **{name: values[name] for name in UNCALIBRATED.facts()})


def settle_posts(
    folder: Path,
    number: int,
    regions: Sequence[str],
    cases: Callable[[], Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]]],
    threshold: float = 0.5,
) -> list[Post]:
    """A run's post-processing, a Post a region; chosen where there is none.

    `number` is of the checkpoint that is judged; `cases`: () -> the validation volumes,
    see mask_metrics.choose; without any the threshold alone makes a mask.
    """
    path = folder / POSTS
    if path.exists() and read_json(path)["checkpoint"] == number:
        return read_posts(folder, regions)
    chosen = mask_metrics.choose(cases())
    posts = chosen or [Post(threshold)] * len(regions)
    if devices.first():
        each = {name: post._asdict() for name, post in zip(regions, posts, strict=True)}
        values = {"checkpoint": number, "chosen": bool(chosen), "regions": each}
        write_json(path, values)
    return posts


def read_posts(folder: Path, regions: Iterable[str]) -> list[Post]:
    """Reads back what `settle_posts` chose; InputError: the run isn't finished."""
    path = folder / POSTS
    if not path.exists():
        raise unfinished(folder)
    each = read_json(path)["regions"]
    return [Post(**each[region]) for region in regions]


def posts_chosen(folder: Path) -> bool:
    """Whether validation volumes chose what `read_posts` gives."""
    return read_json(folder / POSTS)["chosen"]


def unfinished(folder: Path) -> InputError:
    """The error of a run that hasn't been trained to its end."""
    return InputError(f"{folder}: the run isn't finished: train it to its end first")
