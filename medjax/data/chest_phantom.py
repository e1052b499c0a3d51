"""Synthetic chest films with known truth: data that need no download.

A film is a pure function of (data set's key, patient, film): a schematic chest,
findings with known boxes, an exposure.

The films contain a trap. Everything that identifies a patient (ribs, lungs, lung
markings, the stance, a necklace, a pacemaker) is nearly the same on all of the
patient's films, and so, mostly, is the disease. Across patients these marks and the
disease are independent. A model that recognises patients is therefore right about new
films of known patients, and wrong about new patients: a split by image rewards it, a
split by patient doesn't.

Coordinates are the patient's, in mm: the origin in the middle of the chest, x towards
the right of the film (the patient's left), y towards the feet. Density is
dimensionless: 0 is air, 1 is metal, and white is dense. x and y are [S, S], and
masks and densities too; they may have any spacing, so that a patient looks the same at
every resolution.
"""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import Array

# What a finding adds to the density where its mask is 1; None: drawn in its own way.
SIX = {
    "mass": 0.3,
    "nodule": 0.36,
    "effusion": 0.3,
    "cardiomegaly": None,
    "pneumothorax": None,
    "consolidation": None,
}
PREVALENCE = (0.06, 0.12, 0.20, 0.01, 0.08, 0.05)
# Drawn beside the six where prevalences are given for all 14: for long tails.
EIGHT = {
    "atelectasis": 0.25,
    "edema": 0.16,
    "emphysema": -0.15,  # A bulla: air without vessels.
    "fibrosis": 0.2,
    "pleural_thickening": 0.28,
    "hernia": -0.25,  # Air behind the heart.
    "infiltration": 0.15,
    "calcification": 0.6,
}
DENSITY = SIX | EIGHT
FINDINGS, ALL = tuple(SIX), tuple(DENSITY)
PERSISTENCE = 0.85  # The chance that a film shows what its patient has.
AP_FRACTION = 0.3
NECKLACE_FRACTION = 0.5
PACEMAKER_FRACTION = 0.2


def _in_lung(*names: str) -> dict[str, tuple[float, float]]:
    """Where discs lie, see `_spot`: of the side only the sign counts."""
    ranges = {"side": (-1.0, 1.0), "across": (0.0, 1.0), "down": (0.0, 1.0)}
    return {f"{name}_{part}": ends for name in names for part, ends in ranges.items()}


# How a patient's findings look: drawn for every patient, shown where there is disease.
DISEASE = {
    "mass_diameter": (31.0, 60.0),
    **_in_lung("mass"),
    "nodule_diameter": (16.0, 28.0),
    **_in_lung("nodule"),
    "effusion_side": (-1.0, 1.0),
    "effusion_height": (26.0, 70.0),
    "enlarged_ratio": (0.56, 0.66),  # cardiothoracic ratio with cardiomegaly
    "rim_side": (-1.0, 1.0),
    "rim_depth": (28.0, 56.0),
    **_in_lung("patch"),
    "patch_radius": (24.0, 40.0),
    "patch_stretch": (0.75, 1.3),  # height / width
}
MORE_DISEASE = {
    **_in_lung("plate", "bulla", "haze", "calcification"),
    "plate_length": (40.0, 70.0),
    "plate_width": (9.0, 15.0),
    "plate_angle": (-0.6, 0.6),
    "edema_reach": (45.0, 75.0),  # from both hila
    "bulla_radius": (22.0, 38.0),
    "mesh": (16.0, 24.0),  # between the strands of a fibrosis
    "mesh_height": (40.0, 80.0),  # above the diaphragm
    "rind_side": (-1.0, 1.0),
    "rind_width": (10.0, 20.0),
    "hernia_x": (-20.0, 15.0),
    "hernia_radius": (18.0, 28.0),
    "haze_radius": (30.0, 46.0),
    "calcification_radius": (4.5, 7.5),
}

FIELD_MM = 400.0  # The side of the detector.
VIEWS = ("PA", "AP")
SEXES = ("F", "M")

# The same on all of a patient's films: (low, high) of uniform draws, in mm and radians
# unless another unit is given.
BODY = {
    "age": (18.0, 90.0),  # years
    "male": (0.0, 1.0),
    "stand_x": (-10.0, 10.0),  # the habit of standing, and the size
    "stand_y": (-10.0, 10.0),
    "lean": (-0.05, 0.05),
    "stature": (0.95, 1.05),  # ratio
    "necklace": (0.0, 1.0),
    "pacemaker": (0.0, 1.0),
    "half_width": (106.0, 146.0),  # the rib cage's, inside
    "squareness": (2.3, 2.9),  # the exponent of the lungs' outline
    "apex": (-158.0, -132.0),
    "base_right": (66.0, 98.0),  # the top of the diaphragm's dome
    "base_left": (74.0, 108.0),
    "dome": (32.0, 52.0),  # how far it falls to the side
    "wall": (14.0, 34.0),
    "widest": (35.0, 65.0),  # the y below which the lungs get no wider
    "spine_bend": (-9.0, 9.0),
    "rib_pitch": (21.0, 27.0),
    "rib_phase": (0.0, 1.0),  # periods
    "rib_fall": (28.0, 58.0),
    "rib_density": (0.05, 0.1),
    "clavicle": (-128.0, -108.0),
    "heart_ratio": (0.38, 0.47),  # cardiothoracic ratio, healthy
    "heart_height": (38.0, 58.0),
    "heart_tilt": (0.15, 0.4),  # slope
    "heart_density": (0.24, 0.32),
    "breast": (48.0, 72.0),
    "bubble": (8.0, 24.0),
    "chain_drop": (-150.0, -80.0),
    "chain_sag": (0.008, 0.024),  # 1/mm
    "bead_pitch": (10.0, 24.0),
    "bead_radius": (3.0, 5.5),
    "pendant": (0.0, 10.0),
    "pacer_x": (55.0, 95.0),
    "pacer_y": (-105.0, -60.0),
    "pacer_angle": (-0.7, 0.7),
    "pacer_width": (20.0, 28.0),
    "pacer_height": (14.0, 20.0),
    "pacer_side": (-0.3, 1.0),  # its sign is the side: mostly the left
}
# Different on every film.
FILM = {
    "view": (0.0, 1.0),
    "shift_x": (-8.0, 8.0),
    "shift_y": (-8.0, 8.0),
    "rotation": (-0.04, 0.04),
    "zoom": (0.97, 1.03),
    "breath": (-6.0, 6.0),
    "gain": (0.85, 1.2),
    "offset": (-0.08, 0.1),
    "log_gamma": (-0.35, 0.35),
    "shade_x": (-0.08, 0.08),  # density from one side of the film to the other
    "shade_y": (-0.08, 0.08),
    "noise": (0.01, 0.03),
}


def patient(
    key: Array,
    patient: Array,
    *,
    films: int,
    side: int,
    contrast: float = 1.0,
    prevalence: tuple[float, ...] = PREVALENCE,
) -> dict[str, Array]:
    """Draws F films of one patient, numbered by `patient` [].

    The T findings are FINDINGS, or ALL.

    Disease is chronic: each film shows a patient's finding with the chance PERSISTENCE,
    and any other finding with the small chance that makes the prevalence [T] among
    films equal to that among patients. A film's draws depend on (key, patient, film)
    alone: not on the side S, the contrast (0 hides the findings) or the other films.

    Returns:
      pixels [F, S, S, 1] uint8, white is dense; label [F, T] float32, 0 or 1; box
      [F, T, 4] float32, x0, y0, x1, y1 in pixels from the film's upper left corner, NaN
      where the finding is absent (of cardiomegaly, the heart's); view and sex [F], of
      VIEWS and SEXES; age [F] in years; patient, has_necklace and has_pacemaker [F].
    """
    prior = jnp.asarray(prevalence, jnp.float32)
    k_body, k_films = jax.random.split(jax.random.fold_in(key, patient))
    counts = len(prior), 5 * 9 * 2, 3 * 16
    more = MORE_DISEASE if len(prior) > len(FINDINGS) else {}
    body, state, lines, waves = _draw(k_body, BODY | DISEASE | more, *counts)
    body.sex = (body.male < 0.5).astype(jnp.int32)
    body.half_width *= jnp.where(body.sex == SEXES.index("F"), 0.95, 1.0)
    body.has_necklace = body.necklace < NECKLACE_FRACTION
    body.has_pacemaker = body.pacemaker < PACEMAKER_FRACTION
    rare = prior * (1 - PERSISTENCE) / (1 - prior)
    chance = jnp.where(state < prior, PERSISTENCE, rare)

    def draw(number: Array) -> dict[str, Array]:
        key = jax.random.fold_in(k_films, number)
        return {
            **_film(key, body, lines, waves, chance, side=side, contrast=contrast),
            "sex": body.sex,
            "age": jnp.round(body.age),
            "patient": jnp.int32(patient),
            "has_necklace": body.has_necklace,
            "has_pacemaker": body.has_pacemaker,
        }

    return jax.vmap(draw)(jnp.arange(films))


@functools.partial(jax.jit, static_argnames=("films", "side"))
def patients(key: Array, patients: Array, **settings) -> dict[str, Array]:
    """`patient` for [P] numbers, compiled: every array gains a leading axis P.

    One patient after the other: their films fit into a CPU's cache.
    """
    return jax.lax.map(lambda number: patient(key, number, **settings), patients)


def _spot(body, name: str, radius: Array) -> Array:
    """The centre (x, y) in mm of a finding's disc of that radius within a lung.

    It lies on a side, between the mediastinum and the ribs, between apex and base.
    """
    parts = ("side", "across", "down")
    side, across, down = (getattr(body, f"{name}_{part}") for part in parts)
    floor = jnp.minimum(body.base_right, body.base_left)
    top, low = body.apex + 18 + radius, floor - 0.7 * radius
    y = top + down * (low - top)
    n = body.squareness
    rise = jnp.clip((body.widest - y + 0.5 * radius) / (body.widest - body.apex), 0, 1)
    wall = body.half_width * (1 - rise**n) ** (1 / n) - radius - 2
    near = jnp.minimum(34 + 0.6 * radius, wall)
    return jnp.array([jnp.sign(side) * (near + across * (wall - near)), y])


def _disc(x: Array, y: Array, body, name: str, radius: Array) -> tuple[Array, Array]:
    """How far in mm each pixel lies within a finding's disc, [S, S]; its centre."""
    centre = _spot(body, name, radius)
    return radius - _length(x - centre[0], y - centre[1]), centre


@jax.default_matmul_precision("highest")  # An accelerator would round products.
def _ellipse_box(centre: Array, matrix: Array, turn: Array, shift: Array) -> Array:
    """Box [4] in film mm around the image of the unit disc under `matrix`."""
    middle = turn @ centre + shift
    half = jnp.linalg.norm(turn @ matrix, axis=1)
    return jnp.concatenate([middle - half, middle + half])


def _mask_box(mask: Array) -> Array:
    """Box [4] in film mm around the pixels of [S, S] that are at least 0.2."""
    side = mask.shape[0]

    def ends(profile):
        drawn = profile >= 0.2
        return jnp.argmax(drawn), side - jnp.argmax(drawn[::-1])

    (x0, x1), (y0, y1) = ends(mask.max(0)), ends(mask.max(1))
    return jnp.array([x0, y0, x1, y1]) * (FIELD_MM / side) - FIELD_MM / 2


def _masks(x: Array, y: Array, body, film, chest, rough: Array, edge: float):
    """Masks [S, S] of SIX, by name; ellipses of some; the pleural line."""
    spots, masks = {}, {}
    for name in ("mass", "nodule"):
        radius = getattr(body, f"{name}_diameter") / 2 / film.zoom  # mm on the film
        gap, centre = _disc(x, y, body, name, radius)
        masks[name] = _fill(gap, 0.5 * edge)
        spots[name] = centre, radius * jnp.eye(2)
    low = chest.corner - body.effusion_height * (0.3 + 0.7 * chest.across**3)
    same = chest.lung * (x * body.effusion_side > 0)
    masks["effusion"] = same * _fill(y - low, edge)
    thick = body.rim_depth * jnp.clip((80 - y) / 130, 0, 1)
    same = chest.lung * (x * body.rim_side > 0)
    masks["pneumothorax"] = same * _fill(thick - chest.depth, edge)
    line = same * _fill(1.5 - jnp.abs(thick - chest.depth), edge)
    line *= jnp.clip(thick / 15, 0, 1)  # It ends where the lung meets the ribs.
    centre = _spot(body, "patch", body.patch_radius)
    u, v = x - centre[0], (y - centre[1]) / body.patch_stretch
    gap = body.patch_radius - _length(u, v) + 7 * rough
    masks["consolidation"] = chest.lung * _fill(gap, 8)
    return masks, spots, line


def _more_masks(x: Array, y: Array, body, chest, edge: float) -> dict[str, Array]:
    """Masks [S, S] of EIGHT, by name."""

    def disc(name: str, edge: float) -> Array:
        return _fill(_disc(x, y, body, name, getattr(body, f"{name}_radius"))[0], edge)

    centre = _spot(body, "plate", body.plate_length / 4)
    c, s = jnp.cos(body.plate_angle), jnp.sin(body.plate_angle)
    u = c * (x - centre[0]) + s * (y - centre[1])
    v = c * (y - centre[1]) - s * (x - centre[0])
    ends = body.plate_length / 2 - jnp.abs(u)
    plate = jnp.minimum(ends, body.plate_width / 2 - jnp.abs(v))
    hila = body.edema_reach - _length(jnp.abs(x) - 34, y)
    strands = jnp.cos(2 * jnp.pi * x / body.mesh) * jnp.cos(2 * jnp.pi * y / body.mesh)
    low = _fill(y - chest.floor + body.mesh_height, 12)
    width = body.rind_width * jnp.clip((60 - y) / 40, 0, 1)
    rind = (x * body.rind_side > 0) * _fill(width - chest.depth, edge)
    behind = body.hernia_radius - _length(x - body.hernia_x, y - 70)
    lung = {
        "atelectasis": _fill(plate, edge),
        "edema": _fill(hila, 30),
        "emphysema": disc("bulla", edge),
        "fibrosis": low * _fill(strands - 0.1, 0.4),
        "pleural_thickening": rind,
        "infiltration": disc("haze", 16),
        "calcification": disc("calcification", edge),
    }
    masks = {name: chest.lung * mask for name, mask in lung.items()}
    return {**masks, "hernia": _fill(behind, edge)}


def _film(key: Array, body, lines, waves, chance, *, side, contrast) -> dict:
    """One film, which shows each finding with that chance [T].

    `body`, `lines` and `waves` are the patient's: draws of BODY and DISEASE, of the
    vessels and of the lungs' texture.
    """
    k_draw, k_noise = jax.random.split(key)
    findings = ALL[: len(chance)]
    film, label, patch = _draw(k_draw, FILM, len(findings), 3 * 12)
    film.shift_x += body.stand_x
    film.shift_y += body.stand_y
    film.rotation += body.lean
    film.zoom *= body.stature
    label = label < chance
    view = jnp.where(film.view < AP_FRACTION, VIEWS.index("AP"), VIEWS.index("PA"))
    shown = dict(zip(findings, label * jnp.float32(contrast), strict=True))
    edge = 1.0 + 0.5 * FIELD_MM / side  # A pixel wide, for no staircase.
    x, y, turn, shift = _place(film, side)

    chest = _chest(x, y, body, film, edge)
    ratio = body.heart_ratio + shown["cardiomegaly"] * (
        body.enlarged_ratio - body.heart_ratio
    )
    heart, trunk, *ellipse = _heart(x, y, body, ratio, view, edge)
    rough = _texture(patch, film, side, shortest=20.0)
    masks, spots, line = _masks(x, y, body, film, chest, rough, edge)
    spots["cardiomegaly"] = ellipse
    if len(findings) > len(FINDINGS):
        masks |= _more_masks(x, y, body, chest, edge)

    air = shown["pneumothorax"] * masks["pneumothorax"]
    marking = 0.13 * _vessels(lines, x, y)
    marking += 0.016 * _texture(waves, film, side, shortest=9.0)
    density = _tissue(x, y, body, chest, edge)
    density += chest.lung * (marking * (1 - air) - 0.33)
    heart = jnp.maximum(heart, 0.8 * trunk) * (1 - 0.6 * chest.belly)
    density += body.heart_density * heart
    density += _skeleton(x, y, body, chest, edge)
    for name in findings:
        if DENSITY[name] is not None:
            density += DENSITY[name] * shown[name] * masks[name]
    density += shown["pneumothorax"] * (0.26 * line - 0.1 * masks["pneumothorax"])
    patch = masks["consolidation"] * (0.2 + 0.04 * rough)
    density += shown["consolidation"] * patch
    necklace, pacemaker = _marks(x, y, body, edge)
    mark = jnp.maximum(body.has_necklace * necklace, body.has_pacemaker * pacemaker)
    density += mark * (1.15 - density)

    boxes = [
        _ellipse_box(*spots[name], turn, shift)
        if name in spots
        else _mask_box(masks[name])
        for name in findings
    ]
    box = (jnp.stack(boxes) + FIELD_MM / 2) * (side / FIELD_MM)
    box = jnp.where(label[:, None], jnp.clip(box, 0, side), jnp.nan)
    pixels = _expose(k_noise, density, film)[..., None]
    label = label.astype(jnp.float32)
    return {"pixels": pixels, "label": label, "box": box, "view": view}


def _draw(key: Array, ranges: dict, *counts: int) -> list:
    """Uniform draws: by name within (low, high), then [n] in [0, 1) for each count.

    All in one call: compiling a random generator takes longer than running it.
    """
    u = jax.random.uniform(key, (len(ranges) + sum(counts),))
    values, *rest = jnp.split(u, [*itertools.accumulate((len(ranges), *counts[:-1]))])
    low, high = jnp.array(tuple(ranges.values()), jnp.float32).T
    named = dict(zip(ranges, low + values * (high - low), strict=True))
    return [SimpleNamespace(**named), *rest]


def _fill(distance: Array, edge: Array) -> Array:
    """1 inside (distance > 0), 0 outside, a smooth step `edge` mm to either side."""
    t = jnp.clip(0.5 + 0.5 * distance / edge, 0, 1)
    return t * t * (3 - 2 * t)


def _length(x: Array, y: Array) -> Array:
    """The Euclidean norm of (x, y), with a finite gradient at 0."""
    return jnp.sqrt(x * x + y * y + 1e-9)


def _pixels_mm(side: int) -> Array:
    return (jnp.arange(side) + 0.5) * (FIELD_MM / side) - FIELD_MM / 2


def _texture(draws: Array, film, side: int, *, shortest: float) -> Array:
    """A random field [S, S] of mean 0 and variance 1: plane waves of random heading.

    It moves with the patient and is the same at every resolution. Wavelengths lie
    between `shortest` and 3 x `shortest`, mm.
    """
    u = draws.reshape(3, -1, 1)
    k = 2 * jnp.pi / (shortest * 3.0 ** u[0] * film.zoom)
    heading = jnp.pi * u[1] + film.rotation
    mm = _pixels_mm(side)
    a = k * jnp.cos(heading) * (mm - film.shift_x)
    b = k * jnp.sin(heading) * (mm - film.shift_y) + 2 * jnp.pi * u[2]
    # sin(a + b) = sin a cos b + cos a sin b: the sum of all waves is a matrix product.
    columns = jnp.concatenate([jnp.sin(a), jnp.cos(a)])
    rows = jnp.concatenate([jnp.cos(b), jnp.sin(b)])
    return jnp.sqrt(2.0 / u.shape[1]) * jnp.matmul(rows.T, columns, precision="highest")


def _place(film: SimpleNamespace, side: int) -> tuple[Array, Array, Array, Array]:
    """Every pixel's x and y [S, S] in the patient, and the map to the film."""
    c, s = jnp.cos(film.rotation), jnp.sin(film.rotation)
    turn = jnp.array([[c, -s], [s, c]]) * film.zoom
    shift = jnp.array([film.shift_x, film.shift_y])
    mm = _pixels_mm(side)
    u, v = mm[None, :] - shift[0], mm[:, None] - shift[1]
    return (c * u + s * v) / film.zoom, (c * v - s * u) / film.zoom, turn, shift


def _chest(x: Array, y: Array, body, film, edge: float) -> SimpleNamespace:
    """Outlines of rib cage and lungs, [S, S]; lung and belly are in [0, 1]."""
    across = jnp.abs(x) / body.half_width
    n = body.squareness
    rise = jnp.maximum(body.widest - y, 0) / (body.widest - body.apex)
    # mm from the ribs' inside.
    depth = body.half_width * (1 - (across**n + rise**n + 1e-6) ** (1 / n))
    base = jnp.where(x < 0, body.base_right, body.base_left) + film.breath
    # The y of the diaphragm.
    floor = base + body.dome * jnp.square(jnp.maximum(across - 0.45, 0) / 0.55)
    middle = jnp.abs(x) - 22 - 0.06 * jnp.maximum(y, 0)
    inside = jnp.minimum(jnp.minimum(depth, middle), floor - y)
    lung = _fill(inside, edge)
    belly = _fill(y - floor, edge) * _fill(depth + 10, 16)
    corner = base + body.dome  # Where the diaphragm meets the ribs.
    return SimpleNamespace(
        across=across, depth=depth, floor=floor, corner=corner, lung=lung, belly=belly
    )


def _skeleton(x: Array, y: Array, body, chest, edge: float) -> Array:
    """Density [S, S] of ribs, clavicles and spine; bone thins with age."""
    a = jnp.minimum(chest.across, 1.2)
    turn = 2 * jnp.pi / body.rib_pitch
    back = turn * (y + 14 * a - body.rib_fall * a**3) + 2 * jnp.pi * body.rib_phase
    front = turn * 0.93 * (y - 70 * (1 - a) + 30 * a**2) + 11 * body.rib_phase
    ribs = _fill(jnp.cos(back) - 0.25, 0.4)
    ribs += 0.6 * _fill(jnp.cos(front) - 0.4, 0.4) * _fill(a - 0.42, 0.2)
    ribs *= _fill(chest.depth + 5, 6) * (1 - 0.75 * chest.belly)
    off = jnp.abs(x - body.spine_bend * jnp.sin(y / 90))
    spine = _fill(17 - off, edge + 2) * (0.8 + 0.2 * jnp.cos(y / 4.2))
    rod = jnp.abs(y - body.clavicle + 0.16 * jnp.abs(x) - 6 * jnp.sin(jnp.abs(x) / 28))
    collar = _fill(6 - rod, edge) * _fill(jnp.abs(x) - 14, 6)
    thin = 1.15 - 0.004 * body.age
    return thin * (body.rib_density * (ribs + 1.3 * collar) + 0.14 * spine)


def _vessels(draws: Array, x: Array, y: Array) -> Array:
    """Density [S, S] of the vessels that fan out of both hila, before masking."""

    def of_lung(pair: Array) -> Array:  # Each lung has its own branches.
        return jnp.where(x < 0, pair[..., 0, :, :], pair[..., 1, :, :])

    tilt, bend, wave, reach, weight = draws.reshape(5, -1, 2, 1, 1)
    heading = jnp.linspace(-1.35, 1.35, len(tilt))[:, None, None, None]
    heading += 0.3 * (tilt - 0.5)
    c, s = of_lung(jnp.cos(heading)), of_lung(jnp.sin(heading))
    right, down = jnp.abs(x) - 26, y + 8
    along, off = c * right + s * down, c * down - s * right
    t = along / 60
    curve = of_lung(40 * bend - 20) * t**2
    off += curve + of_lung(60 * wave - 30) * t * (t - 0.6) * (t - 1.2)
    width = jnp.maximum(5.5 - 0.035 * along, 2.2)
    fade = jnp.clip(1.1 - along * of_lung(1 / (70 + 50 * reach)), 0, 1)
    fade *= jnp.clip(along / 18, 0, 1)
    return (fade * of_lung(0.5 + weight) / (1 + (off / width) ** 2) ** 2).sum(0)


def _heart(x: Array, y: Array, body, ratio: Array, view: Array, edge: float):
    """Masks [S, S] of the heart and of the vessels above it; the heart's ellipse.

    A third of the width lies on the patient's right. An AP film magnifies the heart.
    """
    a = ratio * body.half_width * jnp.where(view == VIEWS.index("AP"), 1.07, 1.0)
    b = 0.72 * a + 8
    centre = jnp.array([a / 3, body.heart_height + 0.2 * (60 - a)])
    matrix = jnp.array([[a, 0.0], [body.heart_tilt * a, b]])
    u = (x - centre[0]) / a
    v = (y - centre[1] - body.heart_tilt * a * u) / b
    mask = _fill((1 - _length(u, v)) * b, edge)
    knob = 13 + 0.07 * body.age - _length(x - 20, y + 62)
    trunk = 24 + 6 * jnp.cos(y / 30) - jnp.abs(x - 3)
    trunk = jnp.minimum(trunk, 40 - y)
    return mask, _fill(jnp.maximum(knob, trunk), edge + 1), centre, matrix


def _tissue(x: Array, y: Array, body, chest, edge: float) -> Array:
    """Density [S, S] of skin, muscle, breasts and abdomen, with air around."""
    flank = body.half_width + body.wall - jnp.abs(x)
    flank += 130 * _fill(-105 - y, 40)
    neck = y + 178 - 0.4 * jnp.maximum(jnp.abs(x) - 48, 0)
    neck = jnp.maximum(neck, 58 - jnp.abs(x))
    trunk = _fill(jnp.minimum(flank, neck), edge + 1)
    bubble = body.bubble - _length(x - 62, (y - chest.floor) * 1.3 - body.bubble - 9)
    bubble = _fill(bubble, edge) * (x > 0)
    female = body.sex == SEXES.index("F")
    breast = body.breast - _length(jnp.abs(x) - 72, 0.9 * (y - 50))
    breast = _fill(breast, 10) * jnp.where(female, 0.09, 0.0)
    return trunk * (0.42 + chest.belly * (0.14 - 0.2 * bubble) + breast)


def _marks(x: Array, y: Array, body, edge: float) -> tuple[Array, Array]:
    """Opacity [S, S] of a necklace and of a pacemaker, the same on all films."""
    bead = jnp.clip(jnp.round(x / body.bead_pitch) * body.bead_pitch, -75, 75)
    hang = body.chain_drop - body.chain_sag * bead**2
    gap = _length(x - bead, y - hang) - body.bead_radius
    low = body.chain_drop + body.bead_radius + body.pendant
    pendant = _length(x, 0.7 * (y - low)) - body.pendant
    necklace = _fill(-jnp.minimum(gap, pendant), edge)
    side = jnp.sign(body.pacer_side)
    u, v = x - side * body.pacer_x, y - body.pacer_y
    c, s = jnp.cos(body.pacer_angle), jnp.sin(body.pacer_angle)
    box = ((c * u + s * v) / body.pacer_width) ** 4
    box = jnp.sqrt(jnp.sqrt(box + ((c * v - s * u) / body.pacer_height) ** 4 + 1e-9))
    can = (1 - box) * body.pacer_height
    t = jnp.clip((y - body.pacer_y) / (60 - body.pacer_y), 0, 1)
    lead = side * body.pacer_x * (1 - t) ** 2 + 30 * t**2 + 8 * t * (1 - t)
    reach = (y > body.pacer_y) & (y < 60)
    wire = jnp.where(reach, 1.6 - jnp.abs(x - lead) / (1 + 0.6 * (1 - t)), -99.0)
    return necklace, _fill(jnp.maximum(can, wire), edge)


def _expose(key: Array, density: Array, film) -> Array:
    """Density [S, S] -> uint8 [S, S]: uneven beam, gain, gamma, noise."""
    side = density.shape[0]
    ramp = jnp.linspace(-0.5, 0.5, side)
    shade = film.shade_x * ramp[None, :] + film.shade_y * ramp[:, None]
    light = jnp.clip(film.gain * (density + shade) + film.offset, 0.02, 1.0)
    light = light ** jnp.exp(film.log_gamma)
    light += film.noise * jax.random.normal(key, density.shape)
    return jnp.round(255 * jnp.clip(light, 0, 1)).astype(jnp.uint8)
