"""There and back: what nibabel reads from the written file is where it was."""

import nibabel
import numpy as np
import pytest
from scans import affine_of, ball, brain, save

from medjax.data import nifti, scan
from medjax.data.nifti import Grid
from medjax.data.sources.scan_files import SequenceFile
from medjax.errors import InputError

SHAPE = (18, 22, 14)
BRATS = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
AXES = ("RAS", "LPS", "LAS", "PIR", "SAL", "ARS")


def mask_of(shape):
    """Values 2 around 1 around 4, with no symmetry."""
    mask = np.zeros(shape, np.uint8)
    mask[ball(shape, 0.3, (0.45, 0.5, 0.55))] = 2
    mask[ball(shape, 0.2, (0.4, 0.55, 0.5))] = 1
    mask[ball(shape, 0.12, (0.4, 0.6, 0.5))] = 4
    return mask


def case_of(folder, affine, shape=SHAPE, regions=BRATS, **options):
    """A case of files on that grid, and the mask's path."""
    path = save(folder / "t1.nii.gz", brain(shape), affine)
    mask = save(folder / "seg.nii.gz", mask_of(shape), affine)
    case = scan.read_scan({"t1": SequenceFile(path)}, mask, regions=regions, **options)
    return case, mask


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("axes", AXES)
def test_a_mask_comes_back_to_its_own_voxels_and_place(tmp_path, axes, tilt):
    affine = affine_of(axes, (0.9, 1.2, 3.0), tilt)
    case, mask = case_of(tmp_path, affine, margin=1.0)
    assert case.image.shape[:3] != SHAPE  # It was cropped.
    back = scan.to_original(case.label, case, order=0)
    assert back.dtype == np.uint8
    path = tmp_path / "written.nii.gz"
    nifti.write(path, nifti.paint(back, BRATS), case.original)
    written, stored = nibabel.load(path), nibabel.load(mask)
    np.testing.assert_array_equal(written.get_fdata(), stored.get_fdata())
    assert written.get_data_dtype() == np.uint8
    assert nibabel.aff2axcodes(written.affine) == tuple(axes)
    for corner in np.ndindex(2, 2, 2):
        index = (*(np.array(corner) * (np.array(SHAPE) - 1)), 1)
        np.testing.assert_allclose(
            written.affine @ index, stored.affine @ index, atol=1e-4
        )
        quaternion = written.get_qform() @ index
        np.testing.assert_allclose(quaternion, stored.affine @ index, atol=1e-3)


@pytest.mark.parametrize("axes", AXES[:4])
def test_a_probability_lies_where_its_voxel_was(tmp_path, axes):
    affine = affine_of(axes, (0.9, 1.2, 3.0), tilt=0.3)
    case, _ = case_of(tmp_path, affine)
    probability = np.zeros((*case.image.shape[:3], 2), np.float32)
    at = tuple(n // 3 for n in case.image.shape[:3])
    probability[at] = 0.25, 0.75
    back = scan.to_original(probability, case)
    assert back.dtype == np.float32 and back.shape == (*SHAPE, 2)
    (found,) = np.argwhere(back[..., 1] > 0.5)
    np.testing.assert_allclose(affine @ (*found, 1), case.affine @ (*at, 1), atol=1e-3)
    np.testing.assert_allclose(back[tuple(found)], (0.25, 0.75), atol=1e-3)
    path = tmp_path / "p.nii.gz"
    nifti.write(path, back, case.original)
    written = nibabel.load(path)
    assert written.shape == (*SHAPE, 2) and written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), back)
    nifti.write(path, back[..., :1], case.original)
    assert nibabel.load(path).shape == SHAPE


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.0)])
def test_a_resampled_mask_comes_back_to_nearly_its_voxels(tmp_path, spacing):
    shape, affine = (36, 44, 28), affine_of("PIR", (0.9, 1.2, 1.5), 0.2)
    case, mask = case_of(tmp_path, affine, shape, spacing=spacing)
    back = scan.to_original(case.label.astype(np.float32), case) > 0.5
    stored = nibabel.load(mask).get_fdata()
    for channel, values in enumerate(BRATS.values()):
        one, other = back[..., channel], np.isin(stored, values)
        assert 2 * np.sum(one & other) / (one.sum() + other.sum()) > 0.9


def test_a_mask_of_truth_values_stays_one(tmp_path):
    case, mask = case_of(tmp_path, affine_of("LPS"))
    back = scan.to_original(case.label > 0, case, order=0)
    assert back.dtype == bool
    np.testing.assert_array_equal(back[..., 0], nibabel.load(mask).get_fdata() > 0)


def test_a_sheared_affine_is_written_as_it_is(tmp_path):
    affine = affine_of("RAS", (1.0, 1.2, 2.0))
    affine[0, 2] += 0.4
    path = tmp_path / "a.nii"
    nifti.write(path, np.zeros((*SHAPE, 1)), Grid(SHAPE, affine))
    np.testing.assert_allclose(nibabel.load(path).affine, affine, atol=1e-6)


def test_each_region_is_painted_with_the_value_that_is_its_own():
    values = np.array([0, 2, 1, 4])
    label = np.stack([np.isin(values, v) for v in BRATS.values()], axis=-1)
    np.testing.assert_array_equal(nifti.paint(label, BRATS), values)
    apart = {"liver": (1,), "tumour": (2,)}
    np.testing.assert_array_equal(nifti.paint(np.eye(2), apart), (1, 2))
    one = nifti.paint(np.ones((3, 1)), {"lesion": (1,)})
    assert one.dtype == np.uint8 and (one == 1).all()


@pytest.mark.parametrize(
    "regions",
    [
        {"enhancing": (4,), "whole": (1, 2, 4)},
        {"core": (1,), "again": (1,)},
        {"none": (0,)},
        {"large": (70_000,)},
    ],
)
def test_regions_that_cannot_be_told_apart_are_refused(regions):
    with pytest.raises(InputError, match="has no value from 1 to 65535"):
        nifti.paint(np.ones((2, len(regions))), regions)


@pytest.mark.parametrize(
    "regions",
    [
        {"tooth": (1, 3), "pulp": (2, 3)},
        {"left": (1, 9), "right": (2, 9), "both": (9, 8)},
    ],
)
def test_regions_that_a_label_map_would_lose_are_refused(regions):
    with pytest.raises(InputError, match="data.values: [389] is in .* and .*disjoint"):
        nifti.check_regions(regions)


def test_regions_that_a_label_map_holds_come_back(tmp_path):
    rng = np.random.default_rng(0)
    for regions in (BRATS, {"a": (1001, 7), "b": (1002,), "c": (3,)}):
        nifti.check_regions(regions)
        values = np.array([0, *{v for inside in regions.values() for v in inside}])
        values = values[rng.integers(0, len(values), SHAPE)]
        label = np.stack([np.isin(values, v) for v in regions.values()], axis=-1)
        path = tmp_path / "label.nii.gz"
        nifti.write(path, nifti.paint(label, regions), Grid(SHAPE, np.eye(4)))
        written = np.asarray(nibabel.load(path).dataobj)
        again = [np.isin(written, v) for v in regions.values()]
        np.testing.assert_array_equal(np.stack(again, axis=-1), label)
    assert [p.name for p in tmp_path.iterdir()] == ["label.nii.gz"]


def test_an_array_of_another_grid_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not on the grid"):
        grid = Grid((2, 3, 4), np.eye(4))
        nifti.write(tmp_path / "a.nii", np.zeros((4, 3, 2, 1)), grid)
