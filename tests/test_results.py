import jax
import numpy as np
from sklearn import metrics as oracle

from medjax.evaluation import results
from medjax.evaluation.inference import Predictions

RNG = np.random.default_rng(0)


def predictions(n=120, tasks=3):
    label = (RNG.random((n, tasks)) < 0.3).astype(np.float32)
    score = (0.3 * label + 0.7 * RNG.random((n, tasks))).astype(np.float32)
    weight = (RNG.random((n, tasks)) < 0.9).astype(np.float32)
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
    np.testing.assert_allclose(results.means(found)["auroc"], mean, atol=1e-6)


def test_few_positives_are_said():
    found = predictions()
    found.weight[:, 1] = 1
    found.label[:, 1] = 0
    found.label[5, 1] = 1
    got = summary(found, np.full(3, 0.5, np.float32))
    assert "too few" in got["tasks"]["b"]["note"]


def test_thresholds_maximise_youdens_index():
    found = predictions()
    chosen = results.thresholds(found)
    for t in range(3):
        label, score = known(found, t)

        def index(threshold, label=label, score=score):
            called = score >= threshold
            return called[label == 1].mean() - called[label == 0].mean()

        best = max(index(s) for s in score)
        np.testing.assert_allclose(index(chosen[t]), best, atol=1e-6)


def test_without_any_positive_the_validation_score_is_nan():
    found = predictions()
    found.label[:] = 0
    assert np.isnan(results.means(found)["auroc"])


def test_classes_are_judged_together_too():
    found = predictions()
    true = RNG.integers(0, 3, 120)
    found = found._replace(label=np.eye(3, dtype=np.float32)[true])
    known = np.arange(120) % 9 > 0
    found = found._replace(weight=np.repeat(known[:, None], 3, 1).astype(np.float32))
    got = summary(found, np.full(3, 0.5), exclusive=True)["classes"]
    true, said = true[known], found.probability[known].argmax(1)
    assert got["matrix"] == oracle.confusion_matrix(true, said).tolist()
    accuracy = got["rates"]["accuracy"]
    np.testing.assert_allclose(accuracy["estimate"], (true == said).mean(), rtol=1e-6)
    assert accuracy["low"] < accuracy["estimate"] < accuracy["high"]
    assert "classes" not in summary(found, np.full(3, 0.5))
