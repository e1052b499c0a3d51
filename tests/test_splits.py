"""Splits: nobody on two sides, every film once, the X, each kind of split."""

import gzip
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.cohort import manifests, splits
from medjax.errors import InputError

NIH = (
    Path(__file__).parents[2] / "shared/data/nih-metadata/Data_Entry_2017_v2020.csv.gz"
)
TASKS = ("common", "rare")
SEEDS = st.integers(0, 2**32 - 1)


def make_table(patient, labels):
    """A table of films from patient [N] and a dict of labels [N] by task."""
    n = len(patient)
    images = [f"images/{i:05d}.png" for i in range(n)]
    base = {"id": np.arange(n), "image": images, "patient": np.asarray(patient, int)}
    return pd.DataFrame(base | {k: np.asarray(v, float) for k, v in labels.items()})


def random_table(patients=60, films=4, common=0.5, rare=0.1, seed=0):
    """Films of `patients`, 1 to `films` each, in random order, some unknown."""
    rng = np.random.default_rng(seed)
    patient = rng.permutation(
        np.repeat(rng.permutation(patients) * 7, rng.integers(1, films + 1, patients))
    )
    n = len(patient)
    draw = {"common": rng.random(n) < common, "rare": rng.random(n) < rare}
    labels = {k: np.where(rng.random(n) < 0.1, np.nan, v) for k, v in draw.items()}
    return make_table(patient, labels)


@st.composite
def cohorts(draw):
    """Any cohort of 3 to 40 patients: no positive, all positive, one huge patient."""
    return random_table(
        patients=draw(st.integers(3, 40)),
        films=draw(st.sampled_from([1, 3, 20])),
        common=draw(st.sampled_from([0.0, 0.3, 1.0])),
        rare=draw(st.sampled_from([0.0, 0.05, 0.5])),
        seed=draw(SEEDS),
    )


@st.composite
def large_cohorts(draw):
    """Cohorts with patients enough for every X: 30 positive ones or more a task."""
    return random_table(
        patients=draw(st.integers(300, 600)),
        films=draw(st.sampled_from([1, 4, 8])),
        common=draw(st.sampled_from([0.3, 0.9])),
        rare=draw(st.sampled_from([0.1, 0.25])),
        seed=draw(SEEDS),
    )


def sides_of(manifest):
    """The set of sides of every patient, by brute force."""
    sides = {}
    for patient, side in zip(manifest["patient"], manifest["split"]):
        sides.setdefault(patient, set()).add(side)
    return sides


def films(manifest, side):
    return int((manifest["split"] == side).sum())


def shares(table, manifest, side, tasks=TASKS):
    """The share of every task's positives on a side, by brute force."""
    here = (manifest["split"] == side).to_numpy()
    return [
        (table[t][here] >= 0.5).sum() / max((table[t] >= 0.5).sum(), 1) for t in tasks
    ]


# ------------------------------------------------------------------ sampling


@settings(deadline=None, max_examples=40)
@given(cohorts(), SEEDS)
def test_no_patient_is_on_two_sides_and_every_film_is_there_once(table, seed):
    manifest = splits.split(table, TASKS, seed=seed)
    assert max(len(s) for s in sides_of(manifest).values()) == 1
    assert set(manifest["split"]) == set(manifests.SPLITS)
    assert tuple(manifest.columns) == manifests.MANIFEST
    for name in ("id", "image", "patient"):
        assert manifest[name].tolist() == table[name].tolist()


def with_follow_up(table, unknown=0.0, seed=0):
    """The table, its films numbered within each patient, some numbers unknown."""
    rng = np.random.default_rng(seed)
    number = table.groupby("patient").cumcount().astype(float)
    return table.assign(follow_up=number.mask(rng.random(len(table)) < unknown))


def kind_of_split(kind, table, seed):
    if kind == "fold":
        return splits.fold(table, TASKS, seed=seed, folds=3, fold=seed % 3)
    if kind == "official":
        return splits.official(with_official(table), TASKS, seed=seed, validation=0.2)
    if kind == "temporal":
        return splits.temporal(with_follow_up(table, 0.1), TASKS, seed=seed, cut=2)
    return splits.split(table, TASKS, seed=seed)


@pytest.mark.parametrize("kind", ["split", "fold", "official", "temporal"])
def test_many_seeds_keep_patients_whole_and_differ(kind):
    table, seen = random_table(), set()
    for seed in range(25):
        manifest = kind_of_split(kind, table, seed)
        assert manifest["id"].tolist() == table["id"].tolist()
        for sides in sides_of(manifest).values():
            assert len(sides - {manifests.UNUSED}) <= 1
        assert (manifests.UNUSED in set(manifest["split"])) == (kind == "temporal")
        seen.add(tuple(manifest["split"]))
    assert len(seen) == 25


@settings(deadline=None, max_examples=10)
@given(cohorts(), SEEDS)
def test_the_seed_decides_and_the_order_of_the_rows_does_not(table, seed):
    first = splits.split(table, TASKS, seed=seed)
    pd.testing.assert_frame_equal(first, splits.split(table, TASKS, seed=seed))
    shuffled = splits.split(table.sample(frac=1, random_state=1), TASKS, seed=seed)
    assert sides_of(shuffled) == sides_of(first)


@settings(deadline=None, max_examples=20)
@given(large_cohorts(), SEEDS, st.sampled_from([(0.2, 0.1), (0.3, 0.3), (0.1, 0.1)]))
def test_sizes_are_within_a_patient_and_every_x_is_reached(table, seed, asked):
    test, validation = asked
    manifest = splits.split(table, TASKS, seed=seed, test=test, validation=validation)
    largest = table["patient"].value_counts().max()
    for side, share in (("test", test), ("validation", validation)):
        # Where X is the whole share, its positives may bring some films too many.
        slack = largest if share > 0.1 else max(largest, 0.02 * len(table))
        assert abs(films(manifest, side) - share * len(table)) <= slack
    for side in ("test", "validation"):
        assert min(shares(table, manifest, side)) >= 0.1


@settings(deadline=None, max_examples=12)
@given(large_cohorts(), SEEDS)
def test_prevalence_in_test_is_close_to_the_cohorts(table, seed):
    manifest = splits.split(table, TASKS, seed=seed)
    for side, share in (("test", 0.2), ("validation", 0.1)):
        # Half a patient of 8 films off the goal, and as much by the other task.
        got = shares(table, manifest, side)
        for task, value in zip(TASKS, got):
            positives = (table[task] >= 0.5).sum()
            assert abs(value - share) * positives <= 8 + 0.02 * positives


@settings(deadline=None, max_examples=10)
@given(large_cohorts(), SEEDS)
def test_a_minority_above_the_fraction_wins_over_the_size(table, seed):
    manifest = splits.split(
        table, TASKS, seed=seed, test=0.1, validation=0.1, minority=0.3
    )
    for side in ("test", "validation"):
        assert min(shares(table, manifest, side)) >= 0.3


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_scarce_patients_go_to_test_then_train_then_validation(k, seed, caplog):
    table = make_table(np.arange(50), {"rare": np.arange(50) < k})
    with caplog.at_level(logging.WARNING, "medjax"):
        manifest = splits.split(table, ("rare",), seed=seed)
    got = sorted(manifest["split"][:k])
    assert got == sorted(("test", "train", "validation")[:k])
    assert ("validation has 0 positive images of rare" in caplog.text) == (k < 3)
    assert "test has" not in caplog.text


def test_soft_labels_count_from_one_half_on():
    label = np.where(np.arange(200) % 2, 0.5, 0.49)
    hard = splits.split(make_table(np.arange(200), {"t": label >= 0.5}), ("t",), seed=3)
    soft = splits.split(make_table(np.arange(200), {"t": label}), ("t",), seed=3)
    assert soft["split"].tolist() == hard["split"].tolist()
    table = make_table(np.arange(200), {"t": label})
    assert manifests.reached(table, soft, ("t",))["positives"].sum() == 100


def test_no_tasks_is_a_plain_random_split():
    manifest = splits.split(random_table(), (), seed=0)
    assert all(len(s) == 1 for s in sides_of(manifest).values())


def test_by_image_warns_leaks_and_keeps_the_patient(caplog):
    table = random_table(films=8)
    manifest = splits.split(table, TASKS, seed=0, by="image")
    assert "demonstrat" in caplog.text
    assert manifest["patient"].tolist() == table["patient"].tolist()
    assert abs(films(manifest, "test") - 0.2 * len(table)) <= 1
    with pytest.raises(InputError, match="patient: .* on two sides"):
        manifests.audit(manifest)
    manifests.audit(manifest, table, by="image")


def test_by_patient_says_nothing_where_every_x_is_reached(caplog):
    splits.split(random_table(300), TASKS, seed=0)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"test": 0.0}, "test"),
        ({"test": 1.2}, "test"),
        ({"validation": float("nan")}, "validation"),
        ({"test": 0.6, "validation": 0.4}, "test 0.6 . validation 0.4"),
        ({"minority": 0.5}, "minority"),
        ({"minority": -0.1}, "minority"),
        ({"by": "study"}, "split.by"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_argument_is_named(change, field):
    with pytest.raises(InputError, match=f"^{field}") as error:
        splits.split(random_table(), **{"tasks": TASKS, "seed": 0} | change)
    assert "\n" not in str(error.value)


def test_too_few_patients_are_refused():
    with pytest.raises(InputError, match="patient: 2 in all; give 3"):
        splits.split(random_table(patients=2), TASKS, seed=0)


# --------------------------------------------------------------------- folds


@settings(deadline=None, max_examples=12)
@given(cohorts(), SEEDS, st.integers(3, 5))
def test_folds_partition_the_patients(table, seed, folds):
    if table["patient"].nunique() < 2 * folds:
        return
    tested = []
    for i in range(folds):
        manifest = splits.fold(table, TASKS, seed=seed, folds=folds, fold=i)
        assert all(len(s) == 1 for s in sides_of(manifest).values())
        assert set(manifest["split"]) == set(manifests.SPLITS)
        tested += manifest["patient"][manifest["split"] == "test"].unique().tolist()
    assert sorted(tested) == sorted(table["patient"].unique())


@settings(deadline=None, max_examples=5)
@given(large_cohorts(), SEEDS)
def test_folds_are_even_in_films_and_positives(table, seed):
    for i in (0, 4):
        manifest = splits.fold(table, TASKS, seed=seed, folds=5, fold=i)
        assert abs(films(manifest, "test") - len(table) / 5) <= 16
        assert all(0.1 <= s <= 0.3 for s in shares(table, manifest, "test"))
        assert min(shares(table, manifest, "validation")) >= 0.1


def test_folds_spread_scarce_patients():
    table = make_table(np.arange(60), {"rare": np.arange(60) < 5})
    for i in range(5):
        manifest = splits.fold(table, ("rare",), seed=1, folds=5, fold=i)
        assert (manifest["split"][:5] == "test").sum() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"folds": 1}, "folds"),
        ({"fold": 5}, "fold: 5 is not one of 0 to 4"),
        ({"fold": -1}, "fold"),
        ({"validation": 0.8}, "folds 0.2 . validation 0.8"),
        ({"folds": 61}, "patient: 60 in all; give 61"),
    ],
)
def test_a_wrong_fold_is_named(change, field):
    arguments = {"seed": 0, "folds": 5, "fold": 0} | change
    with pytest.raises(InputError, match=f"^{field}"):
        splits.fold(random_table(), TASKS, **arguments)


# ------------------------------------------------------------------ official


def with_official(table, validation=0, test=15):
    """The table with the first patients in test, and the next ones in validation."""
    rank = table["patient"].rank(method="dense").to_numpy()
    side = np.where(rank <= test, "test", "train").astype(object)
    side[(rank > test) & (rank <= test + validation)] = "validation"
    return table.assign(official=side)


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_official_test_is_the_list_and_validation_is_from_the_other(seed):
    table = with_official(random_table(films=8))
    manifest = splits.official(table, TASKS, seed=seed, validation=0.2)
    assert ((manifest["split"] == "test") == (table["official"] == "test")).all()
    assert all(len(s) == 1 for s in sides_of(manifest).values())
    assert abs(films(manifest, "validation") - 0.2 * len(table)) <= 8


def test_wrong_official_lists_are_refused():
    table = with_official(random_table())
    first = table["image"][0]
    table.loc[0, "official"] = ""
    with pytest.raises(
        InputError, match=f"^official: 1 of .* no .* list, e.g. '{first}'"
    ):
        splits.official(table, TASKS, seed=0)
    for validation in (0, 5):
        table = with_official(random_table(), validation)
        patient = table["patient"].iloc[0]
        split_up = np.where(table["id"] % 2, patient, table["patient"])
        with pytest.raises(
            InputError,
            match=f"patient: .* two sides, e.g. {patient}; correct the official lists",
        ):
            splits.official(table.assign(patient=split_up), TASKS, seed=0)


def test_an_official_validation_list_is_taken_as_it_is():
    table = with_official(random_table(), validation=10)
    for seed in (0, 1):
        manifest = splits.official(table, TASKS, seed=seed)
        assert manifest["split"].tolist() == table["official"].tolist()


# ------------------------------------------------------------------ temporal


@settings(deadline=None, max_examples=40)
@given(cohorts(), SEEDS, st.sampled_from([1, 2, 5.5]), st.sampled_from([0.0, 0.3]))
def test_the_past_is_learnt_and_the_future_of_others_tested(table, seed, cut, unknown):
    table = with_follow_up(table, unknown, seed)
    try:
        manifest = splits.temporal(table, TASKS, seed=seed, cut=cut)
    except InputError as error:
        assert str(error).startswith(("cut: ", "follow_up: "))
        return
    sides, number = sides_of(manifest), dict(zip(table["id"], table["follow_up"]))
    home = {p: (s - {manifests.UNUSED}) for p, s in sides.items()}
    assert max(map(len, home.values())) == 1
    for film in manifest.itertuples():
        late, early = number[film.id] >= cut, number[film.id] < cut
        if film.split == manifests.UNUSED:  # Nothing that its patient's side could use.
            tested = home[film.patient] == {"test"}
            assert not (late if tested else early)
        else:
            assert late if film.split == "test" else early


@settings(deadline=None, max_examples=15)
@given(large_cohorts(), SEEDS, st.sampled_from([0.1, 0.3]))
def test_a_temporal_split_has_its_shares_and_every_x(table, seed, minority):
    if table.groupby("patient").size().max() < 4:
        table["patient"] //= 14  # Two patients' films are one's: some late ones.
    table = with_follow_up(table)
    manifest = splits.temporal(table, TASKS, seed=seed, cut=1, minority=minority)
    late, early = table[table["follow_up"] >= 1], table[table["follow_up"] < 1]
    tested = manifest["patient"][manifest["split"] == "test"]
    early = early[~early["patient"].isin(tested)]
    for side, share, whole in (("test", 0.2, late), ("validation", 0.1, early)):
        here = whole[whole["id"].isin(manifest["id"][manifest["split"] == side])]
        assert len(here) == films(manifest, side)
        for task in TASKS:
            assert (here[task] == 1).sum() >= minority * (whole[task] == 1).sum() - 1e-9
        if minority < share:
            assert abs(len(here) - share * len(whole)) <= 8 + 0.02 * len(whole)


def histories(*numbers, unit=1):
    """A table of patients with these follow-up numbers, all without the finding."""
    patient = np.repeat(np.arange(len(numbers)), [len(n) for n in numbers])
    table = make_table(patient * unit, {"t": np.zeros(len(patient))})
    return table.assign(follow_up=np.concatenate(numbers).astype(float))


@pytest.mark.parametrize("seed", range(20))
def test_patients_of_the_past_train_and_those_of_the_future_are_tested(seed, caplog):
    """Two patients have early films, and both are needed for the other sides."""
    table = histories([0], [0, 1], [1, 2], [1], [np.nan])
    manifest = splits.temporal(table, ("t",), seed=seed, cut=1, test=0.9)
    sides = manifest.set_index("id")["split"]
    assert sorted(sides[[0, 1]]) == ["train", "validation"]
    assert set(sides[[3, 4, 5]]) == {"test"}
    assert sides[2] == sides[6] == "unused"
    assert (
        "2 images are unused: 0 early ones of tested patients, 1 late ones of others, "
        "1 without a follow_up" in caplog.text
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_only_past_with_a_finding_trains(seed):
    """Of two patients with a late finding, the one with an early one is not tested."""
    table = histories(*[[0, 1]] * 8, [1])
    table.loc[[0, 1, 16], "t"] = 1
    manifest = splits.temporal(table, ("t",), seed=seed, cut=1, test=0.4)
    assert manifest["split"][16] == "test"
    assert manifest["split"][0] in ("train", "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 0}, "cut: 0 has every follow_up on one side; give one above 0, up"),
        ({"cut": 2}, "cut: 2 has every follow_up on one side; .*, up to 1$"),
        ({"cut": float("nan")}, "cut: nan has every follow_up on one side"),
        ({"test": 1.0}, "test: 1.0 is no share"),
        ({"validation": 0}, "validation: 0 is no share"),
        ({"table": histories(*[[np.nan]] * 4)}, "follow_up: unknown, or the same"),
        ({"table": histories(*[[3]] * 4)}, "follow_up: unknown, or the same"),
        ({"table": histories([0, 1], [0, 1], [1])[:4]}, "patient: 2 in all"),
        ({"table": histories([0, 1], [1], [1])}, "cut: with 1, test leaves one pati"),
        ({"table": histories([0, 1], [0], [np.nan])}, "cut: with 1, test leaves one"),
    ],
)
def test_what_cannot_be_split_by_time_is_named(change, message):
    arguments = {"table": histories(*[[0, 1]] * 4), "seed": 0, "cut": 1} | change
    with pytest.raises(InputError, match=f"^{message}") as error:
        splits.temporal(arguments.pop("table"), (), **arguments)
    assert "\n" not in str(error.value)


# ------------------------------------------------- few patients, every one counts


@pytest.mark.parametrize("fold", [0, 2])
def test_leaving_one_out_tests_that_patient_alone(fold):
    table = random_table(patients=4)  # Several images each.
    manifest = splits.leave_one_out(table, fold)
    assert set(manifest["split"]) == {"train", "test"}
    tested = manifest["patient"][manifest["split"] == "test"]
    assert set(tested) == {np.unique(table["patient"])[fold]}
    assert len(tested) == (table["patient"] == tested.iloc[0]).sum()


@pytest.mark.parametrize(("patients", "fold"), [(4, 4), (4, -1), (1, 0)])
def test_a_patient_who_can_t_be_left_out_is_named(patients, fold):
    with pytest.raises(InputError, match=f"^split.fold={fold}: .* 0 to {patients - 1}"):
        splits.leave_one_out(random_table(patients=patients), fold)


def test_halves_are_both_hemispheres_of_every_image():
    table = random_table(patients=5)
    manifest = splits.halves(table)
    assert tuple(manifest.columns) == manifests.MANIFEST and manifest["id"].is_unique
    names = manifest["image"].str.split(splits.HALF, regex=False, expand=True)
    for half, side in (("left", "train"), ("right", "test")):
        here = names[1] == half
        assert names[0][here].tolist() == table["image"].tolist()
        assert manifest["patient"][here].tolist() == table["patient"].tolist()
        assert set(manifest["split"][here]) == {side}


def test_everyone_trains():
    table = random_table(patients=2)
    manifest = splits.everyone(table)
    assert manifest["id"].tolist() == table["id"].tolist()
    assert set(manifest["split"]) == {"train"}


# ----------------------------------------------------------------------- NIH


@pytest.fixture(scope="module")
def nih():
    if not NIH.exists():
        pytest.skip("nih-metadata is not here")
    names = ["image", "finding", "follow_up", "patient"]
    with gzip.open(NIH, "rt") as file:
        next(file)  # Two of the header's names hold a comma.
        frame = pd.read_csv(file, header=None, usecols=range(4), names=range(11))
    frame.columns = names
    labels = frame["finding"].str.get_dummies("|").drop(columns="No Finding")
    table = make_table(frame["patient"], labels).assign(image=frame["image"])
    return table.assign(follow_up=frame["follow_up"].astype(float))


def findings_of(nih):
    return [name for name in nih if name not in (*manifests.MANIFEST, "follow_up")]


def test_the_whole_of_nih_is_split_by_time_in_time(nih, caplog):
    start = time.perf_counter()
    manifest = splits.temporal(nih, findings_of(nih), seed=0, cut=3)
    assert time.perf_counter() - start < 3
    used = manifest[manifest["split"] != manifests.UNUSED]
    assert used.groupby("patient")["split"].nunique().max() == 1
    late = nih["follow_up"][used.index] >= 3
    assert (late == (used["split"] == "test")).all()
    assert abs(films(manifest, "test") - 0.2 * (nih["follow_up"] >= 3).sum()) <= 2
    assert len(caplog.records) == 1  # The unused are counted; every X is reached.


def test_the_whole_of_nih_is_split_in_time_by_patient_with_every_x(nih, caplog):
    tasks = findings_of(nih)
    assert len(nih) == 112_120 and len(tasks) == 14
    start = time.perf_counter()
    manifest = splits.split(nih, tasks, seed=0)
    assert time.perf_counter() - start < 3
    assert manifest["patient"].nunique() == 30_805
    assert manifest.groupby("patient")["split"].nunique().max() == 1
    assert caplog.text == ""
    for side, share in (("test", 0.2), ("validation", 0.1)):
        assert abs(films(manifest, side) - share * len(nih)) <= 2
        got = np.array(shares(nih, manifest, side, tasks))
        assert got.min() >= 0.1
        here = (manifest["split"] == side).to_numpy()
        ratio = nih.loc[here, tasks].mean() / nih[tasks].mean()
        np.testing.assert_allclose(ratio, 1, atol=0.03)


@pytest.mark.slow
def test_a_million_films_are_split_in_time():
    rng = np.random.default_rng(0)
    n = 1_000_000
    labels = {f"t{i}": rng.random(n) < 0.02 * (i + 1) for i in range(3)}
    table = make_table(rng.integers(0, n // 4, n), labels)
    start = time.perf_counter()
    splits.split(table, list(labels), seed=0)
    assert time.perf_counter() - start < 30
