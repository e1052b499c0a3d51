"""The step of many arms, compiled for as many of them at once as memory holds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from chex import Array

from medjax.data.loader import Batch
from medjax.training import step
from medjax.training.step import State

HEADROOM = 0.1  # Share of an accelerator's memory.


class Program(NamedTuple):
    """A compiled step of some arms.

    step: (state, batch, key) [A, ...] -> (state, scalars) [A, ...].
    devices: over which the arms are spread.
    abreast: arms on each of them at once; a wave of arms is devices x abreast.
    arms: whose states stay on the devices, wave after wave; no more are trained at a
      time.
    of: arms that there are; they are trained in parts of `arms`, one after the other.
    need: bytes of each device's memory for that.
    free: those that nobody used before; inf: unknown.
    """

    step: Callable
    devices: int
    abreast: int
    arms: int
    of: int
    need: float
    free: float

    @property
    def wave(self) -> int:
        """Arms that are computed at once."""
        return self.devices * self.abreast

    def __str__(self) -> str:
        free = "unknown" if math.isinf(self.free) else f"{self.free / 1e9:.1f} GB"
        parts, waves = math.ceil(self.of / self.arms), math.ceil(self.arms / self.wave)
        fits = "fits" if parts == 1 else f"doesn't fit, split into {parts} parts"
        if math.isinf(self.free):
            fits = "taken to fit"
        if self.need > self.free:  # Less than one wave can't be tried.
            fits += ", and may be more than there is"
        return (
            f"{self.arms} of {self.of} arms at a time, in {waves} waves of {self.wave} "
            f"on {self.devices} devices: {self.need / 1e9:.2f} GB on each, free: {free}: "
            f"{fits}"
        )


def compiled(
    state: State,
    batch: Batch,
    key: Array,
    *,
    arms: int,
    abreast: int | None = None,
    free: float | None = None,
    **parts: Any,
) -> Program:
    """Compiles the step of so many arms, or of as many as there is memory for.

    On a CPU a device has one arm at a time, and the same program runs for one wave of
    arms after the other. Side by side they'd be grouped convolutions and batches of
    products, for which XLA has no library there: the quickstart's update takes 0.25 s
    of a core alone, 0.59 s an arm by vmap, and 0.99 s in a loop over the arms.

    Args:
      state, batch, key: of an arm, [B, ...] rows; the others' have the same shapes.
      arms: how many.
      abreast: arms on a device at most; None: one on a CPU, else all.
      free: bytes of each device's memory; None: as `free_memory` finds.
      parts: of step.train_step.
    """
    devices = min(arms, jax.local_device_count())
    free = free_memory() if free is None else free
    if abreast is None:
        alone = jax.default_backend() == "cpu"
        abreast = 1 if alone else math.ceil(arms / devices)
    one = (state, batch, key)
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    while True:
        program = _lowered(one, devices, abreast, **parts).compile()
        first = _bytes(program.memory_analysis())
        if first <= free or abreast == 1:
            break
        abreast = max(1, min(abreast - 1, int(abreast * free / first)))
    number = holds(arms, devices, abreast, own=own, first=first, free=free)
    later = math.ceil(number / (devices * abreast)) - 1
    need = first + later * abreast * own
    return Program(program, devices, abreast, number, arms, need, free)


def _lowered(one: tuple, devices: int, abreast: int, **parts: Any):
    """The step of so many arms, before it is compiled; `one` has an arm's arguments."""
    places, arms = step.by_arm(devices), devices * abreast
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((arms, *x.shape), x.dtype, sharding=places), one
    )
    return step.compile_arms(devices=devices, **parts).lower(*shapes)


def holds(
    arms: int, devices: int, abreast: int, *, own: float, first: float, free: float
) -> int:
    """How many arms' states stay in memory beside the wave that is computed.

    At least one wave's, whether it fits or not: less can't be tried.

    Args:
      arms: all of them.
      devices, abreast: of a wave.
      own: bytes of an arm's state.
      first: bytes of each device for a wave alone.
      free: bytes of each device.
    """
    if math.isinf(free):
        return arms
    waves = 1 + max(0, math.floor((free - first) / (own * abreast)))
    return min(arms, waves * devices * abreast)


def free_memory() -> float:
    """Bytes of each device of this host that nobody uses; inf where it doesn't say.

    Of an accelerator a tenth is left free: for the arms' predictions, and for the gaps
    between arrays, of which the compiler's sum knows nothing.
    """
    found = jax.local_devices()[0].memory_stats()
    if found and "bytes_limit" in found:
        return (1 - HEADROOM) * found["bytes_limit"] - found["bytes_in_use"]
    known = Path("/proc/meminfo")
    if jax.default_backend() != "cpu" or not known.exists():
        return math.inf
    lines = (line.split() for line in known.read_text().splitlines())
    (available,) = (int(line[1]) for line in lines if line[0] == "MemAvailable:")
    return available * 1024 / jax.local_device_count()


def _bytes(found) -> int:
    """What a compiled program needs; donated arguments are its results as well."""
    sizes = ("argument", "output", "temp")
    total = sum(getattr(found, f"{name}_size_in_bytes") for name in sizes)
    return total - found.alias_size_in_bytes
