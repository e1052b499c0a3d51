"""The manifest: the audit's refusals, duplicates, what each side got, the file."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.cohort.manifests import (
    SPLITS,
    UNUSED,
    account,
    audit,
    reached,
    read,
    write,
)
from medjax.errors import InputError

TASKS = ("common", "rare")
SEEDS = st.integers(0, 2**32 - 1)


def random_table(patients=60, films=4, seed=0):
    """Films of `patients`, 1 to `films` each, in random order, some unknown."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(patients) * 7
    patient = rng.permutation(np.repeat(numbers, rng.integers(1, films + 1, patients)))
    n = len(patient)
    images = [f"images/{i:05d}.png" for i in range(n)]
    table = pd.DataFrame({"id": np.arange(n), "image": images, "patient": patient})
    for task, share in (("common", 0.5), ("rare", 0.1)):
        label = (rng.random(n) < share).astype(float)
        table[task] = np.where(rng.random(n) < 0.1, np.nan, label)
    return table


def sampled(table, seed=0, unused=False):
    """A manifest that is right: random patients on each side, some films unused."""
    rng = np.random.default_rng(seed)
    names = np.array(["test", "validation", *["train"] * 3])
    patient, unit = np.unique(table["patient"], return_inverse=True)
    side = rng.permutation(np.resize(names, len(patient)))[unit].astype(object)
    if unused:
        side[rng.random(len(side)) < 0.3] = "unused"
    return table[["id", "image", "patient"]].assign(split=side)


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
    return "^id: 1 images of the table are missing .*, e.g. 4321;"


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


FAULTS = [move_one, unknown_id, left_out, repeated, misnamed, emptied]
FAULTS += [other_patient, other_image]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_audit_refuses_each_fault_and_names_it(fault, seed):
    table = random_table(seed=seed)
    manifest = sampled(table, seed).sample(frac=1, random_state=seed)
    audit(manifest, table)  # Any order of the rows will do.
    message = fault(manifest, table)
    with pytest.raises(InputError, match=message) as error:
        audit(manifest, table)
    assert "\n" not in str(error.value)


def test_the_audit_counts_every_patient_on_two_sides():
    table = random_table(films=8)
    manifest = sampled(table)
    rng = np.random.default_rng(0)
    manifest["split"] = rng.choice([*SPLITS, UNUSED], len(table))
    sides = {}
    for patient, side in zip(manifest["patient"], manifest["split"]):
        sides.setdefault(patient, set()).update({side} - {UNUSED})
    count = sum(len(s) > 1 for s in sides.values())
    assert count > 5
    with pytest.raises(InputError, match=f"^patient: {count} are on two sides"):
        audit(manifest)
    audit(manifest, table, by="image")


def test_unused_is_no_side_and_no_task_misses_a_positive_there(caplog):
    table = random_table(films=8)
    manifest = sampled(table, unused=True)
    assert manifest.groupby("patient")["split"].nunique().max() == 2
    audit(manifest, table, TASKS)
    unused = (manifest["split"] == UNUSED).to_numpy()
    table.loc[unused, "rare"] = 0
    audit(manifest, table, TASKS)
    assert caplog.text == ""
    assert move_one(manifest, table)
    with pytest.raises(InputError, match="are on two sides"):
        audit(manifest, table, TASKS)


def test_the_audit_names_a_task_without_a_positive_on_a_side(caplog):
    table = random_table(films=1).assign(t=0.0)
    table.loc[3, "t"] = 1
    manifest = sampled(table)
    audit(manifest, table)
    assert caplog.text == ""
    audit(manifest, table, ("t",))
    assert caplog.text.count("t has no positives in") == 2
    with pytest.raises(InputError, match="split.by='film' is unknown"):
        audit(manifest, by="film")


# ---------------------------------------------------------------- duplicates


def four_films(*sides):
    """Films a, b, c and d of four patients on these sides, then one on each side."""
    sides = [*sides, *SPLITS]
    n = len(sides)
    table = pd.DataFrame({"id": np.arange(n) * 10, "image": list("abcdefg")})
    return table.assign(patient=np.arange(n), split=sides)


def pairs(*ids):
    return pd.DataFrame(ids, columns=["id", "other"]).assign(correlation=1.0)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_picture_on_two_sides_is_refused_and_its_films_are_named(order):
    manifest = four_films("train", "train", "validation", "test")[order]
    audit(manifest, duplicates=pairs((0, 10)))  # Both train.
    found = pairs((0, 10), (10, 20), (0, 30))
    message = (
        r"^duplicates: 2 pairs .*, e.g. b \(train\) = c \(validation\), "
        r"a \(train\) = d \(test\); give both the same patient, remove one, or "
        "set split.duplicates='warn'$"
    )
    with pytest.raises(InputError, match=message):
        audit(manifest, duplicates=found)


def test_a_picture_on_two_sides_is_only_warned_of_if_so_wished(caplog):
    manifest = four_films("train", "test", "train", "train")
    audit(manifest, duplicates=pairs((20, 30)), on_duplicates="warn")
    assert caplog.text == ""
    audit(manifest, duplicates=pairs((0, 10)), on_duplicates="warn")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 pairs" in caplog.text and "a (train) = b (test)" in caplog.text


def test_an_unused_picture_leaks_nothing():
    manifest = four_films("train", UNUSED, "test", UNUSED)
    audit(manifest, duplicates=pairs((0, 10), (10, 20), (10, 30)))


def test_of_many_pictures_on_two_sides_the_number_is_said_and_some_are_shown():
    manifest = four_films("train", "train", "test", "test")
    found = pairs((0, 20), (0, 30), (10, 20), (10, 30))
    with pytest.raises(InputError, match="duplicates: 4 pairs") as error:
        audit(manifest, duplicates=found)
    assert str(error.value).count(" = ") == 3


def test_an_unknown_way_with_duplicates_is_named():
    manifest = four_films("train", "train", "test", "test")
    message = "^split.duplicates='no' is unknown: use 'refuse'"
    with pytest.raises(InputError, match=message):
        audit(manifest, on_duplicates="no")


# ------------------------------------------------ reached, account, read, write


@settings(deadline=None, max_examples=10)
@given(st.integers(5, 40), st.sampled_from([1, 3, 20]), SEEDS, st.booleans())
def test_reached_counts_as_by_hand(patients, films, seed, unused):
    table = random_table(patients, films, seed)
    manifest = sampled(table, seed, unused).sample(frac=1, random_state=0)
    got = reached(table, manifest, TASKS)
    names = (*SPLITS, UNUSED) if UNUSED in set(manifest["split"]) else SPLITS
    assert list(zip(got["task"], got["split"])) == [
        (t, s) for t in TASKS for s in names
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


def test_sides_are_counted_and_leaks_between_them():
    rng = np.random.default_rng(0)
    label = rng.choice([0.0, 1.0, np.nan], 40)
    side = np.array(["train", "validation", "test", "unused"])[np.arange(40) // 4 % 4]
    table = pd.DataFrame({"id": np.arange(40), "image": "a", "mass": label})
    table["patient"] = np.arange(40) // 2
    manifest = table[["id", "image", "patient"]].assign(split=side)
    manifest.loc[0, "split"] = "test"  # Patient 0 is on two sides.
    manifest.loc[12, "split"] = "train"  # Patient 6 is on one, and unused.
    pairs = pd.DataFrame({"id": [1, 1, 1, 0], "other": [2, 4, 14, 8]})
    found = account(table, manifest, ("mass",), pairs)
    for name, one in found["sides"].items():
        here = manifest["split"] == name
        assert one["films"] == here.sum()
        assert one["patients"] == manifest["patient"][here].nunique()
        counts = one["tasks"]["mass"]
        assert counts["positives"] == (label[here] == 1).sum()
        assert counts["negatives"] == (label[here] == 0).sum()
        assert counts["unknown"] == np.isnan(label[here]).sum()
    assert (found["shared"], found["pairs"], found["leaks"]) == (1, 4, 1)


def test_without_duplicates_nothing_leaks():
    table = pd.DataFrame({"id": [0, 1, 2], "image": "a", "patient": [0, 1, 2]})
    manifest = table.assign(split=["train", "validation", "test"])
    pairs = pd.DataFrame({"id": [], "other": []})
    found = account(table.assign(x=1.0), manifest, ("x",), pairs)
    assert (found["shared"], found["pairs"], found["leaks"]) == (0, 0, 0)


def test_reached_refuses_an_id_that_the_table_does_not_hold():
    table = random_table()
    manifest = sampled(table, unused=True)
    with pytest.raises(InputError, match="not in the table, e.g. 0;"):
        reached(table[1:], manifest, TASKS)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    table = random_table()
    table["image"] = [f"{i:04d}" for i in table["id"]]  # Digits, to stay text.
    table.loc[0, "image"] = "NA"
    table.loc[1, "image"] = 'a, "b".png'
    manifest = sampled(table, unused=True)
    write(manifest, tmp_path / "splits.csv")
    again = read(tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(again, manifest)
    audit(again, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read .*No such file"),
        ("", "can't be read .*No columns"),
        ("id,image,patient\n0,a,1\n", "no column 'split'"),
        ("id,image,patient,split\nx,a,1,test\n", "id: 1 are no integers, e.g. 'x'"),
        ("id,image,patient,split\n0,a,,test\n", "patient: 1 are empty, e.g. 'a'"),
        ("id,image,patient,split\n0,a,1,test\n0,a,1,test,9,9\n", "can't be read"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, text, message):
    path = tmp_path / "splits.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"splits.csv: {message}") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_only_the_needed_sides_must_not_be_empty():
    table = random_table()
    manifest = sampled(table)
    manifest["split"] = manifest["split"].replace("validation", "train")
    audit(manifest, table, needed=("train", "test"))
    with pytest.raises(InputError, match="validation is empty"):
        audit(manifest, table)
