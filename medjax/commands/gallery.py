"""gallery: what the policy of each modality does to real images, and what it leaves."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.progress import Progress

from medjax.augment import intensity, policy, safety
from medjax.augment.safety import POLICIES
from medjax.data import images as data_images
from medjax.data import nifti
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.reports import images as reports_images
from medjax.reports.page import fit

SIDE = 224  # Pixels of a film's longer side: ranges in pixels are meant for about that.
MOST = 6  # Images of one folder.
COLOURED = 0.05  # Channels further apart are no rounding of a JPEG.
# Percentiles of a volume's voxels, the second of those above the first: interpolation
# and vessels leave a few far off.
BLACK, WHITE = 0.5, 99.5
# What its images are called, and what is read as one.
SHOWN = {
    "chest_xray": ("a chest film", "film"),
    "mammography": ("a mammogram", "film"),
    "ct": ("a CT", "volume"),
    "brain_mri": ("an MRI of the brain", "volume"),
    "ultrasound": ("an ultrasound image", "film"),
    "nuclear": ("a PET or SPECT", "volume"),
    "fluoroscopy": ("a fluoroscopic run", "run"),
    "retina": ("a fundus photograph", "colour"),
}
TAKES = {
    "film": "2-D images, colour ones as grey",
    "run": "2-D images, each as a run of one frame",
    "colour": "2-D images in colour",
    "volume": "NIfTI volumes",
}


class Image(NamedTuple):
    """One image as the ops take it.

    id: its number, so that each has draws of its own.
    pixels: [H, W, 1 or 3] or [D, H, W, 1] float32 in [0, 1].
    mask: [D, H, W, 1] float32, or None.
    spacing: [n] mm of a volume, ones for a film.
    """

    id: int
    name: str
    pixels: np.ndarray
    mask: np.ndarray | None
    spacing: np.ndarray


def gallery(
    images: Sequence[str], out: Path, *, modality: str | None, draws: int, seed: int
) -> Path:
    """Writes the page.

    Args:
      images: files or folders: what `reading` reads, and NIfTI.
      out: the page.
      modality: what the images are of; None shows every policy on what it can take.
      draws: of each policy on each image.
      seed: of the draws.

    Returns:
      The page's path.

    Raises:
      InputError: an unknown modality, no image that it takes, or an unreadable one.
    """
    if draws < 1:
        raise InputError(f"--draws={draws}: give 1 or more")
    names = [modality] if modality else list(POLICIES)
    facts = {name: _facts(name) for name in names}
    paths, notes = _paths(images)
    loaded, alone = _load(paths)
    notes += [f"{path} is a mask (two values) without its volume." for path in alone]
    if not loaded:
        raise InputError(f"{paths[0]}: is a mask; give the volume beside it too")
    if modality and not _fitting(loaded, modality):
        takes = TAKES[SHOWN[modality][1]]
        raise InputError(
            f"--modality={modality}: none of the images fits, as it takes {takes}; "
            "give such images or another modality"
        )
    with Progress() as progress:
        for name in progress.track(names, description="gallery"):
            draw = _drawing(name, seed, draws)
            facts[name]["rows"] = [
                {
                    "name": image.name,
                    "pictures": [
                        reports_images.picture_gallery(p) for p in draw(image)
                    ],
                }
                for image in _fitting(loaded, name)
            ]
    about = {"given": modality, "draws": draws, "seed": seed, "notes": notes}
    return reports_images.write({**about, "policies": facts}, out)


def _paths(images: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files to show, and what of a large folder is not."""
    found, notes = [], []
    for image in images:
        path = Path(image)
        if not path.is_dir():
            found.append(path)
            continue
        files = sorted(p for p in path.rglob("*") if nifti.is_volume(p))
        if files:
            also = (
                p for p in path.rglob("*") if p.suffix.lower() in data_images.SUFFIXES
            )
            files = sorted([*files, *also])
        else:
            files = data_images.image_paths(path)
        if len(files) > MOST:
            notes.append(
                f"Of the {len(files)} images in {path}, {MOST}, evenly spaced."
            )
            # Evenly spaced, as neighbours are often of one patient.
            files = [files[i * len(files) // MOST] for i in range(MOST)]
        found += files
    return found, notes


def _load(paths: Sequence[Path]) -> tuple[list[Image], list[Path]]:
    """The images, and masks of none of them.

    A volume of two values is the mask of those on its grid in its folder.
    """
    found, volumes, masks = [], [], []
    for path in paths:
        if nifti.is_volume(path):
            volume = nifti.read(path)
            low, high = volume.voxels.min(), volume.voxels.max()
            two = low < high and np.isin(volume.voxels, (low, high)).all()
            (masks if two else volumes).append((path, volume))
        else:
            pixels = data_images.read(path, channels=3).pixels
            if np.ptp(pixels, axis=-1).max() < COLOURED:
                pixels = pixels[..., :1]
            found.append(
                Image(len(found), path.name, fit(pixels, SIDE), None, np.ones(2))
            )
    used = set()
    for path, volume in volumes:
        mask = None
        for other, given in masks:
            if other.parent == path.parent and _same_grid(volume, given):
                mask = (given.voxels > given.voxels.min())[..., None]
                used.add(other)
        name = f"{path.parent.name}/{path.name}"  # FLAIR.nii.gz of which patient?
        unit = _unit(volume.voxels)
        found.append(Image(len(found), name, unit, mask, volume.spacing))
    return found, [path for path, _ in masks if path not in used]


def _same_grid(one: nifti.Volume, other: nifti.Volume) -> bool:
    return one.voxels.shape == other.voxels.shape and np.allclose(
        one.affine, other.affine, atol=0.1
    )


def _unit(voxels: np.ndarray) -> np.ndarray:
    """[D, H, W] in any unit -> [D, H, W, 1] in [0, 1]."""
    low = np.percentile(voxels, BLACK)
    inside = voxels[voxels > low]
    high = np.percentile(inside, WHITE) if inside.size else low + 1
    unit = (voxels - low) / (high - low)
    return np.clip(unit, 0, 1).astype(np.float32)[..., None]


def _fitting(images: list[Image], modality: str) -> list[Image]:
    """The images that a policy takes, as it takes them."""
    kind, found = SHOWN[modality][1], []
    for image in images:
        pixels = image.pixels
        if (pixels.ndim == 4) != (kind == "volume"):
            continue
        if kind == "colour" and pixels.shape[-1] == 1:
            continue  # Without colours the policy of colours shows nothing.
        if kind in ("film", "run") and pixels.shape[-1] == 3:
            pixels = data_images.with_channels(pixels, 1)[..., None]
        found.append(image._replace(pixels=pixels))
    return found


def _drawing(modality: str, seed: int, draws: int) -> Callable:
    """Image -> its planes as they are, and after each draw of the whole policy."""
    ops = []
    for name, options in safety.default(modality):
        ops.append(functools.partial(_function(name), **options))
    run = jax.jit(
        functools.partial(policy.augment_batch, ops=ops, prepare=lambda image: image)
    )
    frames = SHOWN[modality][1] == "run"

    def draw(image: Image) -> list[list[reports_images.Plane]]:
        pixels = image.pixels[None] if frames else image.pixels
        batch = {"image": pixels[None], "id": _one(image.id), "occurrence": _one(0)}
        if image.mask is not None:
            batch["label"] = image.mask.astype(np.float32)[None]
        if pixels.ndim == 4 and not frames:
            batch["spacing"] = image.spacing.astype(np.float32)[None]
        planes = functools.partial(_planes, at=_centre(image), spacing=image.spacing)
        found = [planes(image.pixels, image.mask)]
        for number in range(draws):  # One by one: volumes are large.
            new = run(jax.random.key(seed), {**batch, "epoch": _one(number)})
            moved = np.asarray(new["image"])[0]
            mask = np.asarray(new["label"])[0] > 0.5 if "label" in new else None
            found.append(planes(moved[0] if frames else moved, mask))
        return found

    return draw


def _one(number: int) -> np.ndarray:
    return np.array([number], np.int32)


def _centre(image: Image) -> list[int]:
    """The planes with most of the mask; the middle ones without it."""
    sizes = image.pixels.shape[:-1]
    if image.mask is None:
        return [n // 2 for n in sizes]
    axes = [tuple(set(range(4)) - {axis}) for axis in range(3)]
    return [int(image.mask.sum(axis).argmax()) for axis in axes]


def _planes(
    pixels, mask, *, at: list[int], spacing: np.ndarray
) -> list[reports_images.Plane]:
    """A film itself; the axial, coronal and sagittal plane of a volume, head up."""
    if pixels.ndim == 3:
        return [reports_images.Plane(pixels, None, tuple(spacing))]
    d, h, w = at
    found = []
    for plane, axes in (
        (np.s_[d], (1, 2)),
        (np.s_[::-1, h], (0, 2)),
        (np.s_[::-1, :, w], (0, 1)),
    ):
        size = tuple(spacing[list(axes)])
        outlined = None if mask is None else mask[plane][..., 0]
        found.append(reports_images.Plane(pixels[plane], outlined, size))
    return found


def _facts(modality: str) -> dict:
    """What a policy has and leaves out, in words."""
    ops = [
        {
            "name": name,
            "options": options,
            "what": inspect.getdoc(_function(name)).splitlines()[0],
        }
        for name, options in safety.default(modality)
    ]
    own = POLICIES[modality]
    called, kind = SHOWN[modality]
    off = [{"op": op, "refused": False, "why": why} for op, why in own.caution.items()]
    if own.mirror:
        off.append({"op": "left-right mirror", "refused": False, "why": own.mirror})
    off += [{"op": op, "refused": True, "why": why} for op, why in own.unsafe.items()]
    off.append({"op": "upside-down mirror", "refused": True, "why": own.upright})
    off += [
        {"op": f"{field.replace('.', ': ')} over {most:g}", "refused": True, "why": why}
        for field, (most, why) in own.limits.items()
    ]
    about = {"called": called, "takes": TAKES[kind], "volumes": kind == "volume"}
    return {**about, "ops": ops, "off": off}


def _function(name: str) -> Callable:
    return warp.MOVES.get(name) or getattr(intensity, name)
