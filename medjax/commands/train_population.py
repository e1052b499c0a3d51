"""Train runs that differ in numbers alone as one program: begin, fit, finish together.

Each folder gets what `train` leaves there, and an arm learns as in a run alone: the same
order of the images, the same keys and steps. A mistake in an arm's config or a diverged
training ends that arm alone; an error of a program ends all its arms.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from medjax import tasks
from medjax.commands import train
from medjax.config import Config, affecting
from medjax.tasks import parts
from medjax.training import devices, population
from medjax.training.population import Arm, Outcome, failed

STOPPED_EARLY = Outcome(finished=False)  # And saved.
Result = TypeVar("Result")


def _attempt(work: Callable[..., Result], *arguments: Any) -> Result | Outcome:
    """Returns the work's result or the outcome of its error: it mustn't stop the rest."""
    try:
        return work(*arguments)
    except Exception as error:  # noqa: BLE001 A bug of one arm must not stop the rest.
        return failed(error)


def train_arms(configs: list[Config], folders: list[Path]) -> list[Outcome]:
    """Trains or resumes arms, and reports their test splits.

    Returns what became of each arm. After SIGTERM or Ctrl-C the unfinished arms are
    saved, and the same call resumes them.
    """
    outcomes = [STOPPED_EARLY] * len(configs)
    for group in groups(configs):
        arms = [configs[n] for n in group], [folders[n] for n in group]
        several = len(group) > 1 and jax.process_count() == 1
        ended = _together(*arms) if several else list(map(_alone, *arms))
        for number, outcome in zip(group, ended, strict=True):
            outcomes[number] = outcome
        if STOPPED_EARLY in ended:
            break
    return outcomes


def groups(configs: list[Config]) -> list[list[int]]:
    """The numbers of the arms that can share one program."""
    by_program: dict[Any, list[int]] = {}
    for number, config in enumerate(configs):
        program = number if parts.apart(config) else _program(config)
        by_program.setdefault(program, []).append(number)
    return list(by_program.values())


def _program(config: Config) -> str:
    """All fields that the compiled update depends on, as text."""
    fields = affecting(config, "program")
    for name, numbers in parts.strengths(config).items():
        for number in numbers:
            fields["augment"][name].pop(number)
    # Without numbers, but a list keeps its length, which is a shape.
    fields["loss"] = jax.tree.map(
        lambda leaf: None if isinstance(leaf, int | float) else leaf, fields["loss"]
    )
    return json.dumps(fields, sort_keys=True)


def use_cores(configs: list[Config]) -> None:
    """Makes JAX devices of a CPU's cores, one an arm at most; before JAX begins.

    As many as can share the batch of each arm that is trained alone.
    """
    devices.use_cores(*map(parts.batch, configs), most=len(configs))


def _alone(config: Config, folder: Path) -> Outcome:
    """Trains an arm as a run of its own."""
    why = parts.apart(config) or "no other arm shares its program"
    print(f"alone: {folder}: {why}")
    complete = _attempt(train.train, config, folder)
    return complete if isinstance(complete, Outcome) else Outcome(complete)


def _together(configs: list[Config], folders: list[Path]) -> list[Outcome]:
    """Trains arms of one group: those with the same number of updates, in one program."""
    outcomes = [STOPPED_EARLY] * len(configs)
    arms: dict[int, Arm] = {}
    with contextlib.ExitStack() as stack:
        for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            print(f"arm {number + 1} of {len(configs)}: {folder}")
            begun = _attempt(_begin, config, folder, stack)
            if isinstance(begun, Outcome):
                outcomes[number] = begun
            else:
                arms[number] = begun
        for start in sorted({arm.start for arm in arms.values()}):
            level = {number: arm for number, arm in arms.items() if arm.start == start}
            ended = _attempt(_fit, [*level.values()])
            if isinstance(ended, Outcome):  # The program's error, of all these arms.
                ended = [ended] * len(level)
            for number, outcome in zip(level, ended, strict=True):
                outcomes[number] = outcome
            if STOPPED_EARLY in ended:
                break
    for number, arm in arms.items():
        if outcomes[number].finished:
            print(f"arm: {arm.run.folder}")
            outcomes[number] = _attempt(train.finish, arm.run) or outcomes[number]
    return outcomes


def _begin(config: Config, folder: Path, stack: contextlib.ExitStack) -> Arm:
    """Begins or resumes a run; its batch stays on one device."""
    run = tasks.of(config).begin(config, folder, shards=1)
    checkpoints = stack.enter_context(run.checkpoints)
    common = run, parts.schedule(run.config)["key"], checkpoints
    if not checkpoints.steps:
        return Arm(*common, 0, run.state)
    return Arm(*common, *checkpoints.restore(run.state))


def _fit(arms: list[Arm]) -> list[Outcome]:
    """Trains arms with the same number of updates, as many at a time as memory holds."""
    first, schedule = arms[0], parts.schedule(arms[0].run.config)
    del schedule["key"]
    if first.start >= schedule["steps"]:
        return [Outcome(finished=True)] * len(arms)
    with _streams(arms[:1]) as streams:
        batch = next(streams[first.run.order])
    batch = {name: rows[0] for name, rows in batch.items()}
    began = time.perf_counter()  # A run alone also counts its compilation as its time.
    program = population.compiled(
        first.state, batch, first.key, arms=len(arms), **first.run.step_parts
    )
    schedule["before"] = (time.perf_counter() - began) / len(arms)
    print(f"population: {program}")
    outcomes: list[Outcome] = []
    while len(outcomes) < len(arms) and STOPPED_EARLY not in outcomes:
        part = arms[len(outcomes) : len(outcomes) + program.arms]
        with _streams(part) as streams:
            outcomes += population.fit(
                part, program=program, streams=streams, **schedule
            )
    return outcomes + [STOPPED_EARLY] * (len(arms) - len(outcomes))


@contextlib.contextmanager
def _streams(arms: list[Arm]) -> Iterator[dict[bytes, Any]]:
    """The training data of arms, by the runs' order: equal ones share a stream."""
    streams: dict[bytes, Any] = {}
    for arm in arms:
        if arm.run.order not in streams:
            streams[arm.run.order] = stream = arm.run.batches(on_host=True)
            if arm.position is not None:
                stream.set_state(arm.position)
    try:
        yield streams
    finally:
        for stream in streams.values():
            stream.close()
