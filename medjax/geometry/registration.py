"""Rigid registration of a patient's MRI sequences, by gradient ascent on a similarity.

Positions are in world millimetres, NIfTI's RAS. Affines map voxel indices, in the order
of the array's axes, to the world. The matrix maps *fixed* points to *moving* points, as
resampling needs it.

The similarity is computed at thousands of points of the fixed image, which lie between
its voxels: on the voxels, two grids of the same spacing lock into each other
(Pluim et al., Comput. Vis. Image Underst. 77, 2000, on interpolation artefacts).
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from medjax.geometry.grid import apply, interpolate, pool, spacing_of

# Of each level: millimetres to which both images are averaged, number of points, and
# the first step's millimetres.
PYRAMID = ((8.0, 8192, 2.0), (4.0, 16384, 0.5), (1.0, 65536, 0.25))
SAME_GRID = 2.0  # The same millimetres of images that are compared as they lie.
ASCENT_STEPS = 40
MAX_TURN = np.radians(15.0)  # Rotations that are tried about each axis, both ways.
CANDIDATES = 6
# mm, or the thickest slice: there the similarity of what is aligned is much lower.
BESIDE = 4.0
# With fewer of the fixed points inside the moving image the similarity is 0: two images
# that overlap in three voxels agree perfectly.
OVERLAP = 0.1
BINS = 32  # Of the joint histogram, along each axis.
EPSILON = 1e-9


class Registration(NamedTuple):
    """How to align two images, and how similar they are then.

    The similarities are of the finest level's points; 0 where the images hardly overlap.
    """

    # [4, 4] float64, fixed to moving points in RAS millimetres; the identity where no
    # motion is better than the headers.
    matrix: np.ndarray
    start_metric: float  # The similarity before; more is better.
    metric: float  # The similarity after.
    # The mean similarity at BESIDE from the alignment, along the world's axes and both
    # ways, as a share of `metric`, both less their minimum of 1. Structures that are the
    # same lie on each other nowhere else; NaN where the images hardly overlap.
    beside: float


class Level(NamedTuple):
    """The input of the similarity at one resolution."""

    points: Array  # [P, 3] millimetres from the centre of the fixed image.
    fixed: Array  # [P] in [0, 1], its values there.
    weight: Array  # [P], 0 outside of it.
    moving: Array  # [A, B, C, 1] in [0, 1].
    base: Array  # [4, 4], from points to voxels of moving, before any motion.
    radius: Array  # [] mm; a rotation by 1 / radius moves a point there by 1 mm.


def register(fixed, fixed_affine, moving, moving_affine) -> Registration:
    """Finds the rigid motion that aligns two images, from coarse to fine.

    The images are [A, B, C], of any shapes and contrasts. The coarsest level tries
    rotations by 15 degrees about every axis, without a shift and with the centres of
    mass aligned. The ascent starts from the best of them, and the best result goes on
    to the next level. The same input gives the same matrix.
    """
    centre, radius = _centre(*pool(fixed, fixed_affine, PYRAMID[0][0]))
    matrix = np.eye(4)
    for number, (size, count, rate) in enumerate(PYRAMID):
        points = _points(fixed.shape, fixed_affine, count)
        image, affine = pool(moving, moving_affine, size)
        level = Level(
            (points - centre).astype(np.float32),
            *_values(*pool(fixed, fixed_affine, size), points),
            _unit(image)[..., None],
            _base(affine, matrix, centre),
            np.float32(radius),
        )
        motions = np.zeros((1, 6), np.float32)
        if number == 0:
            motions = _search(level, _centre(image, affine)[0] - centre)
        motions, values = _climb(level, motions, rate)
        best = int(np.argmax(values))
        matrix = matrix @ _about(centre, motions[best], radius)
    start = level._replace(base=_base(affine, np.eye(4), centre))
    before = float(_similarities(start, np.zeros((1, 6), np.float32))[0])
    after = float(values[best])
    if after <= before:
        matrix, after = np.eye(4), before
    end = level._replace(base=_base(affine, matrix, centre))
    aside = np.zeros((6, 6), np.float32)
    slices = [spacing_of(a).max() for a in (fixed_affine, moving_affine)]
    aside[:, 3:] = max(BESIDE, *slices) * np.concatenate([np.eye(3), -np.eye(3)])
    around = np.maximum(_similarities(end, aside) - 1, 0).mean()
    beside = float(around / (after - 1)) if after > 1 else np.nan
    return Registration(matrix, before, after, beside)


def compare(fixed, moving, affine) -> tuple[float, float, float]:
    """How alike two images are that lie on one grid, as they lie.

    The numbers are as in `Registration`, of voxels of SAME_GRID mm and whole steps of
    them: nothing is interpolated, and nothing compiled for another shape.

    Returns:
      The similarity, what is left of it beside, and the similarity of the moving image
      mirrored along its last axis; NaN in images of a few voxels.
    """
    fixed, pooled = pool(fixed, affine, SAME_GRID)
    moving, _ = pool(moving, affine, SAME_GRID)
    steps = np.maximum(np.rint(BESIDE / spacing_of(pooled)), 1).astype(int)
    inner = np.array(fixed.shape) - 2 * steps
    if (inner < 1).any():
        return np.nan, np.nan, np.nan
    place = steps + _spread(inner, PYRAMID[-1][1], np.random.default_rng(0))
    value, other = _unit(fixed)[tuple(place.T)], _unit(moving)
    mirrored = other[..., ::-1]
    weight = np.ones(len(place), np.float32)
    aside = np.concatenate([np.zeros((1, 3), int), np.diag(steps), -np.diag(steps)])
    views = [(other, step) for step in aside] + [(mirrored, 0)]
    at, *around, turned = (
        float(_nmi(value, image[tuple((place + step).T)], weight))
        for image, step in views
    )
    left = np.maximum(np.array(around) - 1, 0).mean()
    return at, float(left / (at - 1)) if at > 1 else np.nan, turned


# --------------------------------------------------------------------- similarity


def nmi(fixed: Array, moving: Array, weight: Array) -> Array:
    """Normalised mutual information, (H(f) + H(m)) / H(f, m), from 1 to 2.

    Of [P] values in [0, 1] at the same points, with weights >= 0; 0 if all these are 0.
    The joint histogram is smoothed by cubic B-splines along both axes. A value of
    moving falls into the four bins around it, which makes the histogram
    differentiable; a value of fixed is smoothed about the nearest bin.

    Source: Studholme et al., Pattern Recognition 32 (1999) 71; the windows: Mattes et
    al., IEEE Trans. Med. Imaging 22 (2003) 120, eq. 4.
    """
    # The outer bins are left free for the splines.
    row = jnp.round(1 + fixed * (BINS - 3)).astype(jnp.int32)
    place = 1 + moving * (BINS - 3)
    column = jnp.floor(place).astype(jnp.int32)
    t = place - column
    u = 1 - t
    near, far = 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * u * u + 3 * u * u * u
    spline = jnp.stack([u * u * u, near, far, t * t * t], axis=-1) / 6
    # Scattering takes most of the time, so a point adds its four weights at once, and
    # the four histograms are shifted into one.
    joint = jnp.zeros((BINS * BINS, 4), weight.dtype)
    joint = joint.at[row * BINS + column].add(
        spline * weight[:, None], mode="promise_in_bounds"
    )
    joint = joint.reshape(BINS, BINS, 4)
    joint = sum(jnp.roll(joint[..., k], k - 1, axis=1) for k in range(4))
    joint = (jnp.roll(joint, -1, axis=0) + 4 * joint + jnp.roll(joint, 1, axis=0)) / 6
    joint = joint / jnp.maximum(joint.sum(), EPSILON)
    apart = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    return apart / jnp.maximum(_entropy(joint), EPSILON)


_nmi = jax.jit(nmi)


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(jnp.maximum(p, EPSILON)))


@jax.jit
@jax.default_matmul_precision("highest")
def _motion(p: Array, radius: Array) -> tuple[Array, Array]:
    """6 parameters in millimetres -> a rotation [3, 3] and a translation [3].

    The first three rotate: Cayley's rational form, which is smooth at 0. They move a
    point at the radius by as many millimetres.
    """
    x, y, z = p[:3] / radius
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = jnp.eye(3) + (cross + cross @ cross / 2) / (1 + (x * x + y * y + z * z) / 4)
    return turn, p[3:]


# An accelerator would round products, and move positions by up to 0.6 voxels.
@jax.default_matmul_precision("highest")
def _similarity(p: Array, level: Level) -> Array:
    """[6] millimetres of motion -> []."""
    linear, shift = _motion(p, level.radius)
    points = level.points @ linear.T + shift
    voxels = points @ level.base[:3, :3].T + level.base[:3, 3]
    value = interpolate(level.moving, voxels.T, padding="edge")[..., 0]
    last = jnp.array(level.moving.shape[:3]) - 1.0
    beyond = jnp.maximum(-voxels, voxels - last)  # Voxels past the edge's centres.
    weight = level.weight * jnp.prod(jnp.clip(1 - beyond, 0, 1), axis=-1)
    enough = weight.sum() > OVERLAP * level.weight.sum()
    return jnp.where(enough, nmi(level.fixed, value, weight), 0.0)


@jax.jit
def _similarities(level: Level, motions: Array) -> Array:
    """[K, 6] -> [K], one after the other: all at once would not fit the cache."""
    return jax.lax.map(lambda p: _similarity(p, level), motions)


# --------------------------------------------------------------------- the ascent


@jax.jit
def _climb(level: Level, starts: Array, rate: float) -> tuple[Array, Array]:
    """Adam from each start [K, 6], with a step that falls linearly from `rate` mm to 0.

    Returns the best motion on the way from each start, and its similarity [K].
    """
    adam = optax.scale_by_adam(b1=0.8, b2=0.9)
    slope = jax.value_and_grad(lambda p: _similarity(p, level))

    def climb(start):
        def step(carry, size):
            p, state, best, highest = carry
            value, gradient = slope(p)
            best = jnp.where(value > highest, p, best)
            update, state = adam.update(gradient, state)
            return (p + size * update, state, best, jnp.maximum(value, highest)), None

        carry = (start, adam.init(start), start, -jnp.inf)
        sizes = rate * (1 - jnp.arange(ASCENT_STEPS) / ASCENT_STEPS)
        (_, _, best, highest), _ = jax.lax.scan(step, carry, sizes)
        return best, highest

    return jax.lax.map(climb, starts)


def _search(level: Level, offset: np.ndarray) -> np.ndarray:
    """The most similar of rotated and centred starts, [CANDIDATES + 1, 6].

    `offset` [3] is in millimetres, from fixed's centre of mass to moving's.
    """
    turns = np.array(list(itertools.product((0, -MAX_TURN, MAX_TURN), repeat=3)))
    trial = np.zeros((2, len(turns), 6), np.float32)
    trial[..., :3] = turns * level.radius
    trial[1, :, 3:] = offset
    trial = trial.reshape(-1, 6)
    order = np.argsort(-_similarities(level, trial), stable=True)
    return trial[[0, *order[:CANDIDATES]]]  # 0 doesn't move at all.


# ------------------------------------------------------------- points and matrices


def _base(affine, matrix, centre) -> np.ndarray:
    """[4, 4], from millimetres about fixed's centre to voxels of moving."""
    base = np.linalg.solve(affine, matrix)
    base[:3, 3] += base[:3, :3] @ centre
    return base.astype(np.float32)


def _points(shape, affine, count) -> np.ndarray:
    """[P, 3] millimetres, evenly over the image and off its voxels' centres."""
    rng = np.random.default_rng(0)
    voxels = _spread(shape, count, rng)
    return apply(affine, voxels + rng.uniform(-0.5, 0.5, voxels.shape))


def _spread(shape, count, rng) -> np.ndarray:
    """[P, 3] int, voxels that lie evenly over a grid."""
    place = (np.arange(count) + rng.random(count)) * (np.prod(shape) / count)
    return np.stack(np.unravel_index(place.astype(int), shape), axis=-1)


def _values(image, affine, points) -> tuple[Array, Array]:
    """An image's values at points of the world, and a weight of 0 outside of it."""
    voxels = apply(np.linalg.inv(affine), points)
    inside = ((voxels >= -0.5) & (voxels <= np.array(image.shape) - 0.5)).all(-1)
    value = _sample(_unit(image)[..., None], voxels.T.astype(np.float32))[..., 0]
    return value, inside.astype(np.float32)


_sample = jax.jit(functools.partial(interpolate, padding="edge"))


def _unit(image: np.ndarray) -> np.ndarray:
    """Scales to [0, 1]; clips the brightest 0.2 %, which are vessels and artefacts."""
    low, high = np.quantile(image, (0.002, 0.998))
    if low == high:
        low, high = image.min(), image.max()
    return np.clip((image - low) / max(high - low, EPSILON), 0, 1).astype(np.float32)


def _centre(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """The centre of mass, [3] mm, and the root mean square distance from it."""
    image = _unit(image)
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    points, mass = apply(affine, index), image + EPSILON  # So that the sum is above 0.
    mass = mass / mass.sum()
    centre = np.einsum("abc,abci->i", mass, points)
    return centre, np.sqrt(np.sum(mass * ((points - centre) ** 2).sum(-1)))


def _about(centre: np.ndarray, p: Array, radius: float) -> np.ndarray:
    """The motion as a matrix of the world, [4, 4]."""
    linear, shift = (np.asarray(x, np.float64) for x in _motion(p, radius))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, centre + shift - linear @ centre
    return matrix
