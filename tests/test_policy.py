import functools

import jax
import jax.numpy as jnp
import numpy as np

from medjax.augment import intensity, policy
from medjax.geometry import warp

OPS = [
    functools.partial(warp.random_affine),
    functools.partial(intensity.noise, std=0.1),
]
AUGMENT = functools.partial(policy.augment, ops=OPS, prepare=lambda x: x)
KEY = jax.random.key(3)


def batch(ids, epoch=0, occurrence=0):
    ids = np.asarray(ids, np.int32)
    image = jnp.stack(
        [jax.random.randint(jax.random.key(i), (16, 16, 1), 0, 256) for i in ids]
    ).astype(jnp.uint8)
    filled = np.full(len(ids), 1, np.int32)
    return {
        "image": image,
        "id": ids,
        "epoch": filled * epoch,
        "occurrence": filled * occurrence,
    }


def test_a_sample_is_the_same_in_any_batch_at_any_position():
    alone = jax.jit(AUGMENT)(KEY, batch([5]))[0]
    among = jax.jit(AUGMENT)(KEY, batch([9, 1, 5, 7]))[2]
    np.testing.assert_array_equal(alone, among)


def test_on_four_devices_it_is_the_same_as_on_one():
    ids = np.arange(8)
    one = jax.jit(AUGMENT)(KEY, batch(ids))
    split = {k: v.reshape(4, 2, *v.shape[1:]) for k, v in batch(ids).items()}
    four = jax.pmap(AUGMENT, in_axes=(None, 0))(KEY, split)
    np.testing.assert_array_equal(one, four.reshape(one.shape))


def test_epoch_occurrence_id_and_seed_each_change_it():
    first = AUGMENT(KEY, batch([5]))
    other_id = {**batch([5]), "id": np.array([6], np.int32)}
    others = [
        AUGMENT(KEY, batch([5], epoch=1)),
        AUGMENT(KEY, batch([5], occurrence=1)),
        AUGMENT(KEY, other_id),
        AUGMENT(jax.random.key(4), batch([5])),
    ]
    for other in others:
        assert np.abs(np.asarray(first - other)).max() > 0.01


def test_ops_are_applied_in_their_order_each_with_its_own_key():
    def double(key, image):
        return image * 2

    def add(key, image):
        return image + 1

    apply = functools.partial(policy.augment, prepare=lambda x: x)
    image = np.asarray(batch([1])["image"], np.float32) / 255
    np.testing.assert_allclose(
        apply(KEY, batch([1]), ops=[double, add]), image * 2 + 1, rtol=1e-6
    )
    np.testing.assert_allclose(
        apply(KEY, batch([1]), ops=[add, double]), (image + 1) * 2, rtol=1e-6
    )
    noise = functools.partial(intensity.noise, std=0.1)
    grey = {**batch([1]), "image": jnp.full((1, 16, 16, 1), 0.5)}
    once, twice = apply(KEY, grey, ops=[noise]), apply(KEY, grey, ops=[noise, noise])
    second = np.asarray(twice - once)
    correlation = np.corrcoef(second.ravel(), np.asarray(once).ravel())[0, 1]
    assert abs(correlation) < 0.3


def test_without_ops_it_only_prepares():
    got = policy.augment(KEY, batch([2]), ops=[], prepare=lambda x: (x - 0.5) / 0.25)
    expected = (np.asarray(batch([2])["image"], np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got, expected, atol=1e-6)
