"""What a sweep came to, from runs whose files are written here."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import balanced_accuracy_score

from configs import quickstart
from medjax.commands import arms, sweep
from medjax.config import config_as_json
from medjax.evaluation import reliability
from medjax.reports import comparison_page

TASKS = ("mass", "nodule")
FILMS = 60


def finish(folder, number, *, films=range(FILMS), label_seed=0):
    """Leaves in a run's folder what a finished run leaves there, as far as it is read."""
    label = np.random.default_rng(label_seed).integers(0, 2, (2 * FILMS, 2))
    score = np.random.default_rng(number).random((2 * FILMS, 2))
    table = {"image": [f"{n}.png" for n in films], "patient": np.array(films) // 2}
    for t, task in enumerate(TASKS):
        table[task] = score[list(films), t]
        table[f"{task}_log_odds"] = logit(table[task])
        table[f"{task}_label"] = label[list(films), t]
        table[f"{task}_call"] = table[task] >= 0.5
    (folder / "predictions").mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / "predictions/test.csv", index=False)
    task = {"names": TASKS, "exclusive": False, "shape": (8, 8, 1)}
    (folder / "task.json").write_text(json.dumps(task))
    config = config_as_json(quickstart.get_config())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "provenance.json").write_text('{"data": {}}')
    write_cost(folder, seconds=100.0 + number, memory=10**9)
    before, after = ({"calibration_error": {"estimate": x}} for x in (number / 10, 0.5))
    both = {"mean": {"before": before, "after": after if number % 2 else None}}
    trained = {"mass": {"positives": 90}, "nodule": {"positives": 10 - 3 * number}}
    report = {
        "mean": {"auroc": {"estimate": 0.5}},
        "calibration": both,
        "cohort": {"sides": {"train": {"tasks": trained}}},
    }
    (folder / "report.json").write_text(json.dumps(report))


def write_cost(folder, **cost):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, **cost}) + "\n")


@pytest.fixture
def planned(tmp_path):
    """(overrides -> the sweep's folder, and its runs' folders)."""

    def make(*overrides):
        config = quickstart.get_config()
        config.evaluation.replicates = 20
        runs = arms.runs(config, overrides)
        arms.claim(tmp_path, config, runs)
        return tmp_path, [run.folder(tmp_path) for run in runs]

    return make


GRID = [
    {"imbalance": arm, "seed": seed} for arm in ("none", "ratio") for seed in (0, 1)
]


def test_cost_and_calibration_are_of_the_finished_runs_alone(planned):
    folder, runs = planned(*GRID)
    for number in range(3):
        finish(runs[number], number)
    write_cost(runs[3], seconds=1.0, memory=1)
    arms.write_error(runs[3], "diverged")
    one, other = sweep.gather(folder)["compared"]["arms"].values()
    assert one["cost"] == {"seconds": 100.5, "memory": 1e9}
    assert other["cost"] == {"seconds": 102.0, "memory": 1e9}
    before, used = (one["calibration_error"][side] for side in ("before", "used"))
    assert before["estimate"] == pytest.approx(0.05)
    assert before["sd"] == pytest.approx(np.std([0, 0.1], ddof=1))
    tables = [pd.read_csv(run / "predictions/test.csv") for run in runs[:2]]
    p, y = (
        np.stack([t[[task + end for task in TASKS]] for t in tables])
        for end in ("", "_label")
    )
    patient = tables[0]["patient"].to_numpy()
    expected = reliability.error_of_runs(p, y[0], np.ones(p.shape), patient)
    for end in ("estimate", "low", "high"):
        assert used[end] == pytest.approx(getattr(expected, end), rel=1e-5)
    assert used["sd"] is None  # Only one of the two runs is calibrated.
    assert other["calibration_error"]["used"]["sd"] is None


def test_frequent_and_rare_findings_are_told_by_the_training_images(planned):
    folder, runs = planned(*GRID)
    finish(runs[0], 0)
    compared = sweep.gather(folder)["compared"]
    assert compared["groups"] == {}  # 90 and 10 are nine times apart.
    finish(runs[1], 1)  # 90 and 8.5 on average.
    found = sweep.gather(folder)
    assert found["compared"]["groups"] == {"head": ["mass"], "tail": ["nodule"]}
    row = found["compared"]["arms"]["imbalance=none"]
    assert row["groups"]["tail"]["auroc"] == row["tasks"]["nodule"]["auroc"]
    page = comparison_page.write_sweep(found, folder).read_text()
    assert "Head: Mass. Tail: Nodule." in " ".join(page.split())
    table = pd.read_csv(folder / "sweep.csv").set_index(["arm", "task", "metric"])
    of_tail = table.loc[("imbalance=none", "mean of the tail", "auroc")]
    assert of_tail["estimate"] == pytest.approx(
        row["tasks"]["nodule"]["auroc"]["estimate"]
    )


def test_whether_the_seeds_test_the_same_images_is_found_in_their_predictions(planned):
    folder, runs = planned(*GRID)
    for number, run in enumerate(runs):
        finish(run, number)
    assert sweep.gather(folder)["compared"]["same_images"]


def test_arms_that_prepared_the_same_images_otherwise_are_told_so(
    planned, tmp_path, capsys
):
    folder, runs = planned(*({"data.side": side} for side in (64, 96)))
    for number, run in enumerate(runs):
        finish(run, number)
    assert sweep.gather(folder)["compared"]["prepared"] == []
    config = json.loads((runs[1] / "config.json").read_text())
    config["data"] |= {"side": 96, "records": "elsewhere"}
    (runs[1] / "config.json").write_text(json.dumps(config))
    found = sweep.gather(folder)
    said = "The runs differ in data.side: a difference is that of their models and of"
    assert said in comparison_page.write_sweep(found, tmp_path).read_text()
    comparison_page.show_sweep(found)
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "sweep.json").read_text())["compared"][
        "prepared"
    ] == ["data.side"]


def test_so_is_whether_each_seed_has_its_own(planned):
    folder, runs = planned(*GRID)
    for number, run in enumerate(runs):
        finish(run, number, films=range(10 * (number % 2), FILMS))
    assert not sweep.gather(folder)["compared"]["same_images"]


def test_while_runs_are_unfinished_no_arm_is_the_best(planned):
    folder, runs = planned(*GRID)
    for number in range(3):
        finish(runs[number], number)
    found = sweep.gather(folder)
    assert comparison_page.verdict(found)[1].startswith(
        "No difference shown yet: 1 of 4 runs"
    )
    best = found["compared"]["best"]
    assert (best["arm"], best["why"]) == (None, "1 of 4 runs are unfinished")


@pytest.mark.parametrize(
    ("change", "why"), [({"films": range(50)}, "lack 10"), ({"label_seed": 1}, "label")]
)
def test_runs_that_cant_be_compared_have_a_page_that_says_why(
    planned, capsys, change, why
):
    folder, runs = planned(*GRID)
    for number in range(3):
        finish(runs[number], number)
    finish(runs[3], 3, **change)
    found = sweep.gather(folder)
    assert found["compared"] is None and why in found["incomparable"]
    assert [run["state"] for run in found["runs"]] == ["finished"] * 4
    text = comparison_page.write_sweep(found, folder).read_text()
    assert "can&#39;t be compared" in text and why in text
    comparison_page.show_sweep(found)
    assert why in capsys.readouterr().out


def test_of_classes_the_likeliest_is_called_and_sensitivities_are_averaged(planned):
    folder, runs = planned(*GRID[:1])
    finish(runs[0], 0)
    table = pd.read_csv(path := runs[0] / "predictions/test.csv")
    table["nodule_label"] = 1 - table["mass_label"]
    table.drop(columns=["mass_call", "nodule_call"]).to_csv(path, index=False)
    task = {"names": TASKS, "exclusive": True, "shape": (8, 8, 1)}
    (runs[0] / "task.json").write_text(json.dumps(task))
    (row,) = sweep.gather(folder)["compared"]["arms"].values()
    called = table["nodule"] > table["mass"]
    expected = balanced_accuracy_score(table["nodule_label"], called)
    assert row["mean"]["balanced_accuracy"]["estimate"] == pytest.approx(expected)
    expected = called[table["nodule_label"] == 1].mean()
    got = row["tasks"]["nodule"]["balanced_accuracy"]["estimate"]
    assert got == pytest.approx(expected)


def test_the_same_files_give_the_same_json(planned):
    """The findings are in the order of the first run, whatever a set's order is."""
    folder, runs = planned(*GRID)
    for number, run in enumerate(runs):
        finish(run, number)
    for run in runs[1:]:
        task = json.loads((run / "task.json").read_text())
        task["names"] = task["names"][::-1]
        (run / "task.json").write_text(json.dumps(task))
    found = sweep.gather(folder)
    assert list(found["compared"]["arms"]["imbalance=none"]["tasks"]) == list(TASKS)
    assert json.dumps(found) == json.dumps(sweep.gather(folder))
