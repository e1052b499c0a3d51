"""A user's own data, volumes and real films through the commands."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import small
from launching import NIH, SMALL, run_here, small_films
from sklearn import metrics as oracle

from configs import table as table_config
from medjax.tasks import films, splitting, survey


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


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


CLASSES = """
from configs import table

def get_config():
    c = table.get_config()
    c.model.update(blocks=(1, 1), growth=8, features=8)
    return c
"""


def test_a_users_own_classes_need_no_code(home, shapes, tmp_path):
    folder, table = shapes
    workdir = home / "classes"
    (tmp_path / "classes.py").write_text(CLASSES)
    out, _ = run_here(
        "train",
        f"--config={tmp_path / 'classes.py'}",
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
        "--config.evaluation.gallery=0",
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
    run_here("predict", f"--workdir={workdir}", f"--images={folder}", f"--out={out}")
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


VOLUMES = """
from configs import medmnist

def get_config():
    c = medmnist.get_config()
    c.model.update(blocks=(1, 1), growth=4, features=4)
    c.augment.ops = ("brightness",)
    return c
"""
RECIPE = """
from configs import nih_densenet121

def get_config():
    c = nih_densenet121.get_config()
    c.model = {"name": "densenet_small", "blocks": (1, 1)}
    return c
"""


@pytest.mark.slow
def test_volumes_with_official_splits_train_and_are_judged(home, tmp_path):
    (tmp_path / "volumes.py").write_text(VOLUMES)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 24), ("val", 12), ("test", 12)):
        label = np.arange(size) % 2
        images = rng.integers(0, 100, (size, 16, 16, 16), dtype=np.uint8)
        images[label == 1, 4:10, 4:10, 4:10] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": label[:, None]}
    np.savez(tmp_path / "cubes.npz", **arrays)
    workdir = home / "volumes"
    run_here(
        "train",
        f"--config={tmp_path / 'volumes.py'}",
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
    _, err = run_here("predict", f"--workdir={workdir}", "--images=x.png", code=2)
    assert "volumes" in err


def test_explore_says_who_is_in_the_study_and_if_the_split_is_sound(tmp_path):
    workdir = tmp_path / "explored"
    out, _ = run_here("explore", *SMALL, f"--workdir={workdir}")
    assert f"explored: {workdir / 'explore.html'}" in out
    facts = json.loads((workdir / "explore.json").read_text())
    assert facts["images"] == 240
    assert facts["split"]["sound"] is True
    pixels = [film["pixels"] for film in small_films()]
    mean = facts["pixels"]["before"][0]["mean"]
    assert mean == pytest.approx(np.mean(pixels, dtype=float))
    config = small.get_config()
    config.split.by = "image"
    data = films.data(config)
    leaky = survey.verdict(config, data, splitting.split(config, data))
    assert leaky["sound"] is False and "results flatter" in leaky["verdict"]


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
    _, err = run_here("train", *arguments, code=2)
    assert "copy" in err and "split.duplicates" in err
    config = table_config.get_config()
    config.data.update(folder=str(folder), records=str(tmp_path / "records"))
    config.data.update(image="file", patient="who", classes="shape", side=40)
    config.task = "multiclass"
    data = films.data(config)
    manifest = splitting.split(config, data)
    pairs = survey.pairs(data, manifest)  # Of the page of `explore`.
    assert {pair["other_image"] for pair in pairs} >= set(new["file"])
    assert survey.verdict(config, data, manifest)["sound"] is False


@pytest.mark.slow
def test_explore_reads_real_films(home, tmp_path):
    if not NIH.exists():
        pytest.skip("needs shared/data/nih-sample beside the checkout")
    run_here(
        "explore",
        "--config=configs/nih_sample.py",
        f"--workdir={tmp_path}",
        f"--config.data.folder={NIH}",
        f"--config.data.records={home / 'records'}",
    )
    facts = json.loads((tmp_path / "explore.json").read_text())
    assert facts["images"] == 700
    assert facts["duplicates"] == facts["quarantine"] == []


def assert_scikit_learns(report, predictions):
    """Every task's numbers are what scikit-learn says of the written predictions."""
    judged = 0
    for task, found in report["tasks"].items():
        label, score = predictions[f"{task}_label"], predictions[task].to_numpy()
        expected = {}
        if label.nunique() == 2:
            judged += 1
            expected["auroc"] = oracle.roc_auc_score(label, score)
            expected["partial_auroc"] = oracle.roc_auc_score(label, score, max_fpr=0.1)
            expected["average_precision"] = oracle.average_precision_score(label, score)
        if found["threshold"] is not None:
            said = score.astype(np.float32) >= np.float32(found["threshold"])
            expected["prevalence"] = label.mean()
            expected["accuracy"] = oracle.accuracy_score(label, said)
            matrix = oracle.confusion_matrix(label, said, labels=[0, 1])
            assert matrix.ravel().tolist() == [
                found["confusion"][name] for name in ("tn", "fp", "fn", "tp")
            ]
        for name, value in expected.items():
            estimate = found["metrics"][name]["estimate"]
            assert estimate == pytest.approx(value, abs=1e-6), (task, name)
    assert judged > 5


@pytest.mark.slow
def test_the_full_recipe_runs_three_steps_on_real_films(home):
    if not NIH.exists():
        pytest.skip("needs shared/data/nih-sample beside the checkout")
    workdir = home / "full"
    # bench_step.py runs DenseNet-121 itself; to compile it takes two minutes here.
    (home / "recipe.py").write_text(RECIPE)
    run_here(
        "train",
        f"--config={home / 'recipe.py'}",
        f"--workdir={workdir}",
        f"--config.data.folder={NIH}",
        f"--config.data.records={home / 'records'}",
        "--config.data.side=64",
        "--config.imbalance=none",  # Of Hernia the sample holds three films.
        "--config.train.steps=3",
        "--config.train.batch=4",
        "--config.evaluation.batch=16",
        "--config.evaluation.flip=False",
        "--config.evaluation.replicates=20",
    )
    report = json.loads((workdir / "report.json").read_text())
    assert len(report["tasks"]) == 14
    assert_scikit_learns(report, pd.read_csv(workdir / "predictions" / "test.csv"))
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 3
    shutil.rmtree(workdir)
