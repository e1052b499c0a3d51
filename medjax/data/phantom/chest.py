"""Synthetic chest films with known truth: data that need no download.

A film is a pure function of (data set's key, patient, film): the chest of
chest_anatomy.py, findings with known boxes, an exposure.

The films contain a trap. Everything that identifies a patient (ribs, lungs, lung
markings, the stance, a necklace, a pacemaker) is nearly the same on all of the
patient's films, and so, mostly, is the disease. Across patients these marks and the
disease are independent. A model that recognises patients is therefore right about new
films of known patients, and wrong about new patients: a split by image rewards it, a
split by patient doesn't.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from medjax.data.phantom import chest_anatomy
from medjax.data.phantom.chest_anatomy import FIELD_MM, SEXES, VIEWS

FINDINGS = (
    "mass",
    "nodule",
    "effusion",
    "cardiomegaly",
    "pneumothorax",
    "consolidation",
)
PREVALENCE = (0.06, 0.12, 0.20, 0.01, 0.08, 0.05)
PERSISTENCE = 0.85  # The chance that a film shows what its patient has.
AP_FRACTION = 0.3
NECKLACE_FRACTION = 0.5
PACEMAKER_FRACTION = 0.2

# How a patient's findings look: drawn for every patient, shown where there is disease.
DISEASE = {
    "mass_diameter": (31.0, 60.0),
    "mass_side": (-1.0, 1.0),  # Of every side only the sign counts.
    "mass_across": (0.0, 1.0),  # from the mediastinum to the ribs
    "mass_down": (0.0, 1.0),  # from the apex to the base
    "nodule_diameter": (16.0, 28.0),
    "nodule_side": (-1.0, 1.0),
    "nodule_across": (0.0, 1.0),
    "nodule_down": (0.0, 1.0),
    "effusion_side": (-1.0, 1.0),
    "effusion_height": (26.0, 70.0),
    "enlarged_ratio": (0.56, 0.66),  # cardiothoracic ratio with cardiomegaly
    "rim_side": (-1.0, 1.0),
    "rim_depth": (28.0, 56.0),
    "patch_side": (-1.0, 1.0),
    "patch_across": (0.0, 1.0),
    "patch_down": (0.0, 1.0),
    "patch_radius": (24.0, 40.0),
    "patch_stretch": (0.75, 1.3),  # height / width
}


def _spot(body, side: Array, across: Array, down: Array, radius: Array) -> Array:
    """Returns the centre (x, y) in mm of a disc of that radius within a lung."""
    floor = jnp.minimum(body.base_right, body.base_left)
    top, low = body.apex + 18 + radius, floor - 0.7 * radius
    y = top + down * (low - top)
    n = body.squareness
    rise = jnp.clip((body.widest - y + 0.5 * radius) / (body.widest - body.apex), 0, 1)
    wall = body.half_width * (1 - rise**n) ** (1 / n) - radius - 2
    near = jnp.minimum(34 + 0.6 * radius, wall)
    return jnp.array([jnp.sign(side) * (near + across * (wall - near)), y])


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
    """Masks [S, S] of the findings, by name; ellipses of some; the pleural line."""
    spots, masks = {}, {}
    for name in ("mass", "nodule"):
        where = [getattr(body, f"{name}_{part}") for part in ("side", "across", "down")]
        radius = getattr(body, f"{name}_diameter") / 2 / film.zoom  # mm on the film
        centre = _spot(body, *where, radius)
        gap = radius - chest_anatomy.length(x - centre[0], y - centre[1])
        masks[name] = chest_anatomy.fill(gap, 0.5 * edge)
        spots[name] = centre, radius * jnp.eye(2)
    low = chest.corner - body.effusion_height * (0.3 + 0.7 * chest.across**3)
    same = chest.lung * (x * body.effusion_side > 0)
    masks["effusion"] = same * chest_anatomy.fill(y - low, edge)
    thick = body.rim_depth * jnp.clip((80 - y) / 130, 0, 1)
    same = chest.lung * (x * body.rim_side > 0)
    masks["pneumothorax"] = same * chest_anatomy.fill(thick - chest.depth, edge)
    line = same * chest_anatomy.fill(1.5 - jnp.abs(thick - chest.depth), edge)
    line *= jnp.clip(thick / 15, 0, 1)  # It ends where the lung meets the ribs.
    where = (body.patch_side, body.patch_across, body.patch_down)
    centre = _spot(body, *where, body.patch_radius)
    u, v = x - centre[0], (y - centre[1]) / body.patch_stretch
    gap = body.patch_radius - chest_anatomy.length(u, v) + 7 * rough
    masks["consolidation"] = chest.lung * chest_anatomy.fill(gap, 8)
    return masks, spots, line


def _film(key: Array, body, lines: Array, waves: Array, *, side, contrast, chance):
    """One film: pixels [S, S, 1], label [T], box [T, 4] and the view.

    Args:
      key: this film's.
      body: the patient's draws from BODY and DISEASE.
      lines, waves: the draws of the patient's vessels and lung texture.
      chance: [T] that this film shows each finding.
    """
    k_draw, k_noise = jax.random.split(key)
    film, label, patch = chest_anatomy.draw(
        k_draw, chest_anatomy.FILM, len(FINDINGS), 3 * 12
    )
    film.shift_x += body.stand_x
    film.shift_y += body.stand_y
    film.rotation += body.lean
    film.zoom *= body.stature
    label = label < chance
    view = jnp.where(film.view < AP_FRACTION, VIEWS.index("AP"), VIEWS.index("PA"))
    shown = dict(zip(FINDINGS, label * jnp.float32(contrast), strict=True))
    edge = 1.0 + 0.5 * FIELD_MM / side  # A pixel wide, for no staircase.
    x, y, turn, shift = chest_anatomy.place(film, side)

    chest = chest_anatomy.chest(x, y, body, film, edge)
    ratio = body.heart_ratio + shown["cardiomegaly"] * (
        body.enlarged_ratio - body.heart_ratio
    )
    heart, trunk, *ellipse = chest_anatomy.heart(x, y, body, ratio, view, edge)
    rough = chest_anatomy.texture(patch, film, side, shortest=20.0)
    masks, spots, line = _masks(x, y, body, film, chest, rough, edge)
    spots["cardiomegaly"] = ellipse

    air = shown["pneumothorax"] * masks["pneumothorax"]
    marking = 0.13 * chest_anatomy.vessels(lines, x, y)
    marking += 0.016 * chest_anatomy.texture(waves, film, side, shortest=9.0)
    density = chest_anatomy.tissue(x, y, body, chest, edge)
    density += chest.lung * (marking * (1 - air) - 0.33)
    heart = jnp.maximum(heart, 0.8 * trunk) * (1 - 0.6 * chest.belly)
    density += body.heart_density * heart
    density += chest_anatomy.skeleton(x, y, body, chest, edge)
    density += 0.3 * shown["mass"] * masks["mass"]
    density += 0.36 * shown["nodule"] * masks["nodule"]
    density += 0.3 * shown["effusion"] * masks["effusion"]
    density += shown["pneumothorax"] * (0.26 * line - 0.1 * masks["pneumothorax"])
    patch = masks["consolidation"] * (0.2 + 0.04 * rough)
    density += shown["consolidation"] * patch
    necklace, pacemaker = chest_anatomy.marks(x, y, body, edge)
    mark = jnp.maximum(body.has_necklace * necklace, body.has_pacemaker * pacemaker)
    density += mark * (1.15 - density)

    boxes = [
        _ellipse_box(*spots[name], turn, shift)
        if name in spots
        else _mask_box(masks[name])
        for name in FINDINGS
    ]
    box = (jnp.stack(boxes) + FIELD_MM / 2) * (side / FIELD_MM)
    box = jnp.where(label[:, None], jnp.clip(box, 0, side), jnp.nan)
    pixels = chest_anatomy.expose(k_noise, density, film)
    return pixels[..., None], label.astype(jnp.float32), box, view


def patient(
    key: Array,
    patient: Array,
    *,
    films: int,
    side: int,
    contrast: float = 1.0,
    prevalence: tuple[float, ...] = PREVALENCE,
) -> dict[str, Array]:
    """Draws all films of one patient.

    Disease is chronic: each film shows a patient's finding with the chance PERSISTENCE,
    and any other finding with the small chance that makes the prevalence among films
    equal to that among patients. A film's draws depend on (key, patient, film) alone:
    not on the side, the contrast or the other films.

    Args:
      key: the data set's key.
      patient: [] int, the patient's number.
      films: F, how many films of that patient.
      side: S, pixels; a pixel measures FIELD_MM / S mm.
      contrast: how visible the findings are; 0 hides them, labels unchanged.
      prevalence: [T] chance of each of FINDINGS on a film, in (0, 1).

    Returns:
      pixels: [F, S, S, 1] uint8, white is dense.
      label: [F, T] float32, 1 present, 0 absent.
      box: [F, T, 4] float32, x0, y0, x1, y1 in pixels from the film's upper left
        corner; NaN where the finding is absent. With cardiomegaly, the heart's.
      view, sex: [F] int32, indices into VIEWS and SEXES.
      age: [F] float32, years.
      patient: [F] int32.
      has_necklace, has_pacemaker: [F] bool.
    """
    prior = jnp.asarray(prevalence, jnp.float32)
    k_body, k_films = jax.random.split(jax.random.fold_in(key, patient))
    sizes = chest_anatomy.BODY | DISEASE, len(FINDINGS), 5 * 9 * 2, 3 * 16
    body, state, lines, waves = chest_anatomy.draw(k_body, *sizes)
    body.sex = (body.male < 0.5).astype(jnp.int32)
    body.half_width *= jnp.where(body.sex == SEXES.index("F"), 0.95, 1.0)
    body.has_necklace = body.necklace < NECKLACE_FRACTION
    body.has_pacemaker = body.pacemaker < PACEMAKER_FRACTION
    rare = prior * (1 - PERSISTENCE) / (1 - prior)
    chance = jnp.where(state < prior, PERSISTENCE, rare)
    draw = functools.partial(
        _film,
        body=body,
        lines=lines,
        waves=waves,
        side=side,
        contrast=contrast,
        chance=chance,
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(k_films, jnp.arange(films))
    pixels, label, box, view = jax.vmap(draw)(keys)
    same = {"sex": body.sex, "age": jnp.round(body.age), "patient": jnp.int32(patient)}
    same |= {"has_necklace": body.has_necklace, "has_pacemaker": body.has_pacemaker}
    same = {name: jnp.broadcast_to(value, (films,)) for name, value in same.items()}
    return {"pixels": pixels, "label": label, "box": box, "view": view, **same}


@functools.partial(jax.jit, static_argnames=("films", "side"))
def patients(key: Array, patients: Array, **settings) -> dict[str, Array]:
    """`patient` for [P] numbers, compiled: every array gains a leading axis P.

    Patients are drawn one after the other, a patient's films together: they fit into
    the cache of a CPU, and the result doesn't depend on the other patients.
    """
    return jax.lax.map(lambda number: patient(key, number, **settings), patients)
