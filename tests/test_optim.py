import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax.training import optim

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(2)}


def gradients(n):
    for _ in range(n):
        yield jax.tree.map(
            lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS
        )


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_it_is_optax_own_adamw(clip):
    schedule = optax.warmup_cosine_decay_schedule(3e-2 / 4, 3e-2, 3, 10)
    oracle = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(schedule, weight_decay=0.1, mask=lambda p: {"w": True, "b": False}),
    )
    ours = optim.adamw(steps=10, warmup=4, clip=clip)
    a = b = PARAMS
    state_a, state_b = oracle.init(a), ours.init(b)
    for i, grad in enumerate(gradients(10)):
        step, state_b = ours.update(
            grad, state_b, b, learning_rate=3e-2, weight_decay=0.1
        )
        b = optax.apply_updates(b, step)
        step, state_a = oracle.update(grad, state_a, a)
        a = optax.apply_updates(a, step)
        if i < 4:  # The schedules differ in where the cosine begins.
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_the_schedule_rises_to_one_and_falls_to_zero():
    rate = np.array([optim.warmup_cosine(i, steps=100, warmup=10) for i in range(101)])
    np.testing.assert_allclose(rate[:10], np.arange(1, 11) / 10, rtol=1e-6)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(rate[10:], expected, atol=1e-6)


def test_rates_are_arrays_that_vmap_over_arms():
    ours = optim.adamw(steps=10, warmup=1, clip=1.0)
    grad = next(gradients(1))

    def one(rate, decay):
        step, _ = ours.update(
            grad, ours.init(PARAMS), PARAMS, learning_rate=rate, weight_decay=decay
        )
        return step

    rates, decays = jnp.array([1e-3, 1e-2]), jnp.array([0.0, 0.5])
    arms = jax.vmap(one)(rates, decays)
    for i in range(2):
        alone = one(rates[i], decays[i])
        for name in PARAMS:
            np.testing.assert_allclose(arms[name][i], alone[name], rtol=1e-6)


def test_decay_spares_vectors():
    ours = optim.adamw(steps=10, warmup=1, clip=1.0)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    step, _ = ours.update(
        zero, ours.init(PARAMS), PARAMS, learning_rate=0.1, weight_decay=0.5
    )
    np.testing.assert_allclose(step["w"], -0.05 * PARAMS["w"], rtol=1e-5)
    np.testing.assert_array_equal(step["b"], 0)
