"""Layouts by name: small folders as the data sets' own documents describe them."""

import contextlib
import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scans import touch

from configs import base
from medjax.cohort import identity
from medjax.data import image_files
from medjax.data.sources import FILES_OF, IMAGES, chest_xray, scan_layouts
from medjax.data.sources.scan_files import SequenceFile
from medjax.errors import InputError
from medjax.tasks import scans

SIDE = 8


def draw(path, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(len(str(path))).integers(0, 256, size[::-1], np.uint8)
    Image.fromarray(grey).save(path, format="PNG")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)


def read(source):
    """Rows of a source by image, with the boxes and whether there are pixels."""
    items = list(source.items())
    return {i.row["image"]: i for i in items}


def options(kind, folder, **changes):
    fields = base.data(kind).to_dict()
    for name in ("source", "records", "max_quarantined", "tasks"):
        del fields[name]
    return fields | {"folder": folder, "side": SIDE} | changes


# --------------------------------------------------------------------- MIMIC-CXR-JPG

STUDIES = "files/p10/p10000032/s50414267/a.jpg", "files/p10/p10000032/s53189527/b.jpg"
OTHER = "files/p11/p11000001/s60000001/c.jpg"
METADATA = """dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime
a,10000032,50414267,PA,3056,2544,21800506,213014.53
a2,10000032,50414267,LATERAL,3056,2544,21800506,213014.53
b,10000032,53189527,AP,2544,3056,21800626,165500.312
c,11000001,60000001,PA,100,200,21700101,8
"""
SPLIT = """dicom_id,study_id,subject_id,split
a,50414267,10000032,train
a2,50414267,10000032,train
b,53189527,10000032,train
c,60000001,11000001,validate
"""


@pytest.fixture
def mimic(tmp_path):
    columns = ["subject_id", "study_id", "No Finding", *chest_xray.CHEXPERT_TASKS]
    table = pd.DataFrame("", range(2), columns)
    table["subject_id"] = ["10000032", "10000032"]
    table["study_id"] = ["50414267", "53189527"]
    table["Edema"], table["Fracture"] = ["1.0", "-1.0"], ["0.0", ""]
    for name, text in (
        ("metadata.csv.gz", METADATA),
        ("split.csv", SPLIT),
        ("chexpert.csv.gz", table.to_csv(index=False)),
        ("negbio.csv", table.replace("1.0", "0.0").to_csv(index=False)),
    ):
        write(tmp_path / f"mimic-cxr-2.0.0-{name}", text)
    for image in (*STUDIES, OTHER, STUDIES[0].replace("a.jpg", "a2.jpg")):
        draw(tmp_path / image)
    return tmp_path


def test_mimic_cxr_has_the_labels_of_studies_and_the_official_split(mimic, caplog):
    source = IMAGES["mimic_cxr"](**options("mimic_cxr", mimic))
    assert source.tasks == chest_xray.CHEXPERT_TASKS
    films = read(source)
    assert list(films) == [*STUDIES, OTHER]  # The lateral film isn't asked for.
    rows = [films[image].row for image in films]
    assert [r["patient"] for r in rows] == [10000032, 10000032, 11000001]
    assert [r["official"] for r in rows] == ["train", "train", "validation"]
    assert [r["follow_up"] for r in rows] == [0, 1, 0]  # By the studies' dates.
    assert [(r["width"], r["height"]) for r in rows][:2] == [(2544, 3056), (3056, 2544)]
    assert [r["view"] for r in rows] == ["PA", "AP", "PA"]
    np.testing.assert_array_equal([r["Edema"] for r in rows], [1, np.nan, np.nan])
    np.testing.assert_array_equal([r["Fracture"] for r in rows], [0, 0, np.nan])
    assert "no row of 1 of 3 studies, such as 60000001: their labels" in caplog.text
    assert all(film.content is not None for film in films.values())
    other = {"labels": "negbio", "views": ("LATERAL",), "uncertain": "ones"}
    lateral = read(IMAGES["mimic_cxr"](**options("mimic_cxr", mimic, **other)))
    (film,) = lateral.values()
    assert film.row["Edema"] == 0 and film.row["view"] == "LATERAL"


def test_a_study_with_a_finding_and_none_is_warned_of(mimic, caplog):
    path = mimic / "mimic-cxr-2.0.0-negbio.csv"
    table = pd.read_csv(path, dtype=str).fillna("")
    table["No Finding"], table["Support Devices"] = ["1.0", "1.0"], ["1.0", ""]
    table.to_csv(path, index=False)
    IMAGES["mimic_cxr"](**options("mimic_cxr", mimic, labels="negbio"))
    assert "have a finding" not in caplog.text  # A device is no finding of CheXpert's.
    table.assign(Edema=["", "1.0"]).to_csv(path, index=False)
    IMAGES["mimic_cxr"](**options("mimic_cxr", mimic, labels="negbio"))
    assert "1 rows have a finding and say 'No Finding', such as that of 53189527" in (
        caplog.text
    )


def test_mimic_cxr_lists_its_files(mimic):
    files = FILES_OF["mimic_cxr"](**options("mimic_cxr", mimic))
    tables = {f"mimic-cxr-2.0.0-{n}" for n in ("metadata.csv.gz", "split.csv")}
    assert tables | {"mimic-cxr-2.0.0-chexpert.csv.gz", *STUDIES, OTHER} < {*files}
    assert "mimic-cxr-2.0.0-negbio.csv" not in files
    nowhere = FILES_OF["mimic_cxr"](**options("mimic_cxr", mimic / "nowhere"))
    assert nowhere == {}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("split.csv", "validate", "dev", "the split 'dev' is none of train, validate"),
        ("split.csv", "c,600", "d,600", "has 0 rows of the dicom_id c: give it one"),
        ("split.csv", "c,600", "a,600", "has 2 rows of the dicom_id a: give it one"),
        ("metadata.csv.gz", "ViewPosition", "View", "no column 'ViewPosition'"),
        ("chexpert.csv.gz", "53189527", "50414267", "lists the study 50414267 twice"),
        ("chexpert.csv.gz", "-1.0", "maybe", "Edema of 53189527 is 'maybe'"),
    ],
)
def test_a_wrong_table_of_mimic_cxr_is_named(mimic, name, old, new, message):
    path = mimic / f"mimic-cxr-2.0.0-{name}"
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        text = file.read()
    write(path, text.replace(old, new))
    with pytest.raises(InputError, match=message):
        IMAGES["mimic_cxr"](**options("mimic_cxr", mimic))


def test_wrong_settings_of_mimic_cxr_are_named(mimic):
    for changes, message in (
        ({"labels": "mine"}, "data.labels='mine'"),
        ({"views": ("front",)}, "data.views='front'"),
        ({"uncertain": "maybe"}, "data.uncertain='maybe'"),
    ):
        with pytest.raises(InputError, match=message):
            IMAGES["mimic_cxr"](**options("mimic_cxr", mimic, **changes))


# ------------------------------------------------------------------------- VinDr-CXR

TRAIN = """image_id,rad_id,Cardiomegaly,Other diseases,No finding
a,R1,1,0,0
a,R2,1,0,0
a,R3,0,1,0
b,R1,0,0,1
b,R2,1,,0
"""
TEST = """image_id,Cardiomegaly,Other disease,No finding
t,0,1,0
"""
BOXES = """image_id,rad_id,class_name,x_min,y_min,x_max,y_max
a,R1,Cardiomegaly,0,5,12,20
a,R3,Other diseases,1,1,2,2
b,R1,No finding,,,,
"""


@pytest.fixture
def vindr(tmp_path):
    write(tmp_path / "annotations/image_labels_train.csv", TRAIN)
    write(tmp_path / "annotations/image_labels_test.csv", TEST)
    write(tmp_path / "annotations/annotations_train.csv", BOXES)
    for image in ("train/a.dicom", "train/b.png", "test/t.dicom"):
        draw(tmp_path / image)
    return tmp_path


@pytest.mark.parametrize(
    ("readers", "cardiomegaly", "other"),
    [("majority", [1, np.nan, 0], [0, 0, 1]), ("any", [1, 1, 0], [1, 0, 1])],
)
def test_the_readers_of_vindr_cxr_decide(vindr, readers, cardiomegaly, other):
    """Two of three are most, and one of two is not; a blank cell doesn't count."""
    source = IMAGES["vindr_cxr"](**options("vindr_cxr", vindr, readers=readers))
    assert source.tasks == ("Cardiomegaly", "Other diseases")
    films = read(source)
    assert list(films) == ["a", "b", "t"]
    rows = [film.row for film in films.values()]
    np.testing.assert_array_equal([r["Cardiomegaly"] for r in rows], cardiomegaly)
    np.testing.assert_array_equal([r["Other diseases"] for r in rows], other)
    assert [r["official"] for r in rows] == ["train", "train", "test"]
    assert [r["patient"] for r in rows] == ["a", "b", "t"]
    # Of 24 x 20 pixels: boxes are those of the film of 8 x 8.
    boxes = {"majority": 1, "any": 2}[readers]
    assert len(films["a"].boxes) == boxes and not films["b"].boxes
    assert films["a"].boxes[0] == ("Cardiomegaly", 0, 2, 4, 8)
    square = image_files.resize(image_files.read(vindr / "train/a.dicom").pixels, SIDE)
    np.testing.assert_array_equal(np.asarray(films["a"].content)[..., 0], square)


@pytest.mark.parametrize(
    ("layout", "image"),
    [("mimic", "files/p10/more.jpg"), ("vindr", "train/more.png")],
)
def test_films_without_a_row_are_counted(request, caplog, layout, image):
    folder, kind = request.getfixturevalue(layout), f"{layout}_cxr"
    IMAGES[kind](**options(kind, folder))
    assert "images of the folder" not in caplog.text
    draw(folder / image)
    IMAGES[kind](**options(kind, folder))
    assert f"no row of 1 images of the folder, {folder / image} for" in caplog.text


def test_vindr_cxr_lists_its_files_and_names_what_is_wrong(vindr):
    files = FILES_OF["vindr_cxr"](**options("vindr_cxr", vindr))
    tables = ("image_labels_train", "image_labels_test", "annotations_train")
    assert {*files} == {f"annotations/{name}.csv" for name in tables} | {
        *("train/a.dicom", "train/b.png", "test/t.dicom")
    }
    make = IMAGES["vindr_cxr"]
    with pytest.raises(InputError, match=r"data\.readers='all'"):
        make(**options("vindr_cxr", vindr, readers="all"))
    for copy in ("train/a.png", "test/a.dicom"):
        draw(vindr / copy)
        with pytest.raises(InputError, match=rf"{copy}: are of one image: keep one"):
            make(**options("vindr_cxr", vindr))
        (vindr / copy).unlink()
    path = vindr / "annotations/image_labels_test.csv"
    write(path, TEST.replace("Cardiomegaly", "Heart"))
    with pytest.raises(InputError, match="only one of its tables has the column 'Card"):
        make(**options("vindr_cxr", vindr))
    write(path, TEST.replace("0,1,0", "2,1,0"))
    with pytest.raises(InputError, match="Cardiomegaly of t is 2"):
        make(**options("vindr_cxr", vindr))
    path.unlink()
    assert list(read(make(**options("vindr_cxr", vindr)))) == ["a", "b"]
    train = vindr / "annotations/image_labels_train.csv"
    for text, message in (
        (TRAIN.replace("a,R3", "a, r2 "), "lists a twice by the reader 'r2'"),
        (TRAIN.replace("R1", "").replace("R2", ""), "lists a twice, and nothing says"),
    ):
        write(train, text)
        with pytest.raises(InputError, match=message):
            make(**options("vindr_cxr", vindr))
    train.unlink()
    with pytest.raises(InputError, match="no image_labels_train.csv"):
        make(**options("vindr_cxr", vindr))


# --------------------------------------------------------------------- BraTS and BIDS

ORDER = ("t1c", "t2f")
GLI = "BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00017-000"


@pytest.mark.parametrize("flat", [True, False])
def test_brats_scans_are_found_by_their_names(tmp_path, flat):
    for name in GLI:
        parts = ("t1c", "t1n", "t2f", "t2w", "seg")
        place = tmp_path if flat else tmp_path / "training" / name
        touch(*(place / f"{name}-{part}.nii.gz" for part in parts))
    touch(tmp_path / "._BraTS-GLI-00000-000-t1c.nii.gz", tmp_path / "notes.txt")
    found = scan_layouts.in_brats(tmp_path, sequences=ORDER)
    assert [scan.name for scan in found] == [*GLI]
    place = tmp_path if flat else tmp_path / "training" / GLI[1]
    path = place / f"{GLI[1]}-t1c.nii.gz"
    assert found[1].sequences["t1c"] == SequenceFile(path)
    assert tuple(found[1].sequences) == ORDER
    assert found[1].mask == path.with_name(f"{GLI[1]}-seg.nii.gz")
    # Both time points are of one patient.
    patients = identity.patients([scan.name for scan in found], "")
    assert patients == ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00017"]
    config = base.segmentation("brats")
    config.data.folder = str(tmp_path)
    assert [scan.name for scan in scans.find(config, tmp_path)] == [*GLI]
    unmarked = scans.find(config, tmp_path, masks=False)
    assert {scan.mask for scan in unmarked} == {None}


def test_brats_files_that_do_not_fit_are_named(tmp_path, caplog):
    with pytest.raises(InputError, match="is no folder"):
        scan_layouts.in_brats(tmp_path / "nowhere", sequences=ORDER)
    with pytest.raises(InputError, match="named as BraTS-GLI-00000-000-t1c"):
        scan_layouts.in_brats(tmp_path, sequences=ORDER)
    touch(tmp_path / f"{GLI[0]}-t1c.nii.gz")
    with pytest.raises(InputError, match=r"no file of .* is 't2f': 't1c'"):
        scan_layouts.in_brats(tmp_path, sequences=ORDER)
    touch(tmp_path / f"{GLI[0]}-t1c (1).nii.gz")
    scan_layouts.in_brats(tmp_path, sequences=("t1c",))
    assert f"left out: {GLI[0]}-t1c (1).nii.gz" in caplog.text
    touch(tmp_path / f"{GLI[2]}-t2f.nii.gz")
    found = scan_layouts.in_brats(tmp_path, sequences=ORDER)  # Missing ones are None.
    assert [[*map(bool, s.sequences.values())] for s in found] == [[1, 0], [0, 1]]
    touch(tmp_path / "again" / f"{GLI[0]}-t1c.nii")
    with pytest.raises(InputError, match="keep one of them"):
        scan_layouts.in_brats(tmp_path, sequences=ORDER)


def test_links_to_brats_scans_are_followed_and_other_files_named(tmp_path, caplog):
    home, far = tmp_path / "home", tmp_path / "far"
    touch(*(home / GLI[0] / f"{GLI[0]}-{part}.nii.gz" for part in ORDER))
    touch(*(far / f"{GLI[2]}-{part}.nii.gz" for part in ORDER))
    touch(home / f"{GLI[1]}-t1c.nrrd")
    (home / GLI[2]).symlink_to(far)
    (far / f"{GLI[2]}-seg.nii.gz").symlink_to("nowhere")
    first, last = scan_layouts.in_brats(home, sequences=ORDER)
    assert first.mask is None and all(last.sequences.values())
    # A link to nowhere is no missing file, which data.missing may fill.
    assert last.mask.is_symlink() and not last.mask.exists()
    assert f"{home}: left out: {GLI[1]}-t1c.nrrd" in caplog.messages


@pytest.fixture
def bids(tmp_path):
    for place in ("sub-01/ses-1", "sub-01/ses-2", "sub-02"):
        stem = place.replace("/", "_")
        touch(tmp_path / place / f"anat/{stem}_T1w.nii.gz")
        touch(tmp_path / place / f"anat/{stem}_FLAIR.nii.gz")
        touch(tmp_path / f"derivatives/rater/{place}/anat/{stem}_dseg.nii.gz")
    touch(tmp_path / "sub-03/func/sub-03_task-rest_bold.nii.gz")
    touch(tmp_path / "derivatives/fsl/sub-02/anat/sub-02_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tsex\tage\nsub-01\tF\t9\n"
    )
    return tmp_path


def test_sessions_of_bids_are_scans_of_one_patient(bids, caplog):
    found = scan_layouts.in_bids(bids, sequences=("T1w", "FLAIR"), mask="dseg")
    assert [scan.name for scan in found] == ["sub-01/ses-1", "sub-01/ses-2", "sub-02"]
    path = bids / "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz"
    assert found[1].sequences["FLAIR"] == SequenceFile(path)
    assert found[2].mask == bids / "derivatives/rater/sub-02/anat/sub-02_dseg.nii.gz"
    assert "sub-03: left out" in caplog.text and len(caplog.records) == 1
    patients = identity.patients([scan.name for scan in found], "")
    assert patients == ["sub-01", "sub-01", "sub-02"]
    path.unlink()
    path.symlink_to("annexed")  # Of git-annex, and not fetched.
    found = scan_layouts.in_bids(bids, sequences=("T1w", "FLAIR"))
    assert found[1].sequences["FLAIR"] == SequenceFile(path)
    # What lies beside the sessions is of none of them.
    assert "sub-01: left out" not in caplog.text
    touch(bids / "sub-01/anat/sub-01_T1w.nii.gz", bids / "sub-01/sub-01_FLAIR.nii")
    again = scan_layouts.in_bids(bids, sequences=("T1w", "FLAIR"))
    assert again == found
    names = "sub-01_FLAIR.nii, sub-01_T1w.nii.gz"
    assert f"{bids / 'sub-01'}: left out: {names}" in caplog.messages
    # A new patient, or one session, is predicted.
    options = {"sequences": ("T1w",)}
    names = [scan.name for scan in scan_layouts.in_bids(bids / "sub-01", **options)]
    assert names == ["sub-01/ses-1", "sub-01/ses-2"]
    (alone,) = scan_layouts.in_bids(bids / "sub-01/ses-2", **options)
    assert alone.name == "sub-01/ses-2" and alone.mask is None
    config = base.segmentation("bids")
    config.data.folder = str(bids)
    assert [scan.mask is not None for scan in scans.find(config, bids)] == [True] * 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sub-02_ses-1_T2w", "of sub-01, and its name says sub-02: move"),
        ("sub-01_ses-2_T2w", "of ses-1, and its name says ses-2: move"),
        ("sub-01_T2w", ""),
    ],
)
def test_a_file_in_the_folder_of_another_subject_is_refused(bids, name, why):
    touch(bids / f"sub-01/ses-1/anat/{name}.nii.gz")
    with pytest.raises(InputError, match=why) if why else contextlib.nullcontext():
        scan_layouts.in_bids(bids, sequences=("T2w",))


def test_a_subject_that_is_spelt_otherwise_is_named(bids, caplog):
    scan_layouts.in_bids(bids, sequences=("T1w",))
    assert "left out: " not in caplog.text
    for name in ("Sub-03", "sub04"):
        touch(bids / f"{name}/anat/{name}_T1w.nii.gz")
    scan_layouts.in_bids(bids, sequences=("T1w",))
    assert "left out: Sub-03, sub04" in caplog.text


def test_names_of_bids_that_do_not_say_which_are_refused(bids):
    anat = bids / "sub-02/anat"
    touch(*(anat / f"sub-02_ce-gd_{end}.nii.gz" for end in ("T1w", "run-1_T2w")))
    (one,) = scan_layouts.in_bids(bids, sequences=("ce-gd_T1w",))
    assert one.name == "sub-02"
    plain = scan_layouts.in_bids(bids, sequences=("T1w",))[-1].sequences["T1w"]
    assert plain.path.name == "sub-02_T1w.nii.gz"
    touch(anat / "sub-02_run-2_T2w.nii.gz")
    with pytest.raises(InputError, match=r"run-1_T2w.*run-2_T2w.*both end in T2w"):
        scan_layouts.in_bids(bids, sequences=("T2w",))
    with pytest.raises(
        InputError, match=r"no folder 'sub-\*' .* file 'sub-\*_PD.nii.gz'"
    ):
        scan_layouts.in_bids(bids, sequences=("PD",))
    touch(bids / "derivatives/other/sub-01/ses-1/sub-01_ses-1_dseg.nii.gz")
    with pytest.raises(InputError, match="both end in dseg.*data.mask"):
        scan_layouts.in_bids(bids, sequences=("FLAIR",), mask="dseg")
