"""A finished run, as read back from its folder."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from medjax import config as plain
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation import calibration
from medjax.tasks import parts, start
from medjax.tasks.study import Task
from medjax.training import fixed, step
from medjax.training import folder as workdir
from medjax.training.fixed import Frozen


class Run(NamedTuple):
    """A run whose calibration and operating points are frozen.

    `thresholds`, by task, are of the probabilities that `predict` gives; those of
    `network.predict` are not yet calibrated.
    """

    config: Config
    task: Task
    network: parts.Network
    state: step.State
    fixed: Frozen

    @property
    def thresholds(self) -> dict[str, float]:
        return self.frozen.thresholds

    def predict(self, image: np.ndarray) -> np.ndarray:
        """[D, B, ...] -> calibrated probability [D, B, T] float32."""
        return self.calibrated(self.uncalibrated(image))

    def uncalibrated(self, image: np.ndarray) -> np.ndarray:
        """[D, B, ...] -> probability [D, B, T] as the network says it."""
        return jax.device_get(self.network.predict(self.state, image))

    def calibrated(self, probability: np.ndarray) -> np.ndarray:
        """[..., T] -> [..., T] float32."""
        flat = probability.reshape(-1, probability.shape[-1])
        found = calibration.calibrate(self.frozen.calibration.fit, flat)
        return found.reshape(probability.shape).astype(np.float32)


def read(folder: Path) -> Run:
    """Reads a run back.

    Raises:
      InputError: none is there, it isn't finished, or it makes masks.
    """
    config = plain.read_config(folder)
    if config.task == "segmentation":
        raise InputError(f"{folder}: the run makes masks: this is for findings")
    found = fixed.read(folder)
    if found is None:
        raise InputError(f"{folder}: the run isn't finished: train it to its end first")
    task = Task(**workdir.read_task(folder))
    network = parts.network(config, task)
    number, state = start.restore(config, folder, network, task)
    if why := stale(config, found, number):
        raise InputError(f"{folder}: {why}: evaluate the run again first")
    return Run(config, task, network, state, found)


def stale(config: Config, found: Frozen, number: int) -> str:
    """Why frozen choices aren't those of a config and a checkpoint; '' if they are."""
    if found.checkpoint != number:
        return f"thresholds.json is of checkpoint {found.checkpoint}, not {number}"
    asked = plain.operating(config)
    was = {"rule": found.rule, "value": found.value}
    if found.rule is not None and was != asked:
        return f"thresholds.json is of {was}, and config.json says {asked}"
    method = plain.calibration(config)
    if found.calibration.method != method:
        return (
            f"the calibration is {found.calibration.method!r}, and config.json says "
            f"{method!r}"
        )
    return ""
