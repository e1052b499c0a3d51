"""An ensemble is one run: its members differ, and their probabilities are averaged."""

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import small
from launching import ENSEMBLE, run_here, small_films
from launching import ensemble as trained
from sklearn.metrics import roc_auc_score

from configs import base
from medjax import tasks
from medjax.commands import train_population
from medjax.evaluation import discrimination, ensemble
from medjax.evaluation.inference import Predictions
from medjax.tasks import films, parts, segmentation
from medjax.training import step
from medjax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def folder() -> Path:
    return trained()


def last(folder):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        number = checkpoints.steps[-1]
        saved = checkpoints._orbax.load_checkpointables(number, {"state": None})
    return number, saved["state"]


def test_the_prediction_is_the_mean_probability_of_members_that_differ(folder):
    run = tasks.TASKS["multilabel"].finished(folder)
    data = films.data(run.config)
    written = pd.read_csv(folder / "predictions/test.csv").sort_values("image")
    table = data.table[data.table["image"].isin(written["image"])]
    pixels = np.stack(
        [data.films(table["id"].to_numpy())[i]["image"] for i in range(len(table))]
    )
    image = run.network.look(pixels)[0]
    apply = jax.jit(functools.partial(run.network.apply, train=False))
    each = [
        np.asarray(apply(member.averaged, view), np.float64)
        for member in step.members(run.state)
        for view in (image, image[:, :, ::-1])
    ]
    assert len(each) == 4 and np.abs(each[0] - each[2]).max() > 0.01
    mean = np.mean([1 / (1 + np.exp(-z)) for z in each], axis=0)
    order = np.argsort(table["image"].to_numpy())
    columns = [f"{name}_raw" for name in run.output.names]
    np.testing.assert_allclose(written[columns], mean[order], atol=2e-5)
    members = [
        run.fixed.calibrated(np.mean([1 / (1 + np.exp(-z)) for z in pair], axis=0))
        for pair in (each[:2], each[2:])
    ]
    columns = [f"{name}_spread" for name in run.output.names]
    spread = np.abs(members[0] - members[1])[order] / 2
    np.testing.assert_allclose(written[columns], spread, atol=2e-5)
    gain = json.loads((folder / "report.json").read_text())["ensemble"]
    assert gain["members"] == 2
    label = written[[f"{name}_label" for name in run.output.names]].to_numpy()
    areas = [
        np.mean([roc_auc_score(y, p) for y, p in zip(label.T, of[order].T)])
        for of in (mean, *members)
    ]
    assert gain["auroc"]["one"] == pytest.approx(areas[0], abs=1e-4)
    assert gain["auroc"]["other"] == pytest.approx(np.mean(areas[1:]), abs=1e-4)
    difference = gain["auroc"]["difference"]["estimate"]
    assert difference == pytest.approx(areas[0] - np.mean(areas[1:]), abs=1e-4)


def test_predict_shows_how_far_the_members_are_apart(folder, tmp_path):
    written = pd.read_csv(folder / "predictions/validation.csv").set_index("image")
    film = next(f for f in small_films() if f["image"] in written.index)
    cv2.imwrite(str(tmp_path / "a.png"), film["pixels"])
    out = tmp_path / "p.csv"
    run_here("predict", f"--workdir={folder}", f"--images={tmp_path}", f"--out={out}")
    row, expected = pd.read_csv(out).iloc[0], written.loc[film["image"]]
    columns = [c for c in written if c.endswith("_spread")]
    columns += [c.removesuffix("_spread") for c in columns]
    np.testing.assert_allclose(
        *(x[columns].astype(float) for x in (row, expected)), atol=1e-4
    )


def test_the_gain_is_over_the_mean_of_the_members():
    rng = np.random.default_rng(0)
    label = (rng.random((120, 2)) < 0.4).astype(np.float32)
    z = [(label + rng.normal(0, 1.5, label.shape)).astype(np.float32) for _ in range(3)]
    one = Predictions(
        np.arange(120), np.arange(120) // 2, z[0], label, label * 0 + 1, z[0]
    )
    members = [one._replace(probability=x, log_odds=x) for x in z]
    mean = one._replace(probability=sum(z) / 3, log_odds=sum(z) / 3)
    draws = {"key": jax.random.key(0), "replicates": 200}
    got = ensemble.gain(mean, members, **draws)["auroc"]
    alone = np.mean([roc_auc_score(label, x) for x in z])
    assert got["other"] == pytest.approx(alone, abs=1e-6)
    together = roc_auc_score(label, sum(z) / 3)
    assert got["one"] == pytest.approx(together, abs=1e-6)
    assert got["difference"]["estimate"] == pytest.approx(together - alone, abs=1e-6)
    # The mean over members is known better than the gain over one of them.
    rest = label, mean.weight, mean.patient
    apart = [
        discrimination.difference(mean.ranking, x, *rest, **draws)["mean_auroc"]
        for x in z
    ]
    widths = [interval.high - interval.low for interval in apart]
    assert 0 < got["difference"]["high"] - got["difference"]["low"] < max(widths)


@pytest.mark.slow
def test_copies_are_averaged_and_their_gain_is_reported(folder, tmp_path):
    """Over the same run's predictions without copies, which another run has."""
    shutil.copytree(folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["evaluation"]["copies"] = 2
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    run_here("evaluate", f"--workdir={tmp_path / 'run'}")
    report, before = (
        json.loads((place / "report.json").read_text())
        for place in (tmp_path / "run", folder)
    )
    gain = report["copies"]["auroc"]
    assert gain["other"] == pytest.approx(before["ensemble"]["auroc"]["one"], abs=1e-5)
    assert gain["one"] == pytest.approx(report["ensemble"]["auroc"]["one"], abs=1e-5)
    assert gain["one"] != pytest.approx(gain["other"], abs=1e-5)
    assert (
        "augmented copies of each image" in (tmp_path / "run/report.html").read_text()
    )


def test_an_interrupted_ensemble_ends_with_the_same_bits(folder, tmp_path, monkeypatch):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    number, whole = last(folder)
    shutil.rmtree(again / "checkpoints" / str(number))
    assert last(again)[0] < number
    monkeypatch.setattr("medjax.commands.train.finish", lambda run: None)
    run_here("train", f"--workdir={again}", *ENSEMBLE)
    resumed = last(again)
    assert resumed[0] == number
    jax.tree.map(np.testing.assert_array_equal, resumed[1], whole)


def test_members_see_the_same_images_by_keys_of_their_own():
    def update(state, batch, key):
        drawn = jax.random.uniform(key)
        return state._replace(step=state.step + 1, params=drawn), {"loss": drawn}

    start = step.State(*[np.float32(0)] * len(step.State._fields))
    (first, second), scalars = step.update_members(update)(
        (start, start), {}, jax.random.key(3)
    )
    assert first.step == second.step == 1
    assert first.params != second.params
    assert scalars["loss"] == (first.params + second.params) / 2
    alone, _ = step.update_members(update)(start, {}, jax.random.key(3))
    assert alone.params == jax.random.uniform(jax.random.key(3))


@pytest.mark.parametrize(
    ("field", "reason"),
    [("imbalance=smote", "imbalance='smote'"), ("ensemble=0", "give 1 or more")],
)
def test_what_changes_one_network_is_refused(tmp_path, field, reason):
    flags = f"--workdir={tmp_path / 'refused'}", *ENSEMBLE
    _, error = run_here("train", *flags, f"--config.{field}", code=2)
    assert reason in error and not (tmp_path / "refused").exists()


def test_members_have_first_weights_of_their_own(folder):
    run = tasks.TASKS["multilabel"].finished(folder)
    first, again, second = (parts.fresh(run.config, run.network, n) for n in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["params"]["classifier"]["kernel"]
    assert np.abs(kernel - second["params"]["classifier"]["kernel"]).max() > 0.01


def test_masks_are_of_the_mean_probability_too():
    config = base.segmentation("brain_phantom")
    config.patch.size = (8, 8, 8)
    blank = step.State(*[None] * len(step.State._fields))
    states = tuple(
        blank._replace(averaged={"p": jnp.float32(p)}) for p in (0.1, 0.3, 0.8)
    )

    def predict(variables, image):
        return jnp.full((*image.shape[:-1], 2), variables["p"])

    network = SimpleNamespace(predict=predict)
    image = np.ones((8, 8, 8, 1), np.float32)
    mean, *_ = segmentation.probability(config, network, states, image)
    np.testing.assert_allclose(mean, np.full((8, 8, 8, 2), 0.4), rtol=1e-6)


def test_the_gain_of_masks_is_the_mean_of_paired_differences():
    rng = np.random.default_rng(0)
    rows, expected = [], []
    for volume in range(24):
        label = rng.random((4, 4, 4, 2)) < 0.4
        mask, *alone = (label ^ (rng.random(label.shape) < p) for p in (0.1, 0.2, 0.3))
        for k in range(2):
            dices = [
                2 * (a & b)[..., k].sum() / (a[..., k].sum() + b[..., k].sum())
                for a, b in [
                    (mask, label),
                    *((m, o) for o in (label, mask) for m in alone),
                ]
            ]
            found = ensemble.members_overlap(
                mask[..., k], label[..., k], [m[..., k] for m in alone]
            )
            assert found["member_dice"] == pytest.approx(np.mean(dices[1:3]))
            assert found["disagreement"] == pytest.approx(1 - np.mean(dices[3:]))
            rows.append(
                {"name": str(volume), "patient": volume // 2, "dice": dices[0], **found}
            )
            expected.append(dices[0] - np.mean(dices[1:3]))
    gain = ensemble.gain_of_masks(rows, key=jax.random.key(0), replicates=200)["dice"]
    difference = gain["difference"]
    assert difference["estimate"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert gain["one"] - gain["other"] == pytest.approx(np.mean(expected), abs=1e-6)
    error = np.std(np.reshape(expected, (12, 4)).mean(1)) / np.sqrt(12)
    reach = (difference["high"] - difference["low"]) / 2
    assert 1.5 * error < reach < 4 * error
    assert ensemble.members_overlap(mask, label, []) == {}


def test_ensembles_of_a_population_are_trained_one_after_the_other():
    several, alone = small.get_config(), small.get_config()
    several.ensemble = 2
    assert train_population.groups([several, several, alone, alone]) == [
        [0],
        [1],
        [2, 3],
    ]
