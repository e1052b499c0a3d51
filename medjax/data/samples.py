"""Prepared volumes as samples of one shape, with points of their foreground."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from medjax.data import loader, volumes

POINTS = 1024  # Of each region and volume: patches are drawn about them.


class Part(NamedTuple):
    """A volume, or one half of it.

    id: the volume's number in the prepared folder.
    patient: whom it shows.
    half: 'whole', or 'left' or 'right' of the middle: the patient's, as W grows to
      the left.
    """

    id: int
    patient: int
    half: str = "whole"


def read(folder: Path, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The image [D, H, W, C] float16 and the mask [D, H, W, K] uint8 of a part.

    Both stay on the disk until they are looked at.

    Args:
      folder: of a prepared data set, see data/volumes.py.
    """
    names = (f"{part.id}.image.npy", f"{part.id}.label.npy")
    image, label = (np.load(folder / name, mmap_mode="r") for name in names)
    middle = image.shape[2] // 2
    along = {
        "whole": slice(None),
        "right": slice(None, middle),
        "left": slice(middle, None),
    }[part.half]
    return image[:, :, along], label[:, :, along]


class Volumes:
    """A random-access source of whole volumes, filled up to one shape.

    A whole volume goes to the device, which draws patches of it by key: on the host
    it would be one more place where something is random.

    Args:
      prepared: the data set.
      parts: [N], in this order; one may stand there several times.
      least: (d, h, w), the shape is at least this: a patch's.
    """

    def __init__(
        self,
        prepared: volumes.Prepared,
        parts: Sequence[Part],
        least: Sequence[int],
    ):
        self._folder, self.parts = prepared.folder, tuple(parts)
        cases = {part.id: volumes.load(prepared, part.id) for part in self.parts}
        self._facts = {
            id: {
                "spacing": np.asarray(case.spacing, np.float32),
                "presence": case.presence,
            }
            for id, case in cases.items()
        }
        self.ids = np.array([part.id for part in self.parts], np.int32)
        self._occurrence = loader.occurrences(self.ids)
        shapes = [read(self._folder, part)[0].shape[:3] for part in set(self.parts)]
        self.shape = tuple(np.max([least, *shapes], axis=0).tolist())
        self._points: dict[Part, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> loader.Batch:
        """image [D, H, W, C] float16, 0 where there is none; label [D, H, W, K] uint8;
        size [3] int32 of the volume in it; points [K, POINTS, 3] int32, voxels of each
        region with repetition; present [K] bool, whether it has any; spacing [3] mm;
        presence [C] float32, 0 for a sequence that is missing; id, patient, occurrence.
        """
        part = self.parts[index]
        image, label = read(self._folder, part)
        if part not in self._points:
            self._points[part] = foreground(label, seed=part.id)
        points, present = self._points[part]
        return {
            "image": self._filled(image),
            "label": self._filled(label),
            "size": np.array(image.shape[:3], np.int32),
            "points": points,
            "present": present,
            **self._facts[part.id],
            "id": self.ids[index],
            "patient": np.int32(part.patient),
            "occurrence": self._occurrence[index],
        }

    def _filled(self, volume: np.ndarray) -> np.ndarray:
        whole = np.zeros((*self.shape, volume.shape[-1]), volume.dtype)
        whole[tuple(map(slice, volume.shape[:3]))] = volume
        return whole


def foreground(label: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each region, for patches to be drawn about.

    One half are any voxels of the region, all equally likely. For the other half a
    connected part is drawn first, all equally likely, and then one of its voxels: a
    small lesion beside a large one would hardly ever be seen otherwise.

    Args:
      label: [D, H, W, K], a region where it isn't 0.
      seed: of the choice.

    Returns:
      points [K, POINTS, 3] int32, with repetition, 0 where there is none; present
      [K] bool.
    """
    rng = np.random.default_rng(seed)
    points = np.zeros((label.shape[-1], POINTS, 3), np.int32)
    present = np.zeros(label.shape[-1], bool)
    for k in range(label.shape[-1]):
        parts, number = ndimage.label(label[..., k], np.ones((3, 3, 3)))
        voxels = np.flatnonzero(parts)
        present[k] = number > 0
        if present[k]:
            part = parts.ravel()[voxels]
            chance = 1 / np.bincount(part)[part] / number
            half = POINTS // 2
            chosen = [rng.choice(voxels, half), rng.choice(voxels, half, p=chance)]
            whole = np.concatenate(chosen)
            points[k] = np.stack(np.unravel_index(whole, label.shape[:3]), axis=1)
    return points, present
