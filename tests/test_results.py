import jax
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as oracle

from medjax.evaluation import bootstrap, discrimination, results
from medjax.evaluation.inference import Predictions
from medjax.tasks import explain

RNG = np.random.default_rng(0)


def predictions(n=120, tasks=3):
    label = (RNG.random((n, tasks)) < 0.3).astype(np.float32)
    score = (0.3 * label + 0.7 * RNG.random((n, tasks))).astype(np.float32)
    weight = (RNG.random((n, tasks)) < 0.9).astype(np.float32)
    weight[:, 0] = 1  # No image is left out: all cohorts have one shape.
    patient = np.repeat(np.arange(n // 2), 2)
    return Predictions(np.arange(n), patient, score, label, weight)


def summary(found, threshold, exclusive=False):
    return results.summarise(
        found,
        tasks=tuple("abc"[: found.label.shape[1]]),
        exclusive=exclusive,
        threshold=threshold,
        key=jax.random.key(0),
        replicates=100,
    )


def known(found, t):
    use = found.weight[:, t] > 0
    return found.label[use, t], found.probability[use, t]


def test_every_number_is_scikit_learns():
    found = predictions()
    threshold = np.array([0.4, 0.5, 0.6], np.float32)
    got = summary(found, threshold)
    assert (got["films"], got["patients"]) == (120, 60)
    aurocs = []
    for t, task in enumerate("abc"):
        label, score = known(found, t)
        one = got["tasks"][task]
        tn, fp, fn, tp = oracle.confusion_matrix(label, score >= threshold[t]).ravel()
        assert one["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
        assert one["positives"] == label.sum()
        assert one["negatives"] == (1 - label).sum()
        assert one["unknown"] == 120 - len(label)
        expected = {
            "auroc": oracle.roc_auc_score(label, score),
            "average_precision": oracle.average_precision_score(label, score),
            "partial_auroc": oracle.roc_auc_score(label, score, max_fpr=0.1),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "accuracy": (tp + tn) / len(label),
            "prevalence": label.mean(),
        }
        for name, value in expected.items():
            interval = one["metrics"][name]
            np.testing.assert_allclose(interval["estimate"], value, atol=1e-6)
            assert interval["low"] < value < interval["high"]
        area = oracle.auc(one["roc"]["fpr"], one["roc"]["tpr"])
        np.testing.assert_allclose(area, expected["auroc"], atol=1e-4)
        aurocs.append(expected["auroc"])
    np.testing.assert_allclose(
        got["mean"]["auroc"]["estimate"], np.mean(aurocs), atol=1e-6
    )


def test_the_means_of_all_labels_are_scikit_learns():
    found = predictions()._replace(weight=np.ones((120, 3), np.float32))
    threshold = np.array([0.4, 0.5, 0.6], np.float32)
    got = summary(found, threshold)
    for kind, average in (("mean", "macro"), ("weighted", None), ("micro", None)):
        average = average or kind
        expected = {
            "auroc": oracle.roc_auc_score(
                found.label, found.probability, average=average
            ),
            "average_precision": oracle.average_precision_score(
                found.label, found.probability, average=average
            ),
            "f1": oracle.f1_score(
                found.label, found.probability >= threshold, average=average
            ),
        }
        for name, value in expected.items():
            interval = got[kind][name]
            np.testing.assert_allclose(interval["estimate"], value, atol=1e-6)
            assert interval["low"] < value < interval["high"]
    assert got["mean"].keys() == got["weighted"].keys()
    ratios = {"lr_positive", "lr_negative"}  # Have no mean that says something.
    assert got["mean"].keys() == got["micro"].keys() - ratios


def test_the_curves_are_thin_and_whole():
    found = predictions(n=600)
    got = summary(found, np.full(3, 0.5, np.float32))
    for t, task in enumerate("abc"):
        label, score = known(found, t)
        roc, pr = (got["tasks"][task][name] for name in ("roc", "precision_recall"))
        area = oracle.roc_auc_score(label, score)
        np.testing.assert_allclose(oracle.auc(roc["fpr"], roc["tpr"]), area, atol=1e-4)
        assert len(roc["fpr"]) < 0.9 * len(label)
        steps = np.diff(pr["recall"], prepend=0) @ pr["precision"]
        area = oracle.average_precision_score(label, score)
        assert abs(steps - area) < 0.01
        assert len(pr["recall"]) == len(pr["precision"]) == len(roc["fpr"]) - 1


def test_every_empty_cell_says_why():
    found = predictions()
    found.label[:, 1] = 0
    found.weight[:, 2] = 0
    found.label[found.weight == 0] = np.nan
    got = summary(found, np.array([2.0, np.nan, 0.5], np.float32))
    cells = {task: one["metrics"] for task, one in got["tasks"].items()}
    for metrics in (*cells.values(), got["mean"], got["weighted"], got["micro"]):
        for name, cell in metrics.items():
            assert (cell["estimate"] is None) <= (cell["low"] is None), name
            assert cell["why"] if cell["low"] is None else True, name
    assert cells["a"]["ppv"]["why"] == "none called positive"
    assert cells["a"]["lr_positive"]["why"] == "no false positive"
    assert cells["a"]["npv"]["why"] == cells["a"]["auroc"]["why"] == ""
    assert cells["b"]["auroc"]["why"] == "no positive image"
    assert cells["b"]["ppv"]["why"] == "no threshold"
    for name in ("auroc", "ppv", "npv", "accuracy", "lr_positive"):
        assert cells["c"][name]["why"] == "no known label", name
    assert got["tasks"]["c"]["note"] == "no known label"


def test_a_missing_class_is_said_and_left_out_of_the_mean():
    found = predictions()
    found.label[:, 1] = 0
    got = summary(found, np.array([0.5, np.nan, np.nan], np.float32))
    one, other = got["tasks"]["b"], got["tasks"]["c"]
    assert one["note"] == "no positive image"
    assert one["metrics"]["auroc"]["estimate"] is None
    assert "no threshold" in other["note"]
    assert other["metrics"]["sensitivity"]["estimate"] is None
    assert other["metrics"]["auroc"]["estimate"] is not None
    aurocs = [got["tasks"][t]["metrics"]["auroc"]["estimate"] for t in "ac"]
    mean = got["mean"]["auroc"]["estimate"]
    np.testing.assert_allclose(mean, np.mean(aurocs), atol=1e-6)
    np.testing.assert_allclose(results.mean_areas(found)["auroc"], mean, atol=1e-6)


def test_few_positives_are_said():
    found = predictions()
    found.weight[:, 1] = 1
    found.label[:, 1] = 0
    found.label[5, 1] = 1
    got = summary(found, np.full(3, 0.5, np.float32))
    assert "too few" in got["tasks"]["b"]["note"]


def test_without_any_positive_the_validation_score_is_nan():
    found = predictions()
    found.label[:] = 0
    assert np.isnan(results.mean_areas(found)["auroc"])


def test_classes_are_judged_together_too():
    found = predictions()
    true = RNG.integers(0, 3, 120)
    found = found._replace(label=np.eye(3, dtype=np.float32)[true])
    known = np.arange(120) % 9 > 0
    found = found._replace(weight=np.repeat(known[:, None], 3, 1).astype(np.float32))
    whole = summary(found, np.full(3, 0.5), exclusive=True)
    assert "prevalence" not in whole["mean"] | whole["micro"]  # It is 1 / 3.
    got = whole["classes"]
    true, said = true[known], found.probability[known].argmax(1)
    assert got["matrix"] == oracle.confusion_matrix(true, said).tolist()
    accuracy = got["rates"]["accuracy"]
    np.testing.assert_allclose(accuracy["estimate"], (true == said).mean(), rtol=1e-6)
    assert accuracy["low"] < accuracy["estimate"] < accuracy["high"]
    assert "classes" not in summary(predictions(), np.full(3, 0.5))


def test_calibration_is_reported_before_and_after():
    found = predictions()
    found.weight[:, 2] = 0
    plain = summary(found, np.full(3, 0.5))
    assert plain["calibration"]["mean"]["after"] is None
    mended = results.summarise(
        found,
        tasks=tuple("abc"),
        exclusive=False,
        threshold=np.array([0.5, np.nan, 0.5]),
        key=jax.random.key(0),
        replicates=100,
        uncalibrated=found.probability**2,
        prevalence=np.full(3, 0.01),
    )
    # What is said now is what was said before in the other report.
    now, then = (r["tasks"]["a"]["calibration"] for r in (mended, plain))
    assert now["after"] == then["before"] and now["prevalence"] == then["prevalence"]
    label, score = known(found, 0)
    expected = oracle.brier_score_loss(label, score**2)
    got = now["before"]["brier"]
    np.testing.assert_allclose(got["estimate"], expected, atol=1e-6)
    assert got["low"] < expected < got["high"]
    at = mended["tasks"]["a"]["at_prevalence"]
    rates = mended["tasks"]["a"]["metrics"]
    hit = 0.01 * rates["sensitivity"]["estimate"]
    alarm = 0.99 * (1 - rates["specificity"]["estimate"])
    np.testing.assert_allclose(at["ppv"]["estimate"], hit / (hit + alarm), rtol=1e-5)
    for task, why in (("b", "no threshold"), ("c", "no known label")):
        cell = mended["tasks"][task]["at_prevalence"]["npv"]
        assert (cell["estimate"], cell["why"]) == (None, why)
    assert "at_prevalence" not in plain["tasks"]["a"]
    assert not [
        n for kind in results.AVERAGES for n in mended[kind] if n.endswith("_at")
    ]


def found_by(label, score, patient=None):
    """Predictions of one task that every image knows."""
    label, score = (np.float32(x).reshape(-1, 1) for x in (label, score))
    patient = np.arange(len(label)) if patient is None else patient
    return Predictions(
        np.arange(len(label)), patient, score, label, np.ones_like(label)
    )


def cells_of(found, **options):
    got = results.summarise(
        found,
        tasks=("a",),
        exclusive=False,
        threshold=np.full(1, 0.5),
        key=jax.random.key(0),
        replicates=100,
        **options,
    )
    return got["tasks"]["a"]["metrics"], got


def test_fewer_than_ten_patients_have_no_interval():
    label = np.repeat([1, 0], [18, 60])  # Of two films each: nine and thirty patients.
    score = np.where(np.arange(78) % 5 == 0, 1 - label, label) * 0.5 + 0.25
    metrics, got = cells_of(found_by(label, score, np.arange(78) // 2))
    few = {
        name for name, cell in metrics.items() if cell["why"] == bootstrap.NO_INTERVAL
    }
    areas = {"auroc", "partial_auroc", "average_precision"}
    assert few == areas | {"sensitivity", "lr_positive", "lr_negative"}
    for name in few:
        assert metrics[name]["low"] is metrics[name]["high"] is None
        assert metrics[name]["estimate"] is not None
    for name in ("specificity", "ppv", "npv", "accuracy"):
        cell = metrics[name]
        assert cell["low"] < cell["estimate"] < cell["high"] and cell["why"] == ""
    assert got["mean"]["auroc"]["why"] == bootstrap.NO_INTERVAL
    known = got["tasks"]["a"]["calibration"]["before"]["brier"]
    assert known["low"] < known["estimate"] < known["high"]


def test_a_rate_of_one_has_the_exact_interval_and_an_area_of_one_a_width():
    label = np.repeat([1, 0], [40, 50])
    patient = np.append(np.arange(40) // 2, 100 + np.arange(50))
    metrics, got = cells_of(found_by(label, 0.25 + 0.5 * label, patient))
    for name, right, of in (
        ("sensitivity", 20, 20),  # Patients, not films.
        ("specificity", 50, 50),
        ("ppv", 20, 20),
        ("accuracy", 70, 70),
    ):
        low, high = binomtest(right, of).proportion_ci(0.95, "exact")
        cell = metrics[name]
        assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=1e-9)
        # The ends are computed twice, and may differ in the last bit.
        ends = {end: pytest.approx(cell[end], rel=1e-12) for end in ("low", "high")}
        assert got["micro"][name] == cell | ends
    for name in ("auroc", "average_precision", "partial_auroc"):
        cell = metrics[name]
        z2 = 1.959964**2
        # Wilson's, of twice or once the 20 patients of the rarer class.
        n = 20 if name == "average_precision" else 40
        expected = pytest.approx((1, n / (n + z2), 1))
        assert (cell["estimate"], cell["low"], cell["high"]) == expected
        assert cell["why"] == ""
    cell = metrics["f1"]
    assert cell["low"] is None and "every replicate" in cell["why"]
    cell = metrics["lr_negative"]
    assert cell["estimate"] == cell["low"] == 0 < cell["high"] < 0.3
    metrics, _ = cells_of(found_by(label, 0.2 + 0.1 * label, patient))
    low, high = binomtest(0, 20).proportion_ci(0.95, "exact")
    cell = metrics["sensitivity"]
    assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=1e-9)


def test_a_mean_says_how_many_of_its_tasks_have_few_patients():
    found = predictions()
    found.weight[:, 1] = 1
    found.label[:, 1] = 0
    found.label[5::20, 1] = 1
    got = summary(found, np.full(3, 0.5, np.float32))
    assert got["tasks"]["b"]["metrics"]["auroc"]["why"] == bootstrap.NO_INTERVAL
    assert got["mean"]["auroc"]["low"] is not None
    assert got["mean"]["auroc"]["why"] == "1 of 3 have few patients"
    assert got["mean"]["accuracy"]["why"] == got["micro"]["auroc"]["why"] == ""


def test_undefined_replicates_are_said_of_every_metric():
    label = np.repeat([1, 0], [30, 30])
    score = np.where(label, np.arange(60) % 2, np.arange(60) == 59) * 0.5 + 0.25
    metrics, _ = cells_of(found_by(label, score))
    cell = metrics["lr_positive"]  # A third of the replicates lacks the one alarm.
    assert 20 < cell["undefined"] < 55
    assert cell["why"] == f"undefined in {cell['undefined']:.0f} of 100 replicates"
    assert metrics["specificity"]["why"] == ""


def test_areas_and_curves_are_of_what_the_model_said_and_rates_of_what_is_told():
    rng = np.random.default_rng(3)
    label = (rng.random(60) < 0.4).astype(np.float32)
    raw = np.float32(0.4 * label + 0.6 * rng.random(60))
    tied = np.float32(np.floor(raw * 4) / 4)  # As isotonic regression ties.
    found = found_by(label, tied)
    metrics, got = cells_of(found._replace(log_odds=raw[:, None]))
    expected, _ = cells_of(found_by(label, raw))
    assert oracle.roc_auc_score(label, tied) < oracle.roc_auc_score(label, raw) - 0.01
    for name, area in (
        ("auroc", oracle.roc_auc_score(label, raw)),
        ("average_precision", oracle.average_precision_score(label, raw)),
        ("partial_auroc", oracle.roc_auc_score(label, raw, max_fpr=0.1)),
    ):
        assert metrics[name] == expected[name]
        assert metrics[name]["estimate"] == pytest.approx(area, abs=1e-6)
    roc = got["tasks"]["a"]["roc"]
    area = oracle.auc(roc["fpr"], roc["tpr"])
    assert area == pytest.approx(oracle.roc_auc_score(label, raw), abs=1e-4)
    recall = oracle.recall_score(label, tied >= 0.5)
    assert metrics["sensitivity"]["estimate"] == pytest.approx(recall, abs=1e-6)
    pooled = got["micro"]["auroc"]["estimate"]  # One task: a probability's meaning.
    assert pooled == pytest.approx(oracle.roc_auc_score(label, tied), abs=1e-6)


def test_operating_points_are_thresholds_of_validation_and_rates_of_these_images():
    found = predictions()
    found.label[:, 2] = 0
    points = {"sensitivity 0.9": [0.3, 0.35, 0.4], "specificity 0.95": [0.7, 0.6, 0.5]}
    got = results.summarise(
        found,
        tasks=tuple("abc"),
        exclusive=False,
        threshold=np.full(3, 0.5),
        operating={name: np.array(each) for name, each in points.items()},
        key=jax.random.key(0),
        replicates=100,
    )
    for t, task in enumerate("abc"):
        label, score = known(found, t)
        for name, each in points.items():
            at = got["tasks"][task]["operating"][name]
            assert at["threshold"] == pytest.approx(each[t])
            rate = np.mean(score[label == 0] < each[t])
            assert at["specificity"]["estimate"] == pytest.approx(rate, abs=1e-6)
            assert at["specificity"]["low"] < rate <= at["specificity"]["high"]
            if task == "c":
                assert at["sensitivity"]["why"] == "no positive image"
                continue
            rate = oracle.recall_score(label, score >= each[t])
            assert at["sensitivity"]["estimate"] == pytest.approx(rate, abs=1e-6)


@pytest.mark.slow
def test_a_sensitivity_of_30_positives_is_covered_as_often_as_it_says():
    trials, truth = 400, 0.95
    rng = np.random.default_rng(0)
    label = np.repeat(np.float32([[1], [0]]), [30, 12], axis=0).repeat(trials, axis=1)
    score = np.float32(rng.random(label.shape) < truth)
    data = score, label, np.ones_like(label), np.arange(42), np.full(trials, 0.5)
    found = discrimination.intervals(*data, key=jax.random.key(1), replicates=300)
    found = found["sensitivity"]
    assert np.mean((found.low <= truth) & (truth <= found.high)) >= 0.93
    assert (found.low < found.high).all()


def films(n=60):
    rng = np.random.default_rng(0)
    score = rng.random((n, 3)).astype(np.float32).round(2)
    label = (rng.random((n, 3)) < 0.4).astype(np.float32)
    weight = (rng.random((n, 3)) < 0.9).astype(np.float32)
    return Predictions(rng.permutation(n), np.arange(n), score, label, weight)


@pytest.mark.parametrize("each", [0, 1, 2, 3, 100])
def test_the_surest_and_least_sure_of_each_kind_are_taken(each):
    found = films()
    chosen = explain.choose(found, [0.5, 0.1, np.nan], each=each)
    assert {one.task for one in chosen} <= {0, 1}
    for t, point in ((0, 0.5), (1, 0.1)):
        for kind in explain.OUTCOMES:
            right, positive = kind.startswith("true"), kind.endswith("positive")
            rows = [
                (-abs(float(found.probability[n, t]) - point), found.id[n], n)
                for n in range(60)
                if found.weight[n, t]
                and (found.probability[n, t] >= np.float32(point)) == positive
                and (found.label[n, t] == positive) == right
            ]
            ranked = [n for *_, n in sorted(rows)]
            own = [one for one in chosen if (one.task, one.kind) == (t, kind)]
            assert len({one.row for one in own}) == len(own) == min(each, len(rows))
            most = [one.row for one in own if one.certain == "most"]
            least = [one.row for one in own if one.certain == "least"]
            assert most == ranked[: -(-each // 2)]
            assert least == ranked[::-1][: len(least)]
            assert len(least) == min(each // 2, len(rows) - len(most))


def test_a_mean_of_rates_counts_the_doubt_about_a_rate_of_one():
    """The first task misses nothing on 20 patients, the second half."""
    label = np.zeros((60, 2), np.float32)
    label[:20] = 1
    score = 0.25 + 0.5 * label
    score[:10, 1] = 0.25
    found = Predictions(
        *(np.arange(60), np.arange(60), score, label, np.ones_like(label))
    )
    got = summary(found, np.full(2, 0.5, np.float32))
    first, second = (
        got["tasks"][task]["metrics"]["sensitivity"] for task in ("a", "b")
    )
    mean = got["mean"]["sensitivity"]
    below = [one["estimate"] - one["low"] for one in (first, second)]
    # Apart: a rate that doesn't vary has no correlation.
    expected = np.sqrt(np.sum(np.square(below))) / 2
    assert mean["estimate"] - mean["low"] == pytest.approx(expected, abs=1e-6)
    assert first["estimate"] == 1 and below[0] > 0.1


@pytest.mark.parametrize(("rare", "enough"), [(9, False), (10, True)])
def test_a_mean_over_classes_needs_ten_patients_of_the_rarest(rare, enough):
    found = predictions()
    true = np.where(found.patient < rare, 2, found.patient % 2)
    label, weight = np.eye(3, dtype=np.float32)[true], np.ones((120, 3), np.float32)
    found = found._replace(label=label, weight=weight)
    rates = summary(found, np.full(3, 0.5), exclusive=True)["classes"]["rates"]
    for name in ("balanced_accuracy", "macro_f1"):
        assert (rates[name]["low"] is not None) == enough
        assert (rates[name]["why"] == bootstrap.NO_INTERVAL) != enough
    assert rates["accuracy"]["low"] is not None is not rates["kappa"]["low"]
