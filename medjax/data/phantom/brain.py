"""Synthetic brain MRI with a tumour of known extent: data that need no download.

A patient is a pure function of (seed, number): the brain of brain_anatomy.py, a tumour
that pushes it aside, and four sequences as a scanner would give them. The three regions
are nested as in BraTS: the whole tumour contains the core, and the core contains the
enhancing part, a rim around necrosis.

No sequence shows the tumour alone. Necrosis is as dark on FLAIR as white matter, and
harmless spots as bright as oedema; vessels are as bright as the rim on T1CE; gains,
contrasts and bias fields vary. At the default size and seed 0, z-scored in the brain,
the best threshold of the best sequence has a mean Dice over patients 0 to 19 of 0.56
for the whole tumour (FLAIR), 0.39 for the core and 0.59 for the enhancing part (T1CE);
with the best threshold for each patient, 0.62, 0.41 and 0.63. A U-Net of widths 16, 32,
64 that starts by halving the resolution, trained on patients 0 to 39 for 900 steps of
one patient (4 minutes of one core), has 0.89, 0.86 and 0.78 on patients 100 to 119.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from medjax.data.phantom import brain_anatomy
from medjax.data.phantom.brain_anatomy import fill, noise
from medjax.errors import InputError

SEQUENCES = ("t1", "t1ce", "t2", "flair")
REGIONS = ("whole", "core", "enhancing")
SHAPE = (64, 80, 64)
SPACING = (2.5, 2.5, 2.5)
# In files: Source: Menze et al., IEEE TMI 34 (2015) 1993, and BraTS since 2017.
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4

# Brightness in each of SEQUENCES; white matter on T1 is 1.
TISSUES = {
    "csf": (0.25, 0.25, 1.15, 0.14),
    "grey": (0.76, 0.80, 0.66, 0.72),
    "white": (1.00, 1.02, 0.47, 0.56),
    "nucleus": (0.84, 0.87, 0.58, 0.66),
    "spot": (0.82, 0.83, 0.78, 1.00),  # harmless, bright on FLAIR
    "oedema": (0.74, 0.76, 0.88, 0.95),
    "necrosis": (0.42, 0.40, 1.02, 0.52),
    "solid": (0.58, 0.62, 0.84, 0.86),  # core that neither enhances nor dies
    "enhancing": (0.66, 1.32, 0.74, 0.84),
    "vessel": (0.60, 1.50, 0.22, 0.35),
}
TUMOUR = {  # (low, high) of uniform draws, in mm unless noted.
    "presence": (0.0, 1.0),  # compared with the shares of those without
    "uptake": (0.0, 1.0),
    "side": (-1.0, 1.0),  # Its sign counts.
    "up": (-6.0, 38.0),
    "back": (-46.0, 44.0),
    "aside": (20.0, 40.0),
    "core": (11.0, 24.0),
    "oedema": (9.0, 22.0),  # beyond the core
    "rim": (4.0, 8.0),
    "stretch_z": (-0.25, 0.25),  # logarithms
    "stretch_y": (-0.25, 0.25),
    "ragged": (0.15, 0.32),  # of the radius
    "push": (0.0, 7.0),
    "spots": (0.0, 1.0),  # how many
    "oedema_contrast": (0.65, 1.15),
}
SCANNER = {
    "noise": (0.02, 0.05),  # of white matter on T1
    "bias": (0.06, 0.16),  # the deviation of the field's logarithm
    "texture": (0.02, 0.05),
}


class Phantom(NamedTuple):
    """One synthetic patient; axes S, P, L as in `nifti.Volume`.

    image: [D, H, W, 4] float32, whole numbers in units of the scanner, at least 1 in
      the brain and 0 around it: SEQUENCES.
    label: [D, H, W, 3] uint8, 0 or 1: REGIONS.
    spacing: [3] mm.
    affine: [4, 4], indices to millimetres, see geometry/grid.py.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: np.ndarray
    affine: np.ndarray


def patient(
    number: int,
    *,
    seed: int,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    without_tumour: float = 0.0,
    without_enhancing: float = 0.15,
) -> Phantom:
    """Draws one patient, independently of all others.

    Args:
      number: the patient's, 0 or more.
      seed: the data set's.
      shape: D, H, W; 160 x 200 x 160 mm hold the largest brain.
      spacing: mm. Anatomy and tumour are the same at every resolution.
      without_tumour: share of patients with none; their label is 0.
      without_enhancing: share of tumours with a solid core that does not enhance.
    """
    if not (len(shape) == 3 <= min(shape) and 0 < min(spacing) <= max(spacing) <= 20):
        raise InputError(
            f"brain: shape {tuple(shape)} and spacing {tuple(spacing)}; give three "
            "sizes of 3 or more and three spacings above 0, and at most 20, in mm"
        )
    rng = np.random.default_rng([seed, number])
    build = _draw(rng, brain_anatomy.BUILD)
    tumour = _draw(rng, TUMOUR)
    tumour.exists = tumour.presence >= without_tumour
    tumour.enhances = tumour.uptake >= without_enhancing
    scanner = _draw(rng, SCANNER)
    tissues = _tissues(rng, tumour)
    lines = brain_anatomy.axes(shape, spacing)
    points = np.meshgrid(*lines, indexing="ij")
    body, far = _body(rng, lines, points, build, tumour, spacing)
    regions = _regions(rng, lines, body, far, tumour)
    edge = 0.5 * float(np.mean(spacing))
    shares = _shares(rng, lines, body, regions, tumour, edge)
    image = _scan(rng, lines, shares, tissues, scanner) * body.brain[..., None]
    label = np.stack([regions[name] > 0 for name in REGIONS], axis=-1)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], range(4)] = *(np.array(spacing) * (1, -1, -1)), 1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Phantom(image, label.astype(np.uint8), np.array(spacing, float), affine)


def _draw(rng, ranges: dict) -> SimpleNamespace:
    low, high = np.array(list(ranges.values())).T
    values = low + rng.random(len(low)) * (high - low)
    return SimpleNamespace(**dict(zip(ranges, values.tolist(), strict=True)))


def _tissues(rng, tumour) -> np.ndarray:
    """[tissues, sequences]: varied by scanner and settings, and oedema in strength."""
    table = np.array(list(TISSUES.values()), np.float32)
    table = table * np.exp(rng.uniform(-0.04, 0.04, table.shape))
    names = list(TISSUES)
    white, oedema = (names.index(name) for name in ("white", "oedema"))
    table[oedema] = table[white] + tumour.oedema_contrast * (
        table[oedema] - table[white]
    )
    return (table ** np.exp(rng.uniform(-0.12, 0.12, 4))).astype(np.float32)


def _body(rng, lines, points, build, tumour, spacing):
    """Gaps of the healthy parts, displaced; and the distance from the tumour."""
    z, y, x = points
    turned = x + build.tilt * y, y - build.tilt * x + build.nod * z, z - build.nod * y
    points = turned[::-1]
    bumps = noise(rng, lines, 26.0)
    head = brain_anatomy.outline(points, build, bumps)
    folds = noise(rng, lines, 7.0, band=True)
    side = math.copysign(1, tumour.side)
    centre = tumour.up, tumour.back, side * tumour.aside
    stretch = math.exp(tumour.stretch_z), math.exp(tumour.stretch_y), 1.0
    away = [(p - c) for p, c in zip(points, centre, strict=True)]
    far = brain_anatomy.norm(*(a / s for a, s in zip(away, stretch, strict=True)))
    strength = tumour.exists * tumour.push * np.exp(-((far / (2 * tumour.core)) ** 2))
    strength *= np.clip(head.cerebrum / 25, 0, 1) / np.maximum(far, 1)
    moved = [p - strength * a for p, a in zip(points, away, strict=True)]
    depth = brain_anatomy.depth(moved, head.cerebrum, folds, build, spacing)
    body = SimpleNamespace(
        points=points,
        build=build,
        head=head,
        depth=depth,
        brain=_largest(head.hull > -1),
        ventricle=brain_anatomy.ventricles(moved, build),
        nucleus=brain_anatomy.nuclei(moved),
        tumour_side=side * moved[2],
    )
    return body, far


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest component, as skull-stripping tools return."""
    parts, _ = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _regions(rng, lines, body, far, tumour) -> dict:
    """Gaps [D, H, W] of REGIONS, nested: each lies within the one before."""
    rough, fingers, patchy = (noise(rng, lines, step) for step in (12.0, 10.0, 10.0))
    inside = np.minimum(body.head.cerebrum, body.tumour_side) - 1
    core = tumour.core * (1 + tumour.ragged * rough) - far
    core = np.minimum(core, inside)
    oedema = tumour.core + tumour.oedema * (1 + 0.4 * fingers + 0.3 * rough) - far
    grey = np.maximum(fill(body.build.cortex - body.depth, 2), fill(body.nucleus, 3))
    oedema -= 0.4 * tumour.oedema * grey  # It follows the fibres.
    oedema = np.minimum(np.minimum(oedema, inside - 3), -body.ventricle)
    enhancing = np.minimum(core, tumour.rim * (1 + 0.45 * patchy) - core)
    nowhere = np.full_like(core, -99)
    if not tumour.enhances:
        enhancing = nowhere
    if not tumour.exists:
        core = oedema = enhancing = nowhere
    return {"whole": np.maximum(core, oedema), "core": core, "enhancing": enhancing}


def _shares(rng, lines, body, regions, tumour, edge) -> list[np.ndarray]:
    """The share [D, H, W] of each of TISSUES in each voxel; they add up to 1."""
    head = body.head
    grey = fill(body.build.cortex - body.depth, edge) * fill(head.cerebrum, edge)
    below = fill(head.cerebellum, edge)
    grey = np.maximum(grey, below * brain_anatomy.folia(body.points, head.cerebellum))
    tissue = np.maximum(
        fill(body.depth, edge), np.maximum(below, fill(head.stem, edge))
    )
    csf = np.maximum(1 - tissue, fill(body.ventricle, edge))
    lesions = noise(rng, lines, 4.5)
    near = fill(3.5 + 3 * tumour.spots - np.abs(body.ventricle + 2), 2)
    near = near * fill(np.abs(body.points[1] - 8) - 24, 10)  # Caps on the horns.
    caps = near * fill(lesions + 2.2 * tumour.spots - 0.9, 0.5)
    deep = fill(lesions - 3.4 + 1.3 * tumour.spots, 0.4) * fill(body.depth - 5, 2)
    spot = np.maximum(caps, deep * fill(head.cerebrum, edge))
    sheets = noise(rng, lines, 13.0), noise(rng, lines, 13.0)  # Vessels: both are 0.
    vessel = fill(0.6 - 13 * brain_anatomy.norm(*sheets), edge)
    vessel = vessel * fill(22 - np.abs(head.cerebrum), 4)
    core, enhancing = fill(regions["core"], edge), fill(regions["enhancing"], edge)
    layers = {  # From the top down.
        "enhancing": enhancing,
        "necrosis": core * float(tumour.enhances),
        "solid": core,
        "vessel": vessel,
        "oedema": fill(regions["whole"], 1.5 * edge),  # It has no sharp border.
        "csf": csf,
        "spot": spot,
        "nucleus": fill(body.nucleus, edge),
        "grey": grey,
        "white": np.ones_like(grey),
    }
    rest, shares = np.ones_like(grey), {}
    for name, layer in layers.items():
        shares[name] = rest * layer
        rest = rest - shares[name]
    return [shares[name] for name in TISSUES]


def _scan(rng, lines, shares, tissues, scanner) -> np.ndarray:
    """[D, H, W, 4] of whole numbers: texture, bias field, gain, Rician noise."""
    image = np.tensordot(np.stack(shares, axis=-1), tissues, axes=1)
    image *= 1 + scanner.texture * noise(rng, lines, 5.0)[..., None]
    gains = 150 * 8 ** rng.random(4)
    fields = [noise(rng, lines, 75.0) for _ in SEQUENCES]
    image *= np.exp(scanner.bias * np.stack(fields, axis=-1))
    real, imaginary = scanner.noise * rng.standard_normal((2, *image.shape), np.float32)
    image = np.hypot(image + real, imaginary) * gains.astype(np.float32)
    return np.maximum(np.rint(image), 1)
