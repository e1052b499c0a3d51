"""evaluate --corrupt, and predict's warnings, through the commands."""

import importlib
import json

import cv2
import numpy as np
import pandas as pd
import pytest

from medjax import tasks
from medjax.cohort import manifests
from medjax.commands import evaluate, predict
from medjax.commands.evaluate import EvaluatedImages
from medjax.config import config_as_json, read_config
from medjax.errors import InputError
from medjax.evaluation.corruptions import CORRUPTIONS
from medjax.tasks import films, fixed, new_images, parts, splitting
from medjax.training import workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt nothing: what is asked here is not how well it does."""
    folder = tmp_path_factory.mktemp("corrupting")
    c = importlib.import_module("configs.quickstart").get_config()
    c.data.update(patients=24, side=32, records=str(folder / "records"))
    c.data.prevalence = (0.3,) * 6
    c.split.update(test=0.4, validation=0.2, duplicates="warn")
    c.model.blocks = (1, 1)
    c.evaluation.update(replicates=20, batch=16, checkpoint="last", gallery=0)
    c.evaluation.calibration = "none"
    data, folder = films.data(c), folder / "run"
    workdir.claim(folder, config_as_json(c))
    workdir.write_task(folder, data.output)
    manifest = splitting.split(c, data)
    manifests.write(manifest, folder / "splits.csv")
    trains = manifest["id"][manifest["split"] == "train"].to_numpy()
    new_images.record_novelty(folder, data, trains)
    network = parts.classifier(c, data.output)
    state = parts.initial_state(
        *(c, network, data.output, data.label(trains)),
        variables=parts.fresh(c, network),
    )
    with parts.checkpoints(c, folder / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {"images": 0})
    points = dict.fromkeys(data.output.names, 0.5)
    fixed.write(
        folder,
        fixed.Fixed(1, points, **fixed.operating(c), calibration=fixed.UNCALIBRATED),
    )
    return folder


@pytest.mark.slow
def test_corrupted_films_are_reported_and_the_page_renewed(run, capsys):
    (run / "report.json").write_text("{}")  # As if it had been evaluated.
    found = evaluate.beside("--corrupt", run, EvaluatedImages(split="test"), most=9)
    assert found["films"] == 9 and found["corruptions"].keys() == CORRUPTIONS.keys()
    report = json.loads((run / "report.json").read_text())
    assert report["robustness"] == json.loads(json.dumps(found))
    assert list(report["subgroups"]) == ["sex", "age", "view"]
    films = [g["films"] for g in report["subgroups"]["sex"]["groups"].values()]
    assert sum(films) == report["films"]
    assert (run / "robustness.csv").exists()
    assert "Robustness" in (run / "report.html").read_text()
    assert "severity" in capsys.readouterr().out
    assert found["clean"]["auroc"]["estimate"] is not None
    worst = found["mean"][4]
    assert 0 <= worst["agreement"]["estimate"] <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", 2),
        ("calibration", "platt"),
        ("rule", "cost"),
        ("value", 0.9),
        ("source", "nih"),
    ],
)
def test_robustness_of_other_choices_or_data_is_no_part_of_the_page(
    run, field, value, capsys
):
    path = run / "robustness.json"
    stamps = evaluate._stamps(tasks.TASKS["multilabel"].finished(run), "phantom")
    written = stamps["robustness"] | {"films": 9}
    assert written[field] != value
    path.write_text(json.dumps(written))
    assert evaluate._earlier(run, "test", stamps) == {"robustness": written}
    path.write_text(json.dumps(written | {field: value}))
    assert evaluate._earlier(run, "test", stamps) == {}
    assert "left out of the page" in capsys.readouterr().out
    path.unlink()


def test_another_split_has_files_of_its_own_and_an_unknown_one_is_refused(run):
    evaluate.beside("--corrupt", run, EvaluatedImages(split="validation"), most=3)
    assert (run / "robustness-validation.json").exists()
    with pytest.raises(InputError, match="--split='tset' is unknown"):
        evaluate.beside("--corrupt", run, EvaluatedImages(split="tset"))


def test_predict_warns_of_images_unlike_the_training_films(run, tmp_path, capsys):
    config = read_config(run)
    film = films.data(config).films(np.arange(1))[0]["image"][..., 0]
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (64, 64, 3), np.uint8)
    for name, pixels in (("film", film), ("inverted", 255 - film), ("photo", photo)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    out = tmp_path / "p.csv"
    predict.predict(run, images=[str(tmp_path)], out=out)
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table.columns)[-1] == "warning"
    warned = dict(zip(table["image"].str.extract(r"(\w+)\.png")[0], table["warning"]))
    assert warned["film"] == ""
    assert "inverted" in warned["inverted"] and "colour" in warned["photo"]
    assert "warnings: 2 of 3 images" in capsys.readouterr().out


def test_the_training_films_are_looked_at_once(run):
    known = json.loads((run / new_images.NOVELTY).read_text())
    manifest = manifests.read(run / "splits.csv")
    assert known["films"] == (manifest["split"] == "train").sum()
    before = (run / new_images.NOVELTY).stat().st_mtime_ns
    new_images.record_novelty(run, films.data(read_config(run)), np.array([0]))
    assert (run / new_images.NOVELTY).stat().st_mtime_ns == before
