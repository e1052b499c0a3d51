"""The page of a sweep, from numbers made here."""

import csv
import json

import jax
import numpy as np
import pytest
from conftest import Page

from medjax.evaluation import seeds
from medjax.reports import comparison_page, page

ARMS = ("imbalance=none", "imbalance=<b>", "loss.name=focal,loss.gamma=2.0")
SEEDS, TASKS = 4, ("mass", "nodule")


def compared(skill):
    """What three arms of four seeds came to; the last seed of the third is missing."""
    rng = np.random.default_rng(0)
    label = (rng.random((160, 2)) < 0.4).astype(float)
    film = rng.normal(size=(160, 2))
    own = 0.3 * rng.normal(size=(3, SEEDS, 160, 2))
    score = np.reshape(skill, (3, 1, 1, 1)) * label + film + own
    weight = np.ones(score.shape)
    weight[2, 3] = 0
    patient = np.arange(160) // 2
    probability = 1 / (1 + np.exp(-score))
    scores = seeds.measure_predictions(
        *(probability, label, weight, patient),
        ranking=score,
        call=probability >= 0.5,
        key=jax.random.key(0),
        replicates=40,
    )
    found = {"films": 160, "patients": 80, "replicates": 40} | seeds.compare(
        scores, arms=ARMS, tasks=TASKS, primary="auroc", patients=80
    )
    for row in found["arms"].values():
        row["cost"] = {"seconds": 75.0, "memory": 3 * 2**30}
        row["calibration_error"] = {
            "before": {"estimate": 0.071, "sd": 0.004},
            "used": {"estimate": 0.02, "low": 0.01, "high": 0.03, "sd": None},
        }
    return found | {"same_images": True}


def found(skill):
    rows = [
        {
            "name": f"{arm},seed={seed}",
            "arm": arm,
            "repeat": f"seed={seed}",
            "state": "finished",
            "error": None,
            "auroc": 0.8,
            "seconds": 75.0,
            "memory": 3 * 2**30,
        }
        for arm in ARMS
        for seed in range(SEEDS)
    ]
    rows[-1] |= {"state": "failed", "error": "step 3: loss nan: training diverged"}
    rows[-1]["auroc"] = None
    curve = {
        "step": [10, 20],
        "mean": [0.6, 0.7],
        "low": [0.5, 0.6],
        "high": [0.7, 0.8],
    }
    return {
        "source": "phantom",
        "model": "resnet18",
        "primary": "auroc",
        "repeats": [f"seed={seed}" for seed in range(SEEDS)],
        "runs": rows,
        "curves": dict.fromkeys(ARMS, curve),
        "compared": compared(skill),
        "incomparable": None,
    }


@pytest.fixture(scope="module")
def equal():
    return found((1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def better():
    return found((1.0, 3.0, 1.0))


def test_of_equal_arms_none_is_called_the_best(equal, tmp_path, capsys):
    page = Page(comparison_page.write_sweep(equal, tmp_path).read_text())
    assert (
        "No difference shown" in page.text and "has the highest" not in page.text[:900]
    )
    comparison_page.show_sweep(equal)
    assert "No difference shown" in capsys.readouterr().out


def test_a_better_arm_is_called_so_and_its_p_is_bold(better, tmp_path):
    html = comparison_page.write_sweep(better, tmp_path).read_text()
    page = Page(html)
    assert "imbalance=<b> has the highest mean AUROC" in page.text
    assert "<b>&lt;0.001</b>" in html and "imbalance=<b>" not in html


def test_the_page_holds_every_number_and_needs_no_other_file(equal, tmp_path):
    html = comparison_page.write_sweep(equal, tmp_path).read_text()
    page = Page(html)
    assert page.stack == []
    for source in page.sources:
        assert source.startswith(("data:image", "arms/", "#")), source
    for arm, row in equal["compared"]["arms"].items():
        assert arm.replace(",", ", ") in page.text
        auroc = row["mean"]["auroc"]
        assert f"{auroc['estimate']:.3f} ({auroc['low']:.3f}" in page.text
        for task in TASKS:
            assert f"{row['tasks'][task]['auroc']['estimate']:.3f}" in page.text
            if row["difference"]:
                gap = row["difference"]["tasks"][task]["auroc"]
                assert f"{gap['low']:+.3f} to {gap['high']:+.3f}" in page.text
    assert "1 failed" in page.text and "training diverged" in page.text
    assert "1 min 15 s" in page.text and "3.0 GiB" in page.text
    assert "the same uncalibrated" in page.text and "0.020 (0.010–0.030)" in page.text
    assert "0.071 seeds ± 0.004" in page.text
    assert html.count("<svg") == 2 + len(ARMS)


def test_that_the_seeds_test_other_images_is_said(equal, tmp_path):
    said = "also what other test patients would"
    for same in (True, False):
        other = {**equal, "compared": equal["compared"] | {"same_images": same}}
        page = Page(comparison_page.write_sweep(other, tmp_path).read_text())
        assert (said in page.text) != same


def test_an_arm_that_lacks_seeds_is_marked(equal, tmp_path, capsys):
    html = comparison_page.write_sweep(equal, tmp_path).read_text()
    assert html.count("<td>3 of 4</td>") == 1 and html.count("<td>4</td>") == 2
    assert "Some arms lack seeds" in html
    comparison_page.show_sweep(equal)
    assert "3 of 4 seeds" in capsys.readouterr().out


def test_where_two_lead_alike_what_differs_from_the_baseline_is_said(tmp_path):
    two = found((0.2, 3.0, 3.0))
    text = comparison_page.verdict(two)[1]
    assert text.startswith("No arm is the best: ") and "may be chance" in text
    above = f"After Holm, higher than {ARMS[0]}: {ARMS[1]}, {ARMS[2]}."
    assert text.endswith(above)
    assert (
        "No difference"
        not in Page(comparison_page.write_sweep(two, tmp_path).read_text()).text
    )
    below = found((3.0, 3.0, 0.2))
    assert (
        f"After Holm, lower than {ARMS[0]}: {ARMS[2]}."
        in comparison_page.verdict(below)[1]
    )


def test_csv_and_json_hold_the_same(equal, tmp_path):
    comparison_page.write_sweep(equal, tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text()) == equal
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ARMS) * 3 * 4
    for row in rows:
        own = equal["compared"]["arms"][row["arm"]]
        part = own["mean"] if row["task"] == "mean" else own["tasks"][row["task"]]
        assert float(row["estimate"]) == part[row["metric"]]["estimate"]
        if own["difference"] is None:
            assert row["difference_p"] == ""
            continue
        gaps = own["difference"]
        gap = gaps["mean"] if row["task"] == "mean" else gaps["tasks"][row["task"]]
        assert float(row["difference_p"]) == gap[row["metric"]]["p"]
        assert int(row["seeds"]) == own["seeds"]


def test_a_sweep_without_a_finished_run_has_a_page_of_its_errors(
    equal, tmp_path, capsys
):
    runs = [{**equal["runs"][-1], "name": "a"}]
    curves = {"a": {"step": [], "mean": [], "low": [], "high": []}}
    none = {**equal, "runs": runs, "curves": curves, "compared": None}
    page = Page(comparison_page.write_sweep(none, tmp_path).read_text())
    assert "nothing to compare" in page.text and "training diverged" in page.text
    comparison_page.show_sweep(none)
    assert "failed: a: step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (4.4, "4 s"), (75, "1 min 15 s"), (3660, "1 h 1 min")],
)
def test_times_are_read_as_they_are_said(seconds, text):
    assert page.duration(seconds) == text
