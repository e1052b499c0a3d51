"""Labels that a run doesn't know, and findings whose names it can't write."""

from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest

from configs import base
from medjax.errors import InputError
from medjax.evaluation import results
from medjax.evaluation.inference import Predictions
from medjax.tasks import classification, films, splitting

SHAPE = (8, 8, 1)
NAN = [np.nan] * 3


def data_of(names, label, *, exclusive=True):
    n = np.arange(len(label))
    table = pd.DataFrame({"id": n, "image": [f"{i}.png" for i in n], "patient": n})
    table = pd.concat([table, pd.DataFrame(label, columns=names)], axis=1)
    return films.FilmData(None, table, films.FindingsOutput(names, exclusive, SHAPE))


def run_of(*names, exclusive=True):
    return SimpleNamespace(output=films.FindingsOutput(names, exclusive, SHAPE))


def test_images_of_a_class_that_the_run_does_not_know_are_left_out(capsys):
    label = [[1, 0, 0], [0, 0, 1], [0, 1, 0], NAN, [0, 0, 1]]
    data = classification.other(
        run_of("bar", "blob", "normal"), data_of(("bar", "other", "normal"), label)
    )
    assert "1 of 5 images are of classes that the run doesn't know" in (
        capsys.readouterr().out
    )
    assert data.table["id"].tolist() == [0, 1, 3, 4]
    expected = [[1, 0, 0], [0, 0, 1], NAN, [0, 0, 1]]  # No image shows a blob.
    np.testing.assert_array_equal(data.label(np.array([0, 1, 3, 4])), expected)


def test_data_without_any_of_the_classes_or_of_a_finding_are_refused():
    data = data_of(("a", "b"), [[1, 0], [0, 1]])
    with pytest.raises(InputError, match="know nothing of c, d.*name its classes"):
        classification.other(run_of("c", "d"), data)
    data = data_of(("a", "b"), [[1, 0], [0, 1]], exclusive=False)
    with pytest.raises(InputError, match="know nothing of c.*add a column"):
        classification.other(run_of("a", "c", exclusive=False), data)
    with pytest.raises(InputError, match="its images have findings"):
        classification.other(run_of("a", "b"), data)


@pytest.mark.parametrize(
    "names", [("class", "x"), ("warning",), ("a", "a_label"), ("b", "b_log_odds")]
)
def test_a_finding_whose_column_would_be_there_twice_is_refused(names):
    films.check_names(("classes", "label", "a", "b_"))
    with pytest.raises(InputError, match="would be there twice"):
        films.check_names(names)


def test_a_side_without_a_known_label_is_refused():
    data = data_of(("a", "b"), [[1, 0], [np.nan] * 2, [0, np.nan]], exclusive=False)
    manifest = data.table.assign(split=["train", "test", "validation"])
    with pytest.raises(InputError, match="no label of test is known"):
        splitting.check_labels(data, manifest)
    splitting.check_labels(data, manifest.assign(split=["train", "train", "test"]))


@pytest.mark.parametrize(
    ("exclusive", "few"), [(False, "2 have a absent"), (True, "2 have b")]
)
def test_an_error_rate_without_its_patients_is_refused_before_training(exclusive, few):
    """By 0.25 three patients are needed; patients 0 and 1 have b, and they alone no a."""
    b = np.r_[np.ones(4), np.zeros(8), np.ones(4)]
    data = data_of(("a", "b"), np.stack([1 - b, b], axis=1), exclusive=exclusive)
    split = ["validation"] * 12 + ["train"] * 4
    manifest = data.table.assign(patient=data.table["id"] // 2, split=split)
    config = base.classification()
    for error in (0.0, 1 / 3):
        config.evaluation.error_rate = error
        splitting.check_answers(config, data, manifest)
    config.evaluation.error_rate = 0.25
    with pytest.raises(InputError, match=f"needs 3 validation .* {few}:"):
        splitting.check_answers(config, data, manifest)
    splitting.check_answers(
        base.segmentation(), data, manifest
    )  # Masks have no answers.


def test_a_class_that_reads_as_two_in_plausible_is_refused():
    config, label = base.classification(), [[1, 0], [0, 1], [1, 0], [0, 1]]
    for exclusive in (False, True):
        data = data_of(("a;b", "c"), label, exclusive=exclusive)
        manifest = data.table.assign(split="validation")
        splitting.check_answers(config, data, manifest)
        config.evaluation.error_rate = 0.5
        if exclusive:
            with pytest.raises(InputError, match="by ';', and 'a;b' holds one: rename"):
                splitting.check_answers(config, data, manifest)
        else:
            splitting.check_answers(config, data, manifest)
        config.evaluation.error_rate = 0.0


def test_one_patient_has_numbers_and_no_interval():
    rng = np.random.default_rng(0)
    label = np.float32(np.arange(20) % 2)[:, None]
    score = np.float32(rng.random((20, 1)))
    one = Predictions(np.arange(20), np.full(20, 7), score, label, label * 0 + 1)
    got = results.summarise(
        one,
        tasks=("a",),
        exclusive=False,
        threshold=[0.5],
        key=jax.random.key(0),
        replicates=5,
    )
    cell = got["tasks"]["a"]["metrics"]["auroc"]
    above = (score[label == 1][:, None] > score[label == 0]).mean()
    assert cell["estimate"] == pytest.approx(above) and cell["low"] is None
    assert got["patients"] == 1 and "fewer than" in cell["why"]
