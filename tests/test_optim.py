import chex
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


WEIGHTS_ALONE = {"mask": lambda p: {"w": True, "b": False}}
OTHERS = {
    "sgd": lambda rate: optax.chain(
        optax.trace(0.9, nesterov=True),
        optax.add_decayed_weights(0.1, **WEIGHTS_ALONE),
        optax.scale_by_learning_rate(rate),
    ),
    "lamb": lambda rate: optax.lamb(rate, weight_decay=0.1, **WEIGHTS_ALONE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_optax_own_too(name):
    schedule = optax.warmup_cosine_decay_schedule(3e-2 / 4, 3e-2, 3, 10)
    oracle = optax.chain(optax.clip_by_global_norm(0.5), OTHERS[name](schedule))
    ours = getattr(optim, name)(steps=10, warmup=4, clip=0.5)
    rates = {"learning_rate": 3e-2, "weight_decay": 0.1}
    grads = list(gradients(4))  # The schedules differ in where the cosine begins.
    a, state = PARAMS, oracle.init(PARAMS)
    got = descend(ours, grads, **rates)
    for i, grad in enumerate(grads):
        step, state = oracle.update(grad, state, a)
        a = optax.apply_updates(a, step)
        for array, expected in a.items():
            np.testing.assert_allclose(got[array][i], expected, rtol=1e-5)


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


# ------------------------------------------------------------------ the AUC-M loss

PESG = {"steps": 20, "warmup": 3, "clip": 2.0, "stage": 4, "proximity": 0.7}
RATES = {"learning_rate": 0.3, "weight_decay": 0.05}


def pesg_in_numpy(grads, *, steps, warmup, clip, stage, proximity):
    """The iterates in float64, stage by stage."""
    w = {name: np.asarray(p, np.float64) for name, p in PARAMS.items()}
    reference, iterates, kept = w, [], []
    for t, grad in enumerate(grads):
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grad.values()))
        share = (
            (t + 1) / warmup
            if t < warmup
            else (1 + np.cos(np.pi * (t - warmup) / (steps - warmup))) / 2
        )
        new = {}
        for name, g in grad.items():
            pull = proximity * (w[name] - reference[name])
            decay = RATES["weight_decay"] * w[name] if w[name].ndim > 1 else 0
            step = np.float64(g) * min(1, clip / norm) + pull + decay
            new[name] = w[name] - RATES["learning_rate"] * share * step
        w = new
        iterates.append(w)
        kept.append(w)
        if len(iterates) == stage:
            reference = {n: np.mean([i[n] for i in iterates], axis=0) for n in w}
            iterates = []
    return kept


def descend(optimizer, grads, params=PARAMS, **rates):
    """The weights after each update."""

    def step(carry, grad):
        params, state = carry
        change, state = optimizer.update(grad, state, params, **rates)
        params = optax.apply_updates(params, change)
        return (params, state), params

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
    return jax.lax.scan(step, (params, optimizer.init(params)), stacked)[1]


@pytest.mark.parametrize("stage", [1, 4, 100])
def test_pesg_is_a_loop_in_float64(stage):
    grads = list(gradients(15))
    options = {**PESG, "stage": stage}
    got = descend(optim.pesg(**options), grads, **RATES)
    for i, expected in enumerate(pesg_in_numpy(grads, **options)):
        for name in PARAMS:
            np.testing.assert_allclose(got[name][i], expected[name], rtol=1e-4)


def test_pesg_without_proximity_is_gradient_descent():
    grads = list(gradients(10))
    ours = optim.pesg(**{**PESG, "proximity": 0.0, "clip": 1e9})
    got = descend(ours, grads, learning_rate=0.3, weight_decay=0.0)
    rates = [
        0.3 * optim.warmup_cosine(i, steps=PESG["steps"], warmup=PESG["warmup"])
        for i in range(10)
    ]
    for name, start in PARAMS.items():
        w = start - sum(r * g[name] for r, g in zip(rates, grads, strict=True))
        np.testing.assert_allclose(got[name][-1], w, rtol=1e-5, atol=1e-6)


def test_pesg_vmaps_over_arms():
    ours, grads = optim.pesg(**PESG), list(gradients(6))
    rates, decays = jnp.array([0.1, 0.4]), jnp.array([0.0, 0.5])

    def arm(rate, decay):
        return descend(ours, grads, learning_rate=rate, weight_decay=decay)

    arms = jax.vmap(arm)(rates, decays)
    for i in range(2):
        alone = arm(rates[i], decays[i])
        for name in PARAMS:
            np.testing.assert_allclose(arms[name][i], alone[name], rtol=1e-5)


def test_pesg_is_the_same_on_many_devices_with_its_state_donated():
    ours, grads = optim.pesg(**PESG), list(gradients(6))

    def step(params, state, grad):
        grad = jax.lax.pmean(grad, "batch")
        change, state = ours.update(grad, state, params, **RATES)
        return optax.apply_updates(params, change), state

    mapped = jax.pmap(
        *(step, "batch"),
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=(0, 1),
    )
    params = jax.tree.map(jnp.copy, PARAMS)
    state = ours.init(params)
    scales = jnp.array([0.5, 1.5, 2.0, 0.0])  # Of the devices' gradients; mean 1.
    for grad in grads:
        shards = jax.tree.map(lambda g: jnp.stack([g * s for s in scales]), grad)
        params, state = mapped(params, state, shards)
    expected = descend(ours, grads, **RATES)
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name][-1], rtol=1e-5)


def test_the_saddle_step_ascends_in_alpha_alone_and_not_below_zero():
    variables = {"a": jnp.ones(3), "b": jnp.zeros(3), "alpha": jnp.array([0, 1, 0.1])}
    gradient = {"a": jnp.ones(3), "b": -jnp.ones(3), "alpha": jnp.array([2, 2, -1.0])}
    got = optim.saddle_step(variables, gradient, rate=jnp.float32(0.5))
    expected = {"a": [0.5] * 3, "b": [0.5] * 3, "alpha": [1, 2, 0]}
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6)
    assert optim.saddle_step({}, {}, rate=0.5) == {}


def test_a_stages_change_is_scaled_by_its_share_once_it_has_started():
    change = {stage: PARAMS for stage in ("stem", "stage1", "classifier")}
    pace = {"share": {"stem": 0.3, "stage1": 0.7}, "start": {"stem": 5.0}}
    hyper = optim.Hyper(1.0, 0.0, 0.0, 0.0, {})
    assert optim.by_stage(change, jnp.int32(0), hyper) is change
    for step, started in ((4, 0.0), (5, 1.0)):
        got = optim.by_stage(change, jnp.int32(step), hyper._replace(**pace))
        factors = {"stem": 0.3 * started, "stage1": 0.7, "classifier": 1.0}
        for stage, factor in factors.items():
            for name, value in PARAMS.items():
                expected = np.float32(factor) * np.asarray(value)
                np.testing.assert_array_equal(got[stage][name], expected)


def test_class_weights_are_one_until_they_begin():
    part = {
        "w_pos": jnp.array([2.0, 0.0]),
        "w_neg": jnp.array([0.3, 0.0]),
        "gamma": 2.0,
    }
    hyper = optim.Hyper(
        1.0, 0.0, 0.0, 0.0, {"w": jnp.array([3.0]), "parts": {"a": part}}
    )
    chex.assert_trees_all_equal(optim.loss_arguments(hyper, jnp.int32(0)), hyper.loss)
    for step, weights in ((3, ([1, 0], [1, 0], [1])), (4, ([2, 0], [0.3, 0], [3]))):
        got = optim.loss_arguments(hyper._replace(defer=4.0), jnp.int32(step))
        a = got["parts"]["a"]  # The second task is dropped: it stays so.
        for value, expected in zip((a["w_pos"], a["w_neg"], got["w"]), weights):
            np.testing.assert_array_equal(value, np.float32(expected))
        assert a["gamma"] == 2.0
