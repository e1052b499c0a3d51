"""The training loop: step, log, validate, save; until done, stopped or diverged."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from chex import Array

from medjax.errors import InputError
from medjax.training import devices
from medjax.training.checkpoint import Checkpoints
from medjax.training.journal import Journal
from medjax.training.step import State, everywhere, replicated

# Steps that the host may issue before the devices have done the first of them. More
# would only hold more batches in memory, and collectives of CPU devices may deadlock.
AHEAD = 2
STOPPED = "stopped: saved, the same command goes on from here"


def fit(
    state: State,
    *,
    workdir: Path,
    steps: int,
    step: Callable,
    batches: Any,
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    key: Array,
    log_every: int,
    evaluate_every: int,
    save_minutes: float,
) -> bool:
    """Trains from the latest checkpoint, or from the start, to the last step.

    Args:
      state: before the first update.
      step: from compile_step; its first argument is donated.
      batches: of loader.train_batches; their position is saved with the state.
      evaluate: the validation metrics, of which the first chooses the best checkpoint;
        {} if nobody validates.
      log_every: steps between two lines of the workdir's metrics.jsonl.
      evaluate_every: steps between two validations, each with a checkpoint.
      save_minutes: after which a logged step has a checkpoint too; 0: never.

    Returns:
      Whether the run is complete: False after SIGTERM, SIGUSR2 or Ctrl-C, with
      everything saved.

    Raises:
      InputError: the loss or the gradient isn't finite.
    """
    start = 0
    if checkpoints.steps:
        start, state, position = checkpoints.restore(state)
        batches.set_state(position)
    # Placed as the step returns it: a state on the host would compile a second program.
    state = everywhere(state)
    with Journal(workdir, steps=steps, start=start) as journal, stop_signal() as stop:
        meter, due = Meter(journal, checkpoints), Timer(save_minutes)
        for number in range(start + 1, steps + 1):
            batch = next(batches)
            state, scalars = step(state, batch, key)
            meter.add(number, scalars, rows=batch["id"].size)
            logs = number % log_every == 0
            validates = number % evaluate_every == 0
            # Read once: a signal may come at any time.
            stopping = stop() or devices.all_stop(number)
            # Hosts agree only at steps where they wait anyway: to ask costs a step.
            saves = (logs or validates) and devices.any_of_us(due())
            validates = validates or number == steps
            if logs or validates or stopping:
                meter.flush(in_part=not (logs or validates))
            if validates:
                position = batches.get_state()
                judge(number, state, position, evaluate, journal, checkpoints)
                meter.restart()
            elif stopping or saves:
                checkpoints.save(number, state, batches.get_state())
            if validates or saves or stopping:
                due.restart()
                journal.store()
            if stopping and number < steps:
                journal.say(number, STOPPED)
                return False
    return True


def judge(
    number: int,
    state: State,
    position: dict,
    evaluate: Callable[[State], dict[str, float]],
    journal: Journal,
    checkpoints: Checkpoints,
) -> None:
    """Validates the state after update `number`, records the metrics, and saves it.

    `position` is the place in the training data; the others are as in `fit`.
    """
    scores = evaluate(replicated(state))
    if scores:
        journal.write(number, {f"validation_{k}": v for k, v in scores.items()})
    facts = [f"validation {k} {v:.4f}" for k, v in scores.items()]
    journal.say(number, "  ".join(facts) or "saved")
    score = next(iter(scores.values()), None)
    checkpoints.save(number, state, position, score=score)


class Timer:
    """Says whether so many minutes have passed; with 0 it never does."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes or math.inf
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def __call__(self) -> bool:
        return time.monotonic() - self._start >= self._seconds


class Meter:
    """Collects the steps' scalars while the device runs ahead, and reads them later."""

    def __init__(self, journal: Journal, checkpoints: Checkpoints):
        self._journal, self._checkpoints = journal, checkpoints
        self.restart()
        self._loss = journal.begun.get("window_loss", 0.0)
        self._steps = journal.begun.get("window_steps", 0)

    def restart(self) -> None:
        """Forgets the scalars, and starts the clock again."""
        self._unread: list[tuple[int, dict]] = []
        self._loss, self._steps = 0.0, 0  # Of the line, read by an earlier process.
        self._rows, self._since = 0, time.perf_counter()

    def add(self, number: int, scalars: dict[str, Array], *, rows: int) -> None:
        """Takes one step's scalars; waits only for those of AHEAD steps before."""
        self._unread.append((number, scalars))
        if len(self._unread) > AHEAD:
            jax.block_until_ready(self._unread[-AHEAD - 1])
        self._rows += rows

    def flush(self, *, in_part: bool = False) -> None:
        """Waits for the device, checks every step, and writes one line.

        A line in part is of a run that stops; when resumed, it goes on with the line.

        Raises:
          InputError: the loss or the gradient isn't finite.
        """
        if not self._unread:
            return
        values = [(number, jax.device_get(scalars)) for number, scalars in self._unread]
        for number, scalars in values:
            if not all(math.isfinite(value) for value in scalars.values()):
                self._refuse(number, scalars)
        seconds = time.perf_counter() - self._since
        number, last = values[-1]
        line = {name: float(value) for name, value in last.items()}
        loss = sum((float(each["loss"]) for _, each in values), self._loss)
        count = self._steps + len(values)
        line["loss"] = loss / count
        if in_part:
            line |= {"window_loss": loss, "window_steps": count}
        line["images_per_second"] = self._rows / seconds
        line["steps_per_second"] = len(values) / seconds
        self._journal.write(number, line)
        rate = f"{line['images_per_second']:.0f} images/s"
        self._journal.show(number, f"{rate}  loss {line['loss']:.4f}")
        self.restart()

    def _refuse(self, number: int, scalars: dict) -> None:
        what = ", ".join(f"{name} {float(value)}" for name, value in scalars.items())
        last = self._checkpoints.steps[-1:]
        good = (
            f"the last good checkpoint is step {last[0]}" if last else "none was saved"
        )
        raise InputError(
            f"step {number}: {what}: training diverged; {good} "
            f"({self._checkpoints.directory}): lower optim.learning_rate or optim.clip"
        )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a signal has asked the run to stop.

    The signals are SIGTERM, Ctrl-C, and SIGUSR2, which clusters send before a
    pre-emption. Only the main thread can listen; in another one, nothing stops. In one
    of several processes they all become SIGTERM, which `devices.all_stop` knows of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = []
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    if devices.alone():
        old = [signal.signal(x, lambda *_: received.append(True)) for x in signals]
    else:  # JAX listens to SIGTERM, until the training ends.
        tell = lambda *_: signal.raise_signal(signal.SIGTERM)
        old = [signal.SIG_DFL, *(signal.signal(x, tell) for x in signals[1:])]
    try:
        yield lambda: bool(received)
    finally:
        for each, handler in zip(signals, old, strict=True):
            signal.signal(each, handler)
