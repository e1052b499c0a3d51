"""A run's log: metrics.jsonl, TensorBoard events, a progress bar."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Self

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from medjax import buckets
from medjax.files import naming, write_text
from medjax.training import devices


class Journal:
    """Records scalars by step with their cost, and shows the progress on a terminal.

    Every line has the seconds of training so far, without interruptions, and the peak
    of the memory, see `peak_memory`.

    Args:
      workdir: gets metrics.jsonl and TensorBoard's events/.
      start: steps done already. Later lines of an interrupted run are dropped, because
        these steps are computed again.
      name: distinguishes the run's lines from those of runs trained at the same time.
      bar: shows a bar; only one run at a time can.
      sharing: number of runs trained at the same time, which share its cost equally.
      before: seconds that the run cost earlier, such as its share of a compilation.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        steps: int,
        start: int = 0,
        name: str = "",
        bar: bool = True,
        sharing: int = 1,
        before: float = 0.0,
    ):
        from tensorboardX import SummaryWriter  # Late: it is slow to import.

        self._workdir = workdir
        self._path = workdir / "metrics.jsonl" if devices.first() else Path(os.devnull)
        kept = [line for line in _lines(self._path) if line["step"] <= start]
        # A line that a stop cut short: the next one goes on with it, see loop.Meter.
        self.begun = kept[-1] if kept and "window_steps" in kept[-1] else {}
        if devices.first():
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._spent = before + (kept[-1].get("seconds", 0.0) if kept else 0.0)
        self._began, self._sharing = time.perf_counter(), sharing
        self._events = SummaryWriter(
            str(workdir / "events"), purge_step=start + 1, write_to_disk=devices.first()
        )
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (bar and self._console.is_terminal),
        )
        self._steps = steps
        self._name = f"  {name}" if name else ""
        self._task = self._progress.add_task("train", total=steps, facts="")
        self._progress.update(self._task, completed=start)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()
        self._events.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line; NaN becomes null, because JSON has no NaN."""
        passed = (time.perf_counter() - self._began) / self._sharing
        cost = {"seconds": round(self._spent + passed, 3), "memory": peak_memory()}
        scalars = scalars | cost
        finite = {k: None if math.isnan(v) else v for k, v in scalars.items()}
        with naming(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def store(self) -> None:
        """Stores the run's folder in its bucket, if it is in one."""
        self._events.flush()
        buckets.store(self._workdir)

    def show(self, step: int, facts: str) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step, facts=facts)

    def say(self, step: int, facts: str) -> None:
        """Prints a line that stays, on a terminal and in a log file."""
        self._console.print(f"step {step}/{self._steps}{self._name}  {facts}")


def peak_memory() -> int:
    """Peak bytes of the fullest accelerator, or on a CPU of the whole process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each.get("peak_bytes_in_use", 0) for each in stats]
    if any(peaks):
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read(path: Path) -> list[dict]:
    """Reads metrics.jsonl, without lines that a later one goes on with."""
    lines = _lines(path)
    whole = [line for line in lines[:-1] if "window_steps" not in line]
    return whole + lines[-1:]


def _lines(path: Path) -> list[dict]:
    """The lines of a file, without a last one that a crash has cut off."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
