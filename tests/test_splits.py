"""Splits: nobody on two sides, every film once, the X, the audit's refusals."""

import gzip
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.cohort import splits
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
    assert set(manifest["split"]) == set(splits.SPLITS)
    assert tuple(manifest.columns) == splits.COLUMNS
    for name in ("id", "image", "patient"):
        assert manifest[name].tolist() == table[name].tolist()


def test_many_seeds_keep_patients_whole_and_differ():
    table, seen = random_table(), set()
    for seed in range(40):
        manifest = splits.split(table, TASKS, seed=seed)
        assert all(len(s) == 1 for s in sides_of(manifest).values())
        seen.add(tuple(manifest["split"]))
    assert len(seen) == 40


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
    assert ("validation has 0 positive films of rare" in caplog.text) == (k < 3)
    assert "test has" not in caplog.text


def test_soft_labels_count_from_one_half_on():
    label = np.where(np.arange(200) % 2, 0.5, 0.49)
    hard = splits.split(make_table(np.arange(200), {"t": label >= 0.5}), ("t",), seed=3)
    soft = splits.split(make_table(np.arange(200), {"t": label}), ("t",), seed=3)
    assert soft["split"].tolist() == hard["split"].tolist()
    table = make_table(np.arange(200), {"t": label})
    assert splits.reached(table, soft, ("t",))["positives"].sum() == 100


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
        splits.audit(manifest)
    splits.audit(manifest, table, by="image")


def test_by_patient_says_nothing_where_every_x_is_reached(caplog):
    splits.split(random_table(300), TASKS, seed=0)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"test": 0.0}, "test"),
        ({"test": 1.2}, "test"),
        ({"test": "0.2"}, "test"),
        ({"validation": float("nan")}, "validation"),
        ({"test": 0.6, "validation": 0.4}, "test 0.6 . validation 0.4"),
        ({"minority": 0.5}, "minority"),
        ({"minority": -0.1}, "minority"),
        ({"by": "study"}, "by"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"tasks": ("absent",)}, "table: no column 'absent'"),
        ({"tasks": ("image",)}, "image: not numbers"),
    ],
)
def test_a_wrong_argument_is_named(change, field):
    with pytest.raises(InputError, match=f"^{field}") as error:
        splits.split(random_table(), **{"tasks": TASKS, "seed": 0} | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["id", "image", "patient"])
def test_a_missing_column_is_named(name):
    with pytest.raises(InputError, match=f"table: no column '{name}'"):
        splits.split(random_table().drop(columns=name), TASKS, seed=0)


def test_a_wrong_table_is_refused():
    with pytest.raises(InputError, match="patient: 2 in all; give 3"):
        splits.split(random_table(patients=2), TASKS, seed=0)
    table = random_table()
    with pytest.raises(InputError, match="patient: not integers"):
        splits.split(table.astype({"patient": float}), TASKS, seed=0)
    with pytest.raises(InputError, match="id: 1 rows of the table repeat"):
        splits.audit(splits.split(table, (), seed=0), table.replace({"id": {1: 0}}))


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
        assert set(manifest["split"]) == set(splits.SPLITS)
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
        ({"folds": 2.0}, "folds"),
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


def official_lists(table, share=0.25):
    """Lists by patient, as NIH's: bare file names."""
    test = set(sorted(table["patient"].unique())[: int(60 * share)])
    name = table["image"].str.removeprefix("images/")
    here = table["patient"].isin(test)
    return name[~here].tolist(), name[here].tolist()


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_official_test_is_the_list_and_validation_is_from_the_other(seed):
    table = random_table(films=8)
    train_val, test = official_lists(table)
    manifest = splits.official(
        table, TASKS, train_val=train_val, test=test, seed=seed, validation=0.2
    )
    got = table["image"][manifest["split"] == "test"].str[len("images/") :]
    assert got.tolist() == test
    assert all(len(s) == 1 for s in sides_of(manifest).values())
    assert abs(films(manifest, "validation") - 0.2 * len(table)) <= 8


def test_the_lists_may_be_files_hold_more_or_leave_test_out(tmp_path, caplog):
    table = random_table()
    train_val, test = official_lists(table)
    (tmp_path / "a.txt").write_text("\n".join([*train_val, "x.png", "y.png"]) + "\n")
    (tmp_path / "b.txt").write_text("\r\n".join(test) + "\r\n\r\n")
    plain = splits.official(table, TASKS, train_val=train_val, test=test, seed=0)
    assert "not in the table" not in caplog.text
    read = splits.official(
        table, TASKS, train_val=tmp_path / "a.txt", test=str(tmp_path / "b.txt"), seed=0
    )
    assert f"train_val: 2 of {len(train_val) + 2} not in the table" in caplog.text
    pd.testing.assert_frame_equal(read, plain)
    rest = splits.official(table, TASKS, train_val=train_val, seed=0)
    pd.testing.assert_frame_equal(rest, plain)


def test_wrong_official_lists_are_refused(tmp_path):
    table = random_table()
    train_val, test = official_lists(table)

    def refused(match, table=table, **lists):
        lists = {"train_val": train_val, "test": test} | lists
        with pytest.raises(InputError, match=match):
            splits.official(table, TASKS, seed=0, **lists)

    refused(f"test: 2 of .* no list, e.g. 'images/{test[0]}'", test=test[2:])
    refused(f"both lists, e.g. 'images/{test[0]}'", train_val=[*train_val, test[0]])
    refused("train_val: none of its 1 names", train_val=["x.png"])
    refused("test: none of its 0 names", test=[])
    refused("test: no list to read", test=tmp_path / "absent.txt")
    first = table["patient"].iloc[0]
    split_up = table.assign(patient=np.where(table["id"] % 2, first, table["patient"]))
    refused(f"patient: .* two sides, e.g. {first};", table=split_up)


def test_whole_names_tell_apart_films_of_one_file_name(caplog):
    """CheXpert's file names repeat from folder to folder."""
    table = random_table()
    patient, count = table["patient"], table.groupby("patient").cumcount()
    table["image"] = [
        f"train/patient{p:05d}/study{n}/view1_frontal.jpg"
        for p, n in zip(patient, count + 1)
    ]
    here = patient.isin(sorted(patient.unique())[:15])
    absent = "train/patient99999/study1/view1_frontal.jpg"
    lists = {
        "train_val": [*table["image"][~here], absent],
        "test": table["image"][here],
    }
    manifest = splits.official(table, TASKS, seed=0, **lists)
    assert ((manifest["split"] == "test") == here).all()
    assert f"train_val: 1 of {np.sum(~here) + 1} not in the table" in caplog.text
    lists["test"] = ["view1_frontal.jpg"]
    with pytest.raises(InputError, match="test: .* share .*, e.g. 'view1_frontal.jpg'"):
        splits.official(table, TASKS, seed=0, **lists)


def test_a_file_name_alone_is_matched_whichever_side_has_the_folder():
    table = random_table()
    train_val, test = official_lists(table)
    plain = splits.official(table, TASKS, train_val=train_val, test=test, seed=0)
    lists = {"train_val": train_val, "test": [f"images_012/{x}" for x in test]}
    bare = table.assign(image=table["image"].str.removeprefix("images/"))
    assert splits.official(bare, TASKS, seed=0, **lists)["split"].equals(plain["split"])
    table.loc[0, "image"] = f"other/{table['image'][1].split('/')[1]}"
    with pytest.raises(InputError, match="share their name"):
        splits.official(table, TASKS, train_val=train_val, test=test, seed=0)
    with pytest.raises(InputError, match="test: none of its"):  # Another folder's.
        splits.official(table, TASKS, seed=0, **lists)


# --------------------------------------------------------------------- audit


def move_one(manifest, table):
    patient = manifest["patient"].value_counts().index[0]
    row = manifest.index[manifest["patient"] == patient][0]
    now = manifest.loc[row, "split"]
    manifest.loc[row, "split"] = "train" if now == "test" else "test"
    return f"^patient: 1 are on two sides, e.g. {patient};"


def unknown_id(manifest, table):
    manifest.loc[3, "id"] = 98765
    return "^id: 1 ids of the manifest are not in the table, e.g. 98765;"


def left_out(manifest, table):
    table.loc[len(table)] = table.iloc[0]
    table.loc[len(table) - 1, "id"] = 4321
    return "^id: 1 films of the table are missing .*, e.g. 4321;"


def repeated(manifest, table):
    manifest.loc[5, "id"] = manifest.loc[6, "id"]
    return f"^id: 1 rows repeat an id, e.g. {manifest.loc[6, 'id']};"


def misnamed(manifest, table):
    manifest.loc[7, "split"] = "valid"
    return "^split: 1 rows name a split not in .*, e.g. 'valid';"


def emptied(manifest, table):
    manifest["split"] = manifest["split"].replace("validation", "train")
    return "^split: validation is empty"


def other_patient(manifest, table):
    manifest.loc[8, "patient"] = 12345
    return f"^patient: 1 ids have another patient .*, e.g. {manifest.loc[8, 'id']};"


def other_image(manifest, table):
    manifest.loc[9, "image"] = "images/else.png"
    return f"^image: 1 ids have another image .*, e.g. {manifest.loc[9, 'id']};"


def no_column(manifest, table):
    del manifest["patient"]
    return "^manifest: no column 'patient'"


FAULTS = [move_one, unknown_id, left_out, repeated, misnamed, emptied]
FAULTS += [other_patient, other_image, no_column]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_audit_refuses_each_fault_and_names_it(fault, seed):
    table = random_table(seed=seed)
    manifest = splits.split(table, TASKS, seed=seed).sample(frac=1, random_state=seed)
    splits.audit(manifest, table)  # Any order of the rows will do.
    message = fault(manifest, table)
    with pytest.raises(InputError, match=message) as error:
        splits.audit(manifest, table)
    assert "\n" not in str(error.value)


def test_the_audit_counts_every_patient_on_two_sides():
    table = random_table(films=8)
    manifest = splits.split(table, TASKS, seed=0, by="image")
    count = sum(len(s) > 1 for s in sides_of(manifest).values())
    assert count > 5
    with pytest.raises(InputError, match=f"^patient: {count} are on two sides"):
        splits.audit(manifest)


def test_the_audit_names_a_task_without_a_positive_on_a_side(caplog):
    table = make_table(np.arange(30), {"t": np.arange(30) < 1})
    manifest = splits.split(table, (), seed=0)
    splits.audit(manifest, table)
    assert caplog.text == ""
    splits.audit(manifest, table, ("t",))
    assert caplog.text.count("t has no positives in") == 2
    with pytest.raises(InputError, match="by: 'film' is unknown"):
        splits.audit(manifest, by="film")


# --------------------------------------------------------- reached, read, write


@settings(deadline=None, max_examples=10)
@given(cohorts(), SEEDS)
def test_reached_counts_as_by_hand(table, seed):
    manifest = splits.split(table, TASKS, seed=seed).sample(frac=1, random_state=0)
    got = splits.reached(table, manifest, TASKS)
    assert list(zip(got["task"], got["split"])) == [
        (t, s) for t in TASKS for s in splits.SPLITS
    ]
    side = dict(zip(manifest["id"], manifest["split"]))
    for row in got.itertuples():
        films = [r for r in table.itertuples() if side[r.id] == row.split]
        label = [getattr(r, row.task) for r in films]
        positives = sum(v == 1 for v in label)
        negatives = sum(v == 0 for v in label)
        assert row.films == len(films)
        assert row.patients == len({r.patient for r in films})
        assert (row.positives, row.negatives) == (positives, negatives)
        assert row.unknown == len(films) - positives - negatives
        known, total = positives + negatives, (table[row.task] == 1).sum()
        expected = [positives / n if n else np.nan for n in (known, total)]
        np.testing.assert_array_equal([row.prevalence, row.share], expected)


def test_reached_refuses_an_id_that_the_table_does_not_hold():
    table = random_table()
    manifest = splits.split(table, TASKS, seed=0)
    with pytest.raises(InputError, match="not in the table, e.g. 0;"):
        splits.reached(table[1:], manifest, TASKS)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    table = random_table()
    table["image"] = [f"{i:04d}" for i in table["id"]]  # Digits, to stay text.
    table.loc[0, "image"] = "NA"
    table.loc[1, "image"] = 'a, "b".png'
    manifest = splits.split(table, TASKS, seed=0)
    splits.write(manifest, tmp_path / "splits.csv")
    again = splits.read(tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(again, manifest)
    splits.audit(again, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a CSV .*No such file"),
        ("", "not a CSV .*No columns"),
        ("id,image,patient\n0,a,1\n", "no column 'split'"),
        ("id,image,patient,split\nx,a,1,test\n", "id: 1 are no integers, e.g. 'x'"),
        ("id,image,patient,split\n0,a,,test\n", "patient: 1 are no integers, e.g. ''"),
        ("id,image,patient,split\n0,a,1,test\n0,a,1,test,9,9\n", "not a CSV"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, text, message):
    path = tmp_path / "splits.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"splits.csv: {message}") as error:
        splits.read(path)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------- NIH


@pytest.fixture(scope="module")
def nih():
    if not NIH.exists():
        pytest.skip("nih-metadata is not here")
    names = ["image", "finding", "patient"]
    with gzip.open(NIH, "rt") as file:
        next(file)  # Two of the header's names hold a comma.
        frame = pd.read_csv(file, header=None, usecols=[0, 1, 3], names=range(11))
    frame.columns = names
    labels = frame["finding"].str.get_dummies("|").drop(columns="No Finding")
    return make_table(frame["patient"], labels).assign(image=frame["image"])


def test_the_whole_of_nih_is_split_in_time_by_patient_with_every_x(nih, caplog):
    tasks = [name for name in nih.columns if name not in splits.COLUMNS]
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
