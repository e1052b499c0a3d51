"""Which treatment helps the tail? A sweep over treatments of rare findings, or classes.

    python launch.py sweep --config=configs/long_tail.py --workdir=runs/tail

Synthetic chest films, with 14 findings from 20 % to 0.1 %. All seeds share one split:
half of the patients are tested, so that the rarest finding has some ten positive films.
The network is small and the steps are few, so that a run takes a minute of a core.

    python launch.py sweep --config=configs/long_tail.py:nih --workdir=runs/tail_nih

Nine findings of 700 real films, from 359 films to 15. Each seed tests one of five folds.

    python tests/cut_tail.py ../shared/data/pneumonia/films.csv 50 > runs/tail50.csv
    python launch.py sweep --config=configs/long_tail.py:pneumonia --workdir=runs/tail50 \
        --config.data.table=$PWD/runs/tail50.csv

Films of children, of three classes. The first command splits the patients, and leaves
out so many of training and validation that there virus is 50 times as rare as bacteria,
and normal lies between. Nobody is left out of the test.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import base, loss_weighting, quickstart
from medjax.data import chest_phantom

SEEDS = 5
# In the order of ChestX-ray14's frequencies, with calcification for its pneumonia.
PREVALENCE = {
    "infiltration": 0.2,
    "effusion": 0.13,
    "atelectasis": 0.09,
    "nodule": 0.06,
    "mass": 0.04,
    "pneumothorax": 0.026,
    "consolidation": 0.017,
    "pleural_thickening": 0.012,
    "cardiomegaly": 0.008,
    "emphysema": 0.005,
    "edema": 0.0035,
    "fibrosis": 0.0023,
    "calcification": 0.0015,
    "hernia": 0.001,
}
DEFER = {"phantom": 300, "nih": 150}  # Step from which the classes are weighted.
WORDS = ("none", "balanced", "effective", "over_sample", "decoupled")
LDAM = {"name": "ldam", "margin": 2.0}
ASYMMETRIC = {"name": "asymmetric", "clip": 0.05, "gamma_pos": 0.0, "gamma_neg": 4.0}
FINDINGS = (
    *({"imbalance": word} for word in WORDS),
    {"imbalance": "effective", "resampling.defer": DEFER},
    {"loss": {"name": "focal", "gamma": 2.0}, "imbalance": "effective"},
    {"loss": ASYMMETRIC},
    {"loss": LDAM},
    {"loss": LDAM, "imbalance": "effective", "resampling.defer": DEFER},
)
DEFERRED_CLASSES = {"imbalance": "balanced", "resampling.defer": 130}
LDAM_CLASSES = {"name": "ldam_softmax", "margin": 2.0}
CLASSES = (
    {"imbalance": "none"},
    {"evaluation.calibration": "adjust"},
    {"imbalance": "balanced"},
    {"imbalance": "over_sample", "resampling.target": 0.3, "resampling.most": 50},
    {"imbalance": "decoupled"},
    {"loss": {"name": "balanced_softmax", "tau": 1.0}},
    {"loss": LDAM_CLASSES, **DEFERRED_CLASSES},
)


def get_config(data: str = "phantom") -> ConfigDict:
    makes = {"phantom": _phantom, "nih": _nih, "pneumonia": _pneumonia}
    if data not in makes:
        raise ValueError(f"{data!r}: give {', '.join(makes)} after the colon")
    return makes[data]()


def _phantom() -> ConfigDict:
    c = quickstart.get_config()
    c.explore = False
    c.imbalance = "none"
    c.data.patients = 20_000
    c.data.films = 1
    c.data.side = 48
    c.data.prevalence = tuple(PREVALENCE[name] for name in chest_phantom.ALL)
    c.split.test = 0.5
    c.split.seed = 0
    c.split.duplicates = "warn"  # 2 of 200 million pairs of people drawn look alike.
    c.model.stem = "quarter"
    c.train.update(steps=400, batch=64, evaluate_every=400)
    c.evaluation.checkpoint = "last"  # A few films of the tail can't rank checkpoints.
    c.evaluation.gallery = 0
    return c


def _nih() -> ConfigDict:
    c = loss_weighting.get_config("nih_sample")
    c.imbalance = "none"
    tail = ("Consolidation", "Pleural_Thickening", "Nodule", "Mass")
    c.data.tasks = (*c.data.tasks, *tail)
    c.data.side = 64
    c.train.update(steps=200, evaluate_every=200)
    return c


def _pneumonia() -> ConfigDict:
    c = base.classification("table")
    c.explore = False
    c.modality = "chest_xray"
    c.task = "multiclass"
    c.loss = {"name": "softmax_cross_entropy"}
    c.data.folder = "../shared/data/pneumonia"
    c.data.classes, c.data.official = "cause", "split"
    c.data.side = 48
    c.model = {"name": "densenet_small", "stem": "quarter", "pool": "mean_max"}
    c.augment.random_affine.update(flip=0.5, rotation=10.0, zoom=0.1)
    c.train.update(steps=200, batch=32, evaluate_every=100)
    # A temperature keeps the prior that a treatment has changed; Platt scaling undoes it.
    c.evaluation.update(calibration="temperature", flip=True, gallery=0)
    c.evaluation.checkpoint = "last"
    return c


def sweep(data: str = "phantom") -> Iterator[dict]:
    for seed in range(SEEDS):
        fold = {"split.fold": seed} if data == "nih" else {}
        for treatment in CLASSES if data == "pneumonia" else FINDINGS:
            if treatment.get("resampling.defer") is DEFER:
                treatment = treatment | {"resampling.defer": DEFER[data]}
            yield {**treatment, "seed": seed, **fold}
