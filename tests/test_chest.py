"""Chest sources: hand-made folders against values written down by hand."""

import collections
import csv
import gzip
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from launching import stored
from PIL import Image

from medjax.data import chest_phantom, image_files, prepared, records
from medjax.data.sources import chest_xray
from medjax.errors import InputError

SAMPLE = Path(__file__).parents[2] / "shared/data/nih-sample"
SIDE = 16
RNG = np.random.default_rng(0)
# Commas inside two names, as in the original.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ENTRIES = """
00000001_000.png,Cardiomegaly|Infiltration,0,1,058Y,M,PA,2682,2749,0.143,0.144
00000001_001.png,No Finding,1,1,58,M,AP,2894,2729,0.168,0.168
00000002_000.png,Hernia,0,2,414,F,PA,2500,2048,0.171,0.171
00000003_000.png,Pleural_Thickening|Mass|Nodule,12,3,006M,F,PA,2582,2991,0.139,0.139
"""
BOXES = """
00000001_000.png,Infiltrate,512,256.5,128,64
00000001_000.png,Cardiomegaly,0,0,1024,1024
00000003_000.png,Mass,100,200,300,400
"""
# Image -> findings, patient, age, sex, view, width, height, x and y spacing, follow-up.
TRUTH = {
    "00000001_000.png": (
        {"Cardiomegaly", "Infiltration"},
        (1, 58.0, "M", "PA", 2682, 2749, 0.143, 0.144, 0),
    ),
    "00000001_001.png": (set(), (1, 58.0, "M", "AP", 2894, 2729, 0.168, 0.168, 1)),
    "00000002_000.png": (
        {"Hernia"},
        (2, math.nan, "F", "PA", 2500, 2048, 0.171, 0.171, 0),
    ),
    "00000003_000.png": (
        {"Pleural_Thickening", "Mass", "Nodule"},
        (3, 0.5, "F", "PA", 2582, 2991, 0.139, 0.139, 12),
    ),
}
FIELDS = ("patient", "age", "sex", "view", "width", "height", "spacing_x", "spacing_y")
FIELDS += ("follow_up",)
WHERE = {"00000002_000.png": "images_001/images", "00000003_000.png": "images_002/deep"}


def draw(path, size=(24, 20)):
    """Writes a film [H, W] of noise, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(path)
    return path


def write_nih(folder, entries=ENTRIES, boxes=BOXES, **files):
    """A folder as NIH lays it out; `files` are further text files by their stem."""
    lines = entries.strip().splitlines()
    table = "\n".join([HEADER, *lines]) + "\n"
    (folder / "Data_Entry_2017_v2020.csv").write_text(table)
    if boxes:
        text = "Image Index,Finding Label,Bbox [x,y,w,h]\n" + boxes.lstrip()
        (folder / "BBox_List_2017.csv").write_text(text)
    for stem, text in files.items():
        (folder / f"{stem}.txt").write_text(text)
    for name in (line.split(",")[0] for line in lines):
        draw(folder / WHERE.get(name, "images") / name)
    return folder


@pytest.fixture
def nih(tmp_path):
    (tmp_path / "nih").mkdir()
    return write_nih(tmp_path / "nih")


def items(source):
    """All items of a source, in order."""
    return list(source.items())


def prepare(source, tmp_path, allowed=0.0):
    """Images, table, boxes and quarantine, as NumPy and pandas alone read them."""
    path = records.prepare(
        source,
        records=tmp_path / "records",
        name="x",
        max_quarantined=allowed,
    )
    films = stored(path)
    for film in films:
        film["label"] = np.float32([film[task] for task in source.tasks])
    csvs = [pd.read_csv(path / f"{n}.csv") for n in ("table", "boxes", "quarantine")]
    return films, *csvs


def test_an_nih_folder_becomes_records_equal_to_what_was_written(nih, tmp_path):
    films, table, boxes, quarantine = prepare(
        chest_xray.nih(folder=nih, side=SIDE), tmp_path
    )
    assert [film["image"] for film in films] == list(TRUTH)
    assert list(table["image"]) == list(TRUTH)
    assert list(table["id"]) == [film["id"] for film in films] == [0, 1, 2, 3]
    assert len(quarantine) == 0
    for n, (image, (findings, fields)) in enumerate(TRUTH.items()):
        label = np.float32([task in findings for task in chest_xray.NIH_TASKS])
        np.testing.assert_array_equal(films[n]["label"], label)
        np.testing.assert_array_equal(table.loc[n, list(chest_xray.NIH_TASKS)], label)
        for name, value in zip(FIELDS, fields, strict=True):
            kept = films[n][name]
            if isinstance(value, str):
                assert kept == table[name][n] == value
            else:
                np.testing.assert_equal(np.float32(kept), np.float32(value))
                np.testing.assert_equal(np.float32(table[name][n]), np.float32(value))
        raw = image_files.read(nih / WHERE.get(image, "images") / image).pixels
        square = image_files.resize(raw, SIDE)[..., None]
        np.testing.assert_array_equal(films[n]["pixels"], square)
        assert films[n]["official"] == ""
    scale = SIDE / 1024
    expected = [
        (0, "Infiltration", 512, 256.5, 640, 320.5),
        (0, "Cardiomegaly", 0, 0, 1024, 1024),
        (3, "Mass", 100, 200, 400, 600),
    ]
    assert list(zip(boxes["id"], boxes["task"], strict=True)) == [
        row[:2] for row in expected
    ]
    np.testing.assert_allclose(
        boxes[["x0", "y0", "x1", "y1"]], np.array([r[2:] for r in expected]) * scale
    )


def test_a_film_of_the_right_size_keeps_every_pixel(tmp_path):
    write_nih(tmp_path, ENTRIES.strip().splitlines()[0])
    path = draw(tmp_path / "images/00000001_000.png", (SIDE, SIDE))
    (item,) = items(chest_xray.nih(folder=tmp_path, side=SIDE))
    np.testing.assert_array_equal(item.content[..., 0], np.asarray(Image.open(path)))


def test_the_table_tells_the_size_and_the_file_where_the_table_is_blank(tmp_path):
    line = "00000001_000.png,Mass,0,1,58,M,PA,{},{},0.1,0.2"
    write_nih(tmp_path, line.format("", ""))
    draw(tmp_path / "images/00000001_000.png", (40, 30))
    (item,) = items(chest_xray.nih(folder=tmp_path, side=SIDE))
    assert (item.row["width"], item.row["height"]) == (30, 40)
    assert (item.row["spacing_x"], item.row["spacing_y"]) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("58", 58),
        ("006M", 0.5),
        ("003D", 3 / 365.25),
        ("120", 120),
        ("121", math.nan),
        ("414", math.nan),
        ("", math.nan),
        ("old", math.nan),
        ("-5", math.nan),
        ("58.5", 58.5),
    ],
)
def test_ages_are_years_or_unknown(tmp_path, text, years):
    write_nih(tmp_path, f"00000001_000.png,Mass,0,1,{text},M,PA,9,9,1,1")
    (item,) = items(chest_xray.nih(folder=tmp_path, side=SIDE))
    np.testing.assert_allclose(item.row["age"], years)


def test_a_view_or_sex_that_is_none_is_unknown(tmp_path):
    write_nih(tmp_path, "00000001_000.png,Mass,0,1,58,U,LL,9,9,1,1")
    (item,) = items(chest_xray.nih(folder=tmp_path, side=SIDE))
    assert (item.row["sex"], item.row["view"]) == ("", "")


def test_the_official_lists_say_which_part_a_film_belongs_to(tmp_path):
    write_nih(
        tmp_path,
        train_val_list="00000001_000.png\n00000001_001.png\n00000002_000.png",
        test_list="\ufeff00000003_000.png\nunknown.png\n",  # A byte-order mark.
    )
    found = items(chest_xray.nih(folder=tmp_path, side=SIDE))
    assert [i.row["official"] for i in found] == ["train", "train", "train", "test"]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            "00000001_001.png 00000003_000.png",
            r"00000001_001\.png is in both of train_",
        ),
        ("00000003_000 unknown", r"00000003_000\.png is in none of train_val_list"),
        ("images/00000003_000.png", r"00000003_000\.png is in none of train_val_list"),
        ("", r"00000003_000\.png is in none of train_val_list"),
        ("\xe9".encode("latin-1"), r"test_list\.txt: can't be read .* UTF-8"),
    ],
)
def test_a_film_is_on_one_of_the_official_lists(tmp_path, names, why):
    """Else all splits would be sampled, and the official test images would train."""
    others = "00000001_000.png 00000001_001.png 00000002_000.png"
    write_nih(tmp_path, train_val_list=others, test_list="")
    content = names if isinstance(names, bytes) else names.encode()
    (tmp_path / "test_list.txt").write_bytes(content)
    with pytest.raises(InputError, match=why):
        chest_xray.nih(folder=tmp_path, side=SIDE)


def test_a_film_with_a_finding_and_none_is_warned_of(tmp_path, caplog):
    chest_xray.nih(folder=write_nih(tmp_path), side=SIDE)
    assert "have a finding" not in caplog.text
    both = ENTRIES.replace("No Finding,1", "No Finding|Mass,1")
    source = chest_xray.nih(folder=write_nih(tmp_path, both), side=SIDE)
    assert "1 rows have a finding and say 'No Finding', such as" in caplog.text
    assert items(source)[1].row["Mass"] == 1


def test_gzipped_tables_read_the_same(nih):
    plain = items(chest_xray.nih(folder=nih, side=SIDE))
    for path in list(nih.glob("*.csv")):
        with gzip.open(f"{path}.gz", "wt") as file:
            file.write(path.read_text())
        path.unlink()
    for a, b in zip(plain, items(chest_xray.nih(folder=nih, side=SIDE)), strict=True):
        np.testing.assert_equal(a._asdict(), b._asdict())


def test_a_backup_is_never_read_in_place_of_the_table(nih):
    table = nih / "Data_Entry_2017_v2020.csv"
    expected = items(chest_xray.nih(folder=nih, side=SIDE))
    for end in (".bak", "~", ".orig"):
        (nih / f"{table.name}{end}").write_text("old")
    for a, b in zip(
        expected, items(chest_xray.nih(folder=nih, side=SIDE)), strict=True
    ):
        np.testing.assert_equal(a._asdict(), b._asdict())
    for other in ("Data_Entry_2017_old.csv", f"{table.name}.gz"):
        (nih / other).write_text("old")
        with pytest.raises(InputError, match="keep one of them"):
            chest_xray.nih(folder=nih, side=SIDE)
        (nih / other).unlink()


def test_boxes_are_optional(tmp_path):
    write_nih(tmp_path, boxes="")
    assert not any(i.boxes for i in items(chest_xray.nih(folder=tmp_path, side=SIDE)))


def damage(folder):
    """Spoils a folder of 4 films in every way; returns file -> words of the reason."""
    torn = folder / "images/00000001_001.png"
    torn.write_bytes(torn.read_bytes()[:200])
    (folder / "images_001/images/00000002_000.png").unlink()
    draw(folder / "images_002/00000009_000.png")
    (folder / "images_003").mkdir()
    shutil.copy(folder / "images/00000001_000.png", folder / "images_003")
    (folder / "images/._00000001_000.png").write_text("a Mac's shadow of the file")
    return {
        "00000001_001.png": "truncated",
        "00000002_000.png": "can't be read",
        "images_002/00000009_000.png": "no row",
        "images_003/00000001_000.png": "has the name of",
    }


def test_quarantine_names_exactly_the_files_left_out(nih, tmp_path):
    reasons = damage(nih)
    source = chest_xray.nih(folder=nih, side=SIDE)
    assert source.total == 6
    films, table, boxes, quarantine = prepare(source, tmp_path, allowed=0.7)
    assert list(quarantine["file"]) == list(reasons)
    for found, words in zip(quarantine["reason"], reasons.values(), strict=True):
        assert words in found
    assert [f["image"] for f in films] == list(table["image"])
    assert list(table["image"]) == ["00000001_000.png", "00000003_000.png"]
    assert list(boxes["id"]) == [0, 0, 1]


def test_too_many_bad_files_leave_a_list_and_no_records(nih, tmp_path):
    reasons = damage(nih)
    source = chest_xray.nih(folder=nih, side=SIDE)
    with pytest.raises(InputError, match="4 of 6 files") as caught:
        prepare(source, tmp_path, allowed=0.66)
    assert not prepared.is_prepared(records.folder(tmp_path / "records", "x"))
    (kept,) = (tmp_path / "records").rglob("*.csv")
    assert str(kept) in str(caught.value)
    assert list(pd.read_csv(kept)["file"]) == list(reasons)


GOOD = "00000001_000.png,Mass,0,1,58,M,PA,9,9,1,1\n"


@pytest.mark.parametrize(
    ("entries", "boxes", "message"),
    [
        (GOOD.replace("Mass", "Mass|Cold"), "", "'Cold'"),
        (GOOD.replace(",1,58", ",one,58"), "", "patient of 00000001_000.png is 'one'"),
        (GOOD.replace(",1,58", ",,58"), "", "has no patient"),
        (GOOD.replace("9,9,1,1", "9,9,1,wide"), "", "spacing_y .* is 'wide'"),
        (GOOD.replace("Mass,0,", "Mass,first,"), "", "follow_up .* is 'first'"),
        (GOOD + GOOD, "", "lists 00000001_000.png twice"),
        (GOOD, "00000001_000.png,Cold,1,2,3,4\n", "'Cold'"),
        (GOOD, "00000001_000.png,Mass,1,2,3,many\n", "the h of .* is 'many'"),
        (GOOD, "00000001_000.png,Mass,1,2,,4\n", "Mass in .* from 1, 2 to nan, 6"),
        (GOOD, "00000001_000.png,Mass,1,2,3,-4\n", "Mass in .* from 1, 2 to 4, -2"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, entries, boxes, message):
    write_nih(tmp_path, entries, boxes)
    with pytest.raises(InputError, match=message) as caught:
        chest_xray.nih(folder=tmp_path, side=SIDE)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_nih_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        chest_xray.nih(folder=tmp_path / "absent", side=SIDE)
    with pytest.raises(InputError, match="Data_Entry_2017"):
        chest_xray.nih(folder=tmp_path, side=SIDE)
    write_nih(tmp_path, GOOD)
    shutil.move(tmp_path / "images", tmp_path / "pictures")
    with pytest.raises(InputError, match=r"no images/"):
        chest_xray.nih(folder=tmp_path, side=SIDE)
    shutil.rmtree(tmp_path / "pictures")
    with pytest.raises(InputError, match="no image"):
        chest_xray.nih(folder=tmp_path, side=SIDE)
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    table.write_text("Image Index,Finding Labels\n")
    with pytest.raises(InputError, match="no column 'Patient ID'"):
        chest_xray.nih(folder=tmp_path, side=SIDE)
    table.write_text("")
    with pytest.raises(InputError, match="is no CSV"):
        chest_xray.nih(folder=tmp_path, side=SIDE)


# CheXpert

PLACES = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
FINDINGS = [
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]


def write_chexpert(folder, rows, table="train.csv", prefix="CheXpert-v1.0-small/"):
    """A folder as CheXpert lays it out: rows of (path, metadata, {finding: text})."""
    with open(folder / table, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["Path", *PLACES, "No Finding", *FINDINGS])
        for path, places, labels in rows:
            cells = [labels.get(finding, "") for finding in FINDINGS]
            out.writerow([prefix + path, *places, "1.0", *cells])
            draw(folder / path, (20, 30))
    return folder


FRONTAL = ("Male", "61", "Frontal", "AP")
ONE = "train/patient00042/study1/view1_frontal.jpg"
FOUR = {"Edema": "1.0", "Fracture": "0.0", "Cardiomegaly": "-1.0"}  # And blank ones.


@pytest.mark.parametrize("blank", ["zeros", "ignore"])
@pytest.mark.parametrize(
    ("policy", "uncertain"),
    [("ignore", math.nan), ("zeros", 0.0), ("ones", 1.0), ("soft", 0.7)],
)
def test_the_policies_for_uncertain_and_blank(tmp_path, policy, uncertain, blank):
    write_chexpert(tmp_path, [(ONE, FRONTAL, FOUR)])
    source = chest_xray.chexpert(
        folder=tmp_path, side=SIDE, uncertain=policy, blank=blank
    )
    (item,) = items(source)
    assert source.tasks == tuple(FINDINGS)
    for finding in FINDINGS:
        expected = {"Edema": 1.0, "Fracture": 0.0, "Cardiomegaly": uncertain}.get(
            finding, 0.0 if blank == "zeros" else math.nan
        )
        np.testing.assert_equal(item.row[finding], expected)


def test_a_chexpert_folder_becomes_records(tmp_path):
    second = "train/patient00007/study2/view1_frontal.jpg"
    third = "valid/patient64541/study1/view1_frontal.jpg"
    write_chexpert(
        tmp_path,
        [
            (ONE, FRONTAL, FOUR),
            (second, ("Female", "0", "Frontal", "PA"), {"Edema": "-1"}),
        ],
    )
    unknown = ("Unknown", "", "Frontal", "AP")
    write_chexpert(
        tmp_path, [(third, unknown, dict.fromkeys(FINDINGS, "1"))], "valid.csv"
    )
    films, table, _, _ = prepare(
        chest_xray.chexpert(folder=tmp_path, side=SIDE), tmp_path
    )
    assert [f["image"] for f in films] == [ONE, second, third]
    assert [f["patient"][-5:] for f in films] == ["00042", "00007", "64541"]
    assert [f["sex"] for f in films] == ["M", "F", ""]
    assert [f["view"] for f in films] == ["AP", "PA", "AP"]
    assert [f["official"] for f in films] == ["train", "train", "test"]
    assert [f["follow_up"] for f in films] == [0, 1, 0]
    np.testing.assert_array_equal([f["age"] for f in films], [61, 0, math.nan])
    assert [(f["width"], f["height"]) for f in films] == [(30, 20)] * 3
    assert np.isnan([f["spacing_x"] for f in films]).all()
    labels = np.stack([f["label"] for f in films])
    np.testing.assert_array_equal(labels, table[FINDINGS].to_numpy(np.float32))
    np.testing.assert_array_equal(labels[2], 1)
    assert np.isnan(labels[1, FINDINGS.index("Edema")])
    for film, path in zip(films, (ONE, second, third), strict=True):
        square = image_files.resize(image_files.read(tmp_path / path).pixels, SIDE)
        np.testing.assert_array_equal(film["pixels"][..., 0], square)


@pytest.mark.parametrize(
    ("views", "kept"),
    [
        (("PA", "AP"), [1, 2]),
        (("PA",), [1]),
        (("LATERAL",), [3]),
        (("",), [4, 5]),
        (("AP", "LATERAL", ""), [2, 3, 4, 5]),
    ],
)
def test_only_the_wanted_views_are_kept(tmp_path, views, kept):
    places = [("Frontal", "PA"), ("Frontal", "AP"), ("Lateral", ""), ("Frontal", "LL")]
    places.append(("Frontal", ""))
    rows = [
        (f"train/patient{n:05}/view.jpg", ("Male", "60", *place), {})
        for n, place in enumerate(places, 1)
    ]
    write_chexpert(tmp_path, rows)
    found = items(chest_xray.chexpert(folder=tmp_path, side=SIDE, views=views))
    assert [i.row["patient"] for i in found] == [f"patient{n:05}" for n in kept]
    assert {i.row["view"] for i in found} == set(views)
    assert np.isnan([i.row["follow_up"] for i in found]).all()  # No study is named.


def test_paths_without_a_prefix_are_read_too(tmp_path):
    write_chexpert(tmp_path, [(ONE, FRONTAL, FOUR)], prefix="")
    (item,) = items(chest_xray.chexpert(folder=tmp_path, side=SIDE))
    assert item.row["image"] == ONE
    assert item.content is not None


@pytest.mark.parametrize(
    ("path", "labels", "settings", "message"),
    [
        (ONE, {"Edema": "maybe"}, {}, "Edema of train/patient00042"),
        (ONE, {"Edema": "2.0"}, {}, "is '2', none of"),
        (
            ONE,
            {},
            {"uncertain": "guess"},
            "data.uncertain='guess' is unknown: use .*'soft'",
        ),
        (ONE, {}, {"blank": "ones"}, "data.blank='ones'"),
        (ONE, {}, {"views": ("PA", "side")}, "data.views='side'"),
        ("train/42/view1.jpg", {}, {}, "names no patient"),
    ],
)
def test_a_wrong_label_path_or_policy_is_named(
    tmp_path, path, labels, settings, message
):
    write_chexpert(tmp_path, [(path, FRONTAL, labels)])
    with pytest.raises(InputError, match=message):
        chest_xray.chexpert(folder=tmp_path, side=SIDE, **settings)


def test_a_missing_finding_of_chexpert_is_named(tmp_path):
    write_chexpert(tmp_path, [(ONE, FRONTAL, {})])
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("Fracture", "Fractures"))
    with pytest.raises(InputError, match="no column 'Fracture'"):
        chest_xray.chexpert(folder=tmp_path, side=SIDE)


def test_views_that_no_film_has_leave_nothing_to_prepare(tmp_path):
    write_chexpert(tmp_path, [(ONE, FRONTAL, {})])
    source = chest_xray.chexpert(folder=tmp_path, side=SIDE, views=("PA",))
    with pytest.raises(InputError, match="no image"):
        prepare(source, tmp_path)


def test_the_findings_of_chexpert_are_the_papers():
    assert chest_xray.CHEXPERT_TASKS == tuple(FINDINGS)


# The phantom

SETTINGS = {"side": 32, "patients": 5, "films": 2, "seed": 3}
OFTEN = (0.5, 0.4, 0.5, 0.5, 0.4, 0.5)


@pytest.fixture(scope="module")
def people():
    """What the phantom itself says of patients 5 to 9."""
    one = jax.jit(
        chest_phantom.patient, static_argnames=("films", "side", "prevalence")
    )
    key = jax.random.key(SETTINGS["seed"])
    return {
        n: jax.device_get(one(key, n, films=2, side=32, prevalence=OFTEN))
        for n in range(5, 10)
    }


@pytest.fixture
def chunks(monkeypatch):
    """Two patients are drawn at a time, and at last one."""
    monkeypatch.setattr(chest_xray, "PHANTOMS_AT_ONCE", 2)


def test_phantom_records_hold_what_the_phantom_drew(tmp_path, chunks, people):
    source = chest_xray.phantom(**SETTINGS, first_patient=5, prevalence=OFTEN)
    assert source.total == 10
    films, table, boxes, quarantine = prepare(source, tmp_path)
    assert len(films) == len(table) == 10
    assert len(quarantine) == 0
    expected_boxes = []
    for n, film in enumerate(films):
        number, f = 5 + n // 2, n % 2
        drawn = {name: values[f] for name, values in people[number].items()}
        # Compiled apart, a rounding may fall the other way.
        np.testing.assert_allclose(
            film["pixels"].astype(int), drawn["pixels"].astype(int), atol=1
        )
        np.testing.assert_array_equal(film["label"], drawn["label"])
        np.testing.assert_array_equal(
            table.loc[n, list(chest_phantom.FINDINGS)], drawn["label"]
        )
        assert int(film["patient"]) == table["patient"][n] == number
        assert film["age"] == table["age"][n] == drawn["age"]
        assert film["view"] == table["view"][n] == ("PA", "AP")[drawn["view"]]
        assert film["sex"] == table["sex"][n] == ("F", "M")[drawn["sex"]]
        assert film["width"] == film["height"] == 32
        assert film["follow_up"] == table["follow_up"][n] == f
        np.testing.assert_allclose(film["spacing_x"] * 32, 400)
        for task, label, box in zip(
            chest_phantom.FINDINGS, drawn["label"], drawn["box"], strict=True
        ):
            if label == 1:
                expected_boxes.append((n, task, *box))
    assert expected_boxes
    assert list(zip(boxes["id"], boxes["task"], strict=True)) == [
        row[:2] for row in expected_boxes
    ]
    np.testing.assert_allclose(
        boxes[["x0", "y0", "x1", "y1"]], [row[2:] for row in expected_boxes], atol=1e-2
    )
    assert table["image"].is_unique


def test_other_numbers_and_other_seeds_are_other_people(chunks):
    def pixels(**changes):
        return [i.content for i in items(chest_xray.phantom(**{**SETTINGS, **changes}))]

    base = pixels()
    for other in (pixels(first_patient=5), pixels(seed=4)):
        assert not any((a == b).all() for a in base for b in other)
    overlap = pixels(first_patient=1)
    np.testing.assert_array_equal(base[2:], overlap[:-2])


def test_settings_that_make_no_phantom_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.prevalence has 2 numbers"):
        chest_xray.phantom(**SETTINGS, prevalence=(0.1, 0.2))
    for changes in ({"patients": 0}, {"films": 0}):
        with pytest.raises(InputError, match="no image"):
            prepare(chest_xray.phantom(**{**SETTINGS, **changes}), tmp_path)


# Real films


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is absent")
def test_the_nih_sample_against_its_own_tables(tmp_path):
    films, table, boxes, quarantine = prepare(
        chest_xray.nih(folder=SAMPLE, side=64), tmp_path
    )
    with open(SAMPLE / "Data_Entry_2017_v2020.csv", newline="") as file:
        entries = list(csv.reader(file))[1:]
    assert len(films) == len(table) == len(entries) == 700
    assert table["patient"].nunique() == len({row[3] for row in entries}) == 480
    assert len(quarantine) == 0
    counted = collections.Counter(f for row in entries for f in row[1].split("|"))
    assert counted.pop("No Finding") == sum(not film["label"].any() for film in films)
    assert counted == {
        t: table[t].sum() for t in chest_xray.NIH_TASKS if table[t].sum()
    }
    for n, (film, row) in enumerate(zip(films, entries, strict=True)):
        assert film["id"] == table["id"][n] == n
        assert film["image"] == table["image"][n] == row[0]
        assert film["follow_up"] == table["follow_up"][n] == int(row[2])
        assert str(film["patient"]) == row[3]
        assert film["age"] == float(row[4])
        assert [film["sex"], film["view"]] == row[5:7]
        assert [film["width"], film["height"]] == [int(v) for v in row[7:9]]
        assert np.float32(film["spacing_x"]) == np.float32(row[9])
        assert np.float32(film["spacing_y"]) == np.float32(row[10])
        present = {
            t for t, v in zip(chest_xray.NIH_TASKS, film["label"], strict=True) if v
        }
        assert present == set(row[1].split("|")) - {"No Finding"}
    for n in range(0, 700, 50):
        raw = image_files.read(SAMPLE / "images" / entries[n][0]).pixels
        np.testing.assert_array_equal(
            films[n]["pixels"][..., 0], image_files.resize(raw, 64)
        )
    with open(SAMPLE / "BBox_List_2017.csv", newline="") as file:
        listed = [
            (
                row[0],
                row[1].replace("Infiltrate", "Infiltration"),
                *map(float, row[2:6]),
            )
            for row in list(csv.reader(file))[1:]
        ]
    found = [
        (table["image"][b.id], b.task, b.x0 * 16, b.y0 * 16, b.x1 * 16, b.y1 * 16)
        for b in boxes.itertuples()
    ]
    assert len(found) == len(listed) == 32
    expected = sorted((i, t, x, y, x + w, y + h) for i, t, x, y, w, h in listed)
    for a, b in zip(sorted(found), expected, strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_allclose(a[2:], b[2:])
