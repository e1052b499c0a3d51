"""Class imbalance, `config.imbalance`: weights of the loss, or how often images show."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax import losses
from medjax.cohort import balance
from medjax.config import Config, named
from medjax.errors import InputError, check_choice

# Values of `imbalance`: how the loss weights the classes, how often the loader shows
# an image, or how the classifier is refitted.
WEIGHTS = {"none": "uniform", **{s: s for s in ("ratio", "balanced", "effective")}}
PLANS = ("over_sample", "under_sample", "both", "repeat_factor")
SYNTHETIC = ("smote", "adasyn")
REFITS = (*SYNTHETIC, "decoupled")


def loss_arguments(config: Config, output: Any, label: np.ndarray) -> dict:
    """The keyword arguments of the loss: the config's numbers and the class weights.

    `label` [N, T] is of the training images, before any resampling; NaN where unknown.
    Of volumes, it is the share of the voxels in each region.

    Raises:
      InputError: the loss takes no such number or no weights, or isn't for this task.
    """
    options = config.loss.to_dict()
    name = options.pop("name")
    if name == "auc_margin":  # The only loss that learns; see initial_state.
        options.pop("rate", None)
    beside = {"masks": options.pop("masks", 1.0)} if output.masks else {}
    arguments = _arguments(config, output, label, name, options)
    parts = [arguments, *arguments.get("parts", {}).values()]
    weighted = any(part.keys() & {"w", "w_pos"} for part in parts)
    if treats(config, WEIGHTS) and config.imbalance != "none" and not weighted:
        raise InputError(
            f"imbalance={config.imbalance!r} weights classes, and loss.name={name!r} "
            "takes no weights: set imbalance='none' or another loss"
        )
    if (defer := config.resampling.defer) and (
        defer >= config.train.steps or config.imbalance not in [*WEIGHTS][1:]
    ):
        raise InputError(
            f"resampling.defer={defer}: no class weights begin there: give fewer than "
            f"train.steps={config.train.steps}, and imbalance='effective', say"
        )
    return arguments | beside


def _arguments(
    config: Config, output: Any, label: np.ndarray, name: str, options: dict
) -> dict:
    """The arguments of a loss, or of a part of a compound one."""
    takes = inspect.signature(named(losses, name, "loss.name")).parameters
    if "logits" not in takes:
        raise InputError(f"loss.name={name!r}: medjax.losses has no such loss")
    for option in options:
        if option not in takes:
            raise InputError(f"loss.{option}: {name} has no such number: leave it out")
    if "parts" in takes:
        parts = {}
        for part, numbers in options.get("parts", {}).items():
            output.check_loss(part)
            if part == "auc_margin":
                raise InputError("loss.parts: auc_margin can only stand alone")
            share = {"share": numbers.pop("share", 1.0)}
            parts[part] = share | _arguments(config, output, label, part, numbers)
        return {"parts": parts}
    output.check_loss(name)
    names, exclusive, arguments = output.names, "w" in takes, {}
    if name in losses.SOFTMAX:
        names, label = output.classes(label)
    if takes.keys() & {"w", "w_pos"}:
        arguments = class_weights(config, names, label, exclusive)
    if "prevalence" in takes:
        positives, negatives = balance.frequencies(label)
        arguments["prevalence"] = positives / np.maximum(positives + negatives, 1)
    return arguments | options


def counted(config: Config, data: Any, ids: np.ndarray) -> np.ndarray:
    """[N, T], what class weights are computed from: labels, or masks' share of voxels."""
    patients = config.resampling.get("count", "") == "patients"
    return data.label(ids) if patients else data.weighted(ids)


def class_weights(
    config: Config,
    names: Sequence[str],
    label: np.ndarray,
    exclusive: bool,
    imbalance: str = "",
) -> dict[str, np.ndarray]:
    """w_pos and w_neg [T] of findings or regions, or w [T] of exclusive classes.

    `label` [N, T] is of the training images; `imbalance` is taken instead of the
    config's, if given.
    """
    scheme = WEIGHTS.get(imbalance or config.imbalance, "uniform")
    options = {"scheme": scheme, "drop": config.resampling.drop}
    if exclusive:
        return {"w": balance.multiclass_weights(label, classes=names, **options)}
    return balance.class_weights(label, tasks=names, **options)._asdict()


def treats(config: Config, kind: Any) -> bool:
    """Whether `config.imbalance` is in `kind`: WEIGHTS, PLANS or REFITS."""
    check_choice("imbalance", config.imbalance, (*WEIGHTS, *PLANS, *REFITS))
    return config.imbalance in kind


def resampled(config: Config, label: np.ndarray) -> balance.Epoch | None:
    """How often each training image is shown; None where each is once an epoch."""
    if not treats(config, PLANS):
        return None
    c = config.resampling
    options = {"seed": config.seed, "target": c.target}
    if config.imbalance != "repeat_factor":
        options["any_positive"] = c.any_positive
    if config.imbalance in ("over_sample", "both"):
        options["most"] = c.most
    return getattr(balance, config.imbalance)(label, **options)


def any_label(output: Any) -> np.ndarray:
    """[N, T] labels with both classes, where only shapes and names matter."""
    return np.eye(len(output.names) + 1)[:, :-1]
