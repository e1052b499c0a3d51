"""Arms that share one program: what `commands.train` does to each, done to all at once."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from medjax import tasks
from medjax.commands import train as commands
from medjax.config import Config, as_json
from medjax.data import loader
from medjax.errors import InputError
from medjax.tasks import parts as model
from medjax.tasks.task import Run
from medjax.training import devices, population
from medjax.training import population as program
from medjax.training.checkpoint import Checkpoints
from medjax.training.population import Outcome
from medjax.training.step import State

STOPPED = Outcome(finished=False)  # And saved.
# What arms of one program may differ in: all this makes other arrays, other orders of
# the images or other reports, and never other code.
FREE = ("seed", "explore", "imbalance", "resampling", "split", "evaluation")
FREE_NUMBERS = {
    "optim": ("learning_rate", "weight_decay", "ema"),
    "transfer": ("decay", "every"),
    "adapt": ("weight",),
}


def groups(configs: list[Config]) -> list[list[int]]:
    """Which arms can share one program.

    Args:
      configs: of the arms.

    Returns:
      Their numbers, each once, in the order of the first of each group. Alone stands
      what has no steps of this kind, see `alone`, or agrees with no other.
    """
    found: dict[Any, list[int]] = {}
    for number, config in enumerate(configs):
        common = number if alone(config) else _common(config)
        found.setdefault(common, []).append(number)
    return list(found.values())


def alone(config: Config) -> str:
    """Why a run can't be an arm among others; '' where it can."""
    if config.transfer.mode == "features":
        return "transfer.mode='features' has no steps"
    return ""


def _common(config: Config) -> str:
    """What all arms of a program have in their configs, as text."""
    asked = as_json(config)
    for name in FREE:
        asked.pop(name, None)
    for section, names in FREE_NUMBERS.items():
        for name in names:
            asked[section].pop(name, None)
    for name, numbers in model.strengths(config).items():
        for number in numbers:
            asked["augment"][name].pop(number)
    asked["loss"] = _without_numbers(asked["loss"])
    return json.dumps(asked, sort_keys=True)


def _without_numbers(value: Any) -> Any:
    """Plain data without its numbers; a list keeps its length, which is a shape."""
    if isinstance(value, dict):
        return {name: _without_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_numbers(each) for each in value]
    return None if isinstance(value, int | float) else value


def use_cores(configs: list[Config]) -> None:
    """Makes a JAX device of each core of a CPU, for an arm each; before JAX begins.

    There are no more devices than arms, and as many as can share the batch of each
    that is trained alone.
    """
    batches = (config.train.batch for config in configs)
    devices.use_cores(*batches, most=len(configs))


def train(configs: list[Config], folders: list[Path]) -> list[Outcome]:
    """Trains arms, or goes on training them, and reports their test splits.

    Each folder gets what `commands.train` leaves there, and what an arm learns is what
    it learns in a run of its own: its order of the images, its keys, its steps. What is
    an arm's own fault, a mistake in its config or a diverged training, ends that arm
    alone; what a program can't do ends the arms of that program.

    Args:
      configs: of the arms.
      folders: of the arms.

    Returns:
      What became of each arm. After SIGTERM or Ctrl-C those that haven't finished are
      saved, and the same call goes on with them.

    Raises:
      InputError: two arms have one folder.
    """
    if len({folder.absolute() for folder in folders}) != len(configs):
        raise InputError(
            f"{len(configs)} arms and {len(set(folders))} folders: give each its own"
        )
    outcomes = [STOPPED] * len(configs)
    for group in groups(configs):
        arms = (
            [configs[number] for number in group],
            [folders[number] for number in group],
        )
        several = len(group) > 1 and jax.process_count() == 1
        found = _together(*arms) if several else list(map(_alone, *arms))
        for number, outcome in zip(group, found, strict=True):
            outcomes[number] = outcome
        if STOPPED in found:
            break
    return outcomes


def _alone(config: Config, folder: Path) -> Outcome:
    """Trains an arm as a run of its own."""
    print(f"alone: {folder}: {alone(config) or 'no other arm shares its program'}")
    try:
        return Outcome(commands.train(config, folder))
    except Exception as error:  # noqa: BLE001 A bug of one arm must not stop the rest.
        return population.failed(error)


class _Begun(NamedTuple):
    """An arm on its way: its run, and how far that is."""

    fit: Run
    checkpoints: Checkpoints
    start: int
    state: State
    position: dict | None


def _together(configs: list[Config], folders: list[Path]) -> list[Outcome]:
    """Trains arms of one group: those that are equally far, in one program."""
    outcomes = [STOPPED] * len(configs)
    begun: dict[int, _Begun] = {}
    with contextlib.ExitStack() as stack:
        for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            print(f"arm {number + 1} of {len(configs)}: {folder}")
            try:
                begun[number] = _begin(config, folder, stack)
            except Exception as error:  # noqa: BLE001 As above.
                outcomes[number] = population.failed(error)
        for start in sorted({arm.start for arm in begun.values()}):
            even = [number for number, arm in begun.items() if arm.start == start]
            try:
                found = _train([begun[number] for number in even])
            except Exception as error:  # noqa: BLE001 Of these arms, not of all.
                found = [population.failed(error)] * len(even)
            for number, outcome in zip(even, found, strict=True):
                outcomes[number] = outcome
            if STOPPED in found:
                break
    for number, arm in begun.items():
        if outcomes[number].finished:
            outcomes[number] = _finish(arm.fit)
    return outcomes


def _begin(config: Config, folder: Path, stack: contextlib.ExitStack) -> _Begun:
    """What comes before the first step, or before the next one."""
    fit = tasks.of(config).begin(config, folder, shards=1)
    fit = fit._replace(state=jax.device_get(fit.state))  # Devices hold few of them.
    checkpoints = stack.enter_context(fit.checkpoints)
    if not checkpoints.steps:
        return _Begun(fit, checkpoints, 0, fit.state, None)
    return _Begun(fit, checkpoints, *checkpoints.restore(fit.state))


def _finish(fit: Run) -> Outcome:
    """What follows the last step."""
    print(f"arm: {fit.folder}")
    try:
        commands.finish(fit)
    except Exception as error:  # noqa: BLE001 As above.
        return population.failed(error)
    return Outcome(finished=True)


def _train(arms: list[_Begun]) -> list[Outcome]:
    """Trains arms that are equally far, as many at a time as memory holds."""
    first, schedule = arms[0], model.schedule(arms[0].fit.config)
    key = schedule.pop("key")
    if first.start >= schedule["steps"]:
        return [Outcome(finished=True)] * len(arms)
    with _streams(arms[:1]) as (streams, _):
        batch = {name: rows[0] for name, rows in next(streams[0]).items()}
    parts = first.fit.step_parts
    began = time.perf_counter()  # A run alone compiles within the time it writes down.
    made = program.compiled(first.state, batch, key, arms=len(arms), **parts)
    before = (time.perf_counter() - began) / len(arms)
    print(f"population: {made}")
    outcomes: list[Outcome] = []
    while len(outcomes) < len(arms):
        some = arms[len(outcomes) : len(outcomes) + made.arms]
        with _streams(some) as (streams, which):
            found = population.fit(
                list(map(_arm, some, which)),
                program=made,
                streams=streams,
                start=first.start,
                before=before,
                **schedule,
            )
        outcomes += found
        if STOPPED in found:
            outcomes += [STOPPED] * (len(arms) - len(outcomes))
    return outcomes


def _arm(begun: _Begun, stream: int) -> population.Arm:
    fit = begun.fit
    return population.Arm(
        name=fit.folder.name,
        workdir=fit.folder,
        state=begun.state,
        key=model.schedule(fit.config)["key"],
        stream=stream,
        evaluate=fit.validate,
        checkpoints=begun.checkpoints,
    )


@contextlib.contextmanager
def _streams(
    arms: list[_Begun],
) -> Iterator[tuple[list[loader.TrainBatches], list[int]]]:
    """The training data of arms, and which of them is whose.

    Arms that see the same images in the same order share a stream.
    """
    found: dict[bytes, loader.TrainBatches] = {}
    which = []
    for arm in arms:
        fit = arm.fit
        order = fit.order
        if order not in found:
            found[order] = fit.batches(on_host=True)
            if arm.position is not None:
                found[order].set_state(arm.position)
        which.append([*found].index(order))
    try:
        yield [*found.values()], which
    finally:
        for stream in found.values():
            stream.close()
