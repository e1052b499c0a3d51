"""What a kind of task is: the functions that the commands need of it, and its runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from chex import Array

from medjax.cohort import manifests
from medjax.config import Config, config_as_json, read_config
from medjax.data import prepared
from medjax.errors import InputError
from medjax.tasks import (
    adapt,
    check,
    comparison,
    external,
    imbalance,
    parts,
    splitting,
    start,
)
from medjax.training import devices, step, workdir
from medjax.training.checkpoint import Checkpoints


class Run(NamedTuple):
    """A run that is ready to be trained."""

    config: Config  # With what the first weights brought along.
    folder: Path
    data: Any  # films.FilmData or scans.ScanData.
    manifest: pd.DataFrame  # One row an image: id, image, patient, split.
    ids: np.ndarray  # [N] of the training images, as often as an epoch shows them.
    network: parts.Network
    state: step.Trained  # Before the first update, on the host.
    step_parts: dict[str, Any]  # Keyword arguments of step.train_step.
    # (on_host=False) -> the endless training data; on_host keeps the batches there,
    # [1, B, ...], for several runs to share.
    batches: Callable
    # State -> the scores, {} where nobody validates; the first one chooses the best
    # checkpoint.
    validate: Callable[[step.Trained], dict[str, float]]
    order: bytes  # Equal for two runs that see the same images in the same order.
    has_steps: bool  # Whether weights change step by step; else Task.refit fits them.
    target: adapt.Target | None = None  # The unlabelled images of a domain adaptation.

    @property
    def checkpoints(self) -> Checkpoints:
        return parts.checkpoints(self.config, self.folder / "checkpoints")


class Finished(NamedTuple):
    """A trained run, as read back from its folder."""

    config: Config
    folder: Path
    # What the model says of an image: films.FindingsOutput or scans.MasksOutput.
    output: Any
    network: parts.Network
    number: int  # Updates behind the checkpoint that is judged.
    state: step.Trained  # Of that checkpoint.
    fixed: Any = None  # By validation: fixed.Fixed, or a mask_metrics.Post a region.

    @property
    def thresholds(self) -> np.ndarray:
        """[T], of a classification's calibrated probabilities; NaN where none is."""
        return np.array([self.fixed.thresholds[name] for name in self.output.names])

    def held_out(self, manifest: pd.DataFrame) -> list[tuple[step.Trained, np.ndarray]]:
        """Networks, and the ids of validation images that they didn't train on.

        All networks and all of these images; but of joined runs each has its own.
        """
        of_run = workdir.read_held_out(self.folder)
        if of_run is None:
            return [(self.state, splitting.ids_in(manifest, "validation"))]
        return [
            (self.state if n < 0 else self.state[n], ids) for n, ids in of_run.items()
        ]

    def log_odds(self, image: np.ndarray) -> Array:
        """A classification's [D, B, ...] -> the network's log-odds [D, B, T]."""
        return self.network.predict(self.state, image)


class Task(NamedTuple):
    """The functions of one kind of task; the commands call nothing else of it."""

    unit: str  # What an image is called, in the plural.
    output: type  # films.FindingsOutput or scans.MasksOutput.
    # (config, devices that share a batch) -> None; refuses mistakes that can be seen
    # before any data are read.
    check: Callable
    # config -> the rows of a batch, where a training step is faster with one device
    # for each core of the CPU; else 0.
    share: Callable
    data: Callable  # config -> the prepared data; made where they are missing.
    explore: Callable  # (config, data, folder) -> the page or file about the data.
    split: Callable  # (config, data) -> the manifest, not yet audited.
    untested: Callable  # config -> why a run of it tests on nobody; '' where it tests.
    # (config, data, manifest, needed=) -> None; refuses one that leaks, or that has
    # nobody on a side that is needed; without `needed`, as the config asks.
    audit: Callable
    network: Callable  # (config, output) -> parts.Network.
    # (config, data, ids, target, on_host=False) -> the endless training data.
    batches: Callable
    validate: Callable  # (config, network, data, ids, state) -> the scores.
    # (finished, data, manifest) -> Finished, with its choices on validation: read back,
    # or made where they are missing.
    fix: Callable
    fixed: Callable  # finished -> Finished, with these choices as they were written.
    other: Callable  # (finished, data) -> other data, labelled as the run's are.
    # (finished, data, manifest, split) -> (results, pictures) of a split, as
    # report.write takes them; of several processes the first alone has them.
    measure: Callable
    # (finished, images=, out=, explain_in=, **how) -> a line for each unreadable file.
    predict: Callable
    program: Callable  # finished -> exported.ExportedModel.
    comparison: comparison.Kind
    refused: dict[str, str]  # {capability: why this kind of task can't have it}.
    # (folder, data, ids) -> None; notes what images look like.
    record: Callable = lambda *_: None
    # (config, data, ids) -> the data, with what these training images fix of them.
    scaled: Callable = lambda config, data, ids: data
    # run -> None; what changes the weights after the last update.
    refit: Callable = lambda _: None

    def refuse(self, capability: str) -> None:
        """Raises InputError, with the reason, for what this kind of task can't do."""
        if capability in self.refused:
            raise InputError(f"{capability}: {self.refused[capability]}")

    def prepare(self, config: Config) -> Any:
        """The data of `config.data`, prepared; prints how many could be read.

        Raises:
          InputError: the raw files aren't there, or too many can't be read.
        """
        data = self.data(config)
        left_out = prepared.left_out(data.path)
        count = f"{len(data.table)} {self.unit}, {left_out} quarantined"
        print(f"prepared: {data.path} ({count})")
        return data

    def begin(self, config: Config, folder: Path, *, shards: int = 0) -> Run:
        """Makes and checks all that comes before the first step, and writes it down.

        `shards` devices share a batch; 0: all devices.

        Raises:
          InputError: a mistake in the config or the data.
        """
        self.check(config, shards or jax.device_count())
        with devices.in_turn():
            data = self.prepare(config)
            config, weights = start.settle_weights(config, data.output, self.network)
            manifest = self.split(config, data)
            self.audit(config, data, manifest)
            splitting.check_labels(data, manifest)
            splitting.check_answers(config, data, manifest)
            external.audit_test(config, self.data, data, manifest)
            target = adapt.target(config, data)
        counts = manifest["split"].value_counts().items()
        print(f"{self.unit}: " + ", ".join(f"{n} {split}" for split, n in counts))
        ids = splitting.ids_in(manifest, "train")
        validation = splitting.ids_in(manifest, "validation")
        data = self.scaled(config, data, ids)
        network = self.network(config, data.output)
        counted = imbalance.counted(config, data, ids)
        begin = functools.partial(
            parts.initial_state, config, network, data.output, counted
        )
        fresh = (parts.fresh(config, network, n) for n in range(config.ensemble))
        variables = (start.variables(each, weights, data.output) for each in fresh)
        state = parts.ensemble(
            [jax.device_get(begin(variables=each)) for each in variables]
        )
        epoch = imbalance.resampled(config, label := data.label(ids))
        if epoch is not None:
            print(epoch.describe(data.output.names, label))
            ids = ids[epoch.index]
        print(f"model: {_counts(state, network.frozen)}")
        with devices.in_turn():  # Last: a refused run leaves nothing behind.
            if devices.first():
                self._write_down(config, folder, data, manifest, target, weights)
        others = b"" if target is None else target.ids.tobytes()
        return Run(
            *(config, folder, data, manifest, ids, network, state),
            step_parts=parts.step_parts(config, network),
            batches=lambda on_host=False: self.batches(
                config, data, ids, target, on_host=on_host
            ),
            validate=lambda state: self.validate(
                config, network, data, validation, state
            ),
            order=b"%d " % config.seed + ids.tobytes() + others,
            has_steps=parts.has_steps(config),
            target=target,
        )

    def _write_down(self, config, folder, data, manifest, target, weights) -> None:
        """Writes down what the run is made of, or checks it where it was begun before."""
        anew = workdir.forget_unbegun(folder)
        workdir.claim(folder, config_as_json(config))
        notes = check.sides(config, data.output.names), check.warmup(config)
        notes = *parts.caveats(config), *notes, check.threshold(config)
        for note in filter(None, notes):
            print(f"note: {note}")
        if config.explore and (anew or not list(folder.glob("explore.*"))):
            print(f"explored: {self.explore(config, data, folder)}")
        workdir.hold(
            *(folder, data.path, manifest),
            target=None if target is None else (target.data.path, target.manifest),
            weights=None if weights is None else weights.variables,
        )
        manifests.write(manifest, folder / "splits.csv")
        workdir.write_task(folder, data.output)
        self.record(folder, data, splitting.ids_in(manifest, "train"))
        if target is not None:
            manifests.write(target.manifest, folder / "target.csv")
            print(f"target: {len(target.ids)} images without their labels")

    def read(self, folder: Path) -> Finished:
        """Reads a run back that has a checkpoint; `fixed` is still None.

        Raises:
          InputError: no run is there, or it hasn't been trained.
        """
        config, output = read_config(folder), self.output(**workdir.read_task(folder))
        network = self.network(config, output)
        number, state = start.restore(config, folder, network, output)
        return Finished(
            *(config, folder, output, network, number), step.replicated(state)
        )

    def finished(self, folder: Path) -> Finished:
        """Reads a finished run back, with what was chosen on validation."""
        return self.fixed(self.read(folder))


def _counts(state: step.Trained, frozen: tuple[str, ...]) -> str:
    """How many members and parameters there are, and how many of them are frozen."""
    number, params = len(step.members(state)), step.members(state)[0].params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    still = sum(leaf.size for s in frozen for leaf in jax.tree.leaves(params[s]))
    times = f"{number} members of " if number > 1 else ""
    return f"{times}{size:,} parameters" + (
        f", {still:,} of them frozen" if still else ""
    )
