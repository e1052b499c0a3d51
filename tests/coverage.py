"""How often each kind of interval on a report's page holds the truth, by simulation.

    python tests/coverage.py --studies=100

A study has five findings whose truth is known. Labels and scores of a patient's images
resemble each other, and so do the scores of one image; the model's log-odds are 1.3 times
the right ones. Of numbers that need ten patients of either class only those are counted
that have them, as on the page, and none of a cohort in which a tenth has not: what is
left would be chosen by its prevalence. Curves are of one finding a study. The output is
the tables of tests/README.md, of as many studies in each cohort, five times as many of
grades and masks.
"""

import argparse
import collections
import json
import math
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

from medjax.evaluation import (
    bootstrap,
    decisions,
    discrimination,
    mask_metrics,
    means,
    metrics,
    reliability,
    seeds,
    subgroups,
    thresholds,
)
from medjax.evaluation.inference import Predictions

FINDINGS = 5
# The log-odds of the model are STEEP times the right ones, plus SHIFT.
STEEP, SHIFT = 1.3, 0.2
MEANS = ("auroc", "average_precision", "sensitivity", *reliability.ERRORS)
OF_CLASSES = ("balanced_accuracy", "macro_f1")  # Means of the rates of classes.
OPTIONS = {"key": jax.random.key(0), "replicates": 300}
COHORTS = [  # Patients, images of each, prevalence, AUROC.
    (50, 1, 0.3, 0.9),
    (50, 3, 0.15, 0.75),
    (100, 1, 0.15, 0.97),
    (100, 1, 0.3, 0.75),
    (100, 3, 0.3, 0.97),
    (300, 1, 0.05, 0.97),
    (300, 1, 0.15, 0.75),
    (300, 3, 0.05, 0.75),
    (300, 3, 0.15, 0.9),
]


def simulate(rng, studies, patients, images, prevalence, area):
    """Labels, and two models' scores: standard normal, plus d of the positives.

    Each is [N, FINDINGS x studies]; and d.
    """
    shape = (patients, images, studies, FINDINGS)

    def alike(patient: float, image: float) -> np.ndarray:
        """Normal numbers with these shares of variance in common."""
        of_image = patients, images, studies, 1
        parts = (patients, 1, studies, FINDINGS), of_image, shape
        shares = patient, image, 1 - patient - image
        return sum(np.sqrt(s) * rng.normal(size=p) for s, p in zip(shares, parts))

    label = alike(0.5, 0.0) > stats.norm.isf(prevalence)
    d = np.sqrt(2) * stats.norm.ppf(area)
    common = alike(0.3, 0.3)
    scores = [
        d * label + np.sqrt(0.7) * common + np.sqrt(0.3) * rng.normal(size=shape)
        for _ in range(2)
    ]
    return *(x.reshape(patients * images, -1) for x in (label, *scores)), d


def right(score, prevalence, d):
    """The right log-odds of a score."""
    return logit(prevalence) + d * score - d**2 / 2


def truths(prevalence, area, bins: int) -> dict[str, float]:
    """What a study of infinite size would find, by quadrature."""
    d = np.sqrt(2) * stats.norm.ppf(area)
    cut = d / 2
    sensitivity, specificity = stats.norm.sf(cut - d), stats.norm.cdf(cut)
    hit, alarm = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    pass_ = (1 - prevalence) * specificity
    t = np.linspace(-9, 9 + d, 200_001)
    tpr, fpr = stats.norm.sf(t - d), stats.norm.sf(t)
    precision = prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)
    low = np.linspace(1e-9, 0.1, 20_001)
    partial = np.trapezoid(stats.norm.sf(stats.norm.isf(low) - d), low)
    density = prevalence * stats.norm.pdf(t - d) + (1 - prevalence) * stats.norm.pdf(t)
    density /= density.sum()
    z = right(t, prevalence, d)
    model = STEEP * z + SHIFT
    p, q = expit(model), expit(z)
    edges = np.searchsorted(np.cumsum(density), np.arange(1, bins) / bins)
    gaps = [bins * part.sum() for part in np.split(density * (q - p), edges)]
    return {
        "auroc": area,
        "average_precision": -np.trapezoid(precision, tpr),
        "partial_auroc": 0.5 * (1 + (partial - 0.005) / 0.095),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": hit / (hit + alarm),
        "npv": pass_ / (pass_ + prevalence - hit),
        "accuracy": hit + pass_,
        "f1": 2 * hit / (hit + alarm + prevalence),
        "prevalence": prevalence,
        "lr_positive": sensitivity / (1 - specificity),
        "lr_negative": (1 - sensitivity) / specificity,
        "calibration_slope": 1 / STEEP,
        "calibration_intercept": -SHIFT / STEEP,
        "calibration_in_the_large": brentq(
            lambda a: (density * (expit(model + a) - q)).sum(), -9, 9
        ),
        "brier": (density * (q * (1 - q) + (p - q) ** 2)).sum(),
        "calibration_error": np.sqrt(np.mean(np.square(gaps))),
        "predicted": (density * p).sum(),
    }


def precision_recall(prevalence, d) -> tuple[np.ndarray, np.ndarray]:
    """Recall, rising, and precision of the scores of a study of infinite size."""
    t = np.linspace(9 + d, -9, 20_001)
    recall = stats.norm.sf(t - d)
    hit, alarm = prevalence * recall, (1 - prevalence) * stats.norm.sf(t)
    return recall, hit / (hit + alarm)


def net_benefit(threshold, prevalence, area):
    d = np.sqrt(2) * stats.norm.ppf(area)
    z = (logit(threshold) - SHIFT) / STEEP  # The right log-odds there.
    score = (z - logit(prevalence) + d**2 / 2) / d
    alarm = (1 - prevalence) * stats.norm.sf(score)
    hit = prevalence * stats.norm.sf(score - d)
    return hit - alarm * threshold / (1 - threshold)


def holds(low, value, high) -> np.ndarray:
    """Whether an interval holds the truth; NaN if there is none."""
    return np.where(np.isnan(low), np.nan, (low <= value) & (value <= high))


def counted(tally: dict[str, list[float]]) -> dict[str, list[int]]:
    """The kinds of interval that nine in ten studies have."""
    kinds = {kind: np.array(held) for kind, held in tally.items()}
    return {
        kind: held[~np.isnan(held)].astype(int).tolist()
        for kind, held in kinds.items()
        if np.isnan(held).mean() <= 0.1
    }


def ends(gap: dict) -> tuple:
    """As `note` takes them."""
    return 0, gap["low"], gap["high"]


def run(setting, studies: int) -> dict[str, list[float]]:
    """{kind of interval: whether each one holds the truth}."""
    patients, images, prevalence, area = setting
    rng = np.random.default_rng([patients, images, round(1000 * area)])
    label, *scores, d = simulate(rng, studies, *setting)
    patient = np.repeat(np.arange(patients), images)
    first, second = (
        Predictions(
            np.arange(len(label)),
            patient,
            expit(STEEP * right(score, prevalence, d) + SHIFT).astype(np.float32),
            label.astype(np.float32),
            np.ones(label.shape, np.float32),
            right(score, prevalence, d).astype(np.float32),
        )
        for score in scores
    )
    cut = np.float32(expit(STEEP * right(d / 2, prevalence, d) + SHIFT))
    truth = truths(prevalence, area, reliability.bins(patients))
    tally = collections.defaultdict(list)

    def note(kind: str, interval, value: float, use=True) -> None:
        low, high = (np.where(use, np.asarray(x, float), np.nan) for x in interval[1:3])
        tally[kind] += np.ravel(holds(low, value, high)).tolist()

    def ends(pairs: dict) -> tuple:
        difference = pairs["auroc"]["difference"]
        return 0, *(difference[end] for end in ("low", "high"))

    enough = (
        discrimination.rarer_patients(*first[3:5], patient) >= bootstrap.MIN_PATIENTS
    )
    names = tuple(map(str, range(FINDINGS * studies)))
    half = np.where(np.arange(patients) % 2, "odd", "even").repeat(images)
    for start in range(0, FINDINGS * studies, FINDINGS):
        here = slice(start, start + FINDINGS)
        one, other = (
            Predictions(p.id, patient, *(x[:, here] for x in p[2:]))
            for p in (first, second)
        )
        some, all_ = enough[here], enough[here].all()
        of_risks, _ = reliability.measure(*one[2:5], patient, **OPTIONS)
        of_ranks = discrimination.intervals(
            *(*one[2:5], patient, np.full(FINDINGS, cut)),
            ranked=one.log_odds,
            max_fpr=0.1,
            **OPTIONS,
        )
        found = of_risks | of_ranks
        for name, value in truth.items():
            both = metrics.METRICS[name].counted == metrics.BOTH
            note(name, found[name], value, some | (not both))
        for name in MEANS:
            note(f"mean {name}", found[f"mean_{name}"], truth[name], all_)
        probability, ranking = (
            np.stack([getattr(p, k) for p in (one, other)])[:, None]
            for k in ("probability", "log_odds")
        )
        arms = seeds.compare(
            seeds.measure_predictions(
                *(probability, one.label, np.ones_like(ranking), patient),
                ranking=ranking,
                call=probability >= cut,
                **OPTIONS,
            ),
            arms=("one", "other"),
            tasks=names[here],
            primary="auroc",
            patients=patients,
            baseline=1,
        )["arms"]
        gaps = arms["one"]["difference"]
        for task, use in zip(gaps["tasks"].values(), some, strict=True):
            note("difference of the AUROC", ends(task["auroc"]), 0, use)
        note("difference of the mean AUROC", ends(gaps["mean"]["auroc"]), 0, all_)
        groups = subgroups.summarise(
            *(one, pd.DataFrame({"half": half})),
            tasks=names[here],
            threshold=np.full(FINDINGS, cut),
            **OPTIONS,
        )["half"]
        for kind, gap in (
            ("mean AUROC", groups["mean"]["auroc"]),
            *(("AUROC", gaps["auroc"]) for gaps in groups["gaps"].values()),
            *(("sensitivity", gaps["sensitivity"]) for gaps in groups["gaps"].values()),
        ):
            note(f"gap of the {kind}", ends(gap), 0)
    single = first._replace(
        **{
            name: getattr(first, name)[:, ::FINDINGS]
            for name in ("probability", "label", "weight", "log_odds")
        }
    )
    d_cut = stats.norm.isf(0.1)
    precision = np.interp(0.5, *precision_recall(prevalence, d))
    for curve in thresholds.bands(single, tasks=names, **OPTIONS).values():
        for kind, band, at, value in (
            ("ROC curve, specificity 0.9", "roc", 10, stats.norm.sf(d_cut - d)),
            ("PR curve, recall 0.5", "precision_recall", 49, precision),
        ):
            interval = [0, curve[band]["low"][at], curve[band]["high"][at]]
            note(kind, interval, value)
    for curve in decisions.curves(single, tasks=names, **OPTIONS).values():
        for kind, k in (("low", 5), ("high", 30)):
            value = net_benefit(curve["threshold"][k], prevalence, area)
            interval = [0, curve["low"][k], curve["high"][k]]
            note(f"net benefit, {kind} threshold", interval, value)
    return tally


def kappas(patients: int, trials: int) -> dict[str, list[float]]:
    """Of four grades, whose scores are off by a normal error; rates and both kappas."""

    def grades(rng, number):
        latent = rng.normal(size=number)
        both = latent, latent + 0.7 * rng.normal(size=number)
        return [np.searchsorted([-0.3, 0.4, 1], x) for x in both]

    many = np.zeros((4, 4), np.float32)
    np.add.at(many, tuple(grades(np.random.default_rng(1), 1_000_000)), 1)
    truth, tally = metrics.class_rates(many), collections.defaultdict(list)
    for trial in range(trials):
        true, called = grades(np.random.default_rng(trial), patients)
        label, probability = (np.eye(4, dtype=np.float32)[x] for x in (true, called))
        data = probability, label, np.ones_like(label), np.arange(patients)
        _, found = discrimination.class_intervals(*data, **OPTIONS)
        for name, interval in found.items():
            few = label.sum(axis=0).min() < bootstrap.MIN_PATIENTS
            low = np.nan if few and name in OF_CLASSES else interval.low
            held = holds(low, truth[name], interval.high)
            tally[f"{name}, four classes"].append(float(held))
    return tally


def masks(patients: int, trials: int) -> dict[str, list[float]]:
    """Means over one to three volumes a patient, and the gap between two groups: of a
    skewed Dice, a tenth of them 0; of lesions, of which one in 20 volumes misses half;
    of false ones, a Poisson number; of log-normal distances."""
    tally = collections.defaultdict(list)
    truth = {
        "dice": 0.9 * 0.8,
        "lesion_sensitivity": 1 - 0.05 / 2,
        "false_positives": 0.1,
        "hd95": math.exp(0.5),
    }
    for trial in range(trials):
        rng = np.random.default_rng([patients, trial])
        patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        person = rng.normal(size=(4, patients))[:, patient]
        normal = np.sqrt(0.5) * (person + rng.normal(size=(4, len(patient))))
        uniform = stats.norm.cdf(normal)
        values = {
            "dice": np.where(
                uniform[0] < 0.1, 0, stats.beta.ppf((uniform[0] - 0.1) / 0.9, 8, 2)
            ),
            "lesion_sensitivity": np.where(uniform[1] < 0.05, 0.5, 1.0),
            "false_positives": stats.poisson.ppf(uniform[2], 0.1),
            "hd95": np.exp(normal[3]),
        }
        names = [f"v{n}" for n in range(len(patient))]
        table = pd.DataFrame(values | {"name": names, "patient": patient})
        rows = [
            mask_metrics.measure(*[np.zeros((1, 1, 1))] * 2, (1, 1, 1), tolerance=1)
            | {"region": "a", "true_ml": 1.0}
            | row
            for row in table.to_dict("records")
        ]
        found = mask_metrics.summarise(rows, **OPTIONS)["regions"]["a"]
        for metric, value in truth.items():
            mean = found[metric]
            if mean["low"] is not None:
                held = mean["low"] <= value <= mean["high"]
                tally[f"mean of masks: {metric}"].append(held)
        half = pd.DataFrame({"half": np.where(patient % 2, "odd", "even")}, names)
        found = means.by_group(rows, half)["half"]
        for group in found["groups"].values():
            mean = group["dice"]["a"]
            if mean["low"] is not None:
                held = mean["low"] <= 0.9 * 0.8 <= mean["high"]
                tally["mean Dice of a half"].append(held)
        if found["gap"]["low"] is not None:
            tally["gap of the mean Dice"].append(found["gap"]["low"] <= 0)
    return tally


def table(columns: dict[str, dict]) -> str:
    """Markdown: a row a kind of interval, a column a number of patients; in percent, the
    lowest and the highest of the cohorts that have 50 or more of them."""
    sizes = dict.fromkeys(name.split()[0] for name in columns)
    kinds = dict.fromkeys(kind for column in columns.values() for kind in column)
    lines = [f"| % that hold the truth, patients: | {' | '.join(sizes)} |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for kind in kinds:
        cells = []
        for size in sizes:
            held = [c.get(kind, []) for n, c in columns.items() if n.split()[0] == size]
            shares = [round(100 * np.mean(x)) for x in held if len(x) >= 50]
            ends = sorted({min(shares), max(shares)}) if shares else []
            cells.append("–".join(map(str, ends)))
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="file of the results, to go on with")
    flags = parser.parse_args()
    kept = flags.keep and flags.keep.exists()
    columns = json.loads(flags.keep.read_text()) if kept else {}
    jobs = {
        f"{n} x {images}, {prevalence:.0%}, {area}": (
            run,
            (n, images, prevalence, area),
        )
        for n, images, prevalence, area in COHORTS
    }
    jobs |= {f"{n} of grades": (kappas, n) for n in (50, 100, 300)}
    jobs |= {f"{n} with masks": (masks, n) for n in (10, 20, 50, 100)}
    for name, (job, setting) in jobs.items():
        if name in columns:
            continue
        many = 1 if job is run else 5
        tally = job(setting, many * flags.studies)
        columns[name] = counted(tally)
        print(name, table({name: columns[name]}), sep="\n", flush=True)
        if flags.keep:
            flags.keep.write_text(json.dumps(columns))
    for with_masks in (False, True):
        print(table({n: c for n, c in columns.items() if ("masks" in n) == with_masks}))
