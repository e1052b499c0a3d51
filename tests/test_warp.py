import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medjax.geometry import warp

RNG = np.random.default_rng(0)


def matrix(**changes):
    still = {
        "flip": jnp.array(False),
        "rotation": jnp.zeros(()),
        "zoom": jnp.ones(()),
        "translation": jnp.zeros(2),
    }
    return warp.affine_matrix(**{**still, **changes})


@pytest.mark.parametrize("shape", [(7, 9, 2), (8, 8, 1)])
def test_identity_and_flip_return_the_pixels_to_the_bit(shape):
    image = RNG.random(shape, np.float32)
    np.testing.assert_array_equal(warp.affine(image, matrix()), image)
    flipped = warp.affine(image, matrix(flip=jnp.array(True)))
    np.testing.assert_array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("side", [6, 7])
def test_quarter_turns_of_a_square_return_the_pixels_to_the_bit(turns, side):
    image = RNG.random((side, side, 1), np.float32)
    c, s = [(0, 1), (-1, 0), (0, -1)][turns - 1]
    exact = jnp.array([[c, s, 0], [-s, c, 0]], jnp.float32)
    np.testing.assert_array_equal(warp.affine(image, exact), np.rot90(image, turns))


def test_a_rotation_turns_as_numpy_does():
    image = RNG.random((9, 9, 1), np.float32)
    turned = warp.affine(image, matrix(rotation=jnp.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)


def test_a_translation_moves_the_content_that_way():
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    moved = warp.affine(image, matrix(translation=jnp.array([2.0, -3.0])))
    assert np.argwhere(np.asarray(moved)[..., 0] > 0.5).tolist() == [[6, 1]]


def test_a_zoom_of_two_doubles_a_disc():
    y, x = np.mgrid[-32:33, -32:33]
    image = (np.hypot(y, x) < 10).astype(np.float32)[..., None]
    doubled = warp.affine(image, matrix(zoom=jnp.array(2.0)))
    assert 3.8 < float(doubled.sum() / image.sum()) < 4.2


@pytest.mark.parametrize("seed", range(5))
def test_any_affine_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    image = rng.random((12, 17, 2), np.float32)
    linear = np.eye(2) + rng.normal(0, 0.3, (2, 2))
    shift = rng.normal(0, 2, 2)
    got = warp.affine(
        image, np.column_stack([linear, shift]).astype(np.float32), fill=0.25
    )
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre + shift - linear @ centre
    # A border of two pixels of the fill: scipy's own mode cuts the edge hard.
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=0.25)
    for channel in range(2):
        expected = ndimage.affine_transform(
            wide[..., channel],
            linear,
            offset + 2 - linear @ [2, 2],
            order=1,
            cval=0.25,
        )[2:-2, 2:-2]
        np.testing.assert_allclose(got[..., channel], expected, atol=2e-5)


def test_forward_then_inverse_returns_the_interior():
    y, x = np.mgrid[:40, :40]
    image = (np.sin(y / 5) * np.cos(x / 7)).astype(np.float32)[..., None]
    forward = np.vstack(
        [matrix(rotation=0.2, zoom=1.1, translation=jnp.ones(2)), [0, 0, 1]]
    )
    back = np.linalg.inv(forward)[:2].astype(np.float32)
    again = warp.affine(warp.affine(image, forward[:2].astype(np.float32)), back)
    np.testing.assert_allclose(again[12:-12, 12:-12], image[12:-12, 12:-12], atol=0.02)


def test_the_strengths_bound_the_change():
    keys = jax.random.split(jax.random.key(0), 200)
    y, x = np.mgrid[:32, :32].astype(np.float32)
    image = jnp.stack([y, x], axis=-1)  # Every pixel says where it came from.

    def middle(key, **strengths):
        moved = warp.random_affine(key, image, **strengths)
        return moved[15:17, 15:17].mean(axis=(0, 1)) - 15.5

    still = {"flip": 0.0, "rotation": 0.0, "zoom": 0.0, "translation": 0.0}
    none = jax.vmap(lambda key: middle(key, **still))(keys)
    np.testing.assert_allclose(none, 0, atol=1e-5)
    shifted = jax.vmap(lambda key: middle(key, **{**still, "translation": 0.1}))(keys)
    assert 3.0 < float(jnp.abs(shifted).max()) <= 3.2 + 1e-4
    mirrored = jax.vmap(
        lambda key: warp.random_affine(key, image, **{**still, "flip": 0.5})
    )
    share = float((mirrored(keys)[:, 0, 0, 1] > 16).mean())
    assert 0.35 < share < 0.65
