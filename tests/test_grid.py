"""Resampling and averaging against scipy, nibabel and the identity."""

import numpy as np
import pytest
from scans import straight
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medjax.errors import InputError
from medjax.geometry import grid

# 1 x 1.25 x 4 mm, oblique, as a scanner would have it; RAS.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [4, -3, 7], degrees=True).as_matrix()
OBLIQUE[:3, :3] *= [-1.0, -1.25, 4.0]
OBLIQUE[:3, 3] = 70, 85, -60


def turned(degrees, about):
    """A turn about every axis, and a shift of a few millimetres, [4, 4]."""
    about = np.array(about)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, [2, -3, 1] + about - turn @ about
    return matrix


def test_the_same_grid_returns_the_same_voxels_to_the_bit():
    image = np.random.default_rng(0).random((17, 12, 9, 1), np.float32)
    same = grid.resample(image, OBLIQUE, image.shape[:3], OBLIQUE)
    np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize("order", [0, 1])
def test_resample_is_scipys_affine_transform(order):
    """Between oblique grids of other spacing, moved on top."""
    image = np.random.default_rng(0).random((40, 36, 12))
    shape, affine = (
        (30, 28, 16),
        straight((30, 28, 16), (1.5, 1.4, 2.5), (50, 66, -34)),
    )
    matrix = turned([8, -5, 10], about=[50, 66, -34])
    voxels = np.linalg.inv(OBLIQUE) @ matrix @ affine
    expected = ndimage.affine_transform(
        image, voxels, output_shape=shape, order=order, mode="grid-constant"
    )
    stack = image[..., None]
    got = grid.resample(stack, OBLIQUE, shape, affine, matrix, order=order)[..., 0]
    assert 0.3 < np.mean(expected != 0) < 1
    agree = np.isclose(got, expected, atol=2e-4)
    assert agree.mean() > (0.999 if order == 0 else 0.99999)  # Ties of float32.


def test_resample_is_nibabels():
    nibabel = pytest.importorskip("nibabel")
    processing = pytest.importorskip("nibabel.processing")
    image = np.random.default_rng(0).random((40, 36, 12))
    shape, affine = (
        (30, 28, 16),
        straight((30, 28, 16), (1.5, 1.4, 2.5), (50, 66, -34)),
    )
    expected = processing.resample_from_to(
        nibabel.Nifti1Image(image, OBLIQUE), (shape, affine), order=1
    ).get_fdata()
    got = grid.resample(image[..., None], OBLIQUE, shape, affine)[..., 0]
    known = ndimage.minimum_filter(expected, 3) > 0  # At the edge the two blend.
    assert known.mean() > 0.2
    np.testing.assert_allclose(np.asarray(got)[known], expected[known], atol=1e-4)


def test_resample_keeps_the_labels_of_a_mask_and_its_channels():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 7, (12, 11, 6, 3)).astype(np.uint8)
    matrix = turned([20, 5, -10], about=[0, 0, 0])
    affine = straight((12, 11, 6), (1, 1, 2))
    got = grid.resample(mask, affine, (9, 9, 9), affine, matrix, order=0)
    assert got.shape == (9, 9, 9, 3)
    assert got.dtype == np.uint8
    alone = grid.resample(mask[..., 1:2], affine, (9, 9, 9), affine, matrix, order=0)
    np.testing.assert_array_equal(got[..., 1:2], alone)


def test_averaged_blocks_stay_where_they_were():
    """The mean of a coordinate over a block is the coordinate of its middle."""
    shape = (41, 33, 16)
    world = grid.apply(OBLIQUE, np.moveaxis(np.indices(shape), 0, -1))
    for size in (1.0, 4.0, 8.0):
        for axis in range(3):
            pooled, affine = grid.pool(world[..., axis], OBLIQUE, size)
            index = np.moveaxis(np.indices(pooled.shape), 0, -1)
            np.testing.assert_allclose(
                pooled, grid.apply(affine, index)[..., axis], atol=1e-3
            )
    assert pooled.shape == (41 // 5, 33 // 4, 8)  # 8 mm, but 8 voxels are kept.


@pytest.mark.parametrize(
    ("affine", "match"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "moving: can't be inverted"),
        (np.diag([1.0, np.inf, 1.0, 1.0]), "moving: isn't finite; correct"),
    ],
)
def test_a_bad_affine_is_named(affine, match):
    with pytest.raises(InputError, match=match):
        grid.check_affine("moving", affine)


def test_the_product_of_the_spacing_is_a_voxels_volume():
    np.testing.assert_allclose(grid.spacing_of(OBLIQUE), (1, 1.25, 4))
    tilted = np.diag([4.0, 2, 2, 1])  # Slices, rows, columns.
    tilted[1, 0] = 4 * np.tan(np.radians(25))
    for affine in (tilted, OBLIQUE @ tilted):
        volume = abs(np.linalg.det(affine[:3, :3]))
        np.testing.assert_allclose(grid.spacing_of(affine).prod(), volume)
    np.testing.assert_allclose(grid.spacing_of(tilted), (4, 2, 2))
