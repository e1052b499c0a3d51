"""A schematic healthy chest in mm, drawn analytically; chest.py makes films of it.

Coordinates are the patient's, in mm: the origin in the middle of the chest, x towards
the right of the film (the patient's left), y towards the feet. Density is
dimensionless: 0 is air, 1 is metal, and white is dense. Every function takes the random
draws that it needs and a grid of any spacing, so that a patient looks the same at every
resolution.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import Array

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


def draw(key: Array, *ranges: dict | int) -> list:
    """Uniform draws: by name for a dict of (low, high), else [n] in [0, 1).

    All in one call: compiling a random generator takes longer than running it.
    """
    u = jax.random.uniform(
        key, (sum(r if isinstance(r, int) else len(r) for r in ranges),)
    )
    drawn = []
    for r in ranges:
        if isinstance(r, int):
            drawn.append(u[:r])
            u = u[r:]
            continue
        low, high = jnp.array(tuple(r.values()), jnp.float32).T
        drawn.append(SimpleNamespace(**dict(zip(r, low + u[: len(r)] * (high - low)))))
        u = u[len(r) :]
    return drawn


def fill(distance: Array, edge: Array) -> Array:
    """1 inside (distance > 0), 0 outside, a smooth step `edge` mm to either side."""
    t = jnp.clip(0.5 + 0.5 * distance / edge, 0, 1)
    return t * t * (3 - 2 * t)


def length(x: Array, y: Array) -> Array:
    """The Euclidean norm of (x, y), with a finite gradient at 0."""
    return jnp.sqrt(x * x + y * y + 1e-9)


def _pixels_mm(side: int) -> Array:
    return (jnp.arange(side) + 0.5) * (FIELD_MM / side) - FIELD_MM / 2


def texture(draws: Array, film, side: int, *, shortest: float) -> Array:
    """A random field [S, S] of mean 0 and variance 1: plane waves of random heading.

    Waves need no lattice, so the field moves with the patient and is the same at every
    resolution. By sin(a + b) = sin a cos b + cos a sin b their sum is one matrix
    product. Wavelengths lie between `shortest` and 3 x `shortest`, mm.
    """
    u = draws.reshape(3, -1, 1)
    k = 2 * jnp.pi / (shortest * 3.0 ** u[0] * film.zoom)
    heading = jnp.pi * u[1] + film.rotation
    mm = _pixels_mm(side)
    a = k * jnp.cos(heading) * (mm - film.shift_x)
    b = k * jnp.sin(heading) * (mm - film.shift_y) + 2 * jnp.pi * u[2]
    columns = jnp.concatenate([jnp.sin(a), jnp.cos(a)])
    rows = jnp.concatenate([jnp.cos(b), jnp.sin(b)])
    return jnp.sqrt(2.0 / u.shape[1]) * jnp.matmul(rows.T, columns, precision="highest")


def place(film: SimpleNamespace, side: int) -> tuple[Array, Array, Array, Array]:
    """Returns every pixel's x and y [S, S] in the patient, and the map to the film."""
    c, s = jnp.cos(film.rotation), jnp.sin(film.rotation)
    turn = jnp.array([[c, -s], [s, c]]) * film.zoom
    shift = jnp.array([film.shift_x, film.shift_y])
    mm = _pixels_mm(side)
    u, v = mm[None, :] - shift[0], mm[:, None] - shift[1]
    return (c * u + s * v) / film.zoom, (c * v - s * u) / film.zoom, turn, shift


def chest(x: Array, y: Array, body, film, edge: float) -> SimpleNamespace:
    """Outlines of rib cage and lungs, [S, S].

    depth is in mm from the ribs' inside, floor is the y of the diaphragm, lung and
    belly are in [0, 1], and across is |x| in half widths of the cage.
    """
    across = jnp.abs(x) / body.half_width
    n = body.squareness
    rise = jnp.maximum(body.widest - y, 0) / (body.widest - body.apex)
    depth = body.half_width * (1 - (across**n + rise**n + 1e-6) ** (1 / n))
    base = jnp.where(x < 0, body.base_right, body.base_left) + film.breath
    floor = base + body.dome * jnp.square(jnp.maximum(across - 0.45, 0) / 0.55)
    middle = jnp.abs(x) - 22 - 0.06 * jnp.maximum(y, 0)
    inside = jnp.minimum(jnp.minimum(depth, middle), floor - y)
    lung = fill(inside, edge)
    belly = fill(y - floor, edge) * fill(depth + 10, 16)
    corner = base + body.dome  # Where the diaphragm meets the ribs.
    return SimpleNamespace(
        across=across, depth=depth, floor=floor, corner=corner, lung=lung, belly=belly
    )


def skeleton(x: Array, y: Array, body, chest, edge: float) -> Array:
    """Density [S, S] of ribs, clavicles and spine; bone thins with age."""
    a = jnp.minimum(chest.across, 1.2)
    turn = 2 * jnp.pi / body.rib_pitch
    back = turn * (y + 14 * a - body.rib_fall * a**3) + 2 * jnp.pi * body.rib_phase
    front = turn * 0.93 * (y - 70 * (1 - a) + 30 * a**2) + 11 * body.rib_phase
    ribs = fill(jnp.cos(back) - 0.25, 0.4)
    ribs += 0.6 * fill(jnp.cos(front) - 0.4, 0.4) * fill(a - 0.42, 0.2)
    ribs *= fill(chest.depth + 5, 6) * (1 - 0.75 * chest.belly)
    off = jnp.abs(x - body.spine_bend * jnp.sin(y / 90))
    spine = fill(17 - off, edge + 2) * (0.8 + 0.2 * jnp.cos(y / 4.2))
    rod = jnp.abs(y - body.clavicle + 0.16 * jnp.abs(x) - 6 * jnp.sin(jnp.abs(x) / 28))
    collar = fill(6 - rod, edge) * fill(jnp.abs(x) - 14, 6)
    thin = 1.15 - 0.004 * body.age
    return thin * (body.rib_density * (ribs + 1.3 * collar) + 0.14 * spine)


def _side(x: Array, pair: Array) -> Array:
    """Picks from [..., 2, 1, 1] the right lung's value (x < 0) or the left's."""
    return jnp.where(x < 0, pair[..., 0, :, :], pair[..., 1, :, :])


def vessels(draws: Array, x: Array, y: Array) -> Array:
    """Density [S, S] of the vessels that fan out of both hila, before masking."""
    tilt, bend, wave, reach, weight = draws.reshape(5, -1, 2, 1, 1)
    heading = jnp.linspace(-1.35, 1.35, len(tilt))[:, None, None, None]
    heading += 0.3 * (tilt - 0.5)
    of_lung = functools.partial(_side, x)  # Each lung has its own branches.
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


def heart(x: Array, y: Array, body, ratio: Array, view: Array, edge: float):
    """Returns the heart's mask [S, S], the vessels' above it, and its ellipse.

    A third of the width lies on the patient's right. An AP film, taken from the
    front, magnifies the heart.
    """
    a = ratio * body.half_width * jnp.where(view == VIEWS.index("AP"), 1.07, 1.0)
    b = 0.72 * a + 8
    centre = jnp.array([a / 3, body.heart_height + 0.2 * (60 - a)])
    matrix = jnp.array([[a, 0.0], [body.heart_tilt * a, b]])
    u = (x - centre[0]) / a
    v = (y - centre[1] - body.heart_tilt * a * u) / b
    mask = fill((1 - length(u, v)) * b, edge)
    knob = 13 + 0.07 * body.age - length(x - 20, y + 62)
    trunk = 24 + 6 * jnp.cos(y / 30) - jnp.abs(x - 3)
    trunk = jnp.minimum(trunk, 40 - y)
    return mask, fill(jnp.maximum(knob, trunk), edge + 1), centre, matrix


def tissue(x: Array, y: Array, body, chest, edge: float) -> Array:
    """Density [S, S] of skin, muscle, breasts and abdomen, with air around."""
    flank = body.half_width + body.wall - jnp.abs(x)
    flank += 130 * fill(-105 - y, 40)
    neck = y + 178 - 0.4 * jnp.maximum(jnp.abs(x) - 48, 0)
    neck = jnp.maximum(neck, 58 - jnp.abs(x))
    trunk = fill(jnp.minimum(flank, neck), edge + 1)
    bubble = body.bubble - length(x - 62, (y - chest.floor) * 1.3 - body.bubble - 9)
    bubble = fill(bubble, edge) * (x > 0)
    female = body.sex == SEXES.index("F")
    breast = body.breast - length(jnp.abs(x) - 72, 0.9 * (y - 50))
    breast = fill(breast, 10) * jnp.where(female, 0.09, 0.0)
    return trunk * (0.42 + chest.belly * (0.14 - 0.2 * bubble) + breast)


def marks(x: Array, y: Array, body, edge: float) -> tuple[Array, Array]:
    """Opacity [S, S] of a necklace and of a pacemaker, the same on all films."""
    bead = jnp.clip(jnp.round(x / body.bead_pitch) * body.bead_pitch, -75, 75)
    hang = body.chain_drop - body.chain_sag * bead**2
    gap = length(x - bead, y - hang) - body.bead_radius
    low = body.chain_drop + body.bead_radius + body.pendant
    pendant = length(x, 0.7 * (y - low)) - body.pendant
    necklace = fill(-jnp.minimum(gap, pendant), edge)
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
    return necklace, fill(jnp.maximum(can, wire), edge)


def expose(key: Array, density: Array, film) -> Array:
    """Density [S, S] -> uint8 [S, S]: uneven beam, gain, gamma, noise."""
    side = density.shape[0]
    ramp = jnp.linspace(-0.5, 0.5, side)
    shade = film.shade_x * ramp[None, :] + film.shade_y * ramp[:, None]
    light = jnp.clip(film.gain * (density + shade) + film.offset, 0.02, 1.0)
    light = light ** jnp.exp(film.log_gamma)
    light += film.noise * jax.random.normal(key, density.shape)
    return jnp.round(255 * jnp.clip(light, 0, 1)).astype(jnp.uint8)
