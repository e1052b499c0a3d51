"""Synthetic brain MRI with a tumour of known extent: data that need no download.

A patient is a pure function of (seed, number): a schematic brain, a tumour that pushes
it aside, and four sequences as a scanner would give them. The three regions
are nested as in BraTS: the whole tumour contains the core, and the core contains the
enhancing part, a rim around necrosis.

No sequence shows the tumour alone. Necrosis is as dark on FLAIR as white matter, and
harmless spots as bright as oedema; vessels are as bright as the rim on T1CE; gains,
contrasts and bias fields vary.

Coordinates are the patient's, in mm from the middle of the volume: z towards the
head, y towards the back, x towards the left. `lines` are z [D], y [H] and x [W], and
`points` the same for every voxel; at any spacing a patient looks the same. A gap is the
distance in mm to a surface, roughly, [D, H, W], and positive inside.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

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

FIELD_MM = 260.0  # The side of the cube in which smooth noise is defined.

# The patient's build: (low, high) of uniform draws, in mm unless noted.
BUILD = {
    "half_width": (60.0, 68.0),
    "half_length": (76.0, 86.0),
    "half_height": (54.0, 62.0),
    "sulcus_depth": (14.0, 21.0),
    "sulcus_width": (0.0, 0.8),  # half of it; wide with age
    "cortex": (2.9, 3.6),
    "ventricle": (3.5, 8.5),  # the radius of the lateral ones
    "asymmetry": (-1.0, 1.0),  # of the lateral ventricles
    "midline": (-2.0, 2.0),  # how far the fissure bends
    "tilt": (-0.06, 0.06),  # radians, of the head, within axial slices
    "nod": (-0.08, 0.08),  # within sagittal slices
}
# Lateral ventricle: z, y, x of points along it, and its width there as a ratio.
HORNS = (
    ((4.0, -34.0, 11.0, 0.5), (14.0, -14.0, 9.0, 1.0)),
    ((14.0, -14.0, 9.0, 1.0), (19.0, 12.0, 11.0, 0.9)),
    ((19.0, 12.0, 11.0, 0.9), (10.0, 34.0, 23.0, 1.15)),
    ((10.0, 34.0, 23.0, 1.15), (4.0, 58.0, 22.0, 0.35)),
    ((10.0, 34.0, 23.0, 1.15), (-17.0, 10.0, 31.0, 0.45)),
)
NUCLEI = (  # Deep grey matter: centre and half axes, z, y, x.
    ((5.0, 11.0, 11.0), (9.0, 15.0, 8.0)),  # thalamus
    ((8.0, -20.0, 15.0), (10.0, 10.0, 5.0)),  # head of the caudate
    ((3.0, -3.0, 26.0), (10.0, 17.0, 5.5)),  # lentiform nucleus
    ((-21.0, 14.0, 27.0), (5.0, 18.0, 5.0)),  # hippocampus
)


class Phantom(NamedTuple):
    """One synthetic patient; axes as in `nifti.Volume`."""

    # [D, H, W, 4] float32, SEQUENCES: whole numbers, 1 or more in the brain, else 0.
    image: np.ndarray
    label: np.ndarray  # [D, H, W, 3] uint8, 0 or 1: REGIONS.
    affine: np.ndarray  # [4, 4], indices to millimetres, see geometry/grid.py.


def patient(
    number: int,
    *,
    seed: int,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    without_tumour: float = 0.0,
    without_enhancing: float = 0.15,
) -> Phantom:
    """Draws the patient of a number >= 0, independently of all others.

    Args:
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
    build = _draw(rng, BUILD)
    tumour = _draw(rng, TUMOUR)
    tumour.exists = tumour.presence >= without_tumour
    tumour.enhances = tumour.uptake >= without_enhancing
    scanner = _draw(rng, SCANNER)
    tissues = _tissues(rng, tumour)
    lines = [
        ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
        for n, s in zip(shape, spacing, strict=True)
    ]
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
    return Phantom(image, label.astype(np.uint8), affine)


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
    bumps = _noise(rng, lines, 26.0)
    head = _outline(points, build, bumps)
    folds = _noise(rng, lines, 7.0, band=True)
    side = math.copysign(1, tumour.side)
    centre = tumour.up, tumour.back, side * tumour.aside
    stretch = math.exp(tumour.stretch_z), math.exp(tumour.stretch_y), 1.0
    away = [(p - c) for p, c in zip(points, centre, strict=True)]
    far = _norm(*(a / s for a, s in zip(away, stretch, strict=True)))
    strength = tumour.exists * tumour.push * np.exp(-((far / (2 * tumour.core)) ** 2))
    strength *= np.clip(head.cerebrum / 25, 0, 1) / np.maximum(far, 1)
    moved = [p - strength * a for p, a in zip(points, away, strict=True)]
    depth = _depth(moved, head.cerebrum, folds, build, spacing)
    parts, _ = ndimage.label(head.hull > -1)  # Skull-stripping keeps the largest.
    brain = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    both = moved[0], moved[1], np.abs(moved[2])  # The nuclei are on both sides.
    body = SimpleNamespace(
        points=points,
        build=build,
        head=head,
        depth=depth,
        brain=brain,
        ventricle=_ventricles(moved, build),
        nucleus=np.maximum.reduce([_ellipsoid(both, *each) for each in NUCLEI]),
        tumour_side=side * moved[2],
    )
    return body, far


def _regions(rng, lines, body, far, tumour) -> dict:
    """Gaps [D, H, W] of REGIONS, nested: each lies within the one before."""
    rough, fingers, patchy = (_noise(rng, lines, step) for step in (12.0, 10.0, 10.0))
    inside = np.minimum(body.head.cerebrum, body.tumour_side) - 1
    core = tumour.core * (1 + tumour.ragged * rough) - far
    core = np.minimum(core, inside)
    oedema = tumour.core + tumour.oedema * (1 + 0.4 * fingers + 0.3 * rough) - far
    grey = np.maximum(_fill(body.build.cortex - body.depth, 2), _fill(body.nucleus, 3))
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
    grey = _fill(body.build.cortex - body.depth, edge) * _fill(head.cerebrum, edge)
    below = _fill(head.cerebellum, edge)
    grey = np.maximum(grey, below * _folia(body.points, head.cerebellum))
    tissue = np.maximum(
        _fill(body.depth, edge), np.maximum(below, _fill(head.stem, edge))
    )
    csf = np.maximum(1 - tissue, _fill(body.ventricle, edge))
    lesions = _noise(rng, lines, 4.5)
    near = _fill(3.5 + 3 * tumour.spots - np.abs(body.ventricle + 2), 2)
    near = near * _fill(np.abs(body.points[1] - 8) - 24, 10)  # Caps on the horns.
    caps = near * _fill(lesions + 2.2 * tumour.spots - 0.9, 0.5)
    deep = _fill(lesions - 3.4 + 1.3 * tumour.spots, 0.4) * _fill(body.depth - 5, 2)
    spot = np.maximum(caps, deep * _fill(head.cerebrum, edge))
    sheets = _noise(rng, lines, 13.0), _noise(rng, lines, 13.0)  # Vessels: both are 0.
    vessel = _fill(0.6 - 13 * _norm(*sheets), edge)
    vessel = vessel * _fill(22 - np.abs(head.cerebrum), 4)
    core, enhancing = _fill(regions["core"], edge), _fill(regions["enhancing"], edge)
    layers = {  # From the top down.
        "enhancing": enhancing,
        "necrosis": core * float(tumour.enhances),
        "solid": core,
        "vessel": vessel,
        "oedema": _fill(regions["whole"], 1.5 * edge),  # It has no sharp border.
        "csf": csf,
        "spot": spot,
        "nucleus": _fill(body.nucleus, edge),
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
    image *= 1 + scanner.texture * _noise(rng, lines, 5.0)[..., None]
    gains = 150 * 8 ** rng.random(4)
    fields = [_noise(rng, lines, 75.0) for _ in SEQUENCES]
    image *= np.exp(scanner.bias * np.stack(fields, axis=-1))
    real, imaginary = scanner.noise * rng.standard_normal((2, *image.shape), np.float32)
    image = np.hypot(image + real, imaginary) * gains.astype(np.float32)
    return np.maximum(np.rint(image), 1)


def _fill(gap: np.ndarray, edge: float) -> np.ndarray:
    """1 inside (gap > 0), 0 outside, a smooth step `edge` mm to either side."""
    t = np.clip(0.5 + 0.5 * gap / edge, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(gap: np.ndarray, other: np.ndarray, width: float) -> np.ndarray:
    """The larger gap, with the cleft between the two rounded over `width` mm."""
    near = np.clip(1 - np.abs(gap - other) / width, 0, None)
    return np.maximum(gap, other) + near * near * (width / 4)


def _noise(rng, lines, step: float, *, band: bool = False) -> np.ndarray:
    """Smooth noise [D, H, W] of mean 0 and deviation 1 with details of `step` mm.

    A cubic B-spline over a lattice that is fixed in millimetres: one small matrix
    product an axis, and the same field at every resolution.
    """
    count = int(FIELD_MM / step) + 4
    field = rng.standard_normal((count,) * 3, np.float32)
    if band:  # Without slow waves, level sets are about evenly spaced.
        slow = field
        for axis in range(3):
            slow = sum(np.roll(slow, k, axis) for k in range(-2, 3)) / 5
        field -= slow
    for mm in lines:  # Each turn takes the first axis and appends the new one.
        place = np.clip(mm, -FIELD_MM / 2, FIELD_MM / 2) + FIELD_MM / 2
        t = np.abs(place[:, None] / step + 1 - np.arange(count, dtype=np.float32))
        near = 2 / 3 - t**2 + t**3 / 2
        weight = np.where(t < 1, near, np.clip(2 - t, 0, None) ** 3 / 6)
        field = np.tensordot(field, weight, axes=(0, 1))
    return field / 0.332  # The deviation of the spline between white lattice points.


def _norm(*parts: np.ndarray) -> np.ndarray:
    """The Euclidean norm."""
    return np.sqrt(sum(part * part for part in parts))


def _ellipsoid(points, centre, half, power: float = 2.0) -> np.ndarray:
    """Gap of a (super)ellipsoid along the ray from its centre; its half axes in mm."""
    off = [p - c for p, c in zip(points, centre, strict=True)]
    u = [np.abs(o / h) for o, h in zip(off, half, strict=True)]
    ratio = _norm(*u) if power == 2 else sum(x**power for x in u) ** (1 / power)
    return _norm(*off) * (1 / np.maximum(ratio, 1e-3) - 1)


def _outline(points: Sequence[np.ndarray], build, bumps: np.ndarray) -> SimpleNamespace:
    """Gaps of cerebrum, cerebellum and brainstem, uneven by the noise `bumps`."""
    z, y, x = points
    wide = build.half_width * (1 + 0.08 * np.clip(y / 60, -1, 1))
    half = (build.half_height, build.half_length, wide)
    cerebrum = _ellipsoid(points, (10.0, 0.0, 0.0), half, 2.3) + 1.6 * bumps
    # The base: frontal lobes on the orbits, temporal lobes below, the tentorium.
    floor = -40 + 24 * _fill(-34 - y, 9) + 27 * _fill(y - 26, 16)
    floor += np.where(np.abs(y) < 40, 26, 0) * _fill(17 - np.abs(x), 7)
    floor = np.minimum(floor, -13)
    cerebrum = -_blend(-cerebrum, floor - z, 12)
    below = _ellipsoid(points, (-36.0, 43.0, 0.0), (26.0, 32.0, 52.0), 2.2)
    below += 1.2 * bumps
    below = np.minimum(below, np.abs(x) - 1 + 0.6 * np.clip(62 - y, 0, None))
    below = np.minimum(below, -1.5 - cerebrum)
    along = np.clip((-4 - z) / 70, 0, 1)
    stem = 12 - 4 * along - _norm(y - 6 - 14 * along, 0.9 * x)
    stem = np.minimum(stem, z + 76)
    pons = _ellipsoid(points, (-28.0, 4.0, 0.0), (14.0, 14.0, 17.0))
    stem = np.where(z > 0, -9.0, np.maximum(stem, pons))
    hull = _blend(_blend(cerebrum, below, 14), stem, 10)  # Cisterns fill the clefts.
    return SimpleNamespace(cerebrum=cerebrum, cerebellum=below, stem=stem, hull=hull)


def _ventricles(points: Sequence[np.ndarray], build) -> np.ndarray:
    """Gap of the lateral ventricles, the third and the fourth."""
    z, y, x = points
    radius = build.ventricle * (1 + 0.15 * build.asymmetry * np.sign(x))
    side = np.abs(x)
    gap = np.full(side.shape, -99, np.float32)
    for start, end in HORNS:
        *a, first = start
        *b, last = end
        line = np.subtract(b, a).astype(np.float32)
        off = z - a[0], y - a[1], side - a[2]
        t = sum(o * p for o, p in zip(off, line, strict=True)) / (line @ line)
        t = np.clip(t, 0, 1)
        away = _norm(*(o - t * p for o, p in zip(off, line, strict=True)))
        gap = np.maximum(gap, radius * (first + t * (last - first)) - away)
    gap = np.minimum(gap, side - 1)  # The septum.
    slit = build.ventricle / 4
    third = np.minimum(slit - side, _ellipsoid((z, y), (-1, 6), (10.0, 17.0)))
    fourth = _ellipsoid(points, (-34.0, 20.0, 0.0), (8.0, 3.5, 5.0))
    return np.maximum(gap, np.maximum(third, fourth))


def _depth(
    points, outside: np.ndarray, folds: np.ndarray, build, spacing
) -> np.ndarray:
    """How deep [D, H, W] in mm under the nearest CSF: surface, sulcus or fissure.

    Sulci are sheets where the noise `folds` is 0, from the cerebrum's surface (the gap
    `outside`) to the sulcus' depth. Between two of them is a gyrus.
    """
    z, y, x = points
    slope = _norm(*np.gradient(folds, *spacing))
    sheet = np.abs(folds) / np.maximum(slope, 1e-3) - build.sulcus_width
    gap = np.minimum(outside, np.maximum(sheet, outside - build.sulcus_depth))
    bend = build.midline * np.sin(y / 40)
    callosum = _ellipsoid((z, y), (0.0, 4.0), (27.0, 42.0))
    midline = np.maximum(np.abs(x - bend) - 0.4 - build.sulcus_width, callosum)
    plane = np.abs(z + 7 - 0.35 * y + 5 * np.sin((y + x) / 11)) - 0.5
    short = 0.5 * np.abs(y + 4) + 33 - np.abs(x)
    sylvian = np.maximum(plane - build.sulcus_width, short)
    return np.minimum(gap, np.minimum(midline, sylvian))


def _folia(points: Sequence[np.ndarray], gap: np.ndarray) -> np.ndarray:
    """Share [D, H, W] of grey matter in the cerebellum: leaves about a white core."""
    z, y, x = points
    turn = np.arctan2(z + 40, y - 22 + 0.2 * np.abs(x)) * 26
    leaves = _fill(np.cos(turn * 2 * np.pi / 7) - 0.1, 0.7)
    return np.maximum(leaves, _fill(3.5 - gap, 2)) * _fill(13 - gap, 5)
