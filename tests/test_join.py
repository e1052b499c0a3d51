"""Joined folds: one ensemble, whose choices and tests are on images that none has seen."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import small
from launching import SMALL, run_here
from scans import save_phantoms
from test_segmentation_commands import SMALL as phantoms
from test_segmentation_commands import small_config

from configs import base
from medjax.commands import evaluate, join, predict, train
from medjax.commands.evaluate import EvaluatedImages
from medjax.config import config_as_json
from medjax.errors import InputError
from medjax.tasks import scans, segmentation
from medjax.tasks.task import Finished
from medjax.training import workdir

FOLDS = 2
SIDES = ("train", "validation", "test", "unused")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("join")
    for fold in range(FOLDS):
        fields = f"--config.split.folds={FOLDS}", f"--config.split.fold={fold}"
        fields += "--config.split.seed=0", f"--config.seed={fold}"
        run_here("train", f"--workdir={home}/{fold}", *SMALL, *fields)
    out, _ = run_here("join", *runs(home), f"--workdir={home / 'joined'}")
    assert "test on other data" in out
    return home


def runs(home):
    return [f"--run={home / str(fold)}" for fold in range(FOLDS)]


def table(folder, split):
    return pd.read_csv(folder / f"predictions/{split}.csv").set_index("image")


def raw(folder, split):
    rows = table(folder, split)
    return rows[[name for name in rows if name.endswith("_raw")]].sort_index()


@pytest.mark.slow  # The quick tests have whose choices they are.
def test_choices_are_made_on_images_that_the_network_did_not_train_on(home):
    """The fold that tested the image; and the other one, where that validated on it."""
    sides = [(str(f), side) for f in range(FOLDS) for side in ("test", "validation")]
    expected = pd.concat([raw(home / fold, side) for fold, side in sides])
    assert 240 < len(expected) < 480
    expected = expected.groupby(level=0).mean()
    got = raw(home / "joined", "validation")
    assert len(got) == 240 and got.index.is_unique
    np.testing.assert_allclose(got, expected.loc[got.index], atol=1e-5)
    chosen = json.loads((home / "joined/calibration.json").read_text())
    assert chosen["films"] == 240


@pytest.mark.slow
def test_other_data_get_the_mean_of_all_folds(home):
    fields = "--config.data.first_patient=500000", "--config.data.patients=40"
    other = (*SMALL, *fields, "--split=others")
    for name in (*map(str, range(FOLDS)), "joined"):
        run_here("evaluate", f"--workdir={home / name}", *other)
    each = [raw(home / str(fold), "others") for fold in range(FOLDS)]
    assert np.abs(each[0] - each[1]).max().max() > 0.01
    got = raw(home / "joined", "others")
    np.testing.assert_allclose(got, (each[0] + each[1]) / 2, atol=1e-5)
    report = json.loads((home / "joined/report-others.json").read_text())
    assert report["ensemble"]["members"] == FOLDS


@pytest.mark.slow
def test_images_that_a_fold_has_seen_are_no_test(home):
    """A fold has not seen its own test patients; of the joined run, another has."""
    joined = f"--workdir={home / 'joined'}"
    own = (*SMALL, "--split=again")
    _, error = run_here("evaluate", joined, *own, code=2)
    assert "audit:" not in error  # Of its empty sides.
    assert "240 of 240 images were seen in training or validation" in error
    _, error = run_here("evaluate", joined, code=2)
    assert "nobody is in that split" in error


@pytest.fixture
def claimed(tmp_path):
    """The folders of two runs, as far as a refusal reads them."""
    for fold in range(FOLDS):
        config = small.get_config()
        config.split.update(folds=FOLDS, fold=fold, seed=0)
        workdir.claim(tmp_path / str(fold), config_as_json(config))
        (tmp_path / str(fold) / "task.json").write_text("{}")
        (tmp_path / str(fold) / "provenance.json").write_text('{"data": {}}')
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (
            "model.features",
            6,
            "features is 6, not 8: join runs that differ in seed and",
        ),
        ("data.contrast", 2.0, "config.data.contrast is 2.0, not 1.0"),
        ("evaluation.calibration", "prior", "other shares of the classes"),
        ("evaluation.error_rate", 0.1, "don't have the guarantee"),
        ("ensemble", 2, "join runs of one network each"),
    ],
)
def test_runs_that_do_not_fit_are_refused(claimed, field, value, reason):
    path = claimed / "1/config.json"
    config = json.loads(path.read_text())
    *above, last = field.split(".")
    section = config[above[0]] if above else config
    section[last] = value
    path.write_text(json.dumps(config))
    joined = f"--workdir={claimed / 'joined'}"
    _, error = run_here("join", *runs(claimed), joined, code=2)
    assert reason in error and str(claimed / "1") in error
    assert not (claimed / "joined").exists()


def test_one_run_or_a_folder_in_use_is_refused(claimed):
    (claimed / "link").symlink_to(claimed / "0")
    first = runs(claimed)[:1]
    for some in (first, first * 2, [*first, f"--run={claimed / 'link'}"]):
        _, error = run_here("join", *some, f"--workdir={claimed / 'new'}", code=2)
        assert "two or more runs" in error
    _, error = run_here("join", *runs(claimed), f"--workdir={claimed / '0'}", code=2)
    assert "isn't empty" in error


def test_no_image_of_any_training_is_tested_and_no_choice_is_on_a_trained_one():
    rng = np.random.default_rng(0)
    split = rng.choice(SIDES, (3, 400))
    ids = np.arange(400)
    rows = [
        pd.DataFrame({"id": ids, "image": ids, "patient": ids, "split": each})
        for each in split
    ]
    # Their order doesn't matter.
    manifest, held_out = join.sides([rows[0], rows[1].sample(frac=1), rows[2]])
    run = held_out.set_index("id")["run"]
    assert set(run.index) == set(ids[manifest["split"] == "validation"])
    for n, side in zip(ids, manifest["split"], strict=True):
        each = set(split[:, n])
        seen = each & {"train", "validation"}
        assert (side == "test") == (not seen and "test" in each)
        assert (side == "unused") == (each == {"unused"})
        assert (side == "train") == (each in ({"train"}, {"train", "unused"}))
        if side == "validation" and run[n] < 0:
            assert "train" not in each
        elif side == "validation":
            best = "test" if "test" in each else "validation"
            assert split[run[n], n] == best


def test_masks_rules_are_chosen_on_each_folds_own_volumes(tmp_path, monkeypatch):
    workdir.write_held_out(tmp_path, pd.DataFrame({"id": [4, 2, 7], "run": [1, 0, 1]}))
    asked = []

    def answers(config, network, state, data, ids):
        asked.append((state, ids.tolist()))
        return iter(())

    monkeypatch.setattr(segmentation, "answers", answers)
    config = base.segmentation()
    output = scans.MasksOutput((), {"lesion": (1,)})
    run = Finished(config, tmp_path, output, None, 5, ("first", "second"))
    segmentation.fix(run, scans.ScanData(*[None] * len(scans.ScanData._fields)), None)
    assert asked == [("first", [2]), ("second", [4, 7])]


@pytest.mark.slow
def test_joined_masks_are_of_the_mean_probability_with_rules_of_their_own(
    tmp_path, capsys
):
    """From the folds to files: joined, tested on other patients, and predicted."""
    config = small_config(tmp_path / "records")
    folds = [tmp_path / str(fold) for fold in range(FOLDS)]
    for fold, folder in enumerate(folds):
        config.split.update(folds=FOLDS, fold=fold, seed=0)
        config.seed = fold
        train.train(config, folder)
    joined, others = tmp_path / "joined", small_config(tmp_path / "records")
    join.join(folds, joined)
    others.data.update(first_patient=5000, patients=3)
    capsys.readouterr()
    results = evaluate.evaluate(joined, EvaluatedImages("others", others))
    assert "isn't of this model" not in capsys.readouterr().out
    assert (results["volumes"], results["ensemble"]["members"]) == (3, FOLDS)
    rules = json.loads((joined / "postprocessing.json").read_text())["regions"]
    assert results["posts"] == rules
    with pytest.raises(InputError, match="were seen in training or validation"):
        evaluate.evaluate(
            joined, EvaluatedImages("again", small_config(tmp_path / "records"))
        )

    save_phantoms(tmp_path / "raw", [7000], **phantoms)
    written = []
    for folder in (joined, *folds):
        out = tmp_path / f"{folder.name}_out"
        assert predict.predict(folder, images=[str(tmp_path / "raw")], out=out) == []
        (file,) = out.glob("*_prob.nii.gz")
        written.append(np.asarray(nibabel.load(file).dataobj))
    assert np.abs(written[1] - written[2]).max() > 0.01
    np.testing.assert_allclose(written[0], (written[1] + written[2]) / 2, atol=1e-6)
