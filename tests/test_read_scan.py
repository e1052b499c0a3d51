"""Files of one patient -> a case: what is read, aligned, filled and refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scans import affine_of, ball, brain, itk_matrix, save

from medjax.data import alignment, nifti, scan
from medjax.data.sources import scan_files
from medjax.data.sources.scan_files import SequenceFile
from medjax.errors import InputError
from medjax.geometry import grid, registration

SHARED = Path(__file__).parents[2] / "shared/data"
SHAPE = (18, 22, 14)
AFFINE = affine_of("LPS", (1.1, 0.9, 2.0), tilt=0.1)
LESION = {"lesion": (1,)}


def patient(folder, names=("FLAIR", "T1")):
    """Files of one grid, and a mask."""
    files = {
        name: SequenceFile(save(folder / f"{name}.nii.gz", brain(SHAPE, seed), AFFINE))
        for seed, name in enumerate(names)
    }
    mask = save(folder / "lesion.nii.gz", ball(SHAPE, 0.2).astype(np.uint8), AFFINE)
    return files, mask


def test_channels_are_the_sequences_in_the_order_of_the_files(tmp_path):
    files, mask = patient(tmp_path, ("FLAIR", "T1", "T2"))
    case = scan.read_scan(files, mask, regions=LESION)
    turned = {name: files[name] for name in ("T2", "FLAIR", "T1")}
    other = scan.read_scan(turned, mask, regions=LESION)
    np.testing.assert_array_equal(case.image[..., [2, 0, 1]], other.image)
    volume = nifti.read(files["T1"].path)
    inside = volume.voxels != 0
    values = volume.voxels[inside]
    np.testing.assert_allclose(
        np.corrcoef(case.image[case.image[..., 1] != 0, 1], values)[0, 1], 1, atol=0.01
    )
    stored = nibabel.load(files["FLAIR"].path)
    assert case.original.shape == SHAPE
    np.testing.assert_allclose(case.original.affine, stored.affine)


def test_files_stored_with_other_axes_lie_on_one_grid(tmp_path):
    files, mask = patient(tmp_path)
    image = nibabel.load(files["T1"].path)
    turned = nibabel.as_closest_canonical(image)  # RAS.
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    case = scan.read_scan(files, mask, regions=LESION)
    files["T1"] = SequenceFile(tmp_path / "turned.nii.gz")
    other = scan.read_scan(files, mask, regions=LESION)
    np.testing.assert_array_equal(case.image, other.image)


def test_sequences_of_one_slice_are_read(tmp_path):
    files = {}
    for n, name in enumerate(("FLAIR", "T1")):
        path = save(tmp_path / f"{name}.nii.gz", brain(SHAPE, n)[..., 5:6], AFFINE)
        files[name] = SequenceFile(path)
    case = scan.read_scan(files, regions={}, foreground="nonzero")
    assert min(case.image.shape) == 1 and case.image.any(axis=(0, 1, 2)).all()


def test_regions_overlap_where_they_share_values(tmp_path):
    values = np.zeros(SHAPE, np.float64)
    values[ball(SHAPE, 0.3)], values[ball(SHAPE, 0.2)] = 2, 4
    files, _ = patient(tmp_path)
    mask = save(tmp_path / "seg.nii.gz", values, AFFINE)
    regions = {"whole": (1, 2, 4), "core": (1, 4), "rim": (2,)}
    label = scan.read_scan(files, mask, regions=regions).label
    assert label.dtype == np.uint8
    expected = [np.isin(values, v).sum() for v in regions.values()]
    np.testing.assert_array_equal(label.sum(axis=(0, 1, 2)), expected)
    np.testing.assert_array_equal(label[..., 0], label[..., 1] | label[..., 2])
    only = scan.read_scan(files, mask, regions={"core": (4,)}, background=(0, 2)).label
    np.testing.assert_array_equal(only[..., 0], label[..., 1])
    assert scan.read_scan(files, regions=regions).label is None


def test_one_file_of_four_axes_holds_the_sequences(tmp_path):
    separate, mask = patient(tmp_path, ("FLAIR", "T1", "T2"))
    images = [nibabel.load(file.path).get_fdata() for file in separate.values()]
    stack = save(tmp_path / "BRATS_001.nii.gz", np.stack(images, axis=-1), AFFINE)
    names = {"T2": 2, "FLAIR": 0}
    together = {name: SequenceFile(stack, channel) for name, channel in names.items()}
    case = scan.read_scan(together, mask, regions=LESION)
    alone = {name: separate[name] for name in names}
    expected = scan.read_scan(alone, mask, regions=LESION)
    np.testing.assert_allclose(case.image, expected.image, atol=1e-5)
    with pytest.raises(InputError, match="holds 3 volumes, and T1 would be number 4"):
        scan.read_scan({"T1": SequenceFile(stack, 3)}, regions=LESION)
    with pytest.raises(InputError, match="give one volume of three axes"):
        scan.read_scan({"T1": SequenceFile(stack)}, regions=LESION)
    # Of two names, nothing says which of the three volumes they are.
    named = scan_files.of_row(stack, sequences=("FLAIR", "T1"), files={})
    with pytest.raises(
        InputError, match="holds 3 volumes, and 2 have a name; name all"
    ):
        scan.read_scan(named, regions=LESION)
    named = scan_files.of_row(stack, sequences=tuple(separate), files={})
    case = scan.read_scan(named, regions=LESION)
    expected = scan.read_scan(separate, regions=LESION)
    np.testing.assert_allclose(case.image, expected.image, atol=1e-5)


def test_a_missing_sequence_is_refused_or_filled(tmp_path):
    files, mask = patient(tmp_path, ("FLAIR", "T1", "T2"))
    some = {**files, "FLAIR": None}
    with pytest.raises(InputError, match="has no FLAIR; .*data.missing='fill'"):
        scan.read_scan(some, mask, regions=LESION)
    case = scan.read_scan(some, mask, regions=LESION, missing="fill")
    np.testing.assert_array_equal(case.presence, [0, 1, 1])
    there = {name: files[name] for name in ("T1", "T2")}
    rest = scan.read_scan(there, mask, regions=LESION)
    assert not case.image[..., 0].any()
    np.testing.assert_array_equal(case.image[..., 1:], rest.image)
    with pytest.raises(InputError, match="none of the sequences FLAIR, T1 is there"):
        scan.read_scan(dict.fromkeys(("FLAIR", "T1")), regions=LESION, missing="fill")


def moved(folder, matrix):
    """FLAIR, and a T1 whose points are the matrix times FLAIR's, on a grid beside."""
    files, mask = patient(folder, ("FLAIR",))
    fixed = nifti.read(files["FLAIR"].path)
    affine, shape = matrix @ affine_of("SPL", (1.0, 1.0, 1.0)), (44, 40, 36)
    middle = fixed.affine @ [*((np.array(fixed.voxels.shape) - 1) / 2), 1]
    half = (np.array(shape) - 1) / 2
    affine[:3, 3] = (matrix @ middle)[:3] - affine[:3, :3] @ half
    voxels = grid.resample(
        fixed.voxels[..., None], fixed.affine, shape, affine, np.linalg.inv(matrix)
    )[..., 0]
    files["T1"] = SequenceFile(save(folder / "T1.nii.gz", np.asarray(voxels), affine))
    return files, mask


def test_sequences_on_different_grids_are_refused_with_both_described(tmp_path):
    files, mask = moved(tmp_path, np.eye(4))
    with pytest.raises(InputError) as caught:
        scan.read_scan(files, mask, regions=LESION)
    text = str(caught.value)
    for part in ("T1.nii.gz", "FLAIR.nii.gz", "(44, 40, 36)", "(14, 22, 18)", "affine"):
        assert part in text
    assert "data.grids='align'" in text and "\n" not in text


def test_aligning_reads_the_moving_image_where_the_registration_says(
    tmp_path, monkeypatch
):
    """The registration, tested elsewhere, is replaced by the truth."""
    matrix = affine_of("RAS", tilt=0.15, origin=(4, -7, 3))
    files, mask = moved(tmp_path, matrix)
    truth = registration.Registration(matrix, 1.0, 1.2, 0.6)
    monkeypatch.setattr(registration, "register", lambda *args: truth)
    case = scan.read_scan(files, mask, regions=LESION, grids="align")
    inner = case.label[..., 0] > 0
    one, other = case.image[inner, 0], case.image[inner, 1]
    assert np.corrcoef(one, other)[0, 1] > 0.9
    away = registration.Registration(np.eye(4), 1.0, 1.2, 0.6)
    away.matrix[:3, 3] = 500
    monkeypatch.setattr(registration, "register", lambda *args: away)
    with pytest.raises(InputError, match="T1.nii.gz: shows nothing of what"):
        scan.read_scan(files, mask, regions=LESION, grids="align")


@pytest.mark.parametrize(
    ("beside", "mirrored", "good"),
    [
        (0.69, None, True),
        (0.71, 1.11, True),
        (0.87, 1.11, True),
        (0.71, 1.119, False),
        (0.71, 1.13, False),
        (0.89, None, False),
        (np.nan, None, False),
    ],
)
def test_a_sequence_that_fits_nowhere_better_is_refused(
    tmp_path, monkeypatch, beside, mirrored, good
):
    """Or not much better than its mirror image, where that isn't clear."""
    files, mask = moved(tmp_path, np.eye(4))
    result = registration.Registration(np.eye(4), 1.09, 1.12, beside)
    results, voxels = [result, result._replace(metric=mirrored)], []

    def register(fixed, fixed_affine, moving, affine):
        voxels.append(moving)
        return results[len(voxels) - 1]

    monkeypatch.setattr(registration, "register", register)
    if good:
        case = scan.read_scan(files, mask, regions=LESION, grids="align")
        expected = ("T1", 1.09, 1.12, beside, mirrored or np.nan)
        assert repr(case.alignments) == repr((alignment.Alignment(*expected),))
    else:
        with pytest.raises(InputError, match=r"T1.nii.gz: is of another.*1\.090 be"):
            scan.read_scan(files, mask, regions=LESION, grids="align")
    assert len(voxels) == 1 + (mirrored is not None)
    if mirrored:
        np.testing.assert_array_equal(voxels[1], voxels[0][:, :, ::-1])


def test_a_mask_where_the_image_is_0_is_refused(tmp_path, caplog):
    files, _ = patient(tmp_path)
    tissue = ball(SHAPE)
    inside = np.argwhere(ball(SHAPE, 0.3))
    for hidden, why in ((3, ""), (40, "40 of 240 voxels of lesion lie where the im")):
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[tuple(inside[: 500 if hidden == 3 else 200].T)] = 1
        voxels[tuple(np.argwhere(~tissue)[:hidden].T)] = 1
        mask = save(tmp_path / "lesion.nii.gz", voxels, AFFINE)
        if why:
            with pytest.raises(InputError, match=f"lesion.nii.gz: {why}"):
                scan.read_scan(files, mask, regions=LESION)
        else:
            scan.read_scan(files, mask, regions=LESION)
            assert "3 of 503 voxels of lesion" in caplog.text


def test_own_units_are_the_files_where_the_background_is_no_0(tmp_path):
    voxels = brain(SHAPE) - 1024
    files = {"T1": SequenceFile(save(tmp_path / "T1.nii.gz", voxels, AFFINE))}
    case = scan.read_scan(files, regions={}, units="own", margin=100.0)
    stored = nifti.read(files["T1"].path).voxels
    expected = np.where(stored == -1024, 0, stored)
    np.testing.assert_allclose(case.image[..., 0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("voxels", "beside", "what"), [(0.9, 0.6, "kept"), (2, 0.6, "moved"), (0, 0.9, "")]
)
def test_sequences_of_one_grid_are_judged_too(
    tmp_path, monkeypatch, voxels, beside, what
):
    """The patient may have moved, or be another; less than a slice isn't worth a blur."""
    files, mask = patient(tmp_path, ("FLAIR", "T1"))
    matrix = np.eye(4)
    matrix[2, 3] = voxels * max(np.linalg.norm(AFFINE[:3, :3], axis=0))
    result = registration.Registration(matrix, 1.0, 1.2, beside)
    monkeypatch.setattr(registration, "register", lambda *args: result)
    if not what:
        with pytest.raises(InputError, match="T1.nii.gz: is of another person"):
            scan.read_scan(files, mask, regions=LESION, grids="align")
        return
    aligned = scan.read_scan(files, mask, regions=LESION, grids="align")
    kept = scan.read_scan(files, mask, regions=LESION)
    same = np.array_equal(aligned.image, kept.image)
    assert same == (what == "kept") and aligned.alignments[0].sequence == "T1"
    # What lies side by side in one file was aligned by whoever wrote it.
    one = nifti.read(files["T1"].path)
    both = np.stack([one.voxels] * 2, axis=-1)
    path = save(tmp_path / "both.nii.gz", both, one.affine)
    files = {name: SequenceFile(path, n) for n, name in enumerate(files)}
    case = scan.read_scan(files, regions={}, grids="align")
    assert case.alignments == ()


def test_one_image_as_two_sequences_is_named(tmp_path, caplog):
    files, mask = patient(tmp_path, ("FLAIR", "T1", "T2"))
    scan.read_scan(files, mask, regions=LESION)
    assert "are one image" not in caplog.text
    scaled = nibabel.load(files["T1"].path).get_fdata() * 2.5
    save(files["T2"].path, scaled.astype(np.float32), AFFINE)
    scan.read_scan(files, mask, regions=LESION)
    assert f"{tmp_path}: T1 and T2 are one image" in caplog.text


def test_a_mask_in_the_place_of_an_image_is_refused(tmp_path):
    files, mask = patient(tmp_path)
    (tmp_path / "link.nii.gz").symlink_to(mask)
    for path in (mask, tmp_path / "link.nii.gz"):
        files["T1"] = SequenceFile(path)
        with pytest.raises(InputError, match=f"{mask}: is both T1 and the mask"):
            scan.read_scan(files, mask, regions=LESION, foreground="none")


def nan(path):
    voxels = brain(SHAPE)
    voxels[3, 4, 5] = np.nan
    save(path, voxels, AFFINE)


def singular(path):
    affine = AFFINE.copy()
    affine[:3, 1] = affine[:3, 0]
    save(path, brain(SHAPE), affine)


def flat(path):
    save(path, brain(SHAPE), AFFINE)
    data = bytearray(nibabel.load(path).to_bytes())
    data[80:84] = np.array(0, "<f4").tobytes()
    path.write_bytes(data)


SPOILT = {
    "is 0 everywhere": lambda path: save(path, np.zeros(SHAPE), AFFINE),
    "is 7 everywhere": lambda path: save(path, np.full(SHAPE, 7.0), AFFINE),
    "T1 has one value inside of data.foreground='body'": lambda path: save(
        path, (brain(SHAPE) > 0).astype(np.uint8), AFFINE
    ),
    "1 voxels are no numbers": nan,
    "can't be inverted": singular,
    "spacing of [0.": flat,
    "shape (18, 22, 14, 2)": lambda path: save(
        path, np.stack([brain(SHAPE)] * 2, axis=-1), AFFINE
    ),
}


@pytest.mark.parametrize("why", SPOILT)
def test_an_image_that_is_none_is_refused_by_its_name(tmp_path, why):
    files, mask = patient(tmp_path)
    path = tmp_path / "spoilt.nii"
    SPOILT[why](path)
    with pytest.raises(InputError) as caught:
        scan.read_scan({**files, "T1": SequenceFile(path)}, mask, regions=LESION)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and why in text and "\n" not in text


@pytest.mark.parametrize("kind", [np.int16, np.uint8])
def test_a_mask_of_scaled_integers_is_one_of_whole_numbers(tmp_path, kind):
    files, mask = patient(tmp_path)
    values = np.zeros(SHAPE)
    values[9, 11, 4:11:2] = 1, 2, 4, 4
    header = nibabel.Nifti1Image(values.astype(kind), AFFINE).header
    nibabel.save(nibabel.Nifti1Image(values, AFFINE, header), mask)
    assert 1 not in nibabel.load(mask).get_fdata()
    options = {"regions": {"one": (1,), "four": (4,)}, "background": (0, 2)}
    case = scan.read_scan(files, mask, margin=100.0, **options)
    assert case.label.sum(axis=(0, 1, 2)).tolist() == [1, 2]


@pytest.mark.parametrize("value", [3, 0.5, -1])
def test_a_mask_of_unknown_values_is_refused(tmp_path, value):
    files, _ = patient(tmp_path)
    voxels = ball(SHAPE, 0.2).astype(np.float32)
    voxels[9, 11, 7] = value
    mask = save(tmp_path / "seg.nii.gz", voxels, AFFINE)
    with pytest.raises(InputError, match=f"seg.nii.gz: holds the value {value:g}, "):
        scan.read_scan(files, mask, regions=LESION)


def test_a_mask_that_was_divided_is_not_empty(tmp_path):
    files, _ = patient(tmp_path)
    voxels = ball(SHAPE, 0.2).astype(np.float32) / 255
    mask = save(tmp_path / "seg.nii.gz", voxels, AFFINE)
    with pytest.raises(InputError, match=r"seg.nii.gz: holds the value 0.00392157, "):
        scan.read_scan(files, mask, regions=LESION)
    save(mask, np.zeros(SHAPE, np.uint8), AFFINE)
    assert not scan.read_scan(files, mask, regions=LESION).label.any()


def test_a_mask_of_another_grid_is_refused(tmp_path):
    files, mask = patient(tmp_path)
    voxels, shifted = ball(SHAPE, 0.2).astype(np.uint8), AFFINE.copy()
    shifted[0, 3] += 0.5
    for spoilt in ((voxels[1:], AFFINE), (voxels, shifted)):
        save(mask, *spoilt)
        with pytest.raises(InputError, match=r"lesion.nii.gz: lies on another grid"):
            scan.read_scan(files, mask, regions=LESION)
    shifted[0, 3] -= 0.49  # A hundredth of a millimetre is a header's rounding.
    save(mask, voxels, shifted)
    assert scan.read_scan(files, mask, regions=LESION).label.sum() == voxels.sum()


def test_a_grid_that_programs_read_otherwise_is_refused_with_the_reason(tmp_path):
    """ITK puts a header without codes elsewhere, and the masks that are drawn there."""
    files, mask = patient(tmp_path)
    path = files["FLAIR"].path
    image = nibabel.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path.with_name("copy.nii.gz"))
    path.with_name("copy.nii.gz").replace(path)
    drawn = sitk.Cast(sitk.ReadImage(str(path)) > 100, sitk.sitkUInt8)
    sitk.WriteImage(drawn, str(mask))
    with pytest.raises(InputError, match=r"lies on another grid .* codes are 0, so no"):
        scan.read_scan({"FLAIR": files["FLAIR"]}, mask, regions=LESION)


@pytest.mark.parametrize("name", ["grids", "missing"])
def test_an_unknown_choice_is_refused(tmp_path, name):
    files, _ = patient(tmp_path)
    with pytest.raises(InputError, match=f"data.{name}='maybe' is unknown: use 'ref"):
        scan.read_scan(files, regions=LESION, **{name: "maybe"})


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/ms-raw-sample")
def test_a_real_study_is_aligned_though_its_patient_moved(tmp_path, monkeypatch):
    """The given transform, after a known motion, which the T1W's header is given."""
    folder = SHARED / "ms-raw-sample/patient01"
    motion = affine_of("RAS", tilt=0.1, origin=(6, -9, 4))
    image = nibabel.load(folder / "study1_T1W.nii.gz")
    moving = save(
        tmp_path / "T1W.nii", np.asarray(image.dataobj), motion @ image.affine
    )
    files = {
        "FLAIR": SequenceFile(folder / "study1_FLAIR.nii.gz"),
        "T1W": SequenceFile(moving),
    }
    met, register = [], registration.register

    def keep(*args):
        met.append(register(*args))
        return met[-1]

    monkeypatch.setattr(registration, "register", keep)
    case = scan.read_scan(files, regions={}, grids="align", spacing=(4, 2, 2))
    assert case.presence.all() and case.original.shape == (320, 320, 36)
    points = grid.apply(case.affine, np.argwhere(case.image[..., 0] != 0))
    given = itk_matrix(folder / "study1_T1W_intrastudy_to_FLAIR.txt")
    there = grid.apply(motion @ given, points)

    def off(matrix):
        return np.linalg.norm(grid.apply(matrix, points) - there, axis=-1).mean()

    assert off(np.eye(4)) > 8
    assert off(met[0].matrix) < 1.0  # mm; a voxel is 4 thick.


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/ms-lesion-sample")
def test_a_real_patient_keeps_every_lesion_voxel():
    folder = SHARED / "ms-lesion-sample/patient07"
    files = {"FLAIR": SequenceFile(folder / "FLAIR.nii.gz")}
    case = scan.read_scan(files, folder / "lesion.nii.gz", regions=LESION)
    stored = nibabel.load(folder / "lesion.nii.gz")
    assert case.label.sum() == np.asarray(stored.dataobj).sum()
    brain = case.image[..., 0] != 0
    assert 1.0 < brain.sum() * np.prod(case.spacing) / 1e6 < 1.6  # Litres.
    assert case.image[case.label > 0].mean() > 0.5  # Lesions are bright in FLAIR.
