"""What a kind of task is: the functions that the commands need of it, and its runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from chex import ArrayTree

from medjax.config import Config
from medjax.errors import InputError
from medjax.tasks import parts
from medjax.training import step
from medjax.training.checkpoint import Checkpoints


class Run(NamedTuple):
    """A run that is ready to be trained.

    config: of the run, with what its first weights brought along.
    folder: the run's.
    data: films.Data or scans.Data.
    manifest: of the split, one row an image: id, image, patient, split.
    network: the model, with its parts bound.
    state: before the first update.
    step_parts: keyword arguments of step.train_step.
    batches: (on_host=False) -> the endless training data; on_host keeps the batches
      there, [1, B, ...], for several runs to share.
    validate: state -> the scores, {} where nobody validates; the first one chooses the
      best checkpoint.
    order: equal for two runs that see the same images in the same order.
    has_steps: whether the weights change step by step; else `fix` makes them.
    target: the images of an adaptation, see adapt.Target.
    """

    config: Config
    folder: Path
    data: Any
    manifest: pd.DataFrame
    network: parts.Network
    state: step.State
    step_parts: dict[str, Any]
    batches: Callable
    validate: Callable[[step.State], dict[str, float]]
    order: bytes
    has_steps: bool = True
    target: Any = None

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of the training."""
        return parts.checkpoints(self.config, self.folder / "checkpoints")


class Finished(NamedTuple):
    """A trained run, as read back from its folder.

    output: what the model says of an image: films.Output or scans.Output.
    number: updates behind the checkpoint that is judged.
    state: of that checkpoint.
    fixed: what was chosen on validation: fixed.Fixed, or a masks.Post a region.
    """

    config: Config
    folder: Path
    output: Any
    network: parts.Network
    number: int
    state: ArrayTree
    fixed: Any = None


class Task(NamedTuple):
    """The functions of one kind of task; the commands call nothing else of it.

    check: (config, shards=) -> None; refuses what can be seen to be wrong before any
      data are read. shards: devices that share a batch.
    share: config -> the rows of a batch, where a training step is faster with one
      device for each core of the CPU; else 0.
    data: config -> the prepared data; they are made where they are missing.
    explore: (config, data, folder) -> the page or file of what the data look like.
    split: (config, data) -> the manifest, not yet audited.
    audit: (config, data, manifest) -> None; refuses a manifest that leaks.
    begin: (config, folder, shards=) -> Run, with all that it is made of written down.
    fix: run -> None; what follows the last update: the head is refitted, or batch
      statistics are re-estimated; thresholds, calibration and post-processing are
      chosen on validation.
    read: folder -> Finished, without `fixed` where nothing is chosen yet.
    measure: (finished, data, manifest, split) -> (results, pictures) of a split.
    write: (results, pictures, folder, name, config=, environment=) -> the page.
    show: results -> None; prints the most important ones.
    predict: (finished, images, out, **options) -> one line for each unreadable file.
    refused: {capability: why this kind of task can't have it}.
    """

    check: Callable
    share: Callable
    data: Callable
    explore: Callable
    split: Callable
    audit: Callable
    begin: Callable
    fix: Callable
    read: Callable
    measure: Callable
    write: Callable
    show: Callable
    predict: Callable
    refused: dict[str, str]

    def refuse(self, capability: str, flag: str) -> None:
        """Refuses what this kind of task can't do.

        Raises:
          InputError: it can't; the reason is named.
        """
        if capability in self.refused:
            raise InputError(f"{flag}: {self.refused[capability]}")
