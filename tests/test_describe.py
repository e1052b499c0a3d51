"""Facts about a table and its pixels, against loops, numpy, scipy and scikit-learn."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medjax.cohort import appearance, describe
from medjax.evaluation.bootstrap import as_json

TASKS = ("mass", "effusion", "nodule")


def as_written(facts):
    """What the page's JSON has of them."""
    return json.loads(json.dumps(as_json(facts)))


def make_table(images=300, patients=120, tasks=TASKS, seed=0):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, images)
    label = rng.choice([0.0, 0.0, 0.3, 0.7, 1.0, math.nan], (images, len(tasks)))
    return pd.DataFrame(
        {
            "id": rng.permutation(images),
            "image": [f"{n}.png" for n in range(images)],
            "patient": 1000 + patient,
            "view": rng.choice(["PA", "AP", "LATERAL", ""], images),
            "sex": rng.choice(["F", "M"], images, p=[0.3, 0.7]),
            "age": np.where(
                rng.random(images) < 0.1, np.nan, rng.integers(0, 130, images)
            ),
            "width": rng.choice([1000, 2000], images),
            "height": rng.choice([1000, 3000], images),
            "spacing_x": rng.choice([0.1, np.nan], images),
            "spacing_y": 0.1,
            "official": "",
            **dict(zip(tasks, label.T, strict=True)),
        }
    )


def make_manifest(table):
    split = np.array(["train", "validation", "test"])[table["patient"] % 3]
    return table[["id", "image", "patient"]].assign(split=split)


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def facts(table):
    return as_written(describe.describe(table, TASKS, make_manifest(table)))


def test_labels_are_counted_as_a_loop_counts_them(table, facts):
    for task in TASKS:
        rows = list(zip(table[task], table["patient"], strict=True))
        positive = [p for y, p in rows if y >= 0.5]
        negative = [p for y, p in rows if y < 0.5]
        found = facts["labels"][task]
        assert found["positives"] == len(positive)
        assert found["negatives"] == len(negative)
        assert found["unknown"] == len(rows) - len(positive) - len(negative)
        assert found["soft"] == sum(0 < y < 1 for y, _ in rows)
        assert found["patients"] == len(set(positive))
        assert found["patients_without"] == len(set(negative))
        share = len(positive) / (len(positive) + len(negative))
        assert found["prevalence"]["estimate"] == pytest.approx(share)


@pytest.mark.parametrize("positives", [0, 1, 7, 30, 39, 40])
def test_with_one_image_a_patient_the_interval_is_wilsons(positives):
    label = np.r_[np.ones(positives), np.zeros(40 - positives), np.nan]
    found = describe.prevalence(label, np.arange(41))
    expected = stats.binomtest(positives, 40).proportion_ci(method="wilson")
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=1e-12)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_copies_of_an_image_within_its_patient_tell_nothing_new(chance):
    rng = np.random.default_rng(1)
    label, patient = (rng.random(50) < chance).astype(float), np.arange(50)
    once = describe.prevalence(label, patient)
    many = describe.prevalence(np.tile(label, 6), np.tile(patient, 6))
    assert many == pytest.approx(once)


def test_the_interval_covers_clustered_data_where_wilsons_own_does_not():
    rng = np.random.default_rng(2)
    own = covered = 0
    for _ in range(400):
        chance = rng.choice([0.05, 0.9], 80, p=[0.7, 0.3])  # Of the patients.
        label = (rng.random((80, 5)) < chance[:, None]).astype(float)
        found = describe.prevalence(label.ravel(), np.repeat(np.arange(80), 5))
        truth = 0.05 * 0.7 + 0.9 * 0.3
        covered += found["low"] <= truth <= found["high"]
        plain = stats.binomtest(int(label.sum()), 400).proportion_ci(method="wilson")
        own += plain.low <= truth <= plain.high
    assert covered / 400 > 0.92
    assert own / 400 < 0.8


def test_nothing_known_has_no_prevalence():
    found = describe.prevalence(np.full(3, np.nan), np.arange(3))
    assert np.isnan([*found.values()]).all() and list(found) == [
        "estimate",
        "low",
        "high",
    ]


def test_findings_together_are_those_of_a_double_loop(table, facts):
    found = facts["together"]
    surprises = []
    for i, a in enumerate(TASKS):
        for j, b in enumerate(TASKS):
            pairs = list(zip(table[a], table[b], strict=True))
            both = sum(x >= 0.5 and y >= 0.5 for x, y in pairs)
            pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
            first = sum(x >= 0.5 for x, _ in pairs)
            second = sum(y >= 0.5 for _, y in pairs)
            known = len(pairs)
            assert found["both"][i][j] == both
            assert found["share"][i][j] == pytest.approx(both / first)
            if i < j:
                pair = next(
                    p for p in found["pairs"] if (p["first"], p["second"]) == (a, b)
                )
                assert pair["expected"] == pytest.approx(first * second / known)
                surprises.append(pair["surprise"])
    assert [p["surprise"] for p in found["pairs"]] == sorted(surprises, reverse=True)


def test_a_finding_that_never_occurs_has_no_shares():
    label = np.array([[1.0, 0.0], [0.0, 0.0]])
    found = as_written(describe.together(label, ("a", "b")))
    assert found["share"] == [[1.0, 0.0], [None, None]]
    assert found["pairs"] == []


def test_patients_and_findings_are_tallied(table, facts):
    films = table.groupby("patient").size().value_counts()
    found = facts["images_a_patient"]
    assert dict(zip(found["value"], found["count"], strict=True)) == films.to_dict()
    label = table[list(TASKS)]
    findings = (label >= 0.5).sum(axis=1)[label.notna().any(axis=1)].value_counts()
    found = facts["findings_an_image"]
    assert dict(zip(found["value"], found["count"], strict=True)) == findings.to_dict()


def test_age_sex_and_view(table, facts):
    age = facts["age"]
    known = table["age"].dropna()
    assert age["quantiles"]["50"] == known.median()
    assert age["quantiles"]["95"] == pytest.approx(known.quantile(0.95))
    for sex, counts in age["images"].items():
        ages = table["age"][table["sex"] == sex].dropna()
        expected = [((ages >= a) & (ages < a + 10)).sum() for a in range(0, 100, 10)]
        assert counts == [*expected, (ages >= 100).sum()]
    assert facts["view"]["unknown"] == (table["view"] == "").sum()
    assert facts["sex"] == table["sex"].value_counts().to_dict()


def test_each_finding_by_category_and_age(table, facts):
    for name, category in (("view", "AP"), ("view", ""), ("sex", "F")):
        rows = table[table[name] == category]
        for task in TASKS:
            found = facts["by"][name][category or "unknown"][task]
            known = rows[task].dropna()
            assert found["estimate"] == pytest.approx((known >= 0.5).mean())
            assert found == describe.prevalence(rows[task].to_numpy(), rows["patient"])
    ages = table["age"][table["mass"] < 0.5].dropna()
    expected = ages.quantile([0.25, 0.5, 0.75]).to_list()
    assert facts["by"]["age"]["mass"]["without"] == pytest.approx(expected)


def test_columns_sizes_and_sides(table, facts):
    age = facts["columns"]["age"]
    assert age["nulls"] == table["age"].isna().sum()
    assert age["distinct"] == table["age"].nunique()
    assert (age["min"], age["max"]) == (table["age"].min(), table["age"].max())
    assert facts["columns"]["official"]["nulls"] == 300
    assert facts["columns"]["view"]["nulls"] == (table["view"] == "").sum()
    assert facts["columns"]["view"]["distinct"] == 3
    assert [facts["columns"][n]["type"] for n in ("image", "id", "spacing_y")] == [
        *("text", "whole number", "number")
    ]
    sizes = {(w, h): n for w, h, n in facts["sizes"]}
    assert sizes == table.groupby(["width", "height"]).size().to_dict()
    assert sum(n for *_, n in facts["spacings"]) == 300
    assert {a for a, *_ in facts["spacings"]} == {0.1, None}
    part = table[table["patient"] % 3 == 1]
    side = facts["sides"]["validation"]
    assert (side["images"], side["patients"]) == (len(part), part["patient"].nunique())
    assert side["age"] == part["age"].median()
    assert side["sex"] == part["sex"].value_counts().to_dict()


def test_classes_are_not_compared_in_pairs():
    table = make_table().drop(columns=list(TASKS))
    which = np.arange(len(table)) % 3
    table = table.assign(**{t: (which == n) * 1.0 for n, t in enumerate(TASKS)})
    facts = as_written(describe.describe(table, TASKS, task="multiclass"))
    assert facts["together"] is None
    assert facts["findings_an_image"] == {"value": [1], "count": [300]}
    assert facts["sides"] == {}


def test_confounders_are_scores_that_no_label_has_touched(table):
    scores = describe.confounders(table)
    assert set(scores) == {
        *("view PA", "view AP", "view LATERAL", "view unknown"),
        *("sex F", "age", "image size"),
    }
    np.testing.assert_array_equal(scores["sex F"], table["sex"] == "F")
    np.testing.assert_array_equal(scores["view unknown"], table["view"] == "")
    np.testing.assert_array_equal(scores["age"], table["age"])
    np.testing.assert_array_equal(scores["image size"], table.width * table.height)
    other = table.assign(**{task: 1 - table[task] for task in TASKS})
    for name, score in describe.confounders(other).items():
        np.testing.assert_array_equal(score, scores[name])


def test_a_useless_category_scores_half_and_a_shortcut_scores_high(table):
    rng = np.random.default_rng(3)
    table = make_table(4000, 2000)
    present = rng.random(4000) < 0.2
    shortcut = np.where(present ^ (rng.random(4000) < 0.1), "AP", "PA")
    scores = describe.confounders(table.assign(view=shortcut))
    found = {name: score for name, score in scores.items() if name != "age"}
    aurocs = {name: roc_auc_score(present, score) for name, score in found.items()}
    assert aurocs["view AP"] == pytest.approx(0.9, abs=0.03)
    assert aurocs["sex F"] == pytest.approx(0.5, abs=0.03)


def test_what_is_the_same_for_every_image_is_no_confounder(table):
    same = table.assign(view="", sex="F", age=np.nan, width=64, height=64)
    assert describe.confounders(same) == {}


def test_the_sample_shows_every_finding_and_nothing_twice(table):
    boxes = pd.DataFrame(
        [(int(table["id"][table["mass"] >= 0.5].iloc[5]), "mass", 1.0, 2.0, 3.0, 4.5)],
        columns=["id", "task", "x0", "y0", "x1", "y1"],
    )
    drawn = as_written(describe.pick(table, TASKS, boxes=boxes))
    ids = [one["id"] for one in drawn]
    assert len(set(ids)) == len(ids)
    by_id = table.set_index("id")
    for one in drawn:
        row = by_id.loc[one["id"]]
        assert one["positive"] == [t for t in TASKS if row[t] >= 0.5]
        assert one["unknown"] == [t for t in TASKS if math.isnan(row[t])]
        assert one["shows"] in one["positive"] or not one["positive"]
    for task in TASKS:
        assert sum(one["shows"] == task for one in drawn) == 2
    assert 1 <= sum(one["shows"] == "" for one in drawn) <= 4
    assert boxes["id"][0] in ids
    assert [one["boxes"] for one in drawn if one["boxes"]] == [[["mass", 1, 2, 3, 4.5]]]
    json.dumps(drawn, allow_nan=False)
    assert drawn == as_written(describe.pick(table, TASKS, boxes=boxes))


# ----------------------------------------------------------------------- pixels


def statistics(batches, prepare):
    return as_written(appearance.statistics(batches, prepare))


def batches_of(image, sizes):
    start = 0
    for size in sizes:
        yield np.arange(start, start + size), image[start : start + size]
        start += size


@pytest.mark.parametrize("shape", [(23, 9, 7, 1), (23, 9, 7, 3), (7, 5, 8, 9, 2)])
def test_streamed_statistics_are_those_of_the_whole_array(shape):
    rng = np.random.default_rng(4)
    image = rng.normal(90, 60, shape).clip(0, 255).astype(np.uint8)
    sizes = [5] * (shape[0] // 5) + [shape[0] % 5]  # An odd last batch.

    def prepare(x):
        assert x.dtype == np.float32
        return (x - 0.3) / np.float32(0.01) + 1000  # Far from 0: digits could cancel.

    found = statistics(batches_of(image, sizes), prepare)
    whole = image.reshape(-1, shape[-1]).astype(np.float64)
    ready = prepare(image.astype(np.float32) / 255).reshape(whole.shape)
    for c, (before, after) in enumerate(
        zip(found["before"], found["after"], strict=True)
    ):
        channel, then = whole[:, c], ready[:, c].astype(np.float64)
        np.testing.assert_array_equal(
            before["histogram"], np.bincount(channel.astype(int), minlength=256)
        )
        assert before["mean"] == pytest.approx(channel.mean(), rel=1e-14)
        assert before["std"] == pytest.approx(channel.std(), rel=1e-14)
        for percent, level in before["percentiles"].items():
            assert level == np.percentile(channel, int(percent), method="inverted_cdf")
        assert after["mean"] == pytest.approx(then.mean(), rel=1e-14)
        assert after["std"] == pytest.approx(then.std(), rel=1e-11)
        assert (after["min"], after["max"]) == (then.min(), then.max())
        assert sum(after["histogram"]) == len(whole)
    own = image.reshape(shape[0], -1).astype(np.float64)
    darkest = int(own.mean(axis=1).argmin())
    np.testing.assert_allclose(
        found["darkest"][0], [darkest, own[darkest].mean(), own[darkest].std()]
    )
    assert found["brightest"][0][0] == own.mean(axis=1).argmax()
    assert found["flattest"][0][0] == own.std(axis=1).argmin()
    assert sum(found["each"]["mean"]["images"]) == shape[0]
    json.dumps(found, allow_nan=False)


def test_the_prepared_histogram_is_numpys_and_its_ends_take_the_rest():
    image = np.random.default_rng(5).integers(0, 256, (8, 6, 6, 1), dtype=np.uint8)
    found = statistics(batches_of(image, [3, 5]), lambda x: 14.1 * x - 7)
    values = (14.1 * (image.astype(np.float32) / 255) - 7).clip(-5, 4.999).ravel()
    expected, _ = np.histogram(values, 50, (-5, 5))
    np.testing.assert_array_equal(found["after"][0]["histogram"], expected)
    assert found["bins"] == {"start": -5, "width": 0.2}


def test_padding_is_not_counted():
    image = np.random.default_rng(6).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    padded = np.concatenate([image, np.zeros((2, 4, 4, 1), np.uint8)])
    ids = np.array([0, 1, 2, 3, 4, 5, -1, -1])
    batches = [(ids[:4], padded[:4]), (ids[4:], padded[4:]), (ids[6:], padded[6:])]
    found = statistics(batches, lambda x: x)
    assert found == statistics(batches_of(image, [4, 2]), lambda x: x)
    assert found["images"] == 6


def test_no_image_has_no_statistics():
    assert statistics([], lambda x: x)["images"] == 0


def test_the_deviation_keeps_its_digits_far_from_zero():
    image = np.random.default_rng(7).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)

    def far(x):
        return x.astype(np.float64) + 1e8

    found = statistics(batches_of(image, [4, 5]), far)
    expected = (image / 255).std()
    assert found["after"][0]["std"] == pytest.approx(expected, rel=1e-6)
