"""Finding patients: layouts are written as data sets have them, files may be empty."""

import json
import os
from pathlib import Path

import pytest
from scans import touch

from medjax.data.sources import scan_files, scan_layouts
from medjax.data.sources.scan_files import SequenceFile
from medjax.errors import InputError

BRATS = {n: f"*_{n}.nii.gz" for n in ("flair", "t1", "t1ce", "t2")}
ORDER = ("t2", "t1ce", "flair", "t1")
MS = Path(__file__).parents[2] / "shared/data/ms-lesion-sample"


def brats(root, *names):
    for name in names:
        last = name.split("/")[-1]
        touch(*(root / name / f"{last}_{s}.nii.gz" for s in (*BRATS, "seg")))


def find(root, **options):
    options = {"sequences": ORDER, "files": BRATS, "mask": "*_seg.nii.gz", **options}
    return scan_files.in_folders(root, **options)


def test_folders_of_patients_are_found_however_deep_in_the_order_asked_for(tmp_path):
    brats(tmp_path, "LGG/BraTS_2", "HGG/BraTS_10", "HGG/BraTS_1")
    touch(tmp_path / "HGG/survival.csv", tmp_path / "notes/readme.txt")
    found = find(tmp_path)
    assert [one.name for one in found] == [
        "HGG/BraTS_1",
        "HGG/BraTS_10",
        "LGG/BraTS_2",
    ]
    one, folder = found[0], tmp_path / "HGG/BraTS_1"
    assert tuple(one.sequences) == ORDER
    assert one.sequences["t1"] == SequenceFile(folder / "BraTS_1_t1.nii.gz")
    assert one.sequences["t1ce"] == SequenceFile(folder / "BraTS_1_t1ce.nii.gz")
    assert one.mask == folder / "BraTS_1_seg.nii.gz" and one.official == ""


def test_one_patients_folder_is_found_without_a_mask(tmp_path, monkeypatch):
    brats(tmp_path, "BraTS_1")
    (tmp_path / "BraTS_1/BraTS_1_seg.nii.gz").unlink()
    (alone,) = find(tmp_path / "BraTS_1")
    (among,) = find(tmp_path)
    assert alone == among and alone.mask is None and alone.name == "BraTS_1"
    monkeypatch.chdir(tmp_path / "BraTS_1")
    assert find(Path("."))[0].name == "BraTS_1"


def test_a_series_folder_within_a_patient_is_a_file_and_no_patient(tmp_path):
    touch(tmp_path / "P1/T1/T1.nii.gz/1.dcm", tmp_path / "P1/FLAIR/1.dcm")
    files = {"T1": "T1/*.nii.gz", "FLAIR": "FLAIR"}
    (one,) = find(tmp_path, sequences=("FLAIR", "T1"), files=files, mask="")
    assert one.sequences["FLAIR"] == SequenceFile(tmp_path / "P1/FLAIR")


def test_what_lies_below_a_patients_folder_is_no_other_patient(tmp_path):
    brats(tmp_path, "P1", "P1/old", "P2")
    assert [one.name for one in find(tmp_path)] == ["P1", "P2"]


def test_a_missing_sequence_is_none_and_keeps_its_place(tmp_path):
    brats(tmp_path, "P1")
    (tmp_path / "P1/P1_t1ce.nii.gz").unlink()
    (one,) = find(tmp_path)
    assert tuple(one.sequences) == ORDER and one.sequences["t1ce"] is None
    # A link to nowhere can't be read, and isn't missing.
    (tmp_path / "P1/T2.nii.gz").symlink_to("nowhere")
    files = {"t1": "*_t1.nii.gz", "t2": "T2.nii.gz", "t3": "T3.nii.gz"}
    (one,) = scan_files.in_folders(tmp_path, sequences=("t1", "t2", "t3"), files=files)
    assert one.sequences["t2"].path.name == "T2.nii.gz" and not one.sequences["t3"]


def test_files_that_macos_leaves_are_no_files(tmp_path):
    brats(tmp_path, "P1")
    touch(tmp_path / "P1/._P1_t1.nii.gz", tmp_path / "._P1/x_t1.nii.gz")
    touch(tmp_path / "__MACOSX/P1/._P1_t1.nii.gz")
    (one,) = find(tmp_path)
    assert one.sequences["t1"].path.name == "P1_t1.nii.gz"


def test_volumes_that_no_pattern_matches_are_named(tmp_path, caplog):
    brats(tmp_path, "P1")
    touch(tmp_path / "P2/other.nii.gz", tmp_path / "notes/readme.txt")
    touch(tmp_path / "P3/P3_t1.nrrd", tmp_path / "P5.zip", tmp_path / "labels.csv")
    (tmp_path / "P4").mkdir()
    (tmp_path / "P6").symlink_to(tmp_path / "gone")
    records = tmp_path / "records/scans/folders-1"  # Ours: nobody forgot a pattern.
    touch(records / "quarantine.csv", records / "0.image.npy")
    assert [scan.name for scan in find(tmp_path)] == ["P1"]
    named = {
        "P2": "other.nii.gz",
        "P3": "P3_t1.nrrd",
        "P4": "nothing",
        "": "P5.zip, P6",
    }
    for folder, files in named.items():
        text = f"{tmp_path / folder}: left out, no pattern of data.files matches in it"
        assert f"{text}: it holds {files}" in caplog.messages
    assert len(caplog.records) == len(named)


def test_a_file_that_is_named_after_another_patient_is_warned_of(tmp_path, caplog):
    for name in ("P_1", "P_10", "P_2"):
        touch(tmp_path / f"{name}/{name}_T1.nii.gz", tmp_path / f"{name}/seg.nii.gz")
    options = {
        "sequences": ("T1",),
        "files": {"T1": "*T1.nii.gz"},
        "mask": "*seg.nii.gz",
    }
    assert len(scan_files.in_folders(tmp_path, **options)) == 3 and not caplog.records
    path = tmp_path / "P_2/P_10_seg.nii.gz"
    (tmp_path / "P_2/seg.nii.gz").rename(path)
    scan_files.in_folders(tmp_path, **options)
    assert f"{path}: is named after P_10, and lies in P_2: move" in caplog.text
    assert len(caplog.records) == 1


def test_a_pattern_that_matches_two_files_names_both(tmp_path):
    brats(tmp_path, "P1")
    touch(tmp_path / "P1/again_t1.nii.gz")
    text = str(pytest.raises(InputError, find, tmp_path).value)
    assert "P1_t1.nii.gz" in text and "again_t1.nii.gz" in text and "\n" not in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"files": {**BRATS, "t2": ""}}, "no pattern for the sequence 't2'"),
        ({"files": {"t1": "*_t1.nii.gz"}}, "no pattern for the sequence 't2'"),
        ({"files": dict.fromkeys(BRATS, "*.img")}, "no file in it matches"),
        ({"files": dict.fromkeys(BRATS, "/x.nii")}, "is no pattern"),
        ({"sequences": ()}, "data.sequences"),
        ({"sequences": ("t1", "t1")}, "data.sequences"),
    ],
)
def test_settings_that_find_nothing_are_refused(tmp_path, options, why):
    brats(tmp_path, "P1")
    with pytest.raises(InputError, match=why):
        find(tmp_path, **options)
    with pytest.raises(InputError, match="is no folder"):
        find(tmp_path / "absent")


# ------------------------------------------------------------------- the Decathlon


MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def decathlon(root, modality=MODALITY):
    train = ("BRATS_002", "BRATS_001")
    touch(*(root / f"{f}/{n}.nii.gz" for n in train for f in ("imagesTr", "labelsTr")))
    touch(root / "imagesTs/BRATS_9.nii.gz", root / "imagesTs/._BRATS_9.nii.gz")
    described = {
        "modality": modality,
        "labels": {"0": "background", "1": "edema"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
            for n in train
        ],
        "test": ["./imagesTs/BRATS_9.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_the_decathlons_training_part_is_what_its_table_lists(tmp_path):
    root = decathlon(tmp_path)
    found = scan_layouts.in_decathlon(root, sequences=("T2w", "FLAIR"))
    assert [one.name for one in found] == ["BRATS_001", "BRATS_002"]
    image = root / "imagesTr/BRATS_001.nii.gz"
    assert found[0].sequences == {
        "T2w": SequenceFile(image, 3, 4),
        "FLAIR": SequenceFile(image, 0, 4),
    }
    assert tuple(found[0].sequences) == ("T2w", "FLAIR")
    assert os.path.samefile(found[0].mask, root / "labelsTr/BRATS_001.nii.gz")
    assert found[0].official == "train"


def test_images_that_the_decathlons_table_does_not_list_are_named(tmp_path, caplog):
    root = decathlon(tmp_path)
    scan_layouts.in_decathlon(root, sequences=("T2w",))
    assert not caplog.records
    touch(*(root / f"imagesTr/BRATS_1{n:02d}.nii.gz" for n in range(22)))
    scan_layouts.in_decathlon(root, sequences=("T2w",))
    assert "BRATS_119.nii.gz and 2 more" in caplog.text and "_120" not in caplog.text


def test_a_mask_that_is_named_after_another_image_is_warned_of(tmp_path, caplog):
    root = decathlon(tmp_path)
    described = json.loads((root / "dataset.json").read_text())
    first, second = described["training"]
    first["label"], second["label"] = second["label"], "labelsTr/other.nii.gz"
    (root / "dataset.json").write_text(json.dumps(described))
    scan_layouts.in_decathlon(root, sequences=("T2w",))
    why = "the mask of BRATS_002.nii.gz is named after another image, BRATS_001.nii.gz"
    assert [why in message for message in caplog.messages] == [True]


def test_a_name_of_two_channels_is_refused(tmp_path):
    root = decathlon(tmp_path, {"0": "MRI", "1": "MRI"})
    with pytest.raises(InputError, match="has a name twice"):
        scan_layouts.in_decathlon(root, sequences=("MRI",))


def test_files_that_are_no_volumes_are_named(tmp_path, caplog):
    folder = decathlon(tmp_path) / "imagesTs"
    touch(folder / "BRATS_10.mha")
    assert len(scan_layouts.in_decathlon(folder, sequences=("T2w",))) == 1
    assert "left out: BRATS_10.mha" in caplog.text


def test_the_decathlons_test_part_a_folder_and_a_file_have_no_masks(tmp_path):
    root, names = decathlon(tmp_path), ("t1gd",)
    (listed,) = scan_layouts.in_decathlon(root, sequences=names, part="test")
    (among,) = scan_layouts.in_decathlon(root / "imagesTs", sequences=names)
    image = root / "imagesTs/BRATS_9.nii.gz"
    (alone,) = scan_layouts.in_decathlon(image, sequences=names)
    assert listed.official == "test" and among.official == ""
    assert alone == among and alone.sequences == listed.sequences == {
        "t1gd": SequenceFile(image, 2, 4)
    }
    assert alone.mask is None and alone.name == "BRATS_9"


def test_without_a_dataset_json_the_volumes_are_the_sequences_in_order(tmp_path):
    touch(tmp_path / "a/b/c/1.nii.gz")
    (one,) = scan_layouts.in_decathlon(tmp_path / "a/b/c", sequences=("x", "y"))
    assert [file[1:] for file in one.sequences.values()] == [(0, 2), (1, 2)]


PAIR = '{"image": "%s.nii", "label": "m.nii"}'
TWICE = f'\ufeff{{"modality": {{"0": "FLAIR"}}, "training": [{PAIR % 1}, {PAIR % 2}]}}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "no dataset.json"),
        ("{", "can't be read"),
        ('{"modality": ["FLAIR"]}', "'modality'"),
        ('{"modality": {"0": "CT"}}', "has no 'FLAIR', but 'CT'"),
        ('{"modality": {"0": "FLAIR"}}', "'training' is no list"),
        ('{"modality": {"0": "FLAIR"}, "training": ["a"]}', "'training' is no list"),
        ('{"modality": {"0": "FLAIR"}, "training": []}', "no image"),
        (
            '{"modality": {"0": "FLAIR"}, "training": [{"image": "a"}]}',
            "no list of pairs of 'image' and 'label'",
        ),
        (TWICE, "'training' has .*m.nii twice"),
    ],
)
def test_a_dataset_json_that_is_not_the_decathlons_is_refused(tmp_path, text, why):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=why):
        scan_layouts.in_decathlon(tmp_path, sequences=("FLAIR",))


def test_no_such_part_and_no_such_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="data.part='val'"):
        scan_layouts.in_decathlon(tmp_path, sequences=("FLAIR",), part="val")
    with pytest.raises(InputError, match="does not exist"):
        scan_layouts.in_decathlon(tmp_path / "absent", sequences=("FLAIR",))


@pytest.mark.skipif(not MS.exists(), reason="needs shared/data/ms-lesion-sample")
def test_the_patients_of_the_sample_are_found():
    names = ("FLAIR", "T1", "T1POST", "T2")
    files = {name: f"{name}.nii.gz" for name in names}
    found = find(MS, sequences=names, files=files, mask="lesion.nii.gz")
    assert [one.name for one in found] == ["patient07", "patient19"]
    assert all(file.path.exists() for file in found[1].sequences.values())


def test_a_link_to_a_folder_above_leads_in_no_circle(tmp_path):
    brats(tmp_path, "A/P1", "A/P2")
    (tmp_path / "A/up").symlink_to(tmp_path)
    (tmp_path / "A/here").symlink_to(tmp_path / "A", target_is_directory=True)
    assert [scan.name for scan in find(tmp_path)] == ["A/P1", "A/P2"]


def test_a_patient_s_folder_is_read_once_under_its_own_name(tmp_path, caplog):
    brats(tmp_path, "data/P2", "elsewhere/P3")
    (tmp_path / "data/P1").symlink_to(tmp_path / "data/P2")
    (tmp_path / "data/P3").symlink_to(tmp_path / "elsewhere/P3")
    (tmp_path / "data/P4").symlink_to(tmp_path / "elsewhere/P3")
    with caplog.at_level("WARNING", logger="medjax"):
        assert [scan.name for scan in find(tmp_path / "data")] == ["P2", "P3"]
    for name in ("P1", "P4"):
        assert f"{name}: is a link to a patient" in caplog.text
