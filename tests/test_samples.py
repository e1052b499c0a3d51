"""Whole volumes, and halves of them, as the loader hands them out."""

import functools

import numpy as np
import pytest

from medjax.data import volumes
from medjax.data.nifti import Grid
from medjax.data.scan import Scan
from medjax.data.volumes import Part

SHAPES = [(5, 7, 9), (6, 4, 8)]
LEAST = (6, 6, 6)


@pytest.fixture
def prepared(tmp_path):
    """Two volumes of two sequences and two regions; the second lacks a sequence."""
    rng = np.random.default_rng(0)

    def read(id, shape):
        image = rng.normal(size=(*shape, 2)).astype(np.float16)
        label = np.zeros((*shape, 2), np.uint8)
        label[1:3, 2, 1:7, 0] = 1
        if id == 0:
            label[2, 2, 5, 1] = 1
        presence = np.array([1, 1 - id], np.float32)
        affine = np.diag([5.0, 1.0 + id, 1.0, 1.0])
        return Scan(image * presence, label, presence, affine, Grid(shape, affine))

    people = [
        volumes.UnreadScan(f"p{id}", id, functools.partial(read, id, shape))
        for id, shape in enumerate(SHAPES)
    ]
    regions = {"some": (1,), "few": (2,)}
    return volumes.prepare(
        people, tmp_path / "data", sequences=("a", "b"), regions=regions, options={}
    )


def test_a_volume_stands_at_the_origin_of_the_common_shape(prepared):
    source = volumes.Volumes(prepared, [Part(0), Part(1)], LEAST)
    assert source.shape == (6, 7, 9)
    for index, shape in enumerate(SHAPES):
        sample = source[index]
        image = np.load(prepared.folder / f"{index}.image.npy")
        d, h, w = shape
        np.testing.assert_array_equal(sample["image"][:d, :h, :w], image)
        rest = sample["image"].copy()
        rest[:d, :h, :w] = 0
        assert not rest.any()
        assert tuple(sample["size"]) == shape


def test_a_volume_says_its_spacing_and_which_sequences_it_has(prepared):
    source = volumes.Volumes(prepared, [Part(1), Part(0)], LEAST)
    np.testing.assert_allclose(source[0]["spacing"], [5, 2, 1])
    np.testing.assert_allclose(source[1]["spacing"], [5, 1, 1])
    np.testing.assert_array_equal(source[0]["presence"], [1, 0])
    np.testing.assert_array_equal(source[1]["presence"], [1, 1])


def test_the_halves_are_the_whole(prepared):
    folder = prepared.folder
    whole = volumes.read(folder, Part(0))
    right, left = (volumes.read(folder, Part(0, half)) for half in ("right", "left"))
    for both, a, b in zip(whole, right, left, strict=True):
        np.testing.assert_array_equal(np.concatenate([a, b], axis=2), both)


def test_points_are_of_their_region_and_reach_all_of_it(prepared):
    source = volumes.Volumes(prepared, [Part(0), Part(1), Part(0)], LEAST)
    for index in (0, 1):
        sample = source[index]
        for k in range(2):
            truth = sample["label"][..., k] > 0
            assert sample["present"][k] == truth.any()
            if truth.any():
                points = sample["points"][k]
                assert truth[tuple(points.T)].all()
                assert len(np.unique(points, axis=0)) == truth.sum()
    assert [source[i]["occurrence"] for i in range(3)] == [0, 0, 1]


def test_half_of_the_points_ask_for_voxels_and_half_for_lesions():
    label = np.zeros((4, 4, 4, 1), np.uint8)
    label[1, 1, :, 0] = 1
    label[3, 3, 3, 0] = 1
    points, _ = volumes.foreground_points(label, seed=3)
    _, counts = np.unique(points[0], axis=0, return_counts=True)
    of_row, alone = 0.5 / 5 + 0.5 / 2 / 4, 0.5 / 5 + 0.5 / 2
    expected = volumes.REGION_POINTS * np.array([*[of_row] * 4, alone])
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 18.5  # Four degrees of freedom: passed by chance 1 time in 1,000.
