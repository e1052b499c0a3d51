"""The floor that `explore` prints: what logistic regression reads off small pixels."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import base
from medjax.tasks import survey

IMAGES, EACH, NAMES = 240, 3, ("mass", "nodule")


def example(image, label):
    """Data as `survey.floor` reads them, with a test split of every fourth patient."""
    patient = np.arange(IMAGES) // EACH
    table = pd.DataFrame({"id": np.arange(IMAGES), "patient": patient})
    data = SimpleNamespace(
        table=table,
        output=SimpleNamespace(names=NAMES, exclusive=False),
        label=lambda ids: label[ids],
        films=lambda ids: SimpleNamespace(picture=lambda n: image[ids[n]]),
    )
    split = np.where(patient % 4 == 3, "test", "train")
    config = base.classification("table")
    config.evaluation.replicates = 20
    return survey.floor(config, data, table.assign(split=split))


def test_the_floor_is_that_of_scikit_learn_and_sees_no_test_image():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 190, (IMAGES, 32, 32, 1)).astype(np.uint8)
    label = rng.integers(0, 2, (IMAGES, 2)).astype(float)
    image[..., 8:16, 8:16, 0] += (12 * label[:, 0]).astype(np.uint8)[:, None, None]
    image[..., 20:28, 8:16, 0] += (4 * label[:, 1]).astype(np.uint8)[:, None, None]
    test = np.arange(IMAGES) // EACH % 4 == 3
    image[test], label[test] = 255 * label[test, :1, None, None].astype(np.uint8), 0
    label[:10, 1] = np.nan
    floor = example(image, label)
    rest = ~test
    fold = rng.permutation(IMAGES // EACH)[np.arange(IMAGES) // EACH] % 5
    expected = []
    for t in range(2):
        known, areas = rest & ~np.isnan(label[:, t]), []
        for held in range(5):
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=1e-3, max_iter=2000)
            )
            x, trains = image.reshape(IMAGES, -1), known & (fold != held)
            model.fit(x[trains], label[trains, t])
            judged = known & (fold == held)
            scores = model.decision_function(x[judged])
            areas.append(roc_auc_score(label[judged, t], scores))
        expected.append(np.mean(areas))
    got = [floor[name]["estimate"] for name in NAMES]
    np.testing.assert_allclose(got, expected, atol=0.06)  # Of other folds.
    assert expected[0] > 0.7 and abs(floor["mean"]["estimate"] - np.mean(got)) < 1e-6
    assert floor["mass"]["low"] < got[0] < floor["mass"]["high"]


def test_who_a_patient_is_helps_nothing():
    rng = np.random.default_rng(1)
    people = rng.integers(0, 255, (IMAGES // EACH, 32, 32, 1))
    image = np.repeat(people, EACH, axis=0).astype(np.uint8)  # All images of one alike.
    label = np.repeat(rng.integers(0, 2, (IMAGES // EACH, 2)), EACH, axis=0)
    floor = example(image, label.astype(float))
    assert 0.3 < floor["mean"]["estimate"] < 0.7
