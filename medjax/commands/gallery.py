"""The command `gallery`: what each modality's augmentation policy does to real images."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.progress import track

from medjax.augment import pixel_ops, policy, safety
from medjax.augment.safety import POLICIES
from medjax.data import image_files, nifti
from medjax.data.dicom import is_visible
from medjax.data.foreground import on_zero
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.reports import page, pictures

DRAWN_SIDE = 224  # Pixels of a film's longer side, for which ranges in pixels are.
WIDTH = 224  # Pixels of a volume's longest side in a picture.
PLANE_GAP = 6  # Pixels between its planes.
MAX_IMAGES = 6  # Images of one folder.
COLOURED = 0.05  # A difference of the channels that JPEG's rounding doesn't reach.
# Percentiles of a volume's voxels that are black and white; the second is of the voxels
# above the first. A few voxels are far outside, by interpolation or in vessels.
BLACK, WHITE = 0.5, 99.5
RANGE_UNITS = {"rotation": "°", "distance": " pixels", "max_sigma": " pixels"}


TAKES = {
    "film": "2-D images, colour ones as grey",
    "run": "2-D images, each as a series of one frame",
    "colour": "2-D images in colour",
    "volume": "NIfTI volumes",
}
MODALITY_TAKES = {  # Which of TAKES the policy of each modality takes.
    "chest_xray": "film",
    "mammography": "film",
    "ct": "volume",
    "brain_mri": "volume",
    "ultrasound": "film",
    "nuclear": "volume",
    "fluoroscopy": "run",
    "retina": "colour",
}


class Image(NamedTuple):
    """One image as the ops take it."""

    id: int  # Its number, by which its random draws differ from others'.
    name: str
    pixels: np.ndarray  # [H, W, 1 or 3] or [D, H, W, 1] float32 in [0, 1].
    mask: np.ndarray | None  # [D, H, W, 1] bool.
    spacing: np.ndarray  # [n] mm of a volume, ones for a film.


def gallery(
    images: Sequence[str], out: Path, *, modality: str | None, draws: int, seed: int
) -> Path:
    """Writes the page, and returns its path.

    `images` are files or folders, of films and of NIfTI volumes; without their
    `modality`, every policy is shown on the images that it can take. Of each policy on
    each image there are so many `draws`.

    Raises:
      InputError: the modality is unknown or takes none of the images, or an image
        can't be read.
    """
    if draws < 1:
        raise InputError(f"--draws={draws}: give 1 or more")
    names = [modality] if modality else list(POLICIES)
    defaults = {name: safety.default(name) for name in names}
    paths, notes = _paths(images)
    loaded, alone = _load(paths)
    notes += [f"{path} is a mask (two values) without its volume." for path in alone]
    if not loaded:
        raise InputError(f"{paths[0]}: is a mask; give its volume too")
    if modality and not _fitting(loaded, modality):
        raise InputError(
            f"--modality={modality}: none of the images fits, as it takes "
            f"{TAKES[MODALITY_TAKES[modality]]}; give such images or another modality"
        )
    policies = {}
    for name, ops in track(defaults.items(), "gallery"):
        draw = _drawing(ops, MODALITY_TAKES[name] == "run", seed, draws)
        policies[name] = {
            "ops": [
                {
                    "name": op,
                    "options": options,
                    "what": inspect.getdoc(_function(op)).splitlines()[0],
                }
                for op, options in ops
            ],
            "rows": [
                {"name": image.name, "pictures": draw(image)}
                for image in _fitting(loaded, name)
            ],
        }
    return page.write(
        out,
        "gallery.html",
        given=modality,
        draws=draws,
        seed=seed,
        notes=notes,
        policies=policies,
        volumes=any(MODALITY_TAKES[name] == "volume" for name in names),
        safe=POLICIES,
        kinds=MODALITY_TAKES,
        takes=TAKES,
        units=RANGE_UNITS,
    )


def _paths(images: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files to show, and a note for each folder with more of them."""
    paths, notes = [], []
    for path in map(Path, images):
        if not path.is_dir():
            paths.append(path)
            continue
        files = sorted(filter(is_visible, path.rglob("*")))
        if any(map(nifti.is_volume, files)):
            suffixes = image_files.IMAGE_SUFFIXES
            files = [
                file
                for file in files
                if nifti.is_volume(file) or file.suffix.lower() in suffixes
            ]
        else:
            files, _ = image_files.image_paths(path)
        if len(files) > MAX_IMAGES:
            notes.append(
                f"{MAX_IMAGES} of the {len(files)} images in {path} are shown, evenly spaced."
            )
            # Evenly spaced, because neighbours are often of one patient.
            files = [files[i * len(files) // MAX_IMAGES] for i in range(MAX_IMAGES)]
        paths += files
    return paths, notes


def _load(paths: Sequence[Path]) -> tuple[list[Image], list[Path]]:
    """The images, and the masks without a volume.

    A volume of two values is the mask of the volumes on its grid in its folder.
    """
    images, volumes, masks, used = [], [], [], set()
    for path in paths:
        if nifti.is_volume(path):
            volume = nifti.read(path)
            low, high = volume.voxels.min(), volume.voxels.max()
            binary = low < high and np.isin(volume.voxels, (low, high)).all()
            (masks if binary else volumes).append((path, volume))
        else:
            pixels = image_files.read(path, channels=3).pixels
            if np.ptp(pixels, axis=-1).max() < COLOURED:
                pixels = pixels[..., :1]
            pixels = pictures.fit(pixels, DRAWN_SIDE)
            images.append(Image(len(images), path.name, pixels, None, np.ones(2)))
    for path, volume in volumes:
        mask = None
        for other, given in masks:
            same = other.parent == path.parent
            same = same and given.voxels.shape == volume.voxels.shape
            if same and np.allclose(given.affine, volume.affine, atol=0.1):
                mask = (given.voxels > given.voxels.min())[..., None]
                used.add(other)
        name = f"{path.parent.name}/{path.name}"  # The folder tells the patient.
        unit = _unit(on_zero(volume.voxels)[0])
        images.append(Image(len(images), name, unit, mask, volume.spacing))
    return images, [path for path, _ in masks if path not in used]


def _unit(voxels: np.ndarray) -> np.ndarray:
    """[D, H, W] in any unit -> [D, H, W, 1] in [0, 1]."""
    low = np.percentile(voxels, BLACK)
    inside = voxels[voxels > low]
    high = np.percentile(inside, WHITE) if inside.size else low + 1
    unit = (voxels - low) / (high - low)
    return np.clip(unit, 0, 1).astype(np.float32)[..., None]


def _fitting(images: list[Image], modality: str) -> list[Image]:
    """The images that a policy takes, with the channels that it takes."""
    kind, fitting = MODALITY_TAKES[modality], []
    for image in images:
        pixels = image.pixels
        if (pixels.ndim == 4) != (kind == "volume"):
            continue
        if kind == "colour" and pixels.shape[-1] == 1:
            continue  # Changes of colour would not show.
        if kind in ("film", "run") and pixels.shape[-1] == 3:
            pixels = image_files.with_channels(pixels, 1)[..., None]
        fitting.append(image._replace(pixels=pixels))
    return fitting


def _drawing(ops: list, frames: bool, seed: int, draws: int) -> Callable:
    """image -> pictures of it and of each draw of the policy, of `frames` or not."""
    ops = [functools.partial(_function(name), **options) for name, options in ops]
    augment = jax.jit(
        functools.partial(policy.augment_batch, ops=ops, prepare=lambda image: image)
    )

    def draw(image: Image) -> list[str]:
        pixels = image.pixels[None] if frames else image.pixels
        batch = {"image": pixels[None], "id": np.int32([image.id])}
        batch["occurrence"] = np.int32([0])
        if image.mask is not None:
            batch["label"] = image.mask.astype(np.float32)[None]
        if pixels.ndim == 4 and not frames:
            batch["spacing"] = image.spacing.astype(np.float32)[None]
        drawn = [_picture(image, image.pixels, image.mask)]
        for number in range(draws):  # One by one: volumes are large.
            batch["epoch"] = np.int32([number])
            new = augment(jax.random.key(seed), batch)
            moved = np.asarray(new["image"])[0]
            mask = np.asarray(new["label"])[0] > 0.5 if "label" in new else None
            drawn.append(_picture(image, moved[0] if frames else moved, mask))
        return drawn

    return draw


def _picture(image: Image, pixels: np.ndarray, mask: np.ndarray | None) -> str:
    """Draws a film itself, or a volume's planes one below another, with the mask.

    The planes are those with most of the unchanged mask; without one the middle.
    """
    if pixels.ndim == 3:
        return pictures.png(pictures.draw(pictures.Plane(pixels)))
    at = [n // 2 for n in pixels.shape[:3]]
    if image.mask is not None:
        axes = [tuple(set(range(4)) - {axis}) for axis in range(3)]
        at = [int(image.mask.sum(axis).argmax()) for axis in axes]
    masks = [] if mask is None else [mask[..., 0]]
    planes = pictures.planes(pixels, masks, at=at, spacing=image.spacing)
    scale = WIDTH / max(max(np.multiply(p.image.shape[:2], p.spacing)) for p in planes)
    parts = [pictures.draw(plane, scale) for plane in planes]
    return pictures.png(pictures.stacked(parts, PLANE_GAP))


def _function(name: str) -> Callable:
    return warp.MOVES.get(name) or getattr(pixel_ops, name)
