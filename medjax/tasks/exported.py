"""A finished run as a function of weights and prepared pixels, for others to run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.config import Config, config_as_json
from medjax.data import intensity_units
from medjax.data.normalisation import HIGHEST, LOWEST
from medjax.data.sources import volumes
from medjax.errors import InputError
from medjax.evaluation import recalibration, sliding
from medjax.models import weights
from medjax.tasks import scans
from medjax.training import step

FILM_NOTE = (
    "Grey values or colours are scaled to [0, 1] by their format (DICOM as its header "
    "asks for display), squeezed into the square (an axis that shrinks is averaged over "
    "area, one that grows is interpolated linearly), multiplied by greys - 1 and rounded."
)
VOXELS_NOTE = "The volume's greys, of its size in the file."
VOLUME = (
    "The patient's sequences, in their order, are put on one grid with the axes D, H, W "
    "to the head, the back and the left, made z-scores of the body (or, in other units, "
    "seen through the windows), and cropped or padded to the shape about its middle, by "
    "these settings. What isn't body is 0, and a z-score is "
    f"(z - {LOWEST:g}) / {HIGHEST - LOWEST:g} times greys - 1, rounded, at least 1."
)
SCAN = (
    "The patient's sequences, in the order of `sequences`, are put on one grid with the "
    "axes D, H, W to the head, the back and the left, in their units (z-scores where none "
    "are named), by these settings; `prepare` writes such volumes to its records."
)


class ExportedModel(NamedTuple):
    """What of a run others can run, and what they have to know of it."""

    answer: Callable  # (weights by name, image [B, ...]) -> float32 arrays [B, ...].
    image: tuple[int, ...]  # The shape of one.
    dtype: str  # Of an image.
    outputs: tuple[tuple[int, ...], ...]  # The shape of each array, of an image.
    weights: dict[str, np.ndarray]  # See weights.flat.
    facts: dict[str, Any]  # For task.json.


def of_images(run: Any) -> ExportedModel:
    """Calibrated probabilities and calls of prepared images, [B, 2 T] in all.

    A call is 1 from the threshold on, 0 below it, and -1 where there is none; of
    classes it is 1 for the likeliest. Also the probability of masks, if it draws some.

    Raises:
      InputError: the run averages augmented copies.
    """
    _refuse_copies(run)
    output, states = run.output, step.members(run.state)
    fit, thresholds = run.fixed.calibration.fit, run.thresholds.astype(np.float32)
    count = len(output.names)

    def answer(arrays: dict[str, Array], image: Array) -> tuple[Array, ...]:
        each = zip(states, weights.nested(arrays), strict=True)
        members = [state._replace(averaged=averaged) for state, averaged in each]
        each = [run.network.rows(member, image) for member in members]
        z = each[0] if len(each) == 1 else step.log_odds_of_mean(jnp.stack(each))
        # As on the host, calibration begins with the rounded and clipped probability.
        p = 1 / (1 + jnp.exp(-z))
        p = recalibration.calibrate(fit, p, jnp, jax.scipy.special)
        if output.exclusive:
            call = jax.nn.one_hot(jnp.argmax(p, axis=1), count)
        else:
            call = jnp.where(np.isnan(thresholds), -1, p >= thresholds)
        table = jnp.concatenate([p, call.astype(jnp.float32)], axis=1)
        if not output.masks:
            return (table,)
        draw = run.network.rows_of_masks
        drawn = [jax.nn.sigmoid(draw(member, image)) for member in members]
        return table, sum(drawn) / len(drawn)

    masks = (*output.shape[:-1], len(output.masks))
    facts = {
        "kind": "classification",
        **output._asdict(),
        "columns": [*output.names, *(f"{name}_call" for name in output.names)],
        "greys": 2**output.bits,
        "thresholds": dict(zip(output.names, run.thresholds.tolist(), strict=True)),
        "calibration": run.fixed.calibration.method,
        "flip": run.config.evaluation.flip,
        "preparation": {"steps": FILM_NOTE if len(output.shape) == 3 else VOXELS_NOTE},
    }
    if output.spacing:
        names = ("units", *volumes.OPTIONS)
        facts["preparation"] = {"steps": VOLUME} | _fields(run.config, names)
    return ExportedModel(
        answer=answer,
        image=output.shape,
        dtype=f"uint{output.bits}",
        outputs=((2 * count,), *[masks] * bool(output.masks)),
        **_common(run, facts),
    )


def of_volumes(run: Any, *, patch, slices, overlap, flips, **_) -> ExportedModel:
    """Probabilities of one window of a volume: predict.py blends those of all windows.

    [B, d, h, w, C] float32 -> [B, d, h, w, K + 1], or of a model of slices
    [B, 1, h, w, K + 1]: probabilities times the voxels' weights, and last these weights.
    The windows are as in sliding.volume_probability.

    Raises:
      InputError: the run averages augmented copies.
    """
    _refuse_copies(run)
    planar, regions = len(patch) == 2, run.output.names
    seen, written = ((slices, *patch), (1, *patch)) if planar else (patch, patch)
    d, h, w = map(sliding.gaussian, written)
    weight = (d[:, None, None] * h[:, None] * w)[..., None].astype(np.float32)

    def answer(arrays: dict[str, Array], image: Array) -> tuple[Array]:
        image = intensity_units.normalise(image, run.output.channels, jnp)
        each = []
        for variables in weights.nested(arrays):
            for view in sliding.mirrorings(flips):
                axes = [1 + axis for axis in view]
                x = jnp.flip(image, axes)
                if planar:
                    x = jnp.moveaxis(x, 1, 3).reshape(*image.shape[:1], *patch, -1)
                y = run.network.predict(variables, x)
                each.append(jnp.flip(y[:, None] if planar else y, axes))
        mean = sum(each) / len(each)
        ones = jnp.ones((*mean.shape[:-1], 1))
        return (jnp.concatenate([mean, ones], axis=-1) * weight,)

    facts = {
        "kind": "segmentation",
        **run.output._asdict(),
        "names": regions,
        "window": {"reads": seen, "answers": written, "overlap": overlap},
        "flips": flips,
        "masks": {
            region: post._asdict()
            for region, post in zip(regions, run.fixed, strict=True)
        },
        "preparation": {"steps": SCAN} | _fields(run.config, scans.READING),
    }
    return ExportedModel(
        answer=answer,
        image=(*seen, len(run.output.sequences)),
        dtype="float32",
        outputs=((*written, len(regions) + 1),),
        **_common(run, facts),
    )


def _refuse_copies(run: Any) -> None:
    if copies := run.config.evaluation.copies:
        raise InputError(
            f"{run.folder}: evaluation.copies={copies}: augmented copies can't be "
            "exported: train with evaluation.copies=0; mirror images can be"
        )


def _common(run: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The weights, and the facts with what transfer.init needs to know of them."""
    states = jax.device_get(step.members(run.state))
    values = config_as_json(run.config)
    facts |= {
        "members": len(states),
        "model": values["model"],
        "intensity": values.get("intensity", {}),
    }
    return {
        "weights": weights.flat([state.averaged for state in states]),
        "facts": facts,
    }


def _fields(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    """These fields of `config.data`, where it has them."""
    return {name: config.data[name] for name in names if name in config.data}
