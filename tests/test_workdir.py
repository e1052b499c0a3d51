import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from medjax.config import read_config
from medjax.errors import InputError
from medjax.evaluation.inference import Predictions
from medjax.training import workdir


def test_the_same_config_may_go_on_and_another_is_refused_by_its_field(tmp_path):
    config = {"seed": 0, "optim": {"learning_rate": 0.1}}
    workdir.claim(tmp_path / "run", config)
    workdir.claim(tmp_path / "run", config)
    other = {"seed": 0, "optim": {"learning_rate": 0.2}}
    with pytest.raises(InputError, match=r"config\.optim.*0\.1.*0\.2.*--workdir"):
        workdir.claim(tmp_path / "run", other)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written == config


def test_a_nan_is_the_same_as_itself(tmp_path):
    config = {"optim": {"learning_rate": float("nan"), "betas": [0.9, float("nan")]}}
    workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, json.loads(json.dumps(config)))
    with pytest.raises(InputError, match="learning_rate is nan, not 0.1"):
        workdir.claim(tmp_path, {"optim": config["optim"] | {"learning_rate": 0.1}})


def test_only_the_fields_that_differ_are_told_and_not_all_of_them(tmp_path):
    config = {"optim": {"rate": 0.1, "name": "adam"}, "a": 1, "b": 1, "c": [1], "d": {}}
    workdir.claim(tmp_path, config)
    other = {"optim": {"rate": 0.2, "name": "adam"}, "a": 2, "b": 2, "c": [2], "e": 1}
    with pytest.raises(InputError) as error:
        workdir.claim(tmp_path, other)
    told = "config.optim.rate is 0.1, not 0.2, config.a is 1, not 2, config.b is 1"
    assert told in str(error.value) and "and 3 more" in str(error.value)
    assert "adam" not in str(error.value)


def test_the_environment_names_versions_and_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--given")
    workdir.claim(tmp_path, {})
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written["versions"].keys() == set(workdir.LIBRARIES)
    assert written["devices"]
    assert written["XLA_FLAGS"] == "--given"
    assert written["before"] == []
    assert {"revision", "dirty"} <= written.keys()


def test_the_environments_of_an_interrupted_run_are_all_kept(tmp_path):
    workdir.claim(tmp_path, {})
    path = tmp_path / "environment.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps(now | {"python": "3.0"}))
    workdir.claim(tmp_path, {})
    workdir.claim(tmp_path, {})
    again = json.loads(path.read_text())
    assert again["python"] == now["python"]
    assert [old["python"] for old in again["before"]] == ["3.0"]


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        read_config(tmp_path)


def test_predictions_name_their_image_and_leave_unknown_labels_empty(tmp_path):
    found = Predictions(
        id=np.array([2, 0]),
        patient=np.array([1, 0]),
        probability=np.array([[0.1, 0.2], [0.3, 0.4]], np.float32),
        label=np.array([[1, 0], [0, 0]], np.float32),
        weight=np.array([[1, 0], [1, 1]], np.float32),
    )
    table = pd.DataFrame({"image": ["x.png", "y.png", "z.png"]})
    table["patient"] = ["007", "P8", "Zoë"]
    path = tmp_path / "predictions" / "test.csv"
    workdir.write_predictions(path, ("a", "b"), table, found)
    read = pd.read_csv(path, dtype={"patient": str})
    assert read["image"].tolist() == ["z.png", "x.png"]
    assert read["patient"].tolist() == ["Zoë", "007"]
    np.testing.assert_allclose(read[["a", "b"]], found.probability)
    assert read["a_label"].tolist() == [1, 0]
    assert np.isnan(read["b_label"][0]) and read["b_label"][1] == 0
    assert "a_raw" not in read
    workdir.write_predictions(path, ("a", "b"), table, found, raw=found.probability / 2)
    read = pd.read_csv(path)
    np.testing.assert_allclose(read[["a_raw", "b_raw"]], found.probability / 2)
    np.testing.assert_allclose(read[["a", "b"]], found.probability)


class Said(NamedTuple):
    names: tuple[str, ...]
    exclusive: bool
    shape: tuple[int, ...]


def test_a_task_comes_back_as_it_was_written(tmp_path):
    task = Said(("mass, large", "caf\u00e9"), True, (64, 64, 3))
    workdir.write_task(tmp_path, task)
    assert Said(**workdir.read_task(tmp_path)) == task
    with pytest.raises(InputError, match="task.json"):
        workdir.read_task(tmp_path / "elsewhere")


def test_each_probability_has_its_threshold_and_call_beside_it():
    table = pd.DataFrame({"image": ["x", "y"], "a": [0.4, 0.39999], "b": [0.9, 0.1]})
    found = workdir.with_calls(table, ("a", "b"), np.array([0.4, np.nan]))
    columns = ["image", "a", "a_threshold", "a_call", "b", "b_threshold", "b_call"]
    assert list(found) == columns
    assert found["a_call"].tolist() == [1, 0]
    assert found["a_threshold"].tolist() == [np.float32(0.4)] * 2
    assert found[["b_threshold", "b_call"]].isna().all(axis=None)
