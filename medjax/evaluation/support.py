"""How many patients stand behind a metric: too few, and it gets no interval."""

import numpy as np

LEAST = 10  # Patients, in what a metric is a share of, for an interval or a test.
FEW = f"fewer than {LEAST} such patients: no interval"
SHARES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "prevalence")
SHARES += ("agreement", "pointing")  # See robustness.py, localisation.py.
AREAS = ("auroc", "partial_auroc", "average_precision")


def patients(score, label, weight, patient, threshold) -> dict[str, np.ndarray]:
    """How many patients have an image in each metric's denominator.

    Args:
      score, label, weight, patient, threshold: as of `intervals.bootstrap`.

    Returns:
      {metric: [T + 1] int}, the last of all labels as if of one task. What compares
      positives with negatives counts the rarer. Without a threshold, rates have none.
    """
    known = weight > 0
    positive = known & (np.where(known, label, 0) > 0)
    negative = known & (np.where(known, label, 1) < 1)
    rarer = np.minimum(count(positive, patient), count(negative, patient))
    cut, said = ~np.isnan(threshold), score >= threshold
    known, positive, negative = (flag & cut for flag in (known, positive, negative))
    called, passed = known & said, known & ~said
    ill, well = count(positive, patient), count(negative, patient)
    known = count(known, patient)
    both = np.minimum(ill, well)
    return {
        **dict.fromkeys(AREAS, rarer),
        "sensitivity": ill,
        "specificity": well,
        "ppv": count(called, patient),
        "npv": count(passed, patient),
        "accuracy": known,
        "prevalence": known,
        "f1": count(positive | called, patient),
        **dict.fromkeys(("lr_positive", "lr_negative", "ppv_at", "npv_at"), both),
    }


def count(flag: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """[T + 1]: the patients with an image of that flag [N, T], and of any of them."""
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=patient.min() - 1))
    flag = np.column_stack([flag, flag.any(axis=1)])[order]
    return np.logical_or.reduceat(flag, starts).sum(axis=0)


def exact(estimate: float, patients: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share of 0 or 1: in every replicate it is the same.

    Patients are the units, as if each had one image: films of one patient that agree
    would else seem to know more.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404, which has this closed form
    where all of them, or none, are right.
    """
    end = ((1 - level) / 2) ** (1 / patients)
    return (end, 1.0) if estimate > 0.5 else (0.0, 1 - end)
