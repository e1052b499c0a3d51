"""Aligns the sequences of one patient: one matrix, found by climbing a similarity.

Every position is in world millimetres, NIfTI's RAS; an affine maps voxel indices, in
the order of the array's axes, to the world. The matrix maps *fixed* points to
*moving* points, as resampling asks for and as ITK's files have it.

The similarity is computed at thousands of points of the fixed image, which lie between
its voxels: on the voxels, two grids of the same spacing lock into each other
(Pluim et al., Comput. Vis. Image Underst. 77, 2000, on interpolation artefacts).

How alike two images are that show the same in other colours; more is better.

Both are computed at points, which need not be a grid: values in [0, 1] and a weight
>= 0 for each, [K, P] alike, for K windows of P points. They are differentiable in the
values of `moving` and in the weights.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from medjax.errors import InputError
from medjax.geometry import warp
from medjax.geometry.grid import apply, check_affine, pool, resample

__all__ = ["Registration", "register", "resample"]

PATCH = 5  # Points along each side of a window of the local correlation.
# Millimetres to which both images are averaged, the points at which they are compared
# and the first step's millimetres.
LEVELS = ((8.0, 8192, 2.0), (4.0, 16384, 0.5), (1.0, 65536, 0.25))
STEPS = 40
REACH = np.radians(15.0)  # Turns that are tried about each axis, to either side.
CANDIDATES = 6
# Below this share of the fixed points inside the moving image there is no similarity:
# two images that overlap in three voxels agree perfectly.
OVERLAP = 0.1


class Registration(NamedTuple):
    """How to align, and whether that is better than the start.

    matrix: [4, 4] float64, fixed to moving points in RAS millimetres.
    start_metric, metric: the similarity at the start and at the matrix, more is
      better, both at the same points of the finest level; 0 where the images hardly
      overlap.
    improved: False if nothing better than the start was found; matrix is the start.
    """

    matrix: np.ndarray
    start_metric: float
    metric: float
    improved: bool


class Level(NamedTuple):
    """What the similarity is computed from, at one resolution.

    points: [K, P, 3] millimetres from the centre of the fixed image.
    fixed: [K, P] in [0, 1], its values there; weight: [K, P], 0 outside of it.
    moving: [A, B, C, 1] in [0, 1].
    base: [4, 4], from points to voxels of moving, before any motion.
    radius: [] millimetres; a turn by 1 / radius moves a point there by one.
    """

    points: Array
    fixed: Array
    weight: Array
    moving: Array
    base: Array
    radius: Array


def register(
    fixed,
    fixed_affine,
    moving,
    moving_affine,
    *,
    kind: str = "rigid",
    metric: str = "nmi",
    start=None,
    mask=None,
) -> Registration:
    """Finds the matrix that aligns two images, from coarse to fine.

    At the coarsest level turns by 15 degrees about every axis are tried, about the
    start's place and about the images' centres of mass; the best are climbed from, and
    the best of those goes on. The same input gives the same matrix.

    Args:
      fixed, moving: [A, B, C], of any shapes and contrasts.
      fixed_affine, moving_affine: [4, 4], voxel indices to RAS millimetres.
      kind: 'rigid' (6 parameters), or 'affine' (12).
      metric: 'nmi' between contrasts, 'lncc' where brightness drifts over the image;
        see `similarity`.
      start: [4, 4], fixed to moving points; None trusts the headers.
      mask: [A, B, C] of fixed; only points in its non-zero voxels count.
    """
    fixed, fixed_affine = _check("fixed", fixed, fixed_affine)
    moving, moving_affine = _check("moving", moving, moving_affine)
    start = np.eye(4) if start is None else check_affine("start", start)
    if kind not in ("rigid", "affine"):
        raise InputError(f"kind={kind!r} is unknown: use 'rigid' or 'affine'")
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is unknown: use {' or '.join(METRICS)}")
    if mask is not None and np.shape(mask) != fixed.shape:
        raise InputError(f"mask: {np.shape(mask)} is not fixed's shape {fixed.shape}")
    if mask is not None and not np.any(mask):
        raise InputError("mask: is empty; give None to use the whole image")

    centre, radius = _centre(*pool(fixed, fixed_affine, LEVELS[0][0]))
    matrix = start
    for number, (size, count, rate) in enumerate(LEVELS):
        points = _points(fixed.shape, fixed_affine, mask, size, count, metric)
        image, affine = pool(moving, moving_affine, size)
        level = Level(
            (points - centre).astype(np.float32),
            *_values(*pool(fixed, fixed_affine, size), points),
            _unit(image)[..., None],
            _base(affine, matrix, centre),
            np.float32(radius),
        )
        motions, free = np.zeros((1, 12), np.float32), 6
        if number == 0:
            target = apply(np.linalg.inv(start), _centre(image, affine)[0])
            motions = _search(level, target - centre, metric)
        elif kind == "affine":
            free = 12
        motions, values = _climb(level, motions, free, rate, metric=metric)
        best = int(np.argmax(values))
        matrix = matrix @ _about(centre, motions[best], radius)
    still = level._replace(base=_base(affine, start, centre))
    before = float(_similarities(still, np.zeros((1, 12)), metric=metric)[0])
    after = float(values[best])
    if after <= before:
        return Registration(start, before, before, improved=False)
    return Registration(matrix, before, after, improved=True)


# --------------------------------------------------------------------- the ascent


@jax.jit
def _motion(p: Array, radius: Array) -> tuple[Array, Array]:
    """12 parameters in millimetres -> a matrix [3, 3] and a translation [3].

    The first three turn (Cayley's rational form of a rotation: smooth at 0), the next
    three translate, the last six stretch and shear symmetrically; turns and stretches
    move a point at the radius by as many millimetres.
    """
    x, y, z = p[:3] / radius
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = jnp.eye(3) + (cross + cross @ cross / 2) / (1 + (x * x + y * y + z * z) / 4)
    a, b, c, d, e, f = p[6:] / radius
    stretch = jnp.eye(3) + jnp.array([[a, d, e], [d, b, f], [e, f, c]])
    return turn @ stretch, p[3:6]


def _similarity(p: Array, level: Level, metric: str) -> Array:
    """[12] millimetres of motion -> []."""
    linear, shift = _motion(p, level.radius)
    points = level.points @ linear.T + shift
    voxels = points @ level.base[:3, :3].T + level.base[:3, 3]
    value = warp.sample(level.moving, voxels, padding="edge")[..., 0]
    last = jnp.array(level.moving.shape[:3]) - 1.0
    beyond = jnp.maximum(-voxels, voxels - last)  # Voxels past the edge's centres.
    weight = level.weight * jnp.prod(jnp.clip(1 - beyond, 0, 1), axis=-1)
    enough = weight.sum() > OVERLAP * level.weight.sum()
    return jnp.where(enough, METRICS[metric](level.fixed, value, weight), 0.0)


@functools.partial(jax.jit, static_argnames="metric")
def _similarities(level: Level, motions: Array, *, metric: str) -> Array:
    """[K, 12] -> [K], one after the other: together they would not fit the cache."""
    return jax.lax.map(lambda p: _similarity(p, level, metric), motions)


@functools.partial(jax.jit, static_argnames="metric")
def _climb(
    level: Level, starts: Array, free: int, rate: float, *, metric: str
) -> tuple[Array, Array]:
    """Adam with a step that shrinks to nothing, from each start.

    Args:
      starts: [K, 12].
      free: how many of the parameters may change, 6 or 12.
      rate: the first step in millimetres.

    Returns:
      [K, 12] the best motion met from each start, and [K] its similarity.
    """
    adam = optax.scale_by_adam(b1=0.8, b2=0.9)
    free = jnp.arange(12) < free
    slope = jax.value_and_grad(lambda p: _similarity(p, level, metric))

    def climb(start):
        def step(carry, size):
            p, state, best, highest = carry
            value, gradient = slope(p)
            best = jnp.where(value > highest, p, best)
            update, state = adam.update(jnp.where(free, gradient, 0), state)
            return (p + size * update, state, best, jnp.maximum(value, highest)), None

        carry = (start, adam.init(start), start, -jnp.inf)
        sizes = rate * (1 - jnp.arange(STEPS) / STEPS)
        (_, _, best, highest), _ = jax.lax.scan(step, carry, sizes)
        return best, highest

    return jax.lax.map(climb, starts)


def _search(level: Level, offset: np.ndarray, metric: str) -> np.ndarray:
    """The most similar of turned and centred starts, [CANDIDATES + 1, 12].

    Args:
      offset: [3] millimetres, from fixed's centre of mass to moving's.
    """
    turns = np.array(list(itertools.product((0, -REACH, REACH), repeat=3)))
    trial = np.zeros((2, len(turns), 12), np.float32)
    trial[..., :3] = turns * level.radius
    trial[1, :, 3:6] = offset
    trial = trial.reshape(-1, 12)
    order = np.argsort(-_similarities(level, trial, metric=metric), stable=True)
    return trial[[0, *order[:CANDIDATES]]]  # 0 is the start itself.


# ---------------------------------------------------------------- before and after


def _base(affine, matrix, centre) -> np.ndarray:
    """[4, 4], from millimetres about fixed's centre to voxels of moving."""
    base = np.linalg.solve(affine, matrix)
    base[:3, 3] += base[:3, :3] @ centre
    return base.astype(np.float32)


def _points(shape, affine, mask, size, count, metric) -> np.ndarray:
    """[K, P, 3] millimetres, even over the mask and off its voxels' centres.

    For nmi P is 1; for lncc the P points of a window stand `size` apart.
    """
    rng = np.random.default_rng(0)
    # The points of a window tell much the same: there must be more of them.
    side, count = (PATCH, 4 * count) if metric == "lncc" else (1, count)
    count //= side**3
    chosen = np.arange(np.prod(shape)) if mask is None else np.flatnonzero(mask)
    place = (np.arange(count) + rng.random(count)) * (chosen.size / count)
    voxels = np.stack(np.unravel_index(chosen[place.astype(int)], shape), axis=-1)
    middle = apply(affine, voxels + rng.uniform(-0.5, 0.5, voxels.shape))
    steps = size * (np.arange(side) - (side - 1) / 2)
    window = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    return middle[:, None] + window


def _values(image, affine, points) -> tuple[Array, Array]:
    """An image's values at points of the world, and a weight of 0 outside of it."""
    voxels = apply(np.linalg.inv(affine), points)
    inside = ((voxels >= -0.5) & (voxels <= np.array(image.shape) - 0.5)).all(-1)
    value = _sample(_unit(image)[..., None], voxels.astype(np.float32))[..., 0]
    return value, inside.astype(np.float32)


_sample = jax.jit(functools.partial(warp.sample, padding="edge"))


def _unit(image: np.ndarray) -> np.ndarray:
    """To [0, 1]; the brightest 0.2 % are vessels and artefacts, and would be it all."""
    low, high = np.quantile(image, (0.002, 0.998))
    if low == high:
        low, high = image.min(), image.max()
    return np.clip((image - low) / max(high - low, TINY), 0, 1).astype(np.float32)


def _centre(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """The centre of mass, [3] mm, and the root mean square distance from it."""
    image = _unit(image)
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    points, mass = apply(affine, index), image + TINY  # Never of no mass at all.
    mass = mass / mass.sum()
    centre = np.einsum("abc,abci->i", mass, points)
    return centre, np.sqrt(np.sum(mass * ((points - centre) ** 2).sum(-1)))


def _about(centre: np.ndarray, p: Array, radius: float) -> np.ndarray:
    """The motion as a matrix of the world, [4, 4]."""
    linear, shift = (np.asarray(x, np.float64) for x in _motion(p, radius))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, centre + shift - linear @ centre
    return matrix


def _check(name: str, image, affine) -> tuple[np.ndarray, np.ndarray]:
    """As float32 and float64, or an InputError."""
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or min(image.shape) < 2:
        raise InputError(f"{name}: {image.shape}; give [A, B, C] of 2 voxels or more")
    if not np.isfinite(image).all():
        raise InputError(f"{name}: holds NaN or infinity; set those voxels to 0")
    if image.min() == image.max():
        raise InputError(f"{name}: is {image.flat[0]:g} everywhere; give an image")
    return image, check_affine(f"{name}_affine", affine)


BINS = 32
TINY = 1e-9


def nmi(fixed: Array, moving: Array, weight: Array) -> Array:
    """Normalised mutual information, (H(f) + H(m)) / H(f, m), from 1 to 2.

    The joint histogram has 32 bins a side, smoothed by cubic B-splines: a value of
    moving falls into the four bins around it, which gives it a gradient, a value of
    fixed by the spline about the nearest bin.

    Returns:
      [], 0 where no point has a weight.

    Source: Studholme et al., Pattern Recognition 32 (1999) 71; the windows: Mattes et
    al., IEEE Trans. Med. Imaging 22 (2003) 120, eq. 4.
    """
    fixed, moving, weight = fixed.ravel(), moving.ravel(), weight.ravel()
    # The outer bins are left free for the splines.
    row = jnp.round(1 + fixed * (BINS - 3)).astype(jnp.int32)
    place = 1 + moving * (BINS - 3)
    column = jnp.floor(place).astype(jnp.int32)
    t = place - column
    u = 1 - t
    near, far = 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * u * u + 3 * u * u * u
    spline = jnp.stack([u * u * u, near, far, t * t * t], axis=-1) / 6
    # Scattering is what costs: a point adds its four weights at once, and the four
    # histograms are shifted into one.
    joint = jnp.zeros((BINS * BINS, 4), weight.dtype)
    joint = joint.at[row * BINS + column].add(
        spline * weight[:, None], mode="promise_in_bounds"
    )
    joint = joint.reshape(BINS, BINS, 4)
    joint = sum(jnp.roll(joint[..., k], k - 1, axis=1) for k in range(4))
    joint = (jnp.roll(joint, -1, axis=0) + 4 * joint + jnp.roll(joint, 1, axis=0)) / 6
    joint = joint / jnp.maximum(joint.sum(), TINY)
    apart = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    return apart / jnp.maximum(_entropy(joint), TINY)


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(jnp.maximum(p, TINY)))


def lncc(fixed: Array, moving: Array, weight: Array) -> Array:
    """Mean squared correlation within windows, from 0 to 1.

    A window counts as its points do together.

    Source: Avants et al., Med. Image Anal. 12 (2008) 26, eq. 5; windows of the whole
    image are sampled here.
    """
    total = weight.sum(-1)

    def mean(x):
        return (weight * x).sum(-1, keepdims=True) / jnp.maximum(total, TINY)[:, None]

    f, m = fixed - mean(fixed), moving - mean(moving)
    noise = 1e-5  # Of the two variances' product's root: air must not correlate.
    square = mean(f * m) ** 2 / ((mean(f * f) + noise) * (mean(m * m) + noise))
    return (total * square[:, 0]).sum() / jnp.maximum(total.sum(), TINY)


METRICS = {"nmi": nmi, "lncc": lncc}
