"""The policy of each modality: its default ops, and the refusal of unsafe ones."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.augment import intensity
from medjax.augment.safety import POLICIES, Policy
from medjax.errors import InputError
from medjax.geometry import warp

Options = Mapping[str, Any]


def default(modality: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(op, its options) of the modality's policy, in order; a copy, free to change."""
    return tuple((op, dict(o)) for op, o in _policy(modality).default.items())


def check(
    ops: Sequence[tuple[str, Options]],
    *,
    modality: str,
    sided: bool = False,
    allow_unsafe: bool = False,
) -> tuple[str, ...]:
    """Refuses ops that can change the label.

    Args:
      ops: (name, options) in order; an option that is left out has its default.
      modality: one of POLICIES.
      sided: the label depends on left and right.
      allow_unsafe: turns the refusals into caveats.

    Returns:
      Caveats for the report, a sentence each; none where all is by the policy.

    Raises:
      InputError: an op that is unsafe or unknown, or an unknown modality.
    """
    policy, caveats = _policy(modality), []
    for name, options in ops:
        options = _defaults(name) | dict(options)
        for where, reason in _reasons(name, options, policy, sided):
            what = f"augment.{where} is unsafe for {modality}: {reason}"
            if not allow_unsafe:
                raise InputError(
                    f"{what}; leave it out or set augment.allow_unsafe=True"
                )
            caveats.append(what)
        if name in policy.caution:
            caveats.append(f"augment.ops: {name!r}: {policy.caution[name]}")
        if policy.mirror and not sided and _mirrored(name, options) == "sides":
            caveats.append(f"augment.{name}, left-right mirror: {policy.mirror}")
    return tuple(caveats)


def _reasons(name, options, policy, sided):
    """(field, reason) of all that makes an op unsafe with these options."""
    if name in policy.unsafe:
        yield f"ops: {name!r}", policy.unsafe[name]
    mirrored = _mirrored(name, options)
    if mirrored == "upright":
        yield f"{name}.axis={options['axis']}", f"{policy.upright} (left-right is -1)"
    if mirrored == "sides" and sided:
        yield f"{name}, left-right mirror", "the label depends on the side"
    for (op, option), (most, reason) in policy.limits.items():
        value = options.get(option, 0)  # One that must be given: the op will say so.
        if op == name and np.max(np.abs(value)) > most:
            yield f"{name}.{option}={value}", f"{reason} (at most {most:g})"
    if policy.frames and options.get("in_plane") is False:
        yield f"{name}.in_plane=False", policy.frames


def _mirrored(name: str, options: Options) -> str:
    """'sides' for left and right, 'upright' for another axis, '' for none."""
    if name == "random_affine" and options["flip"] > 0:
        return "sides"
    if name == "flip" and options["probability"] > 0:
        return "sides" if options["axis"] == -1 else "upright"
    return ""


def _defaults(name: str) -> dict[str, Any]:
    """The options that an op has if none are given."""
    names = sorted({*intensity.__all__, *warp.MOVES})
    if name not in names:
        raise InputError(f"augment.ops: {name!r} is no op: use {', '.join(names)}")
    op = warp.MOVES.get(name) or getattr(intensity, name)
    own = inspect.signature(op).parameters.values()
    return {p.name: p.default for p in own if p.default is not p.empty}


def _policy(modality: str) -> Policy:
    if modality not in POLICIES:
        known = ", ".join(map(repr, POLICIES))
        raise InputError(f"modality={modality!r} is unknown: use {known}")
    return POLICIES[modality]
