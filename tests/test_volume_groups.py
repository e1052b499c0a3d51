"""Groups of volumes against sums by hand, and against intervals of each group alone."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medjax.data.sources import scan_files
from medjax.errors import InputError
from medjax.evaluation import bootstrap, means
from medjax.tasks import segmentation


def rows_of(volumes=36, patients=24):
    """Women, the even patients, are segmented better; one volume in six is empty."""
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"v{n}",
            "patient": n % patients,
            "region": region,
            "dice": float(rng.uniform(0.6, 0.8) + 0.1 * (n % 2 == 0)),
            "true_ml": 0.0 if n % 6 == 5 else float(n + 1),
        }
        for n in range(volumes)
        for region in ("whole", "core")
    ]


def test_the_numbers_are_those_of_each_group_s_patients():
    rows = rows_of()
    names = [f"v{n}" for n in range(36)]
    sex = pd.Series(["F" if n % 2 == 0 else "M" for n in range(36)], names)
    found = means.by_group(rows, pd.DataFrame({"sex": sex}))["sex"]
    dice = np.array([r["dice"] for r in rows]).reshape(36, 2)
    dice = np.column_stack([dice, dice.mean(axis=1)])  # whole, core, mean
    moves = {}
    for group, first in (("F", 0), ("M", 1)):
        inside = np.arange(36) % 2 == first
        one = found["groups"][group]
        assert (one["volumes"], one["patients"]) == (18, 12)
        mean = dice[inside].mean(axis=0)
        each = np.where(inside[:, None], dice - mean, 0) / 18
        for k, region in enumerate(("whole", "core", "mean")):
            move = np.bincount(np.arange(36) % 24, each[:, k])
            moves[group] = mean[k], move
            t = stats.t.ppf(0.975, 11) * math.sqrt(12 / 11)
            spread = mean[k] * (1 - mean[k])  # Wilson's, of n volumes:
            n = spread / (move**2).sum() / t**2
            reach = np.sqrt(spread / n + 1 / (4 * n**2)) / (1 + 1 / n)
            middle = (mean[k] + 0.5 / n) / (1 + 1 / n)
            got = [one["dice"][region][name] for name in ("estimate", "low", "high")]
            expected = [mean[k], middle - reach, middle + reach]
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    gap = found["gap"]
    apart = moves["F"][0] - moves["M"][0]
    error = np.sqrt(((moves["F"][1] - moves["M"][1]) ** 2).sum())
    reach = stats.t.ppf(0.975, 11) * error * math.sqrt(12 / 11)
    assert gap["between"] == ["F", "M"]
    got = [gap[name] for name in ("estimate", "low", "high")]
    np.testing.assert_allclose(got, [apart, apart - reach, apart + reach], rtol=1e-6)


def test_small_groups_are_neither_compared_nor_given_intervals():
    rows = rows_of(18, 18)
    names = [f"v{n}" for n in range(18)]
    sex = pd.Series(["F" if n < 9 else "M" for n in range(18)], names)
    found = means.by_group(rows, pd.DataFrame({"sex": sex}))["sex"]
    assert found["gap"]["between"] is found["gap"]["estimate"] is None
    group = found["groups"]["F"]["dice"]["mean"]
    assert (group["low"], group["why"]) == (None, bootstrap.NO_INTERVAL)


def test_thirds_are_of_the_volumes_with_the_region():
    sizes = means.by_size(rows_of())
    counts = sizes.str.split(",").str[0].value_counts()
    assert counts.to_dict() == {"small": 10, "medium": 10, "large": 10, "empty": 6}
    assert sizes["v5"] == "empty" and sizes["v0"].startswith("small, below")
    assert sizes["v34"].startswith("large")


def test_sex_and_age_are_read_from_bids(tmp_path, caplog):
    for folder in ("", str(tmp_path)):
        nothing = scan_files.participants(folder, [1, 2])
        assert nothing["sex"].tolist() == ["", ""] and nothing["age"].isna().all()
    file = tmp_path / "participants.tsv"
    file.write_text("participant_id\tsex\tage\nsub-01\tfemale\t61\nsub-02\tn/a\tn/a\n")
    found = scan_files.participants(str(tmp_path), ["sub-02", "sub-01", "01"])
    assert found["sex"].tolist() == ["", "F", "F"] and not caplog.records
    np.testing.assert_array_equal(found["age"], [np.nan, 61, 61])
    found = scan_files.participants(str(tmp_path), ["sub-02", "P1", "P1"])
    assert found["sex"].tolist() == ["", "", ""] and found["age"].isna().all()
    assert "no row of 1 of the 2 patients, such as 'P1'; it has rows of '01', '02'" in (
        caplog.text
    )
    file.write_text("participant_id\tsex\nsub-01\t2\n")
    assert scan_files.participants(str(tmp_path), ["01"])["sex"].tolist() == [""]
    assert "the sex of 1 rows counts as unknown: '2', say" in caplog.text
    file.write_text("participant_id\tage\nsub-01\t89+\nsub-02\t n/a\n")
    assert scan_files.participants(str(tmp_path), ["01", "02"])["age"].isna().all()
    assert (
        "the age of 1 patients is unknown: '89+', say, is no age from 0" in caplog.text
    )
    file.write_text("participant_id\tage\nsub-01\t300\nsub-02\t-3\n")
    assert scan_files.participants(str(tmp_path), ["01", "02"])["age"].isna().all()
    assert (
        "the age of 2 patients is unknown: '300', say, is no age from 0" in caplog.text
    )
    for spelt in ("Gender\tAge", "SEX\tage_years", "patient_sex\tAge (y)"):
        file.write_text(f"participant_id\t{spelt}\tage_months\nsub-01\tm\t6\t75\n")
        found = scan_files.participants(str(tmp_path), ["01"])
        assert found.to_numpy().tolist() == [["M", 6]]
    file.write_text("participant_id\tgender\tsex\nsub-01\tm\tf\n")
    assert scan_files.participants(str(tmp_path), ["01"])["sex"].tolist() == ["F"]
    file.write_text("participant_id\tAge\tage\nsub-01\t30\t31\n")
    with pytest.raises(InputError, match="has two columns 'age'"):
        scan_files.participants(str(tmp_path), ["01"])
    file.write_text("participant_id\tsex\tage\nsub-01\tF\t61\nsub-02\t44\n")
    with pytest.raises(InputError, match="ends in line 3 has 2 fields, the header 3"):
        scan_files.participants(str(tmp_path), ["01"])
    header = "participant_id\tsession\tsex\tage\n"
    file.write_text(f"{header}sub-01\t1\tF\t61\nsub-01\t2\tF\t61\n")
    assert scan_files.participants(str(tmp_path), ["01"])["age"].tolist() == [61]
    file.write_text(f"{header}sub-01\t1\tF\t61\nsub-01\t2\tF\t64\n")
    with pytest.raises(InputError, match="rows of '01' that differ in sex or age"):
        scan_files.participants(str(tmp_path), ["01"])
    file.write_text("id\tsex\n1\tF\n")
    with pytest.raises(InputError, match="has no column participant_id"):
        scan_files.participants(str(tmp_path), ["01"])


def test_groups_are_of_what_the_volumes_differ_in():
    rows = rows_of(12, 12)
    table = pd.DataFrame({"image": [f"v{n}" for n in range(12)], "has_T1": 1})
    table = table.assign(has_T2=[0.0] + [1.0] * 11, sex=["F", "M", ""] * 4, age=50.0)
    found = segmentation.groups(table, rows)
    assert list(found) == ["sex", "size", "sequences"]  # All are of one age.
    assert found["sex"].isna().sum() == 4
    assert (found["sequences"] == "some missing").sum() == 1
    one = segmentation.groups(table[1:2], rows[2:4])  # Alone, it differs in nothing.
    assert means.by_group(rows[2:4], one) == {}
