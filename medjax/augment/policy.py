"""Applies augmentation ops to batches: ops change one sample, by its own key."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

from medjax.data.normalisation import unit_range
from medjax.geometry import warp

Op = Callable[[Array, Any], Any]


def sample_key(key: Array, epoch: Array, id: Array, occurrence: Array) -> Array:
    """The key of one image's random choices, from the run's key.

    `occurrence` tells apart the copies of an over-sampled image. No batch position,
    worker, device or clock is in it, so a run replays bit for bit.
    """
    for part in (epoch, id, occurrence):
        key = jax.random.fold_in(key, part)
    return key


def sample_keys(key: Array, batch: dict[str, Array], use: int) -> Array:
    """The keys [B] of a batch's images for one use, independent of those of others."""
    numbers = [batch[name] for name in ("epoch", "id", "occurrence")]
    keys = jax.vmap(sample_key, (None, 0, 0, 0))(key, *numbers)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def augment_batch(
    key: Array,
    batch: dict[str, Array],
    *,
    ops: Sequence[Op],
    prepare: Callable[[Array], Array],
) -> dict[str, Array]:
    """Applies the ops in their order to every sample of a batch, then prepares it.

    Args:
      key: the run's key.
      batch: image [B, *S, C] uint8 or float, S of 2 or 3 axes, and epoch, id and
        occurrence [B] int32. Also, if there are any, a mask as label and a weight of its
        voxels [B, *S, K] (of another rank they aren't moved), and spacing [B, n] in mm.
      ops: warp.MOVES, which move image and mask, and functions of (key, image [*S, C]).
        Consecutive moves are one interpolation. An op's key contains its position, so
        that the strength of one op doesn't change the draws of another.
      prepare: the modality's intensity preparation, see data/normalisation.py.

    Returns:
      The batch with image [B, *S, C] float32, as the model takes it, and mask and
      weight by the nearest pixels. Outside it is black, as on collimated film, and the
      weight is 0, because nobody has labelled it.
    """
    moved = {"image": unit_range(batch["image"])}
    for name in ("label", "weight"):
        if name in batch and batch[name].ndim == batch["image"].ndim:
            moved[name] = batch[name]
    spacing = {"spacing": batch["spacing"]} if "spacing" in batch else {}
    rows = jnp.sum(batch["occurrence"] >= 0)  # B, but XLA doesn't know its value.
    steps = [(sample_keys(key, batch, i), op) for i, op in enumerate(ops)]
    steps.append((batch["id"], lambda _, image: prepare(image[None])[0]))

    for moving, group in itertools.groupby(steps, lambda step: _moves(step[1])):
        keys, functions = zip(*group, strict=True)
        if moving:
            move = functools.partial(_move, functions)
            moved = _each(rows, move, keys, moved, spacing)
        else:
            change = functools.partial(_apply, functions)
            moved |= {"image": _each(rows, change, keys, moved["image"])}
    return batch | moved


def motion(
    key: Array, epoch: Array, id: Array, occurrence: Array, *, ops: Sequence[Op], still
) -> warp.Motion:
    """How `augment_batch` moves one sample in all; `still` is of its shape."""
    own = sample_key(key, epoch, id, occurrence)
    keys = [jax.random.fold_in(own, i) for i in range(len(ops))]
    moving = [(key, op) for key, op in zip(keys, ops, strict=True) if _moves(op)]
    return _apply([op for _, op in moving], [key for key, _ in moving], still)


def _moves(op: Op) -> bool:
    return getattr(op, "func", op) in warp.MOVES.values()


def _move(
    ops: Sequence[Op], keys: Sequence[Array], sample: dict[str, Array], spacing: dict
) -> dict[str, Array]:
    """Moves one sample's image and masks by the composed ops."""
    still = warp.still(sample["image"].shape[:-1], **spacing)
    motion = _apply(ops, keys, still)
    return {
        name: warp.move(motion, array, order=1 if name == "image" else 0)
        for name, array in sample.items()
    }


def _apply(ops: Sequence[Op], keys: Sequence[Array], value: Any) -> Any:
    """Applies ops, one after the other, to an image or a motion."""
    for key, op in zip(keys, ops, strict=True):
        value = op(key, value)
    return value


def _each(rows: Array, function: Callable, *args: Any) -> Any:
    """A function of one sample, applied to each of a batch.

    On a CPU by a loop: a sample stays in the cache, and batches of any size run the
    same compiled code, which rounds alike. Other devices need the whole batch at once.
    XLA runs a loop on one core, so give it a CPU device for each: jax_num_cpu_devices.
    """
    batched = jax.vmap(function)

    def loop(*args: Any) -> Any:
        def step(i, results):
            sample = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), args
            )
            return jax.tree.map(
                lambda all, new: lax.dynamic_update_index_in_dim(all, new, i, 0),
                results,
                function(*sample),
            )

        shapes = jax.eval_shape(batched, *args)
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # The trip count is dynamic, so XLA can't inline the loop and compute a moved
        # image again for each op that reads it.
        return lax.fori_loop(0, rows, step, empty)

    return lax.platform_dependent(*args, cpu=loop, default=batched)
