"""Many runs at once: those whose states differ in arrays alone share one program."""

import contextlib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree

from medjax.data.loader import Batch, TrainBatches
from medjax.errors import InputError
from medjax.training import loop, step
from medjax.training.checkpoint import Checkpoints
from medjax.training.journal import Journal
from medjax.training.program import Program
from medjax.training.step import State

AHEAD = 2  # Updates that the host may be ahead of the devices.


class Arm(NamedTuple):
    """One run of a population.

    name: what its lines are told by.
    workdir: of the run.
    state: after the update from which on it is trained.
    key: of the run.
    stream: number of the training data among the population's.
    evaluate: the validation metrics of a state, as for loop.fit.
    checkpoints: of the run.
    """

    name: str
    workdir: Path
    state: State
    key: Array
    stream: int
    evaluate: Callable[[State], dict[str, float]]
    checkpoints: Checkpoints


class Outcome(NamedTuple):
    """What became of an arm: finished, failed with an error, or stopped and saved.

    details: all that is known of the error where it is no mistake of the user's.
    """

    finished: bool
    error: str | None = None
    details: str = ""


def failed(error: Exception) -> Outcome:
    """What became of an arm that raised this; to be called where it is handled."""
    if isinstance(error, InputError):
        return Outcome(finished=False, error=str(error))
    line = f"{type(error).__name__}: {error}"
    return Outcome(finished=False, error=line, details=traceback.format_exc())


def fit(
    arms: Sequence[Arm],
    *,
    program: Program,
    streams: Sequence[TrainBatches],
    start: int,
    steps: int,
    log_every: int,
    evaluate_every: int,
    before: float = 0.0,
) -> list[Outcome]:
    """Trains arms to the last step, each as loop.fit would train it.

    An arm that diverges is given up; the others don't notice. After SIGTERM or Ctrl-C
    all others are saved.

    Args:
      arms: of the program, no more than it may have at a time.
      program: see `compiled`.
      streams: training data on the host, [1, B, ...] batches, see Arm.
      start: updates behind every arm's state.
      steps, log_every, evaluate_every: as for loop.fit.
      before: seconds that each arm cost before, its share of the compilation.

    Returns:
      What became of each arm.
    """
    waves, at = _Waves(arms, program), start
    journal = {"steps": steps, "start": start, "before": before}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(loop.stop_signal())
        runs = [
            _Run(arm, stack, bar=number == 0, sharing=len(arms), **journal)
            for number, arm in enumerate(arms)
        ]
        while at < steps and any(run.failure is None for run in runs):
            batches = [next(stream) for stream in streams]
            waves.step(batches)
            at += 1
            asked = stop()  # Once: a signal between two looks would save nothing.
            judged = at % evaluate_every == 0 or at == steps
            if judged or asked or at % log_every == 0:
                rows = batches[0]["id"].size
                for run, scalars in zip(runs, waves.scalars(), strict=True):
                    run.attempt(at, run.log, scalars, rows)
            if judged or asked:
                positions = [stream.get_state() for stream in streams]
                for run, state in zip(runs, waves.states(), strict=True):
                    save = run.judge if judged else run.save
                    run.attempt(at, save, state, positions[run.arm.stream])
                for run in runs:
                    run.meter.restart()
            if asked and at < steps:
                for run in runs:
                    run.attempt(at, run.journal.say, loop.STOPPED)
                break
    return [run.failure or Outcome(finished=at >= steps) for run in runs]


class _Run:
    """An arm that is being trained, and what is written down of it."""

    def __init__(
        self,
        arm: Arm,
        stack: contextlib.ExitStack,
        **shown: Any,
    ):
        self.arm = arm
        self.failure: Outcome | None = None
        journal = Journal(arm.workdir, name=arm.name, **shown)
        self.journal = stack.enter_context(journal)
        self.meter = loop.Meter(journal, arm.checkpoints)

    def attempt(self, at: int, work: Callable, *args) -> None:
        """Does what is to be done after an update; an error ends this run alone."""
        if self.failure is not None:
            return
        try:
            work(at, *args)
        except Exception as error:  # noqa: BLE001 A bug of one must not stop the rest.
            self.failure = failed(error)
            self.journal.say(at, f"failed: {self.failure.error}")

    def log(self, at: int, scalars: Sequence[dict], rows: int) -> None:
        """Takes the scalars of the last updates, up to this one."""
        for number, values in enumerate(scalars, at + 1 - len(scalars)):
            self.meter.add(number, values, rows=rows)
        self.meter.flush()

    def judge(self, at: int, state: State, position: dict) -> None:
        """Validates and saves the state."""
        loop.judge(
            at,
            step.replicated(state),
            position,
            evaluate=self.arm.evaluate,
            journal=self.journal,
            checkpoints=self.arm.checkpoints,
        )

    def save(self, at: int, state: State, position: dict) -> None:
        """Saves the state."""
        self.arm.checkpoints.save(at, state, position)


class _Waves:
    """The arms' states on the devices, a wave for each run of the program."""

    def __init__(self, arms: Sequence[Arm], program: Program):
        self._step, self._number = program.step, len(arms)
        self._places = step.by_arm(program.devices)
        left = -len(arms) % program.wave
        arms = [*arms, *[arms[-1]] * left]  # The last wave must be as wide.
        starts = range(0, len(arms), program.wave)
        self._waves = [arms[start : start + program.wave] for start in starts]
        self._states = [
            self._put(_stacked([jax.device_get(arm.state) for arm in wave]))
            for wave in self._waves
        ]
        self._keys = [
            self._put(jnp.stack([arm.key for arm in wave])) for wave in self._waves
        ]
        self._unread: list[list[dict]] = []

    def step(self, batches: Sequence[Batch]) -> None:
        """One update of every arm, by a [1, B, ...] batch of each stream."""
        scalars = []
        for number, (wave, key) in enumerate(zip(self._waves, self._keys, strict=True)):
            batch = _stacked([batches[arm.stream] for arm in wave])  # [A, 1, B, ...]
            batch = self._put(jax.tree.map(lambda x: x[:, 0], batch))
            self._states[number], found = self._step(self._states[number], batch, key)
            scalars.append(found)
        self._unread.append(scalars)
        if len(self._unread) > AHEAD:
            jax.block_until_ready(self._unread[-AHEAD - 1])

    def scalars(self) -> list[list[dict]]:
        """Each arm's scalars of the updates since they were read last."""
        steps = [self._split(scalars) for scalars in self._unread]
        self._unread = []
        return list(zip(*steps, strict=True))

    def states(self) -> list[State]:
        """Each arm's state now, on the host."""
        return self._split(self._states)

    def _put(self, tree: ArrayTree) -> ArrayTree:
        return jax.device_put(tree, self._places)

    def _split(self, waves: Sequence[ArrayTree]) -> list[ArrayTree]:
        """[A, ...] of each wave as the tree of each arm."""
        found = [
            jax.tree.map(lambda x: x[i], wave)  # noqa: B023 Called at once.
            for wave in map(jax.device_get, waves)
            for i in range(len(self._waves[0]))
        ]
        return found[: self._number]


def _stacked(trees: Sequence[ArrayTree]) -> ArrayTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
