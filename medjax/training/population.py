"""The step of many arms, compiled for as many of them at once as memory holds.

Runs whose states differ in arrays alone share one program. Each device computes a few
of them at a time; these arms are a wave. The states of further waves stay on the
devices as well, as far as there is memory.
"""

import contextlib
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree

from medjax.data.loader import Batch
from medjax.errors import InputError
from medjax.training import loop, step
from medjax.training.checkpoint import Checkpoints
from medjax.training.journal import Journal
from medjax.training.step import State

HEADROOM = 0.1  # Share of an accelerator's memory.


class Program(NamedTuple):
    """A compiled step of arms, (state, batch, key) [A, ...] -> (state, scalars)."""

    step: Callable
    devices: int  # Over which the arms are spread.
    abreast: int  # Arms on each of them at once.
    arms: int  # Whose states stay on the devices; no more are trained at a time.
    of: int  # Arms that there are, trained in parts of `arms`, one after the other.
    need: float  # Bytes of each device's memory for that.
    free: float  # Those that nobody used before; inf: unknown.

    @property
    def wave(self) -> int:
        """Arms that are computed at once."""
        return self.devices * self.abreast

    def __str__(self) -> str:
        free = "unknown" if math.isinf(self.free) else f"{self.free / 1e9:.1f} GB"
        parts, waves = math.ceil(self.of / self.arms), math.ceil(self.arms / self.wave)
        fits = "fits" if parts == 1 else f"doesn't fit, split into {parts} parts"
        if math.isinf(self.free):
            fits = "taken to fit"
        if self.need > self.free:  # Less than one wave can't be tried.
            fits += ", and may be more than there is"
        return (
            f"{self.arms} of {self.of} arms at a time, in {waves} waves of {self.wave} "
            f"on {self.devices} devices: {self.need / 1e9:.2f} GB on each, free: {free}: "
            f"{fits}"
        )


def compiled(
    state: State,
    batch: Batch,
    key: Array,
    *,
    arms: int,
    abreast: int | None = None,
    free: float | None = None,
    **parts: Any,
) -> Program:
    """Compiles the step of so many arms, or of as many as there is memory for.

    On a CPU a device has one arm at a time, and the same program runs for one wave of
    arms after the other. Side by side they'd be grouped convolutions and batches of
    products, for which XLA has no library there: an arm's update would take twice as
    long by vmap, and four times in a loop over the arms.

    Args:
      state, batch, key: of one arm, [B, ...] rows; the others' have the same shapes.
      abreast: arms on a device at most; None: one on a CPU, else all.
      free: bytes of each device's memory; None: as `free_memory` finds.
      parts: of step.train_step.
    """
    devices = min(arms, jax.local_device_count())
    free = free_memory() if free is None else free
    if abreast is None:
        on_cpu = jax.default_backend() == "cpu"
        abreast = 1 if on_cpu else math.ceil(arms / devices)
    per_arm = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    while True:
        program = _lowered((state, batch, key), devices, abreast, **parts).compile()
        first = _bytes(program.memory_analysis())
        if first <= free or abreast == 1:
            break
        abreast = max(1, min(abreast - 1, int(abreast * free / first)))
    # One wave is tried, whether it fits or not. States of more waves stay beside it.
    more = math.floor(min(max(free - first, 0) / (per_arm * abreast), arms))
    number = min(arms, devices * abreast * (1 + more))
    waves = math.ceil(number / (devices * abreast))
    need = first + (waves - 1) * abreast * per_arm
    return Program(program, devices, abreast, number, arms, need, free)


def _lowered(arm: tuple, devices: int, abreast: int, **parts: Any):
    """The step of so many arms, before it is compiled; `arm` has one's arguments."""
    places, arms = step.by_arm(devices), devices * abreast
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((arms, *x.shape), x.dtype, sharding=places), arm
    )
    return step.compile_arms(devices=devices, **parts).lower(*shapes)


def free_memory() -> float:
    """Bytes of each device of this host that nobody uses; inf where it doesn't say.

    Of an accelerator a tenth is left free: for the arms' predictions, and for the gaps
    between arrays, of which the compiler's sum knows nothing.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return (1 - HEADROOM) * stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if jax.default_backend() != "cpu" or not meminfo.exists():
        return math.inf
    lines = (line.split() for line in meminfo.read_text().splitlines())
    (available,) = (int(line[1]) for line in lines if line[0] == "MemAvailable:")
    return available * 1024 / jax.local_device_count()


def _bytes(memory) -> int:
    """Counts a compiled program's bytes; donated arguments are its results as well."""
    sizes = ("argument", "output", "temp")
    total = sum(getattr(memory, f"{name}_size_in_bytes") for name in sizes)
    return total - memory.alias_size_in_bytes


class Arm(NamedTuple):
    """A begun run, and how far it is."""

    run: Any  # tasks.task.Run.
    key: Array
    checkpoints: Checkpoints
    start: int  # Updates behind the state.
    state: State
    position: dict | None = None  # In the training data; None before the first update.


class Outcome(NamedTuple):
    """What became of an arm: finished, failed with an error, or stopped and saved."""

    finished: bool
    error: str | None = None
    details: str = ""  # The traceback of an error that is no mistake of the user's.


def failed(error: Exception) -> Outcome:
    """Returns the outcome of an arm that raised this; call it where it is handled."""
    if isinstance(error, InputError):
        return Outcome(finished=False, error=str(error))
    line = f"{type(error).__name__}: {error}"
    return Outcome(finished=False, error=line, details=traceback.format_exc())


def fit(
    arms: Sequence[Arm],
    *,
    program: Program,
    streams: dict[bytes, Any],
    steps: int,
    log_every: int,
    evaluate_every: int,
    save_minutes: float,
    before: float = 0.0,
) -> list[Outcome]:
    """Trains at most `program.arms` to the last step, each as loop.fit would.

    An arm that diverges is given up; the others don't notice. After SIGTERM or Ctrl-C
    all others are saved.

    Args:
      arms: with the same number of updates behind them.
      streams: training data on the host, [1, B, ...] batches, by the runs' order.
      before: seconds that each arm cost before, its share of the compilation.
    """
    waves, at, due = _Waves(arms, program), arms[0].start, loop.Timer(save_minutes)
    journal = {"steps": steps, "start": at, "before": before}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(loop.stop_signal())
        runs = [
            _Run(arm, stack, bar=number == 0, sharing=len(arms), **journal)
            for number, arm in enumerate(arms)
        ]
        while at < steps and any(run.failure is None for run in runs):
            batches = {order: next(stream) for order, stream in streams.items()}
            waves.step(batches)
            at += 1
            stopping = stop()  # Once: a signal between two looks would save nothing.
            validates = at % evaluate_every == 0 or at == steps
            logs = validates or stopping or at % log_every == 0
            saves = validates or stopping or (logs and due())
            if logs:
                rows = batches[arms[0].run.order]["id"].size
                for run, scalars in zip(runs, waves.scalars(), strict=True):
                    run.attempt(at, run.log, scalars, rows)
            if saves:
                due.restart()
                positions = {k: stream.get_state() for k, stream in streams.items()}
                for run, state in zip(runs, waves.states(), strict=True):
                    save = run.judge if validates else run.arm.checkpoints.save
                    run.attempt(at, save, state, positions[run.arm.run.order])
                for run in runs:
                    run.meter.restart()
            if stopping and at < steps:
                for run in runs:
                    run.attempt(at, run.journal.say, loop.STOPPED)
                break
    return [run.failure or Outcome(finished=at >= steps) for run in runs]


class _Run:
    """An arm that is being trained, and what is written down of it."""

    def __init__(self, arm: Arm, stack: contextlib.ExitStack, **options: Any):
        self.arm = arm
        self.failure: Outcome | None = None
        journal = Journal(arm.run.folder, name=arm.run.folder.name, **options)
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
        state, validate = step.replicated(state), self.arm.run.validate
        loop.judge(at, state, position, validate, self.journal, self.arm.checkpoints)


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

    def step(self, batches: dict[bytes, Batch]) -> None:
        """One update of every arm, by a [1, B, ...] batch of each stream."""
        scalars = []
        for number, (wave, key) in enumerate(zip(self._waves, self._keys, strict=True)):
            batch = _stacked([batches[arm.run.order] for arm in wave])  # [A, 1, B, ...]
            batch = self._put(jax.tree.map(lambda x: x[:, 0], batch))
            self._states[number], values = self._step(self._states[number], batch, key)
            scalars.append(values)
        self._unread.append(scalars)
        if len(self._unread) > loop.AHEAD:
            jax.block_until_ready(self._unread[-loop.AHEAD - 1])

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
        trees = [
            jax.tree.map(lambda x: x[i], wave)  # noqa: B023 Called at once.
            for wave in map(jax.device_get, waves)
            for i in range(len(self._waves[0]))
        ]
        return trees[: self._number]


def _stacked(trees: Sequence[ArrayTree]) -> ArrayTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
