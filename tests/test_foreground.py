"""What is the head and what is air, in drawn scans and in real ones."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import ball, brain
from scipy import ndimage

from medjax.data import foreground, nifti
from medjax.data.scan import make_scan

SHARED = Path(__file__).parents[2] / "shared/data"
SHAPE = (24, 30, 26)


def dice(one, other):
    return 2 * np.sum(one & other) / (one.sum() + other.sum())


def head(shape, noise, seed=0):
    """A ball of tissue in a ring of dark bone in a ring of scalp, in noisy air."""
    clean = np.where(ball(shape, 0.44), 80.0, 0.0)
    clean[ball(shape, 0.38)] = 4.0
    clean[ball(shape, 0.33)] = 100.0
    rng = np.random.default_rng(seed)
    real, imaginary = rng.normal(0, noise, (2, *shape))
    return np.hypot(clean + real, imaginary)[..., None]


@pytest.mark.parametrize("channels", [1, 3])
def test_of_a_stripped_brain_it_is_what_is_not_0(channels):
    image = np.stack([brain(SHAPE, seed) for seed in range(channels)], axis=-1)
    image[12, 15, 12] = 0  # A dark voxel within is brain.
    image[1, 1, 1] = 100  # A speck outside is not.
    found = foreground.inside(image, np.ones(3))
    np.testing.assert_array_equal(found, ball(SHAPE))


def test_a_stripped_brain_may_be_a_z_score_and_fill_its_image():
    image = brain((20, 20, 20))
    inside = image != 0
    image[inside] -= image[inside].mean()
    image, inside = image[2:-2, 2:-2, 2:-2], inside[2:-2, 2:-2, 2:-2]
    assert inside[0].any()
    found = foreground.inside(image[..., None], np.ones(3))
    np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("noise", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("rounded", [False, True])
def test_in_noisy_air_it_is_the_head_with_its_bone(noise, rounded):
    shape = (40, 48, 44)
    image = head(shape, noise)
    image = np.rint(image) if rounded else image
    found = foreground.inside(image, np.full(3, 4.0))
    assert found[ball(shape, 0.41)].all()
    assert dice(found, ball(shape, 0.44)) > 0.93


def test_dim_fuzz_that_a_scanner_leaves_around_a_head_is_not_taken_for_tissue():
    shape = (40, 48, 44)
    image = head(shape, 0.0)
    fuzz = ball(shape, 0.5) & ~ball(shape, 0.44)
    image[fuzz] = np.random.default_rng(0).integers(1, 3, (fuzz.sum(), 1))
    found = foreground.inside(image, np.full(3, 4.0))
    assert dice(found, ball(shape, 0.44)) > 0.93


def test_noise_of_few_grey_levels_is_no_tissue_though_much_of_it_is_0():
    shape = (40, 48, 44)
    image = np.rint(head(shape, 4.0) / 8)
    assert np.mean(image == 0) > 0.1
    found = foreground.inside(image, np.full(3, 4.0))
    assert dice(found, ball(shape, 0.44)) > 0.93


def test_bone_and_ventricles_that_the_lowest_slice_cuts_open_are_filled():
    shape = (40, 48, 44)
    image = head(shape, 1.0)
    image[ball(shape, 0.15)] = 2.0  # Wider than any gap that is closed.
    found = foreground.inside(image[20:], np.full(3, 4.0))
    assert found[ball(shape, 0.4)[20:]].all()


def test_the_threshold_is_otsus():
    """SimpleITK's Otsu, of as many levels, on the same blurred image."""
    grey = head(SHAPE, 5.0)[..., 0]
    above = foreground._above_otsu(grey, np.full(3, 1e9))  # No blur: the array's own.
    image = sitk.GetImageFromArray(np.rint(255 * np.sqrt(grey / grey.max())))
    other = sitk.OtsuThreshold(image, 0, 1, 256)
    assert np.mean(above != sitk.GetArrayFromImage(other)) < 0.01


def test_an_image_of_one_value_has_no_head():
    for value in (0.0, 7.0):
        image = np.full((4, 5, 6, 2), value)
        assert not foreground.inside(image, np.ones(3)).any()


AROUND = {
    "one more": lambda v, tissue: v + 1,
    "rescaled": lambda v, tissue: v - 1024,
    "another scale": lambda v, tissue: v / 1e4,
    "z-scores of all": lambda v, tissue: (v - v.mean()) / v.std(),
    "z-scores of the brain": lambda v, tissue: np.where(
        tissue, (v - v[tissue].mean()) / v[tissue].std(), 0
    ),
    "far below": lambda v, tissue: np.where(tissue, v, -3024),
    "far above": lambda v, tissue: np.where(tissue, v, 3000),
    "below and above": lambda v, tissue: np.where(tissue, v - 1024, 3000),
    "ringing": lambda v, tissue: (
        v + np.random.default_rng(0).normal(0, 1e-5, v.shape) * ~tissue
    ),
}


@pytest.mark.parametrize("way", AROUND)
def test_a_stripped_brain_is_the_same_whatever_constant_surrounds_it(way):
    image = brain(SHAPE)
    tissue, affine = image != 0, np.eye(4)
    expected = make_scan(image[..., None], None, affine).image
    moved = AROUND[way](image.astype(float), tissue).astype(np.float32)
    on_zero, floor = foreground.on_zero(moved)
    assert not on_zero[~tissue].any()
    np.testing.assert_allclose(on_zero[tissue] + floor, moved[tissue], atol=1e-3)
    case = make_scan(on_zero[..., None], None, affine)
    assert np.mean((case.image != 0) != (expected != 0)) < 1e-3
    np.testing.assert_allclose(case.image, expected, atol=0.02)


def legs(noise=8.0, size=1.0):
    """Two thighs in air, HU; and each alone. `size` is of the second's radius."""
    x, y, _ = np.indices((64, 64, 12)) - 31.5
    left, right = np.hypot(x + 16, y) < 9, np.hypot(x - 16, y) < 9 * size
    image = np.where(left | right, 60.0, -1000.0)
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return image.astype(np.float32), left, right


@pytest.mark.parametrize("padding", [None, -3024.0])
@pytest.mark.parametrize("size", [1.0, 0.4])
def test_a_body_is_both_legs_and_a_head_the_larger(padding, size):
    image, left, right = legs(size=size)
    if padding is not None:
        image[:4] = image[-4:] = image[:, :4] = image[:, -4:] = padding
    zeroed = foreground.on_zero(image)[0][..., None]
    both = foreground.inside(zeroed, np.full(3, 6.0))
    assert dice(both, left | right) > 0.93 and both[left | right].mean() > 0.99
    if size < 1:
        head = foreground.inside(zeroed, np.full(3, 6.0), "head")
        assert not head[right].any() and head[left].mean() > 0.99


@pytest.mark.parametrize("value", [0.0, -1024.0, 7.0, 3000.0])
def test_nonzero_is_all_but_the_constant_around_whatever_is_inside(value):
    rng = np.random.default_rng(0)
    tissue = ball(SHAPE)
    image = np.where(tissue, rng.normal(0, 1, SHAPE), value).astype(np.float32)
    image[10:13, 14:16, 12:14] = value  # A hole has the value too.
    on_zero, floor = foreground.on_zero(image, "nonzero")
    np.testing.assert_array_equal(
        foreground.inside(on_zero[..., None], np.ones(3), "nonzero"), tissue
    )
    np.testing.assert_allclose(on_zero[tissue] + floor, image[tissue], atol=1e-3)


@pytest.mark.parametrize("kind", ["nonzero", "none"])
def test_without_a_constant_around_it_nothing_is_background(kind):
    image = np.random.default_rng(0).integers(-2, 3, SHAPE).astype(np.float32)
    on_zero, floor = foreground.on_zero(image, kind)
    assert (on_zero > 0).all()
    np.testing.assert_allclose(on_zero + floor, image, atol=1e-5)
    assert foreground.inside(on_zero[..., None], np.ones(3), kind).all()


def test_of_none_a_constant_border_stays_part_of_the_image():
    image = brain(SHAPE) - 1024
    on_zero, _ = foreground.on_zero(image, "none")
    assert (on_zero > 0).all()
    case = make_scan(on_zero[..., None], None, np.eye(4), foreground="none")
    assert (case.image != 0).all() and case.image.shape[:3] == SHAPE
    scored = (image - image.mean()) / image.std()
    assert np.corrcoef(case.image.ravel(), scored.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("padding", [-3024, -2000, -1024, 0, 3000])
@pytest.mark.parametrize("noise", [8, 30])
def test_a_body_in_ct_is_the_same_with_padding_around_its_field_of_view(padding, noise):
    x, y, _ = np.indices((48, 48, 12)) - 23.5
    rng = np.random.default_rng(0)
    image = np.full(x.shape, -1000.0)
    image[np.hypot(x / 1.3, y) < 14] = 50
    image[np.hypot(x - 8, y) < 4] = -850  # Lung.
    image = np.rint(image + rng.normal(0, noise, x.shape)).astype(np.float32)
    padded = np.where(np.hypot(x, y) > 23, np.float32(padding), image)
    masks = [
        foreground.inside(foreground.on_zero(v)[0][..., None], np.full(3, 6.0))
        for v in (image, padded)
    ]
    np.testing.assert_array_equal(*masks)
    assert dice(masks[0], np.hypot(x / 1.3, y) < 14) > 0.9


def test_without_negative_values_an_image_with_0_around_it_is_kept():
    for image in (brain(SHAPE), head(SHAPE, 4.0)[..., 0]):
        kept, floor = foreground.on_zero(image)
        assert kept is image and floor == 0


def test_all_of_a_crop_to_tissue_is_inside_the_body():
    rng = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(rng.normal(0, 1, (20, 30, 24)), 2)
    image = 100 + 400 * tissue
    image[8:12, 10:20, 8:16] = 1.0  # A ventricle.
    assert foreground.inside(image[..., None], np.ones(3)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_the_box_holds_the_mask_and_its_margin_and_no_more(seed, margin):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 8, 9)) < 0.01
    mask[tuple(rng.integers(0, mask.shape))] = True
    found = foreground.box(mask, np.full(3, margin))
    for axis, side in enumerate(found):
        where = np.nonzero(mask)[axis]
        more = np.ceil(margin - 1e-3)  # A header's spacing of 5 mm is 4.9999999.
        assert side.start == max(where.min() - more, 0)
        assert side.stop == min(where.max() + more + 1, mask.shape[axis])
    assert foreground.box(mask, np.full(3, 1 + 1e-7)) == foreground.box(
        mask, np.ones(3)
    )


@pytest.mark.parametrize("patient", ["patient07", "patient19"])
def test_a_real_stripped_brain_is_its_non_zero_voxels(patient):
    folder = SHARED / "ms-lesion-sample" / patient
    if not folder.exists():
        pytest.skip("needs shared/data/ms-lesion-sample")
    image = nifti.read(folder / "T1.nii.gz").voxels[::2, ::2, ::2]
    found = foreground.inside(image[..., None], np.full(3, 2.0))
    assert np.mean(found != (image != 0)) < 1e-4


@pytest.mark.parametrize("sequence", ["FLAIR", "T1W", "T2W"])
def test_a_real_head_is_one_smooth_body_with_the_middle_of_the_brain(sequence):
    folder = SHARED / "ms-raw-sample/patient01"
    if not folder.exists():
        pytest.skip("needs shared/data/ms-raw-sample")
    volume = nifti.read(folder / f"study1_{sequence}.nii.gz")
    image, spacing = volume.voxels[:, ::2, ::2], volume.spacing * (1, 2, 2)
    found = foreground.inside(image[..., None], spacing)
    litres = found.sum() * np.prod(spacing) / 1e6
    assert 1.8 < litres < 4.5  # A head without its neck and lower face.
    brightest = image > np.percentile(image[image > 0], 95)
    assert np.mean(found[brightest]) > 0.99
    assert np.mean(image[found] == 0) < 0.05
