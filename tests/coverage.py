"""How often each kind of interval on a report's page holds the truth, by simulation.

    python tests/coverage.py --studies=60

A study has five findings whose truth is known. Labels and scores of a patient's images
resemble each other, and so do the scores of one image; the model's log-odds are 1.3 times
the right ones. Of numbers that need ten patients of either class only those are counted
that have them, as on the page. The output is the table of tests/README.md.
"""

import argparse
import collections

import jax
import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

from medjax.evaluation import (
    bootstrap,
    compare,
    decisions,
    discrimination,
    metrics,
    reliability,
    subgroups,
    thresholds,
)
from medjax.evaluation.predict import Predictions

FINDINGS = 5
STEEP, SHIFT = (
    1.3,
    0.2,
)  # Log-odds of the model: STEEP times the right ones, plus SHIFT.
OPTIONS = {"key": jax.random.key(0), "replicates": 500}
SETTINGS = [  # Patients, images of each, prevalence, AUROC.
    (*cohort, area)
    for area in (0.97, 0.8)
    for cohort in ((100, 1, 0.15), (300, 3, 0.1), (100, 3, 0.15), (50, 1, 0.3))
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


def net_benefit(threshold, prevalence, area):
    d = np.sqrt(2) * stats.norm.ppf(area)
    z = (logit(threshold) - SHIFT) / STEEP  # The right log-odds there.
    score = (z - logit(prevalence) + d**2 / 2) / d
    alarm = (1 - prevalence) * stats.norm.sf(score)
    hit = prevalence * stats.norm.sf(score - d)
    return hit - alarm * threshold / (1 - threshold)


def run(setting, studies: int) -> dict[str, np.ndarray]:
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
        low, high = (np.asarray(end)[use] for end in interval[1:3])
        held = (low <= value) & (value <= high)
        tally[kind] += np.ravel(held)[~np.isnan(np.ravel(low))].tolist()

    def measured(found: Predictions) -> dict:
        threshold = np.full(found.label.shape[1], cut)
        return discrimination.intervals(
            *(*found[2:5], patient, threshold),
            ranked=found.log_odds,
            max_fpr=0.1,
            **OPTIONS,
        )

    enough = discrimination.rarer_patients(*first[3:5], patient) >= bootstrap.LEAST
    found = measured(first)
    of_risks, _ = reliability.measure(*first[2:5], patient, **OPTIONS)
    for name, value in truth.items():
        interval = (of_risks | found)[name]
        both = metrics.METRICS[name].counted == metrics.BOTH
        note(name, interval, value, enough | (not both))
    difference = discrimination.difference(
        first.log_odds, second.log_odds, *first[3:5], patient, **OPTIONS
    )
    note("difference of the AUROC", difference["auroc"], 0, enough)
    names = tuple(map(str, range(FINDINGS * studies)))
    sensitivity = stats.norm.sf(stats.norm.isf(0.1) - d)
    for curve in thresholds.bands(first, tasks=names, **OPTIONS).values():
        roc = [curve["roc"][end][10] for end in ("fpr", "low", "high")]
        note("ROC band at a specificity of 0.9", roc, sensitivity)
    for curve in decisions.curves(first, tasks=names, **OPTIONS).values():
        k = len(curve["threshold"]) // 3
        value = net_benefit(curve["threshold"][k], prevalence, area)
        note("net benefit", [0, curve["low"][k], curve["high"][k]], value)
    half = np.where(np.arange(patients) % 2, "odd", "even").repeat(images)
    for start in range(0, FINDINGS * studies, FINDINGS):
        here = slice(start, start + FINDINGS)
        one, other = (
            Predictions(p.id, patient, *(x[:, here] for x in p[2:]))
            for p in (first, second)
        )
        if not enough[here].all():
            continue
        means = measured(one)
        for name in ("auroc", "average_precision", "sensitivity"):
            note(f"mean {name}", means[f"mean_{name}"], truth[name])
        risks, _ = reliability.measure(*one[2:5], patient, **OPTIONS)
        for name in reliability.ERRORS:
            note(f"mean {name}", risks[f"mean_{name}"], truth[name])
        gap = compare.compare(one, other, tasks=names[here], **OPTIONS)["mean"]["auroc"]
        note("difference of the mean AUROC", [*gap["difference"].values()][:3], 0)
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
            if gap["low"] is not None:
                note(f"gap of the {kind}", [0, gap["low"], gap["high"]], 0)
    return {kind: np.array(held) for kind, held in tally.items()}


def kappas(patients: int, trials: int) -> dict[str, list[bool]]:
    """Of four grades, whose scores are off by a normal error."""

    def grades(rng, number):
        latent = rng.normal(size=number)
        both = latent, latent + 0.7 * rng.normal(size=number)
        return [np.searchsorted([0.2, 0.9, 1.5], x) for x in both]

    many = np.zeros((4, 4), np.float32)
    np.add.at(many, tuple(grades(np.random.default_rng(1), 1_000_000)), 1)
    truth, tally = metrics.class_rates(many), collections.defaultdict(list)
    for trial in range(trials):
        true, called = grades(np.random.default_rng(trial), patients)
        label, probability = (np.eye(4, dtype=np.float32)[x] for x in (true, called))
        data = probability, label, np.ones_like(label), np.arange(patients)
        _, found = discrimination.class_intervals(*data, **OPTIONS)
        for name, interval in found.items():
            held = interval.low <= truth[name] <= interval.high
            tally[f"{name}, four classes"].append(bool(held))
    return tally


def table(columns: dict[str, dict]) -> str:
    """Markdown: a row a kind of interval, a column a setting, in percent."""
    kinds = dict.fromkeys(kind for column in columns.values() for kind in column)
    lines = [f"| % that hold the truth | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for kind in kinds:
        cells = []
        for column in columns.values():
            held = column.get(kind, [])
            cells.append(f"{100 * np.mean(held):.1f}" if len(held) >= 20 else "")
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=60)
    studies = parser.parse_args().studies
    columns = {}
    for patients, images, prevalence, area in SETTINGS:
        name = f"{patients} patients x {images}, {prevalence:.0%}, AUROC {area}"
        columns[name] = run((patients, images, prevalence, area), studies)
        print(table({name: columns[name]}), flush=True)
    print(table(columns))
    sizes = (50, 100, 300)
    print(table({f"{n} patients": kappas(n, 4 * studies) for n in sizes}))
