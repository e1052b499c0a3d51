"""`config.augment` -> its ops, their numbers bound or given as arrays."""

import functools
from collections.abc import Callable

import numpy as np
from chex import Array

from medjax.augment import intensity, policy, safety
from medjax.config import Config, named
from medjax.geometry import warp

# An op's numbers that set a shape, or are checked when the op is traced.
STATIC = {
    "blur": ("max_sigma",),
    "clahe": ("clip",),
    "crop_pad": ("shift",),
    "elastic": ("strength", "distance"),
    "low_resolution": ("strength",),
}


def ops(config: Config, *, strength: float = 1.0) -> dict[str, Callable]:
    """The ops of `config.augment` by name, in their order, with their numbers bound.

    Args:
      strength: factor of every float among an op's numbers.
    """
    found = {}
    for name in config.augment.ops:
        options = {
            option: value * strength if isinstance(value, float) else value
            for option, value in config.augment.get(name, {}).items()
        }
        op = warp.MOVES.get(name) or named(intensity, name, "augment.ops")
        found[name] = functools.partial(op, **options)
    return found


def strengths(config: Config) -> dict[str, dict[str, np.float32]]:
    """The floats of every op that may be arrays: what no shape depends on."""
    return {
        name: {
            option: np.float32(value)
            for option, value in config.augment.get(name, {}).items()
            if isinstance(value, float) and option not in STATIC.get(name, ())
        }
        for name in config.augment.ops
    }


def augment(config: Config, prepare: Callable) -> Callable:
    """(key, batch, `strengths` as arrays) -> the batch as policy.augment_batch has it.

    Args:
      prepare: the modality's intensity preparation.
    """
    bound = ops(config)

    def apply(
        key: Array, batch: dict[str, Array], strengths: dict[str, dict[str, Array]]
    ) -> dict[str, Array]:
        given = [functools.partial(op, **strengths[name]) for name, op in bound.items()]
        return policy.augment_batch(key, batch, ops=given, prepare=prepare)

    return apply


def caveats(config: Config) -> tuple[str, ...]:
    """What speaks against the ops of `config.augment` for this modality, a sentence each.

    Raises:
      InputError: an op that can change the label, without augment.allow_unsafe.
    """
    if not config.modality:
        return ()
    return safety.check(
        [(name, config.augment.get(name, {})) for name in config.augment.ops],
        modality=config.modality,
        sided=config.augment.sided,
        allow_unsafe=config.augment.allow_unsafe,
    )
