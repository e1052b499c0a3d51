"""Checkpoints: the state and the position in the data; the best and the latest stay."""

import logging
import math
import shutil
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np
from chex import ArrayTree
from orbax.checkpoint import v1 as ocp

from medjax.errors import InputError
from medjax.files import naming, unfinished

log = logging.getLogger("medjax")


class Restored(NamedTuple):
    """A checkpoint: its step, state (numpy leaves) and position in the data."""

    step: int
    state: ArrayTree
    data: dict


class Checkpoints:
    """The checkpoints of one run, in a directory that is created if missing.

    The `keep` best by validation score stay, and the latest one: otherwise the newest
    would be deleted first. Without any score the `keep` before the latest stay.

    Raises:
      InputError: the score of a checkpoint is damaged.
    """

    def __init__(self, directory: Path, *, keep: int = 1):
        self._keep = keep
        self.directory = Path(directory).absolute()  # Orbax takes no relative path.
        for left in self.directory.glob(".*"):  # A deletion that was killed.
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory, cleanup_tmp_directories=True
            )
        except ValueError as error:  # Orbax reads the scores of all steps.
            raise InputError(
                f"{self.directory}: the score of a checkpoint, STEP/metrics/metrics, is "
                f"damaged ({error}): remove that STEP, or train again in a new workdir"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    @property
    def best(self) -> int | None:
        """The step with the highest validation score; None before the first."""
        return next(iter(self._by_score()), None)

    def _by_score(self) -> list[int]:
        """The steps that have a score, the best first; of equal ones the first."""
        scored = [c for c in self._orbax.checkpoints if c.metrics]
        # A damaged file may hold JSON without a score.
        scores = {c.step: c.metrics.get("score", -math.inf) for c in scored}
        return sorted(scores, key=lambda step: (-scores[step], step))

    def save(
        self, step: int, state: ArrayTree, data: dict, *, score: float | None = None
    ) -> None:
        """Writes a checkpoint and waits for it; replaces one of the same step.

        One replica of the state is written. `data`, the position in the data, is plain
        JSON. `score` is on validation, more is better; without a finite one, the
        checkpoint can't become the best.
        """
        scored = score is not None and math.isfinite(score)
        with naming(self.directory):
            self._orbax.save_checkpointables(
                step,
                {"state": jax.device_get(state), "data": data},
                metrics={"score": float(score)} if scored else None,
                force=True,  # Orbax would silently skip an older step.
                overwrite=step in self.steps,
            )
            self._prune()

    def _prune(self) -> None:
        """Deletes the steps that don't stay.

        Each is renamed first: of a deletion that is killed no step is left in part.
        """
        *earlier, _ = self.steps
        best = self._by_score() or earlier[::-1]
        if not (gone := {*earlier} - {*best[: self._keep]}):
            return
        if jax.process_index() == 0:
            for step in gone:
                path = self.directory / str(step)
                shutil.rmtree(path.rename(unfinished(path)))
        self._orbax.reload()

    def restore(self, template: ArrayTree, *, step: int | None = None) -> Restored:
        """Reads the checkpoint of the step, or the latest that can be read.

        The log names damaged ones. The template is a tree with the expected structure,
        shapes and dtypes.

        Raises:
          InputError: no checkpoint can be read, or it doesn't match the template.
        """
        reasons = []
        for candidate in self.steps[::-1] if step is None else [step]:
            try:
                return self._read(template, candidate)
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001 Orbax raises many kinds.
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("checkpoint %d can't be read (%s)", candidate, reason)
                reasons.append(f"step {candidate}: {reason}")
        raise InputError(
            f"{self.directory}: no checkpoint can be read "
            f"({'; '.join(reasons) or 'there is none'}): train again in a new workdir"
        )

    def _read(self, template: ArrayTree, step: int) -> Restored:
        """Reads a step; compares dtypes, too, because Orbax silently casts them."""
        template = jax.tree.map(np.asarray, jax.device_get(template))
        saved = self._orbax.checkpointables_metadata(step).metadata["state"]
        saved, expected = _leaves(saved), _leaves(template)
        if not saved:
            raise ValueError("its list of arrays is damaged")
        for name in sorted(saved.keys() ^ expected.keys()):
            where = "the checkpoint" if name in saved else "the model"
            raise InputError(
                f"{self.directory}/{step}: {name} is only in {where}: "
                "the config's model is not the one that was trained"
            )
        for name, leaf in expected.items():
            if saved[name] != leaf:
                raise InputError(
                    f"{self.directory}/{step}: {name} is {saved[name]}, the config's "
                    f"model has {leaf}: it is not the one that was trained"
                )
        parts = self._orbax.load_checkpointables(
            step, {"state": template, "data": None}
        )
        return Restored(step, parts["state"], parts["data"])


def _leaves(tree: ArrayTree) -> dict[str, str]:
    """The dtype and shape of each leaf by name: {'params/conv0': 'float32[3]'}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
