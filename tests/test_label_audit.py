import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medjax.evaluation import bootstrap, label_audit
from medjax.evaluation.predict import Predictions

OPTIONS = {"key": jax.random.key(0), "replicates": 200}


def predictions(seed=0, images=120):
    rng = np.random.default_rng(seed)
    label = (rng.random((images, 2)) < 0.4).astype(np.float32)
    score = (0.5 * label + 0.5 * rng.random(label.shape)).astype(np.float32)
    weight = (rng.random(label.shape) < 0.8).astype(np.float32)
    patient = np.arange(images) // 2
    return Predictions(np.arange(images), patient, score, label, weight)


def test_images_that_are_not_changed_move_nothing():
    plain = predictions()
    found = label_audit.compare(plain, plain, threshold=np.full(2, 0.5), **OPTIONS)
    assert (found["moved"] == 0).all() and (found["flipped"] == 0).all()
    assert found["mean_drop"].low == found["mean_drop"].high == 0


def test_the_numbers_are_those_of_a_loop_over_known_labels():
    plain = predictions()
    noise = np.random.default_rng(1).normal(0, 0.3, plain.probability.shape)
    changed = plain._replace(probability=(plain.probability + noise).astype(np.float32))
    threshold = np.array([0.5, np.nan])
    found = label_audit.compare(plain, changed, threshold=threshold, **OPTIONS)
    for t in range(2):
        known = plain.weight[:, t] > 0
        before, after = (p.probability[known, t] for p in (plain, changed))
        label = plain.label[known, t]
        assert found["moved"][t] == pytest.approx(np.abs(after - before).mean())
        drop = roc_auc_score(label, before) - roc_auc_score(label, after)
        assert found["drop"].estimate[t] == pytest.approx(drop, abs=1e-6)
        assert found["drop"].low[t] < drop < found["drop"].high[t]
        if t == 0:
            flipped = np.mean((before >= 0.5) != (after >= 0.5))
            assert found["flipped"][t] == pytest.approx(flipped)
    assert np.isnan(found["flipped"][1])  # No threshold, no call.


def test_the_intervals_hold_for_all_findings_together():
    """Wider than one finding's alone, as Bonferroni has it for 19 and their mean."""
    rng = np.random.default_rng(0)
    label = (rng.random((400, 19)) < 0.4).astype(np.float32)
    plain = Predictions(
        np.arange(400), np.arange(400), label, label, np.ones_like(label)
    )
    scores = 0.3 * label + rng.random((2, *label.shape), np.float32)
    plain, changed = (plain._replace(probability=score) for score in scores)
    options = {"key": jax.random.key(0), "replicates": 2000}
    found = label_audit.compare(plain, changed, threshold=np.zeros(19), **options)
    alone = bootstrap.difference(*scores, label, plain.weight, plain.patient, **options)
    wide = found["drop"].high - found["drop"].low
    narrow = alone["auroc"].high - alone["auroc"].low
    # Of a normal: the quantiles of 0.05 / 20 and of 0.05, two-sided.
    np.testing.assert_allclose(np.mean(wide / narrow), 3.02 / 1.96, rtol=0.1)


def test_an_op_that_erases_the_finding_is_told_from_a_harmless_one():
    plain = predictions()
    rng = np.random.default_rng(2)
    erased = plain._replace(probability=rng.random((120, 2), np.float32))
    harmless = plain._replace(probability=plain.probability**2)
    found = [
        label_audit.compare(plain, other, threshold=np.full(2, 0.5), **OPTIONS)
        for other in (erased, harmless)
    ]
    assert found[0]["mean_drop"].low > 0.2
    assert found[1]["mean_drop"].low == found[1]["mean_drop"].high == 0
    assert (found[1]["moved"] > 0).all()
