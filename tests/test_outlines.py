"""Surfaces and their distances against geometry, brute force and two other packages."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medjax.evaluation import outlines

ROOT = math.sqrt(3)
SPACING = (2.0, 1.0, 0.7)


def blob(seed, shape=(7, 8, 9), share=0.7):
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.2)
    return smooth > np.quantile(smooth, share)


def ball(radius, spacing=(1, 1, 1), shift=0.0):
    shape = [int(2 * radius / s) + 5 for s in spacing]
    grid = np.indices(shape) - (np.array(shape) // 2).reshape(3, 1, 1, 1) - shift
    grid = grid * np.reshape(spacing, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def brute(predicted, label, spacing):
    """Every pair of cubes that are partly inside, in float64: (there, back)."""

    def mixed(mask):
        wide = np.pad(mask, 1)
        places = itertools.product(*(range(n - 1) for n in wide.shape))
        return np.array(
            [
                np.multiply(np.subtract(p, 0.5), spacing)
                for p in places
                if 0 < wide[tuple(slice(a, a + 2) for a in p)].sum() < 8
            ]
        )

    a, b = mixed(label), mixed(predicted)
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    return pairs.min(axis=1), pairs.min(axis=0)


@pytest.mark.parametrize(
    ("inside", "area"),
    [  # By hand, for voxels of 1 mm.
        ([(0, 0, 0)], ROOT / 8),
        ([(0, 0, 0), (0, 0, 1)], math.sqrt(0.5)),
        ([(0, 0, 0), (0, 1, 1)], ROOT / 4),
        ([(0, 0, 0), (1, 1, 1)], ROOT / 4),
        ([(0, 0, 0), (0, 0, 1), (0, 1, 1)], 1 / 2 + 3 * ROOT / 8),
        ([(0, 0, 0), (0, 1, 1), (1, 0, 1)], 3 * ROOT / 8),
        ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)], 1),
        ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)], 3 * ROOT / 4),
        ([(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], 2 * math.sqrt(0.5)),
        ([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], ROOT / 2),
    ],
)
def test_the_area_of_a_cube_is_that_of_its_polygons(inside, area):
    code = sum(1 << outlines.CORNERS.index(corner) for corner in inside)
    for number in (code, 255 - code):
        found = np.linalg.norm(outlines.triangles()[number], axis=-1).sum()
        np.testing.assert_allclose(found, area, rtol=1e-12)


def test_turned_mirrored_and_inverted_cubes_have_the_same_area():
    area = np.linalg.norm(outlines.triangles(), axis=-1).sum(axis=-1)
    assert area[0] == area[255] == 0 and (area[1:255] > 0).all()
    for code in range(256):
        cube = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        for axes in itertools.permutations(range(3)):
            for turned in (np.transpose(cube, axes), np.flip(cube.transpose(axes), 1)):
                other = sum(int(v) << bit for bit, v in enumerate(turned.ravel()))
                np.testing.assert_allclose(area[other], area[code], rtol=1e-12)
        np.testing.assert_allclose(area[255 - code], area[code], rtol=1e-12)


def test_the_surface_of_a_box_is_its_sides_bevels_and_corners():
    """It runs through the middles between voxels, half a voxel outside their own."""
    mask = np.zeros((9, 9, 9), bool)
    mask[2:5, 1:6, 3:9] = True  # 3 x 5 x 6, and up to the edge of the image.
    n, s = np.array([3, 5, 6]), np.array(SPACING)
    sides = 2 * sum(
        np.prod(np.delete(n - 1, axis) * np.delete(s, axis)) for axis in range(3)
    )
    bevels = 4 * sum(
        (n[axis] - 1) * s[axis] * np.hypot(*np.delete(s, axis)) / 2 for axis in range(3)
    )
    legs = [np.eye(3)[a] * s / 2 for a in range(3)]
    corner = np.linalg.norm(np.cross(legs[1] - legs[0], legs[2] - legs[0])) / 2
    _, area = outlines.elements(mask, SPACING)
    np.testing.assert_allclose(area.sum(), sides + bevels + 8 * corner, rtol=1e-12)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1, 1), (1, 0.8, 1.7)])
def test_a_balls_area_is_near_that_of_a_sphere(spacing):
    points, area = outlines.elements(ball(20, spacing), spacing)
    assert 1 < area.sum() / (4 * np.pi * 20**2) < 1.12
    middle = (np.array(ball(20, spacing).shape) // 2) * np.array(spacing)
    away = np.linalg.norm(points - middle, axis=1)
    assert np.abs(away - 20).max() < np.linalg.norm(spacing)
    np.testing.assert_allclose(area @ points / area.sum(), middle, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10**6),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.floats(0.5, 0.97),
    st.floats(0, 6),
)
def test_distances_are_those_of_all_pairs(seed, spacing, share, tolerance):
    label, predicted = blob(seed), blob(seed + 1, share=share)
    found = outlines.distances(predicted, label, spacing)
    there, back = brute(predicted, label, spacing)
    np.testing.assert_allclose(found.true, np.sort(there), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.predicted, np.sort(back), rtol=1e-9, atol=1e-12)
    furthest = max(there.max(), back.max())
    np.testing.assert_allclose(outlines.hausdorff(found, 100), furthest, rtol=1e-9)
    assert outlines.hausdorff(found) <= furthest * (1 + 1e-9)
    assert 0 <= outlines.surface_dice(found, tolerance) <= 1
    assert outlines.average_distance(found) <= furthest * (1 + 1e-9)


def test_a_shifted_box_is_as_far_away_as_it_was_shifted():
    """Most of two sides moves by two voxels of 2 mm; the other sides stay in place."""
    label, predicted = np.zeros((2, 30, 40, 40), bool)
    label[5:15, 5:35, 5:35] = predicted[7:17, 5:35, 5:35] = True
    found = outlines.distances(predicted, label, (2, 1, 1))
    assert outlines.hausdorff(found) == 4 == outlines.hausdorff(found, 100)
    assert outlines.surface_dice(found, 4) == 1
    # Of each surface the two large sides, about 29 x 29, leave the tolerance.
    far = found.true_area[found.true > 2].sum()
    assert 29**2 < far < 2 * 31**2
    both = found.true_area.sum() + found.predicted_area.sum()
    share = 1 - (far + found.predicted_area[found.predicted > 2].sum()) / both
    np.testing.assert_allclose(outlines.surface_dice(found, 2), share)
    weighted = found.true @ found.true_area + found.predicted @ found.predicted_area
    np.testing.assert_allclose(outlines.average_distance(found), weighted / both)


def test_ninety_five_percent_leaves_out_a_twentieth_of_the_area():
    """Not of the number of elements: slices far apart have larger ones."""
    label, predicted = np.zeros((2, 12, 30, 30), bool)
    label[2:10, 2:28, 2:28] = predicted[2:10, 2:28, 2:28] = True
    predicted[10, 5:9, 5:9] = True
    found = outlines.distances(predicted, label, (3, 1, 1))
    lost = found.predicted_area[found.predicted > 0].sum()
    share = 100 * (1 - lost / found.predicted_area.sum())
    assert 95 < share
    assert outlines.hausdorff(found, share - 0.01) == 0
    assert outlines.hausdorff(found, share + 0.01) > 0


def test_equal_masks_have_no_distance_and_the_image_no_influence():
    mask = blob(3)
    found = outlines.distances(mask, mask, SPACING)
    assert outlines.hausdorff(found, 100) == outlines.average_distance(found) == 0
    assert outlines.surface_dice(found, 0) == 1
    wide = np.pad(mask, ((3, 1), (0, 5), (2, 2)))
    for a, b in zip(outlines.distances(wide, wide, SPACING), found, strict=True):
        np.testing.assert_allclose(np.sort(a), np.sort(b))


def test_nothing_is_infinitely_far_from_something():
    empty, mask = np.zeros((4, 5, 6)), np.ones((4, 5, 6))
    for pair in ((empty, mask), (mask, empty)):
        found = outlines.distances(*pair, SPACING)
        assert outlines.hausdorff(found) == outlines.average_distance(found) == np.inf
        assert outlines.surface_dice(found, 1e9) == 0
    found = outlines.distances(empty, empty, SPACING)
    assert np.isnan([outlines.hausdorff(found), outlines.average_distance(found)]).all()
    assert np.isnan(outlines.surface_dice(found, 1))


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage:DeprecationWarning")  # Its own.
def test_numbers_agree_with_the_surface_distance_package():
    package = pytest.importorskip("surface_distance")
    tables = pytest.importorskip("surface_distance.lookup_tables")
    area = tables.create_table_neighbour_code_to_surface_area(SPACING)
    scale = np.prod(SPACING) / np.array(SPACING)
    ours = np.linalg.norm(outlines.triangles() * scale, axis=-1).sum(axis=-1)
    kernel = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    for code in range(256):
        cube = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        np.testing.assert_allclose(ours[code], area[(cube * kernel).sum()], rtol=1e-9)
    for seed in range(10):
        label, predicted = blob(seed), blob(seed + 99, share=0.85)
        theirs = package.compute_surface_distances(label, predicted, SPACING)
        found = outlines.distances(predicted, label, SPACING)
        for percent in (50, 95, 100):
            np.testing.assert_allclose(
                outlines.hausdorff(found, percent),
                package.compute_robust_hausdorff(theirs, percent),
                rtol=1e-9,
            )
        np.testing.assert_allclose(
            outlines.surface_dice(found, 1.5),
            package.compute_surface_dice_at_tolerance(theirs, 1.5),
            rtol=1e-9,
        )
        there, back = package.compute_average_surface_distance(theirs)
        areas = found.true_area.sum(), found.predicted_area.sum()
        mean = np.average([there, back], weights=areas)
        np.testing.assert_allclose(outlines.average_distance(found), mean, rtol=1e-9)
