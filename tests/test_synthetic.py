import jax
import numpy as np
import pytest
from imblearn.over_sampling import ADASYN, SMOTE
from sklearn.neighbors import NearestNeighbors

from medjax.training import head

KEY = jax.random.key(3)
FILMS, WIDTH, SIZE = 240, 6, 300
METHODS = (head.smote, head.adasyn)


def cohort(seed, share=0.15, unknown=0.1):
    """Two overlapping clouds; where the label is unknown, nothing may be read."""
    rng = np.random.default_rng(seed)
    label = (rng.random(FILMS) < share).astype(np.float32)
    feature = rng.normal(size=(FILMS, WIDTH)).astype(np.float32) + label[:, None]
    known = rng.random(FILMS) >= unknown
    feature[~known] = np.nan
    return feature, np.where(known, label, np.float32(np.nan))


def brute_force(feature, asked, among, neighbours):
    """Rows of the nearest others in float64, of equals the lower row."""
    x = feature.astype(np.float64)
    out = np.full((len(x), neighbours), -1)
    for i in np.flatnonzero(asked):
        others = [j for j in np.flatnonzero(among) if j != i]
        near = sorted(others, key=lambda j: (np.sum((x[i] - x[j]) ** 2), j))
        out[i, : len(near[:neighbours])] = near[:neighbours]
    return out


def points(method, feature, label, *, key=KEY, size=SIZE):
    """As many as the other class has more images."""
    wanted = abs(int(np.sum(label >= 0.5)) - int(np.sum(label < 0.5)))
    return method(key, feature, label, size=size, wanted=wanted)


def real(made):
    """The points without the filling, as numpy arrays."""
    here = np.asarray(made.weight) == 1
    return [np.asarray(a)[here] for a in (made.seed, made.neighbour, made.gap)]


@pytest.mark.parametrize("offset", [0, 4096])
@pytest.mark.parametrize("step", [2.0**-10, 0.25])
def test_neighbours_are_those_of_brute_force(monkeypatch, offset, step):
    monkeypatch.setattr(head, "DISTANCE_ROWS", 30)  # Several blocks.
    rng = np.random.default_rng(0)
    # On a grid distances are exact, and on the coarse one many of them are equal.
    grid = np.rint(rng.normal(size=(FILMS, WIDTH)) / step) * step
    feature = (grid + offset).astype(np.float32)
    feature[40:44] = feature[40]
    asked, among = rng.random((2, FILMS)) < [[0.4], [0.6]]
    asked[40:44] = among[40:44] = True
    feature[~(asked | among)] = np.nan
    rows = map(np.flatnonzero, (asked, among))
    got = head.nearest_neighbours(feature, *rows, neighbours=7)
    np.testing.assert_array_equal(got, brute_force(feature, asked, among, 7)[asked])


def test_neighbours_are_those_of_scikit_learn():
    feature, label = cohort(1)
    minority = label == 1
    rows = np.flatnonzero(minority)
    oracle = NearestNeighbors(n_neighbors=6).fit(feature[rows])
    expected = rows[oracle.kneighbors(return_distance=False, n_neighbors=5)]
    got = head.nearest_neighbours(feature, rows, rows, neighbours=5)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.15, 0.85])
def test_every_point_lies_between_a_film_and_one_of_its_nearest(method, share):
    feature, label = cohort(2, share)
    made = points(method, feature, label)
    rarer = int(share < 0.5)
    assert made.label == rarer
    minority = label == rarer
    near = brute_force(feature, minority, minority, 5)
    seeds, neighbours, gaps = real(made)
    assert 0 <= gaps.min() and gaps.max() < 1 and np.ptp(gaps) > 0.9
    for seed, neighbour in zip(seeds, neighbours, strict=True):
        assert minority[seed] and neighbour in near[seed]
    # Every one of the five is drawn, and none is preferred: chi-square, 4 degrees.
    place = (near[seeds] == neighbours[:, None]).sum(0)
    assert np.sum((place - place.mean()) ** 2 / place.mean()) < 18.5


def test_smote_fills_up_to_the_other_class_evenly():
    feature, label = cohort(3)
    here = ~np.isnan(label)
    _, label_after = SMOTE(random_state=0).fit_resample(feature[here], label[here])
    seeds, *_ = real(points(head.smote, feature, label))
    assert len(seeds) == len(label_after) - here.sum()
    counts = np.bincount(seeds, minlength=FILMS)[label == 1]
    assert set(counts) == {len(seeds) // len(counts), len(seeds) // len(counts) + 1}


@pytest.mark.slow
def test_smotes_remainder_goes_to_every_seed_alike():
    feature, label = cohort(4)
    minority = np.flatnonzero(label == 1)
    keys = jax.random.split(KEY, 30)
    made = [head.smote(key, feature, label, size=4, wanted=4) for key in keys]
    assert all(len(set(points.seed)) == 4 for points in made)
    counts = np.bincount(np.ravel([points.seed for points in made]), minlength=FILMS)
    assert counts.sum() == counts[minority].sum()
    mean = 120 / len(minority)
    assert np.abs(counts[minority] - mean).max() < 5 * np.sqrt(mean)


class NoGap(np.random.RandomState):
    """Leaves a point of imbalanced-learn where its seed is."""

    def uniform(self, size):
        return np.zeros(size)


@pytest.mark.parametrize("seed", range(4))
def test_adasyn_starts_as_many_points_at_each_film_as_imbalanced_learn(seed):
    feature, label = cohort(10 + seed)
    here = ~np.isnan(label)
    after, _ = ADASYN(random_state=NoGap(0)).fit_resample(feature[here], label[here])
    start = after[here.sum() :]
    expected = [np.sum((start == x).all(axis=1)) for x in feature]
    seeds, *_ = real(points(head.adasyn, feature, label))
    np.testing.assert_array_equal(np.bincount(seeds, minlength=FILMS), expected)
    assert len(seeds) == len(start) > 50 and len(set(expected)) > 2


def test_adasyn_without_a_neighbour_of_the_other_class_is_even():
    feature, label = cohort(5, unknown=0)
    feature = feature + 1e3 * label[:, None]
    with pytest.raises(RuntimeError, match="Not any neigbours"):
        ADASYN().fit_resample(feature, label)
    seeds, *_ = real(points(head.adasyn, feature, label))
    assert len(seeds) == np.sum(label == 0) - np.sum(label == 1)
    counts = np.bincount(seeds, minlength=FILMS)[label == 1]
    assert np.ptp(counts) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("films", [0, 1, 2, 4])
def test_few_films_use_the_neighbours_that_they_have(method, films):
    feature, _ = cohort(6, unknown=0)
    label = np.arange(FILMS) < films
    made = points(method, feature, label.astype(np.float32), size=48)
    seeds, neighbours, _ = real(made)
    if films < 2:  # Nothing is between one film and itself.
        assert not len(seeds)
    else:
        assert len(seeds) == 48
        assert set(neighbours) == set(range(films)) and (seeds != neighbours).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_key_alone_decides(method):
    feature, label = cohort(7)
    first, second, other = (
        points(method, feature, label, key=key) for key in (KEY, KEY, jax.random.key(4))
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first.gap, other.gap)
    assert not np.array_equal(first.seed, other.seed)
