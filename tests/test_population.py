import json
import os
import re
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.training import loop, population
from medjax.training.checkpoint import Checkpoints
from medjax.training.population import Outcome, Program

STEPS = 10


class Counter:
    """Batches that are their own number times a factor, with a position."""

    def __init__(self, factor=1):
        self.position, self.factor = 0, factor

    def __next__(self):
        self.position += 1
        return {"id": np.full((1, 4), self.position * self.factor)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def update(state, batch, key):
    """A hash of all batches and the key; its loss is NaN at one of them."""
    number = batch["id"].reshape(-1)[0]
    start = jax.random.randint(key, (), 0, 100)
    found = {"hash": state["hash"] * 3 % 9973 + number + start, "bad": state["bad"]}
    loss = jnp.where(number == state["bad"], jnp.nan, 1.0 / number)
    return found, {"loss": loss, "grad_norm": jnp.ones(())}


def state_of(arm, bad=-1):
    return {"hash": np.int32(arm), "bad": np.int32(bad)}


def evaluate(state):
    return {"auroc": 0.5 + float(state["hash"]) / 1e5}


COMMON = {"steps": STEPS, "log_every": 2, "evaluate_every": 4, "save_minutes": 0.0}


def alone(folder, arm, factor):
    """The arm as a run of its own; its last checkpoint."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        loop.fit(
            state_of(arm),
            workdir=folder,
            step=update,
            batches=Counter(factor),
            evaluate=evaluate,
            checkpoints=checkpoints,
            key=jax.random.key(arm),
            **COMMON,
        )
        return checkpoints.restore(state_of(arm))


def broken(state):
    return {}["auroc"]


def together(
    folder, number, *, start=0, stop_at=None, bad=None, judges=None, devices=2
):
    """So many arms, two of them with each stream, on so many devices."""
    calls = []

    def step(*arguments):
        calls.append(1)
        if stop_at is not None and len(calls) == stop_at * -(-number // devices):
            os.kill(os.getpid(), signal.SIGTERM)
        return jax.vmap(update)(*arguments)

    streams = {n: Counter(1 + n) for n in range(-(-number // 2))}
    arms = []
    for arm in range(number):
        workdir = folder / f"arm{arm}"
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(workdir / "checkpoints")
        state = state_of(arm, bad=(bad or {}).get(arm, -1))
        if start:
            _, state, position = checkpoints.restore(state)
            streams[arm // 2].set_state(position)
        run = types.SimpleNamespace(
            folder=workdir,
            order=arm // 2,
            validate=(judges or {}).get(arm, evaluate),
        )
        key = jax.random.key(arm)
        arms.append(population.Arm(run, key, checkpoints, start, state))
    program = Program(step, devices, 1, number, number, 0, 0)
    found = population.fit(arms, program=program, streams=streams, **COMMON)
    saved = [arm.checkpoints for arm in arms if arm.checkpoints.steps]
    ends = [each.restore(state_of(0)) for each in saved]
    for arm in arms:
        arm.checkpoints.__exit__()
    return found, ends


def lines(folder, names):
    """What a run wrote of these, and when."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(x).items() if k in names} for x in text]
    return [
        (json.loads(x)["step"], row) for x, row in zip(text, rows, strict=True) if row
    ]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """Five runs: their folders and last checkpoints."""
    found = []
    for arm in range(5):
        folder = tmp_path_factory.mktemp("alone")
        found.append((folder, alone(folder, arm, 1 + arm // 2)))
    return found


def assert_same(folder, ends, separate, arms, names=("loss", "validation_auroc")):
    for arm in arms:
        own, end = separate[arm]
        assert (ends[arm].step, ends[arm].data) == (end.step, end.data)
        assert ends[arm].state["hash"] == end.state["hash"]
        assert lines(folder / f"arm{arm}", names) == lines(own, names)


@pytest.mark.parametrize(
    "devices",
    [
        2,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_an_arm_is_trained_logged_and_saved_as_a_run_of_its_own(
    tmp_path, separate, devices
):
    """By two streams and more, in waves of which the last isn't full."""
    found, ends = together(tmp_path, 5, devices=devices)
    assert found == [Outcome(finished=True)] * 5
    assert_same(tmp_path, ends, separate, range(5))
    assert len({int(end.state["hash"]) for end in ends}) == 5


def test_a_stopped_population_is_saved_and_goes_on_from_there(tmp_path, separate):
    found, ends = together(tmp_path, 4, stop_at=3)
    assert found == [Outcome(finished=False)] * 4
    assert [end.step for end in ends] == [3] * 4
    found, ends = together(tmp_path, 4, start=3)
    assert found == [Outcome(finished=True)] * 4
    assert_same(tmp_path, ends, separate, range(4), names=["validation_auroc"])


def test_a_stopped_arm_goes_on_as_a_run_of_its_own(tmp_path, separate):
    together(tmp_path, 3, stop_at=7)
    end = alone(tmp_path / "arm2", 2, 2)
    assert_same(tmp_path, {2: end}, separate, [2], names=["validation_auroc"])


def test_an_arm_that_diverges_fails_alone(tmp_path, separate):
    found, ends = together(tmp_path, 3, bad={1: 7})
    assert found[0] == found[2] == Outcome(finished=True)
    assert not found[1].finished
    assert re.search("step 7: .*loss nan.*checkpoint is step 4", found[1].error)
    assert ends[1].step == 4
    assert_same(tmp_path, ends, separate, [0, 2])


def test_an_arm_with_a_bug_fails_alone_and_says_where(tmp_path, separate):
    found, ends = together(tmp_path, 3, judges={2: broken})
    assert found[:2] == [Outcome(finished=True)] * 2
    assert (found[2].finished, found[2].error) == (False, "KeyError: 'auroc'")
    assert "Traceback" in found[2].details and "in broken" in found[2].details
    assert_same(tmp_path, ends, separate, [0, 1])


def test_a_population_ends_when_all_its_arms_have_failed(tmp_path):
    found, ends = together(tmp_path, 2, bad={0: 5, 1: 6})
    assert all("training diverged" in outcome.error for outcome in found)
    assert [end.step for end in ends] == [4, 4]
