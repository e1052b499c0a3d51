"""The prepared folder: what is written comes back, whole or not at all."""

import csv
import weakref

import numpy as np
import pandas as pd
import pytest
from scans import affine_of, ball, brain, save

from medjax.data import scan, volumes
from medjax.data.scan import make_scan
from medjax.data.sources import scan_files
from medjax.data.volumes import Part, UnreadScan
from medjax.errors import InputError

SHAPE = (12, 16, 14)
SEQUENCES = ("T2", "FLAIR")
REGIONS = {"whole": (1, 2), "core": (2,)}
AFFINE = affine_of("SPL", (2.0, 1.0, 1.5), tilt=0.2)


def case_of(seed=0, labelled=True, **options):
    image = np.stack([brain(SHAPE, seed + c) for c in (0, 100)], axis=-1)
    label = np.stack([ball(SHAPE, r) for r in (0.3, 0.2)], axis=-1)
    return make_scan(image, label if labelled else None, AFFINE, **options)


def patient_of(number, name=None, read=None, official=""):
    name = name or f"P{number:03d}"
    return UnreadScan(name, number, read or (lambda: case_of(number)), official)


def broken():
    raise InputError("P/T1.nii.gz: is cut off")


def prepare(patients, folder, **options):
    return volumes.prepare(
        patients, folder, sequences=SEQUENCES, regions=REGIONS, options={}, **options
    )


def test_cases_come_back_as_they_went_in(tmp_path):
    sent = [patient_of(7, "NA", official="train"), patient_of(9)]
    steps = []
    prepared = prepare(sent, tmp_path / "a/b", progress=lambda: steps.append(1))
    assert len(steps) == 2
    assert prepared.sequences == SEQUENCES and prepared.regions == REGIONS
    assert list(prepared.table["image"]) == ["NA", "P009"]
    assert list(prepared.table["patient"]) == [7, 9]
    assert list(prepared.table["official"]) == ["train", ""]
    for id, one in enumerate(sent):
        case, (image, label) = one.read(), volumes.read(prepared.folder, Part(id))
        assert isinstance(image, np.memmap) and image.dtype == np.float16
        np.testing.assert_array_equal(image, case.image.astype(np.float16))
        np.testing.assert_array_equal(label, case.label)


def test_the_table_tells_sizes_volumes_and_what_is_there(tmp_path):
    one = patient_of(0, read=lambda: case_of(presence=np.array([0, 1])))
    two = patient_of(1, read=lambda: case_of(labelled=False))
    table = prepare([one, two], tmp_path / "a").table
    case, row = one.read(), table.iloc[0]
    assert (row["depth"], row["height"], row["width"]) == case.image.shape[:3]
    spacing = row[["spacing_d", "spacing_h", "spacing_w"]].to_numpy(float)
    np.testing.assert_allclose(spacing, (2.0, 1.0, 1.5))
    assert row["voxels_whole"] == ball(SHAPE, 0.3).sum()
    assert row["voxels_core"] == ball(SHAPE, 0.2).sum()
    assert (row["has_T2"], row["has_FLAIR"]) == (0, 1)
    assert table[["voxels_whole", "voxels_core"]].iloc[1].isna().all()
    assert volumes.read(tmp_path / "a", Part(1))[1] is None


def test_a_patient_that_cannot_be_read_is_left_out_with_a_reason(tmp_path):
    sent = [patient_of(0), patient_of(1, read=broken), patient_of(2)]
    prepared = prepare(sent, tmp_path / "a", max_quarantined=0.4)
    assert list(prepared.table["id"]) == [0, 1]
    assert list(prepared.table["patient"]) == [0, 2]
    with open(tmp_path / "a/quarantine.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["file", "reason"], ["P001", "P/T1.nii.gz: is cut off"]]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_too_many_of_them_stop_it_and_leave_only_the_reasons(tmp_path, share):
    sent = [patient_of(0), patient_of(1, read=broken), patient_of(2)]
    with pytest.raises(InputError, match=r"1 of 3 .*33.3%.*P/T1.nii.gz: is cut off"):
        prepare(sent, tmp_path / "a", max_quarantined=share)
    (left,) = tmp_path.iterdir()
    assert left.name == "a-quarantine.csv"
    assert list(pd.read_csv(left)["file"]) == ["P001"]
    with pytest.raises(InputError, match="1 of 1 patients"):
        prepare(sent[1:2], tmp_path / "a", max_quarantined=1.0)


def test_a_fault_half_way_leaves_nothing_behind(tmp_path):
    def fault():
        raise MemoryError

    with pytest.raises(MemoryError):
        prepare([patient_of(0), patient_of(1, read=fault)], tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_one_case_at_a_time_is_read(tmp_path):
    """What was written is let go of before the next patient is read."""
    alive = []

    def read(number):
        assert not [one for one in alive if one() is not None]
        case = case_of(number)
        alive.append(weakref.ref(case.image))
        return case

    sent = [patient_of(n, read=lambda n=n: read(n)) for n in range(3)]
    prepare(sent, tmp_path / "a")
    assert len(alive) == 3


def test_what_cannot_be_prepared_is_refused(tmp_path):
    with pytest.raises(InputError, match="no patient"):
        prepare([], tmp_path / "a")
    with pytest.raises(InputError, match="two patients are called 'P'"):
        prepare([patient_of(0, "P"), patient_of(1, "P")], tmp_path / "a")
    with pytest.raises(InputError, match="holds no prepared scans"):
        volumes.read_prepared(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="exists"):
        prepare([patient_of(0)], tmp_path / "other")
    prepare([patient_of(0)], tmp_path / "a")
    table = (tmp_path / "a/table.csv").read_text()
    # Another process made it, after this one had looked.
    prepare([patient_of(1)], tmp_path / "a")
    assert (tmp_path / "a/table.csv").read_text() == table


def test_files_are_prepared_as_read_case_reads_them(tmp_path):
    for number, name in enumerate(("P1", "P2")):
        for seed, sequence in enumerate(SEQUENCES):
            voxels = brain(SHAPE, seed + 10 * number)
            save(tmp_path / f"raw/{name}/{sequence}.nii.gz", voxels, AFFINE)
    mask = ball(SHAPE, 0.3).astype(np.uint8) + ball(SHAPE, 0.2)
    save(tmp_path / "raw/P1/seg.nii.gz", mask.astype(np.uint8), AFFINE)
    files = {name: f"{name}.nii.gz" for name in SEQUENCES}
    found = scan_files.in_folders(
        tmp_path / "raw", sequences=SEQUENCES, files=files, mask="seg.nii.gz"
    )
    options = {"regions": REGIONS, "margin": 1.0}
    with pytest.raises(InputError, match="P2: has no mask"):
        prepare(volumes.from_files(found, **options), tmp_path / "strict")
    sent = volumes.from_files(found, labelled=False, **options)
    prepared = prepare(sent, tmp_path / "both")
    case = scan.read_scan(found[0].sequences, found[0].mask, **options)
    image, label = volumes.read(prepared.folder, Part(0))
    np.testing.assert_array_equal(image, case.image.astype(np.float16))
    np.testing.assert_array_equal(label, case.label)
    assert volumes.read(prepared.folder, Part(1))[1] is None
    assert list(prepared.table["image"]) == ["P1", "P2"]
