"""Which volumes there are, and who is on which side."""

import importlib

import numpy as np
import pandas as pd
import pytest

from medjax.build import scans
from medjax.cohort import splits
from medjax.data import brain, samples
from medjax.data.volumes import Prepared
from medjax.errors import InputError


@pytest.fixture
def config(tmp_path):
    c = importlib.import_module("configs.quickstart_mri").get_config()
    c.data.records = str(tmp_path / "records")
    c.data.patients = 3
    c.data.shape, c.data.spacing = (16, 20, 16), (10.0, 10.0, 10.0)
    return c


def prepared(count):
    table = pd.DataFrame(
        {
            "id": range(count),
            "image": [f"p{i}" for i in range(count)],
            "patient": np.arange(count) + 100,
        }
    )
    return Prepared(None, table, ("t1",), {"whole": (1,)}, {})


def test_the_phantom_is_prepared_once_and_as_its_own_numbers_say(config):
    found = scans.data(config)
    assert found.sequences == brain.SEQUENCES and tuple(found.regions) == brain.REGIONS
    assert list(found.table["image"]) == [f"brain_phantom{i:04d}" for i in range(3)]
    before = (found.folder / "data.json").stat().st_mtime_ns
    assert scans.data(config).folder == found.folder
    assert (found.folder / "data.json").stat().st_mtime_ns == before
    config.data.first_patient = 1
    others = scans.data(config)
    assert others.folder != found.folder
    same = [
        samples.read(f.folder, samples.Part(i, 0)) for f, i in ((found, 1), (others, 0))
    ]
    for a, b in zip(*same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_split_or_place_of_the_records_prepares_nothing_anew(config):
    folder = scans.data(config).folder
    config.data.split, config.data.max_quarantined = "all", 0.5
    assert scans.data(config).folder == folder


def test_files_written_for_the_phantom_are_found_again(config, tmp_path):
    brain.write(
        tmp_path / "raw", range(2), seed=0, shape=(16, 20, 16), spacing=(10,) * 3
    )
    people = scans.to_predict(config, [str(tmp_path / "raw")])
    assert len(people) == 2
    case = people[1].read()
    assert case.label is None and case.image.shape[-1] == 4


@pytest.mark.parametrize("fold", [0, 2])
def test_leaving_one_out_tests_that_patient_and_trains_on_the_rest(config, fold):
    config.data.split, config.split.fold = "leave_one_out", fold
    found = scans.manifest(config, prepared(4))
    assert list(found["patient"][found["split"] == "test"]) == [100 + fold]
    assert (found["split"] == "train").sum() == 3


def test_halves_are_the_two_sides_of_each_patient(config):
    config.data.split = "halves"
    data = prepared(2)
    found = scans.manifest(config, data)
    train, test = (scans.parts(data, found, side) for side in ("train", "test"))
    assert [part.half for part in train.values()] == ["left"] * 2
    assert [part.half for part in test.values()] == ["right"] * 2
    assert [part.id for part in test.values()] == [0, 1]
    assert not train.keys() & test.keys()


def test_all_train_and_nobody_tests(config):
    config.data.split = "all"
    data = prepared(3)
    found = scans.manifest(config, data)
    assert len(scans.parts(data, found, "train")) == 3
    assert not scans.parts(data, found, "test")


def test_a_sample_of_patients_is_on_each_side_once(config):
    config.data.split = "patients"
    found = scans.manifest(config, prepared(20))
    assert sorted(found["patient"]) == list(range(100, 120))
    assert set(found["split"]) == set(splits.SPLITS)
    assert (found["split"] == "test").sum() == 6


def test_a_split_that_is_no_longer_the_data_s_is_refused(config, tmp_path):
    data = prepared(6)
    splits.write(scans.manifest(config, data), tmp_path / "splits.csv")
    assert len(scans.check(config, data, tmp_path)) == 6
    with pytest.raises(InputError, match=r"splits.csv.*train again"):
        scans.check(config, prepared(7), tmp_path)
    config.seed = 1
    with pytest.raises(InputError, match="have changed"):
        scans.check(config, data, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.split": "random"}, r"data.split='random': use"),
        ({"data.split": "leave_one_out", "split.fold": 3}, "split.fold=3: .* 0 to 2"),
        ({"data.source": "folder"}, "data.source='folder' is unknown: use"),
    ],
)
def test_what_can_t_be_done_is_said(config, changes, message):
    config.update_from_flattened_dict(changes)
    if "data.source" in changes:
        del config.data["patients"]
        config.data.update(
            folder=".", regions=("a",), values={"a": (1,)}, sequences=("x",)
        )
    with pytest.raises(InputError, match=message):
        scans.manifest(config, prepared(3)) if "data.split" in changes else scans.data(
            config
        )
