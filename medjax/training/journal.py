"""What a run writes down as it goes: metrics.jsonl, event files, a progress bar."""

import json
import math
import sys
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Journal:
    """Records scalars by step; shows the progress on a terminal.

    Args:
      workdir: gets metrics.jsonl and TensorBoard's events/.
      steps: of the whole run, for the bar.
      start: steps done already; later lines of an interrupted run are dropped, since
        they are about to be computed again.
    """

    def __init__(self, workdir: Path, *, steps: int, start: int = 0):
        from tensorboardX import SummaryWriter  # Late: it is slow to import.

        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read(self._path) if line["step"] <= start]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._events = SummaryWriter(str(workdir / "events"), purge_step=start + 1)
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
            disable=not self._console.is_terminal,
        )
        self._steps = steps
        self._task = self._progress.add_task("train", total=steps, facts="")
        self._progress.update(self._task, completed=start)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()
        self._events.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line; a NaN is written as null, for JSON has none."""
        finite = {k: None if math.isnan(v) else v for k, v in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def show(self, step: int, facts: str) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step, facts=facts)

    def say(self, step: int, facts: str) -> None:
        """Prints a line that stays, on a terminal and in a log file alike."""
        self._console.print(f"step {step}/{self._steps}  {facts}")


def read(path: Path) -> list[dict]:
    """Reads metrics.jsonl; a line cut off by a crash at its end is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
