"""What masks are worth, against other packages, brute force, and written conventions."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn import metrics as oracle

from medjax.data import nifti
from medjax.evaluation import bootstrap, mask_metrics, outlines
from medjax.evaluation.mask_metrics import Post
from medjax.tasks.scans import MasksOutput

TOGETHER = np.zeros((2, 2), bool)  # Regions that may overlap.
SPACING = (3.0, 0.5, 1.0)
SHAPE = (6, 9, 8)
DIAGONAL = math.sqrt(18**2 + 4.5**2 + 8**2)
RATES = ("sensitivity", "lesion_sensitivity", "ppv")  # Undefined of nothing.
SHARES = ("dice", "iou", "nsd", "lesion_dice", "lesion_f1", *RATES)


def blob(seed, share=0.8):
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 0.9)
    return smooth > np.quantile(smooth, share)


def measure(predicted, label):
    return mask_metrics.measure(predicted, label, SPACING, tolerance=1.5)


def test_voxels_are_counted_as_scikit_learn_counts_them():
    predicted, label = blob(1), blob(2, 0.7) | blob(1, 0.9)
    found = measure(predicted, label)
    flat = label.ravel(), predicted.ravel()
    for name, score in (
        ("dice", oracle.f1_score),
        ("iou", oracle.jaccard_score),
        ("sensitivity", oracle.recall_score),
        ("ppv", oracle.precision_score),
    ):
        np.testing.assert_allclose(found[name], score(*flat), rtol=1e-12)
    np.testing.assert_allclose(found["true_ml"], label.sum() * 1.5 / 1000)
    np.testing.assert_allclose(found["predicted_ml"], predicted.sum() * 1.5 / 1000)


def test_distances_are_those_of_the_surfaces():
    predicted, label = blob(1), blob(2, 0.7)
    found, apart = (
        measure(predicted, label),
        outlines.distances(predicted, label, SPACING),
    )
    np.testing.assert_allclose(found["hd95"], outlines.hausdorff(apart))
    np.testing.assert_allclose(found["asd"], outlines.average_distance(apart))
    np.testing.assert_allclose(found["nsd"], outlines.surface_dice(apart, 1.5))


def parts(mask):
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    found = SimpleITK.GetArrayFromImage(SimpleITK.ConnectedComponent(image, True))
    return [found == n for n in range(1, found.max() + 1)]


def best_pairs(iou):
    """Every way to pair rows with columns: the pairs of the highest total IoU."""
    rows, columns = iou.shape
    if rows > columns:
        return best_pairs(iou.T)
    ways = itertools.permutations(range(columns), rows)
    totals = {way: iou[range(rows), way].sum() for way in ways}
    best = max(totals, key=totals.get)
    return int((iou[range(rows), best] > 0).sum())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.9, 0.99), st.floats(0.9, 0.99))
def test_lesions_are_found_by_the_best_of_all_pairings(seed, share, other):
    label = blob(seed, other)
    predicted = blob(seed + 1, share) ^ (label & blob(seed + 2, 0.5))
    true, said = parts(label)[:5], parts(predicted)[:5]
    label, predicted = (
        np.any([np.zeros(SHAPE, bool), *lesions], axis=0) for lesions in (true, said)
    )
    found = measure(predicted, label)
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in said] for a in true])
    iou = np.where(iou < 0.1, 0, iou).reshape(len(true), len(said))
    hit = best_pairs(iou) if iou.size else 0
    missed, false = len(true) - hit, len(said) - hit
    assert found["true_lesions"] == hit + missed
    assert found["found_lesions"] == hit
    assert found["false_positives"] == false
    sensitivity = hit / (hit + missed) if true else math.nan
    np.testing.assert_allclose(found["lesion_sensitivity"], sensitivity)
    if true or said:
        f1 = 2 * hit / (2 * hit + missed + false)
        np.testing.assert_allclose(found["lesion_f1"], f1)


def test_one_blob_finds_one_lesion_at_most():
    label = np.zeros((20, 20, 20), bool)
    for at in itertools.product((3, 14), repeat=3):
        label[tuple(slice(a, a + 3) for a in at)] = True
    found = measure(np.ones_like(label), label)
    assert found["true_lesions"] == 8 and found["found_lesions"] == 0
    blob = label.copy()
    blob[3:6, 3:17, 3:17] = True  # A slab through four of them; the others as they are.
    found = measure(blob, label)
    assert (found["found_lesions"], found["false_positives"]) == (4, 1)
    blob = label.copy()
    blob[3:6, 3:6, 3:17] = True  # A bar through two: its IoU with either is 27 / 126.
    found = measure(blob, label)
    assert (found["found_lesions"], found["false_positives"]) == (7, 0)
    assert measure(label, label)["found_lesions"] == 8


def dilated(voxels):
    """Three steps by faces and edges."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if np.abs(s).sum() < 3]
    for _ in range(3):
        voxels = {tuple(np.add(v, s).tolist()) for v in voxels for s in steps}
    return voxels


def groups(voxels):
    """Sets of voxels that touch by faces, edges or corners."""
    left, found = set(voxels), []
    while left:
        group, new = set(), [left.pop()]
        while new:
            group.add(voxel := new.pop())
            near = {v for v in left if np.abs(np.subtract(v, voxel)).max() == 1}
            left -= near
            new += near
        found.append(group)
    return found


def brats(predicted, label):
    """Lesion-wise Dice and HD95 of sets of voxels of 1 mm, as BraTS 2023 has them."""
    worst = math.sqrt(3 * 14**2)

    def mask(voxels):
        found = np.zeros((14, 14, 14), bool)
        found[tuple(np.array([*voxels], int).reshape(-1, 3).T)] = True
        return found

    predicted, label = ({*map(tuple, np.argwhere(m))} for m in (predicted, label))
    components, touched, dices, away = groups(predicted), [], [], []
    for extent in groups(dilated(label)):
        true = label & extent
        touching = [c for c in components if c & extent]
        touched += touching
        other = set().union(*touching)
        dices.append(2 * len(true & other) / (len(true) + len(other)))
        apart = outlines.distances(mask(other), mask(true), (1, 1, 1))
        away.append(min(outlines.hausdorff(apart), worst))
    false = sum(c not in touched for c in components)
    count = len(dices) + false
    return sum(dices) / count, (sum(away) + false * worst) / count


def few_lesions(rng, count):
    mask = np.zeros((14, 14, 14), bool)
    for corner in rng.integers(0, 11, (count, 3)):
        mask[tuple(slice(c, c + rng.integers(1, 4)) for c in corner)] = True
    return mask


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_lesions_are_scored_as_brats_2023_scores_them(seed):
    rng = np.random.default_rng(seed)
    label = few_lesions(rng, 3)
    predicted = np.roll(label, 1, seed % 3) & (rng.random(label.shape) < 0.9)
    predicted |= few_lesions(rng, seed % 3)
    found = mask_metrics.measure(predicted, label, (1, 1, 1), tolerance=1)
    expected = brats(predicted, label)
    both = found["lesion_dice"], found["lesion_hd95"]
    np.testing.assert_allclose(both, expected, rtol=1e-9)


def test_lesions_nearer_than_two_dilations_are_one_in_millimetres():
    label = np.zeros((9, 3, 30), bool)
    label[4, 1, 5] = label[4, 1, 12] = True  # 7 steps: dilations by 3 touch.
    predicted = label.copy()
    predicted[4, 1, 12] = False
    for step, dice in ((1.0, 2 / 3), (1.3, 0.5), (4.0, 0.5)):
        found = mask_metrics.measure(predicted, label, (1, 1, step), tolerance=1)
        assert found["lesion_dice"] == pytest.approx(dice), step
    # Lesions are 7 steps of 0.5 mm apart; four slices of 5 mm aren't near.
    found = mask_metrics.measure(predicted, label, (5, 1, 0.5), tolerance=1)
    assert found["lesion_dice"] == pytest.approx(2 / 3)
    label[0, 1, 5] = True
    found = mask_metrics.measure(predicted, label, (5, 1, 0.5), tolerance=1)
    assert found["lesion_dice"] == pytest.approx(1 / 3)


def test_voxels_that_share_a_corner_are_one_lesion():
    label = np.zeros(SHAPE)
    label[1, 1, 1] = label[2, 2, 2] = label[4, 4, 4] = 1
    assert measure(label, label)["true_lesions"] == 2


def test_equal_masks_are_worth_everything():
    found = measure(blob(4), blob(4))
    assert all(found[name] == 1 for name in SHARES)
    assert found["hd95"] == found["asd"] == found["false_positives"] == 0


def test_nothing_said_of_nothing_is_right():
    empty = np.zeros(SHAPE)
    found = measure(empty, empty)
    assert all(math.isnan(found[name]) for name in RATES)
    assert all(found[name] == 1 for name in set(SHARES) - set(RATES))
    assert all(
        found[name] == 0 for name in set(mask_metrics.MASK_METRICS) - set(SHARES)
    )


def test_a_missed_structure_is_the_worst_not_absent():
    found = measure(np.zeros(SHAPE), blob(4))
    assert all(found[name] == 0 for name in SHARES)
    far = [found[name] for name in ("hd95", "asd", "lesion_hd95")]
    np.testing.assert_allclose(far, DIAGONAL)
    assert found["true_lesions"] > 0 == found["found_lesions"]
    assert math.isnan(found["false_alarm"])


def test_a_false_alarm_is_wrong_but_misses_nothing():
    found = measure(blob(4), np.zeros(SHAPE))
    undefined = {"sensitivity", "lesion_sensitivity"}
    assert all(found[name] == 0 for name in set(SHARES) - undefined)
    assert all(math.isnan(found[name]) for name in undefined)
    far = [found[name] for name in ("hd95", "asd", "lesion_hd95")]
    np.testing.assert_allclose(far, DIAGONAL)
    assert found["false_positives"] == len(parts(blob(4)))
    assert found["false_alarm"] == 1


def test_every_case_has_every_metric():
    empty, full = np.zeros(SHAPE), np.ones(SHAPE)
    for pair in ((empty, empty), (empty, full), (full, empty), (full, full)):
        assert measure(*pair).keys() == set(mask_metrics.MASK_METRICS)


def make_rows(volumes, patients, seed=0):
    rows = []
    for n in range(volumes):
        label = np.stack([blob(seed + n), blob(seed + n + 100)], axis=-1)
        said = blob(seed + n, 0.82 + 0.02 * (n % 4))
        said = np.stack([said, np.zeros(SHAPE)], axis=-1)
        rows += [
            {"name": f"v{n}", "patient": n % patients, "region": region}
            | measure(said[..., k], label[..., k])
            for k, region in enumerate(("whole", "core"))
        ]
    return rows


def ends_of(metric, mean, moves, counts):
    """The interval of a mean that patients move so: bootstrap-t of the distances,
    Wilson's of the shares."""
    n, error = len(moves), np.sqrt((moves**2).sum())
    least = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    if metric == "hd95":
        drawn = np.stack([np.repeat(moves, count) for count in counts])
        spread = np.sqrt(n) * drawn.std(axis=1)
        t = drawn.sum(axis=1)[spread > 0] / spread[spread > 0]
        low, high = np.quantile(t, [0.025, 0.975])
        high, low = np.clip((high, -low), least, 2 * least)
        return max(mean - high * error, 0), mean + low * error
    z2 = (least * error) ** 2 / (mean * (1 - mean))
    reach = np.sqrt(z2 * (mean * (1 - mean) + z2 / 4))
    return (mean + z2 / 2 - reach) / (1 + z2), (mean + z2 / 2 + reach) / (1 + z2)


def test_intervals_are_of_patients_with_all_their_volumes():
    rows, key, replicates = make_rows(13, 10), jax.random.key(3), 60
    rows[4]["sensitivity"] = math.nan  # Of v2's whole.
    found = mask_metrics.summarise(rows, key=key, replicates=replicates)
    counts = bootstrap.multiplicities(key, np.arange(replicates), 10)
    for metric in ("dice", "hd95", "sensitivity"):
        value = {(r["name"], r["region"]): r[metric] for r in rows}
        both = np.array(
            [[value[f"v{n}", r] for r in ("whole", "core")] for n in range(13)]
        )
        for one, summary in (
            (both[:, :1], found["regions"]["whole"][metric]),
            (both, found["mean"][metric]),
        ):
            means = np.nanmean(one, axis=0)
            # How far each patient's volumes move the mean of their regions' means.
            moves = np.nan_to_num((one - means) / (~np.isnan(one)).sum(axis=0)).mean(1)
            moves = np.bincount(np.arange(13) % 10, moves)
            ends = ends_of(metric, means.mean(), moves, np.asarray(counts).T)
            got = [summary[name] for name in ("estimate", "low", "high")]
            np.testing.assert_allclose(got, [means.mean(), *ends], rtol=1e-4)
            known = one[~np.isnan(one).all(axis=1)]
            median = np.median(np.nanmean(known, axis=1))
            np.testing.assert_allclose(summary["median"], median)
            assert summary["patients"] == 10
    assert found["volumes"] == 13 and found["patients"] == 10
    assert found["note"] == ""
    lesions = (
        found["regions"]["core"]["true_lesions"],
        found["regions"]["core"]["false_positives"],
    )
    assert lesions[0]["low"] < lesions[0]["estimate"] < lesions[0]["high"]
    # Nothing was predicted: no false lesion in 10 patients.
    exact = stats.chi2.ppf(0.975, 2) / 2 / 10
    assert (lesions[1]["low"], lesions[1]["high"]) == (0, pytest.approx(exact))


def test_empty_scans_have_a_false_alarm_rate_and_no_sensitivity():
    rows = make_rows(24, 24)
    empty = measure(np.zeros(SHAPE), np.zeros(SHAPE))
    alarm = measure(blob(1), np.zeros(SHAPE))
    core = [row for row in rows if row["region"] == "core"]
    for n, row in enumerate(core[:12]):
        row |= alarm if n < 3 else empty
    key = jax.random.key(0)
    found = mask_metrics.summarise(rows, key=key, replicates=200)["regions"]
    assert found["core"]["false_alarm"]["estimate"] == pytest.approx(3 / 12)
    assert found["core"]["false_alarm"]["patients"] == 12
    assert found["core"]["sensitivity"]["estimate"] == 0  # Nothing was said of a core.
    assert found["core"]["sensitivity"]["patients"] == 12
    assert found["whole"]["false_alarm"]["estimate"] is None
    for row in core[:3]:
        row |= empty
    found = mask_metrics.summarise(rows, key=key, replicates=200)
    both = found["regions"]["core"]["false_alarm"], found["mean"]["false_alarm"]
    exact = stats.binomtest(0, 12).proportion_ci(method="exact")
    for alarms in both:
        assert (alarms["estimate"], alarms["low"]) == (0, 0)
        assert alarms["high"] == pytest.approx(exact.high)


def test_nine_patients_have_means_and_no_interval():
    found = mask_metrics.summarise(
        make_rows(10, 9), key=jax.random.key(0), replicates=20
    )
    dice = found["regions"]["whole"]["dice"]
    assert dice["estimate"] > 0 and dice["low"] is dice["high"] is None
    assert "No intervals" in found["note"]


def test_what_is_defined_in_too_few_patients_has_no_interval_and_is_counted():
    rows = make_rows(5, 5)
    for row in rows[2:]:
        row["lesion_sensitivity"] = math.nan
    found = mask_metrics.summarise(rows, key=jax.random.key(0), replicates=50)
    lesions = found["regions"]["whole"]["lesion_sensitivity"]
    assert lesions["patients"] == 1 and lesions["low"] is None
    expected = rows[0]["lesion_sensitivity"]
    assert lesions["estimate"] == pytest.approx(expected)
    for row in rows:
        row["lesion_sensitivity"] = math.nan
    found = mask_metrics.summarise(rows, key=jax.random.key(0), replicates=50)
    assert found["regions"]["core"]["lesion_sensitivity"]["estimate"] is None
    json.dumps(found, allow_nan=False)


def test_twenty_patients_have_intervals_that_hold_the_mean():
    found = mask_metrics.summarise(
        make_rows(20, 20), key=jax.random.key(0), replicates=200
    )
    assert found["note"] == ""
    for metric in ("dice", "hd95", "nsd", "lesion_f1"):
        one = found["regions"]["whole"][metric]
        assert one["low"] < one["estimate"] < one["high"]
    missed = found["regions"]["core"]["dice"]
    exact = stats.binomtest(0, 20).proportion_ci(method="exact")
    assert (missed["estimate"], missed["low"]) == (0, 0)
    assert missed["high"] == pytest.approx(exact.high)


def test_limits_of_agreement_are_two_deviations_about_the_bias():
    true = np.array([10.0, 20, 30, 44])
    found = mask_metrics.agreement(true, true + [1, 2, 3, 6], np.arange(4))
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert found.bias == 3
    np.testing.assert_allclose(found.low, 3 - 1.96 * deviation)
    np.testing.assert_allclose(found.high, 3 + 1.96 * deviation)
    few = mask_metrics.agreement(true[:2], true[:2] + 1, np.arange(2))
    assert few.bias == 1 and np.isnan(few[1:]).all()


def test_limits_of_agreement_hold_for_a_new_patient_of_several_volumes():
    """The variances within and between patients are 1 and 4: together 5."""
    rng = np.random.default_rng(0)
    volumes = rng.integers(1, 6, 3000)
    patient = np.repeat(np.arange(3000), volumes)
    difference = rng.normal(0, 2, 3000)[patient] + rng.normal(0, 1, len(patient))
    zero = np.zeros(len(patient))
    found = mask_metrics.agreement(zero, difference, patient)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(5), rel=0.02)
    # Of few patients with many volumes, where volumes as units are too sure.
    ratios = []
    for _ in range(400):
        patient = np.repeat(np.arange(6), [1, 1, 1, 1, 1, 25])
        difference = rng.normal(0, 2, 6)[patient] + rng.normal(0, 1, 30)
        found = mask_metrics.agreement(np.zeros(30), difference, patient)
        ratios.append(((found.high - found.low) / 2 / 1.96) ** 2 / 5)
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("region", ["whole", "core"])
def test_agreement_is_of_the_volumes_in_the_rows(region):
    rows = make_rows(4, 4)
    found = mask_metrics.summarise(rows, key=jax.random.key(0), replicates=20)
    own = [row for row in rows if row["region"] == region]
    difference = [row["predicted_ml"] - row["true_ml"] for row in own]
    np.testing.assert_allclose(found["agreement"][region]["bias"], np.mean(difference))


VOXEL = (2.0, 1.0, 1.5)  # 3 mm^3 a voxel.


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
    found = mask_metrics.masks(probability, VOXEL, [post], TOGETHER)
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
    found = mask_metrics.masks(probability, VOXEL, [Post()] * 2, TOGETHER)
    np.testing.assert_array_equal(found, probability >= 0.5)


def test_a_voxel_of_two_organs_is_the_likelier_one_s():
    """Liver, the vessels in it, and the spleen: a row of voxels, by hand."""
    liver, vessel, spleen = [0.95, 0.9, 0.51, 0.6, 0.4], [0, 0.7, 0, 0, 0], [0.55, 0.51]
    probability = np.zeros((1, 1, 5, 3), np.float32)
    probability[0, 0, :, 0], probability[0, 0, :, 1] = liver, vessel
    probability[0, 0, :, 2] = [*spleen, 0.6, 0.6, 0.8]
    apart = MasksOutput((), {"liver": (1, 2), "vessel": (2,), "spleen": (3,)}).apart
    found = mask_metrics.masks(probability, VOXEL, [Post()] * 3, apart)[0, 0]
    assert found[:, 0].tolist() == [True, True, False, True, False]  # A tie: the first.
    assert found[:, 1].tolist() == [False, True, False, False, False]
    assert found[:, 2].tolist() == [False, False, True, False, True]


def test_regions_that_exclude_each_other_are_called_by_the_largest_of_a_softmax():
    rng = np.random.default_rng(0)
    whole = rng.dirichlet([0.5] * 4, (5, 6, 7))  # The background is the last.
    whole[0, 0, 0] = 0.4, 0.35, 0.1, 0.15  # None is above a half.
    called = mask_metrics.likeliest(whole[..., :-1].astype(np.float32))
    rest = np.arange(3)
    np.testing.assert_array_equal(called, whole.argmax(-1)[..., None] == rest)
    values = {name: (n,) for n, name in enumerate("abc", start=2)}
    output = MasksOutput((), values, exclusive=True)
    found = mask_metrics.masks(called, VOXEL, [Post()] * 3, output.apart)
    painted = nifti.paint(found, values)
    np.testing.assert_array_equal(painted, np.array([2, 3, 4, 0])[whole.argmax(-1)])


def test_regions_have_each_their_own():
    probability = np.stack([smooth(1)[..., 0]] * 2, axis=-1)
    posts = [Post(0.6), Post(0.6, largest=True)]
    found = mask_metrics.masks(probability, VOXEL, posts, TOGETHER)
    assert found[..., 1].sum() < found[..., 0].sum()


def test_what_is_chosen_has_the_highest_mean_dice_of_the_masks_it_makes(monkeypatch):
    cases = []
    for n in range(5):
        label = smooth(n + 50, (6, 10, 10, 2)) > 0.6
        alarms = np.random.default_rng(n).random(label.shape) > 0.98
        probability = 0.4 * smooth(n, label.shape) + 0.25 * label + 0.5 * alarms
        cases.append((probability, label, VOXEL))
    candidates = [
        Post(*options)
        for options in itertools.product((0.5, 0.3, 0.2), (False, True), (0, 12, 90))
    ]

    def dice(k, post):
        scores = []
        for probability, label, spacing in cases:
            lone = probability[..., [k]]
            said = mask_metrics.masks(lone, spacing, [post], TOGETHER)[..., 0]
            true = label[..., k]
            scores.append(2 * (said & true).sum() / (said.sum() + true.sum()))
        return np.mean(scores)

    monkeypatch.setattr(mask_metrics, "CANDIDATES", candidates)
    chosen = mask_metrics.choose(iter(cases))
    for k in range(2):
        scores = [dice(k, post) for post in candidates]
        assert max(scores) > scores[0] + 0.01  # The default isn't the best here.
        np.testing.assert_allclose(dice(k, chosen[k]), max(scores), rtol=1e-12)


def test_of_equally_good_ones_nothing_is_done():
    label = np.zeros((4, 5, 5, 1))
    label[1:3, 1:3, 1:3] = 1
    assert mask_metrics.choose([(label, label, VOXEL)]) == [Post()]


def test_small_false_alarms_are_worth_removing():
    label = np.zeros((4, 9, 9, 1))
    label[1:3, 1:4, 1:4] = 1
    probability = label.copy()
    probability[0, 8, 8] = probability[3, 6, 8] = 1
    [chosen] = mask_metrics.choose([(probability, label, VOXEL)] * 5)
    assert chosen.smallest > 3 or chosen.largest
    np.testing.assert_array_equal(
        mask_metrics.masks(probability, VOXEL, [chosen], TOGETHER), label
    )


def test_few_volumes_choose_no_rule_that_removes_components():
    label = np.zeros((4, 9, 9, 1))
    label[1:3, 1:4, 1:4] = 1
    probability = 0.4 * label
    probability[0, 8, 8] = 0.45
    [chosen] = mask_metrics.choose([(probability, label, VOXEL)] * 4)
    assert chosen == Post(0.4) or chosen == Post(0.3)
    [chosen] = mask_metrics.choose([(probability, label, VOXEL)] * 5)
    assert chosen.smallest or chosen.largest


def test_without_validation_volumes_nothing_is_chosen():
    assert mask_metrics.choose([]) == []
