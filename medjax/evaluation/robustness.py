"""What corrupted films cost a run: its mean AUROC, and calls that change.

What goes wrong with a chest film, from hardly to badly: a suite of corruptions.

All take and give the same:
  key: a key for this image alone; what it draws is the same at every severity, so that
    a worse one does the same thing harder.
  image: [H, W, C] float32 in [0, 1]; white (1) is dense.
  value: how badly, in the unit that CORRUPTIONS names.
  result: same shape, in [0, 1].

A film's grey is taken as the logarithm of the exposure behind the patient, with two
decades of it (RANGE) from black to white.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.augment import acquisition, random
from medjax.errors import InputError
from medjax.evaluation import areas as replicates
from medjax.evaluation import bootstrap, metrics
from medjax.evaluation.bootstrap import Interval
from medjax.evaluation.predict import Predictions
from medjax.geometry import warp

KINDS = ("auroc", "drop", "agreement")


def summarise(
    clean: Predictions,
    corrupted: dict[str, np.ndarray],
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    key: Array,
    replicates: int,
    told: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict:
    """Compares what a run says of corrupted films with what it says of the same films.

    Args:
      clean: of N films as they are.
      corrupted: {name of corruptions.CORRUPTIONS: [5, N, T] probability}, of the same
        films in the same order, at each severity.
      tasks: T names.
      exclusive: whether an image has exactly one of them, as a class: its one call is
        then the likeliest, whatever the thresholds.
      threshold: [T], frozen; a task of NaN has no calls.
      key, replicates: of the bootstrap over patients, the same draws for all.
      told: [N, T] -> [N, T], the calibration of these probabilities, by which calls
        are made; they are ranked as they are. None: there is none.

    Returns:
      films, patients, replicates; clean: {auroc: interval}; corruptions: {name:
      {parameter, severities: [{severity, value, auroc, drop, agreement: interval,
      tasks: {T: AUROC}}]}}; mean: [{severity, auroc, drop, agreement}], the mean over
      the corruptions. auroc is the mean over the tasks that have one on the clean
      films; drop, how much lower it is than theirs; agreement, the share of calls that
      stay. An interval is {estimate, low, high, undefined, why}, of 95 %, see
      cells.interval.
    """
    rows = (clean.weight > 0).any(axis=1)  # As in intervals.bootstrap.
    names, patient = np.unique(clean.patient[rows], return_inverse=True)
    threshold = np.asarray(threshold, np.float32)
    told = told or (lambda probability: probability)
    measure = functools.partial(
        _measure,
        clean=told(clean.probability[rows]),
        label=clean.label[rows],
        weight=clean.weight[rows],
        patient=patient.astype(np.int32),
        threshold=threshold,
        key=key,
        exclusive=exclusive,
        patients=names.size,
        replicates_=replicates,
    )
    before, _ = jax.device_get(
        measure(clean.probability[rows], told(clean.probability[rows]))
    )
    defined = ~np.isnan(before[0])
    before = np.asarray(metrics.macro(before, defined))
    found, columns = {}, {}
    for name, probability in corrupted.items():
        severities = []
        for severity, one in zip(SEVERITIES, probability, strict=True):
            areas, agreement = jax.device_get(measure(one[rows], told(one[rows])))
            auroc = np.asarray(metrics.macro(areas, defined))
            column = np.stack([auroc, before - auroc, agreement])
            columns[name, severity] = column
            severities.append(
                {
                    "severity": severity,
                    "value": CORRUPTIONS[name].values[severity - 1],
                    **_intervals(column, names.size),
                    "tasks": dict(
                        zip(tasks, map(bootstrap.number, areas[0]), strict=True)
                    ),
                }
            )
        parameter = CORRUPTIONS[name].parameter
        found[name] = {"parameter": parameter, "severities": severities}
    return {
        "films": len(clean.id),
        "patients": len(np.unique(clean.patient)),
        "replicates": replicates,
        "clean": {"auroc": _interval(before, "auroc", names.size)},
        "corruptions": found,
        "mean": [
            {
                "severity": severity,
                **_intervals(
                    np.mean([columns[n, severity] for n in found], axis=0), names.size
                ),
            }
            for severity in SEVERITIES
        ],
    }


@functools.partial(jax.jit, static_argnames=("exclusive", "patients", "replicates_"))
def _measure(
    score,
    told,
    *,
    clean,
    label,
    weight,
    patient,
    threshold,
    key,
    exclusive,
    patients,
    replicates_,
) -> tuple[Array, Array]:
    """AUROC [1 + R, T] and agreement [1 + R]: of the films as they are, then drawn."""
    judged = ~jnp.isnan(threshold)
    same = ((told >= threshold) == (clean >= threshold)) & judged
    if exclusive:
        judged = jnp.array([True])
        same = (jnp.argmax(told, axis=1) == jnp.argmax(clean, axis=1))[:, None]
    calls = jnp.stack([same.sum(axis=1), jnp.full(len(score), judged.sum())], axis=1)
    calls = jax.ops.segment_sum(calls.astype(jnp.float32), patient, patients)

    def of(counts):
        area, _ = replicates.replicate_areas(score, label, weight, patient, counts)
        weights = counts.T.astype(jnp.float32)
        stay, all_ = jnp.matmul(weights, calls, precision="highest").T
        return area, jnp.where(all_ > 0, stay / jnp.maximum(all_, 1), jnp.nan)

    drawn = replicates.in_chunks(
        lambda numbers: of(replicates.multiplicities(key, numbers, patients)),
        replicates_,
    )
    whole = of(jnp.ones((patients, 1), jnp.uint8))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), whole, drawn)


def _intervals(column: np.ndarray, patients: int) -> dict[str, dict]:
    """Of KINDS, [3, 1 + R]."""
    return {
        kind: _interval(values, kind, patients)
        for kind, values in zip(KINDS, column, strict=True)
    }


def _interval(values: np.ndarray, kind: str, patients: int) -> dict:
    """Of an estimate and R replicates, [1 + R], of so many patients."""
    low, high = jnp.nanquantile(values[1:], jnp.array([0.025, 0.975]))
    found = Interval(values[0], low, high, np.isnan(values[1:]).sum())
    why = "no threshold" if kind == "agreement" else "undefined in every task"
    behind = {"patients": patients, "replicates": len(values) - 1}
    return bootstrap.interval(found, why, kind=kind, **behind)


RANGE = math.log(100)
SEVERITIES = (1, 2, 3, 4, 5)  # 0 is the image as it is.


def quantum_noise(key: Array, image: Array, value: Array) -> Array:
    """Photons are counted, and the fewest arrive where the patient is dense.

    Source: Poisson counts of mean `value` x exp(-RANGE x grey), and their logarithm;
    Bushberg et al., The Essential Physics of Medical Imaging, chapter 4.
    """
    mean = value * jnp.exp(-RANGE * image)
    counts = acquisition.poisson(random.uniform(key, image.shape), mean)
    # Of no photon there is no logarithm; the darkest that is known is below one.
    return jnp.clip(jnp.log(value / jnp.maximum(counts, 0.5)) / RANGE, 0, 1)


def electronic_noise(key: Array, image: Array, value: Array) -> Array:
    """The reading's own Gaussian noise, as strong in the dark as in the light."""
    return jnp.clip(image + value / 255 * random.normal(key, image.shape), 0, 1)


def blur(key: Array, image: Array, value: Array) -> Array:
    """A large focus, or a patient who moved: a Gaussian."""

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
    """Too much or too little, as the key says: every grey moves by as much."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return jnp.clip(image + sign * value * math.log(2) / RANGE, 0, 1)


def contrast(key: Array, image: Array, value: Array) -> Array:
    """Scattered radiation, as without a grid: a veil that greys what is dense.

    Source: the scatter fraction of all that is detected, here the same everywhere in
    amount; Bushberg et al., The Essential Physics of Medical Imaging, chapter 7.
    """
    primary = jnp.exp(-RANGE * image)
    detected = (1 - value) * primary + value * jnp.mean(primary)
    return jnp.clip(-jnp.log(detected) / RANGE, 0, 1)


def jpeg(key: Array, image: np.ndarray, value: float) -> np.ndarray:
    """Written as a JPEG file, each channel as grey, and read again: OpenCV's, on the host."""
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
    """A patient who leans to one side, as the key says; black comes in."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    matrix = warp.affine_matrix(
        flip=jnp.array(False),
        rotation=sign * jnp.radians(value),
        zoom=jnp.array(1.0),
        translation=jnp.zeros(2),
    )
    return jnp.clip(warp.affine(image, matrix), 0, 1)


def occlusion(key: Array, image: Array, value: Array) -> Array:
    """A metal plate, white, somewhere over the film."""
    return acquisition.cut_out(key, image, size=value / 100, fill=1.0)


class Corruption(NamedTuple):
    """A function of (key, image, value), what the value is, and it at each severity."""

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
    """Corrupts films, each by a key of its own: in any batch in the same way.

    Args:
      name: of CORRUPTIONS.
      key: of the whole suite.
      image: [B, H, W, C] float in [0, 1].
      id: [B] int, the films' numbers.
      severity: 0 to 5; 0 gives the films themselves.

    Returns:
      [B, H, W, C] float32 in [0, 1].

    Raises:
      InputError: no such severity.
    """
    if severity not in (0, *SEVERITIES):
        raise InputError(f"severity={severity}: give 0 to {SEVERITIES[-1]}")
    if severity == 0:
        return image
    corruption = CORRUPTIONS[name]
    value = corruption.values[severity - 1]
    if corruption.apply is jpeg:
        return np.stack([jpeg(key, one, value) for one in image])
    key = jax.random.fold_in(key, list(CORRUPTIONS).index(name))
    return _each(key, image, id, float(value), function=corruption.apply)


@functools.partial(jax.jit, static_argnames="function")
def _each(key, image, id, value, *, function) -> Array:
    """A loop on a CPU, so that a film's rounding doesn't depend on its batch."""

    def one(pair):
        image, id = pair
        return function(jax.random.fold_in(key, id), image, value)

    return jax.lax.platform_dependent(
        (image, id), cpu=lambda pairs: jax.lax.map(one, pairs), default=jax.vmap(one)
    )
