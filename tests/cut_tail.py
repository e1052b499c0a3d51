"""Makes a long tail of the films of children, for configs/long_tail.py:pneumonia.

python tests/cut_tail.py ../shared/data/pneumonia/films.csv 50 > runs/tail50.csv
"""

import sys

import numpy as np
import pandas as pd

TAIL = ("bacteria", "normal", "virus")  # From the head on.
SHARES = {"train": 0.5, "validation": 0.15, "test": 0.35}  # Of the patients.


def cut(films: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """The films with a column `split`, but those that the tail leaves out.

    Patients are split at random by SHARES. In training and validation, class k of TAIL
    keeps its first patients, as many as have at most ratio^(-k / 2) of the films that
    class 0 has there.
    """
    patients = np.random.default_rng(0).permutation(films["patient"].unique())
    ends = np.cumsum([*SHARES.values()])[:-1] * len(patients)
    sides = np.split(patients, ends.astype(int))
    split = {name: side for side, names in zip(SHARES, sides) for name in names}
    films = films.assign(split=films["patient"].map(split))
    order = pd.Series(np.arange(len(patients)), patients)
    films = films.iloc[np.argsort(films["patient"].map(order), kind="stable")]
    keep = films["split"] == "test"
    for side in ("train", "validation"):
        most = ((films["split"] == side) & (films["cause"] == TAIL[0])).sum()
        for k, cause in enumerate(TAIL):
            rows = films[(films["split"] == side) & (films["cause"] == cause)]
            last = rows.groupby("patient", sort=False).size().cumsum()
            kept = last.index[last <= most * ratio ** (-k / 2)]
            keep |= films["patient"].isin(kept)
    return films[keep].sort_index()


if __name__ == "__main__":
    path, ratio = sys.argv[1:]
    cut(pd.read_csv(path, dtype=str), float(ratio)).to_csv(sys.stdout, index=False)
