"""The floor of masks: what logistic regression on single voxels draws in new patients."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.progress import track
from scipy import ndimage

from medjax.config import Config
from medjax.data import volumes
from medjax.data.intensity_units import normalise
from medjax.evaluation import bootstrap, mask_metrics, means
from medjax.tasks import scans
from medjax.training import head

FOLDS = 5
VOLUMES = 60  # At most, by which the floor is estimated.
VOXELS = 4000  # Of a volume inside of its regions, and outside, that are learnt from.
SURROUNDINGS = 2.0  # mm, the standard deviation of the Gaussian that averages them.
DECAY = 1e-4  # Of squared weights.


class _Sample(NamedTuple):
    """Voxels of one volume."""

    feature: np.ndarray  # [V, F] float32
    label: np.ndarray  # [V, K] bool
    stands_for: np.ndarray  # [V], how many of the volume's voxels each stands for.


def floor(config: Config, data: scans.ScanData, manifest: pd.DataFrame) -> dict:
    """The Dice of logistic regression on voxels, without the test volumes.

    It knows a voxel's intensities, their mean about it, and where in the foreground it
    lies, each region by itself. It is cross-validated by patient; `dice` is of the
    threshold that has the highest on the voxels it learnt from, `best_dice` of each
    volume's own best one, which nobody knows beforehand. A network that isn't better
    has learnt nothing that needs a network.

    Returns {region: {dice, best_dice: its interval}}, and 'mean', of their means; {} if
    fewer than two patients have masks.
    """
    ids = manifest["id"][manifest["split"] != "test"].to_numpy()
    ids = ids[~np.isnan(data.label(ids)).any(axis=1)]
    rng = np.random.default_rng(config.seed)
    ids = np.sort(rng.permutation(ids)[:VOLUMES])
    patient, people = pd.factorize(data.table.set_index("id").loc[ids, "patient"])
    if len(people) < 2:
        return {}
    data = scans.scaled(config, data, ids)
    samples = [
        _sample(feature[inside], label[inside], rng)
        for feature, inside, label in _read(data, ids, "floor: learn")
    ]
    fold = rng.permutation(len(people))[patient] % FOLDS
    rest = {out: [s for s, f in zip(samples, fold) if f != out] for out in {*fold}}
    layers = {out: _fit(samples) for out, samples in rest.items()}
    read = _read(data, ids, "floor: draw")
    dice = np.array(  # [N, 2, K]
        [
            _dice(feature[inside] @ layers[out][0], layers[out][1], label[inside])
            for out, (feature, inside, label) in zip(fold, read, strict=True)
        ]
    )
    dice = np.concatenate([dice, dice.mean(axis=-1, keepdims=True)], axis=-1)
    intervals = means.shares(means.over_rows(dice, patient))
    return {
        region: {
            name: bootstrap.interval(
                bootstrap.at(intervals, (n, k)), "", patients=len(people)
            )
            for n, name in enumerate(("dice", "best_dice"))
        }
        for k, region in enumerate((*data.output.names, "mean"))
    }


def describe(floors: dict) -> str:
    """A line for the terminal."""
    if not floors:
        return "floor: none, fewer than two patients outside of the test have masks"
    dice, best = (floors["mean"][name] for name in ("dice", "best_dice"))
    between = "" if np.isnan(dice.low) else f" ({dice.low:.3f} to {dice.high:.3f})"
    return (
        "floor: logistic regression on voxels has a mean Dice of "
        f"{dice.estimate:.3f}{between}, and of {best.estimate:.3f} if each volume's best "
        "threshold were known"
    )


def _read(data: scans.ScanData, ids: np.ndarray, what: str) -> Iterator[tuple]:
    """Of each volume features [D, H, W, F], foreground [D, H, W], label [D, H, W, K]."""
    spacings = data.prepared.table.set_index("id")[[*volumes.SPACING_COLUMNS]]
    for part in track(data.parts(ids).values(), what):
        image, label = volumes.read(data.path, part)
        image = np.asarray(normalise(image, data.output.channels), np.float32)
        # A region may reach where all sequences are 0.
        inside = (image != 0).any(axis=-1) | label.any(axis=-1)
        spread = SURROUNDINGS / spacings.loc[part.id].to_numpy(float)
        around = ndimage.gaussian_filter(image, (*spread, 0))
        place = _place(inside)
        yield np.concatenate([image, around, place], axis=-1), inside, label > 0


def _place(inside: np.ndarray) -> np.ndarray:
    """[D, H, W, 9]: where a voxel lies, from -1 to 1 of the foreground, and products."""
    axes = []
    for axis, size in enumerate(inside.shape):
        used = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (used[0], used[-1]) if len(used) else (0, size - 1)
        axes.append((2 * np.arange(size) - low - high) / max(high - low, 1))
    d, h, w = np.meshgrid(*axes, indexing="ij")
    place = [d, h, w, d * d, h * h, w * w, d * h, d * w, h * w]
    return np.stack(place, axis=-1, dtype=np.float32, casting="same_kind")


def _sample(feature: np.ndarray, label: np.ndarray, rng) -> _Sample:
    """Draws voxels [V, ...] of a volume: as many inside of its regions as outside."""
    chosen, stands_for = [], []
    for group in (label.any(axis=-1), ~label.any(axis=-1)):
        rows = rng.permutation(np.flatnonzero(group))[:VOXELS]
        chosen.append(rows)
        stands_for.append(np.full(len(rows), group.sum() / max(len(rows), 1)))
    rows = np.concatenate(chosen)
    return _Sample(feature[rows], label[rows], np.concatenate(stands_for))


def _fit(samples: list[_Sample]) -> tuple[np.ndarray, np.ndarray]:
    """The kernel [F, K] and the thresholds [K] of what it gives."""
    feature, label, stands_for = map(np.concatenate, zip(*samples, strict=True))
    target = label.astype(np.float32)
    how = {"between": head.no_points(label.shape[1]), "exclusive": False}
    weight = np.ones_like(target)
    layer = head.refit(feature, target, weight, decay=DECAY, **how)
    kernel = layer["kernel"]
    score = feature @ kernel
    thresholds = [
        _best(score[:, k], label[:, k], stands_for) for k in range(len(kernel.T))
    ]
    return kernel, np.array(thresholds, np.float32)


def _best(score: np.ndarray, label: np.ndarray, stands_for: np.ndarray) -> float:
    """The threshold of scores [V] with the highest Dice, if a voxel stands for so many."""
    if not label.any():
        return np.inf  # Nothing is to be drawn.
    order = np.argsort(-score)
    drawn, both = np.cumsum([stands_for[order], (stands_for * label)[order]], axis=1)
    return score[order[np.argmax(2 * both / (drawn + both[-1]))]]


def _dice(score: np.ndarray, threshold: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[2, K], the Dice of scores [V, K] at these thresholds, and at the best ones."""
    one = np.ones(len(score))
    best = [_best(s, true, one) for s, true in zip(score.T, label.T, strict=True)]
    return np.array(
        [
            [mask_metrics.dice(score[:, k] >= t, label[:, k]) for k, t in enumerate(ts)]
            for ts in (threshold, best)
        ]
    )
