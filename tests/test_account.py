import numpy as np
import pandas as pd

from medjax.cohort import describe


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
    found = describe.account(table, manifest, ("mass",), pairs)
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
    found = describe.account(table.assign(x=1.0), manifest, ("x",), pairs)
    assert (found["shared"], found["pairs"], found["leaks"]) == (0, 0, 0)
