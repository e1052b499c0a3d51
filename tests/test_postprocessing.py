"""Components stay or go as asked, and what is chosen is the best on validation."""

import itertools

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medjax.errors import InputError
from medjax.evaluation import masks
from medjax.evaluation.masks import Post

SPACING = (2.0, 1.0, 1.5)  # 3 mm^3 a voxel.


def smooth(seed, shape=(8, 12, 12, 1)):
    noise = np.random.default_rng(seed).normal(size=shape)
    noise = ndimage.gaussian_filter(noise, (1, 1, 1, 0))
    return (noise - noise.min()) / np.ptp(noise)


def brute(probability, post):
    """One region's mask, its components by SimpleITK."""
    image = SimpleITK.GetImageFromArray(
        (probability >= post.threshold).astype(np.uint8)
    )
    parts = SimpleITK.GetArrayFromImage(SimpleITK.ConnectedComponent(image, True))
    sizes = {n: (parts == n).sum() * 3.0 for n in range(1, parts.max() + 1)}
    kept = [n for n, size in sizes.items() if size >= post.smallest]
    if post.largest and sizes:
        largest = max(sizes.values())
        kept = [n for n in kept if sizes[n] == largest]
    return np.isin(parts, kept)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.builds(
        Post,
        threshold=st.sampled_from((0.5, 0.6, 0.7, 0.9, 1.1)),
        largest=st.booleans(),
        smallest=st.sampled_from((0.0, 3.0, 6.0, 30.0, 100.0)),
    ),
)
def test_components_stay_as_simpleitk_counts_them(seed, post):
    probability = smooth(seed)
    found = masks.masks(probability, SPACING, [post])
    assert found.shape == probability.shape and found.dtype == bool
    expected = brute(probability[..., 0], post)
    if post.largest:  # Of equally large ones, one.
        assert (found[..., 0] <= expected).all()
        assert brute(expected.astype(float), Post()).any() == found.any()
        assert ndimage.label(found[..., 0], np.ones((3, 3, 3)))[1] <= 1
    else:
        np.testing.assert_array_equal(found[..., 0], expected)


def test_by_default_only_the_threshold_counts_and_it_is_inside():
    probability = np.zeros((3, 4, 4, 2))
    probability[0, 0, 0, 0], probability[2, 2, 2, 0] = 0.5, 0.9
    found = masks.masks(probability, SPACING, [Post()] * 2)
    np.testing.assert_array_equal(found, probability >= 0.5)


def test_regions_have_each_their_own():
    probability = np.stack([smooth(1)[..., 0]] * 2, axis=-1)
    found = masks.masks(probability, SPACING, [Post(0.6), Post(0.6, largest=True)])
    assert found[..., 1].sum() < found[..., 0].sum()


def test_what_is_chosen_has_the_highest_mean_dice_of_the_masks_it_makes():
    cases = []
    for n in range(3):
        label = smooth(n + 50, (6, 10, 10, 2)) > 0.6
        alarms = np.random.default_rng(n).random(label.shape) > 0.98
        probability = 0.4 * smooth(n, label.shape) + 0.25 * label + 0.5 * alarms
        cases.append((probability, label, SPACING))
    candidates = [
        Post(*options)
        for options in itertools.product((0.5, 0.3, 0.2), (False, True), (0, 12, 90))
    ]

    def dice(k, post):
        scores = []
        for probability, label, spacing in cases:
            said = masks.masks(probability[..., [k]], spacing, [post])[..., 0]
            true = label[..., k]
            scores.append(2 * (said & true).sum() / (said.sum() + true.sum()))
        return np.mean(scores)

    chosen = masks.choose(iter(cases), candidates=candidates)
    for k in range(2):
        scores = [dice(k, post) for post in candidates]
        assert max(scores) > scores[0] + 0.01  # The default isn't the best here.
        np.testing.assert_allclose(dice(k, chosen[k]), max(scores), rtol=1e-12)


def test_of_equally_good_ones_nothing_is_done():
    label = np.zeros((4, 5, 5, 1))
    label[1:3, 1:3, 1:3] = 1
    assert masks.choose([(label, label, SPACING)]) == (Post(),)


def test_small_false_alarms_are_worth_removing():
    label = np.zeros((4, 9, 9, 1))
    label[1:3, 1:4, 1:4] = 1
    probability = label.copy()
    probability[0, 8, 8] = probability[3, 6, 8] = 1
    (chosen,) = masks.choose([(probability, label, SPACING)])
    assert chosen.smallest > 3 or chosen.largest
    np.testing.assert_array_equal(masks.masks(probability, SPACING, [chosen]), label)


def test_without_validation_volumes_nothing_can_be_chosen():
    with pytest.raises(InputError, match="validation"):
        masks.choose([])
