"""Augments volumes: patches of them, drawn by key, and whole ones."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from jax import lax

from medjax.augment import policy, synthetic_lesions
from medjax.data.normalisation import HIGHEST, LOWEST, unit_range
from medjax.data.sources.volumes import INSIDE
from medjax.geometry import warp

# Folded into the key instead of an op's number; no op has them.
PLACE, LESIONS = 2**31 - 1, 2**31 - 2


def augment(
    key: Array,
    batch: dict[str, Array],
    *,
    ops: Sequence[Callable],
    lesions: float = 0.0,
    **place: Any,
) -> dict[str, Array]:
    """Draws patches of standardised volumes and applies the ops to them.

    The ops, as in policy.augment_batch, see LOWEST to HIGHEST as [0, 1], because they
    apply gains and powers; the other arguments are those of `draw`. A share of the
    patches, `lesions`, gets synthetic ones first: of a single region, in 3-D.

    Returns:
      image [P, *S, C] float32, 0 outside the brain and in a missing sequence; label
      [P, *S, K] float32; weight [P, *S, K], 0 at voxels that a move brought in from
      outside the patch.
    """
    drawn = draw(key, batch, **place)
    if lesions:
        drawn |= _with_lesions(key, batch, drawn, lesions)
    return _augmented(key, drawn, ops)


def _with_lesions(key: Array, batch: dict, drawn: dict, probability: float) -> dict:
    """Image and label of patches that are drawn, with synthetic lesions in some."""
    label, points = batch["label"][..., 0], batch["points"][:, 0]
    facts = batch["image"], label, points, batch["spacing"]
    tissue = jax.vmap(synthetic_lesions.surroundings)(*facts)
    each = len(drawn["id"]) // len(label)
    patches = {
        "key": policy.sample_keys(key, drawn, LESIONS),
        "image": drawn["image"],
        "label": drawn["label"][..., 0],
        "tissue": jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), tissue),
        "spacing": drawn["spacing"],
    }
    add = functools.partial(synthetic_lesions.add, probability=probability)
    image, label = lax.map(lambda patch: add(**patch), patches)
    return {"image": image, "label": label[..., None]}


def _augmented(key: Array, batch: dict[str, Array], ops: Sequence[Callable]) -> dict:
    """What `augment` returns, of patches that are drawn."""
    image, label = batch["image"], batch["label"]
    brain = jnp.any(image != 0, axis=-1, keepdims=True)  # Moves with the masks.
    unit = jnp.clip((image - LOWEST) / (HIGHEST - LOWEST), 0, 1)
    moved = policy.augment_batch(
        key,
        batch
        | {
            # Air is grey here, as 0 is: black would darken the moved brain's rim.
            "image": unit,
            "label": jnp.concatenate([label, brain], axis=-1, dtype=jnp.float32),
            "weight": jnp.ones((*label.shape[:-1], 1)),
        },
        ops=ops,
        prepare=lambda image: image,
    )
    label, brain = moved["label"][..., :-1], moved["label"][..., -1:]
    image = moved["image"] * (HIGHEST - LOWEST) + LOWEST
    present = moved["presence"].reshape(len(image), *[1] * (image.ndim - 2), -1)
    seen = (brain > 0) & (present > 0)
    return moved | {
        "image": jnp.where(seen, image, 0),
        "label": label,
        "weight": jnp.broadcast_to(moved["weight"], label.shape),
    }


def mean_of_copies(
    probability: Callable[[ArrayTree, Array], Array],
    variables: ArrayTree,
    image: Array,
    *,
    number: int,
    ops: Sequence[Callable],
    spacing: Sequence[float],
) -> Array:
    """The mean probability of patches [B, *S, C] and of augmented copies: [B, *S, K].

    What is predicted of a copy is moved back. A voxel that a copy doesn't show is
    averaged over the others. All patches get the same draws, so that no prediction
    depends on its batch.

    Args:
      probability: (variables, [B, *S, C]) -> [B, *S, K].
      number: of copies.
      ops: as in `augment`, without an elastic one.
      spacing: mm, one for each axis of S.
    """
    key, none = jax.random.key(0), jnp.zeros(len(image), jnp.int32)
    space = tuple(range(1, image.ndim - 1))
    still = warp.still(image.shape[1:-1], np.asarray(spacing, np.float32))
    batch = {
        "image": image,
        "label": jnp.zeros((*image.shape[:-1], 0)),
        "presence": jnp.any(image != 0, axis=space),
        "spacing": jnp.tile(still.spacing, (len(image), 1)),
        "id": none,
        "epoch": none,
    }

    def add(total: Array, copy: Array) -> tuple[Array, None]:
        drawn = _augmented(key, batch | {"occurrence": none + copy}, ops)
        motion = policy.motion(key, 0, 0, copy, ops=ops, still=still)
        back = functools.partial(warp.move, warp.inverse(motion))
        return total + jax.vmap(back)(weighed(drawn["image"])), None

    def weighed(image: Array) -> Array:
        p = probability(variables, image)
        return jnp.concatenate([p, jnp.ones((*p.shape[:-1], 1))], axis=-1)

    total, _ = lax.scan(add, weighed(image), jnp.arange(number))
    return total[..., :-1] / total[..., -1:]


def prepare_whole(
    key: Array,
    batch: dict[str, Array],
    *,
    ops: Sequence[Callable],
    prepare: Callable[[Array], Array],
    spacing: Sequence[float],
) -> dict[str, Array]:
    """Applies the ops to whole volumes as they are stored, 0 outside of the body.

    Args:
      batch: image [B, D, H, W, C] uint16, and what policy.augment_batch needs; or also
        mask [B, D, H, W, K], as sources/volumes.py stores it.
      spacing: [3] mm, of all volumes.
      ops, prepare: as there.

    Returns:
      The batch with its image [B, D, H, W, C] float32. With masks, label and weight are
      pairs, see losses.beside: those of the findings, and [B, D, H, W, K] of voxels,
      unknown where a move brought them in from outside.
    """
    stored = unit_range(batch["image"])
    body = jnp.any(stored > 0, axis=-1, keepdims=True)  # Moves with the image.
    present = jnp.any(stored > 0, axis=(1, 2, 3), keepdims=True)
    air = -LOWEST / (HIGHEST - LOWEST)  # Grey, as in patches.
    masks = [batch["mask"]] if "mask" in batch else []
    moved = policy.augment_batch(
        key,
        batch
        | {
            "image": jnp.where(stored > 0, stored, air),
            "label": jnp.concatenate([body, *masks], axis=-1, dtype=jnp.float32),
            "spacing": jnp.tile(jnp.asarray(spacing), (len(stored), 1)),
        },
        ops=ops,
        prepare=lambda image: image,
    )
    image = jnp.maximum(moved["image"], 1e-6)  # In the body nothing is exactly 0.
    image = jnp.where((moved["label"][..., :1] > 0) & present, image, 0)
    batch = batch | {"image": prepare(image)}
    if masks:
        drawn = moved["label"][..., 1:]
        voxels = {"label": drawn >= INSIDE, "weight": drawn > 0}
        batch |= {k: (batch[k], v.astype(jnp.float32)) for k, v in voxels.items()}
    return batch


def draw(
    key: Array,
    batch: dict[str, Array],
    *,
    size: Sequence[int],
    each: int,
    foreground: float,
    slices: bool,
) -> dict[str, Array]:
    """Patches of every volume, each from a place of its own.

    Args:
      key: the run's key.
      batch: of B volumes, see data/volumes.py, and epoch [B] int32.
      size: (d, h, w) of a patch, at most the volumes'; d is odd with `slices`.
      each: n, patches of a volume.
      foreground: share of the patches with a voxel of a region in their middle half
        along each axis. All regions of the volume are equally likely, and all points of
        a region. The other patches lie anywhere.
      slices: a patch is 2-D: one slice and its neighbours, which are channels (slice,
        sequence), the sequence fastest. The first and last one are repeated outwards.

    Returns:
      image [P, d, h, w, C] float32 or [P, h, w, d C], label [P, d, h, w, K] or
      [P, h, w, K], P = B n; presence [P, C] or [P, d C], spacing [P, 3] or [P, 2]; id,
      epoch and occurrence [P]; the occurrence also tells a volume's patches apart.
    """
    drawn = {
        name: jnp.repeat(batch[name], each, axis=0)
        for name in ("id", "epoch", "occurrence", "presence", "spacing")
    }
    number = jnp.tile(jnp.arange(each, dtype=jnp.int32), len(batch["id"]))
    drawn["occurrence"] = drawn["occurrence"] * each + number
    # XLA's simplifier doesn't terminate over the repeated numbers of a single volume.
    drawn = lax.optimization_barrier(drawn)
    keys = policy.sample_keys(key, drawn, PLACE)
    volume = jnp.arange(len(number)) // each
    facts = [batch[name][volume] for name in ("size", "points", "present")]
    labelled = (1, *size[1:]) if slices else tuple(size)
    corners = jax.vmap(corner, (0, 0, 0, 0, None, None))(
        keys, *facts, jnp.asarray(labelled), foreground
    )
    # One after the other: unrolled, the many patches of a step compile for minutes.
    places = jnp.concatenate([volume[:, None], corners], axis=1)
    cut = functools.partial(_cut, batch["label"], labelled)
    drawn["label"] = lax.map(cut, places)
    cut = functools.partial(_cut, batch["image"], labelled)
    if not slices:
        return drawn | {"image": lax.map(cut, places)}

    def stack(args: tuple[Array, Array]) -> Array:
        """The slices around a place of a volume of this depth, [h, w, d C]."""
        (volume, middle, *corner), depth = args
        near = [middle + i - size[0] // 2 for i in range(size[0])]
        cuts = [cut((volume, jnp.clip(z, 0, depth - 1), *corner))[0] for z in near]
        return jnp.concatenate(cuts, axis=-1)

    return drawn | {
        "image": lax.map(stack, (places, facts[0][:, 0])),
        "label": drawn["label"][:, 0],
        "presence": jnp.tile(drawn["presence"], (1, size[0])),
        "spacing": drawn["spacing"][:, 1:],
    }


def _cut(volumes: Array, size: tuple[int, ...], place: Array) -> Array:
    """The box [d, h, w, C] float32 of volumes [B, D, H, W, C] at place [4]."""
    box = (1, *size, volumes.shape[-1])
    return lax.dynamic_slice(volumes, (*place, 0), box)[0].astype(jnp.float32)


def corner(
    key: Array,
    size: Array,
    points: Array,
    present: Array,
    patch: Array,
    foreground: float,
) -> Array:
    """The first voxel of a `patch`, [3] its size, of one volume, [3] int32.

    `points` [K, N, 3] are voxels of each region, `present` [K] bool tells which regions
    have any, and `foreground` is the probability of a patch about a point. A volume
    that is smaller than the patch begins where the patch does.
    """
    about, region, point, beside, anywhere = jax.random.split(key, 5)
    room = jnp.maximum(size - patch, 0)
    free = jax.random.randint(anywhere, (3,), 0, room + 1)
    region = jax.random.categorical(region, jnp.where(present, 0.0, -jnp.inf))
    voxel = points[region, jax.random.randint(point, (), 0, points.shape[1])]
    before = jax.random.randint(beside, (3,), patch // 4, patch - patch // 4)
    chosen = (jax.random.uniform(about) < foreground) & jnp.any(present)
    return jnp.where(chosen, jnp.clip(voxel - before, 0, room), free)
