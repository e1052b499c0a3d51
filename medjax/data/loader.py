"""Records -> batches: order, sharding by host, batching, padding, prefetch (Grain).

The order follows from (seed, index) alone and the only state is a counter, so a run
replays exactly with any number of reading threads. A batch (host: numpy, device: jax)
holds, with D devices of B rows each:

    image      [D, B, H, W, C]  uint8 or uint16, or [D, B, D', H, W, C] of volumes; on
                                the device the step makes it float32 in [0, 1]
    label      [D, B, T]        float32, 0 where unknown
    weight     [D, B, T]        float32, >= 0; 0 = unknown label or padding row
    id, patient, epoch, occurrence  [D, B] int32; id is -1 in a padding row, patient the
                                rank of the patient's id
    mask       [D, B, D', H, W, K] uint16, only of volumes with masks: see
               sources/volumes.py
    domain     [D, B] int32, only where unlabelled target images stand beside the
               source's (config.adapt): 0 source, 1 target; a target image's id is
               -2 minus its number

An evaluation batch is the same without epoch, occurrence and domain. What a batch of
scans holds, volumes.Volumes says.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.data import prepared
from medjax.data.image_files import eight_bits
from medjax.data.records import PIXELS, patient_codes

Batch = dict[str, np.ndarray]


class Images:
    """A random-access source of samples: prepared images in the order of `ids` [N].

    An image may occur several times. `label` is [N, T], NaN where unknown. Masks are
    the channels behind the first `channels`; None: there are none.
    """

    def __init__(
        self,
        folder: Path,
        ids: Sequence[int],
        label: np.ndarray,
        channels: int | None = None,
    ):
        self._pixels = prepared.mapped(folder / PIXELS)
        self.ids = np.asarray(ids, np.int32)
        self._patients = patient_codes(folder)
        self._label = np.asarray(label, np.float32)
        self._channels = channels
        self._occurrence = occurrences(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, number: int, of: int) -> "Images":
        """Every `of`-th image from `number` on."""
        part = copy.copy(self)
        part.ids = self.ids[number::of]
        part._label = self._label[number::of]
        part._occurrence = self._occurrence[number::of]
        return part

    def __getitem__(self, index: int) -> Batch:
        label = self._label[index]
        known = ~np.isnan(label)
        pixels = np.array(self._pixels[self.ids[index]])
        count = self._channels or pixels.shape[-1]
        masks = {"mask": pixels[..., count:]} if pixels.shape[-1] > count else {}
        return masks | {
            "image": pixels[..., :count],
            "label": np.where(known, label, 0),
            "weight": known.astype(np.float32),
            "id": self.ids[index],
            "patient": self._patients[self.ids[index]],
            "occurrence": self._occurrence[index],
        }

    def picture(self, index: int) -> np.ndarray:
        """The image [H, W, C] or [D, H, W, C] as uint8, to be drawn or compared."""
        return eight_bits(self[index]["image"])


def occurrences(ids: np.ndarray) -> np.ndarray:
    """Numbers the copies of each id: [7, 3, 7] -> [0, 0, 1], int32."""
    return pd.Series(ids).groupby(ids).cumcount().to_numpy(np.int32)


def train_batches(
    samples: Sequence,
    *,
    seed: int,
    batch: int,
    devices: int,
    threads: int = 0,
    target: Images | None = None,
    on_host: bool = False,
) -> Any:
    """An endless iterator of device batches, of Grain: its position can be saved.

    Every epoch is a new global shuffle; a batch may cross the end of an epoch, and no
    sample is dropped. Each of n hosts takes every n-th sample of the global order. Two
    batches are on the device in advance.

    `get_state()` is the position after the last batch handed out, as plain JSON;
    `set_state` continues with the batch that comes next, and `close` ends the threads.

    Args:
      samples: what to draw from: `Images` or `volumes.Volumes`.
      devices: D, of this host.
      threads: that read; 0 chooses one a core, at most 16.
      target: images of another domain, in an order of their own. Each device then has
        B rows of them, without labels, after its B of `samples`.
      on_host: whether the batches stay in the host's memory.
    """
    import grain  # Late: it takes two seconds.

    dataset = _endless(samples, seed)
    if target is not None:
        pair = [dataset, _endless(target, seed + 1)]
        dataset = grain.experimental.ZipMapDataset(pair)
    dataset = dataset[jax.process_index() :: jax.process_count()]
    # Batched before the threads: the stream is the same for any number of them.
    # The stream is endless, so nothing is dropped; a remainder makes Grain round the
    # length as a float, past the largest one where a batch is one row.
    dataset = dataset.batch(batch, drop_remainder=True)
    dataset = dataset.batch(devices, drop_remainder=True)
    if target is not None:
        dataset = dataset.map(_side_by_side)
    threads = threads or min(16, prepared.cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = dataset.to_iter_dataset(options)
    if not on_host:  # One batch waits, and the next one for its place.
        ahead = grain.experimental.ThreadPrefetchIterDataset
        dataset = ahead(dataset.map(to_device), prefetch_buffer_size=1)
    return iter(dataset)


def _endless(samples: Sequence, seed: int):
    """Epoch after epoch of the samples, each shuffled anew and numbered."""
    import grain

    size = len(samples)

    def number_epoch(index: int, sample: Batch) -> Batch:
        return {**sample, "epoch": np.int32(index // size)}

    dataset = grain.MapDataset.source(samples).shuffle(seed).repeat()
    return dataset.map_with_index(number_epoch)


def _side_by_side(pair: tuple[Batch, Batch]) -> Batch:
    """Joins batches [D, B, ...] of source and target to one of [D, 2 B, ...]."""
    source, target = pair
    source = {**source, "domain": np.zeros_like(source["id"])}
    blank = {name: np.zeros_like(target[name]) for name in ("label", "weight")}
    # A source image may have the same id, which seeds augmentation: the target's are
    # -2, -3, ..., as -1 is a padding row's.
    blank |= {"id": -2 - target["id"], "domain": np.ones_like(target["id"])}
    both = source, {**target, **blank}
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *both)


def to_device(batch: Batch) -> dict[str, jax.Array]:
    """Starts the copy of a [D, B, ...] batch, one part of it to each local device.

    The batches of several hosts become one, with all of their devices.
    """
    number = len(next(iter(batch.values()))) * jax.process_count()
    mesh = Mesh(jax.devices()[:number], ("batch",))
    place = NamedSharding(mesh, PartitionSpec("batch"))
    put = functools.partial(jax.make_array_from_process_local_data, place)
    return jax.tree.map(put, batch)


def evaluation_batches(images: Images, *, batch: int, devices: int) -> Iterator[Batch]:
    """Yields every image exactly once, as [D, B, ...] host batches.

    The last batch is filled with rows of weight 0 and id -1. The next batch is read
    while the caller works on this one.
    """
    rows = batch * devices
    with ThreadPoolExecutor(min(16, prepared.cores())) as pool:

        def begin(start: int) -> Iterator[Batch]:
            indices = range(len(images))[start : start + rows]
            return pool.map(images.__getitem__, indices)

        ahead = begin(0)
        for start in range(0, len(images), rows):
            samples = list(ahead)
            ahead = begin(start + rows)
            names = samples[0].keys() - {"occurrence"}  # Only augmentation needs it.
            stacked = {name: np.stack([s[name] for s in samples]) for name in names}
            yield pad(stacked, batch, devices)


def pad(rows: Batch, batch: int, devices: int) -> Batch:
    """[N, ...] -> [D, B, ...]; the rows that are missing are zeros, with the id -1."""

    def fill(name: str, array: np.ndarray) -> np.ndarray:
        shape = (batch * devices - len(array), *array.shape[1:])
        empty = np.full(shape, -(name == "id"), array.dtype)
        return np.concatenate([array, empty]).reshape(devices, batch, *shape[1:])

    return {name: fill(name, array) for name, array in rows.items()}
