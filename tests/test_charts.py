"""Curves as paths, and the model card that is written beside them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.reports import card, charts
from medjax.reports import charts as figures

FRAME = charts.Frame((100.0, 80.0), x=(0, 10), y=(-1, 1), left=20, right=10, top=5)


def points(path):
    """The corners of a path of M, L, H and V."""
    found = []
    for kind, text in re.findall(r"([MLHV])([-\d. ]+)", path):
        numbers = [float(n) for n in text.split()]
        x, y = found[-1] if found else (None, None)
        found.append(
            {"H": (numbers[0], y), "V": (x, numbers[0])}.get(kind, tuple(numbers))
        )
    return np.array(found)


def test_a_line_goes_through_its_points():
    found = points(charts.line(FRAME, [0, 5, 10], [-1, 0, 1]))
    np.testing.assert_allclose(found, [(20, 44), (55, 24.5), (90, 5)], atol=0.06)
    found = points(charts.line(FRAME, [0, 10], [-1, 1], steps=True))
    np.testing.assert_allclose(found, [(20, 44), (20, 5), (90, 5)], atol=0.06)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 1000))
def test_points_left_out_are_not_seen_to_miss(seed, n):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.random(n) * 10), np.sort(rng.random(n) * 2 - 1)
    found = points(charts.line(FRAME, x, y))
    whole = np.stack([FRAME.across(x), FRAME.down(y)], axis=1)
    apart = np.linalg.norm(whole[:, None] - found[None], axis=-1).min(axis=1)
    assert apart.max() < charts.APART + 0.15
    np.testing.assert_allclose(found[[0, -1]], whole[[0, -1]], atol=0.06)
    assert len(found) < 1 + (70 + 39) / charts.APART + 1


def test_an_area_is_closed_and_ends_where_a_side_is_unknown():
    path = charts.area(FRAME, [0, 2, 4, 6], [-1, 0, None, 0], [1, 1, 1, 1])
    assert path.count("M") == path.count("Z") == 2
    first = points(path.split("Z")[0])
    np.testing.assert_allclose(first[[0, -1]], [(20, 44), (20, 5)], atol=0.06)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((0, 0.034), [0, 0.01, 0.02, 0.03]),
        ((0.5, 1), [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ((0, 25000), [0, 5000, 10000, 15000, 20000, 25000]),
        ((3, 3), [3]),
    ],
)
def test_ticks_are_round(ends, expected):
    assert charts.rounded(*ends) == pytest.approx(expected)


def test_a_journal_of_one_line_or_none_has_no_loss_curve():
    assert figures.training([], 0) == {}
    assert figures.training([{"step": 1, "loss": 0.5}], 1) == {}
    lines = [{"step": n, "loss": 0.5, "validation_auroc": None} for n in (1, 2)]
    assert list(figures.training(lines, 2)) == ["loss"]


# --------------------------------------------------------------------- the card


def summary(**changes):
    def value(x, width=0.01):
        ends = {"low": x - width, "high": x + width}
        return {"estimate": x, **ends, "why": ""}

    empty = {"estimate": None, "low": None, "high": None, "why": "no positive image"}
    areas = {"good": value(0.9), "few": value(0.6, 0.2), "none": empty}
    tasks = {
        task: {"positives": n, "metrics": {"auroc": areas[task]}}
        for task, n in (("good", 500.0), ("few", 4.0), ("none", 0.0))
    }
    mean = {"auroc": value(0.75), "average_precision": value(0.2)}
    return {
        "split": "test",
        "source": "nih",
        "model": "densenet121",
        "split_by": "patient",
        "checkpoint": 5,
        "steps": 10,
        "films": 600,
        "patients": 300,
        "replicates": 1000,
        "chosen": "Youden's index",
        "mean": mean,
        "tasks": tasks,
        **changes,
    }


def test_caveats_name_the_findings_that_they_are_about():
    found = " ".join(card.caveats(summary()))
    assert "Fewer than 30 positive images: Few (4)." in found
    assert "wider than 0.1: Few." in found
    assert "not shown to be above chance: Few." in found
    assert "Without an AUROC: None (no positive image)." in found
    assert "Good" not in found
    for missing in ("Calibration", "Differences between groups", "Robustness"):
        assert missing in found


def test_what_was_measured_is_no_caveat_unless_it_is_bad():
    area = {"estimate": 0.8, "low": 0.7, "high": 0.9, "why": ""}
    drop = {"estimate": 0.1, "low": 0.05, "high": 0.2}
    rows = {
        name: {"severities": [{"severity": 5, "drop": {**drop, "estimate": d}}]}
        for name, d in (("blur", 0.1), ("jpeg", 0.3))
    }
    gap = {"task": "good", "metric": "auroc"}
    result = summary(
        calibration={"method": "platt"},
        subgroups={"sex": {"shown": [gap]}, "view": {"shown": []}},
        robustness={"corruptions": rows},
        split_by="other",
        external=True,
    )
    side = {"predicted": {**area, "estimate": 0.5}}
    sides = {"before": side, "after": None, "prevalence": {**area, "low": 0.4}}
    result["tasks"]["good"]["calibration"] = sides
    found = " ".join(card.caveats(result))
    assert "differs between groups of sex: Good." in found and "view" not in found
    assert "most under JPEG: by 0.300 (0.050–0.200)" in found
    assert "prevalence's interval" not in found and "not calibrated" not in found
    assert "other hospitals" not in found
    side["predicted"]["estimate"] = 0.3
    assert "outside the prevalence's interval: Good." in " ".join(card.caveats(result))


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, ["other hospitals"], ["too good", "adapted"]),
        ({"split": "train"}, ["fitted to these images"], ["chosen on these"]),
        ({"split": "validation"}, ["were chosen on these images"], ["fitted to"]),
        (
            {"split": "target", "external": True},
            ["adapted to other images of these data"],
            ["other hospitals", "too good"],
        ),
    ],
)
def test_what_the_run_has_seen_of_the_images_is_a_caveat(change, said, unsaid):
    found = " ".join(card.caveats(summary(**change)))
    assert all(words in found for words in said)
    assert not any(words in found for words in unsaid)


def test_heatmaps_are_in_the_card_and_a_caveat_if_they_explain_nothing():
    pointing = {"estimate": 0.4, "low": 0.3, "high": 0.5, "chance": 0.1}
    where = {"method": "grad_cam", "stage": "stage2", "randomisation": {"depends": 1}}
    where["all"] = {"pairs": 50, "pointing": pointing}
    numbers = card.card(summary(localisation=where), None, None)
    numbers = " ".join(numbers["Quantitative analyses"])
    assert "Grad-CAM of stage2" in numbers
    assert "0.400 (0.300–0.500) of 50, by chance in 0.100" in numbers
    assert "heatmaps" not in " ".join(card.caveats(summary(localisation=where)))
    where["randomisation"] = {"depends": False}
    found = " ".join(card.caveats(summary(localisation=where)))
    assert "heatmaps hardly depend" in found


def test_an_area_without_an_interval_is_said():
    found = summary()
    found["tasks"]["good"]["metrics"]["auroc"] |= {"low": None, "why": "too few"}
    found = " ".join(card.caveats(found))
    assert "Without an interval of the AUROC: Good (too few)." in found


def test_the_card_has_the_headings_of_its_paper_and_invents_nothing():
    found = card.card(summary(), None, None)
    assert list(found) == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    assert found["Training data"] == ["Source: unknown."]
    assert "lowest Few, 0.600" in " ".join(found["Quantitative analyses"])
