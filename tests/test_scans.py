"""Which volumes there are, and who is on which side."""

import importlib
import json
import os
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
from scans import affine_of, ball, save, save_phantoms
from scans import brain as head

from configs import base
from medjax.cohort import manifests
from medjax.data import brain_phantom, volumes
from medjax.data.sources import scan_files
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.tasks import scans

VALUES = head((20, 20, 20), 1)  # Of a sequence.


@pytest.fixture
def config(tmp_path):
    c = importlib.import_module("configs.quickstart_mri").get_config()
    c.data.records = str(tmp_path / "records")
    c.data.patients = 3
    c.data.shape, c.data.spacing = (16, 20, 16), (10.0, 10.0, 10.0)
    return c


def prepared(count):
    """Volumes of which nothing is read."""
    table = pd.DataFrame(
        {
            "id": range(count),
            "image": [f"p{i}" for i in range(count)],
            "patient": np.arange(count) + 100,
        }
    )
    volumes = Prepared(None, table, ("t1",), {"whole": (1,)})
    output = scans.MasksOutput(("t1",), {"whole": (1,)})
    rows = table.assign(volume=table["id"], half="whole")
    return scans.ScanData(None, rows, output, volumes)


def test_the_phantom_is_prepared_once_and_as_its_own_numbers_say(config):
    found = scans.data(config)
    assert found.output.sequences == brain_phantom.SEQUENCES
    assert found.output.names == brain_phantom.REGIONS
    assert list(found.table["image"]) == [f"brain_phantom{i:04d}" for i in range(3)]
    before = (found.path / "data.json").stat().st_mtime_ns
    assert scans.data(config).path == found.path
    assert (found.path / "data.json").stat().st_mtime_ns == before
    config.data.first_patient = 1
    others = scans.data(config)
    assert others.path != found.path
    same = [volumes.read(f.path, volumes.Part(i)) for f, i in ((found, 1), (others, 0))]
    for a, b in zip(*same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_split_or_place_of_the_records_prepares_nothing_anew(config):
    folder = scans.data(config).path
    config.data.split, config.data.max_quarantined = "all", 0.5
    assert scans.data(config).path == folder


def test_files_written_for_the_phantom_are_found_again(config, tmp_path):
    save_phantoms(
        tmp_path / "raw", range(2), seed=0, shape=(16, 20, 16), spacing=(10,) * 3
    )
    people = scans.to_predict(config, [str(tmp_path / "raw")])
    assert len(people) == 2
    case = people[1].read()
    assert case.label is None and case.image.shape[-1] == 4


@pytest.mark.parametrize("fold", [0, 2])
def test_leaving_one_out_tests_that_patient_and_trains_on_the_rest(config, fold):
    config.data.split, config.split.fold = "leave_one_out", fold
    found = scans.split(config, prepared(4))
    assert list(found["patient"][found["split"] == "test"]) == [100 + fold]
    assert (found["split"] == "train").sum() == 3


def test_halves_are_the_two_sides_of_each_patient(config):
    config.data.split = "halves"
    data = scans.data(config)
    found = scans.split(config, data)
    scans.audit(config, data, found)
    train, test = (
        data.parts(found["id"][found["split"] == side]) for side in ("train", "test")
    )
    assert [part.half for part in train.values()] == ["left"] * 3
    assert [part.half for part in test.values()] == ["right"] * 3
    assert [part.id for part in test.values()] == [0, 1, 2]
    assert not train.keys() & test.keys()
    rows = data.table.groupby("volume")
    whole = data.prepared.table.set_index("id")
    for column in ("voxels_whole", "width"):
        np.testing.assert_array_equal(rows[column].sum(), whole[column])


def test_all_train_and_nobody_tests(config):
    config.data.split = "all"
    found = scans.split(config, prepared(3))
    assert list(found["split"]) == ["train"] * 3


def test_a_sample_of_patients_is_on_each_side_once(config):
    config.data.split = "patients"
    found = scans.split(config, prepared(20))
    assert sorted(found["patient"]) == list(range(100, 120))
    assert set(found["split"]) == set(manifests.SPLITS)
    assert (found["split"] == "test").sum() == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.split": "leave_one_out", "split.fold": 3}, "split.fold=3: .* 0 to 2"),
        ({"data.source": "folder"}, "data.source='folder' is unknown: use"),
    ],
)
def test_what_can_t_be_done_is_said(config, changes, message):
    config.update_from_flattened_dict(changes)
    if "data.source" in changes:
        config = base.segmentation("folders")
        config.data.source = changes["data.source"]
    with pytest.raises(InputError, match=message):
        scans.split(config, prepared(3)) if "data.split" in changes else scans.data(
            config
        )


@pytest.fixture
def own(tmp_path):
    """Two patients' files of two visits each, and the config that reads them."""
    for person in ("A", "B"):
        for visit in ("1", "2"):
            save(tmp_path / f"raw/{person}/{visit}/T1.nii.gz", VALUES)
            mask = ball((20, 20, 20), 0.2).astype(np.uint8)
            save(tmp_path / f"raw/{person}/{visit}/seg.nii.gz", mask)
    c = importlib.import_module("configs.ms_lesions_unet3d").get_config()
    c.data.records, c.data.folder = str(tmp_path / "records"), str(tmp_path / "raw")
    c.data.sequences, c.data.files = ("T1",), {"T1": "T1.nii.gz"}
    c.data.mask, c.data.patient = "seg.nii.gz", "(.*?)/"
    return c


def test_the_visits_of_a_patient_stay_on_one_side(own):
    own.data.split = "leave_one_out"
    table = scans.split(own, scans.data(own))
    assert set(table["split"]) == {"train", "test"}
    assert table.groupby("patient")["split"].nunique().max() == 1
    own.data.patient = ""
    with pytest.raises(InputError, match="data.patient"):
        scans.data(own)


def test_a_region_that_no_volume_of_a_side_has_is_named(own, caplog):
    own.data.split, own.split.duplicates = "leave_one_out", "warn"
    data = scans.data(own)
    manifest = scans.split(own, data)
    (name,) = data.output.names
    for absent, said in ((1.0, []), (np.nan, []), (0.0, ["test"])):
        column = np.where(manifest["split"] == "test", absent, 1.0)
        caplog.clear()
        table = data.table.assign(**{name: column})
        scans.audit(own, data._replace(table=table), manifest)
        told = [f"audit: no volume of {side} has any {name}" for side in said]
        assert [m for m in caplog.messages if "no volume of" in m] == told


def test_a_table_may_say_whom_each_scan_shows(own, tmp_path):
    """A/1 and B/2 are one person, 7: no pattern could say so."""
    table = tmp_path / "raw/people.csv"
    rows = ["scan,patient", "A/1,7.0", "A/2,8", "B/1,9", "B/2,7", "elsewhere,10"]
    table.write_text("\n".join(rows))
    own.data.patient, own.data.split = "people.csv", "leave_one_out"
    patients = scans.data(own).table.set_index("image")["patient"]
    assert patients.to_dict() == {"A/1": 7, "A/2": 8, "B/1": 9, "B/2": 7}
    own.split.duplicates = "warn"  # All of them show one picture.
    manifest = scans.split(own, scans.data(own))
    assert manifest["split"].eq("test").tolist() == [True, False, False, True]
    scans.audit(own, scans.data(own), manifest)
    manifest.loc[0, "split"] = "train"
    with pytest.raises(InputError, match="7"):
        scans.audit(own, scans.data(own), manifest)
    table.write_text("\n".join([*rows[:4], "B/2,11"]))
    with pytest.raises(InputError, match="people.csv has changed since"):
        scans.data(own)
    table.unlink()
    with pytest.raises(InputError, match="people.csv is gone since"):
        scans.data(own)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("scan,patient\nA/1,1\nA/2,1\nB/1,2", "no row of 1 of the 4 scans.*'B/2'"),
        ("scan,patient\nA/1,1\nA/2,1\nA/1,2", "the scan 'A/1' twice"),
        ("scan,who\nA/1,1", "no column 'patient', only 'scan', 'who'"),
        ("scan,patient\nA/1,p7\nA/2,P7\nB/1,1\nB/2,2", "'p7' and 'P7' differ in"),
        ("scan,patient\nA/1,\nA/2,1\nB/1,1\nB/2,2", "A/1 has no patient"),
        (None, "people.csv: isn.t there: correct its name"),
    ],
)
def test_a_table_of_patients_is_read_as_strictly_as_others(
    own, tmp_path, rows, message
):
    own.data.patient = str(tmp_path / "people.csv")
    if rows:
        (tmp_path / "people.csv").write_text(rows)
    with pytest.raises(InputError, match=message):
        scans.data(own)


def test_both_sides_of_a_hippocampus_are_of_one_patient(tmp_path):
    data = importlib.import_module("configs.hippocampus").get_config().data
    names = [f"hippocampus_{n:03d}" for n in (1, 2, 3, 4, 393, 394)]
    patients = scan_files.patients(names, data.patient, tmp_path)
    assert patients == [1, 1, 2, 2, 197, 197]


def test_files_that_changed_since_are_not_passed_over(own, tmp_path):
    scans.data(own)
    scans.data(own)  # Nothing has changed.
    mask = ball((20, 20, 20), 0.3).astype(np.uint8)
    save(tmp_path / "raw/A/1/seg.nii.gz", mask)
    with pytest.raises(InputError, match=r"A/1/seg.nii.gz has changed.*remove"):
        scans.data(own)
    shutil.rmtree(tmp_path / "records")
    scans.data(own)
    shutil.copytree(tmp_path / "raw/B", tmp_path / "raw/C")
    with pytest.raises(InputError, match="C/1/T1.nii.gz is new.*3 files more"):
        scans.data(own)
    shutil.rmtree(tmp_path / "raw")  # The prepared volumes alone are enough.
    assert len(scans.data(own).table) == 4


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("0.label.npy", None),  # Its volume would count as one without a mask.
        ("0.image.npy", 200),
        ("thumbnails.npy", 200),
        ("table.csv", 120),
        ("table.csv", 300),
    ],
)
def test_a_part_of_the_prepared_volumes_that_is_gone_is_refused(own, name, size):
    path = scans.data(own).path / name
    path.unlink() if size is None else os.truncate(path, size)
    with pytest.raises(InputError, match=f"{name}: is damaged or gone: remove its fol"):
        data = scans.data(own)
        data.pairs()
        volumes.read(data.path, volumes.Part(0))


def test_thumbnails_of_another_shape_are_refused(own):
    path = scans.data(own).path / "thumbnails.npy"
    np.save(path, np.zeros((4, 1, 8, 8, 8)))
    with pytest.raises(InputError, match="thumbnails.npy: is damaged or gone"):
        scans.data(own).pairs()


def test_a_damaged_cache_of_digests_is_made_anew(own):
    path = scans.data(own).path / "seen.json"
    before = path.read_text()
    os.truncate(path, 50)
    scans.data(own)
    assert path.read_text() == before


def test_what_was_left_out_is_counted_again(own, tmp_path):
    (tmp_path / "raw/B/2/seg.nii.gz").unlink()
    own.data.max_quarantined = 0.5
    assert len(scans.data(own).table) == 3
    own.data.max_quarantined = 0.0
    with pytest.raises(InputError, match=r"25.0% of the files were left out"):
        scans.data(own)


def test_scans_as_they_are_stored_are_not_what_was_made_of_them(own, tmp_path):
    (tmp_path / "raw/B/2/seg.nii.gz").unlink()
    own.data.max_quarantined, own.data.spacing = 0.5, (2.0, 2.0, 2.0)
    found = scans.data(own)
    stored = list(scans.as_stored(own, found.prepared))
    assert len(stored) == 3 and found.table["spacing_d"].tolist() == [2.0] * 3
    for case in stored:
        np.testing.assert_array_equal(case.spacing, [1.0, 1.0, 1.0])
        values = case.image[case.image != 0]
        np.testing.assert_array_equal(np.sort(values), np.sort(VALUES[VALUES != 0]))


def test_sequences_that_do_not_match_are_warned_of_once(own, tmp_path, caplog):
    for number, path in enumerate(sorted((tmp_path / "raw").rglob("T1.nii.gz"))):
        noise = np.random.default_rng(number).normal(100, 9, VALUES.shape)
        save(path.with_name("T2.nii.gz"), np.where(VALUES > 0, noise, 0))
    own.data.sequences = ("T1", "T2")
    own.data.files = {name: f"{name}.nii.gz" for name in own.data.sequences}
    found = scans.data(own)
    warned = caplog.text.count("may be of another person")
    assert len(list(scans.as_stored(own, found.prepared))) == 4
    assert 0 < warned == caplog.text.count("may be of another person")


def test_scaled_labels_are_whole_numbers_wherever_they_are_read(own, tmp_path):
    """nibabel scales floats into a header's int16, and 1 comes back as 0.99998."""
    ring = 2 * ball((20, 20, 20), 0.3) - ball((20, 20, 20), 0.2)
    for number, path in enumerate(sorted((tmp_path / "raw").rglob("seg.nii.gz"))):
        image = nibabel.Nifti1Image(ring.astype(np.float64), affine_of())
        image.set_data_dtype((np.int16, np.uint8, np.float32)[number % 3])
        if number == 2:
            image = nibabel.Nifti1Image(np.float32(ring * 0.999), affine_of())
        nibabel.save(image, path)
    stored = [nibabel.load(p).get_fdata() for p in (tmp_path / "raw").rglob("seg*")]
    assert sum(bool((values % 1).any()) for values in stored) == 4
    own.data.regions = ("whole", "core")
    own.data["values"] = {"whole": (1, 2), "core": (1,)}
    counts = [np.sum(ring > 0), np.sum(ring == 1)]
    found = scans.data(own)  # Of training, validation, test and external data.
    voxels = found.table[["voxels_whole", "voxels_core"]]
    np.testing.assert_array_equal(voxels, [counts] * 4)
    for case in scans.as_stored(own, found.prepared):  # Of explore.
        np.testing.assert_array_equal(case.label.sum(axis=(0, 1, 2)), counts)


def save_legs(folder):
    """Two thighs with a muscle that is labelled in one of them, of one patient each."""
    x, y = np.indices((48, 24, 10))[:2] - np.array([23.5, 11.5])[:, None, None, None]
    affine = affine_of(spacing=(5.0, 5.0, 5.0))
    for number in range(2):
        left, right = (np.hypot(x - side, y) < 8 - (side > 0) for side in (-14, 14))
        image = np.where(left | right, 100, 1) + np.random.default_rng(number).integers(
            0, 5, x.shape
        )
        mask = np.hypot(x - 14, y) < 3
        save(folder / f"P{number}/T1.nii.gz", image.astype(np.int16), affine)
        save(folder / f"P{number}/seg.nii.gz", mask.astype(np.uint8), affine)


def test_a_label_in_the_second_leg_keeps_its_image_or_is_an_error(own, tmp_path):
    save_legs(tmp_path / "legs")
    own.data.folder, own.data.patient = str(tmp_path / "legs"), ""
    found = scans.data(own)
    for part in found.parts(found.table["id"].to_numpy()).values():
        image, label = volumes.read(found.path, part)
        assert label.sum() == 320 and (image[label[..., 0] > 0] != 0).all()
    own.data.foreground = "head"
    with pytest.raises(InputError, match="P0/seg.nii.gz: 320 of 320 voxels.*'body'"):
        scans.data(own)
    own.data.foreground = "legs"
    with pytest.raises(InputError, match="data.foreground='legs' is unknown"):
        scans.data(own)


def test_explored_scans_have_the_smallest_foreground_that_holds_the_labels(
    own, tmp_path
):
    own.modality = "brain_mri"
    found = scans.data(own)
    kinds = {case.foreground for case in scans.as_stored(own, found.prepared)}
    assert kinds == {"head"}
    save_legs(tmp_path / "legs")
    own.data.folder, own.data.patient = str(tmp_path / "legs"), ""
    found = scans.data(own)
    stored = scans.as_stored(own, found.prepared)
    assert [case.foreground for case in stored] == ["body", "body"]


def test_regions_that_no_mask_can_hold_are_refused_before_training(own):
    own.data.regions = ("core", "whole")
    own.data["values"] = {"core": (1,), "whole": (1,)}
    with pytest.raises(InputError, match="order them from outer to inner"):
        scans.data(own)


def test_the_decathlons_layout_is_a_word(own, tmp_path):
    root = tmp_path / "Task"
    both = np.stack([head((20, 20, 20), 1), head((20, 20, 20), 2)], axis=-1)
    save(root / "imagesTr/x.nii.gz", both)
    save(root / "labelsTr/x.nii.gz", ball((20, 20, 20), 0.2).astype(np.uint8))
    listed = {"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}
    about = {"modality": {"0": "FLAIR", "1": "T1"}, "training": [listed], "test": []}
    (root / "dataset.json").write_text(json.dumps(about))
    own.data.source, own.data.folder, own.data.patient = "decathlon", str(root), ""
    found = scans.data(own)
    assert list(found.table["image"]) == ["x"] and found.output.sequences == ("T1",)
    (root / "labelsTr/x.nii.gz").write_bytes(b"no mask is read to predict")
    (one,) = scans.to_predict(own, [str(root)])
    assert one.read().label is None


@pytest.mark.parametrize("copy", ["the same", "mirrored", "as float"])
def test_one_scan_under_two_names_is_refused_on_two_sides(own, tmp_path, copy):
    shutil.rmtree(tmp_path / "raw")
    voxels = [head((20, 20, 20), seed).astype(np.int16) for seed in range(6)]
    change = {"mirrored": lambda v: v[::-1], "as float": lambda v: v.astype("f4")}
    voxels += [change.get(copy, np.copy)(v) for v in voxels]
    for n, image in enumerate(voxels):
        save(tmp_path / f"raw/{'ab'[n // 6]}{n % 6}/T1.nii.gz", image)
        mask = ball((20, 20, 20), 0.2).astype(np.uint8)
        save(tmp_path / f"raw/{'ab'[n // 6]}{n % 6}/seg.nii.gz", mask)
    own.data.patient, own.data.split = "", "patients"
    data = scans.data(own)
    names = data.table["image"]
    pairs = [(names[p.id], names[p.other]) for p in data.pairs().itertuples()]
    assert pairs == [(f"a{n}", f"b{n}") for n in range(6)]
    manifest = scans.split(own, data)
    with pytest.raises(InputError, match=r"show the same picture .* b\d .*'warn'"):
        scans.audit(own, data, manifest)
    own.split.duplicates = "warn"
    scans.audit(own, data, manifest)
