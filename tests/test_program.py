"""Arms in one compiled step: each as if it were alone, for as many as memory holds."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import losses
from medjax.augment import pixel_ops, policy
from medjax.data import normalisation
from medjax.models.densenet import densenet
from medjax.training import optim, population, step

TASKS, ROWS, ARMS, STEPS = 3, 8, 4, 50
OPTIMIZER = optim.adamw(steps=100, warmup=5, clip=1.0)
MODEL = densenet(
    TASKS, blocks=(1,), growth=4, features=4, stem="half", axis_name=step.AXIS
)
PARTS = {
    "apply": MODEL.apply,
    "augment": functools.partial(
        policy.augment_batch,
        ops=[functools.partial(pixel_ops.noise, std=0.1)],
        prepare=functools.partial(normalisation.standardise, mean=0.5, std=0.25),
    ),
    "loss": losses.focal,
    "optimizer": OPTIMIZER,
}


@pytest.fixture(scope="module")
def arms():
    """States that differ in all that arms may differ in, and their keys."""
    init = jax.jit(functools.partial(MODEL.init, train=False))
    states = []
    for arm in range(ARMS):
        variables = init(jax.random.key(arm), jnp.zeros((1, 16, 16, 1)))
        w = jnp.linspace(0.2, 0.9 - 0.1 * arm, TASKS)
        loss = {"w_pos": w, "w_neg": 1 - w, "gamma": 0.5 * arm}
        # Larger rates make a chaos of rounding: after 50 updates two runs of one arm
        # would be as far apart as two arms.
        hyper = optim.Hyper(
            *(1e-3 / (1 + arm), 1e-2 * arm, 0.9, 0.0, loss), defer=10.0 * arm
        )
        state = step.init_state(variables, optimizer=OPTIMIZER, dual={}, hyper=hyper)
        states.append(jax.device_get(state))
    return states, jax.random.split(jax.random.key(7), ARMS)


def batch(number, arm):
    """Another one for every second arm."""
    rng = np.random.default_rng([number, arm // 2])
    return {
        "image": rng.integers(0, 256, (ROWS, 16, 16, 1), np.uint8),
        "label": rng.integers(0, 2, (ROWS, TASKS)).astype(np.float32),
        "weight": (rng.random((ROWS, TASKS)) < 0.7).astype(np.float32),
        "id": np.arange(ROWS, dtype=np.int32),
        "epoch": np.full(ROWS, number, np.int32),
        "occurrence": np.zeros(ROWS, np.int32),
    }


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def trained(made, arms):
    """The states after all updates, by the waves of a program."""
    states, keys = arms
    places, found = step.by_arm(made.devices), []
    for first in range(0, ARMS, made.wave):
        wave = range(first, first + made.wave)
        state = jax.device_put(stacked([states[arm] for arm in wave]), places)
        key = jax.device_put(keys[first : first + made.wave], places)
        for number in range(STEPS):
            rows = stacked([batch(number, arm) for arm in wave])
            state, scalars = made.step(state, jax.device_put(rows, places), key)
        state, scalars = jax.device_get((state, scalars))
        found += [
            jax.tree.map(lambda x: x[i], (state, scalars))  # noqa: B023
            for i in range(made.wave)
        ]
    return found


@pytest.fixture(scope="module")
def separate(arms):
    """Each arm alone, as the tests of the step run it."""
    alone = jax.vmap(
        functools.partial(step.train_step, **PARTS),
        in_axes=(None, 0, None),
        axis_name=step.AXIS,
    )
    alone, found = jax.jit(alone), []
    for arm, (state, key) in enumerate(zip(*arms, strict=True)):
        for number in range(STEPS):
            rows = jax.tree.map(lambda x: x[None], batch(number, arm))
            new = alone(state, rows, key)
            state, scalars = jax.device_get(jax.tree.map(lambda x: x[0], new))
        found.append((state, scalars))
    return found


def compiled(arms, *, devices, monkeypatch, **options):
    local = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    states, keys = arms
    one = states[0], batch(0, 0), keys[0]
    return population.compiled(*one, arms=ARMS, **options, **PARTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "abreast"), [(1, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_after_fifty_updates_each_arm_is_what_it_is_alone(
    arms, separate, monkeypatch, devices, abreast
):
    made = compiled(arms, devices=devices, abreast=abreast, monkeypatch=monkeypatch)
    assert made.wave == devices * abreast
    found = trained(made, arms)
    for one, alone in zip(found, separate, strict=True):
        chex.assert_trees_all_close(one, alone, rtol=1e-4, atol=1e-4)
    weights = [np.ravel(state.params["classifier"]["kernel"]) for state, _ in found]
    apart = min(np.abs(a - b).max() for a, b in itertools.pairwise(weights))
    assert apart > 0.1  # A thousand times what they may differ from themselves.


class Stub:
    """A program that needs 100 bytes and 50 for each arm, of them 20 its arguments."""

    def __init__(self, arms):
        self.argument_size_in_bytes = self.alias_size_in_bytes = 20 * arms
        self.output_size_in_bytes, self.temp_size_in_bytes = 20 * arms, 100 + 30 * arms

    def lower(self, *shapes):
        assert jax.tree.leaves(shapes)[0].shape[0] == self.argument_size_in_bytes // 20
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return self


def stubbed(monkeypatch, *, devices=1, **options):
    """A program of eight arms, 20 bytes each."""
    monkeypatch.setattr(
        population, "_lowered", lambda one, *sizes: Stub(sizes[0] * sizes[1])
    )
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    state = {"weights": np.zeros(5, np.float32)}
    return population.compiled(state, {}, None, arms=8, **options)


@pytest.mark.parametrize(
    ("free", "abreast", "arms", "need"),
    [
        (1000, 8, 8, 500),
        (499, 7, 7, 450),
        (300, 4, 4, 300),
        (160, 1, 1, 150),
        (169, 1, 1, 150),
        (170, 1, 2, 170),
        (10, 1, 1, 150),  # Not even one: it is tried.
    ],
)
def test_what_memory_does_not_hold_is_fewer_arms_abreast_and_fewer_at_a_time(
    monkeypatch, free, abreast, arms, need
):
    made = stubbed(monkeypatch, free=free, abreast=8)
    assert (made.abreast, made.arms, made.need) == (abreast, arms, need)
    said = f"{arms} of 8 arms at a time, in {-(-arms // abreast)} waves of {abreast} on"
    assert str(made).startswith(said)
    parts = -(-8 // arms)
    fits = "fits" if parts == 1 else f"doesn't fit, split into {parts} parts"
    fits += ", and may be more than there is" if need > free else ""
    assert str(made).endswith(f": {fits}")
    assert str(made._replace(free=math.inf)).endswith("free: unknown: taken to fit")


@pytest.mark.parametrize(
    ("devices", "abreast", "step"),
    [(1, 2, 40), (2, 1, 20)],  # Waves of two arms.
)
def test_states_beside_the_computed_wave_are_counted(
    monkeypatch, devices, abreast, step
):
    for free, arms in ((200 + step - 1, 2), (200 + 2 * step, 6)):
        made = stubbed(monkeypatch, devices=devices, abreast=abreast, free=free)
        assert (made.arms, made.need) == (arms, 200 + (arms // 2 - 1) * step)
    made = stubbed(monkeypatch, devices=devices, abreast=abreast, free=math.inf)
    assert made.arms == 8


def test_a_device_with_statistics_is_asked_for_its_free_memory(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert population.free_memory() == pytest.approx(60)


def test_the_host_s_memory_is_shared_by_its_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    one = population.free_memory()
    monkeypatch.setattr(jax, "local_device_count", lambda: 1000)
    assert population.free_memory() < one / 500
