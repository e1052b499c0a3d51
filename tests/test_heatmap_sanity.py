import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, stats

from medjax.evaluation import heatmaps, localisation

LAYERS = ("classifier", "second", "first")  # From the last to the first.
SIDE = 12


def test_rank_correlation_is_spearman_s():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(2, 3, 4, 5))
    other = np.round(one + rng.normal(size=one.shape), 1)  # With ties.
    found = localisation.rank_correlation(one, other)
    for b, t in np.ndindex(2, 3):
        expected = stats.spearmanr(one[b, t].ravel(), other[b, t].ravel()).statistic
        assert found[b, t] == pytest.approx(expected, abs=1e-12)


def test_a_heatmap_of_one_value_resembles_nothing():
    one, flat = np.arange(6.0).reshape(1, 1, 2, 3), np.ones((1, 1, 2, 3))
    assert localisation.rank_correlation(one, flat) == 0
    assert np.isnan(localisation.rank_correlation(flat, one))
    assert localisation.rank_correlation(one, -one) == -1


def test_the_cascade_goes_from_the_top_down_and_leaves_the_rest():
    names = ("classifier", "stage1", "stem")
    trained = {
        "params": {name: {"kernel": np.zeros(2)} for name in names},
        "batch_stats": {name: {"mean": np.zeros(1)} for name in names[1:]},
    }
    fresh = jax.tree.map(np.ones_like, trained)
    seen = []

    def explain(variables):
        seen.append(variables)
        return np.arange(6.0).reshape(1, 1, 2, 3)

    found = localisation.randomisation(explain, trained, fresh, names)
    assert list(found["correlation"]) == list(names)
    for n, variables in enumerate(seen[1:]):
        assert jax.tree.structure(variables) == jax.tree.structure(trained)
        for kind, parts in variables.items():
            for name, part in parts.items():
                random = names.index(name) <= n
                assert all(x.all() == random for x in jax.tree.leaves(part)), kind
    assert not any(leaf.any() for leaf in jax.tree.leaves(trained))


def network(variables, image, *, train, mutable=(), after=0):
    """Two convolutions, the mean and a classifier."""
    params, stages, x = variables["params"], [], image
    for name in ("first", "second")[after:]:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=numbers
            )
        )
        stages.append(x)
    logits = x.mean(axis=(1, 2)) @ params["classifier"]
    return (logits, {"intermediates": {"stages": tuple(stages)}}) if mutable else logits


def fresh(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"first": (5, 5, 1, 8), "second": (3, 3, 8, 8), "classifier": (8, 2)}
    return {
        "params": {
            name: jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
    }


def films(seed, number):
    """Noise with a horizontal bar, a vertical one, both or none: the two tasks."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.5, (number, SIDE, SIDE, 1))
    label = rng.integers(0, 2, (number, 2))
    for n in range(number):
        y, x = rng.integers(1, SIDE - 5, 2)
        if label[n, 0]:
            image[n, y, x : x + 5] += 2
        if label[n, 1]:
            image[n, x : x + 5, y] += 2
    return jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.float32)


@pytest.fixture(scope="module")
def trained():
    optimizer = optax.adam(0.01)

    def loss(variables, image, label):
        logits = network(variables, image, train=True)
        return optax.sigmoid_binary_cross_entropy(logits, label).mean()

    @jax.jit
    def update(variables, state, image, label):
        change, state = optimizer.update(jax.grad(loss)(variables, image, label), state)
        return optax.apply_updates(variables, change), state

    variables = fresh(0)
    state = optimizer.init(variables)
    for step in range(200):
        variables, state = update(variables, state, *films(step, 32))
    image, label = films(1000, 64)
    right = (network(variables, image, train=False) > 0) == label
    assert right.mean() > 0.85  # It has learnt something that can be destroyed.
    return variables


@pytest.mark.slow
@pytest.mark.parametrize("method", heatmaps.METHODS)
def test_heatmaps_of_a_trained_model_do_not_survive_random_weights(trained, method):
    # Each step of the integrated gradients costs as much as a whole Grad-CAM.
    image, _ = films(5, 4 if method == "integrated_gradients" else 32)
    explain = jax.jit(
        lambda variables: heatmaps.heatmaps(
            variables, image, apply=network, method=method
        )
    )
    found = localisation.randomisation(explain, trained, fresh(1), LAYERS)
    assert list(found["correlation"]) == list(LAYERS)
    assert found["depends"]
    unchanged = localisation.randomisation(explain, trained, trained, LAYERS)
    assert all(x == pytest.approx(1) for x in unchanged["correlation"].values())
    assert not unchanged["depends"]


def test_an_edge_detector_is_found_out(trained):
    image, _ = films(5, 8)
    edges = np.abs(ndimage.sobel(np.asarray(image)[..., 0], axis=1))
    edges = np.stack([edges, edges], axis=1)  # [B, T, H, W], whatever the weights.
    found = localisation.randomisation(lambda _: edges, trained, fresh(1), LAYERS)
    assert found["correlation"]["first"] == pytest.approx(1)
    assert not found["depends"]


def test_maps_that_say_nothing_from_the_start_have_no_similarity(trained):
    flat = np.zeros((2, 2, 3, 3))
    found = localisation.randomisation(lambda _: flat, trained, fresh(1), LAYERS)
    assert np.isnan(list(found["correlation"].values())).all()
    assert not found["depends"]


def test_what_counts_is_how_alike_they_are_when_every_layer_is_random():
    one = np.arange(6.0).reshape(1, 1, 2, 3)
    variables = {"params": {"classifier": 0, "first": 0}}
    for last, depends in ((-one, True), (one, False)):
        maps = iter((one, -last, last))
        found = localisation.randomisation(
            lambda _, maps=maps: next(maps),
            *(variables, variables, ("classifier", "first")),
        )
        assert found["depends"] == depends
