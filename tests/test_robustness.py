"""The cost of corruptions against scikit-learn and a literal bootstrap."""

import csv
import json

import cv2
import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from medjax.errors import InputError
from medjax.evaluation import corruptions, discrimination, robustness
from medjax.evaluation.corruptions import CORRUPTIONS, RANGE, SEVERITIES
from medjax.evaluation.inference import Predictions
from medjax.tasks import perturb

KEY = jax.random.key(5)
TASKS = ("mass", "nodule", "never")
THRESHOLD = np.array([0.5, np.nan, 0.6])


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(30), 3))
    label = (rng.random((90, 3)) < [0.4, 0.5, 0]).astype(np.float32)
    clean = np.round(rng.random((90, 3)) + 0.5 * label, 2).astype(np.float32)
    weight = np.ones_like(label)
    weight[:4] = 0  # No label known: these films count for nothing.
    said = {
        name: np.stack(
            [clean + s * share * rng.normal(size=clean.shape) for s in range(5)]
        ).astype(np.float32)
        for name, share in (("blur", 0.05), ("jpeg", 0.2))
    }
    return Predictions(np.arange(90), 3 * patient, clean, label, weight), said


@pytest.fixture(scope="module")
def found(cohort):
    return robustness.summarise(
        *cohort,
        tasks=TASKS,
        exclusive=False,
        threshold=THRESHOLD,
        calibrate=np.asarray,
        key=KEY,
        replicates=30,
    )


def mean_area(clean, score, rows):
    return np.mean(
        [roc_auc_score(clean.label[rows, t], score[rows, t]) for t in (0, 1)]
    )


def stay(clean, score, rows):
    cut = THRESHOLD[[0, 2]]
    one, two = (x[rows][:, [0, 2]] >= cut for x in (clean.probability, score))
    return (one == two).mean()


def test_each_number_is_scikit_learn_s_and_its_interval_a_literal_bootstrap(
    cohort, found
):
    clean, said = cohort
    rows = np.flatnonzero(clean.weight.any(axis=1))
    names = np.unique(clean.patient[rows])
    of = [rows[clean.patient[rows] == name] for name in names]
    drawn = [rows]
    for r in range(30):
        bits = jax.random.bits(jax.random.fold_in(KEY, r), (names.size,))
        drawn.append(np.concatenate([of[p] for p in bits % names.size]))
    before = np.array([mean_area(clean, clean.probability, d) for d in drawn])

    def check(interval, values):
        """By the deviation of the replicates; a share's interval is Wilson's."""
        np.testing.assert_allclose(interval["estimate"], values[0], atol=1e-6)
        reach = 1.959964 * np.std(values[1:], ddof=1)
        ends = [values[0] - reach, values[0] + reach]
        if interval in shares:
            z2 = reach**2 / (values[0] * (1 - values[0]))
            ends = np.roots([1 + z2, -2 * values[0] - z2, values[0] ** 2])
        got = [interval["low"], interval["high"]]
        np.testing.assert_allclose(got, sorted(np.real(ends)), atol=1e-5)

    def check_area(interval, values):
        """Its area draws n towards 2 k: wider or narrower, but about as wide."""
        np.testing.assert_allclose(interval["estimate"], values[0], atol=1e-6)
        assert interval["low"] < values[0] < interval["high"]
        width = (interval["high"] - interval["low"]) / np.std(values[1:], ddof=1)
        assert 0.5 < width / (2 * 1.96) < 2

    shares: list = []
    check_area(found["clean"]["auroc"], before)
    together = []
    for name in said:
        row = found["corruptions"][name]["severities"][3]
        assert row["severity"] == 4
        score = said[name][3]
        after = np.array([mean_area(clean, score, d) for d in drawn])
        together.append(after)
        check_area(row["auroc"], after)
        check(row["drop"], before - after)
        shares.append(row["agreement"])
        check(row["agreement"], np.array([stay(clean, score, d) for d in drawn]))
        area = roc_auc_score(clean.label[rows, 1], score[rows, 1])
        assert row["tasks"]["nodule"] == pytest.approx(area, abs=1e-6)
        assert row["tasks"]["never"] is None
    check(found["mean"][3]["drop"], before - np.mean(together, axis=0))
    check_area(found["mean"][3]["auroc"], np.mean(together, axis=0))


def test_a_corruption_that_changes_nothing_costs_nothing(found):
    first = found["corruptions"]["jpeg"]["severities"][0]  # At which nothing is added.
    assert [first["drop"][k] for k in ("estimate", "low", "high")] == [0, None, None]
    assert "every replicate" in first["drop"]["why"]
    agreement = [first["agreement"][k] for k in ("low", "estimate", "high")]
    low, _ = binomtest(30, 30).proportion_ci(0.95, "exact")  # Patients, not calls.
    assert agreement == pytest.approx([low, 1, 1])


def test_without_thresholds_no_call_can_stay(cohort):
    clean, said = cohort
    none = robustness.summarise(
        *(clean, {"blur": said["blur"]}),
        tasks=TASKS,
        exclusive=False,
        threshold=np.full(3, np.nan),
        calibrate=np.asarray,
        key=KEY,
        replicates=30,
    )
    agreement = none["mean"][2]["agreement"]
    assert agreement["estimate"] is None and agreement["why"] == "no threshold"


def test_calls_are_of_calibrated_probabilities_and_ranks_of_those_before(cohort):
    def tying(probability):  # As isotonic regression ties.
        return np.floor(2 * probability) / 2

    clean, said = cohort
    options = {"tasks": TASKS, "exclusive": False, "key": KEY, "replicates": 30}
    found, plain, tied = (
        robustness.summarise(
            *(clean._replace(probability=change(clean.probability)),),
            {"jpeg": change(said["jpeg"])},
            threshold=THRESHOLD,
            calibrate=later,
            **options,
        )["corruptions"]["jpeg"]["severities"][3]
        for change, later in (
            (np.array, tying),
            (np.array, np.array),
            (tying, np.array),
        )
    )
    assert found["auroc"] == plain["auroc"] != tied["auroc"]
    assert found["agreement"] == tied["agreement"] != plain["agreement"]


def test_of_classes_the_call_is_the_likeliest(cohort):
    clean, said = cohort
    found = robustness.summarise(
        *(clean, {"jpeg": said["jpeg"]}),
        tasks=TASKS,
        exclusive=True,
        threshold=THRESHOLD,
        calibrate=np.asarray,
        key=KEY,
        replicates=30,
    )
    rows = clean.weight.any(axis=1)
    one, two = (x[rows].argmax(axis=1) for x in (clean.probability, said["jpeg"][4]))
    agreement = found["corruptions"]["jpeg"]["severities"][4]["agreement"]
    assert agreement["estimate"] == pytest.approx((one == two).mean())


def test_both_files_hold_what_was_found(found, tmp_path):
    path = perturb.write(found, tmp_path / "robustness.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [row["corruption"] for row in rows] == ["blur"] * 5 + ["jpeg"] * 5 + [
        "mean"
    ] * 5
    drop = found["corruptions"]["jpeg"]["severities"][4]["drop"]
    assert float(rows[9]["drop_low"]) == drop["low"] and rows[9]["value"] == "5"


def test_fewer_films_are_among_more_whatever_their_order():
    ids = np.random.default_rng(1).permutation(50)
    some = perturb.fewer(ids, 10)
    assert len(some) == 10 and set(some) < set(perturb.fewer(ids[::-1], 20))
    np.testing.assert_array_equal(perturb.fewer(ids, 0), np.arange(50))
    np.testing.assert_array_equal(perturb.fewer(ids, 99), np.arange(50))
    with pytest.raises(InputError, match="--films=-1"):
        perturb.fewer(ids, -1)


IMAGE_KEY = jax.random.key(4)
SIDE = 48


def films(number=3):
    """Smooth patches with an edge and a fine pattern, [B, H, W, 1] in [0, 1]."""
    rng = np.random.default_rng(0)
    film = ndimage.gaussian_filter(rng.random((number, SIDE, SIDE)), (0, 3, 3))
    film = (film - film.min()) / np.ptp(film) * 0.5 + 0.2
    film[:, 10:20, 8:30] += 0.2
    film[:, 30:, ::4] -= 0.1
    return film[..., None].astype(np.float32)


def psnr(film, other):
    return -10 * np.log10(np.mean((np.asarray(other) - film) ** 2))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_worse_at_each_severity_and_the_film_s_own(name):
    film, ids = films(), np.array([5, 6, 7])
    found = [
        np.asarray(corruptions.corrupt(name, IMAGE_KEY, film, ids, severity=severity))
        for severity in SEVERITIES
    ]
    for one in found:
        assert one.shape == film.shape and one.dtype == np.float32
        assert one.min() >= 0 and one.max() <= 1
    falls = [[psnr(film[n], one[n]) for one in found] for n in range(3)]
    assert (np.diff(np.mean(falls, axis=0)) < -0.2).all(), falls
    # In another batch, at another place, with padding.
    other = np.concatenate([film[2:], film[:1], np.zeros_like(film)])
    again = corruptions.corrupt(
        name, IMAGE_KEY, other, np.array([7, 5, -1, -1, -1]), severity=3
    )
    np.testing.assert_array_equal(np.asarray(again)[:2], found[2][[2, 0]])
    if name not in ("blur", "contrast", "jpeg"):  # These draw nothing.
        same = corruptions.corrupt(name, IMAGE_KEY, film[[0] * 3], ids, severity=3)
        assert len({np.asarray(one).tobytes() for one in same}) > 1


def corrupted(name, film, value, id=0):
    key = jax.random.fold_in(IMAGE_KEY, id)
    function = jax.jit(CORRUPTIONS[name].apply)
    return np.asarray(function(key, np.float32(film), np.float32(value)))


def test_quantum_noise_has_the_spread_of_counted_photons():
    photons = 8000
    for grey in (0.1, 0.5, 0.8):
        found = corrupted("quantum_noise", np.full((120, 120, 1), grey), photons)
        counts = photons * np.exp(-RANGE * grey)
        assert found.mean() == pytest.approx(grey, abs=2e-3)
        # ln of a Poisson count deviates by 1 / sqrt(its mean).
        assert found.std() == pytest.approx(1 / np.sqrt(counts) / RANGE, rel=0.05)


def test_electronic_noise_is_as_strong_as_it_says_everywhere():
    for grey in (0.3, 0.7):
        found = corrupted("electronic_noise", np.full((120, 120, 1), grey), 8)
        assert found.std() * 255 == pytest.approx(8, rel=0.03)


def test_blur_is_scipy_s_gaussian_away_from_the_edge():
    film = films(1)[0]
    found = corrupted("blur", film, 4.0)[..., 0]
    expected = ndimage.gaussian_filter(film[..., 0], 0.04 * SIDE, truncate=12)
    np.testing.assert_allclose(found[16:32, 16:32], expected[16:32, 16:32], atol=2e-5)
    np.testing.assert_allclose(corrupted("blur", 0 * film + 0.4, 4.0), 0.4, atol=1e-6)


def test_exposure_is_a_factor_of_what_the_film_received():
    film = films(1)[0]
    moved = {
        float(np.median(corrupted("exposure", film, 1, id) - film)) for id in range(8)
    }
    shift = np.log(2) / RANGE
    np.testing.assert_allclose(sorted(moved), [-shift, shift], atol=1e-6)


def test_scatter_takes_contrast_from_the_dense_most():
    film = np.full((10, 10, 1), 0.2, np.float32)
    film[5:] = 0.8
    found = corrupted("contrast", film, 0.5)[..., 0]
    dose = np.exp(-RANGE * np.array([0.2, 0.8]))
    expected = -np.log(0.5 * dose + 0.5 * dose.mean()) / RANGE
    np.testing.assert_allclose(found[[0, 9], 0], expected, atol=1e-6)
    assert 0.8 - expected[1] > expected[0] - 0.2 > 0


def test_a_jpeg_is_what_the_file_gives_back():
    film = films(1)[0]
    data = cv2.imencode(
        ".jpg",
        np.rint(film[..., 0] * 255).astype(np.uint8),
        [cv2.IMWRITE_JPEG_QUALITY, 30],
    )[1]
    expected = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) / 255
    found = corruptions.jpeg(IMAGE_KEY, np.repeat(film, 2, axis=-1), 30)
    np.testing.assert_allclose(found, np.stack([expected] * 2, axis=-1), atol=1e-7)


def test_rotation_is_scipy_s_to_either_side():
    film = films(1)[0]
    sides = set()
    for id in range(6):
        found = corrupted("rotation", film, 20.0, id)[..., 0]
        for sign in (-1, 1):
            expected = ndimage.rotate(film[..., 0], sign * 20, reshape=False, order=1)
            if np.allclose(found[12:36, 12:36], expected[12:36, 12:36], atol=1e-4):
                sides.add(sign)
    assert sides == {-1, 1}


def test_a_plate_is_white_of_its_size_and_hides_no_other_pixel():
    film = films(1)[0]
    for id in range(5):
        found = corrupted("occlusion", film, 25.0, id)
        hidden = (found != film)[..., 0]
        assert (found[hidden] == 1).all()
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden.sum() == len(rows) * len(columns)
        assert max(len(rows), len(columns)) <= 13 and len(rows) > 0


OPTIONS = {"tasks": ("a", "b"), "key": jax.random.key(0), "replicates": 200}


def predictions(seed=0, images=120):
    rng = np.random.default_rng(seed)
    label = (rng.random((images, 2)) < 0.4).astype(np.float32)
    score = (0.5 * label + 0.5 * rng.random(label.shape)).astype(np.float32)
    weight = (rng.random(label.shape) < 0.8).astype(np.float32)
    patient = np.arange(images) // 2
    return Predictions(np.arange(images), patient, score, label, weight)


def test_images_that_are_not_changed_move_nothing():
    plain = predictions()
    found = robustness.compare(plain, plain, threshold=np.full(2, 0.5), **OPTIONS)
    for one in found["tasks"].values():
        assert one["moved"] == one["flipped"] == 0
    assert found["mean_drop"]["low"] == found["mean_drop"]["high"] == 0


def test_the_numbers_are_those_of_a_loop_over_known_labels():
    plain = predictions()
    noise = np.random.default_rng(1).normal(0, 0.3, plain.probability.shape)
    changed = plain._replace(probability=(plain.probability + noise).astype(np.float32))
    threshold = np.array([0.5, np.nan])
    found = robustness.compare(plain, changed, threshold=threshold, **OPTIONS)
    for t, one in enumerate(found["tasks"].values()):
        known = plain.weight[:, t] > 0
        before, after = (p.probability[known, t] for p in (plain, changed))
        label = plain.label[known, t]
        assert one["moved"] == pytest.approx(np.abs(after - before).mean())
        drop = roc_auc_score(label, before) - roc_auc_score(label, after)
        assert one["drop"]["estimate"] == pytest.approx(drop, abs=1e-6)
        assert one["drop"]["low"] < drop < one["drop"]["high"]
        if t == 0:
            flipped = np.mean((before >= 0.5) != (after >= 0.5))
            assert one["flipped"] == pytest.approx(flipped)
    assert found["tasks"]["b"]["flipped"] is None  # No threshold, no call.


def test_the_intervals_hold_for_all_findings_together():
    """Wider than one finding's alone, as Bonferroni has it for 19 and their mean."""
    rng = np.random.default_rng(0)
    label = (rng.random((400, 19)) < 0.4).astype(np.float32)
    plain = Predictions(
        np.arange(400), np.arange(400), label, label, np.ones_like(label)
    )
    scores = 0.3 * label + rng.random((2, *label.shape), np.float32)
    plain, changed = (plain._replace(probability=score) for score in scores)
    options = {"key": jax.random.key(0), "replicates": 2000}
    found = robustness.compare(
        plain, changed, tasks=range(19), threshold=np.zeros(19), **options
    )
    alone = discrimination.difference(
        *scores, label, plain.weight, plain.patient, **options
    )
    drops = [one["drop"] for one in found["tasks"].values()]
    wide = np.array([drop["high"] - drop["low"] for drop in drops])
    narrow = alone["auroc"].high - alone["auroc"].low
    # Of a normal: the quantiles of 0.05 / 20 and of 0.05, two-sided.
    np.testing.assert_allclose(np.mean(wide / narrow), 3.02 / 1.96, rtol=0.1)


def test_an_op_that_erases_the_finding_is_told_from_a_harmless_one():
    plain = predictions()
    rng = np.random.default_rng(2)
    erased = plain._replace(probability=rng.random((120, 2), np.float32))
    harmless = plain._replace(probability=plain.probability**2)
    found = [
        robustness.compare(plain, other, threshold=np.full(2, 0.5), **OPTIONS)
        for other in (erased, harmless)
    ]
    assert found[0]["mean_drop"]["low"] > 0.2
    assert found[1]["mean_drop"]["low"] == found[1]["mean_drop"]["high"] == 0
    assert all(one["moved"] > 0 for one in found[1]["tasks"].values())
