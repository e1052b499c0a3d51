"""Heatmaps through the commands, and the boxes' way from a file to the heatmap."""

import importlib
import json
import shutil

import cv2
import launching
import numpy as np
import pandas as pd
import pytest
from conftest import Page
from scipy.special import expit

from medjax import tasks
from medjax.cohort import manifests
from medjax.commands import evaluate, explore, predict
from medjax.commands.evaluate import EvaluatedImages
from medjax.config import Config, config_as_json, read_config
from medjax.errors import InputError
from medjax.evaluation import inference, localisation, recalibration
from medjax.tasks import explain, films, fixed, new_images, parts, splitting
from medjax.training import workdir

BOXED = {  # In pixels of 1024 x 1024, as NIH's list has them: x, y, w, h.
    "00000000_000.png": [],
    "00000001_000.png": [("Mass", 128, 512, 256, 128)],
    "00000002_000.png": [("Mass", 640, 64, 192, 320), ("Mass", 64, 768, 128, 128)],
    "00000003_000.png": [("Infiltrate", 320, 320, 64, 512)],
}


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    """Films laid out as ChestX-ray14, white inside their boxes and black outside."""
    folder = tmp_path_factory.mktemp("nih")
    (folder / "images").mkdir()
    rows, boxes = [], []
    for n, (name, own) in enumerate(BOXED.items()):
        film = np.zeros((256, 128), np.uint8)  # Half as wide as it is high.
        for task, x, y, w, h in own:
            film[y // 4 : (y + h) // 4, x // 8 : (x + w) // 8] = 255
            boxes.append([name, task, x, y, w, h])
        cv2.imwrite(str(folder / "images" / name), film)
        rows.append([name, "Mass", 0, n, 50, "F", "PA", 1024, 1024, 0.1, 0.1])
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,"
    columns += "Patient Gender,View Position,OriginalImage[Width,Height],"
    columns += "OriginalImagePixelSpacing[x,y]"
    pd.DataFrame(rows, columns=columns.split(",")).to_csv(
        folder / "Data_Entry_2017.csv", index=False
    )
    columns = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    pd.DataFrame(boxes, columns=columns).to_csv(
        folder / "BBox_List_2017.csv", index=False
    )
    config = importlib.import_module("configs.nih_sample").get_config()
    config.data.update(folder=str(folder), records=str(folder / "records"), side=64)
    config.data.tasks = ("infiltration", "Mass")
    return config


def test_a_heatmap_that_is_the_film_fills_the_boxes_drawn_in_it(nih):
    data = films.data(nih)
    ids = data.table["id"].to_numpy()
    boxes = explain.read_boxes(data, ids)
    assert sorted(boxes["task"]) == [0, 1, 1, 1]

    def itself(image):  # [D, B, H, W, 1] -> [D, B, T, H, W]
        return np.repeat(np.moveaxis(image, -1, 2), 2, axis=2) / 255

    marked = explain._marked(nih, itself, data, np.unique(boxes["id"]), boxes)
    assert sorted(map(len, marked.boxes)) == [1, 1, 2]
    assert sorted(marked.task) == [0, 1, 1] and len(set(marked.patient)) == 3
    found = localisation.measure(marked)
    for name, value in (("pointing", 1), ("iou", 1)):
        column = found[:, localisation.SCORES.index(name)]
        np.testing.assert_allclose(column, value, atol=1e-6)
    for table in (boxes["id"] == 99, boxes["task"] == 0):  # Only the asked films.
        left = explain.read_boxes(data, boxes["id"][table])
        assert len(left) == (table & (boxes["task"] == 0)).sum()


def finished(folder):
    return tasks.of(read_config(folder)).finished(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt nothing: what is asked here is not where it looks."""
    folder = tmp_path_factory.mktemp("explaining")
    c = importlib.import_module("configs.quickstart").get_config()
    c.data.update(patients=24, side=32, records=str(folder / "records"))
    c.data.prevalence = (0.3,) * 6
    c.split.update(test=0.4, validation=0.2, duplicates="warn")
    c.model.blocks = (1, 1)
    c.evaluation.update(replicates=20, batch=16, checkpoint="last")
    data = films.data(c)
    workdir.claim(folder / "run", config_as_json(c))
    workdir.write_task(folder / "run", data.output)
    manifests.write(splitting.split(c, data), folder / "run/splits.csv")
    new_images.record_novelty(folder / "run", data, data.table["id"].to_numpy())
    network = parts.classifier(c, data.output)
    state = parts.initial_state(
        *(c, network, data.output, data.label(data.table["id"].to_numpy())),
        variables=parts.fresh(c, network),
    )
    with parts.checkpoints(c, folder / "run/checkpoints") as checkpoints:
        checkpoints.save(1, state, {"images": 0})
    points = dict.fromkeys(data.output.names, 0.5)
    fit = recalibration.Logistic((0.7,) * 6, (0.3,) * 6)
    calibration = fixed.Calibration("platt", fit, "validation", 24, {})
    chosen = fixed.Fixed(1, points, "youden", None, calibration)
    fixed.write(folder / "run", chosen)
    return folder / "run"


@pytest.mark.parametrize(
    ("method", "stage", "size"),
    [
        ("grad_cam", None, 8),
        pytest.param("grad_cam_plus_plus", "stem", 16, marks=pytest.mark.slow),
    ],
)
def test_localisation_is_reported_of_every_marked_film(run, method, stage, size):
    found = evaluate.beside(
        "--localise", run, EvaluatedImages(split="test"), method=method, stage=stage
    )
    written = json.loads((run / "localisation.json").read_text())
    assert found == written
    assert (found["method"], found["stage"]) == (method, stage or "stage2")
    assert (found["checkpoint"], found["source"]) == (1, "phantom")
    one = finished(run)
    data, manifest = films.data(one.config), manifests.read(run / "splits.csv")
    tested = data.table["id"].isin(manifest["id"][manifest["split"] == "test"])
    for task in data.output.names:
        pairs = data.table[task][tested].sum()
        assert pairs == (found["tasks"][task]["pairs"] if pairs else 0)
    for one in found["tasks"].values():
        assert 0 <= one["iou"]["estimate"] <= 1 and 0 < one["iou"]["chance"] < 1
    assert found["all"]["pairs"] == sum(t["pairs"] for t in found["tasks"].values())
    layers = list(found["randomisation"]["correlation"])
    assert layers == ["classifier", "stage2", "stage1", "stem"]
    one = finished(run)
    explainer = explain.explainer(one, method=method, stage=stage)
    batches = splitting.evaluation_batches(one.config, data.films(np.arange(3)))
    assert inference.embed(batches, explainer).shape == (3, 6, size, size)


@pytest.mark.slow
def test_other_people_s_films_can_be_localised_too(run):
    other = read_config(run)
    other.data.update(patients=8, first_patient=500)
    found = evaluate.beside(
        "--localise",
        run,
        EvaluatedImages(split="strangers", other=other),
        method="grad_cam",
    )
    assert (run / "localisation-strangers.json").exists()
    assert found["all"]["patients"] <= 8
    report = evaluate.evaluate(run, EvaluatedImages(split="strangers", other=other))
    assert report["external"] and report["localisation"] == found
    page = (run / "report-strangers.html").read_text()
    assert 'id="films"' in page and page.count("data:image/") > 8  # Its own gallery.
    assert "Other hospitals, scanners and populations were not tested" not in page
    assert "images evaluated on this page are not in it" in page


def test_a_prediction_is_explained_by_pictures(run, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "films" / part / "same name.png" for part in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 60), np.uint8))
    (tmp_path / "films/broken.png").write_bytes(b"no image")
    out, maps = tmp_path / "p.csv", tmp_path / "maps"
    unread = predict.predict(
        run, images=[str(tmp_path / "films")], out=out, explain=maps
    )
    assert len(unread) == 1
    with pytest.raises(OSError, match="p.csv"):  # Before anything is predicted.
        images = [str(tmp_path / "films")]
        predict.predict(run, images=images, out=tmp_path / "q.csv", explain=out)
    assert not (tmp_path / "q.csv").exists()
    index = pd.read_csv(maps / "index.csv")
    assert sorted(p.name for p in maps.glob("*.png")) == sorted(index["heatmap"])
    one = finished(run)
    thresholds = dict(zip(one.output.names, one.thresholds, strict=True))
    for _, row in pd.read_csv(out).iterrows():
        own = index[index["image"] == row["image"]].set_index("task")
        above = [t for t, point in thresholds.items() if row[t] >= point]
        top = max(thresholds, key=lambda t: row[t])
        assert list(own.index) == (above or [top])
        for task in own.index:
            assert own["probability"][task] == pytest.approx(row[task])
    for name in index["heatmap"]:
        assert cv2.imread(str(maps / name)) is not None


def test_what_a_run_predicts_is_calibrated_as_its_operating_points_are(run):
    one = finished(run)
    image = films.data(one.config).films(np.arange(4))
    image = np.stack([film["image"] for film in image]).reshape(2, 2, 32, 32, 1)
    raw = np.asarray(one.network.predict(one.state, image), float)
    expected = expit(0.7 * raw + 0.3)
    np.testing.assert_allclose(
        one.fixed.calibrated(expit(one.log_odds(image))), expected, atol=1e-6
    )


def test_frozen_choices_of_another_config_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    config["evaluation"]["calibration"] = "isotonic"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="calibration 'platt', not.*evaluate"):
        finished(tmp_path / "run")


def test_the_flags_reach_the_commands(run, tmp_path):
    out, _ = launching.run_here(
        *("evaluate", f"--workdir={run}", "--localise", "--split=validation"),
        *("--method=grad_cam_plus_plus", "--stage=stem"),
    )
    assert "grad_cam_plus_plus of stem" in out
    assert f"localisation: {run / 'localisation-validation.json'}" in out
    cv2.imwrite(str(tmp_path / "film.png"), np.eye(30, dtype=np.uint8) * 255)
    out, _ = launching.run_here(
        *("predict", f"--workdir={run}", f"--images={tmp_path / 'film.png'}"),
        *(f"--out={tmp_path / 'p.csv'}", f"--explain={tmp_path / 'maps'}"),
    )
    assert f"heatmaps: {tmp_path / 'maps'}" in out
    assert len(list((tmp_path / "maps").glob("film-*.png"))) >= 1


@pytest.mark.parametrize(
    ("probability", "exclusive", "expected"),
    [
        ([0.9, 0.2, 0.6], False, [0, 2]),
        ([0.3, 0.2, 0.1], False, [0]),
        ([0.9, 0.2, 0.95], True, [2]),
    ],
)
def test_what_is_seen_is_drawn_or_else_the_likeliest(probability, exclusive, expected):
    points = np.array([0.5, np.nan, 0.5])
    found = explain._seen(np.array(probability), points, exclusive)
    assert found.tolist() == expected


@pytest.mark.slow
def test_the_page_shows_where_the_heatmaps_lie(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    config["evaluation"]["gallery"] = 0
    (run / "config.json").write_text(json.dumps(config))
    (run / "report.json").write_text("{}")  # As if it had been evaluated.
    found = evaluate.beside(
        "--localise", run, EvaluatedImages(split="test"), method="grad_cam"
    )
    report = json.loads((run / "report.json").read_text())
    assert report["localisation"] == json.loads(json.dumps(found))
    read = Page((run / "report.html").read_text()).text
    section = read[read.index("Localisation by heatmaps") :]
    for measure in ("pointing", "iou"):
        one = found["all"][measure]
        for value in (one["estimate"], one["chance"], one["others"]):
            assert f"{value:.3f}" in section
    path = run / "localisation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": 2}))
    evaluate.evaluate(run)
    assert "localisation" not in json.loads((run / "report.json").read_text())


def test_integrated_gradients_have_no_stage(run, monkeypatch):
    def compiled(**_):  # The method itself takes minutes, and is tested elsewhere.
        return lambda state, image: np.ones((*image.shape[:2], 6, 8, 8))

    monkeypatch.setattr(explain, "_compiled", compiled)
    how = {"method": "integrated_gradients"}
    found = evaluate.beside(
        "--localise", run, EvaluatedImages(split="validation"), **how
    )
    assert (found["method"], found["stage"]) == ("integrated_gradients", None)
    with pytest.raises(InputError, match="--stage=stem.*no stage"):
        explain.explainer(finished(run), method="integrated_gradients", stage="stem")


@pytest.mark.parametrize("how", [{"method": "lime"}, {"stage": "stage9"}])
def test_a_method_or_a_stage_that_is_not_there_is_one_line(run, how):
    with pytest.raises(InputError, match="is unknown: use"):
        explain.explainer(finished(run), **how)


def test_runs_of_one_network_share_what_was_compiled(run):
    first, second = (explain.explainer(finished(run)) for _ in range(2))
    assert first.args[0] is second.args[0]
    assert explain.explainer(finished(run), stage="stem").args[0] is not first.args[0]


def test_films_without_boxes_are_refused(run, monkeypatch):
    one = finished(run)
    data = films.data(one.config)
    with pytest.raises(InputError, match="no film"):
        explain.localise(one, data, np.array([], int))


def test_a_frozen_network_is_explained_as_any_other(run):
    one = finished(run)
    config = one.config.copy_and_resolve_references()
    config.transfer.mode = "features"
    frozen = one._replace(config=config, network=parts.classifier(config, one.output))
    assert frozen.network.frozen == ("stem", "stage1", "stage2")
    image = films.data(config).films(np.arange(4))
    image = np.stack([film["image"] for film in image]).reshape(4, 1, 32, 32, 1)
    expected, found = (
        np.asarray(explain.explainer(each, stage="stem")(image))
        for each in (one, frozen)
    )
    assert expected.any(axis=(1, 2, 3, 4)).all()  # Of each of the films.
    np.testing.assert_array_equal(found, expected)


def test_a_split_that_is_not_there_is_named(run):
    with pytest.raises(InputError, match="--split='tset' is unknown"):
        evaluate.beside("--localise", run, EvaluatedImages(split="tset"))
    with pytest.raises(InputError, match="its own name"):
        evaluate.beside(
            "--localise", run, EvaluatedImages(split="test", other=read_config(run))
        )


def test_masks_have_no_heatmaps(monkeypatch):
    config = Config({"task": "segmentation"})
    for module in (predict, evaluate, explore):
        monkeypatch.setattr(module, "read_config", lambda folder: config)
    with pytest.raises(InputError, match="--explain"):
        predict.predict("run", images=[], out=None, explain="maps")
    with pytest.raises(InputError, match="--localise: .*the masks themselves"):
        evaluate.beside("--localise", "run", EvaluatedImages(split="test"))
    with pytest.raises(InputError, match="--corrupt"):
        evaluate.beside("--corrupt", "run", EvaluatedImages(split="test"))
    with pytest.raises(InputError, match="--audit-augment"):
        explore.audit_augment("run")


def test_the_sides_of_the_split_are_kept_apart(run):
    manifest = manifests.read(run / "splits.csv")
    found = evaluate.beside("--localise", run, EvaluatedImages(split="validation"))
    patients = manifest["patient"][manifest["split"] == "validation"].nunique()
    assert 0 < found["all"]["patients"] <= patients
