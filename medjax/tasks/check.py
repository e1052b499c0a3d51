"""Mistakes in a config of any kind of task: refused before its data are read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from medjax.augment import safety
from medjax.config import Config, flatten
from medjax.errors import InputError, check_choice
from medjax.tasks import imbalance, parts, start
from medjax.training import devices

INF = float("inf")
RANGES = {  # What a field's number has to be, or each in a tuple.
    "1 or more": (
        lambda value: 1 <= value < INF,
        *("train.steps", "train.log_every", "train.evaluate_every", "train.keep"),
        *("train.accumulate", "model.growth", "model.features", "model.width"),
        *("evaluation.batch", "evaluation.replicates", "patch.each"),
        *("transfer.every", "resampling.most", "resampling.neighbours", "ensemble"),
    ),
    "1 to 10,000": (lambda value: 1 <= value <= 10_000, "data.side"),
    "0 or more": (
        lambda value: 0 <= value < INF,
        *("train.threads", "optim.weight_decay", "optim.warmup", "data.margin"),
        *("resampling.defer", "resampling.tau", "train.save_minutes"),
        *("split.folds", "split.fold", "split.patients", "split.cut"),
        *("evaluation.gallery", "evaluation.tolerance", "evaluation.copies"),
    ),
    "0 to 2**32 - 1": (lambda value: 0 <= value < 2**32, "seed"),
    "-1 to 2**32 - 1": (lambda value: -1 <= value < 2**32, "split.seed"),
    "more than 0": (
        lambda value: 0 < value < INF,
        *("optim.learning_rate", "optim.clip", "transfer.penalty"),
    ),
    "more than 0, at most 1": (lambda value: 0 < value <= 1, "transfer.decay"),
    "0 to 1": (
        lambda value: 0 <= value <= 1,
        *("data.max_quarantined", "patch.foreground", "patch.lesions"),
        "evaluation.threshold",
    ),
    "0 to less than 1": (
        lambda value: 0 <= value < 1,
        *("optim.ema", "split.test", "split.validation"),
    ),
    "whole numbers of 1 or more": (
        lambda value: isinstance(value, int) and value >= 1,
        *("model.widths", "model.kernels", "model.strides"),
    ),
    "whole numbers of 0 or more": (
        lambda value: isinstance(value, int) and value >= 0,
        "model.blocks",
    ),
    "shares from 0 to 1": (
        lambda value: isinstance(value, int | float) and 0 <= value <= 1,
        *("data.prevalence", "evaluation.prevalence"),
    ),
    "percentiles from 0 to 100": (
        lambda value: isinstance(value, int | float) and 0 <= value <= 100,
        "data.clip",
    ),
    "names": (
        lambda value: isinstance(value, str),
        *("data.tasks", "data.labels", "data.sequences", "data.regions", "data.names"),
    ),
    "0 to less than 0.5": (
        lambda value: 0 <= value < 0.5,
        *("split.minority", "evaluation.error_rate"),
    ),
}
JOINED = {  # Of runs that become one: {field: (its values, why no other is allowed)}.
    "adapt.name": (("none",), "each run is adapted to other images of the target"),
    "data.split": (("patients", "leave_one_out"), "its folds don't part the patients"),
    "ensemble": ((1,), "join runs of one network each"),
    "evaluation.calibration": (
        ("none", "platt", "temperature", "isotonic"),
        "the runs trained on other shares of the classes",
    ),
    "evaluation.error_rate": (
        (0.0,),
        "limits by the scores of several networks don't have the guarantee",
    ),
}
# In a name: left_kidney, kidneyRight, hippocampus_L, rh; but not bright, L1 or leftover.
LATERALITY = re.compile(
    r"(?<![^\W\d_])(?i:left|right)(?![a-z])|(?<=[a-z])(Left|Right)(?![a-z])"
    r"|(?<![^\W_])(?i:[lr]h?)(?![^\W_])"
)


def check_parts(
    config: Config, network: parts.Network, output: Any, *, batch: int
) -> None:
    """Refuses unknown names and numbers that don't go together, by making the parts.

    Args:
      output: as far as it is known.
      batch: what `train.batch` must be a multiple of.
    """
    _check_batch(config, batch)
    check_split(config)
    start.check_weights(config)
    kept = config.evaluation.checkpoint
    check_choice("evaluation.checkpoint", kept, ("best", "last"))
    whole = _whole_fit(config)
    if whole and config.ensemble > 1:
        raise InputError(
            f"{whole} with ensemble={config.ensemble}: it changes one network: set "
            "ensemble=1"
        )
    if whole and not devices.alone():
        raise InputError(f"{whole}: isn't for several processes: start one")
    _check_sides(config)
    parts.caveats(config)
    parts.pace(config, network.stages)
    parts.step_parts(config, network)
    if (tau := config.resampling.tau) and not (
        config.imbalance == "decoupled" and output.exclusive and parts.has_steps(config)
    ):
        raise InputError(
            f"resampling.tau={tau}: divides weights of a trained classifier of classes, "
            "with imbalance='decoupled'; of a finding alone it would change no rank"
        )
    imbalance.loss_arguments(config, output, imbalance.any_label(output))


def _whole_fit(config: Config) -> str:
    """The field by which one network changes by all images at once; '' for none."""
    if not parts.has_steps(config):
        return f"transfer.mode={config.transfer.mode!r}"
    if imbalance.treats(config, imbalance.REFITS):
        return f"imbalance={config.imbalance!r}"
    if config.adapt.name != "none":
        return f"adapt.name={config.adapt.name!r}"
    return ""


# Numbers that one choice of another field reads: their defaults, that field, the choices.
READ_BY = {
    "evaluation.value": (
        0.9,
        "evaluation.rule",
        ("cost", "sensitivity", "specificity"),
    ),
    "transfer.decay": (0.75, "transfer.mode", ("layerwise",)),
    "transfer.every": (100, "transfer.mode", ("gradual",)),
}


def check_ranges(config: Config) -> None:
    """Refuses numbers out of RANGES, or that nobody reads, and a loss's that can't be."""
    values = flatten(config.to_dict())
    for words, (holds, *fields) in RANGES.items():
        for field in fields:
            if field in values and not all(map(holds, jax.tree.leaves(values[field]))):
                raise InputError(f"{field}={values[field]}: give {words}")
    for field, (default, other, choices) in READ_BY.items():
        if values.get(field, default) != default and values[other] not in choices:
            raise InputError(
                f"{field}={values[field]}: is of no use with {other}={values[other]!r}: "
                f"leave it at {default}, or set {other} to {' or '.join(choices)}"
            )
    for field, value in values.items():
        number = field.startswith("loss.") and isinstance(value, int | float)
        if number and not 0 <= value < INF:
            raise InputError(f"{field}={value}: give 0 or more")
    test, validation = config.split.test, config.split.validation
    if test + validation >= 1:
        raise InputError(
            f"split.test={test} and split.validation={validation}: leave nobody to "
            "train on: give less"
        )
    if not config.data.records:
        raise InputError("data.records='': name the folder of the prepared data")
    if len({*config.augment.ops}) < len(config.augment.ops):
        raise InputError(f"augment.ops={config.augment.ops}: name each op once")
    for op in config.augment.ops:
        for name, value in config.augment.get(op, {}).items():
            words = "0 to 1" if name in ("flip", "probability") else "0 or more"
            if isinstance(value, float) and not RANGES[words][0](value):
                raise InputError(f"augment.{op}.{name}={value}: give {words}")


def _check_sides(config: Config) -> None:
    """Refuses mirror images where a label depends on left and right."""
    if not config.augment.sided:
        return
    c = config.evaluation
    mirrored = [
        f"augment.{name}"
        for name in config.augment.ops
        if safety.mirrors(name, config.augment.get(name, {}))
    ]
    mirrored *= not config.augment.allow_unsafe
    if c.get("flip", False) or 2 in c.get("flips", ()):
        mirrored.append(
            "evaluation.flip" if "flip" in c else f"evaluation.flips={c.flips}"
        )
    if mirrored:
        raise InputError(
            f"{mirrored[0]}: mirrors left and right, and by augment.sided=True a label "
            "depends on them: switch it off"
        )


def sides(config: Config, names: Sequence[str]) -> str:
    """A warning of findings or regions named after a side; '' for none."""
    named_so = [name for name in names if LATERALITY.search(name)]
    if config.augment.sided or not named_so:
        return ""
    return (
        f"{named_so[0]!r} names a side: set augment.sided=True, and left and right are "
        "mixed up neither by augmentation nor by evaluation.flip or .flips"
    )


def threshold(config: Config) -> str:
    """A warning of a threshold of masks that validation overrules; '' where it counts."""
    c = config.evaluation
    chosen = c.get("choose", False) and config.data.get("split") == "patients"
    if not chosen or c.threshold == 0.5:
        return ""
    return (
        f"evaluation.threshold={c.threshold}: validation chooses another one: to keep it "
        "set evaluation.choose=False"
    )


def warmup(config: Config) -> str:
    """A warning of a learning rate that never reaches its peak; '' if it does."""
    rise, steps = config.optim.warmup, config.train.steps
    if rise < steps or not parts.has_steps(config):
        return ""
    return (
        f"optim.warmup={rise}: training ends at step {steps}, before the learning rate "
        "reaches optim.learning_rate"
    )


def _check_batch(config: Config, shards: int) -> None:
    """Refuses a batch that can't be shared by devices times patches of a volume."""
    batch = config.train.batch
    if batch < 1 or batch % shards:
        raise InputError(
            f"train.batch={batch} can't be shared by {shards} devices"
            if "patch" not in config
            else f"train.batch={batch}: give a multiple of {shards}, the patches of a "
            f"volume (patch.each={config.patch.each}) times the devices"
        )
    parts = config.train.accumulate
    if batch % (shards * parts):
        raise InputError(
            f"train.accumulate={parts}: {batch // shards} of train.batch={batch} are "
            "together, which aren't so many equal parts"
        )


def check_split(config: Config) -> None:
    """Refuses settings of a split that another one would leave unused."""
    c, data = config.split, config.data
    way = data.get("split", "patients")
    ways = {
        "data.split": way * (way != "patients"),
        "data.official": data.get("official", ""),
        "split.folds": c.folds,
        "split.cut": c.get("cut", 0),
        "split.by": c.by * (c.by != "patient"),
    }
    chosen = [f"{name}={value!r}" for name, value in ways.items() if value]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} are two ways to split: choose one")
    if c.fold and not c.folds and way != "leave_one_out":
        raise InputError(f"split.fold={c.fold}: is of no use without split.folds")
    if c.patients and way != "patients":
        raise InputError(f"split.patients={c.patients}: is of no use with {chosen[0]}")


def check_joined(run: Path, config: Config) -> None:
    """Refuses a run that can't become a member of an ensemble."""
    for field, (allowed, why) in JOINED.items():
        value = flatten(config.to_dict()).get(field, allowed[0])
        if value not in allowed:
            raise InputError(f"{run}: {field}={value!r} can't be joined: {why}")
