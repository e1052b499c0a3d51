"""Masks from the config to the NIfTI file, on a phantom small enough for a test."""

import importlib
import json
import shutil

import jax
import nibabel
import numpy as np
import pandas as pd
import pytest
from scans import save_phantoms

import medjax
from medjax.commands import evaluate, explore, predict, train
from medjax.commands.evaluate import EvaluatedImages
from medjax.data import brain_phantom, scan
from medjax.errors import InputError
from medjax.evaluation import mask_metrics
from medjax.tasks import fixed, segmentation

SMALL = {"seed": 3, "shape": (18, 22, 18), "spacing": (9.0, 9.0, 9.0)}


def small_config(records):
    c = importlib.import_module("configs.quickstart_mri").get_config()
    c.data.update(patients=8, records=str(records), **SMALL)
    c.patch.update(size=(8, 8, 8), each=1)
    c.augment.ops = ("random_affine",)
    c.model.update(widths=(4, 4), strides=(1, 2))
    c.optim.update(warmup=1, learning_rate=0.02)
    c.train.update(steps=4, batch=4, log_every=1, evaluate_every=2)
    c.evaluation.update(flips=(), batch=8, replicates=20)
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    train.train(small_config(folder / "records"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def predicted(run, tmp_path_factory):
    """The folders of the test patients' files and of what is predicted of them."""
    report = json.loads((run / "report.json").read_text())
    numbers = sorted({row["patient"] for row in report["rows"]})
    raw, out = run.parent / "raw", run.parent / "out"
    save_phantoms(raw, numbers, **SMALL)
    for one in raw.glob("*/*_seg.nii.gz"):  # Nothing may need it.
        one.rename(run.parent / one.name)
    assert predict.predict(run, images=[str(raw)], out=out) == []
    return numbers, raw, out


def test_a_run_leaves_its_report_and_its_split(run):
    report = json.loads((run / "report.json").read_text())
    assert report["volumes"] == 2 and set(report["regions"]) == set(
        brain_phantom.REGIONS
    )
    page = (run / "report.html").read_text()
    assert all(row["name"] in page for row in report["rows"])
    assert (run / "splits.csv").read_text().count("train") == 5


def weights(folder):
    return segmentation.TASK.read(folder).state.averaged["params"]


@pytest.mark.slow
def test_a_run_goes_on_from_another_s_weights(run, tmp_path, capsys):
    config = small_config(run.parent / "records")
    config.transfer.init = str(run)
    config.optim.learning_rate = 1e-6
    config.train.steps = config.train.evaluate_every = 1
    train.train(config, tmp_path / "next")
    assert "starts anew" not in capsys.readouterr().out
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        weights(tmp_path / "next"),
        weights(run),
    )


def test_a_predicted_file_lies_on_its_image_s_grid(predicted):
    numbers, raw, out = predicted
    for number in numbers:
        name = f"brain_{number:03d}"
        image = nibabel.load(raw / name / f"{name}_t1.nii.gz")
        label = nibabel.load(out / f"{name}_label.nii.gz")
        probability = nibabel.load(out / f"{name}_prob.nii.gz")
        assert label.shape == image.shape and probability.shape == (*image.shape, 3)
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape]), -1)
        for file in (label, probability):
            np.testing.assert_allclose(
                nibabel.affines.apply_affine(file.affine, corners),
                nibabel.affines.apply_affine(image.affine, corners),
                atol=1e-4,
            )
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 4}


def test_an_ensemble_says_how_far_its_members_are_apart(run, predicted, tmp_path):
    numbers, raw, one = predicted
    assert not (one / "disagreement.csv").exists()
    alone = segmentation.TASK.finished(run)
    shifted = jax.tree.map(lambda leaf: 1.1 * leaf, alone.state.averaged)
    states = alone.state, alone.state._replace(averaged=shifted)
    for name, state in {"a": states[0], "b": states[1], "both": states}.items():
        ours = alone._replace(state=state)
        segmentation.predict(ours, images=[str(raw)], out=tmp_path / name)
    table = pd.read_csv(tmp_path / "both/disagreement.csv")
    assert len(table) == 3 * len(numbers) and table["disagreement"].max() > 0
    limits = [post.threshold for post in alone.fixed]
    for name, rows in table.groupby("name"):
        mean, *members = (
            nibabel.load(tmp_path / f"{folder}/{name}_prob.nii.gz").get_fdata()
            >= limits
            for folder in ("both", "a", "b")
        )
        for k, got in enumerate(rows["disagreement"]):
            a, b, ours = (x[..., k] for x in (*members, mean))
            dice = [2 * (x & ours).sum() / max(x.sum() + ours.sum(), 1) for x in (a, b)]
            empty = [not (x.any() or ours.any()) for x in (a, b)]
            assert got == pytest.approx(1 - np.mean(np.where(empty, 1, dice)), abs=1e-6)


def test_the_files_have_the_dice_that_the_report_says(run, predicted):
    numbers, _, out = predicted
    report = json.loads((run / "report.json").read_text())
    values = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    posts = json.loads((run / "postprocessing.json").read_text())["regions"]
    checked = 0
    for row in report["rows"]:
        name = f"brain_{row['patient']:03d}"
        true = np.asarray(nibabel.load(run.parent / f"{name}_seg.nii.gz").dataobj)
        true = np.isin(true, values[row["region"]])
        probability = nibabel.load(out / f"{name}_prob.nii.gz").get_fdata()
        k = list(values).index(row["region"])
        post = posts[row["region"]]
        if post["largest"] or post["smallest"]:
            continue  # Components are another test's.
        said = probability[..., k] >= post["threshold"]
        label = np.asarray(nibabel.load(out / f"{name}_label.nii.gz").dataobj)
        if row["region"] == "enhancing":  # Painted last: over it there is nothing.
            np.testing.assert_array_equal(label == 4, said)
        whole = said.sum() + true.sum()
        dice = 2 * (said & true).sum() / whole if whole else 1.0
        assert abs(dice - row["dice"]) < 0.02, row
        checked += whole > 0
    assert numbers and checked


def test_files_that_would_overwrite_each_other_are_refused(run, predicted, tmp_path):
    _, raw, _ = predicted
    other = shutil.copytree(raw, tmp_path / "other")
    with pytest.raises(InputError, match="two patients would be written as brain_"):
        predict.predict(run, images=[str(raw), str(other)], out=tmp_path / "out")
    with pytest.raises(InputError, match="give --out=DIR"):
        predict.predict(run, images=[str(raw)], out=tmp_path / "predictions.csv")


def test_a_patient_who_can_t_be_read_is_named_and_the_others_are_predicted(
    run, predicted, tmp_path
):
    numbers, raw, _ = predicted
    name = f"brain_{numbers[0]:03d}"
    copy = tmp_path / "raw"
    for number in numbers:
        each = f"brain_{number:03d}"
        (copy / each).mkdir(parents=True)
        for file in (raw / each).iterdir():
            (copy / each / file.name).write_bytes(file.read_bytes())
    (copy / name / f"{name}_t2.nii.gz").write_bytes(b"none")
    unread = predict.predict(run, images=[str(copy)], out=tmp_path / "out")
    assert len(unread) == 1 and f"{name}_t2.nii.gz" in unread[0]
    assert len(list((tmp_path / "out").glob("*_label.nii.gz"))) == len(numbers) - 1


def test_the_same_command_goes_on_and_another_config_is_refused(run):
    config = small_config(run.parent / "records")
    before = (run / "metrics.jsonl").read_text()
    train.train(config, run)  # Finished: it only reports again.
    assert (run / "metrics.jsonl").read_text() == before
    config.train.steps = 6
    with pytest.raises(InputError, match="config.train"):
        train.train(config, run)


@pytest.mark.slow
def test_all_patients_train_and_the_page_of_them_is_there_for_the_asking(tmp_path, run):
    config = small_config(run.parent / "records")
    config.data.split = "all"
    config.evaluation.checkpoint = "last"
    config.train.update(steps=2)
    train.train(config, tmp_path / "all")
    assert not (tmp_path / "all" / "report.html").exists()
    with pytest.raises(InputError, match="nobody is in that split"):
        evaluate.evaluate(tmp_path / "all")
    found = evaluate.evaluate(tmp_path / "all", EvaluatedImages(split="train"))
    assert found["volumes"] == 8 and found["caveat"] == ""
    page = (tmp_path / "all" / "report-train.html").read_text()
    assert "was trained on" in page
    other = small_config(run.parent / "records")
    other.data.update(patients=2, first_patient=50, spacing=(8.0, 9.0, 9.0))
    with pytest.raises(InputError, match="data.spacing is .*the run's"):
        evaluate.evaluate(
            tmp_path / "all", EvaluatedImages(split="others", other=other)
        )
    other.data.spacing = SMALL["spacing"]
    found = evaluate.evaluate(
        tmp_path / "all", EvaluatedImages(split="others", other=other)
    )
    assert found["volumes"] == 2 and (tmp_path / "all/report-others.html").exists()


@pytest.mark.parametrize("choose", [False, True])
def test_a_threshold_is_taken_where_none_is_chosen(run, tmp_path, choose):
    """Not to be chosen, or with nobody to choose it by."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/postprocessing.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["evaluation"].update(choose=choose, threshold=0.3)
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    found = segmentation.TASK.read(tmp_path / "run")
    manifest = pd.read_csv(run / "splits.csv")
    if choose:
        manifest["split"] = "train"
    data = segmentation.TASK.data(found.config)
    posts = segmentation.fix(found, data, manifest).fixed
    assert posts == [mask_metrics.Post(threshold=0.3)] * 3
    assert fixed.posts_chosen(run) and not fixed.posts_chosen(tmp_path / "run")
    assert segmentation.TASK.finished(tmp_path / "run").fixed == posts


def test_the_best_checkpoint_of_a_run_without_validation_is_refused_at_once(run):
    config = small_config(run.parent / "records")
    config.data.split = "all"
    with pytest.raises(InputError, match="evaluation.checkpoint='best'.*'last'"):
        train.train(config, run.parent / "never")
    assert not (run.parent / "never" / "metrics.jsonl").exists()


def test_arms_that_test_on_nobody_are_refused_before_anything_runs(tmp_path):
    config = small_config(tmp_path / "records")
    config.evaluation.checkpoint = "last"
    sides = [{"data.split": "all", "seed": 0}, {"data.split": "all", "seed": 1}]
    with pytest.raises(InputError, match="seed=0 can't be compared: data.split='all'"):
        medjax.sweep(config, sides, tmp_path / "sweep")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_of_masks_trains_its_arms_as_one_program_and_compares_them(
    run, tmp_path, capsys
):
    config = small_config(run.parent / "records")
    arms = [{"optim.learning_rate": rate} for rate in (0.02, 0.002)]
    results = medjax.sweep(config, arms, tmp_path, executor="population")
    assert "2 of 2 arms at a time" in capsys.readouterr().out
    assert [row["state"] for row in results["runs"]] == ["finished"] * 2
    assert results["primary"] == "dice" and results["compared"]["patients"] == 2
    folders = [tmp_path / "arms" / row["name"] for row in results["runs"]]
    # The first arm is the fixture's run: alone and beside another one it is the same.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        weights(folders[0]),
        weights(run),
    )
    page = evaluate.compare(*folders)
    pair = json.loads(page.with_suffix(".json").read_text())
    assert pair["primary"] == "dice" and set(pair["tasks"]) == set(
        brain_phantom.REGIONS
    )
    for number, key in enumerate(("one", "other")):
        report = json.loads((folders[number] / "report.json").read_text())
        dice = report["mean"]["dice"]["estimate"]
        assert pair["mean"]["dice"][key] == pytest.approx(dice, abs=1e-6)
        assert dice == pytest.approx(results["runs"][number]["dice"])


def test_exploring_proposes_what_a_network_could_take(run, tmp_path, capsys):
    config = small_config(run.parent / "records")
    path = explore.explore(config, tmp_path)
    found = json.loads(path.read_text())
    strides = np.prod(found["proposal"]["strides"], axis=0)
    assert not (np.array(found["proposal"]["patch"]) % strides).any()
    out = capsys.readouterr().out
    assert "patch" in out and "logistic regression on voxels has a mean Dice" in out
    assert {*found["floor"]} == {*brain_phantom.REGIONS, "mean"}
    assert min(low for _, _, low, *_ in found["data"]["inside"]) > 0  # No z-scores.


def test_other_voxels_than_those_learnt_from_are_warned_of(run):
    found = segmentation.TASK.read(run)
    near, far = (np.array(found.output.spacing) * ratio for ratio in (1.4, 1.6))

    def strange(spacing):
        case = scan.Scan(None, None, None, np.diag([*spacing, 1]), None)
        return segmentation.strange(found, case)

    assert strange(near) == ""
    for spacing in (far, 1 / far):
        assert "the run learnt from" in strange(spacing)


def test_a_report_says_what_it_doesn_t_count(run):
    config = small_config(run.parent / "records")
    assert segmentation.caveat(config, "test") == ""  # Drawn at its own spacing.
    config.data.source = "folders"
    assert "voxels of 9 x 9 x 9 mm" in segmentation.caveat(config, "test")
    config.data.split = "halves"
    assert "same patients" in segmentation.caveat(config, "test")


@pytest.mark.slow
def test_copies_of_windows_are_averaged_and_their_gain_is_on_the_page(run, tmp_path):
    """In a copy of the run; the page compares with what the run itself reports."""
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["evaluation"]["copies"] = 2
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    evaluate.evaluate(tmp_path / "run", EvaluatedImages("test"))
    before, after = (
        json.loads((folder / "report.json").read_text())
        for folder in (run, tmp_path / "run")
    )
    gain = after["copies"]["dice"]
    one, other = (r["mean"]["dice"]["estimate"] for r in (after, before))
    assert one != other
    assert [gain["one"], gain["other"]] == pytest.approx([one, other], abs=1e-6)
    assert gain["difference"]["estimate"] == pytest.approx(one - other, abs=1e-6)
    assert (
        "augmented copies of each window" in (tmp_path / "run/report.html").read_text()
    )
