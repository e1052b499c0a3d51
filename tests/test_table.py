"""A CSV file beside images: hand-made rows against values written down by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_dicom import write as dicom_file

from medjax.data import image_files, prepared, records, sources
from medjax.data.sources import cells
from medjax.errors import InputError

SIDE = 8
RNG = np.random.default_rng(0)
COLUMNS = {
    "file": ["a/one.png", "two.jpg", "three.png", "gone.png"],
    "who": ["7", "12", "7", "0"],
    "edema": ["1", "0", "", "1.0"],
    "mass": ["0.25", "", "1", "0"],
    "kind": ["cat", " ant ", "", "bee"],
    "pose": ["PA", "LL", "LATERAL", ""],
    "gender": ["female", "M", "", "x"],
    "years": ["61.5", "", "0", "9"],
    "visit": ["0", "1", "", "2"],
    "part": ["train", "validation", "test", ""],
}
NAMES = {"image": "file", "patient": "who"}
ALL = {"view": "pose", "sex": "gender", "age": "years", "follow_up": "visit"}
ALL |= {"official": "part"}


def write(folder, colour=False, size=(SIDE, SIDE), **changes):
    """A folder with labels.csv and all its files but gone.png; returns their pixels."""
    table = pd.DataFrame({**COLUMNS, **changes})
    table.to_csv(folder / "labels.csv", index=False)
    drawn = {}
    for name in table["file"]:
        if name in ("gone.png", "", ".") or ".." in name or Path(name).is_absolute():
            continue
        shape = (*size, 3) if colour else size
        drawn[name] = RNG.integers(0, 256, shape, dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[name]).save(folder / name, quality=100, subsampling=0)
    return drawn


def source(folder, **settings):
    settings = {"labels": ("edema", "mass"), **NAMES, **settings}
    return sources.IMAGES["table"](folder=folder, side=SIDE, **settings)


def items(source):
    return list(source.items())


def test_a_folder_becomes_records_equal_to_what_was_written(tmp_path):
    (tmp_path / "in").mkdir()
    drawn = write(tmp_path / "in")
    path = records.prepare(
        source(tmp_path / "in", **ALL),
        records=tmp_path / "records",
        name="x",
        max_quarantined=0.25,
    )
    table = prepared.read_table(path)
    assert records.pixels_of(path).shape[1:] == (SIDE, SIDE, 1)
    assert records.pixels_of(path).dtype == np.uint8
    assert list(table["image"]) == ["a/one.png", "two.jpg", "three.png"]
    assert list(table["patient"]) == [7, 12, 7]
    assert list(table["view"]) == ["PA", "", "LATERAL"]
    assert list(table["sex"]) == ["F", "M", ""]
    assert list(table["official"]) == ["train", "validation", "test"]
    np.testing.assert_array_equal(table["age"], [61.5, math.nan, 0])
    np.testing.assert_array_equal(table["follow_up"], [0, 1, math.nan])
    np.testing.assert_array_equal(table["edema"], [1, 0, math.nan])
    np.testing.assert_array_equal(table["mass"], [0.25, math.nan, 1])
    assert (table["width"] == SIDE).all()
    (left_out,) = pd.read_csv(path / "quarantine.csv").to_dict("records")
    assert left_out["file"] == "gone.png"
    assert "No such file" in left_out["reason"]
    found = {i.row["image"]: i.content for i in items(source(tmp_path / "in"))}
    for name in ("a/one.png", "three.png"):
        np.testing.assert_array_equal(found[name][..., 0], drawn[name])
    assert np.abs(found["two.jpg"][..., 0] - drawn["two.jpg"].astype(int)).max() <= 2


def test_colour_is_kept_where_asked_and_files_are_resized(tmp_path):
    drawn = write(tmp_path, colour=True, size=(20, 12))
    for channels in (1, 3):
        found = source(tmp_path, channels=channels)
        assert found.shape == (SIDE, SIDE, channels)
        item = items(found)[0]
        pixels = (drawn["a/one.png"] / 255).astype(np.float32)
        if channels == 1:
            pixels = (pixels @ [0.299, 0.587, 0.114]).astype(np.float32)
        expected = image_files.resize(pixels, SIDE).reshape(SIDE, SIDE, channels)
        assert np.abs(item.content.astype(int) - expected).max() <= 1
        assert (item.row["width"], item.row["height"]) == (12, 20)


def test_images_that_no_row_names_are_counted(tmp_path, caplog):
    drawn = write(tmp_path)
    source(tmp_path)
    assert "images of the folder" not in caplog.text
    for name in ("b/c.png", "b/a.png"):
        (tmp_path / "b").mkdir(exist_ok=True)
        Image.fromarray(drawn["a/one.png"]).save(tmp_path / name)
    source(tmp_path)
    first = tmp_path / "b/a.png"
    assert f"no row of 2 images of the folder, {first} for one" in caplog.text


def test_one_column_of_classes_becomes_a_task_a_class(tmp_path):
    write(tmp_path)
    found = source(tmp_path, labels=(), classes="kind")
    assert found.tasks == ("ant", "bee", "cat")
    label = [[item.row[task] for task in found.tasks] for item in items(found)]
    unknown = [math.nan] * 3
    np.testing.assert_array_equal(label, [[0, 0, 1], [1, 0, 0], unknown, [0, 1, 0]])


@pytest.mark.parametrize("none", ["No Finding", "no_finding", "NORMAL"])
def test_a_finding_beside_no_finding_is_warned_of_and_counts(tmp_path, caplog, none):
    write(tmp_path, **{none: ["0", "1", "1", ""]})
    films = items(source(tmp_path, labels=("edema", "mass")))
    assert f"1 rows have a finding and say {none!r}, such as that of three.png" in (
        caplog.text
    )
    assert films[2].row["mass"] == 1
    caplog.clear()
    write(tmp_path, **{none: ["0", "1", "0", "1"]}, edema=["1", "0", "", "0"])
    items(source(tmp_path, labels=("edema", "mass", none)))
    assert "have a finding" not in caplog.text


@pytest.mark.parametrize(
    ("who", "ids"),
    [
        (["7", "12", "7 ", "0"], [7, 12, 7, 0]),
        (["7.0", "12.0", "7", "0"], [7, 12, 7, 0]),  # As spreadsheets write them.
        (["007", "012", "007", "000"], ["007", "012", "007", "000"]),
        (["zoe", "12", "zoe ", "adam"], ["zoe", "12", "zoe", "adam"]),
        (["1.5", "2", "2", "3"], ["1.5", "2", "2", "3"]),
        (["-1", "2", "2", "3"], ["-1", "2", "2", "3"]),
        (["3000000000", "2", "2", "3"], [3_000_000_000, 2, 2, 3]),
    ],
)
def test_patients_keep_their_own_ids(tmp_path, who, ids):
    write(tmp_path, who=who)
    assert [item.row["patient"] for item in items(source(tmp_path))] == ids


def test_a_view_or_sex_that_has_no_meaning_is_unknown_and_counted(tmp_path, caplog):
    view, sex = ["pa", "Lateral", "", "oblique"], ["w", "m", "", "Female"]
    write(tmp_path, pose=view, gender=sex)
    rows = [item.row for item in items(source(tmp_path, **ALL))]
    assert [row["view"] for row in rows] == ["PA", "LATERAL", "", ""]
    assert [row["sex"] for row in rows] == ["", "M", "", "F"]
    assert "the view of 1 rows counts as unknown: 'oblique', say, is none of PA" in (
        caplog.text
    )
    assert "the sex of 1 rows counts as unknown: 'w', say" in caplog.text
    assert "either sex" not in caplog.text
    write(tmp_path, who=["7", "8", "7", "8"], gender=["f", "m", "M", "male"])
    items(source(tmp_path, **ALL))
    assert "1 patients, 7 say, have rows of either sex" in caplog.text


def test_columns_of_sexes_and_ages_that_are_not_read_are_named(tmp_path, caplog):
    more = {"Patient Age": ["1"] * 4, "age_months": ["9"] * 4, "page": ["3"] * 4}
    write(tmp_path, **more)
    items(source(tmp_path))
    assert "'gender' isn't read: with data.sex='gender'" in caplog.text
    assert "'Patient Age' isn't read: with data.age='Patient Age'" in caplog.text
    caplog.clear()
    items(source(tmp_path, sex="gender", age="Patient Age"))
    items(source(tmp_path, labels=(), classes="gender", age="Patient Age"))
    assert "isn't read" not in caplog.text


def test_a_mark_before_a_column_s_name_is_shown(tmp_path):
    write(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" * 2 + path.read_bytes())  # A BOM, and one more.
    with pytest.raises(InputError, match=r"only '\\ufefffile', 'who'"):
        source(tmp_path)


def test_lines_without_any_cell_are_passed_over(tmp_path):
    write(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text() + "\n" + "," * 9 + "\n")
    assert len(items(source(tmp_path))) == 4


def test_the_table_may_lie_elsewhere(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    (tmp_path / "in/labels.csv").rename(tmp_path / "other.csv")
    found = source(tmp_path / "in", table=str(tmp_path / "other.csv"))
    assert len(items(found)) == 4


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"labels": ()}, "data.labels and data.classes: give one of them"),
        ({}, {"classes": "kind"}, "data.labels and data.classes: give one of them"),
        ({}, {"patient": ""}, "data.patient='': name the column"),
        ({}, {"patient": "nobody"}, "no column 'nobody', only 'file', 'who', "),
        ({}, {"labels": ("edema", "oedema")}, "no column 'oedema'"),
        ({}, {"classes": "sort", "labels": ()}, "no column 'sort'"),
        ({}, {"channels": 2}, "data.channels=2 is unknown: use 1"),
        ({}, {"table": "none.csv"}, "none.csv: isn't there: correct its name"),
        ({"who": ["1", "", "2", "3"]}, {}, "two.jpg has no patient"),
        ({"who": ["7", "8", "007", "9"]}, {}, "patients: '7' and '007' differ in"),
        ({"who": ["P7", "8", "p7", "9"]}, {}, "patients: 'P7' and 'p7' differ in"),
        ({"who": ["7.0", "8", "7", "A"]}, {}, "patients: '7.0' and '7' differ in"),
        ({"who": ["7", "nan", "8", "9"]}, {}, "the patient of two.jpg is 'nan'"),
        ({"who": ["7", "Unknown", "8", "9"]}, {}, "two.jpg is 'Unknown', which may be"),
        (
            {"who": ["1,23E+05", "8", "7", "9"]},
            {},
            "one.png is '1,23E\\+05', which may",
        ),
        *(
            (
                {"kind": ["ant", "bee", name, ""]},
                {"classes": "kind", "labels": ()},
                f"kind is '{name[:-1]}.' in some rows: leave it blank",
            )
            for name in ("NaN", "Unknown", "?", "#REF!")
        ),
        (
            {"kind": ["Ant", "ant", "bee", ""]},
            {"classes": "kind", "labels": ()},
            "classes: 'Ant' and 'ant' differ in",
        ),
        ({"edema": ["2", "", "1", "0"]}, {}, "edema of a/one.png is 2, not from 0"),
        ({"edema": ["-1", "", "1", "0"]}, {}, "edema of a/one.png is -1, not from 0"),
        ({"edema": ["inf", "", "1", "0"]}, {}, "edema of a/one.png is inf"),
        ({"edema": ["1", "yes", "1", "0"]}, {}, "the edema of two.jpg is 'yes'"),
        ({"years": ["1", "old", "1", "0"]}, ALL, "the age of two.jpg is 'old'"),
        (
            {"years": ["1", "999", "1", "0"]},
            ALL,
            "the age of two.jpg is '999', not from 0",
        ),
        ({"years": ["1", "-1", "1", "0"]}, ALL, "the age of two.jpg is '-1', not from"),
        ({"visit": ["1", "2nd", "1", "0"]}, ALL, "the follow_up of two.jpg is '2nd'"),
        ({"part": ["val", "", "", ""]}, ALL, "official split of a/one.png is 'val'"),
        ({"part": [""] * 4}, ALL, "data.official='part': no row says it: correct"),
        ({"pose": [*"1234"]}, ALL, "data.view='pose': no row says it: .*data.view=''"),
        ({"years": ["", "nan", "", ""]}, ALL, "the age of two.jpg is 'nan'"),
        ({"years": [""] * 4}, ALL, "data.age='years': no row says it: .*data.age=''"),
        ({"kind": ["a"] * 4}, {"classes": "kind", "labels": ()}, "1 class"),
        ({"kind": ["sex", *"abc"]}, {"classes": "kind", "labels": ()}, "'sex', which"),
        (
            {"view": ["1"] * 4},
            {"labels": ("view",)},
            "'view', which is blank or a name",
        ),
        (
            {"Edema": ["1"] * 4},
            {"labels": ("edema", "Edema")},
            "data.labels: 'edema' and 'Edema' differ in case",
        ),
        ({"file": ["a.png", "b.png", "a.png", "c.png"]}, {}, "lists a.png twice"),
        ({"file": ["a.png", "./a.png", "b.png", "c.png"]}, {}, "are the same file"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, changes, settings, message):
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        source(tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        "../secret.png",
        "a/../../secret.png",
        "a/../one.png",
        "/etc/hostname",
        "HERE/in.png",
        "",
        ".",
        "a/..",
    ],
)
def test_only_plain_paths_below_the_folder_are_read(tmp_path, image):
    (tmp_path / "in").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    image = image.replace("HERE", str(tmp_path / "in"))
    write(tmp_path / "in", file=["one.png", "two.png", image, "three.png"])
    with pytest.raises(InputError, match=f"the image {image!r} is no file below"):
        source(tmp_path / "in")


def test_no_link_leads_out_of_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in2").mkdir()  # Begins with the folder's name, and isn't in it.
    write(tmp_path / "in")
    Image.new("L", (4, 4)).save(tmp_path / "in2/secret.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "in2/secret.png")
    with pytest.raises(InputError, match="the image 'gone.png' is no file below"):
        source(tmp_path / "in")
    (tmp_path / "in/gone.png").unlink()
    (tmp_path / "in/gone.png").symlink_to("three.png")
    with pytest.raises(InputError, match="three.png and gone.png are the same file"):
        source(tmp_path / "in")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.png").unlink()
    assert len(items(source(tmp_path / "linked"))) == 4


FORMS = {
    "line 6 repeats the header": lambda text: (text + text).encode(),
    "separated by ';'": lambda text: text.replace(",", ";").encode(),
    "separated by '\\t'": lambda text: text.replace(",", "\t").encode(),
    "isn't UTF-8: save it as": lambda text: text.encode("utf-16"),
    "UTF-8: save": lambda text: text.encode("utf-16-le"),
    "UTF-8": lambda text: text.replace("cat", "fl\xe4che").encode("cp1252"),
    "has 11 fields, the header 10": lambda text: "\n".join(
        line + "," * (n > 0) for n, line in enumerate(text.splitlines())
    ).encode(),
    "the header 10: correct that row": lambda text: text.strip()[:-9].encode(),
    "ends in line 3 has 9 fields": lambda text: "\n".join(
        line.partition(",")[2] if n == 2 else line
        for n, line in enumerate(text.splitlines())
    ).encode(),
    "ends in line 2 has 10 fields, the header 9": lambda text: text.replace(
        "part", "", 1
    ).encode(),
    "has two columns 'part'": lambda text: text.replace("visit", "part").encode(),
    "is no CSV (unexpected end": lambda text: text.replace("\n", '\n"', 1).encode(),
    "is no CSV (it is empty)": lambda text: b"",
}


@pytest.mark.parametrize("why", FORMS)
def test_a_table_of_another_form_is_refused_with_its_form(tmp_path, why):
    write(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_bytes(FORMS[why](path.read_text()))
    with pytest.raises(InputError) as caught:
        source(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and why in text and "\n" not in text


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (".png", "", "but 'one.png' is"),
        ("one", "ONE", "but 'one.png' is"),
        ("one", "\N{FULLWIDTH LATIN SMALL LETTER O}ne", "but 'one.png' is"),
        ("/", "\\", "\\"),
    ],
)
def test_paths_that_are_spelt_otherwise_are_refused_at_once(tmp_path, old, new, why):
    write(tmp_path)
    path = tmp_path / "labels.csv"
    table = pd.read_csv(path, dtype=str).head(1)
    table["file"] = table["file"].str.replace(old, new)
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match="no image of the table is there") as caught:
        source(tmp_path)
    assert why in str(caught.value)


def test_an_empty_table_leaves_nothing_to_prepare(tmp_path):
    write(tmp_path, **{name: [] for name in COLUMNS})
    found = source(tmp_path)
    with pytest.raises(InputError, match="no image"):
        records.prepare(found, records=tmp_path, name="x", max_quarantined=0.0)


def test_a_quoted_cell_may_end_the_table_with_a_line_break_inside(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('image,patient,note\na.png,1,"two\nlines"')
    assert cells.read_csv(path)["note"].to_list() == ["two\nlines"]
    path.write_text("image,patient,note\na.png,1,x\n , ,\n  \n\n")
    assert cells.read_csv(path)["note"].to_list() == ["x"]  # Blank lines are none.
    path.write_text("image,patient,note\na.png,1")
    with pytest.raises(InputError, match="ends in line 2 has 2 fields, the header 3"):
        cells.read_csv(path)


@pytest.mark.parametrize(
    ("ids", "dates"),
    [
        (["7-Jan", "1-13"], 1),
        (["Jan-21", "2021-01-07"], 2),
        (["7.1.2021", "7. Mrz"], 2),
        (["1-7", "2019-1"], 0),
        (["P7", "Marie-12"], 0),
    ],
)
def test_patients_that_a_spreadsheet_made_dates_are_warned_of(
    tmp_path, caplog, ids, dates
):
    write(tmp_path, who=[*ids, "x", "y"])
    source(tmp_path)
    assert (
        f"patients of {dates} rows are dates, such as '{ids[0]}'" in caplog.text
    ) == bool(dates)


def test_films_that_say_two_things_of_black_are_counted(tmp_path, caplog):
    write(tmp_path, file=[f"{name}.png" for name in "abcd"])
    pixels = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    cases = [("2", "IDENTITY"), ("2", "INVERSE"), ("1", "INVERSE"), ("2", "INVERSE")]
    for name, (colour, shape) in zip("abcd", cases):
        elements = {"PhotometricInterpretation": f"MONOCHROME{colour}"}
        data = dicom_file(pixels, **elements, PresentationLUTShape=shape)
        (tmp_path / f"{name}.png").write_bytes(data)
    a, b, c, _ = (item.content[..., 0] for item in items(source(tmp_path)))
    np.testing.assert_array_equal(a, pixels)
    np.testing.assert_array_equal(b, pixels)  # As pydicom and most viewers do.
    np.testing.assert_array_equal(c, 255 - pixels)
    warned = (
        "2 films, b.png for one, are MONOCHROME2 with the PresentationLUTShape INVERSE"
    )
    assert caplog.text.count("films, ") == 1 and warned in caplog.text
