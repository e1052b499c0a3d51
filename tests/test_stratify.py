"""Sampling on bare arrays: against every choice of patients, and where it is tight."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.cohort import stratify
from medjax.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)


def make_cohort(films, *positives):
    """Patients with these films [U] and, one list a task, positives [U]."""
    films = np.array(films)
    return stratify.Cohort(films, np.array(positives, int).reshape(-1, len(films)).T)


def sample(cohort, seed=0, share=0.2, minority=0.1, tested=None):
    rng = np.random.default_rng(seed)
    return stratify.held_out(cohort, rng, share=share, minority=minority, tested=tested)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=4, max_size=7),
    st.sampled_from([0.1, 0.3]),
    SEEDS,
)
def test_test_reaches_x_of_a_task_wherever_any_choice_of_patients_does(
    counts, minority, seed
):
    """Against every subset of a few patients, with one heavy patient or many."""
    positives = np.array([c[0] for c in counts])
    cohort = make_cohort(1 + np.sum(counts, 1), positives)
    least = np.ceil(minority * positives.sum() - 1e-9)
    carriers = np.flatnonzero(positives)
    possible = any(
        sum(positives[list(chosen)]) >= least
        and (len(carriers) < 2 or len(set(carriers) - set(chosen)) >= 1)
        for size in range(1, len(counts) - 1)
        for chosen in itertools.combinations(range(len(counts)), size)
    )
    tested = sample(cohort, seed, minority=minority)
    assert (positives[tested].sum() >= least) == possible


@pytest.mark.parametrize("others", [397, 3])
def test_a_light_patient_makes_room_for_the_heavy_one(others):
    free = [0] * others
    cohort = make_cohort([95, 5, *np.ones(others, int)], [95, 5, *free])
    for seed in range(20):
        assert sample(cohort, seed)[:2].tolist() == [True, False]


def test_a_light_patient_makes_room_where_two_tasks_are_short():
    """Validation may take two of three patients; only the first has X of both."""
    cohort = make_cohort([40, 1, 1, 9, 9, 9], [30, 1, 1, 0, 0, 0], [30, 1, 1, 0, 0, 0])
    tested = np.arange(6) == 5
    for seed in range(20):
        assert sample(cohort, seed, minority=0.3, tested=tested)[0]


def test_test_leaves_a_patient_for_each_other_side_whatever_the_x_asks():
    """Three patients, each the only one of a task: test would take them all."""
    cohort = make_cohort([1, 1, 1], *np.eye(3))
    rng = np.random.default_rng(0)
    tested = sample(cohort)
    sides = stratify.sides(cohort, rng, tested, share=0.1, minority=0.1)
    assert sorted(sides) == [0, 1, 2]


def test_validation_needs_two_patients_who_are_not_tested():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="^test: holds all patients but one"):
        stratify.sides(
            make_cohort([1, 1], [0, 1]), rng, np.arange(2) < 1, share=0.1, minority=0
        )
    cohort = make_cohort([1, 1, 0], [0, 1, 0])  # The third has nothing to bring.
    with pytest.raises(InputError, match="^test: holds all patients but one"):
        stratify.sides(cohort, rng, np.arange(3) < 1, share=0.1, minority=0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=40), SEEDS)
def test_somebody_is_taken_and_somebody_is_left_for_each_other_side(films, seed):
    cohort = make_cohort(films, np.array(films) // 2)
    tested = sample(cohort, seed, share=0.01)
    validated = sample(cohort, seed, share=0.98, tested=tested)
    assert tested.any() and validated.any()
    assert not (tested & validated).any() and not (tested | validated).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.sampled_from([0.0, 0.1, 0.4]), SEEDS)
def test_parts_are_never_empty_and_even_where_patients_are_alike(folds, x, seed):
    rng = np.random.default_rng(seed)
    cohort = make_cohort(np.ones(60, int), np.arange(60) < 12)
    part = stratify.parts(cohort, rng, folds=folds, minority=x)
    size = np.bincount(part, minlength=folds)
    assert np.ptp(size) <= 1
    assert np.ptp(np.bincount(part[:12], minlength=folds)) <= 1


def test_gather_counts_films_and_positives_of_each_patient():
    unit = np.array([1, 0, 1, 2, 1])
    positive = [np.array([1, 1, 1, 0, 0], bool), np.array([0, 0, 0, 1, 0], bool)]
    cohort = stratify.gather(unit, positive)
    assert cohort.images.tolist() == [1, 3, 1]
    assert cohort.positives.tolist() == [[1, 0], [2, 0], [0, 1]]
    assert stratify.gather(unit, []).positives.shape == (3, 0)
    some = stratify.gather(unit, positive, np.array([1, 1, 1, 0, 0], bool))
    assert some.images.tolist() == [1, 2, 0]
    assert some.positives.tolist() == [[1, 0], [2, 0], [0, 0]]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=3, max_size=12),
    st.sampled_from([0.1, 0.9]),
    SEEDS,
)
def test_test_leaves_to_the_others_what_only_they_can_use(counts, share, seed):
    """Films and positives that count for test, and those that count elsewhere."""
    films, positives, films_there, positives_there = np.array(counts).T
    cohort = make_cohort(films + positives, positives)
    there = make_cohort(films_there + positives_there, positives_there)
    rng = np.random.default_rng(seed)
    if not cohort.images.any():
        return
    tested = stratify.held_out(cohort, rng, share=share, minority=0.1, elsewhere=there)
    assert tested.any() and not tested[cohort.images == 0].any()
    here, useful = cohort.images > 0, there.images > 0
    costs = not (here & ~useful).any()  # Test itself needs one of the useful ones.
    assert np.sum(useful & ~tested) >= min(useful.sum() - costs, 2)
    here, useful = cohort.positives[:, 0] > 0, there.positives[:, 0] > 0
    if here.any() and (here & ~useful).any() and useful.any():
        assert (useful & ~tested).any()
