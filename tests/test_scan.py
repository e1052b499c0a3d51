"""Preparation against closed forms: linear fields, counted voxels, scipy's z-score."""

import numpy as np
import pytest
from scans import affine_of, ball, brain
from scipy import stats

from medjax.data import scan
from medjax.data.nifti import Grid
from medjax.data.scan import make_scan
from medjax.errors import InputError
from medjax.geometry import grid

SHAPE = (12, 16, 14)
AFFINE = affine_of("SPL", (2.0, 1.0, 1.5), tilt=0.2)
EVERY = (0, 100)  # Percentiles that cut nothing.


def image_of(channels=2, shape=SHAPE):
    return np.stack([brain(shape, seed) for seed in range(channels)], axis=-1)


def world(affine, shape):
    """[*shape, 3] mm of every voxel."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def test_each_channel_is_a_z_score_inside_the_brain_and_0_outside():
    image = image_of()
    case = make_scan(image, None, AFFINE, clip=EVERY, margin=100)
    inside = image[..., 0] != 0
    for channel in range(2):
        expected = stats.zscore(image[..., channel][inside].astype(float))
        np.testing.assert_allclose(case.image[inside, channel], expected, atol=1e-5)
    assert case.image.dtype == np.float32 and not case.image[~inside].any()
    np.testing.assert_array_equal(case.presence, [1, 1])


def test_in_its_own_units_a_case_is_the_head_as_it_is():
    image = image_of()
    image[6, 8, 7] = 1e5  # Nothing is cut.
    image[:, 0, 0] = 3.0  # Background.
    case = make_scan(
        image, None, AFFINE, presence=np.array([1, 0]), margin=100, units="own"
    )
    image[:, 0, 0] = image[..., 1] = 0
    np.testing.assert_array_equal(case.image, image)


def test_what_is_beyond_the_percentiles_is_cut_to_them():
    image = image_of(1)
    inside = image[..., 0] != 0
    image[6, 8, 7] = 1e5
    cut = make_scan(image, None, AFFINE, clip=(1, 99), margin=100).image
    values = image[inside, 0].astype(float)
    values = np.clip(values, *np.percentile(values, (1, 99)))
    np.testing.assert_allclose(cut[inside, 0], stats.zscore(values), atol=1e-5)
    assert np.abs(cut).max() < 5


def test_an_absent_channel_stays_0_and_does_not_draw_the_head():
    image = image_of(3)
    image[..., 1] = 7.0
    case = make_scan(image, None, AFFINE, presence=np.array([1, 0, 1]))
    alone = make_scan(image[..., [0, 2]], None, AFFINE)
    assert not case.image[..., 1].any()
    np.testing.assert_array_equal(case.image[..., [0, 2]], alone.image)
    np.testing.assert_array_equal(case.presence, [1, 0, 1])


def test_what_a_sequence_does_not_cover_does_not_set_its_scale():
    image = image_of()
    image[8:, ..., 1] = 0
    case = make_scan(image, None, AFFINE, clip=EVERY, margin=100)
    seen = image[..., 1] != 0
    expected = stats.zscore(image[..., 1][seen].astype(float))
    np.testing.assert_allclose(case.image[seen, 1], expected, atol=1e-5)


def test_the_crop_keeps_the_margin_and_every_voxel_where_it_was():
    shape = (30, 32, 28)
    image = np.zeros((*shape, 1), np.float32)
    image[9:21, 8:24, 7:21, 0] = brain(SHAPE)
    case = make_scan(image, None, AFFINE, margin=3.0)
    found = np.argwhere(image[..., 0])
    # Spacing 2, 1 and 1.5 mm: 3 mm are 2, 3 and 2 voxels.
    low, high = found.min(axis=0) - (2, 3, 2), found.max(axis=0) + (2, 3, 2)
    assert case.image.shape[:3] == tuple(high - low + 1)
    np.testing.assert_allclose(case.spacing, (2.0, 1.0, 1.5))
    before = world(AFFINE, shape)[tuple(map(slice, low, high + 1))]
    np.testing.assert_allclose(
        world(case.affine, case.image.shape[:3]), before, atol=1e-9
    )
    np.testing.assert_array_equal(
        case.image[..., 0] != 0, image[tuple(map(slice, low, high + 1))][..., 0] != 0
    )


def test_a_label_outside_the_head_is_not_cut_off():
    label = np.zeros((*SHAPE, 2), np.uint8)
    label[0, 0, 0, 0] = label[-1, -1, -1, 1] = 1
    label[6, 8, 7] = 1
    case = make_scan(image_of(), label, AFFINE, margin=0.0)
    np.testing.assert_array_equal(case.label, label)
    assert case.label.dtype == np.uint8


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.3, 3.0)])
def test_resampling_keeps_the_middle_and_reads_a_linear_field_exactly(spacing):
    image = np.zeros((*SHAPE, 2), np.float32)
    image[..., 0] = world(AFFINE, SHAPE) @ (0.3, -0.5, 0.8) + 7
    image[..., 1] = 5.0
    target = scan._target(Grid(SHAPE, AFFINE), spacing)
    np.testing.assert_allclose(grid.spacing_of(target.affine), spacing)
    middles = (
        affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
        for shape, affine in (target, (SHAPE, AFFINE))
    )
    np.testing.assert_allclose(next(middles), next(middles), atol=1e-9)
    sides = np.array(SHAPE) * (2.0, 1.0, 1.5)
    assert np.abs(target.shape * np.array(spacing) - sides).max() <= max(spacing) / 2
    read = grid.antialiased(image, AFFINE, *target)
    expected = world(target.affine, target.shape) @ (0.3, -0.5, 0.8) + 7
    inner = (slice(2, -2),) * 3  # Blur and edges reach no further.
    np.testing.assert_allclose(read[inner][..., 0], expected[inner], atol=0.02)
    np.testing.assert_allclose(read[inner][..., 1], 5.0, rtol=1e-5)


def test_a_coarser_grid_sees_the_mean_of_a_fine_pattern():
    stripes = np.zeros((24, 24, 24, 1), np.float32)
    stripes[::2] = 1
    affine = np.eye(4)
    target = scan._target(Grid(stripes.shape[:3], affine), (2.7, 2.7, 2.7))
    read = grid.antialiased(stripes, affine, *target)[2:-2, 2:-2, 2:-2]
    assert np.abs(read - 0.5).max() < 0.05


def test_it_is_the_coarse_axis_that_is_blurred_also_where_axes_are_exchanged():
    stripes = np.zeros((24, 24, 24, 2), np.float32)
    stripes[::2, ..., 0] = 1
    stripes[:, :, ::2, 1] = 1
    affine = np.zeros((4, 4))
    affine[(2, 1, 0, 3), (0, 1, 2, 3)] = 1, 1, 4, 1  # C, B, and every fourth A.
    read = grid.antialiased(stripes, np.eye(4), (24, 24, 6), affine)
    assert np.abs(read[..., 1:-1, 0] - 0.5).max() < 0.05
    np.testing.assert_array_equal(
        read[..., 1:-1, 1], stripes[1:5, :, :, 1].transpose(2, 1, 0)
    )


def test_regions_keep_their_volume_and_stay_nested_when_resampled():
    shape = (24, 30, 26)
    label = np.stack([ball(shape, r, (0.5, 0.4, 0.6)) for r in (0.3, 0.2)], axis=-1)
    for spacing in ((2.0, 2.0, 2.0), (3.0, 1.0, 1.0), (1.0, 0.8, 0.8)):
        case = make_scan(image_of(1, shape), label, AFFINE, spacing=spacing)
        np.testing.assert_allclose(case.spacing, spacing)
        assert set(np.unique(case.label)) == {0, 1}
        assert (case.label[..., 1] <= case.label[..., 0]).all()
        before = label.sum(axis=(0, 1, 2)) * 3.0
        after = case.label.sum(axis=(0, 1, 2)) * np.prod(spacing)
        np.testing.assert_allclose(after, before, rtol=0.08)
        middles = (
            world(affine, mask.shape[:3])[mask[..., 0] > 0].mean(axis=0)
            for affine, mask in ((case.affine, case.label), (AFFINE, label))
        )
        np.testing.assert_allclose(next(middles), next(middles), atol=0.15)


def test_small_lesions_outlast_a_coarser_grid():
    """Each two voxels wide: a blur would cost two fifths of their volume."""
    shape = (40, 45, 50)
    label = np.zeros((*shape, 1), np.uint8)
    corners = np.stack(np.meshgrid(*(np.arange(3, n - 3, 7) for n in shape)), axis=-1)
    for d, h, w in corners.reshape(-1, 3):
        label[d : d + 2, h : h + 2, w : w + 2] = 1
    case = make_scan(
        image_of(1, shape), label, affine_of("SPL"), spacing=(1.5, 1.5, 1.5)
    )
    assert 0.8 < case.label.sum() * 1.5**3 / label.sum() < 1.2


def test_the_grids_own_spacing_resamples_nothing():
    image, label = image_of(), ball(SHAPE, 0.2)[..., None]
    kept = make_scan(image, label, AFFINE)
    asked = make_scan(image, label, AFFINE, spacing=(2.0, 1.0001, 1.5))
    for one, other in zip(kept[:4], asked[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.original.shape == SHAPE
    np.testing.assert_array_equal(kept.original.affine, AFFINE)


def test_impossible_spacings_and_empty_images_are_refused():
    for spacing in ((1.0,), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0), (1.0, -1.0, 1.0)):
        with pytest.raises(InputError, match="data.spacing"):
            make_scan(image_of(), None, AFFINE, spacing=spacing)
    with pytest.raises(InputError, match="foreground=.body. is empty"):
        make_scan(np.zeros((*SHAPE, 1)), None, AFFINE)
