import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import intensity

OPS = {
    "brightness": {"strength": 0.2},
    "contrast": {"strength": 0.2},
    "gamma": {"max_log_gamma": 0.3},
    "noise": {"std": 0.05},
}
KEYS = jax.random.split(jax.random.key(0), 500)
IMAGE = jnp.linspace(0.3, 0.7, 64).reshape(8, 8, 1)


def test_every_op_is_tested_here():
    public = inspect.getmembers(intensity, inspect.isfunction)
    own = {name for name, f in public if f.__module__ == intensity.__name__}
    assert own == OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_strength_zero_is_the_identity(name):
    zero = dict.fromkeys(OPS[name], 0.0)
    same = getattr(intensity, name)(KEYS[0], IMAGE, **zero)
    np.testing.assert_allclose(same, IMAGE, atol=1e-7)


@pytest.mark.parametrize("name", OPS)
def test_the_result_stays_in_range_and_is_the_keys_own(name):
    op = jax.vmap(lambda key: getattr(intensity, name)(key, IMAGE * 1.4, **OPS[name]))
    changed = op(KEYS)
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert len(np.unique(np.asarray(changed).reshape(500, -1), axis=0)) == 500
    np.testing.assert_array_equal(changed, op(KEYS))


def test_brightness_is_one_uniform_offset():
    change = jax.vmap(lambda k: intensity.brightness(k, IMAGE, strength=0.2) - IMAGE)(
        KEYS
    )
    np.testing.assert_allclose(change.std(axis=(1, 2, 3)), 0, atol=1e-6)
    offset = change.mean(axis=(1, 2, 3))
    assert 0.19 < float(jnp.abs(offset).max()) <= 0.2 + 1e-6
    assert abs(float(offset.mean())) < 0.02


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    got = jax.vmap(lambda k: intensity.contrast(k, IMAGE, strength=0.2))(KEYS)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), IMAGE.mean(), atol=1e-5)
    scale = got.std(axis=(1, 2, 3)) / IMAGE.std()
    assert 0.8 - 1e-4 <= float(scale.min()) < 0.82
    assert 1.18 < float(scale.max()) <= 1.2 + 1e-4


def test_gamma_is_one_power_and_keeps_black_and_white():
    ends = jnp.array([0.0, 1.0, 0.5, 0.25]).reshape(4, 1, 1)
    got = jax.vmap(lambda k: intensity.gamma(k, ends, max_log_gamma=0.3))(KEYS)
    np.testing.assert_array_equal(got[:, 0], 0)
    np.testing.assert_array_equal(got[:, 1], 1)
    power = np.log(got[:, 2]) / np.log(0.5)
    np.testing.assert_allclose(np.log(got[:, 3]) / np.log(0.25), power, rtol=1e-4)
    assert 0.28 < float(np.abs(np.log(power)).max()) <= 0.3 + 1e-4


def test_noise_has_its_deviation_and_differs_between_pixels():
    change = jax.vmap(lambda k: intensity.noise(k, IMAGE, std=0.05) - IMAGE)(KEYS)
    assert abs(float(change.std()) - 0.05) < 1e-3
    assert abs(float(change.mean())) < 1e-3
    neighbours = np.corrcoef(change[:, 3, 3, 0], change[:, 3, 4, 0])[0, 1]
    assert abs(neighbours) < 0.15
