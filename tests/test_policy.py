import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import pixel_ops, policy
from medjax.data import normalisation
from medjax.geometry import warp

FILM = (16, 15, 1)
VOLUME = (6, 14, 12, 2)
MOVES = [
    functools.partial(warp.random_affine),
    functools.partial(warp.elastic, strength=1.0, distance=6.0),
]
OPS = [
    *MOVES,
    functools.partial(pixel_ops.brightness, strength=0.2),
    functools.partial(pixel_ops.contrast, strength=0.2),
    functools.partial(pixel_ops.gamma, max_log_gamma=0.3),
    functools.partial(pixel_ops.noise, std=0.1),
]


def augment(key, batch, **options):
    return policy.augment_batch(key, batch, **options)["image"]


def compiled(batch, ops, prepare=lambda x: x):
    return jax.jit(functools.partial(augment, ops=ops, prepare=prepare))(KEY, batch)


AUGMENT = functools.partial(augment, ops=OPS, prepare=lambda x: x)
ALL = functools.partial(
    policy.augment_batch,
    ops=OPS,
    prepare=functools.partial(normalisation.standardise_each),
)
KEY = jax.random.key(3)


def batch(ids, epoch=0, occurrence=0, shape=FILM):
    ids = np.asarray(ids, np.int32)
    rngs = [np.random.default_rng(i) for i in ids]
    filled = np.full(len(ids), 1, np.int32)
    found = {
        "image": np.stack([rng.integers(0, 256, shape, np.uint8) for rng in rngs]),
        "label": np.ones((len(ids), 3), np.float32),
        "weight": np.ones((len(ids), 3), np.float32),
        "id": ids,
        "epoch": filled * epoch,
        "occurrence": filled * occurrence,
    }
    if len(shape) == 4:
        mask = [rng.integers(0, 2, (*shape[:-1], 3)) for rng in rngs]
        found["label"] = np.stack(mask).astype(np.float32)
        found["weight"] = np.ones_like(found["label"])
        found["spacing"] = np.tile(np.float32([3, 1, 1]), (len(ids), 1))
    return found


def test_epoch_occurrence_id_and_seed_each_change_it():
    run = jax.jit(AUGMENT)
    first = run(KEY, batch([5]))
    other_id = {**batch([5]), "id": np.array([6], np.int32)}
    others = [
        run(KEY, batch([5], epoch=1)),
        run(KEY, batch([5], occurrence=1)),
        run(KEY, other_id),
        run(jax.random.key(4), batch([5])),
    ]
    for other in others:
        assert np.abs(np.asarray(first - other)).max() > 0.01


def test_ops_are_applied_in_their_order_each_with_its_own_key():
    def double(key, image):
        return image * 2

    def add(key, image):
        return image + 1

    image = np.asarray(batch([1])["image"], np.float32) / 255
    np.testing.assert_allclose(
        compiled(batch([1]), [double, add]), image * 2 + 1, rtol=1e-6
    )
    np.testing.assert_allclose(
        compiled(batch([1]), [add, double]), (image + 1) * 2, rtol=1e-6
    )
    noise = functools.partial(pixel_ops.noise, std=0.1)
    grey = {**batch([1]), "image": np.full((1, 16, 16, 1), 0.5, np.float32)}
    once, twice = compiled(grey, [noise]), compiled(grey, [noise, noise])
    second = np.asarray(twice - once)
    correlation = np.corrcoef(second.ravel(), np.asarray(once).ravel())[0, 1]
    assert abs(correlation) < 0.3


def test_an_op_s_draw_does_not_change_with_another_op_s_strength():
    grey = {**batch([1]), "image": np.full((1, 16, 16, 1), 0.5, np.float32)}
    noise = functools.partial(pixel_ops.noise, std=0.02)

    def run(strength):
        ops = [functools.partial(pixel_ops.brightness, strength=strength), noise]
        return np.asarray(compiled(grey, ops))

    plain, brighter = run(0.0), run(0.2)
    assert abs((brighter - plain).mean()) > 0.02
    np.testing.assert_allclose(
        brighter - brighter.mean(), plain - plain.mean(), atol=2e-6
    )


def test_moves_in_a_row_are_read_once_and_others_between_them_part_them():
    given = batch([7], shape=VOLUME)
    flip = functools.partial(warp.flip, probability=1.0)
    own = policy.sample_key(KEY, 0, 7, 0)

    def drawn(*numbers):
        motion = warp.still(VOLUME[:-1], jnp.array([3.0, 1, 1]))
        for number in numbers:
            op = [MOVES[0], MOVES[1], flip][number]
            motion = op(jax.random.fold_in(own, number), motion)
        return motion

    ops = [MOVES[0], MOVES[1], flip]
    apply = functools.partial(policy.augment_batch, prepare=lambda x: x)
    got = jax.jit(functools.partial(apply, ops=ops))(KEY, given)
    image, mask = given["image"][0] / np.float32(255), given["label"][0]

    @jax.jit
    def both():
        motion = drawn(0, 1, 2)
        return warp.move(motion, image), warp.move(motion, mask, order=0)

    moved, labelled = both()
    np.testing.assert_allclose(got["image"][0], moved, atol=1e-5)
    assert (got["label"][0] == labelled).mean() > 0.999  # But for ties.

    halve = [MOVES[0], lambda key, image: image / 2, flip]
    twice = jax.jit(functools.partial(apply, ops=halve))(KEY, given)["image"][0]
    expected = np.flip(jax.jit(lambda: warp.move(drawn(0), image))(), 2) / 2
    np.testing.assert_allclose(twice, expected, atol=1e-5)


def test_outside_of_the_picture_is_black_and_weighs_nothing():
    given = batch([3], shape=VOLUME)
    given["image"] = np.maximum(given["image"], 1)
    away = [functools.partial(warp.random_affine, translation=0.9, flip=0.0)]
    run = functools.partial(policy.augment_batch, ops=away, prepare=lambda x: x)
    got = jax.jit(run)(KEY, given)
    outside = np.asarray(got["weight"][0] == 0).all(axis=-1)
    assert 0.2 < outside.mean() < 1
    far = np.asarray(got["image"][0] == 0).all(axis=-1)
    assert (outside[far]).all()
    assert (got["label"][0][outside] == 0).all()
    # A label and a weight that are no mask stay, and so does a batch without ops.
    film = batch([3])
    got = jax.jit(run)(KEY, film)
    for name in ("label", "weight", "id"):
        np.testing.assert_array_equal(got[name], film[name])


def test_without_ops_it_only_prepares():
    got = compiled(batch([2]), [], prepare=lambda x: (x - 0.5) / 0.25)
    expected = (np.asarray(batch([2])["image"], np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got, expected, atol=1e-6)


# Last: from here on programs are optimised.


@pytest.fixture(
    scope="module",
    params=[FILM, pytest.param(VOLUME, marks=pytest.mark.slow)],
    ids=["film", "volume"],
)
def many(request, optimised):
    """64 samples and what comes of them."""
    given = batch(range(64), shape=request.param)
    return given, jax.jit(ALL)(KEY, given)


@pytest.mark.parametrize("rows", [[9, 1, 5], pytest.param([5], marks=pytest.mark.slow)])
def test_a_sample_is_the_same_to_the_bit_in_any_batch_at_any_position(many, rows):
    given, expected = many
    few = jax.jit(ALL)(KEY, jax.tree.map(lambda x: x[np.array(rows)], given))
    assert np.abs(expected["image"][5] - given["image"][5] / 255).max() > 0.1
    for name, value in few.items():
        np.testing.assert_array_equal(value, expected[name][np.array(rows)], name)


def test_on_four_devices_it_is_the_same_to_the_bit_as_on_one(many):
    given, expected = many
    split = jax.tree.map(lambda x: x.reshape(4, 16, *x.shape[1:]), given)
    four = jax.pmap(ALL, in_axes=(None, 0))(KEY, split)
    for name, value in four.items():
        value = value.reshape(expected[name].shape)
        np.testing.assert_array_equal(value, expected[name], name)
