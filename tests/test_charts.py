"""Curves as paths, and the model card that is written beside them."""

import re
from html import unescape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import RUN

from medjax.reports import charts, classification, page, report

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
    assert apart.max() < charts.MIN_STEP + 0.15
    np.testing.assert_allclose(found[[0, -1]], whole[[0, -1]], atol=0.06)
    assert len(found) < 1 + (70 + 39) / charts.MIN_STEP + 1


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
    assert charts.training([], 0) == []
    assert charts.training([{"step": 1, "loss": 0.5}], 1) == []
    lines = [{"step": n, "loss": 0.5, "validation_auroc": None} for n in (1, 2)]
    (only,) = charts.training(lines, 2)
    assert only["title"] == "Training loss over the steps"
    lines = [{"step": 3, "validation_auroc": 0.5, "validation_dice": 0.7}]
    (only,) = charts.training(lines, 3)
    assert [name for _, name in only["legend"]] == ["AUROC", "Dice", "checkpoint used"]


def test_bars_stand_on_their_base():
    first, second = charts.bars(FRAME, [0, 5], [1, 0.5], 5, [-1, 0]).split("Z")[:2]
    np.testing.assert_allclose(points(first)[:3], [(20, 44), (20, 24.5), (55, 24.5)])
    np.testing.assert_allclose(points(second)[1:3], [(55, 14.8), (90, 14.8)], atol=0.1)


def test_a_forest_has_a_whisker_a_row_from_the_top_and_all_of_it_in_the_frame():
    one, other = {"estimate": 0.5, "low": 0.2, "high": 0.6}, {"estimate": -1.0}
    rows = [
        charts.Row("a", one, dots=[0.1, 0.9]),
        charts.Row("b,\nc", other | {"low": -2.0, "high": 0.0}),
    ]
    found = charts.forest(rows, title="t", name="x", reference=0)
    assert [text for _, text in found["y"]] == ["a", "b,\nc"]
    (_, upper), (_, lower) = found["lines"][1:]
    frame = found["frame"]
    y, below = points(upper)[0, 1], points(lower)[0, 1]
    assert frame.top < y < below < frame.size[1] - frame.bottom
    x = frame.across([0.2, 0.6])
    np.testing.assert_allclose(points(upper)[:, 0], x, atol=0.06)
    right = frame.size[0] - frame.right
    assert all(frame.left < float(x) < right for _, x, _ in found["points"])
    assert charts.forest([], title="t", name="x") is None


def test_bars_under_a_reliability_diagram_count_the_images():
    rng = np.random.default_rng(0)
    score = np.sort(rng.beta(1, 6, 150))[::-1]
    label = rng.random(150) < score
    counts = {"threshold": score.tolist(), "tp": np.cumsum(label).tolist()}
    counts["fp"] = np.cumsum(~label).tolist()
    frame = charts.Frame(charts.SQUARE_SIZE, x=(0, 0.8), y=(0, 0.8))
    path = classification._spread(frame, counts)
    tall = [
        float(foot) - float(top)
        for foot, top in re.findall(r"M\S+ (\S+?)V(\S+?)H", path)
    ]
    edges = np.linspace(0, 0.8, 21) ** 2
    edges[-1] = 1
    images, _ = np.histogram(score, edges)
    np.testing.assert_allclose(tall / np.max(tall), images / images.max(), atol=0.02)


# --------------------------------------------------------------------- the card


def summary(**changes):
    def value(x, width=0.01):
        ends = {"low": x - width, "high": x + width}
        return {"estimate": x, **ends, "why": ""}

    empty = {"estimate": None, "low": None, "high": None, "why": "no positive image"}
    areas = {"good": value(0.9), "few": value(0.6, 0.2), "none": empty}
    sides = {"before": {"predicted": empty}, "after": None, "prevalence": empty}
    tasks = {
        task: {
            "positives": n,
            "metrics": {"auroc": areas[task]},
            "calibration": sides,
        }
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


def parts(results):
    """{heading: text} of a card."""
    about = {**RUN, **report.card(results), "item": "finding"}
    html = page.render("card.html", results=results, **about)
    parts = [part.split("</h3>") for part in html.split("<h3>")[1:]]
    words = {heading: unescape(re.sub("<[^>]+>", " ", text)) for heading, text in parts}
    return {heading: " ".join(text.split()) for heading, text in words.items()}


def caveats(results):
    html = page.render("caveats.html", results=results, **report.card(results))
    return " ".join(unescape(re.sub("<[^>]+>", " ", html)).split())


def test_caveats_name_the_findings_that_they_are_about():
    found = caveats(summary())
    assert "Fewer than 30 images are positive for Few (4)." in found
    assert "The interval of AUROC is wider than 0.1 for Few." in found
    assert "may be no better than chance for Few." in found
    assert "AUROC is undefined for None (no positive image)." in found
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
    gap = {"estimate": 0.149, "low": 0.044, "high": 0.245}
    untested = {"p_holm": None}
    sex = {"p_holm": 0.01, "mean": {"auroc": gap}}
    result = summary(
        calibration={"method": "platt"},
        subgroups={"sex": sex, "view": sex | {"p_holm": 0.2}, "age": sex | untested},
        robustness={"corruptions": rows},
        split_by="other",
        external=True,
    )
    side = {"predicted": {**area, "estimate": 0.5}}
    sides = {"before": side, "after": None, "prevalence": {**area, "low": 0.4}}
    result["tasks"]["good"]["calibration"] = sides
    found = caveats(result)
    gap = "the largest gap is 0.149 (0.044–0.245)."
    assert f"The mean AUROC differs between groups of sex: {gap}" in found
    assert f"between groups of view is not ruled out: {gap}" in found
    assert "groups of age" not in found
    assert "most under JPEG: by 0.300 (0.050–0.200)" in found
    assert "prevalence's interval" not in found and "uncalibrated" not in found
    assert "Other hospitals" not in found
    side["predicted"]["estimate"] = 0.3
    assert "outside the prevalence's interval for Good." in caveats(result)


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, ["Other hospitals"], ["adapted"]),
        (
            {"split": "target", "external": True},
            ["adapted to unlabelled images"],
            ["Other hospitals"],
        ),
    ],
)
def test_what_the_run_has_seen_of_the_images_is_a_caveat(change, said, unsaid):
    found = caveats(summary(**change))
    assert all(words in found for words in said)
    assert not any(words in found for words in unsaid)


def test_heatmaps_are_in_the_card_and_a_caveat_if_they_explain_nothing():
    pointing = {"estimate": 0.4, "low": 0.3, "high": 0.5, "chance": 0.1}
    where = {"method": "grad_cam", "stage": "stage2", "randomisation": {"depends": 1}}
    where["all"] = {"pairs": 50, "pointing": pointing}
    numbers = parts(summary(localisation=where))["Quantitative analyses"]
    assert "Grad-CAM of stage2" in numbers
    assert "0.400 (0.300–0.500) of 50 cases, by chance in 0.100" in numbers
    assert "heatmaps" not in caveats(summary(localisation=where))
    where["randomisation"] = {"depends": False}
    found = caveats(summary(localisation=where))
    assert "heatmaps hardly depend" in found


def test_an_area_without_an_interval_is_said():
    found = summary()
    found["tasks"]["good"]["metrics"]["auroc"] |= {"low": None, "why": "too few"}
    found = caveats(found)
    assert "AUROC has no interval for Good (too few)." in found
    found = summary()
    for name in ("good", "few"):
        found["tasks"][name]["metrics"]["auroc"] |= {"low": None, "why": "too few"}
    assert "AUROC has no interval for Good, Few (too few)." in caveats(found)


def test_the_card_has_the_headings_of_its_paper_and_invents_nothing():
    found = parts(summary())
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
    assert found["Training data"] == "Source: phantom."
    assert "lowest AUROC is that of Few, 0.600" in found["Quantitative analyses"]


@pytest.mark.parametrize("names", [("a", "b"), ("a\nb\nc\nd", "e\nf")])
def test_names_of_several_lines_do_not_reach_the_next_row(names):
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    rows = [charts.Row(name, interval) for name in names]
    (first, _), (second, _) = charts.forest(rows, title="t", name="n")["y"]
    lines = names[0].count("\n") + 1
    assert float(second) - float(first) > 10 * lines  # macros.html: 10 pixels a line.
