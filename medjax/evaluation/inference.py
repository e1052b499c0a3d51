"""Predictions of every example exactly once, on all devices."""

import collections
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import expit

from medjax.data import loader, prepared
from medjax.errors import InputError

ARRAYS = ("id", "patient", "label", "weight", "log_odds")


class Predictions(NamedTuple):
    """A model's predictions of N images, in the order they were read."""

    id: np.ndarray  # [N] int32, as `patient`.
    patient: np.ndarray
    probability: np.ndarray  # [N, T] float32, as `label` and `weight`.
    label: np.ndarray
    weight: np.ndarray  # 0 where the label is unknown.
    # [N, T] float32. Images are ranked by them: among probabilities near 1 float32 has
    # ties. None: by the probability.
    log_odds: np.ndarray | None = None

    @property
    def ranking(self) -> np.ndarray:
        """[N, T], the scores by which images are ranked."""
        return self.probability if self.log_odds is None else self.log_odds


def predict(
    batches: Iterable[dict[str, np.ndarray]], eval_step: Callable
) -> Predictions:
    """Runs a model over evaluation batches and removes their padding.

    batches: of the host, [D, B, ...]; padding rows have the id -1.
    eval_step: image [D, B, H, W, C] -> log-odds [D, B, T], such as
      `compile_eval`'s, with the state bound.
    """
    names = {*ARRAYS} - {"log_odds"}
    rows = list(each(batches, eval_step, "log_odds", names))
    columns = {name: np.concatenate([row[name] for row in rows]) for name in ARRAYS}
    return Predictions(probability=expit(columns["log_odds"]), **columns)


def embed(batches: Iterable[dict[str, np.ndarray]], embed_step: Callable) -> np.ndarray:
    """[N, F], the features of every image that the classifier reads; see `predict`."""
    rows = each(batches, embed_step, "embedding", ())
    return np.concatenate([row["embedding"] for row in rows])


def each(
    batches: Iterable[dict[str, np.ndarray]],
    function: Callable,
    name: str,
    fields: Collection[str],
) -> Iterator[dict[str, np.ndarray]]:
    """Yields some fields of each batch, and a function of its image as `name`.

    Without the axis of devices and the padding: [N, ...].
    """
    begun = ({**batch, name: function(batch["image"])} for batch in batches)
    for batch in _one_behind(begun):
        real = batch["id"].reshape(-1) >= 0
        yield {
            field: jax.device_get(array).reshape(-1, *array.shape[2:])[real]
            for field, array in batch.items()
            if field in (*fields, name)
        }


def _one_behind(items: Iterable) -> Iterator:
    """Yields each item when the next one is begun, so that the devices needn't wait."""
    begun = collections.deque()
    for item in items:
        begun.append(item)
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


def predict_files(
    paths: list[Path],
    eval_step: Callable,
    *,
    load: Callable[[Path], tuple],
    batch: int,
    devices: int,
) -> Iterator[tuple[Path, Any, np.ndarray | None]]:
    """Yields every file, in order, with what was read of it, and its answer [...].

    Of a file that can't be read: why, and None.

    load: called by several threads: a file -> the image that the model reads, and what
      else the caller needs of it; or an InputError.
    batch: rows a device.
    """

    def loaded_or_why(path: Path) -> tuple[Path, tuple | str]:
        try:
            return path, load(path)
        except InputError as error:
            return path, str(error)

    def begun() -> Iterator[tuple[list, Any]]:
        files = prepared.in_parallel(loaded_or_why, paths)
        while loaded := list(itertools.islice(files, batch * devices)):
            images = [read[0] for _, read in loaded if not isinstance(read, str)]
            if not images:
                yield loaded, None
                continue
            padded = loader.pad({"image": np.stack(images)}, batch, devices)
            yield loaded, eval_step(padded["image"])

    for loaded, answers in _one_behind(begun()):
        if answers is not None:
            answers = jax.device_get(answers)
            rows = iter(answers.reshape(-1, *answers.shape[2:]))
        for path, read in loaded:
            yield path, read, None if isinstance(read, str) else next(rows)
