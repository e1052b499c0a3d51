"""Patches lie where they should, hold what the volume holds, and depend on keys only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_warp import scipy_affine

from medjax.augment import patches, pixel_ops, policy
from medjax.geometry import warp

KEY = jax.random.key(3)
SHAPE = (12, 10, 14)
corners = jax.jit(jax.vmap(patches.corner, (0, None, None, None, None, None)))


def volumes(count=2, seed=0):
    """Each voxel's image tells its volume and its place; one region, a ball."""
    place = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    image = np.stack([place + 2000 * i for i in range(count)])[..., None]
    image = np.concatenate([image, -image - 1], axis=-1).astype(np.float32)
    label = np.zeros((count, *SHAPE, 1), np.uint8)
    label[:, 8:10, 3:5, 9:12] = 1
    voxels = np.argwhere(label[0, ..., 0])
    rng = np.random.default_rng(seed)
    points = voxels[rng.integers(len(voxels), size=(count, 1, 64))]
    return {
        "image": jnp.asarray(image),
        "label": jnp.asarray(label),
        "size": jnp.tile(jnp.array(SHAPE, jnp.int32), (count, 1)),
        "points": jnp.asarray(points, jnp.int32),
        "present": jnp.ones((count, 1), bool),
        "presence": jnp.ones((count, 2)),
        "spacing": jnp.ones((count, 3)),
        "id": jnp.arange(5, 5 + count, dtype=jnp.int32),
        "epoch": jnp.zeros(count, jnp.int32),
        "occurrence": jnp.zeros(count, jnp.int32),
    }


DEFAULTS = {"size": (4, 6, 4), "each": 3, "foreground": 0.5, "slices": False}


@functools.cache
def compiled(options):
    return jax.jit(functools.partial(patches.draw, **dict(options)))


def draw(batch, **options):
    cut = compiled(tuple((DEFAULTS | options).items()))
    return jax.tree.map(np.asarray, cut(KEY, batch))


def augment(batch, **options):
    """Compiled as a whole: op by op takes minutes."""
    run = functools.partial(patches.augment, **options)
    return jax.tree.map(np.asarray, jax.jit(run)(KEY, batch))


def test_a_patch_is_a_box_of_its_own_volume():
    batch = volumes()
    found = draw(batch)
    assert found["image"].shape == (6, 4, 6, 4, 2)
    for p, image in enumerate(found["image"]):
        first = int(image[0, 0, 0, 0])
        volume, start = first // 2000, np.unravel_index(first % 2000, SHAPE)
        assert volume == p // 3 and found["id"][p] == 5 + p // 3
        box = tuple(slice(a, a + n) for a, n in zip(start, (4, 6, 4), strict=True))
        np.testing.assert_array_equal(image, batch["image"][volume][box])
        np.testing.assert_array_equal(found["label"][p], batch["label"][volume][box])
    assert len(np.unique(found["image"][:, 0, 0, 0, 0])) > 3


@pytest.mark.parametrize("number", [1, 3, 5])
def test_slices_are_channels_about_the_one_that_is_labelled(number):
    batch, each = volumes(), 40
    size = (number, 6, 4)
    found = draw(batch, size=size, slices=True, each=each, foreground=0.0)
    assert found["image"].shape == (2 * each, 6, 4, 2 * number)
    assert found["spacing"].shape == (2 * each, 2)
    met = set()
    for p, image in enumerate(found["image"]):
        first = int(image[0, 0, number - number % 2])  # Of the middle slice.
        z, y, x = np.unravel_index(first % 2000, SHAPE)
        met.add(int(z))
        volume = np.pad(
            batch["image"][p // each],
            [(number // 2, number // 2), (0, 0), (0, 0), (0, 0)],
            mode="edge",
        )[z : z + number, y : y + 6, x : x + 4]
        for n in range(number):
            np.testing.assert_array_equal(image[..., 2 * n : 2 * n + 2], volume[n])
        label = batch["label"][p // each][z, y : y + 6, x : x + 4]
        np.testing.assert_array_equal(found["label"][p], label)
    assert met == set(range(SHAPE[0]))  # The first and the last slice too.


def test_a_slice_about_the_foreground_is_the_one_that_shows_it():
    found = draw(volumes(), size=(5, 6, 4), slices=True, each=50, foreground=1.0)
    assert found["label"].any(axis=(1, 2, 3)).all()


def test_a_patch_depends_on_its_sample_and_not_on_its_batch():
    batch = volumes(2)
    alone = jax.tree.map(lambda x: x[1:], batch)
    np.testing.assert_array_equal(draw(batch)["image"][3:], draw(alone)["image"])
    later = draw(alone | {"epoch": jnp.ones(1, jnp.int32)})
    assert (later["image"] != draw(alone)["image"]).any()


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.integers(0, 100),
)
def test_a_patch_lies_inside_whatever_the_sizes(size, patch, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(size, size=(1, 16, 3))
    keys = jax.random.split(jax.random.key(seed), 32)
    present = jnp.ones(1, bool)
    about = corners(keys, jnp.array(size), points, present, jnp.array(patch), 1.0)
    anywhere = corners(keys, jnp.array(size), points, present, jnp.array(patch), 0.0)
    for start in (np.asarray(about), np.asarray(anywhere)):
        room = np.maximum(np.subtract(size, patch), 0)
        assert (start >= 0).all() and (start <= room).all()
    # The voxel lies in the middle half, or as near to it as the edge allows.
    inside = [
        (
            (start + np.array(patch) // 4 <= point)
            | (start == 0)  # The edge is nearer than a quarter of a patch.
        )
        & ((point < start + np.subtract(patch, np.array(patch) // 4)) | (start == room))
        for start in np.asarray(about)
        for point in points[0]
    ]
    hit = np.reshape(inside, (32, 16, 3)).all(axis=2).any(axis=1)
    assert hit.all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_about_the_foreground_is_kept(share):
    size, patch = jnp.array([200, 200, 200]), jnp.array([8, 8, 8])
    points = jnp.full((1, 4, 3), 100)
    keys = jax.random.split(KEY, 4000)
    start = np.asarray(corners(keys, size, points, jnp.ones(1, bool), patch, share))
    near = (np.abs(start + 4 - 100) <= 4).all(axis=1).mean()
    assert abs(near - share) < 4 * np.sqrt(0.25 / 4000)


def test_a_volume_without_foreground_gives_patches_from_anywhere():
    keys = jax.random.split(KEY, 2000)
    points = jnp.zeros((2, 4, 3), jnp.int32)
    size, patch = jnp.array([20, 20, 20]), jnp.array([5, 5, 5])
    start = np.asarray(corners(keys, size, points, jnp.zeros(2, bool), patch, 1.0))
    assert set(start.ravel()) == set(range(16))
    only = jnp.array([False, True])  # The second region alone has voxels.
    points = points.at[1].set(10)
    start = np.asarray(corners(keys, size, points, only, patch, 1.0))
    assert (start > 5).all()


def test_without_ops_the_patch_is_what_was_stored_and_the_mask_is_moved_with_it():
    batch = volumes()
    z = jnp.where(batch["image"] % 3 == 0, 0, (batch["image"] % 11) - 3)
    batch |= {"image": jnp.where(z[..., :1] == 0, 0, z)}
    options = {"size": (4, 6, 4), "each": 3, "foreground": 0.5, "slices": False}
    plain = draw(batch, **options)
    got = augment(batch, ops=(), **options)
    np.testing.assert_allclose(got["image"], plain["image"], atol=2e-6)
    np.testing.assert_array_equal(got["label"], plain["label"])
    assert (got["weight"] == 1).all() and got["weight"].shape == got["label"].shape
    flip = functools.partial(warp.flip, axis=-1, probability=1.0)
    got = augment(batch, ops=(flip,), **options)
    np.testing.assert_allclose(got["image"], plain["image"][..., ::-1, :], atol=2e-5)
    np.testing.assert_array_equal(got["label"], plain["label"][..., ::-1, :])


def test_outside_the_brain_nothing_appears():
    batch = volumes()
    brain = np.zeros((*SHAPE, 1), bool)
    brain[3:9, 3:8, 3:11] = True
    batch["image"] = jnp.where(brain, 1.0 + 0 * batch["image"], 0)
    ops = (
        functools.partial(pixel_ops.rician_noise, std=0.1),
        functools.partial(pixel_ops.gamma, max_log_gamma=0.3),
    )
    options = {"size": (8, 8, 8), "each": 2, "foreground": 0.0, "slices": False}
    plain = draw(batch, **options)["image"]
    got = augment(batch, ops=ops, **options)["image"]
    np.testing.assert_array_equal(got == 0, plain == 0)
    assert np.std(got[plain != 0]) > 0.1


def test_a_sequence_that_is_missing_stays_zero():
    batch = volumes()
    missing = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    batch |= {"image": jnp.where(missing[:, None, None, None] > 0, 2.0, 0.0)}
    batch |= {"image": jnp.broadcast_to(batch["image"], (2, *SHAPE, 2))}
    batch |= {"presence": missing}
    ops = (
        functools.partial(pixel_ops.rician_noise, std=0.1),
        functools.partial(pixel_ops.gamma, max_log_gamma=0.3),
    )
    for slices in (False, True):
        options = {"size": (3, 8, 8), "each": 2, "foreground": 0.0, "slices": slices}
        got = augment(batch, ops=ops, **options)["image"]
        second = got[..., 1::2]
        assert not second[:2].any() and second[2:].all() and got[..., ::2].all()


def test_a_turn_is_one_of_millimetres():
    """Slices five times as far apart as pixels: a turn keeps distances in mm."""
    batch = volumes(1)
    sphere = np.zeros((*SHAPE, 2), np.float32)
    z, y, x = np.indices(SHAPE)
    mm = np.array([4.0, 1.0, 1.0])
    middle = (np.array(SHAPE) - 1) / 2
    away = sum(
        ((a - m) * s) ** 2 for a, m, s in zip((z, y, x), middle, mm, strict=True)
    )
    sphere[:] = np.exp(-away / 100)[..., None]
    batch |= {"image": jnp.asarray(sphere[None]), "spacing": jnp.array([mm])}
    turn = functools.partial(
        warp.random_affine, flip=0.0, rotation=90.0, zoom=0.0, translation=0.0
    )
    options = {"size": SHAPE, "each": 8, "foreground": 0.0, "slices": False}
    got = augment(batch, ops=(turn,), **options)["image"]
    inside = away < 16  # Where no turn brings in what is outside the patch.
    for image in got:
        np.testing.assert_allclose(image[inside], sphere[inside], atol=0.1)


def test_a_turned_brain_has_no_dark_rim():
    batch = volumes(1)
    brain = np.zeros(SHAPE, bool)
    brain[3:9, 2:8, 3:11] = True
    batch |= {"image": jnp.where(brain[None, ..., None], 1.0, 0 * batch["image"])}
    turn = functools.partial(warp.random_affine, rotation=30.0)
    options = {"size": SHAPE, "each": 8, "foreground": 0.0, "slices": False}
    got = augment(batch, ops=(turn,), **options)["image"]
    assert got.min() >= -1e-5 and got.max() > 0.99


def test_many_patches_of_one_volume_compile():
    """Their numbers are all the same, over which XLA's simplifier ran in circles."""
    options = {"size": (3, 8, 8), "each": 32, "foreground": 0.5, "slices": True}
    op = functools.partial(pixel_ops.gamma, max_log_gamma=0.1)
    batch = volumes(1)
    batch |= {"image": batch["image"] / 1000}  # Below what is clipped.
    got = augment(batch, ops=(op,), **options)["image"]
    assert len(np.unique(got[:, 0, 0, 0])) > 16


def ramped(variables, image):
    """A network that sees where a voxel lies: its answer doesn't move with the image."""
    place = jnp.linspace(0.5, 1.5, image.shape[-2])[:, None]
    return jax.nn.sigmoid(variables * image[..., :1] * place)


@pytest.mark.parametrize(
    "shape", [(12, 10, 14), pytest.param((14, 12), marks=pytest.mark.slow)]
)
def test_copies_are_moved_back_and_averaged_where_they_show_a_voxel(shape):
    rng, n = np.random.default_rng(0), len(shape)
    image = rng.normal(size=(2, *shape, 2)).astype(np.float32)
    mm = np.array([3.0, 1.0, 2.0], np.float32)[-n:]
    ops = [
        functools.partial(warp.flip, probability=0.5),
        functools.partial(pixel_ops.contrast, strength=0.3),
        functools.partial(warp.random_affine, rotation=15.0, zoom=0.2),
    ]
    options = {"number": 3, "ops": ops, "spacing": mm}
    found = jax.jit(lambda x: patches.mean_of_copies(ramped, 2.0, x, **options))(image)

    flip, turned = (
        jax.jit(lambda key, op=op: op(key, warp.still(shape, mm)).matrix)
        for op in ops[::2]
    )

    def voxels(matrix):
        matrix = np.asarray(matrix, float)
        return np.column_stack([matrix[:, :n] * mm / mm[:, None], matrix[:, n] / mm])

    ones = np.ones((*shape, 1))
    for row, one in zip(image, np.asarray(found), strict=True):
        total, mass = np.asarray(ramped(2.0, row), float), ones
        for copy in range(3):
            own = policy.sample_key(jax.random.key(0), 0, 0, copy)
            keys = [jax.random.fold_in(own, i) for i in range(3)]
            mirror, turn = voxels(flip(keys[0])), voxels(turned(keys[2]))
            unit = scipy_affine(np.clip((row + 4) / 12, 0, 1), mirror)
            unit = np.asarray(ops[1](keys[1], jnp.asarray(unit, jnp.float32)))
            inside = scipy_affine(ones, turn, order=0) > 0
            moved = np.where(inside, scipy_affine(unit, turn) * 12 - 4, 0)
            p = np.asarray(ramped(2.0, jnp.asarray(moved, jnp.float32)))
            back = np.linalg.inv(mirror[:, :n] @ turn[:, :n])
            shift = back @ mirror[:, :n] @ turn[:, n:]
            back = np.concatenate([back, -shift], axis=1)
            total, mass = total + scipy_affine(p, back), mass + scipy_affine(ones, back)
        assert (mass < 3.9).any() and (mass > 3.999).any()
        np.testing.assert_allclose(one, total / mass, atol=2e-5)


def test_copies_of_an_image_that_only_changes_its_greys_are_not_moved():
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    ops = [functools.partial(pixel_ops.gamma, max_log_gamma=0.5)]
    options = {"number": 2, "ops": ops, "spacing": (1.0,) * 3}
    found = jax.jit(lambda x: patches.mean_of_copies(ramped, 2.0, x, **options))(image)
    expected, unit = [ramped(2.0, image)], np.clip((image + 4) / 12, 0, 1)
    for copy in range(2):
        key = policy.sample_key(jax.random.key(0), 0, 0, copy)
        changed = ops[0](jax.random.fold_in(key, 0), jnp.asarray(unit[0]))[None]
        expected.append(ramped(2.0, changed * 12 - 4))
    assert np.abs(expected[1] - expected[0]).max() > 0.01
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)
