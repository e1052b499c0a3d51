"""A finished run, as read back from its folder."""

from pathlib import Path
from typing import NamedTuple

from medjax.build import model, plain, start
from medjax.build.plain import Config
from medjax.build.study import Task
from medjax.errors import InputError
from medjax.training import step, workdir


class Run(NamedTuple):
    """A run whose operating points, `thresholds` by task, are frozen."""

    config: Config
    task: Task
    network: model.Network
    state: step.State
    thresholds: dict[str, float]


def read(folder: Path) -> Run:
    """Reads a run back.

    Raises:
      InputError: none is there, it isn't finished, or it makes masks.
    """
    config = plain.read_config(folder)
    if config.task == "segmentation":
        raise InputError(f"{folder}: the run makes masks: this is for findings")
    frozen = workdir.read_thresholds(folder)
    if frozen is None:
        raise InputError(f"{folder}: the run isn't finished: train it to its end first")
    task = Task(**workdir.read_task(folder))
    network = model.network(config, task)
    _, state = start.restore(config, folder, network, task)
    return Run(config, task, network, state, frozen[1])
