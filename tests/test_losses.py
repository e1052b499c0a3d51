import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from medjax import losses

FLOATS = st.floats(-30, 30, width=32)


def reference(logits, label, weight, w_pos, w_neg):
    """The formula with logarithms, one image and one task at a time, in float64."""
    total, count = 0.0, 0
    for z, y, w in zip(logits, label, weight, strict=True):
        count += bool((w > 0).any())
        for t in range(len(z)):
            if w[t] > 0:
                p = 1 / (1 + np.exp(-np.float64(z[t])))
                q = 1 / (1 + np.exp(np.float64(z[t])))
                loss = w_pos[t] * y[t] * np.log(p) + w_neg[t] * (1 - y[t]) * np.log(q)
                total -= w[t] * loss
    return total, count


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_weighted_bce_is_the_formula_in_float64(data):
    shape = (data.draw(st.integers(1, 5)), 3)
    logits = data.draw(hnp.arrays(np.float32, shape, elements=FLOATS))
    unit = st.floats(0, 1, width=32)
    label = data.draw(hnp.arrays(np.float32, shape, elements=unit))
    weight = data.draw(
        hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 1, 2]))
    )
    w_pos, w_neg = data.draw(hnp.arrays(np.float32, (2, 3), elements=unit))
    got = losses.weighted_bce(logits, label, weight, w_pos=w_pos, w_neg=w_neg)
    expected = reference(logits, label, weight, w_pos, w_neg)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_six_of_eight_positives_weigh_as_much_as_the_two_negatives():
    label = jnp.array([1, 1, 1, 1, 1, 1, 0, 0], jnp.float32)[:, None]
    weights = {"w_pos": jnp.array([2 / 8]), "w_neg": jnp.array([6 / 8])}
    logits, ones = jnp.zeros((8, 1)), jnp.ones((8, 1))
    positives, _ = losses.weighted_bce(logits, label, ones * label, **weights)
    negatives, _ = losses.weighted_bce(logits, label, ones * (1 - label), **weights)
    np.testing.assert_allclose(positives, negatives, rtol=1e-6)
    np.testing.assert_allclose(positives, 6 * 2 / 8 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_extreme_logits_and_unknown_labels_stay_finite(dtype, extreme):
    logits = jnp.full((2, 2), extreme, dtype)
    label = jnp.array([[1, jnp.nan], [0, jnp.nan]])
    weight = jnp.array([[1, 0], [1, 0]], jnp.float32)
    w = jnp.ones(2)

    def mean(z):
        total, count = losses.weighted_bce(z, label, weight, w_pos=w, w_neg=w)
        return total / count

    value, gradient = jax.value_and_grad(mean)(logits)
    chex.assert_tree_all_finite((value, gradient))
    np.testing.assert_allclose(value, 1e4 / 2, rtol=1e-2)
    assert (gradient[:, 1] == 0).all()


def test_the_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    logits, weight = rng.normal(size=(4, 3)), rng.integers(0, 2, (4, 3))
    label = rng.random((4, 3))
    w_pos, w_neg = rng.random((2, 3))

    def total(z):
        return losses.weighted_bce(
            jnp.asarray(z),
            jnp.asarray(label),
            jnp.asarray(weight),
            w_pos=w_pos,
            w_neg=w_neg,
        )[0]

    gradient = jax.grad(total)(logits.astype(np.float32))
    step = 1e-5
    for index in np.ndindex(4, 3):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        ends = [reference(z, label, weight, w_pos, w_neg)[0] for z in (up, down)]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-4, atol=1e-6)
