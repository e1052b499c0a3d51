"""Ops -> one function of (key, batch), vmapped once over the images."""

from collections.abc import Callable, Sequence

import jax
from chex import Array

from medjax.data.modality import unit_range

Op = Callable[[Array, Array], Array]


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


def augment(
    key: Array,
    batch: dict[str, Array],
    *,
    ops: Sequence[Op],
    prepare: Callable[[Array], Array],
) -> Array:
    """Applies the ops in their order to every image of a batch, then prepares them.

    Args:
      key: the run's key.
      batch: image [B, H, W, C] uint8 or float in [0, 1], epoch, id and occurrence
        [B] int32.
      ops: functions of (key, image [H, W, C]); the number in the order is folded
        into the op's key.
      prepare: the modality's intensity preparation, see data/modality.py.

    Returns:
      [B, H, W, C] float32, as the model takes them.
    """

    def one(image: Array, epoch: Array, id: Array, occurrence: Array) -> Array:
        own = sample_key(key, epoch, id, occurrence)
        for number, op in enumerate(ops):
            image = op(jax.random.fold_in(own, number), image)
        return image

    image = unit_range(batch["image"])
    image = jax.vmap(one)(image, batch["epoch"], batch["id"], batch["occurrence"])
    return prepare(image)
