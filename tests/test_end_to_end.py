"""The commands, as a user types them, on a phantom small enough for a test."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NIH = ROOT.parent / "shared/data/nih-sample"
SMALL = [
    "--config=configs/quickstart.py",
    "--config.data.patients=120",
    "--config.data.side=48",
    "--config.data.prevalence=(0.2,0.2,0.3,0.3,0.2,0.2)",
    "--config.train.steps=12",
    "--config.train.batch=8",
    "--config.train.evaluate_every=5",
    "--config.train.log_every=2",
    "--config.evaluation.replicates=50",
    "--config.explore=False",
]


def start(*arguments, devices=1):
    """Starts a command in a process of its own, on one device."""
    environment = dict(os.environ, XLA_FLAGS="")
    if devices > 1:
        forced = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = forced
    return subprocess.Popen(
        [sys.executable, "launch.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, code=0, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def train(home, workdir, *more):
    records = f"--config.data.records={home / 'records'}"
    return ["train", f"--workdir={workdir}", *SMALL, records, *more]


def films_of(records):
    """Every film of the phantoms there."""
    import tensorflow_datasets as tfds

    return [
        film
        for path in (records / "images").glob("phantom-*/1.0.0")
        for film in tfds.builder_from_directory(str(path)).as_data_source("films")
    ]


@pytest.fixture(scope="module")
def finished(home):
    workdir = home / "whole"
    out, _ = run(*train(home, workdir))
    return workdir, out


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
    for task, found in report["tasks"].items():
        label, score = predicted[f"{task}_label"], predicted[task]
        expected = roc_auc_score(label, score)
        assert abs(found["metrics"]["auroc"]["estimate"] - expected) < 1e-5


@pytest.mark.parametrize("killer", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_ends_with_the_same_bits(home, finished, killer):
    workdir = home / f"stopped{killer}"
    process = start(*train(home, workdir))
    log = workdir / "metrics.jsonl"
    while process.poll() is None and not (
        log.exists() and log.read_text().count("\n") > 3
    ):
        time.sleep(0.05)
    process.send_signal(killer)
    out, err = process.communicate(timeout=120)
    if killer == signal.SIGTERM:
        assert process.returncode == 0, out + err
        assert "the same command goes on from here" in out
    assert not (workdir / "report.html").exists()
    run(*train(home, workdir))
    same(final_state(workdir), final_state(finished[0]))
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    scores = [line["step"] for line in lines if "validation_auroc" in line]
    assert scores == [5, 10, 12]
    names = ("report.json", "predictions/test.csv", "splits.csv", "thresholds.json")
    for name in names:
        assert (workdir / name).read_text() == (finished[0] / name).read_text()


def test_two_devices_learn_what_one_does(home, finished):
    workdir = home / "two"
    run(*train(home, workdir), devices=2)
    one, two = final_state(finished[0])[1], final_state(workdir)[1]
    assert one["data"]["next_index"] == two["data"]["next_index"]
    for name in ("predictions/test.csv", "predictions/validation.csv"):
        a, b = (pd.read_csv(w / name) for w in (finished[0], workdir))
        assert (a["image"] == b["image"]).all()
        # The sums' order differs, and twelve steps of Adam amplify it.
        np.testing.assert_allclose(a["mass"], b["mass"], atol=0.02)


def test_another_config_in_the_same_workdir_is_refused(home, finished):
    changed = "--config.optim.learning_rate=1.0"
    _, err = run(*train(home, finished[0], changed), code=2)
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
        ([], "prepare, explore, train, evaluate or predict"),
        (["evaluate", "--workdir=nowhere"], "nowhere"),
        (["predict", "--workdir=nowhere", "--images=x"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said):
    _, err = run(*arguments, code=2)
    assert said in err
    assert err.strip().count("\n") == 0


def test_evaluate_reports_another_split_and_other_people(home, finished):
    workdir, _ = finished
    run("evaluate", f"--workdir={workdir}", "--split=validation")
    assert (workdir / "report-validation.html").exists()
    records = f"--config.data.records={home / 'records'}"
    strangers = "--config.data.first_patient=5000"
    out, _ = run(
        "evaluate",
        f"--workdir={workdir}",
        "--split=strangers",
        *SMALL,
        records,
        strangers,
    )
    assert "occur in training" not in out
    report = json.loads((workdir / "report-strangers.json").read_text())
    assert report["films"] == 240
    predicted = pd.read_csv(workdir / "predictions/strangers.csv")
    assert predicted["patient"].min() == 5000


def test_the_augmentations_of_a_run_are_audited(finished):
    workdir, _ = finished
    out, _ = run("explore", "--audit-augment", f"--workdir={workdir}")
    assert f"augmentations: {workdir / 'augment.html'}" in out
    audit = json.loads((workdir / "augment.json").read_text())
    assert list(audit["ops"]) == ["random_affine", "brightness", "contrast"]
    validation = pd.read_csv(workdir / "predictions/validation.csv")
    assert audit["images"] == len(validation)
    for found in audit["ops"].values():
        assert [one["strength"] for one in found["at"]] == audit["strengths"]
        moved = [sum(t["moved"] for t in one["tasks"].values()) for one in found["at"]]
        assert moved[0] < moved[-1]  # The stronger the change, the more it moves.


def test_predict_gives_the_probabilities_of_the_evaluation(home, finished, tmp_path):
    import cv2

    workdir, _ = finished
    films = films_of(home / "records")
    expected = pd.read_csv(workdir / "predictions/test.csv").set_index("image")
    folder = tmp_path / "films"
    folder.mkdir()
    names = []
    for film in films:
        name = film["image"].decode()
        if name in expected.index and len(names) < 9:
            names.append(name)
            cv2.imwrite(str(folder / f"{name}.png"), film["pixels"])
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out" / "p.csv"
    _, err = run(
        "predict", f"--workdir={workdir}", f"--images={folder}", f"--out={out}", code=3
    )
    assert "broken.png" in err
    with out.open() as file:
        rows = list(csv.DictReader(file))
    tasks = list(json.loads((workdir / "thresholds.json").read_text())["tasks"])
    assert list(rows[0]) == ["image", *tasks]
    assert [row["image"] for row in rows] == [
        str(folder / f"{n}.png") for n in sorted(names)
    ]
    for row in rows:
        name = Path(row["image"]).stem
        got = [float(row[task]) for task in tasks]
        np.testing.assert_allclose(got, expected.loc[name, tasks].to_list(), atol=1e-4)


def test_explore_says_who_is_in_the_study_and_if_the_split_is_sound(tmp_path):
    records = f"--config.data.records={tmp_path}"
    workdir = tmp_path / "explored"
    out, _ = run("explore", *SMALL, records, f"--workdir={workdir}")
    assert f"explored: {workdir / 'explore.html'}" in out
    facts = json.loads((workdir / "explore.json").read_text())
    assert facts["images"] == 240
    assert facts["split"]["sound"] is True
    pixels = [film["pixels"] for film in films_of(tmp_path)]
    mean = facts["pixels"]["before"][0]["mean"]
    assert mean == pytest.approx(np.mean(pixels, dtype=float))
    run("explore", *SMALL, records, f"--workdir={workdir}", "--config.split.by=image")
    facts = json.loads((workdir / "explore.json").read_text())
    assert facts["split"]["sound"] is False


def test_one_picture_under_two_names_is_shown_and_refused(shapes, tmp_path):
    import cv2

    folder = tmp_path / "copied"
    shutil.copytree(shapes[0], folder)
    table = pd.read_csv(folder / "labels.csv")
    new = []
    for n in range(6):  # Six others bring a mirrored, re-encoded film of six patients.
        picture = cv2.imread(str(folder / f"pictures/{10 * n:03d}.png"))
        cv2.imwrite(str(folder / f"pictures/copy{n}.jpg"), picture[:, ::-1])
        new.append([f"pictures/copy{n}.jpg", f"other {n}", table["shape"][10 * n]])
    new = pd.DataFrame(new, columns=table.columns)
    pd.concat([table, new]).to_csv(folder / "labels.csv", index=False)
    arguments = [
        "--config=configs/table.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.folder={folder}",
        f"--config.data.records={tmp_path / 'records'}",
        "--config.data.image=file",
        "--config.data.patient=who",
        "--config.data.classes=shape",
        "--config.data.side=40",
        "--config.task=multiclass",
        "--config.loss.name=softmax_cross_entropy",
    ]
    run("explore", *arguments)
    facts = json.loads((tmp_path / "run/explore.json").read_text())
    assert {pair["other_image"] for pair in facts["duplicates"]} >= set(new["file"])
    assert facts["split"]["sound"] is False
    _, err = run("train", *arguments, code=2)
    assert "copy" in err and "split.duplicates" in err


@pytest.mark.slow
def test_explore_reads_real_films(home, tmp_path):
    if not NIH.exists():
        pytest.skip("needs shared/data/nih-sample beside the checkout")
    run(
        "explore",
        "--config=configs/nih_sample.py",
        f"--workdir={tmp_path}",
        f"--config.data.folder={NIH}",
        f"--config.data.records={home / 'records'}",
    )
    facts = json.loads((tmp_path / "explore.json").read_text())
    assert facts["images"] == 700
    assert facts["duplicates"] == facts["quarantine"] == []


@pytest.mark.parametrize("treatment", ["over_sample", "smote"])
def test_imbalance_is_treated_by_one_word(home, finished, treatment):
    workdir = home / treatment
    out, _ = run(*train(home, workdir, f"--config.imbalance={treatment}"))
    said = {"over_sample": "the most repeated film appears", "smote": "fitted again"}
    assert said[treatment] in out
    same_split = (finished[0] / "splits.csv").read_text()
    assert (workdir / "splits.csv").read_text() == same_split  # Nobody changed sides.
    first, again = (
        pd.read_csv(w / "predictions/test.csv") for w in (finished[0], workdir)
    )
    assert (first["image"] == again["image"]).all()
    assert not np.allclose(first["mass"], again["mass"])


@pytest.fixture(scope="module")
def shapes(home):
    """A user's own data: colour pictures of three classes, and one unknown."""
    import cv2

    folder, rng = home / "shapes", np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for n in range(160):
        kind = ["disc", "square", "stripes"][rng.choice(3, p=[0.2, 0.3, 0.5])]
        picture = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        x, y = map(int, rng.integers(14, 26, 2))
        colour = (255, 200, 100)
        if kind == "disc":
            cv2.circle(picture, (x, y), 10, colour, -1)
        elif kind == "square":
            cv2.rectangle(picture, (x - 9, y - 9), (x + 9, y + 9), colour, -1)
        else:
            picture[:, x % 5 :: 5] = colour
        cv2.imwrite(str(folder / "pictures" / f"{n:03d}.png"), picture)
        rows.append([f"pictures/{n:03d}.png", f"person {n // 2}", kind if n else ""])
    table = pd.DataFrame(rows, columns=["file", "who", "shape"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder, table


def test_a_users_own_classes_need_no_code(home, shapes, tmp_path):
    folder, table = shapes
    workdir = home / "classes"
    out, _ = run(
        "train",
        "--config=configs/table.py",
        f"--workdir={workdir}",
        f"--config.data.folder={folder}",
        f"--config.data.records={home / 'records'}",
        "--config.data.image=file",
        "--config.data.patient=who",
        "--config.data.classes=shape",
        "--config.data.channels=3",
        "--config.data.side=32",
        "--config.task=multiclass",
        "--config.loss.name=softmax_cross_entropy",
        "--config.imbalance=balanced",
        "--config.model.stem=half",
        "--config.train.steps=60",
        "--config.train.batch=16",
        "--config.train.evaluate_every=60",
        "--config.evaluation.replicates=50",
        "--config.explore=False",
    )
    assert "Balanced accuracy" in out
    report = json.loads((workdir / "report.json").read_text())
    matrix = np.array(report["classes"]["matrix"])
    predicted = pd.read_csv(workdir / "predictions/test.csv")
    names = ["disc", "square", "stripes"]
    np.testing.assert_allclose(predicted[names].sum(axis=1), 1, atol=1e-5)
    assert matrix.sum() == predicted[f"{names[0]}_label"].notna().sum()
    right = (matrix.diagonal().sum()) / matrix.sum()
    assert report["classes"]["rates"]["accuracy"]["estimate"] == pytest.approx(right)
    assert right > 0.8  # Chance is a half.

    out = tmp_path / "p.csv"
    run("predict", f"--workdir={workdir}", f"--images={folder}", f"--out={out}")
    said = pd.read_csv(out)
    assert (said["class"] == said[names].idxmax(axis=1)).all()
    true = table["shape"].to_numpy()[1:]
    assert (said["class"].to_numpy()[1:] == true).mean() > 0.8
    merged = predicted.assign(image=[str(folder / x) for x in predicted["image"]])
    both = merged.merge(said, on="image", suffixes=("", "_again"))
    assert len(both) == len(predicted)
    np.testing.assert_allclose(
        both[names], both[[f"{n}_again" for n in names]], atol=1e-4
    )


def test_volumes_with_official_splits_train_and_are_judged(home, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 24), ("val", 12), ("test", 12)):
        label = np.arange(size) % 2
        images = rng.integers(0, 100, (size, 16, 16, 16), dtype=np.uint8)
        images[label == 1, 4:10, 4:10, 4:10] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": label[:, None]}
    np.savez(tmp_path / "cubes.npz", **arrays)
    workdir = home / "volumes"
    run(
        "train",
        "--config=configs/medmnist.py",
        f"--workdir={workdir}",
        f"--config.data.file={tmp_path / 'cubes.npz'}",
        f"--config.data.records={home / 'records'}",
        "--config.data.side=16",
        "--config.train.steps=4",
        "--config.train.batch=4",
        "--config.train.evaluate_every=4",
        "--config.evaluation.replicates=20",
        "--config.explore=False",
    )
    report = json.loads((workdir / "report.json").read_text())
    assert report["films"] == 12
    assert list(report["tasks"]) == ["0", "1"]
    _, err = run("predict", f"--workdir={workdir}", "--images=x.png", code=2)
    assert "volumes" in err


@pytest.mark.slow
def test_the_full_recipe_runs_three_steps_on_real_films(home):
    if not NIH.exists():
        pytest.skip("needs shared/data/nih-sample beside the checkout")
    workdir = home / "densenet121"
    run(
        "train",
        "--config=configs/nih_densenet121.py",
        f"--workdir={workdir}",
        f"--config.data.folder={NIH}",
        f"--config.data.records={home / 'records'}",
        "--config.imbalance=none",  # Of Hernia the sample holds three films.
        "--config.train.steps=3",
        "--config.train.batch=4",
        "--config.evaluation.batch=16",
        "--config.evaluation.replicates=20",
    )
    report = json.loads((workdir / "report.json").read_text())
    assert len(report["tasks"]) == 14
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 3
    shutil.rmtree(workdir)
