import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.data import normalisation

RNG = np.random.default_rng(0)


def film(height, width):
    """Smooth and grainy parts, dark and bright ones: uint8 with gaps in its greys."""
    y, x = np.mgrid[:height, :width]
    smooth = 90 + 60 * np.sin(x / 23) * np.cos(y / 31) + 0.1 * x
    grain = RNG.normal(0, 12, (height, width)) * (x > width / 2)
    return np.clip(smooth + grain, 12, 240).astype(np.uint8)


def run(op, image, **options):
    scaled = jnp.asarray(image / 255, jnp.float32)[..., None]
    return np.asarray(jax.jit(lambda i: op(i, **options))(scaled))[..., 0] * 255


def test_equalise_is_opencvs():
    image = film(64, 90)
    got = run(normalisation.equalise, image)
    np.testing.assert_allclose(got, cv2.equalizeHist(image), atol=0.501)  # It rounds.


def test_equalise_takes_the_histogram_of_a_whole_volume():
    volume = np.stack([film(20, 30), film(20, 30) // 3])
    flat = cv2.equalizeHist(volume.reshape(1, -1)).reshape(volume.shape)
    np.testing.assert_allclose(run(normalisation.equalise, volume), flat, atol=0.501)


def test_one_grey_stays():
    image = jnp.full((8, 8, 1), 0.3)
    np.testing.assert_array_equal(jax.jit(normalisation.equalise)(image), image)


@pytest.mark.parametrize("clip", [1.0, 2.0, 8.0])
@pytest.mark.parametrize(("height", "width", "tiles"), [(512, 256, 4), (509, 250, 4)])
def test_clahe_is_opencvs(height, width, tiles, clip):
    """Within three grey levels: it spreads whole counts, the rest of them unevenly.

    A rest of up to 255 counts, in tiles of 8000 and more, is what the two may differ by.
    """
    image = film(height, width)
    reference = cv2.createCLAHE(clip, (tiles, tiles)).apply(image)
    got = run(normalisation.clahe, image, clip=clip, tiles=tiles)
    assert np.abs(got - reference).max() <= 3
    assert np.abs(got - reference).mean() < 0.6
    if clip == 8:  # It does something, and not the same everywhere.
        assert np.abs(got - image).mean() > 10
        assert np.abs(got - run(normalisation.equalise, image)).mean() > 5


@pytest.mark.parametrize("op", [normalisation.equalise, normalisation.clahe])
def test_channels_are_kept_apart(op):
    image = np.stack([film(32, 32), film(32, 32) // 2], axis=-1) / np.float32(255)
    got = jax.jit(op)(image)
    for c in range(2):
        alone = jax.jit(op)(image[..., c : c + 1])
        np.testing.assert_allclose(got[..., c : c + 1], alone, atol=1e-6)
