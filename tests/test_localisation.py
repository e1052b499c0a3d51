import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medjax.evaluation import localisation
from medjax.evaluation.localisation import SCORES, Marked

KEY = jax.random.key(0)


def column(values, name):
    return values[:, SCORES.index(name)]


def marked(heatmap, boxes, task=None, patient=None):
    number = len(heatmap)
    return Marked(
        np.asarray(heatmap, float),
        [np.asarray(one, float) for one in boxes],
        np.zeros(number, int) if task is None else np.asarray(task),
        np.arange(number) if patient is None else np.asarray(patient),
    )


def random_boxes(rng, shape, number=1):
    corners = rng.random((number, 2, len(shape))) * shape
    return np.sort(corners, axis=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([(7, 9), (4, 5, 6)]), st.booleans())
def test_a_pixel_is_inside_if_its_middle_is(seed, shape, near):
    rng = np.random.default_rng(seed)
    boxes, margin = random_boxes(rng, shape, 2), 1.3 if near else 0.0
    found = localisation.in_boxes(boxes, shape, margin=margin)
    for pixel in itertools.product(*map(range, shape)):
        middle = np.add(pixel, 0.5)
        low, high = boxes[:, 0] - margin, boxes[:, 1] + margin
        expected = ((middle >= low) & (middle <= high)).all(axis=1).any()
        assert found[pixel] >= expected
        if found[pixel] and not expected:  # Only a sliver has the pixel it is in.
            apart = np.abs(middle - (low + high) / 2)
            sliver = np.where(high - low < 1, apart <= 1, apart <= (high - low) / 2)
            assert sliver.all(axis=1).any()
    assert found.any()


def test_a_sliver_between_two_middles_is_one_pixel():
    found = localisation.in_boxes(np.array([[[2.6, 1.0], [3.4, 3.0]]]), (5, 5))
    assert np.argwhere(found).tolist() in ([[3, 1], [3, 2]], [[2, 1], [2, 2]])
    found = localisation.in_boxes(np.array([[[9.0, 9.0], [9.9, 9.9]]]), (5, 5))
    assert np.argwhere(found).tolist() == [[4, 4]]  # Clipped to the image.


def test_pointing_and_overlap_of_a_drawn_example(monkeypatch):
    monkeypatch.setattr(localisation, "TOLERANCE", 0)
    heatmap = np.zeros((8, 10))
    heatmap[2:4, 3:7] = 0.5  # 8 pixels of at least half the maximum
    heatmap[3, 6] = 1.0
    heatmap[7, 0] = 0.4
    box = [[2, 5], [5, 9]]  # rows 2 to 4, columns 5 to 8: 12 pixels, 4 shared
    found = localisation.measure(marked([heatmap], [[box]]))
    assert column(found, "pointing") == 1
    assert column(found, "pointing_chance") == pytest.approx(12 / 80)
    assert column(found, "iou") == pytest.approx(4 / 16)
    outside = [[0, 7], [2, 9]]  # one row and one column away from the maximum
    for tolerance, hit in ((0, 0), (0.04, 0), (0.2, 1)):  # shares of 10 pixels
        monkeypatch.setattr(localisation, "TOLERANCE", tolerance)
        found = localisation.measure(marked([heatmap], [[outside]]))
        assert column(found, "pointing") == hit
        assert column(found, "iou") == 0
    monkeypatch.setattr(localisation, "TOLERANCE", 0)
    both = localisation.measure(marked([heatmap], [[outside, box]]))
    assert column(both, "pointing") == 1 and column(both, "iou") == 4 / 20


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_chance_is_the_mean_over_every_place(shape, monkeypatch):
    monkeypatch.setattr(localisation, "TOLERANCE", 0.1)
    rng = np.random.default_rng(0)
    heatmap = rng.random((3, *shape)) ** 2
    boxes = [random_boxes(rng, shape, 2) for _ in range(3)]
    found = localisation.measure(marked(heatmap, boxes))
    axes = tuple(range(len(shape)))
    for n in range(3):
        box = localisation.in_boxes(boxes[n], shape)
        near = localisation.in_boxes(boxes[n], shape, margin=0.1 * max(shape))
        hits, overlaps = [], []
        for shift in itertools.product(*map(range, shape)):
            moved = np.roll(heatmap[n], shift, axes)
            region = moved >= moved.max() / 2
            hits.append(near[np.unravel_index(moved.argmax(), shape)])
            overlaps.append((region & box).sum() / (region | box).sum())
        assert column(found, "pointing_chance")[n] == pytest.approx(np.mean(hits))
        assert column(found, "iou_chance")[n] == pytest.approx(np.mean(overlaps))
        assert column(found, "pointing")[n] == hits[0]
        assert column(found, "iou")[n] == pytest.approx(overlaps[0])
        gain = column(found, "iou") - column(found, "iou_chance")
        np.testing.assert_allclose(column(found, "iou_gain"), gain)


def test_a_heatmap_of_one_value_is_worth_what_chance_is():
    rng = np.random.default_rng(1)
    boxes = [random_boxes(rng, (9, 9)) for _ in range(4)]
    for value in (0.0, 2.0):
        found = localisation.measure(marked(np.full((4, 9, 9), value), boxes))
        np.testing.assert_allclose(column(found, "pointing_gain"), 0, atol=1e-6)
        np.testing.assert_allclose(column(found, "iou_gain"), 0, atol=1e-6)


def test_random_heatmaps_hit_as_often_as_chance_says():
    rng = np.random.default_rng(2)
    heatmap = rng.random((600, 10, 10))
    boxes = [random_boxes(rng, (10, 10)) for _ in range(600)]
    found = localisation.localise(
        marked(heatmap, boxes), tasks=["a"], key=KEY, replicates=400
    )["all"]
    for name in localisation.MEASURES:
        gain = found[name]["gain"]
        assert gain["low"] < 0 < gain["high"]
        assert found[name]["others"] == pytest.approx(found[name]["chance"], abs=0.02)


def test_others_are_the_other_patients_with_the_finding():
    rng = np.random.default_rng(3)
    heatmap, boxes = (
        rng.random((6, 5, 6)),
        [random_boxes(rng, (5, 6)) for _ in "abcdef"],
    )
    task, patient = [0, 0, 0, 0, 1, 2], [7, 7, 8, 9, 7, 8]
    found = localisation.measure(marked(heatmap, boxes, task, patient))
    for n in range(6):
        those = [m for m in range(6) if task[m] == task[n] and patient[m] != patient[n]]
        alone = [
            localisation.measure(marked(heatmap[[m]], [boxes[n]]))[0] for m in those
        ]
        for name in localisation.MEASURES:
            value = column(found, f"{name}_others")[n]
            if not those:
                assert np.isnan(value)
                continue
            expected = np.mean([one[SCORES.index(name)] for one in alone])
            assert value == pytest.approx(expected, abs=1e-6)


def test_a_place_learnt_by_heart_is_no_better_than_others():
    heatmap = np.zeros((5, 8, 8))
    heatmap[:, 4, 4] = 1
    boxes = [[[[3, 3], [6, 6]]]] * 5  # The heart is in the middle of every film.
    found = localisation.localise(
        marked(heatmap, boxes), tasks=["heart"], key=KEY, replicates=50
    )["tasks"]["heart"]["pointing"]
    assert found["estimate"] == found["others"] == 1
    assert found["chance"] < 0.3


def test_intervals_count_patients_and_not_films():
    rng = np.random.default_rng(4)
    heatmap = rng.random((60, 6, 6))
    boxes = [random_boxes(rng, (6, 6)) for _ in range(60)]
    options = {"tasks": ["a", "b"], "key": KEY, "replicates": 300}
    task = np.arange(60) % 2
    once = localisation.localise(marked(heatmap, boxes, task), **options)
    thrice = localisation.localise(
        marked(
            np.repeat(heatmap, 3, axis=0),
            [box for box in boxes for _ in range(3)],
            np.repeat(task, 3),
            np.repeat(np.arange(60), 3),
        ),
        **options,
    )
    for part in ("all", "a", "b"):
        one, three = (
            found["all"] if part == "all" else found["tasks"][part]
            for found in (once, thrice)
        )
        assert three["patients"] == one["patients"]
        assert three["pairs"] == 3 * one["pairs"]
        for name in localisation.MEASURES:
            for end in ("estimate", "low", "high"):
                assert three[name][end] == pytest.approx(one[name][end], abs=1e-6)
    hits = column(localisation.measure(marked(heatmap, boxes, task)), "iou")
    spread = once["all"]["iou"]["high"] - once["all"]["iou"]["low"]
    assert spread == pytest.approx(2 * 1.96 * hits.std() / np.sqrt(60), rel=0.2)
    assert once["tasks"]["b"]["iou"]["estimate"] == pytest.approx(hits[1::2].mean())


def test_where_every_maximum_misses_the_interval_is_the_exact_one():
    heatmap = np.zeros((24, 9, 9))
    heatmap[:, 0, 0] = 1
    found = localisation.localise(
        marked(heatmap, [[[[5, 5], [8, 8]]]] * 24, patient=np.arange(24) // 2),
        tasks=["a"],
        key=KEY,
        replicates=50,
    )["all"]
    low, high = binomtest(0, 12).proportion_ci(0.95, "exact")
    assert [found["pointing"][k] for k in ("estimate", "low")] == [0, low]
    assert found["pointing"]["high"] == pytest.approx(high)
    assert found["iou"]["low"] is None and "every replicate" in found["iou"]["why"]


def test_few_patients_have_no_interval_and_one_has_no_others():
    heatmap, boxes = (
        np.random.default_rng(5).random((3, 4, 4)),
        [[[[0, 0], [2, 2]]]] * 3,
    )
    found = localisation.localise(
        marked(heatmap, boxes, [0, 0, 1], [1, 2, 3]),
        tasks=["a", "b", "unmarked"],
        key=KEY,
        replicates=50,
    )
    assert list(found["tasks"]) == ["a", "b"]
    assert found["tasks"]["a"]["iou"]["low"] is None
    assert found["tasks"]["a"]["iou"]["estimate"] is not None
    assert found["tasks"]["b"]["iou"]["others"] is None
    assert "fewer than 10" in found["all"]["iou"]["why"]
