import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import InputError
from medjax.training import journal, loop
from medjax.training.checkpoint import Checkpoints


class Counter:
    """Batches that are their own number, with a position."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return {"id": np.full((1, 4), self.position)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def fit(
    workdir,
    *,
    stop_at=None,
    stop_by=signal.SIGTERM,
    nan_at=None,
    steps=10,
    seen=None,
    evaluate_every=4,
    save_minutes=0.0,
    saved=None,
):
    """A run whose state is a hash of every batch it has seen, in order."""

    def step(state, batch, key):
        number = int(batch["id"][0, 0])
        if saved is not None:
            saved.append(checkpoints.steps[-1:])
        if seen is not None:
            seen.append(number)
        if number == stop_at:
            os.kill(os.getpid(), stop_by)
        state = {"hash": jnp.asarray(state["hash"]) * 3 % 9973 + number}
        loss = jnp.nan if number == nan_at else 1.0 / number
        return state, {"loss": jnp.asarray(loss), "grad_norm": jnp.ones(())}

    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        complete = loop.fit(
            {"hash": jnp.ones((), jnp.int32)},
            workdir=workdir,
            steps=steps,
            step=step,
            batches=Counter(),
            evaluate=lambda state: {"auroc": 0.5 + float(state["hash"]) / 1e5},
            checkpoints=checkpoints,
            key=jax.random.key(0),
            log_every=2,
            evaluate_every=evaluate_every,
            save_minutes=save_minutes,
        )
        last = checkpoints.restore({"hash": jnp.ones((), jnp.int32)})
    return complete, last


def lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7, 9])
def test_a_stopped_run_ends_as_an_uninterrupted_one(tmp_path, stop_at):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    complete, whole = fit(tmp_path / "whole")
    assert complete
    seen = []
    complete, stopped = fit(tmp_path / "parts", stop_at=stop_at, seen=seen)
    assert not complete
    assert stopped.step == stop_at
    complete, parts = fit(tmp_path / "parts", seen=seen)
    assert complete
    assert seen == list(range(1, 11))
    assert parts.step == whole.step == 10
    assert parts.data == whole.data == {"position": 10}
    np.testing.assert_array_equal(parts.state["hash"], whole.state["hash"])
    rows = [
        [
            {name: line.get(name) for name in ("step", "loss", "validation_auroc")}
            for line in journal.read(tmp_path / folder / "metrics.jsonl")
        ]
        for folder in ("whole", "parts")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 8


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(0.0, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]), (1e-9, [0, 0, 2, 2, 4, 4, 6, 6, 8, 8])],
)
def test_a_checkpoint_is_saved_by_minutes_at_logged_steps(tmp_path, minutes, expected):
    saved = []
    _, last = fit(tmp_path, save_minutes=minutes, saved=saved)
    assert [max(steps, default=0) for steps in saved] == expected
    assert last.step == 10


def test_a_finished_run_is_not_trained_again(tmp_path):
    fit(tmp_path)
    seen = []
    assert fit(tmp_path, seen=seen)[0]
    assert seen == []


def test_lines_that_are_computed_again_are_not_written_twice(tmp_path):
    fit(tmp_path)
    written = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 3}\n{"step": 14, "lo')  # As a crash leaves it.
    fit(tmp_path)
    assert lines(tmp_path) == written


def test_the_log_holds_means_and_rates(tmp_path):
    fit(tmp_path)
    losses = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    expected = [(1 / i + 1 / (i + 1)) / 2 for i in (1, 3, 5, 7, 9)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for line in lines(tmp_path):
        if "loss" in line:
            rate = line["images_per_second"] / line["steps_per_second"]
            np.testing.assert_allclose(rate, 4)


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"step 7: .*loss nan.*checkpoint is step 4"):
        fit(tmp_path, nan_at=7)
    assert Checkpoints(tmp_path / "checkpoints").steps == [4]


def test_divergence_is_never_saved_by_a_stop(tmp_path):
    with pytest.raises(InputError, match=r"step 3: .*loss nan.*none was saved"):
        fit(tmp_path, nan_at=3, stop_at=3)
    assert Checkpoints(tmp_path / "checkpoints").steps == []


STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2]


@pytest.mark.parametrize("stop", STOPS)
def test_whoever_asks_for_an_end_everything_is_saved(tmp_path, stop):
    complete, _ = fit(tmp_path, stop_at=3, stop_by=stop)
    assert not complete
    assert Checkpoints(tmp_path / "checkpoints").steps == [3]


def test_the_signals_are_given_back(tmp_path):
    before = [signal.getsignal(each) for each in STOPS]
    fit(tmp_path)
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_run_can_be_trained_outside_the_main_thread(tmp_path):
    with ThreadPoolExecutor() as threads:
        complete, _ = threads.submit(fit, tmp_path).result()
    assert complete
