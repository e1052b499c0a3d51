"""The commands, as a user types them, on a phantom small enough for a test.

What is compared bit by bit runs in processes of its own, the rest in this one.
"""

import collections
import contextlib
import csv
import itertools
import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from launching import SMALL, run, run_here, small_films, start

from medjax.tasks import parts
from medjax.training import loop, step


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def train(workdir, *more):
    answers = "--config.evaluation.error_rate=0.3"
    return ["train", f"--workdir={workdir}", *SMALL, answers, *more]


@pytest.fixture(scope="module")
def counted(home):
    """A run that is stopped once and goes on; and what was traced by then, each time."""
    traced, seen = collections.Counter(), []
    arguments, updates = train(home / "whole"), itertools.count(1)
    parts._classifier.cache_clear()  # Of other files' tests.
    with pytest.MonkeyPatch.context() as patch:

        def count(name, function):
            def counting(*arguments, **options):
                traced[name] += 1  # Programs of the compile cache are traced too.
                return function(*arguments, **options)

            patch.setattr(step, name, counting)

        count("train_step", step.train_step)
        count("eval_step", step.eval_step)
        with patch.context() as once:
            stop = contextlib.nullcontext(lambda: next(updates) == 7)
            once.setattr(loop, "stop_signal", lambda: stop)
            assert loop.STOPPED in run_here(*arguments)[0]
            seen.append(dict(traced))
        out, _ = run_here(*arguments)
        seen.append(dict(traced))
        run_here("evaluate", f"--workdir={home / 'whole'}", "--split=test")
        seen.append(dict(traced))
    return home / "whole", out, seen


@pytest.fixture(scope="module")
def finished(counted):
    return counted[:2]


def final_state(workdir):
    """Every file of the last checkpoint's arrays, read back by Orbax."""
    from medjax.training.checkpoint import Checkpoints

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.steps[-1]
        parts = checkpoints._orbax.load_checkpointables(
            step, {"state": None, "data": None}
        )
    return step, parts


def same(one, other):
    import jax

    assert one[0] == other[0]
    assert one[1]["data"] == other[1]["data"]
    jax.tree.map(np.testing.assert_array_equal, one[1]["state"], other[1]["state"])


def test_training_leaves_everything_that_the_design_promises(finished):
    workdir, out = finished
    assert f"report: {workdir / 'report.html'}" in out
    for name in (
        "config.json",
        "environment.json",
        "splits.csv",
        "metrics.jsonl",
        "checkpoints",
        "predictions/test.csv",
        "predictions/validation.csv",
        "report.html",
        "report.json",
        "report.csv",
        "thresholds.json",
        "calibration.json",
    ):
        assert (workdir / name).exists(), name
    assert list((workdir / "events").iterdir())
    report = json.loads((workdir / "report.json").read_text())
    split = pd.read_csv(workdir / "splits.csv")
    test = split[split["split"] == "test"]
    assert report["films"] == len(test)
    assert report["patients"] == test["patient"].nunique()
    predicted = pd.read_csv(workdir / "predictions/test.csv")
    assert sorted(predicted["image"]) == sorted(test["image"])
    assert not set(test["patient"]) & set(split["patient"][split["split"] == "train"])


def test_the_report_is_that_of_the_predictions(finished):
    from sklearn.metrics import roc_auc_score

    workdir, _ = finished
    report = json.loads((workdir / "report.json").read_text())
    predicted = pd.read_csv(workdir / "predictions/test.csv")
    mended = False
    for task, found in report["tasks"].items():
        label, score = predicted[f"{task}_label"], predicted[task]
        raw = predicted[f"{task}_raw"]  # Before calibration, which keeps the order.
        mended |= (raw != score).any()
        for one in (score, raw):
            expected = roc_auc_score(label, one)
            assert abs(found["metrics"]["auroc"]["estimate"] - expected) < 1e-5
    assert mended
    assert f"{task}_raw" in pd.read_csv(workdir / "predictions/validation.csv")


def test_answers_are_those_of_the_limits_that_validation_gave(finished):
    workdir, _ = finished
    limits = json.loads((workdir / "thresholds.json").read_text())["limits"]
    predicted = pd.read_csv(workdir / "predictions/test.csv")
    report = json.loads((workdir / "report.json").read_text())["conformal"]
    assert report["needed"] == 3 and len(report["questions"]) == 6
    for t, task in enumerate(report["questions"]):
        p = predicted[task].to_numpy(np.float32).astype(float)
        absent, present = (
            np.full(len(p), True) if limit is None else score <= limit
            for limit, score in zip(limits["by_class"][0][t], (p, 1 - p), strict=True)
        )
        word = np.where(present, "present", "absent").astype(object)
        word[absent == present] = "uncertain"
        assert (predicted[f"{task}_answer"] == word).all()
    assert "Answers and doubt" in (workdir / "report.html").read_text()


def interrupted(arguments, log, lines, by):
    """Starts a run, ends it once it has logged so many lines, and hands it back."""
    process = start(*arguments)
    while process.poll() is None and not (
        log.exists() and log.read_text().count("\n") >= lines
    ):
        time.sleep(0.05)
    process.send_signal(by)
    return process, *process.communicate(timeout=300)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_then_killed_ends_with_the_same_bits(home):
    whole = home / "alone"
    run(*train(whole))
    workdir = home / "stopped"
    log = workdir / "metrics.jsonl"
    process, out, err = interrupted(train(workdir), log, 1, signal.SIGTERM)
    assert process.returncode == 0, out + err
    assert "the same command goes on from here" in out
    assert any((workdir / "checkpoints").iterdir())
    lines = log.read_text().count("\n") + 3
    process, *_ = interrupted(train(workdir), log, lines, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "report.html").exists()
    run(*train(workdir))
    same(final_state(workdir), final_state(whole))
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    scores = [line["step"] for line in lines if "validation_auroc" in line]
    assert scores == [5, 10, 12]
    names = ("report.json", "predictions/test.csv", "splits.csv", "thresholds.json")
    for name in names:
        assert (workdir / name).read_text() == (whole / name).read_text()


def test_a_run_compiles_one_step_and_one_evaluation(counted):
    stopped, ended, again = counted[2]
    assert stopped == {"train_step": 1, "eval_step": 1}
    assert ended == again == {"train_step": 2, "eval_step": 1}  # Once in each process.


@pytest.mark.slow
def test_two_devices_learn_what_one_does(home, finished):
    workdir = home / "two"
    parts._classifier.cache_clear()  # It is compiled for one device.
    run_here(*train(workdir), devices=2)
    one, two = final_state(finished[0])[1], final_state(workdir)[1]
    assert one["data"]["next_index"] == two["data"]["next_index"]
    for name in ("predictions/test.csv", "predictions/validation.csv"):
        a, b = (pd.read_csv(w / name) for w in (finished[0], workdir))
        assert (a["image"] == b["image"]).all()
        # The sums' order differs, and twelve steps of Adam amplify it.
        np.testing.assert_allclose(a["mass"], b["mass"], atol=0.02)


def test_a_refused_run_leaves_nothing_behind(home, finished):
    wrong = ["--config.loss.name=auc_margin", "--config.imbalance=none"]
    _, errors = run_here(*train(home / "refused", *wrong), code=2)
    assert "loss.rate: auc_margin learns too" in errors
    assert not (home / "refused").exists()


def test_another_config_in_the_same_workdir_is_refused(home, finished):
    changed = "--config.optim.learning_rate=1.0"
    _, err = run_here(*train(finished[0], changed), code=2)
    assert "config.optim" in err and "--workdir" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "--config is missing"),
        (["train", "--config=configs/quickstart.py"], "--workdir is missing"),
        (["train", "--config=configs/nothing.py", "--workdir=x"], "nothing.py"),
        (["train", *SMALL, "--config.optim.rate=1"], "rate"),
        (["dance"], "dance"),
        (["train", *SMALL, "--config.optm.rate=1"], "no field 'optm'. Did you mean"),
        (
            [],
            "prepare, explore, train, evaluate, predict, join, export, convert, gallery or sweep",
        ),
        (["evaluate", "--workdir=nowhere"], "nowhere"),
        (["predict", "--workdir=nowhere", "--images=x"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said):
    _, err = run_here(*arguments, code=2)
    assert said in err
    assert err.strip().count("\n") == 0


@pytest.mark.slow
def test_a_mistake_ends_the_process_in_the_same_way():
    _, err = run("dance", code=2)
    assert "dance" in err and err.strip().count("\n") == 0


@pytest.mark.slow
def test_evaluate_reports_another_split(finished):
    workdir, _ = finished
    run_here("evaluate", f"--workdir={workdir}", "--split=validation")
    assert (workdir / "report-validation.html").exists()


def external(workdir, split, *more):
    return ["evaluate", f"--workdir={workdir}", f"--split={split}", *SMALL, *more]


def test_the_run_s_own_images_are_no_external_test(finished):
    workdir, _ = finished
    _, err = run_here(*external(workdir, "again"), code=2)
    assert "were seen in training or validation" in err and "--allow-overlap" in err
    assert err.count("\n") == 1
    assert not (workdir / "report-again.html").exists()
    _, err = run_here("evaluate", f"--workdir={workdir}", "--other-hospital", code=2)
    assert "only goes with --config" in err


@pytest.mark.slow
def test_an_overlap_that_is_allowed_is_on_the_page(finished):
    workdir, _ = finished
    half = "--config.data.first_patient=60"  # 60 of its 120 patients are the run's.
    command = external(workdir, "half", half, "--allow-overlap")
    out, _ = run_here(*command)
    assert "the results are too good" in out
    report = json.loads((workdir / "report-half.json").read_text())
    sides = pd.read_csv(workdir / "splits.csv")
    seen = sides[sides["split"].isin(("train", "validation"))]
    number = (seen["patient"] >= 60).sum()
    assert report["overlap"]["images"] == report["overlap"]["pictures"] == number
    page = (workdir / "report-half.html").read_text()
    assert "are no external test" in page and "No patient is on two sides" not in page


@pytest.mark.slow
def test_evaluate_reports_other_people(finished):
    workdir, _ = finished
    strangers = "--config.data.first_patient=5000"
    out, _ = run_here(*external(workdir, "strangers", strangers))
    assert "were seen in training" not in out
    report = json.loads((workdir / "report-strangers.json").read_text())
    assert report["films"] == 240 and report["overlap"]["images"] == 0
    own = json.loads((workdir / "report.json").read_text())["mean"]["auroc"]
    beside = report["internal"]["mean"]["auroc"]
    assert beside["internal"]["estimate"] == own["estimate"]
    apart = report["mean"]["auroc"]["estimate"] - own["estimate"]
    assert beside["difference"]["estimate"] == pytest.approx(apart)
    assert 'id="internal"' in (workdir / "report-strangers.html").read_text()
    predicted = pd.read_csv(workdir / "predictions/strangers.csv")
    assert predicted["patient"].min() == 5000


@pytest.mark.slow
def test_the_augmentations_of_a_run_are_audited(finished):
    workdir, _ = finished
    out, _ = run_here("explore", "--audit-augment", f"--workdir={workdir}")
    assert f"augmentations: {workdir / 'augment.html'}" in out
    audit = json.loads((workdir / "augment.json").read_text())
    assert list(audit["ops"]) == ["random_affine", "brightness", "contrast"]
    validation = pd.read_csv(workdir / "predictions/validation.csv")
    assert audit["images"] == len(validation)
    for found in audit["ops"].values():
        assert [one["strength"] for one in found["at"]] == audit["strengths"]
        moved = [sum(t["moved"] for t in one["tasks"].values()) for one in found["at"]]
        assert moved[0] < moved[-1]  # The stronger the change, the more it moves.


def test_predict_gives_the_probabilities_of_the_evaluation(finished, tmp_path):
    import cv2

    workdir, _ = finished
    films = small_films()
    expected = pd.read_csv(workdir / "predictions/test.csv").set_index("image")
    folder = tmp_path / "films"
    folder.mkdir()
    names = []
    for film in films:
        name = film["image"]
        if name in expected.index and len(names) < 9:
            names.append(name)
            cv2.imwrite(str(folder / f"{name}.png"), film["pixels"])
    cv2.imwrite(str(folder / "dim.png"), films[0]["pixels"] // 16)
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out" / "p.csv"
    command = "predict", f"--workdir={workdir}", f"--images={folder}", f"--out={out}"
    out.parent.mkdir()
    out.write_text("image,patient\na.png,1\n")  # The labels, say.
    _, err = run_here(*command, code=2)
    assert "isn't of predict" in err and out.read_text().startswith("image,patient")
    out.unlink()
    for _ in range(2):  # What it wrote itself it writes again.
        _, err = run_here(*command, code=3)
    assert "broken.png" in err
    with out.open() as file:
        *rows, dim = csv.DictReader(file)
    assert "fewer than 32 levels of grey" in dim["warning"]
    tasks = list(json.loads((workdir / "thresholds.json").read_text())["tasks"])
    columns = [f"{task}{end}" for task in tasks for end in ("", "_threshold", "_call")]
    columns += [f"{task}_answer" for task in tasks]
    ranks = [f"{task}_log_odds" for task in tasks]
    columns += ranks
    assert list(rows[0]) == ["image", *columns, "warning"]
    assert all(row["warning"] == "" for row in rows)
    assert [row["image"] for row in rows] == [
        str(folder / f"{n}.png") for n in sorted(names)
    ]
    for row in rows:
        name = Path(row["image"]).stem
        got = [float(row[task]) for task in tasks]
        np.testing.assert_allclose(got, expected.loc[name, tasks].to_list(), atol=1e-4)
        log_odds = [float(row[rank]) for rank in ranks]
        np.testing.assert_allclose(
            log_odds, expected.loc[name, ranks].to_list(), atol=1e-3
        )
        for task, probability in zip(tasks, got):
            called = probability >= float(row[f"{task}_threshold"])
            assert int(row[f"{task}_call"]) == called
            assert row[f"{task}_answer"] == expected.loc[name, f"{task}_answer"]


@pytest.mark.slow
@pytest.mark.parametrize("treatment", ["smote", "over_sample", "decoupled"])
def test_imbalance_is_treated_by_one_word(home, finished, treatment):
    workdir = home / treatment
    out, _ = run_here(*train(workdir, f"--config.imbalance={treatment}"))
    said = {
        "over_sample": "the most repeated image appears",
        "smote": "classifier: fitted to",
        "decoupled": "classifier: fitted to",
    }
    assert said[treatment] in out
    same_split = (finished[0] / "splits.csv").read_text()
    assert (workdir / "splits.csv").read_text() == same_split  # Nobody changed sides.
    first, again = (
        pd.read_csv(w / "predictions/test.csv") for w in (finished[0], workdir)
    )
    assert (first["image"] == again["image"]).all()
    assert not np.allclose(first["mass"], again["mass"])
