"""Conformal prediction: the answers that can't be ruled out, at a chosen error rate.

A finding is a question with the answers absent and present; classes are the answers of
one question. An answer stays where its score is at most a limit, a quantile of the
scores that the right answers have in validation. Then the right answer of a new
patient's image, one drawn at random, stays with a probability of 1 - error or more,
whatever the model is worth, if the patient comes from the same population.

Images of one patient aren't exchangeable with those of others. So each of K patients
has the mass 1 / (K + 1), shared by the images, and nobody's images need be drawn.
The checkpoint and the calibration are chosen on the same patients; the guarantee is for
scores that don't depend on them.

By class, a limit is of the images with that right answer, and the guarantee holds for
each of them; a marginal limit is of all images, and may be met at a rare class's cost.

Source: Vovk et al., Algorithmic Learning in a Random World (2005), section 4.5, for
limits by class; Lee, Barber & Willett, Distribution-free Inference with Hierarchical
Data (2023), section 3, for patients.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from medjax.evaluation import bootstrap, means
from medjax.evaluation.inference import Predictions

RATES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # Of the curve on the page.
ANSWERS = ("absent", "present")


class Limits(NamedTuple):
    """The largest scores of Q questions' A answers that stay, at R error rates."""

    error: np.ndarray  # [R]; the first is the chosen one.
    # [R, Q, A]; inf, so that the answer always stays, of too few patients.
    by_class: np.ndarray
    marginal: np.ndarray  # [R, Q].
    patients: np.ndarray  # [Q, A], who have that right answer in validation.

    def of(self, question: int) -> "Limits":
        """Selects the limits of one question, without its axis."""
        by_class, marginal = self.by_class[:, question], self.marginal[:, question]
        return Limits(self.error, by_class, marginal, self.patients[question])

    def as_json(self) -> dict[str, list]:
        """Converts to JSON, with None for inf."""
        some = (np.where(np.isinf(x), np.nan, x) for x in self)
        return bootstrap.as_json(Limits(*some))

    @classmethod
    def read(cls, values: dict[str, list]) -> "Limits":
        """Reads what `as_json` made."""
        some = {name: np.array(x, np.float64) for name, x in values.items()}
        return cls(**{name: np.nan_to_num(x, nan=np.inf) for name, x in some.items()})


def needed(error: float) -> int:
    """Returns the least number of patients with which a limit has that error rate."""
    return math.ceil((1 - error) / error - 1e-9)


def fit(predictions: Predictions, *, exclusive: bool, error: float) -> Limits:
    """The limits by the (calibrated) predictions of the validation split."""
    rates = np.array([error, *RATES])
    score = scores(predictions.probability, exclusive)
    right = answers(predictions.label, predictions.weight > 0, exclusive)
    questions, number = score.shape[1:]
    by_class = np.full((len(rates), questions, number), np.inf)
    marginal = np.full((len(rates), questions), np.inf)
    for q in range(questions):
        known = right[:, q] >= 0
        truth, patient = right[known, q], predictions.patient[known]
        own = score[known, q][np.arange(len(truth)), truth]
        marginal[:, q] = _limit(own, patient, rates)
        for a in range(number):
            rows = truth == a
            by_class[:, q, a] = _limit(own[rows], patient[rows], rates)
    number = patients(right, predictions.patient, number)
    return Limits(rates, by_class, marginal, number)


def _limit(score: np.ndarray, patient: np.ndarray, error: np.ndarray) -> np.ndarray:
    """[R]: the least limit for each error rate, of right answers' scores [N]."""
    _, index, images = np.unique(patient, return_inverse=True, return_counts=True)
    order = np.argsort(score)
    mass = np.cumsum((1 / images[index])[order]) if len(score) else np.zeros(0)
    wanted = (1 - error) * (len(images) + 1) - 1e-9  # Rounding.
    return np.append(score[order], np.inf)[np.searchsorted(mass, wanted)]


def scores(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """[N, T] -> [N, Q, A]: how little the model expects each answer.

    Of a finding it is 1 minus the answer's probability. Of a class it is the
    probability of all likelier classes and half of its own (adaptive prediction sets,
    Romano et al., NeurIPS 2020, eq. 5, with 1/2 for their random share).
    """
    p = np.asarray(probability, np.float64)
    if not exclusive:
        return np.stack([p, 1 - p], axis=-1)
    order = np.argsort(-p, axis=1, kind="stable")
    likely = np.take_along_axis(p, order, axis=1)
    score = np.empty_like(p)
    np.put_along_axis(score, order, np.cumsum(likely, axis=1) - likely / 2, axis=1)
    return score[:, None]


def answers(label: np.ndarray, known: np.ndarray, exclusive: bool) -> np.ndarray:
    """[N, T] labels -> [N, Q]: the number of the right answer; -1 where it is unknown."""
    if not exclusive:
        return np.where(known, label >= 0.5, -1)
    likeliest = np.where(known, label, 0).argmax(axis=1)
    return np.where(known.any(axis=1), likeliest, -1)[:, None]


def patients(right: np.ndarray, patient: np.ndarray, number: int) -> np.ndarray:
    """[Q, A]: the patients with each right answer, of `number`, by `answers`' [N, Q]."""
    each = range(number)
    return np.array([[len(np.unique(patient[q == a])) for a in each] for q in right.T])


def columns(
    limits: Limits, probability: np.ndarray, tasks: Sequence[str], exclusive: bool
) -> dict[str, np.ndarray]:
    """The columns of a table of predictions, [N] text each.

    T_answer of a finding is 'present', 'absent', or 'uncertain' where both stay or
    neither does; `plausible` of classes names those that stay, by ';'.
    """
    kept = scores(probability, exclusive) <= limits.by_class[0]
    if exclusive:
        rows = [";".join(np.array(tasks)[row]) for row in kept[:, 0]]
        return {"plausible": np.array(rows, object)}
    absent, present = kept[..., 0], kept[..., 1]
    word = np.where(present, "present", "absent")
    word = np.where(absent != present, word, "uncertain")
    return {f"{task}_answer": word[:, t] for t, task in enumerate(tasks)}


def summarise(
    predictions: Predictions,
    limits: Limits,
    *,
    tasks: Sequence[str],
    exclusive: bool,
) -> dict:
    """Measures coverage and size of the sets on other images, as JSON.

    Returns:
      error, needed: the chosen error rate, and the patients that it needs.
      questions: {finding, or 'classes': {answers, sizes, curve}}: answers is {answer:
      patients in validation, and the coverage, by class and `marginal`, in the images
      with that right answer}; `sizes` are the shares of images with 0 to A answers,
      all by patient. `curve` has by error rate the share of images for a human, those
      without one answer, and the error of the rest.
    """
    score = scores(predictions.probability, exclusive)
    right = answers(predictions.label, predictions.weight > 0, exclusive)
    names = ["classes"] if exclusive else tasks
    questions = {}
    for q, name in enumerate(names):
        known = right[:, q] >= 0
        if known.any():
            data = score[known, q], right[known, q], predictions.patient[known]
            choices = tasks if exclusive else ANSWERS
            questions[name] = _question(*data, limits.of(q), choices)
    error = float(limits.error[0])
    return bootstrap.as_json(
        {"error": error, "needed": needed(error), "questions": questions}
    )


def _question(
    score: np.ndarray,
    truth: np.ndarray,
    patient: np.ndarray,
    limits: Limits,
    choices: Sequence[str],
) -> dict:
    """Measures one question from scores [N, A], right answers [N] and its limits."""
    kept = score <= limits.by_class[:, None]  # [R, N, A]
    size, own = kept.sum(axis=-1), np.arange(len(truth))
    right_stays = kept[:, own, truth]
    marginal = score[own, truth] <= limits.marginal[0]
    number, stays = len(choices), np.stack([right_stays[0], marginal])
    flags = [np.where(truth == k, stays, np.nan) for k in range(number)]
    flags.append(np.arange(number + 1)[:, None] == size[0])
    shares = _shares(np.concatenate(flags), patient)
    return {
        "answers": {
            choice: {
                "patients": int(limits.patients[k]),
                "by_class": shares[2 * k],
                "marginal": shares[2 * k + 1],
            }
            for k, choice in enumerate(choices)
        },
        "sizes": shares[2 * number :],
        "curve": [
            {
                "error": rate,
                "human": float(np.mean(n != 1)),
                "wrong": float(np.mean(~stays[n == 1])) if (n == 1).any() else 0.0,
            }
            for rate, n, stays in zip(limits.error[1:], size[1:], right_stays[1:])
        ],
    }


def _shares(values: np.ndarray, patient: np.ndarray) -> list:
    """An Interval of each row of [M, N], NaN where unknown: the mean over patients of
    each patient's mean."""
    each = pd.DataFrame(values.T.astype(float)).groupby(patient).mean().to_numpy()
    linear = means.over_rows(each, np.arange(len(each)))
    intervals = means.shares(linear)
    return [
        bootstrap.interval(bootstrap.at(intervals, m), "no such image", patients=people)
        for m, people in enumerate(linear.patients.tolist())
    ]
