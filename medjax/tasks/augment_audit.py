"""explore --audit-augment: what a config's augmentations do to a run's predictions."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from medjax import config as plain
from medjax.augment import policy
from medjax.config import Config
from medjax.evaluation import label_audit
from medjax.evaluation import predict as inference
from medjax.evaluation.bootstrap import Interval
from medjax.reports import augment
from medjax.tasks import augmentation, study

MATTERS = 0.01  # AUROC; a smaller drop at the config's strength changes no conclusion.


def audit(
    config: Config,
    data: study.Data,
    manifest: pd.DataFrame,
    predict: Callable,
    threshold: np.ndarray,
    folder: Path,
) -> Path:
    """Writes augment.html and augment.json: does an augmentation keep the label?

    On the validation split, since what is learnt here changes the config.

    Args:
      config, data, manifest: of a finished run.
      predict: image [D, B, ...] -> probability [D, B, T], the run's model.
      threshold: [T], the run's; NaN where there is none.
      folder: where to.

    Returns:
      The page's path.
    """
    films = data.side(manifest, "validation")
    as_they_are = inference.predict(study.evaluation_batches(config, films), predict)
    # The example shows as many findings as any image does.
    example = int(np.argmax((as_they_are.label * as_they_are.weight).sum(axis=1)))
    example = films[example]
    strips: dict = {op: [example["image"] / 255] for op in config.augment.ops}
    rows: dict[str, list] = {op: [] for op in config.augment.ops}
    for strength in label_audit.STRENGTHS:
        for name, op in augmentation.ops(config, strength=strength).items():
            change = functools.partial(_changed, op, jax.random.key(config.seed))
            found = inference.predict(
                (
                    {**b, "image": change(b)}
                    for b in study.evaluation_batches(config, films)
                ),
                predict,
            )
            compared = label_audit.compare(
                as_they_are, found, threshold=threshold, **plain.bootstrap(config)
            )
            rows[name].append({"strength": strength, **_row(compared, data.task.names)})
            one = jax.tree.map(lambda x: np.asarray(x)[None, None], example)
            strips[name].append(np.asarray(change(one))[0, 0])
    summary = {
        "source": config.data.source,
        "split": "validation",
        "images": len(as_they_are.id),
        "patients": len(np.unique(as_they_are.patient)),
        "replicates": config.evaluation.replicates,
        "strengths": label_audit.STRENGTHS,
        "tasks": data.task.names,
        "example": str(data.table["image"][int(example["id"])]),
        "ops": {op: _judged(op, config, at) for op, at in rows.items()},
    }
    return augment.write(summary, strips, folder)


def _changed(op: Callable, key: jax.Array, batch: dict) -> jax.Array:
    """The batch's images [D, B, ...] in [0, 1], changed by one op as in epoch 0."""
    devices = batch["image"].shape[0]
    flat = {k: batch[k].reshape(-1, *batch[k].shape[2:]) for k in ("image", "id")}
    zeros = np.zeros_like(flat["id"])
    flat |= {"epoch": zeros, "occurrence": zeros}
    image = _augment(key, flat, op=op)
    return image.reshape(devices, -1, *image.shape[1:])


@functools.partial(jax.jit, static_argnames="op")
def _augment(key: jax.Array, flat: dict, *, op: Callable) -> jax.Array:
    return policy.augment(key, flat, ops=(op,), prepare=lambda image: image)


def _row(compared: dict, tasks: tuple[str, ...]) -> dict:
    """label_audit.compare's numbers as plain data."""
    each = {
        task: {
            "moved": _number(compared["moved"][t]),
            "flipped": _number(compared["flipped"][t]),
            "drop": _interval(Interval(*(part[t] for part in compared["drop"]))),
        }
        for t, task in enumerate(tasks)
    }
    return {"mean_drop": _interval(compared["mean_drop"]), "tasks": each}


def _judged(op: str, config: Config, at: list[dict]) -> dict:
    """The op's numbers, and whether its label still holds at the config's strength."""
    own = next(one for one in at if one["strength"] == 1)
    spoilt = {"all findings together": own["mean_drop"]}
    spoilt |= {task: found["drop"] for task, found in own["tasks"].items()}
    spoilt = [
        f"{task} by {drop['estimate']:.3f} ({drop['low']:.3f} to {drop['high']:.3f})"
        for task, drop in spoilt.items()
        if drop["low"] is not None and drop["low"] > 0 and drop["estimate"] > MATTERS
    ]
    verdict = (
        f"{op} changes what the model sees as disease: AUROC falls for "
        + ", ".join(spoilt)
        if spoilt
        else f"{op} keeps the label, as far as this model sees: no AUROC falls by more "
        f"than {MATTERS} beyond chance."
    )
    options = plain.as_json(config)["augment"].get(op, {})
    return {"options": options, "sound": not spoilt, "verdict": verdict, "at": at}


def _interval(interval: Interval) -> dict:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value) -> float | None:
    value = float(value)
    return None if np.isnan(value) else value
