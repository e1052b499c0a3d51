"""Which treatment of rare findings helps? Seven of them, five seeds each.

    python launch.py sweep --config=configs/loss_weighting.py --workdir=runs/weighting
    python launch.py sweep --config=configs/loss_weighting.py:nih_sample --workdir=runs/nih

On the phantom all seeds share one split, so that they differ in the training alone. A
tenth of the 700 real films would be too few to test on: there each seed tests one of
five folds, and all films are tested once. `--executor=population` trains the arms that
differ only in numbers as one program.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import nih_sample, quickstart

SEEDS = 5
TREATMENTS = (
    {"imbalance": "none"},
    {"imbalance": "ratio"},
    {"imbalance": "balanced"},
    {"imbalance": "effective"},
    {"imbalance": "none", "loss": {"name": "focal", "gamma": 2.0}},
    {"imbalance": "over_sample"},
    {"imbalance": "under_sample"},
)


def get_config(data: str = "phantom") -> ConfigDict:
    if data == "nih_sample":
        c = nih_sample.get_config("small")
        c.split.folds = SEEDS
        c.split.seed = 0
        c.evaluation.gallery = 0
        return c
    if data != "phantom":
        raise ValueError(f"{data!r}: give phantom or nih_sample after the colon")
    c = quickstart.get_config()
    c.explore = False
    c.data.patients = 1200
    c.data.side = 48
    c.data.prevalence = (0.06, 0.12, 0.20, 0.02, 0.08, 0.04)
    c.split.test = 0.5
    c.split.seed = 0
    c.train.steps = 360
    c.train.batch = 32
    c.train.evaluate_every = 90
    c.evaluation.gallery = 0  # Nobody looks at the films of 35 reports.
    return c


def sweep(data: str = "phantom") -> Iterator[dict]:
    for seed in range(SEEDS):
        for treatment in TREATMENTS:
            fold = {"split.fold": seed} if data == "nih_sample" else {}
            yield {**treatment, "seed": seed, **fold}
