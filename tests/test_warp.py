import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import interpolate, ndimage

from medjax.errors import InputError
from medjax.geometry import grid, warp

RNG = np.random.default_rng(0)
STILL = {"flip": 0.0, "rotation": 0.0, "zoom": 0.0, "translation": 0.0}
MODES = {"constant": "grid-constant", "edge": "nearest"}
AFFINE = jax.jit(grid.affine, static_argnames=("shape", "order"))
SAMPLE = jax.jit(grid.interpolate, static_argnames=("order", "padding"))


def matrix(n=2, **changes):
    still = {
        "flip": jnp.array(False),
        "rotation": jnp.zeros(3 if n == 3 else ()),
        "zoom": jnp.ones(()),
        "translation": jnp.zeros(n),
    }
    return warp.affine_matrix(**{**still, **changes})


def places(shape):
    """An image whose pixels say where they are, [*shape, n]."""
    return np.stack(np.indices(shape), axis=-1).astype(np.float32)


def scipy_affine(image, affine, shape=None, order=1):
    """The same by scipy in float64."""
    space = np.array(image.shape[:-1])
    shape = tuple(space) if shape is None else shape
    linear, shift = np.float64(affine[:, :-1]), np.float64(affine[:, -1])
    offset = (space - 1) / 2 + shift - linear @ ((np.array(shape) - 1) / 2)
    coordinates = np.stack(np.indices(shape), axis=-1) @ linear.T + offset
    return scipy_sample(image, coordinates, order=order)


def scipy_sample(image, coordinates, order=1, padding="constant"):
    read = [
        ndimage.map_coordinates(
            np.float64(image[..., channel]),
            np.moveaxis(coordinates, -1, 0),
            order=order,
            mode=MODES[padding],
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack(read, axis=-1)


@pytest.mark.parametrize("shape", [(7, 9, 2), (8, 8, 1), (5, 6, 7, 2), (1, 4, 4, 1)])
@pytest.mark.parametrize("order", [0, 1])
def test_identity_and_flip_return_the_pixels_to_the_bit(shape, order):
    image, n = RNG.random(shape, np.float32), len(shape) - 1
    np.testing.assert_array_equal(AFFINE(image, matrix(n), order=order), image)
    flipped = AFFINE(image, matrix(n, flip=jnp.array(True)), order=order)
    np.testing.assert_array_equal(flipped, np.flip(image, -2))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("side", [6, 7])
def test_quarter_turns_of_a_square_return_the_pixels_to_the_bit(turns, side):
    image = RNG.random((side, side, 1), np.float32)
    c, s = [(0, 1), (-1, 0), (0, -1)][turns - 1]
    exact = jnp.array([[c, s, 0], [-s, c, 0]], jnp.float32)
    np.testing.assert_array_equal(AFFINE(image, exact), np.rot90(image, turns))


def test_all_48_symmetries_of_a_cube_return_the_voxels_to_the_bit():
    image = RNG.random((6, 6, 6, 2), np.float32)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product([1.0, -1.0], repeat=3):
            exact = np.zeros((3, 4), np.float32)
            for output, (axis, sign) in enumerate(zip(axes, flips, strict=True)):
                exact[axis, output] = sign
            expected = image.transpose(*axes, 3)
            mirrored = [axis for axis in range(3) if flips[axis] < 0]
            expected = np.flip(expected, mirrored)
            np.testing.assert_array_equal(AFFINE(image, exact), expected)


def test_a_rotation_turns_as_numpy_does():
    image = RNG.random((9, 9, 1), np.float32)
    turned = AFFINE(image, matrix(rotation=jnp.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)
    volume = RNG.random((9, 9, 9, 1), np.float32)
    for number, plane in enumerate([(1, 2), (0, 2), (0, 1)]):
        angle = jnp.zeros(3).at[number].set(jnp.pi / 2)
        turned = AFFINE(volume, matrix(3, rotation=angle))
        np.testing.assert_allclose(turned, np.rot90(volume, axes=plane), atol=1e-5)


def test_a_translation_moves_the_content_that_way():
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    moved = AFFINE(image, matrix(translation=jnp.array([2.0, -3.0])))
    assert np.argwhere(np.asarray(moved)[..., 0] > 0.5).tolist() == [[6, 1]]


def test_a_zoom_of_two_doubles_a_disc():
    y, x = np.mgrid[-32:33, -32:33]
    image = (np.hypot(y, x) < 10).astype(np.float32)[..., None]
    doubled = AFFINE(image, matrix(zoom=jnp.array(2.0)))
    assert 3.8 < float(doubled.sum() / image.sum()) < 4.2


@pytest.mark.parametrize(
    ("shape", "out"), [((12, 17, 2), None), ((7, 8, 9, 1), (6, 11, 8))]
)
def test_any_affine_equals_scipy(shape, out):
    n, image = len(shape) - 1, RNG.random(shape, np.float32)
    for _ in range(3):
        linear = np.eye(n) + RNG.normal(0, 0.3, (n, n))
        any_matrix = np.column_stack([linear, RNG.normal(0, 2, n)]).astype(np.float32)
        got = AFFINE(image, any_matrix, shape=out)
        np.testing.assert_allclose(
            got, scipy_affine(image, any_matrix, shape=out), atol=3e-5
        )


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_points_equal_scipy(data):
    padding = data.draw(st.sampled_from(list(MODES)))
    order = data.draw(st.sampled_from([0, 1]))
    image = np.random.default_rng(1).random((5, 4, 6, 2), np.float32)
    # Sixteenths are exact, and odd ones never half-way between two pixels.
    odd = st.integers(-160, 240).map(lambda k: (2 * k + 1) / 32)
    points = data.draw(st.lists(st.tuples(odd, odd, odd), min_size=8, max_size=8))
    options = {"order": order, "padding": padding}
    got = SAMPLE(image, np.array(points, np.float32).T, **options)
    expected = scipy_sample(image, np.array(points), **options)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_forward_then_inverse_returns_the_interior():
    y, x = np.mgrid[:40, :40]
    image = (np.sin(y / 5) * np.cos(x / 7)).astype(np.float32)[..., None]
    forward = np.vstack(
        [matrix(rotation=0.2, zoom=1.1, translation=jnp.ones(2)), [0, 0, 1]]
    )
    back = np.linalg.inv(forward)[:2].astype(np.float32)
    again = AFFINE(AFFINE(image, forward[:2].astype(np.float32)), back)
    np.testing.assert_allclose(again[12:-12, 12:-12], image[12:-12, 12:-12], atol=0.02)


def test_gradients_of_the_matrix_are_those_of_scipy_s_differences():
    image, weight = RNG.random((6, 7, 8, 1), np.float32), RNG.random((6, 7, 8, 1))
    turned = np.float32(matrix(3, rotation=jnp.array([0.2, -0.1, 0.15])))
    got = jax.grad(lambda m: jnp.sum(weight * AFFINE(image, m)))(turned)
    expected = np.zeros((3, 4))
    for entry in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[entry] = 1e-6
        sides = [
            np.sum(weight * scipy_affine(image, turned + sign * step))
            for sign in (1, -1)
        ]
        expected[entry] = (sides[0] - sides[1]) / 2e-6
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
    at_rest = jax.grad(lambda m: jnp.sum(AFFINE(image, m)))(matrix(3))
    assert np.isfinite(at_rest).all()


def test_gradients_of_coordinates_and_image_are_those_of_the_line_between_two():
    image = RNG.random((5, 6, 1), np.float32)
    point = jnp.array([1.25, 3.5])
    corners = np.float64(image[1:3, 3:5, 0])
    expected = [
        (corners[1] - corners[0]).mean(),
        0.75 * (corners[0, 1] - corners[0, 0]) + 0.25 * (corners[1, 1] - corners[1, 0]),
    ]
    by_point = jax.grad(lambda x: SAMPLE(image, x)[0])(point)
    np.testing.assert_allclose(by_point, expected, atol=1e-6)
    by_image = jax.grad(lambda image: SAMPLE(image, point)[0])(image)
    np.testing.assert_allclose(by_image[1:3, 3:5, 0], np.outer([0.75, 0.25], [0.5] * 2))


def test_gradients_of_control_points_are_finite_and_right():
    image, distance = RNG.random((12, 12, 1), np.float32), (6.0, 6.0)
    count = warp.control_shape((12, 12), distance)
    control = RNG.uniform(-1, 1, (*count, 2)).astype(np.float32)

    def total(control):
        motion = warp.still((12, 12))._replace(control=control, distance=distance)
        return jnp.sum(warp.move(motion, image) * places((12, 12))[..., :1])

    def oracle(control):
        coordinates = places((12, 12)) + bspline(control, (12, 12), distance)
        read = scipy_sample(image, coordinates)
        return np.sum(read * places((12, 12))[..., :1])

    got = jax.jit(jax.grad(total))(control)
    for entry in [(1, 1, 0), (2, 3, 1), (0, 2, 0)]:
        step = np.zeros(control.shape)
        step[entry] = 1e-6
        expected = (oracle(control + step) - oracle(control - step)) / 2e-6
        np.testing.assert_allclose(got[entry], expected, rtol=3e-3, atol=3e-3)


def bspline(control, shape, distance):
    """The displacement by scipy's B-splines, [*shape, n]."""
    field = np.float64(control)
    for axis, (size, step) in enumerate(zip(shape, distance, strict=True)):
        knots = np.arange(-3, field.shape[axis] + 1) * step
        spline = interpolate.BSpline(knots, np.moveaxis(field, axis, 0), 3)
        field = np.moveaxis(spline(np.arange(size)), 0, axis)
    return field


@pytest.mark.parametrize(
    ("shape", "distance"), [((20, 33), (7.0, 8.0)), ((9, 13, 10), (4.0, 6.5, 3.0))]
)
def test_the_elastic_field_is_scipy_s_b_spline(shape, distance):
    n = len(shape)
    count = warp.control_shape(shape, distance)
    control = RNG.uniform(-1, 1, (*count, n)).astype(np.float32)
    expected = bspline(control, shape, distance)
    field = jax.jit(lambda control: warp.on_grid(control, shape, distance))(control)
    np.testing.assert_allclose(np.stack(field, -1), expected, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_the_bound_on_control_points_is_choi_and_lee_s(n):
    """No row of the displacement's Jacobian may have a sum of sizes of 1."""
    knots = np.arange(-3, 5)
    spline = interpolate.BSpline(knots, np.eye(4), 3)
    x = np.linspace(0, 1 - 1e-9, 21)
    value, slope = spline(x).T, spline.derivative()(x).T  # [4, X]
    largest = 0
    for signs in itertools.product([1, -1], repeat=n):
        row = 0
        for axis, sign in enumerate(signs):
            product = np.ones((1, 1))
            for other in range(n):
                product = np.kron(product, slope if other == axis else value)
            row = row + sign * product
        largest = max(largest, np.abs(row).sum(axis=0).max())
    assert 0.99 / largest < warp.INVERTIBLE[n] < 1 / largest


@pytest.mark.parametrize("n", [2, 3])
def test_the_strongest_elastic_map_never_folds_and_a_stronger_one_can(n):
    shape, distance = (33, 33, 33)[:n], (8.0,) * n
    count = warp.control_shape(shape, distance)
    field = jax.jit(lambda control: warp.on_grid(control, shape, distance))
    limit = warp.INVERTIBLE[n] * 8
    lowest = []
    for scale in (1.0, 2.5):
        dets = []
        for _ in range(10):  # Corners of the allowed box are its worst points.
            control = scale * limit * RNG.choice([-1.0, 1.0], (*count, n))
            control = control.astype(np.float32)
            slopes = [np.gradient(np.asarray(u)) for u in field(control)]
            slopes = np.moveaxis(np.array(slopes), (0, 1), (-2, -1))
            dets.append(np.linalg.det(np.eye(n) + slopes).min())
        lowest.append(min(dets))
    assert lowest[0] > 0 > lowest[1]


def moved(shape, spacing, ops, read=None):
    """What `read` makes of a motion of some ops; by default an image of places."""

    def work(keys):
        motion = warp.still(shape, spacing)
        for key, (op, options) in zip(keys, ops, strict=True):
            motion = op(key, motion, **options)
        if read is None:
            return warp.move(motion, jnp.array(places(shape)))
        return read(motion)

    keys = jax.random.split(jax.random.key(0), len(ops))
    return jax.tree.map(np.asarray, jax.jit(work)(keys))


TURN = (warp.random_affine, {"flip": 0.5, "rotation": 20.0, "translation": 0.03})


def test_a_rotation_in_millimetres_keeps_every_distance():
    spacing, shape = np.float32([4, 1, 1]), (12, 32, 32)
    turn = {**STILL, "rotation": 30.0}
    image = moved(shape, spacing, [(warp.random_affine, turn)])
    centre = (np.array(shape) - 1) / 2
    before = np.linalg.norm((image - centre) * spacing, axis=-1)
    after = np.linalg.norm((places(shape) - centre) * spacing, axis=-1)
    inner = after < 12
    np.testing.assert_allclose(before[inner], after[inner], atol=1e-3)
    assert np.abs(image - places(shape))[inner].max() > 1


def test_in_the_plane_every_slice_keeps_its_own_pixels_and_moves_alike():
    shape, spacing = (6, 24, 24), np.float32([5, 1, 1])
    ops = [
        (warp.random_affine, {"rotation": 30.0, "in_plane": True}),
        (warp.elastic, {"strength": 2.0, "distance": 8.0, "in_plane": True}),
        (warp.flip, {"probability": 1.0, "axis": 1}),
    ]

    def read(motion):
        inside = jnp.ones((*shape, 1))
        image = jnp.concatenate([jnp.array(places(shape)), inside], axis=-1)
        return warp.move(motion, image)

    image = moved(shape, spacing, ops, read)
    inside = image[..., 3] == 1
    assert inside.mean() > 0.5
    np.testing.assert_array_equal(image[inside, 0], places(shape)[inside, 0])
    for other in image[1:]:
        np.testing.assert_allclose(other[..., 1:], image[0, ..., 1:], atol=1e-4)


def test_ops_are_composed_in_their_order():
    image = jnp.array(places((20, 24)))

    @jax.jit
    def both(key):
        motion = warp.still((20, 24))
        turned = warp.random_affine(key, motion, **TURN[1])
        flip = functools.partial(warp.flip, key, probability=1.0, axis=0)
        last = warp.move(flip(turned), image), warp.move(turned, image)[::-1]
        first = warp.random_affine(key, flip(motion), **TURN[1])
        return last, (warp.move(first, image), warp.move(turned, image[::-1]))

    for got, expected in both(jax.random.key(1)):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_mask_moved_with_its_image_keeps_volume_and_overlap():
    shape = (24, 40, 40)
    ball = np.linalg.norm(places(shape) - (np.array(shape) - 1) / 2, axis=-1) < 8
    mask = ball.astype(np.float32)[..., None]
    bend = {"strength": 1.5, "distance": 12.0}
    turn = {**STILL, "rotation": 20.0, "translation": 0.05}
    ops = [(warp.random_affine, turn), (warp.elastic, bend)]

    def both(motion):
        return [warp.move(motion, jnp.array(mask), order=order) for order in (0, 1)]

    label, image = moved(shape, None, ops, both)
    assert set(np.unique(label)) <= {0, 1}
    label, image = label[..., 0] > 0, image[..., 0] > 0.5
    assert 0.9 < label.sum() / ball.sum() < 1.1
    assert (label & image).sum() / (label | image).sum() > 0.95


def test_no_strength_is_the_identity_to_the_bit():
    ops = [
        (warp.random_affine, STILL),
        (warp.elastic, {"strength": 0.0}),
        (warp.flip, {"probability": 0.0}),
    ]
    for shape, spacing in (((9, 8), None), ((5, 6, 7), np.float32([3, 0.7, 0.7]))):
        image = moved(shape, spacing, ops)
        np.testing.assert_array_equal(image, places(shape))


def test_the_strengths_bound_the_change():
    keys = jax.random.split(jax.random.key(0), 200)
    image = jnp.array(places((32, 32)))
    ops = [
        (warp.random_affine, {**STILL, "translation": 0.1}),
        (warp.random_affine, {**STILL, "flip": 0.5}),
        (warp.flip, {"probability": 0.3, "axis": 0}),
        (warp.elastic, {"strength": 2.0, "distance": 8.0}),
    ]

    @jax.jit
    @jax.vmap
    def draw(key):
        still = warp.still((32, 32))
        return [warp.move(op(key, still, **options), image) for op, options in ops]

    shifted, mirrored, upside, bent = map(np.asarray, draw(keys))
    middle = np.abs(shifted[:, 15:17, 15:17].mean(axis=(1, 2)) - 15.5)
    assert 3.0 < middle.max() <= 3.2 + 1e-4
    assert 0.35 < (mirrored[:, 0, 0, 1] > 16).mean() < 0.65
    assert 0.2 < (upside[:, 0, 0, 0] > 16).mean() < 0.4
    inner = np.abs(bent - image)[:, 4:-4, 4:-4]
    assert 1.0 < inner.max() <= 2 + 1e-4


def test_a_strength_beyond_the_bound_is_cut_to_it_by_the_sample_s_spacing():
    def control(spacing):
        motion = warp.still((20, 20), spacing)
        return warp.elastic(
            jax.random.key(0), motion, strength=5.0, distance=10.0
        ).control

    fine = jax.jit(control)(jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(np.abs(fine[..., 0]).max(), 4.88, rtol=0.1)
    assert np.abs(fine[..., 1]).max() <= 2.44


@pytest.mark.parametrize(
    ("names", "work"),
    [
        ("flip.axis: 2", lambda m, x: warp.flip(jax.random.key(0), m, axis=2)),
        (
            "elastic.strength: 9.0.*3.9",
            lambda m, x: warp.elastic(jax.random.key(0), m, strength=9.0, distance=8.0),
        ),
        (
            "two elastic",
            lambda m, x: warp.elastic(
                jax.random.key(0),
                warp.elastic(jax.random.key(0), m, strength=1.0),
                strength=1.0,
            ),
        ),
    ],
)
def test_what_makes_no_sense_is_refused(names, work):
    with pytest.raises(InputError, match=names):
        work(warp.still((8, 8)), jnp.zeros((8, 8, 1)))
