"""Ops -> one function of (key, batch), written for one sample and mapped once."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax

from medjax.data.normalisation import unit_range
from medjax.geometry import warp

Op = Callable[[Array, Any], Any]


def sample_key(key: Array, epoch: Array, id: Array, occurrence: Array) -> Array:
    """The key of one image's random choices.

    Args:
      key: the run's key.
      epoch: [] int32.
      id: [] int32, the record's index.
      occurrence: [] int32, which copy of an over-sampled image this is.

    Returns:
      A key that no batch position, worker, device or clock has a part in, so a run
      replays bit for bit after any interruption.
    """
    for part in (epoch, id, occurrence):
        key = jax.random.fold_in(key, part)
    return key


def augment(key: Array, batch: dict[str, Array], **options: Any) -> Array:
    """The image alone of `augment_batch`, [B, *S, C] float32, as the model takes it."""
    return augment_batch(key, batch, **options)["image"]


def augment_batch(
    key: Array,
    batch: dict[str, Array],
    *,
    ops: Sequence[Op],
    prepare: Callable[[Array], Array],
    padding: str = "constant",
    fill: float = 0.0,
) -> dict[str, Array]:
    """Applies the ops in their order to every sample of a batch, then prepares it.

    Args:
      key: the run's key.
      batch: image [B, *S, C] uint8 or float, S of 2 or 3 axes, and epoch, id and
        occurrence [B] int32. If it has them, also a mask as label [B, *S, K] (a label
        of another rank is not moved), a weight for every voxel of it [B, *S, K],
        points [B, P, n] in pixels, and spacing [B, n] in mm.
      ops: warp.MOVES, which move image, mask and points, and functions of (key,
        image [*S, C]). Moves in a row are composed into one interpolation. The number
        in the order is folded into an op's key, so that another op's strength changes
        nothing in its draw.
      prepare: the modality's intensity preparation, see data/modality.py.
      padding, fill: what comes in from outside, see warp.sample; black by default, as
        collimated film is. A weight is 0 there: nobody has labelled it.

    Returns:
      The batch with what has changed: image [B, *S, C] float32 as the model takes it,
      mask and weight at the nearest pixels, and points where the image has them now.
    """
    found = {"image": unit_range(batch["image"])}
    for name in ("label", "weight"):
        if name in batch and batch[name].ndim == batch["image"].ndim:
            found[name] = batch[name]
    if "points" in batch:
        found["points"] = batch["points"]
    spacing = {"spacing": batch["spacing"]} if "spacing" in batch else {}
    rows = jnp.sum(batch["occurrence"] >= 0)  # All of them, as XLA doesn't know.
    own = _keys(rows, fused(key), *(batch[n] for n in ("epoch", "id", "occurrence")))
    keys = [jax.vmap(jax.random.fold_in, (0, None))(own, i) for i in range(len(ops))]
    steps = list(zip(keys, ops, strict=True))
    steps.append((own, lambda _, image: prepare(image[None])[0]))
    for moves, run in itertools.groupby(steps, lambda step: _is_move(step[1])):
        keys, same = zip(*run, strict=True)
        if moves:
            move = functools.partial(_move, same, padding=padding, fill=fill)
            found = _each(rows, move, keys, found, spacing)
        else:
            change = functools.partial(_change, same)
            found = found | {"image": _each(rows, change, keys, found["image"])}
    return batch | found


def _keys(rows, key, *numbers):
    """sample_key of every sample, [B].

    By the loop of `_each`: where many patches are of one volume, all their numbers are
    the same, and XLA's simplifier runs in circles over the rounds of their keys.
    """
    words = _each(rows, lambda *n: jax.random.key_data(sample_key(key, *n)), *numbers)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))


def _move(ops, keys, found, spacing, *, padding, fill) -> dict[str, Array]:
    """Moves one sample's image, masks and points by ops that are composed."""
    motion = warp.still(found["image"].shape[:-1], **spacing)
    for key, op in zip(keys, ops, strict=True):
        motion = op(key, motion)
    moved = {"image": warp.move(motion, found["image"], padding=padding, fill=fill)}
    if "label" in found:
        moved["label"] = warp.move(motion, found["label"], order=0, padding=padding)
    if "weight" in found:
        moved["weight"] = warp.move(motion, found["weight"], order=0)
    if "points" in found:
        moved["points"] = warp.move_points(motion, found["points"])
    return moved


def _change(ops, keys, image) -> Array:
    """Applies ops to one image's intensities."""
    for key, op in zip(keys, ops, strict=True):
        image = op(key, image)
    return image


def _each(rows, function, *args):
    """A function of one sample, for each of a batch.

    On a CPU by a loop: a sample stays in the cache, and a batch of any size runs the
    same compiled code, which rounds alike. Other devices need the whole batch at once.
    XLA runs a loop on one core: give it a CPU device for each, jax_num_cpu_devices.
    """
    return lax.platform_dependent(
        *args,
        cpu=functools.partial(_one_by_one, rows, function),
        default=jax.vmap(function),
    )


def _one_by_one(rows, function, *args):
    """By a loop whose length is unknown: a loop of one sample XLA would dissolve in
    what is around it, and compute a moved image again for each op that reads it."""

    def step(i, found):
        one = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), args)
        return jax.tree.map(
            lambda all, new: lax.dynamic_update_index_in_dim(all, new, i, 0),
            found,
            function(*one),
        )

    shapes = jax.eval_shape(jax.vmap(function), *args)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.fori_loop(0, rows, step, empty)


def _is_move(op) -> bool:
    return getattr(op, "func", op) in warp.MOVES.values()


def fused(key: Array) -> Array:
    """The same key, whose bits are drawn in the loop that uses them.

    jax.random gives the same numbers for both. On a CPU it draws those of its own
    keys by a loop over the rounds with every word in memory, three times as slow.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_FUSED)


def _threefry(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds: two words for two words.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = a + words[0], b + words[1]
    for turn in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[turn % 2]:
            a += b
            b = a ^ (b << bits | b >> (32 - bits))
        a += words[(turn + 1) % 3]
        b += words[(turn + 2) % 3] + np.uint32(turn + 1)
    return a, b


def _words(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Two words for the number of each entry."""
    number = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        step = np.uint32(math.prod(shape[axis + 1 :]))
        number += step * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _threefry(key, jnp.zeros(shape, jnp.uint32), number)


def _bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    if width > 32 or math.prod(shape) >= 2**32:
        return _STOCK.random_bits(key, width, shape)
    a, b = _words(key, shape)
    return (a ^ b).astype(jnp.dtype(f"uint{width}"))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_words(key, shape), axis=-1)


def _fold_in(key: Array, data: Array) -> Array:
    data = jnp.asarray(data, jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(data), data))


_STOCK = jax.extend.random.threefry_prng_impl
_FUSED = jax.extend.random.define_prng_impl(
    key_shape=_STOCK.key_shape,
    seed=_STOCK.seed,
    split=_split,
    fold_in=_fold_in,
    random_bits=_bits,
    name="fused_threefry2x32",
    tag="fused",
)
