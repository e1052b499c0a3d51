"""Splits the films of children so that another series of normal films is tested.

python tests/other_series.py ../shared/data/pneumonia/films.csv n2 > runs/n2.csv
"""

import sys

import numpy as np
import pandas as pd


def split(films: pd.DataFrame, series: str) -> pd.DataFrame:
    """The films with a column `side`: train, validation, test.

    The normal films are of two series, by their files' names: IM-..., here n1, and
    NORMAL2-IM-..., n2, of other patients. The named one is tested, with a fifth of the
    patients who have pneumonia; a tenth of all patients validate, unless they test.
    """
    normal = np.where(films["image"].str.contains("NORMAL2"), "n2", "n1")
    patients = films["patient"].unique()
    drawn = pd.Series(np.random.default_rng(0).random(len(patients)), patients)
    drawn = films["patient"].map(drawn)
    tested = np.where(films["Pneumonia"] == 1, drawn < 0.2, normal == series)
    others = np.where(drawn > 0.9, "validation", "train")
    return films.assign(side=np.where(tested, "test", others))


if __name__ == "__main__":
    path, series = sys.argv[1:]
    split(pd.read_csv(path), series).to_csv(sys.stdout, index=False)
