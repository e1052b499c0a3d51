"""Which treatment of rare findings helps? Seven of them, five seeds each.

    python launch.py sweep --config=configs/loss_weighting.py --workdir=runs/weighting
    python launch.py sweep --config=configs/loss_weighting.py:nih_sample --workdir=runs/nih

The phantom's seeds share their split, so that they differ in the training alone. Of the
700 real films a tenth would be too few to test on: there each seed tests one of five
folds, and all films are tested once. `--executor=population` trains those arms that
differ in numbers alone as one program.

Mean AUROC over findings and seeds, and the difference to `none` by patients and seeds:

                phantom                           ChestX-ray14
  none          0.798                             0.800
  ratio         0.799  +0.000 (-0.091 to +0.092)  0.808  +0.008 (-0.001 to +0.017)
  balanced      0.814  +0.015 (-0.051 to +0.082)  0.808  +0.008 (-0.002 to +0.018)
  effective     0.814  +0.015 (-0.043 to +0.074)  0.812  +0.012 (-0.004 to +0.029)
  focal         0.790  -0.009 (-0.079 to +0.062)  0.802  +0.003 (-0.009 to +0.014)
  over_sample   0.844  +0.045 (+0.008 to +0.083)  0.792  -0.008 (-0.039 to +0.024)
  under_sample  0.803  +0.005 (-0.061 to +0.070)  0.785  -0.014 (-0.064 to +0.036)

After Holm none of these differs; 28 min and 57 min on two cores, beside other work.
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
        c = nih_sample.get_config()
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
    c.evaluation.gallery = 0  # Of 35 reports nobody looks at the films.
    return c


def sweep(data: str = "phantom") -> Iterator[dict]:
    for seed in range(SEEDS):
        for treatment in TREATMENTS:
            fold = {"split.fold": seed} if data == "nih_sample" else {}
            yield {**treatment, "seed": seed, **fold}
