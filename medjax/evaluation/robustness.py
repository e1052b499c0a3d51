"""What changed images cost: AUROC that falls, and calls that change.

`summarise` is of a suite of corruptions, from mild to severe; `compare` of any change,
such as an augmentation: does it keep the label? A reader would have to say so, and a
model that has learnt the findings stands in, which reads a thousand images in a second.
It can't miss what it can't see, so look at the pictures too.

Every corruption is a function (key, image, value) -> image:
  key: of this image alone; what it draws is the same at every severity, so that a
    higher severity does the same, but more strongly.
  image: [H, W, C] float32 in [0, 1]; white (1) is dense.
  value: the strength, in the unit that CORRUPTIONS names.

The grey of an X-ray film is taken as the logarithm of the exposure behind the patient,
with two decades of it (RANGE) from black to white.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.augment import intensity, random
from medjax.evaluation import bootstrap, discrimination, metrics
from medjax.evaluation.areas import of_tasks
from medjax.evaluation.bootstrap import Interval, Resampled
from medjax.evaluation.predict import Predictions
from medjax.geometry import grid, warp

MEASURES = ("auroc", "drop", "agreement")
RANGE = math.log(100)
SEVERITIES = (1, 2, 3, 4, 5)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # Of the config's augmentation, for `compare`.


class Severity(NamedTuple):
    """A corruption at one severity."""

    severity: int
    auroc: Interval  # The mean over the tasks that have one on the clean images.
    drop: Interval  # How much lower it is than theirs.
    agreement: Interval  # The share of calls that stay.
    # Its strength, in the corruption's unit, and {name of a task: AUROC}. Both are
    # absent from the mean over the corruptions.
    value: float | None = None
    tasks: dict[str, float] | None = None


class Robustness(NamedTuple):
    """What `summarise` says."""

    films: int
    patients: int
    replicates: int
    clean: dict[str, Interval]
    # {name: {parameter: what its values mean, severities: of Severity}}.
    corruptions: dict[str, dict]
    mean: list[Severity]  # Over the corruptions, at each severity.


def compare(
    plain: Predictions,
    changed: Predictions,
    *,
    tasks: tuple[str, ...],
    threshold: np.ndarray,
    **draws,
) -> dict:
    """How much predictions of changed images differ from those of the images as they are.

    Both are of the same images in the same order. A probability of the threshold [T] or
    more is called positive; NaN calls none.

    Returns:
      mean_drop, an Interval as JSON, of the mean AUROC, and tasks: {name: moved, the mean
      absolute change of the probability, of known labels; flipped, the share of calls
      that change, None without a threshold; drop}. A drop is the AUROC of the images as
      they are minus that of the changed ones, paired. The intervals are of 95 % for all
      T + 1 together (Bonferroni): of many findings one falls by chance.
    """
    known = plain.weight > 0
    calls = [p.probability >= threshold for p in (plain, changed)]
    flipped = np.where(np.isnan(threshold), np.nan, calls[0] != calls[1])
    moved = np.abs(changed.probability - plain.probability)
    moved, flipped = (
        bootstrap.mean_of_defined(np.where(known, x, np.nan), axis=0)
        for x in (moved, flipped)
    )
    difference = discrimination.difference(
        *(plain.ranking, changed.ranking),
        *(plain.label, plain.weight, plain.patient),
        level=1 - 0.05 / (len(threshold) + 1),
        **draws,
    )
    of_tasks = {
        task: {
            "moved": moved[t],
            "flipped": flipped[t],
            "drop": bootstrap.at(difference["auroc"], t),
        }
        for t, task in enumerate(tasks)
    }
    return bootstrap.as_json({"mean_drop": difference["mean_auroc"], "tasks": of_tasks})


def summarise(
    clean: Predictions,
    corrupted: dict[str, np.ndarray],
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    calibrate: Callable[[np.ndarray], np.ndarray],
    **draws,
) -> dict:
    """Compares a run's predictions of corrupted images with those of the clean ones.

    Args:
      clean: of N images as they are.
      corrupted: {name of CORRUPTIONS: [5, N, T] ranking}, of the same images in the
        same order, at each severity.
      exclusive: whether an image has exactly one of them, as a class: it is then
        called the likeliest, whatever the thresholds.
      threshold: [T], fixed; a task of NaN has no calls.
      calibrate: ranking [N, T] -> the probabilities [N, T] by which calls are made.

    Returns a `Robustness` as JSON, see bootstrap.as_json.
    """
    known, patient, patients = bootstrap.numbered(clean.weight, clean.patient)
    labels = clean.label[known], clean.weight[known]
    reference = calibrate(clean.ranking[known])
    threshold = np.asarray(threshold, np.float32)
    options = {"exclusive": exclusive, **draws}
    areas, agreement = [], []  # Whole, then drawn: [1 + R, T] and [1 + R].
    for ranking in (clean.ranking, *itertools.chain(*corrupted.values())):
        score = ranking[known]
        data = score, calibrate(score), reference, *labels, patient, threshold
        whole, drawn = bootstrap.resample(_areas_and_calls, data, patients, **options)
        areas.append(np.concatenate([whole[0][None], drawn[0]]))
        agreement.append(np.append(whole[1], drawn[1]))
    rarer = discrimination.rarer_patients(*labels, patient)
    intervals = _intervals(areas, agreement, rarer)

    def interval(n: int, name: str) -> Interval:
        return bootstrap.interval(
            bootstrap.at(intervals[name], n),
            "no threshold" if name == "agreement" else "undefined in every task",
            patients=patients,
            replicates=draws["replicates"],
            name=name,
        )

    def at_severities(first: int) -> list[Severity]:
        return [
            Severity(severity, **{name: interval(n, name) for name in MEASURES})
            for n, severity in enumerate(SEVERITIES, start=first)
        ]

    corruptions = {}
    for c, name in enumerate(corrupted):
        first, corruption = 1 + c * len(SEVERITIES), CORRUPTIONS[name]
        severities = [
            row._replace(value=value, tasks=dict(zip(tasks, each[0], strict=True)))
            for row, value, each in zip(
                at_severities(first), corruption.values, areas[first:], strict=False
            )
        ]
        corruptions[name] = {
            "parameter": corruption.parameter,
            "severities": severities,
        }
    robustness = Robustness(
        films=len(clean.id),
        patients=len(np.unique(clean.patient)),
        replicates=draws["replicates"],
        clean={"auroc": interval(0, "auroc")},
        corruptions=corruptions,
        mean=at_severities(len(areas)),
    )
    return bootstrap.as_json(robustness)


def _intervals(
    areas: list[np.ndarray], agreement: list[np.ndarray], rarer: np.ndarray
) -> dict[str, Interval]:
    """Of each of MEASURES: the clean images, each corruption at each severity, and the
    means over the corruptions at each severity.

    Args:
      areas: [1 + R, T] each, whole and drawn, of all but the means.
      agreement: [1 + R] each, likewise.
      rarer: [T], patients of each task's rarer class.
    """
    every = len(SEVERITIES)
    rows = [[each] for each in areas]
    rows += [areas[1 + severity :: every] for severity in range(every)]
    defined = ~np.isnan(areas[0][0])
    ends = [_mean_area(row, defined, rarer[defined]) for row in rows]
    auroc, low, high = (np.stack(part) for part in zip(*ends, strict=True))
    means = [np.mean(agreement[1 + n :: every], axis=0) for n in range(every)]
    agreement, drop = np.stack([*agreement, *means]), auroc[0] - auroc
    return {
        "auroc": Interval(auroc[:, 0], low, high, np.isnan(auroc[:, 1:]).sum(axis=1)),
        "drop": bootstrap.normal(Resampled(drop[:, 0], drop[:, 1:].T)),
        "agreement": bootstrap.wilson(Resampled(agreement[:, 0], agreement[:, 1:].T)),
    }


def _mean_area(runs: list, defined: np.ndarray, rarer: np.ndarray) -> tuple:
    """The mean AUROC of [1 + R, T] each, [1 + R], whole and drawn; and its ends."""
    columns = np.concatenate([areas[:, defined] for areas in runs], axis=1)
    each = bootstrap.wilson(
        Resampled(columns[0], columns[1:]), np.tile(rarer, len(runs))
    )
    mean = bootstrap.mean_of(each, columns[1:], np.ones(len(columns.T)))
    return np.asarray(metrics.macro(columns, True)), mean.low, mean.high


def _areas_and_calls(data: tuple, counts: Array | None, *, exclusive: bool):
    """A statistic: AUROC [R, T] and agreement of the calls [R]."""
    score, called, reference, label, weight, patient, threshold = data
    judged = ~jnp.isnan(threshold)
    same = ((called >= threshold) == (reference >= threshold)) & judged
    if exclusive:
        judged = jnp.array([True])
        same = (called.argmax(axis=1) == reference.argmax(axis=1))[:, None]
    calls = jnp.stack([same.sum(axis=1), jnp.full(len(score), judged.sum())], axis=1)
    calls = bootstrap.reweigh(calls.astype(jnp.float32), counts, patient)
    stay, of_all = jnp.moveaxis(calls, -1, 0)
    area, _ = of_tasks(score, label, weight, patient, counts)
    return area, jnp.where(of_all > 0, stay / jnp.maximum(of_all, 1), jnp.nan)


def quantum_noise(key: Array, image: Array, value: Array) -> Array:
    """Poisson noise of the photons, of which fewest arrive where the patient is dense.

    Source: Poisson counts of mean `value` x exp(-RANGE x grey), and their logarithm;
    Bushberg et al., The Essential Physics of Medical Imaging, chapter 4.
    """
    mean = value * jnp.exp(-RANGE * image)
    counts = intensity.poisson(random.uniform(key, image.shape), mean)
    # Zero photons have no logarithm: they count as half a photon.
    return jnp.clip(jnp.log(value / jnp.maximum(counts, 0.5)) / RANGE, 0, 1)


def electronic_noise(key: Array, image: Array, value: Array) -> Array:
    """Gaussian noise of the detector's electronics, the same at every exposure."""
    return jnp.clip(image + value / 255 * random.normal(key, image.shape), 0, 1)


def blur(key: Array, image: Array, value: Array) -> Array:
    """A Gaussian blur, as of a large focal spot or a patient who moved."""

    def weights(size: int) -> Array:
        place = jnp.arange(size)
        distance = (place[:, None] - place) / (value / 100 * size)
        weight = jnp.exp(-0.5 * distance**2)
        return weight / weight.sum(axis=1, keepdims=True)

    rows, columns = map(weights, image.shape[:2])
    image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
    image = jnp.einsum("kl,ilc->ikc", columns, image, precision="highest")
    return jnp.clip(image, 0, 1)


def exposure(key: Array, image: Array, value: Array) -> Array:
    """Over- or underexposure, at random: every grey level moves by the same amount."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return jnp.clip(image + sign * value * math.log(2) / RANGE, 0, 1)


def contrast(key: Array, image: Array, value: Array) -> Array:
    """Scattered radiation, as without a grid, which makes dense parts grey.

    The value is the scatter's share of all that is detected; its amount is the same
    everywhere.

    Source: Bushberg et al., The Essential Physics of Medical Imaging, chapter 7.
    """
    primary = jnp.exp(-RANGE * image)
    detected = (1 - value) * primary + value * jnp.mean(primary)
    return jnp.clip(-jnp.log(detected) / RANGE, 0, 1)


def jpeg(key: Array, image: np.ndarray, value: float) -> np.ndarray:
    """Written as a JPEG file by OpenCV, each channel as grey, and read again."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(value)]
    pixels = np.rint(np.asarray(image) * 255).astype(np.uint8)
    decoded = [
        cv2.imdecode(
            cv2.imencode(".jpg", np.ascontiguousarray(channel), quality)[1],
            cv2.IMREAD_GRAYSCALE,
        )
        for channel in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(decoded, axis=-1).astype(np.float32) / 255


def rotation(key: Array, image: Array, value: Array) -> Array:
    """A patient who leans to either side, at random; the corners become black."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    matrix = warp.affine_matrix(
        flip=jnp.array(False),
        rotation=sign * jnp.radians(value),
        zoom=jnp.array(1.0),
        translation=jnp.zeros(2),
    )
    return jnp.clip(grid.affine(image, matrix), 0, 1)


def occlusion(key: Array, image: Array, value: Array) -> Array:
    """A white metal plate at a random place."""
    return intensity.cut_out(key, image, size=value / 100, fill=1.0)


class Corruption(NamedTuple):
    """A function of (key, image, value), the value's unit, and one for each severity."""

    apply: Callable
    parameter: str
    values: tuple[float, ...]


CORRUPTIONS = {
    "quantum_noise": Corruption(
        quantum_noise, "photons a pixel in air", (20_000, 8_000, 3_000, 1_200, 500)
    ),
    "electronic_noise": Corruption(
        electronic_noise, "deviation in grey levels of 255", (4, 8, 16, 24, 32)
    ),
    "blur": Corruption(
        blur,
        "deviation in % of the film's side (1 % is about 4 mm)",
        (0.5, 1, 1.5, 2, 3),
    ),
    "exposure": Corruption(
        exposure, "stops (doublings) too much or too little", (0.25, 0.5, 0.75, 1, 1.5)
    ),
    "contrast": Corruption(
        contrast, "scatter's share of what is detected", (0.2, 0.35, 0.5, 0.65, 0.8)
    ),
    "jpeg": Corruption(jpeg, "quality of the JPEG file", (50, 30, 20, 10, 5)),
    "rotation": Corruption(rotation, "degrees, to either side", (2, 5, 10, 15, 20)),
    "occlusion": Corruption(
        occlusion, "the plate's side in % of the film's", (10, 15, 20, 30, 40)
    ),
}


def corrupt(name: str, key: Array, image: Array, id: Array, *, severity: int) -> Array:
    """Corrupts images [B, H, W, C] in [0, 1] by one of CORRUPTIONS.

    Each image has a key of its own, from the suite's and its id [B], so that the batch
    doesn't matter.
    """
    corruption = CORRUPTIONS[name]
    value = corruption.values[severity - 1]
    if corruption.apply is jpeg:
        return np.stack([jpeg(key, pixels, value) for pixels in image])
    key = jax.random.fold_in(key, list(CORRUPTIONS).index(name))
    return _each(key, image, id, float(value), function=corruption.apply)


@functools.partial(jax.jit, static_argnames="function")
def _each(key, image, id, value, *, function) -> Array:
    """A loop on a CPU, so that an image's rounding doesn't depend on its batch."""

    def apply(pair):
        image, id = pair
        return function(jax.random.fold_in(key, id), image, value)

    return jax.lax.platform_dependent(
        (image, id),
        cpu=lambda pairs: jax.lax.map(apply, pairs),
        default=jax.vmap(apply),
    )
