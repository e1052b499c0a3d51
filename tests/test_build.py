import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from medjax import build
from medjax.cohort.imbalance import ClassWeights
from medjax.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.fixture
def config():
    return config_of("quickstart")


def table(films=60, official=()):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(films),
            "image": [f"{i}.png" for i in range(films)],
            "patient": np.arange(films) // 2,
            "official": [*official, *[""] * (films - len(official))],
            "mass": (rng.random(films) < 0.3).astype(float),
        }
    )


def data(**options):
    return build.Data(Path("nowhere"), table(**options), ("mass",))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_parts_that_exist_and_fit(path):
    config = config_of(path.stem)
    network = build.network(config, 3)
    weights = ClassWeights(np.ones(3), np.ones(3))
    state = jax.eval_shape(lambda: build.initial_state(config, network, weights))
    assert state.params["classifier"]["kernel"].shape[1] == 3
    build.train_step(config, network)
    assert set(build.schedule(config)) == {
        "key",
        "steps",
        "log_every",
        "evaluate_every",
    }
    assert config.train.steps % config.train.evaluate_every == 0
    assert str(path.relative_to(path.parents[1])) in path.read_text()  # Its command.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.name", "densnet"),
        ("model.name", "_hidden"),
        ("loss.name", "weighted_bse"),
        ("intensity.name", "standardize"),
    ],
)
def test_an_unknown_name_is_refused_by_its_field(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=f"{field}='{value}'"):
        build.train_step(config, build.network(config, 2))


def test_an_unknown_op_and_an_unknown_source_are_refused(config):
    config.augment.ops = ("random_affin",)
    with pytest.raises(InputError, match="augment.ops='random_affin'"):
        build.train_step(config, build.network(config, 2))
    config.data.source = "x_ray"
    with pytest.raises(InputError, match="data.source='x_ray'"):
        build.data(config)


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_misspelt_key_raises(config, tmp_path, section):
    config.data.records = str(tmp_path)
    with config.unlocked():
        config[section]["colour"] = 3
    with pytest.raises(TypeError, match="colour"):
        build.data(config)
        build.train_step(config, build.network(config, 2))


def test_the_official_lists_win_over_sampling(config):
    official = ["test"] * 10 + ["train"] * 50
    manifest = build.manifest(config, data(official=official))
    assert manifest["id"][manifest["split"] == "test"].tolist() == list(range(10))
    config.split.folds = 3  # Cross-validation is asked for by name.
    manifest = build.manifest(config, data(official=official))
    assert manifest["id"][manifest["split"] == "test"].tolist() != list(range(10))


def test_a_split_by_image_says_that_it_leaks(config, caplog):
    config.split.by = "image"
    with caplog.at_level("WARNING", logger="medjax"):
        manifest = build.manifest(config, data())
    assert "by='image'" in caplog.text
    sides = manifest.groupby("patient")["split"].nunique()
    assert (sides > 1).any()
    config.split.by = "patient"
    with pytest.raises(InputError, match="patient"):
        build.audit(config, manifest, data())


def test_the_weights_are_those_of_the_training_films(config):
    class Films:
        ids = np.array([3, 5, 8, 9])

    cohort = data()
    cohort.table["mass"] = (cohort.table["id"] == 5).astype(float)
    config.loss.weights = "ratio"
    weights = build.class_weights(config, cohort, Films)
    np.testing.assert_allclose([weights.w_pos[0], weights.w_neg[0]], [0.75, 0.25])


def test_a_batch_that_devices_cannot_share_is_refused(config):
    config.train.batch = 6  # conftest.py forces four devices.
    with pytest.raises(InputError, match=r"train\.batch=6.*4 devices"):
        build.train_batches(config, None)


def test_a_config_survives_its_json(config):
    again = ConfigDict(json.loads(json.dumps(build.as_json(config))))
    assert build.as_json(again) == build.as_json(config)
