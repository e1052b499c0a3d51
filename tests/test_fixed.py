"""What is chosen on validation and fixed: simulated models have the truth."""

import importlib
import json
import math
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, log_softmax, softmax

from medjax.cohort import balance
from medjax.errors import InputError
from medjax.evaluation import recalibration, reliability, thresholds
from medjax.evaluation.inference import Predictions
from medjax.tasks import films, fixed, imbalance

TASKS = ("mass", "nodule", "effusion")


@pytest.fixture
def config():
    return importlib.import_module("configs.quickstart").get_config()


def study_of(label, exclusive=False):
    """Images with these labels [N, T], the first three quarters for training."""
    ids = np.arange(len(label))
    table = pd.DataFrame(label, columns=TASKS).assign(id=ids)
    task = films.FindingsOutput(TASKS, exclusive, (8, 8, 1))
    manifest = pd.DataFrame({"id": ids, "split": "train"})
    manifest.loc[len(ids) * 3 // 4 :, "split"] = "validation"
    return films.FilmData(Path("nowhere"), table, task), manifest


def predicted(probability, label):
    n = np.arange(len(label))
    weight = (~np.isnan(label)).astype(np.float32)
    label = np.nan_to_num(label).astype(np.float32)
    return Predictions(n, n // 2, probability.astype(np.float32), label, weight)


def findings(images=400, seed=0):
    """Log-odds and labels of three findings, of a calibrated model."""
    z = np.random.default_rng(seed).normal((-3, -1, 0), 1.5, (images, 3))
    return z, (np.random.default_rng(seed + 1).random(z.shape) < expit(z)).astype(float)


def settle(config, folder, validation, label, number=7):
    data, manifest = study_of(label)
    manifest["split"] = "validation"
    chosen, raw = fixed.settle(config, folder, number, data, manifest, validation)
    if raw is None:
        return chosen, None
    return chosen, raw._replace(probability=calibrated(chosen.calibration, raw))


def calibrated(calibration, said):
    chosen = fixed.Fixed(7, {}, "youden", None, calibration)
    return chosen.calibrated(said.probability)


def refuse():
    raise AssertionError("the model was asked again")


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_what_is_fitted_on_validation_is_fixed_and_read_back(config, tmp_path, method):
    config.evaluation.update(calibration=method, rule="sensitivity", value=0.8)
    z, label = findings()
    said = predicted(expit(2 * z + 1), label)
    chosen, now = settle(config, tmp_path, lambda: said, label)
    fit = getattr(recalibration, f"fit_{method}")(*said[2:5])
    expected = recalibration.calibrate(fit, said.probability).astype(np.float32)
    np.testing.assert_array_equal(now.probability, expected)
    assert (chosen.rule, chosen.value, chosen.checkpoint) == ("sensitivity", 0.8, 7)
    assert chosen.calibration.fitted_on == "validation"
    few = ["mass"] if method == "isotonic" else []  # 36 positives: Platt scaling.
    assert chosen.calibration.films == 400 and list(chosen.calibration.why) == few
    again, now = settle(config, tmp_path, refuse, label)
    assert now is None and again.thresholds == chosen.thresholds
    assert (again.points, again.positives) == (chosen.points, chosen.positives)
    assert list(again.positives.values()) == label.sum(axis=0).tolist()
    for (rule, value), points in zip(
        thresholds.OPERATING_POINTS, again.points.values()
    ):
        options = {"rule": rule, "value": value}
        reached = thresholds.choose(said._replace(probability=expected), **options)
        assert list(points.values()) == reached.tolist()
    found = again.calibrated(said.probability)
    np.testing.assert_array_equal(found, expected)


def test_nothing_is_chosen_on_an_image_that_is_not_of_validation(config, tmp_path):
    z, label = findings(images=40)
    data, manifest = study_of(label)  # One of them is a test image.
    manifest["split"] = ["validation"] * 39 + ["test"]
    said = predicted(expit(z), label)
    with pytest.raises(InputError, match="aren't of the validation split"):
        fixed.settle(config, tmp_path, 7, data, manifest, lambda: said)
    assert fixed.read(tmp_path) is None


def test_rising_maps_call_the_same_images_positive(config, tmp_path):
    z, label = findings()
    said = predicted(expit(2 * z + 1), label)
    calls = {}
    for method in ("none", "platt", "temperature"):
        config.evaluation.calibration = method
        folder = tmp_path / method
        folder.mkdir()
        chosen, now = settle(config, folder, lambda: said, label)
        calls[method] = now.probability >= np.float32([*chosen.thresholds.values()])
    np.testing.assert_array_equal(calls["platt"], calls["none"])
    np.testing.assert_array_equal(calls["temperature"], calls["none"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "specificity"}, "thresholds.json is of"),
        ({"calibration": "isotonic"}, "calibration 'platt', not"),
        ({}, "checkpoint 7, not 8"),
    ],
)
def test_another_rule_method_or_checkpoint_is_chosen_again_aloud(
    config, tmp_path, capsys, change, said
):
    z, label = findings()
    model = predicted(expit(2 * z + 1), label)
    first, _ = settle(config, tmp_path, lambda: model, label)
    config.evaluation.update(change)
    number = 7 if change else 8
    assert said in fixed.stale(config, first, number)
    second, now = settle(config, tmp_path, lambda: model, label, number)
    assert now is not None and said in capsys.readouterr().out
    assert fixed.stale(config, second, number) == ""
    assert fixed.stale(config, fixed.read(tmp_path), number) == ""


def test_a_task_that_validation_cannot_calibrate_stays_and_says_why(config, tmp_path):
    z, label = findings()
    label[:, 0], label[:, 1] = 0, np.nan
    said = predicted(expit(2 * z), label)
    for method in ("platt", "isotonic"):
        config.evaluation.calibration = method
        chosen, now = settle(config, tmp_path, lambda: said, label)
        np.testing.assert_array_equal(now.probability[:, :2], said.probability[:, :2])
        assert (now.probability[:, 2] != said.probability[:, 2]).any()
        assert chosen.calibration.why == {
            "mass": "no positive image in validation",
            "nodule": "no known label in validation",
        }
    config.evaluation.calibration = "platt"
    said = predicted(expit(-z), findings()[1])  # Falls where the finding is likelier.
    chosen, now = settle(config, tmp_path, lambda: said, label, number=9)
    np.testing.assert_array_equal(now.probability, said.probability)
    assert set(chosen.calibration.why.values()) == {
        "no fit on validation is finite and rises"
    }
    summary = {
        "calibration": {"mean": {}},
        "tasks": {task: {"calibration": {}} for task in TASKS},
    }
    fixed.describe(summary, chosen)
    assert summary["calibration"]["method"] == "platt"
    assert summary["tasks"]["mass"]["calibration"]["why"].startswith("no fit")


@pytest.mark.parametrize("treatment", ["balanced", "over_sample", "smote"])
def test_prior_brings_the_mean_probability_to_the_prevalence(config, treatment):
    config.evaluation.calibration, config.imbalance = "prior", treatment
    z, label = findings(images=30_000)
    trains = label[: len(label) * 3 // 4]
    # What such a training makes of the odds, if the model is calibrated to it.
    if treatment == "over_sample":
        config.resampling.target = 0.25
        plan = imbalance.resampled(config, trains)
        shown = trains[plan.index].mean(axis=0)
        odds = shown / (1 - shown) * (1 / trains.mean(axis=0) - 1)
        assert odds.max() > 2
    elif treatment == "smote":
        odds = 1 / trains.mean(axis=0) - 1
    else:
        weights = balance.class_weights(trains, scheme=treatment)
        odds = weights.w_pos / weights.w_neg
    said = predicted(expit(z + np.log(odds)), label)
    assert said.probability[:, 0].mean() > 1.5 * label[:, 0].mean()
    found = fixed.fit(config, *study_of(label), said)
    assert (found.fitted_on, found.films, found.why) == ("train", len(trains), {})
    mended = calibrated(found, said)
    np.testing.assert_allclose(mended.mean(axis=0), label.mean(axis=0), rtol=0.03)
    np.testing.assert_allclose(mended, expit(z), atol=1e-4)
    intervals, _ = reliability.measure(
        *(mended, label, np.ones_like(label), np.arange(len(label))),
        key=jax.random.key(0),
        replicates=1,
    )
    assert (intervals["calibration_error"].estimate < 0.01).all()


def classes(images=40_000, seed=0):
    """Log-probabilities and one-hot labels of three classes."""
    rng = np.random.default_rng(seed)
    z = log_softmax(rng.normal((0, -1, -3), 1.3, (images, 3)), axis=1)
    drawn = (rng.random((images, 1)) > np.exp(z).cumsum(axis=1)).sum(axis=1)
    return z, np.eye(3)[np.minimum(drawn, 2)]


def test_prior_undoes_the_weights_of_classes_too(config):
    config.evaluation.calibration, config.imbalance = "prior", "balanced"
    config.task, config.loss.name = "multiclass", "softmax_cross_entropy"
    z, label = classes()
    w = balance.multiclass_weights(label[: len(label) * 3 // 4], scheme="balanced")
    said = predicted(softmax(z + np.log(w), axis=1), label)
    found = fixed.fit(config, *study_of(label, exclusive=True), said)
    mended = calibrated(found, said)
    np.testing.assert_allclose(mended, np.exp(z), atol=1e-4)
    np.testing.assert_allclose(mended.mean(axis=0), label.mean(axis=0), rtol=0.03)


@pytest.mark.parametrize("imbalance", ["none", "balanced"])
def test_adjusted_classes_are_as_if_they_were_equally_frequent(config, imbalance):
    config.evaluation.calibration, config.imbalance = "adjust", imbalance
    config.task, config.loss.name = "multiclass", "softmax_cross_entropy"
    z, label = classes()
    trains = label[: len(label) * 3 // 4]
    w = balance.multiclass_weights(
        trains, scheme="uniform" if imbalance == "none" else imbalance
    )
    found = predicted(softmax(z + np.log(w), axis=1), label)
    fit = fixed.fit(config, *study_of(label, exclusive=True), found)
    expected = np.exp(z) / trains.mean(axis=0)  # Menon et al., eq. 9, normalised.
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated(fit, found), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_classes_share_a_temperature_and_sum_to_one(config, method):
    config.evaluation.calibration, config.task = method, "multiclass"
    z, label = classes()
    offset = np.array([1.0, 0, 2]) * (method == "platt")
    said = predicted(softmax(1.7 * z + offset, axis=1), label)
    found = fixed.fit(config, *study_of(label, exclusive=True), said)
    np.testing.assert_allclose(found.fit.slope, 1 / 1.7, rtol=0.03)
    mended = calibrated(found, said)
    np.testing.assert_allclose(mended.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(mended, np.exp(z), atol=0.03)
    if method == "platt":
        some = label[:, 2] == 0
        some = said._replace(
            **{k: getattr(said, k)[some] for k in ("probability", "label", "weight")}
        )
        found = fixed.fit(config, *study_of(label, exclusive=True), some)
        assert found.why == {"effusion": fixed.NO_OFFSETS}
        assert set(found.fit.intercept) == {0.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"evaluation.calibration": "plat"}, "is unknown: use 'none', 'platt'"),
        (
            {"evaluation.calibration": "isotonic", "task": "multiclass"},
            "use 'platt' or 'temperature'",
        ),
        (
            {"evaluation.calibration": "prior", "loss.name": "focal"},
            r"loss\.name='focal' bends",
        ),
        ({"evaluation.calibration": "adjust"}, "equally frequent"),
        ({"evaluation.rule": "youdn"}, "evaluation.rule='youdn'"),
    ],
)
def test_what_could_not_be_fitted_is_refused_before_the_training(config, fields, said):
    fixed.check_choices(config, exclusive=False)
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=said):
        fixed.check_choices(config, exclusive=config.task == "multiclass")


# ------------------------------------------------------------------ the files

FITS = (
    recalibration.Logistic((0.7, 1.0), (-0.3, 0.0)),
    recalibration.Softmax((0.7, 0.7), (-0.3, 0.3)),
    recalibration.Isotonic(
        ((0.1, 0.5, 0.9), ()), ((0.0, 0.2, 1.0), ()), (1.0, 0.7), (0.0, -0.3)
    ),
    None,
)


@pytest.mark.parametrize("fit", FITS)
def test_what_is_fixed_comes_back(tmp_path, fit):
    assert fixed.read(tmp_path) is None
    calibration = fixed.Calibration("platt", fit, "validation", 70, {"a": "too few"})
    points = {"sensitivity 0.9": {"b": 0.1, "a": 0.2}}
    chosen = {"b": 0.25, "a": math.nan}
    behind = {"b": 8.0, "a": 0.0}
    given = fixed.Fixed(40, chosen, "cost", 3.0, calibration, behind, points)
    fixed.write(tmp_path, given)
    found = fixed.read(tmp_path)
    assert list(found.thresholds) == ["b", "a"]
    assert found.thresholds["b"] == 0.25 and math.isnan(found.thresholds["a"])
    rest = (40, {}, "cost", 3, None, behind, points, None)
    assert found._replace(thresholds={}, calibration=None) == rest
    p = [[0.2, 0.7], [0.0, 1.0]]
    assert type(found.calibration.fit) is type(fit)
    expected, got = (
        recalibration.calibrate(f, p) for f in (fit, found.calibration.fit)
    )
    assert (expected == got).all()
    assert found.calibration._replace(fit=fit) == calibration


def test_thresholds_without_their_calibration_are_refused(tmp_path):
    calibration = fixed.Calibration("platt", FITS[0], "validation", 70, {})
    given = fixed.Fixed(40, {"a": 0.5, "b": 0.5}, "youden", None, calibration)
    fixed.write(tmp_path, given)
    path = tmp_path / "calibration.json"
    other = json.loads(path.read_text()) | {"checkpoint": 41}
    path.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"calibration\.json: not the calibration"):
        fixed.read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"calibration\.json: not the calibration"):
        fixed.read(tmp_path)
