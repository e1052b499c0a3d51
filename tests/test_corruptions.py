"""Every corruption: nothing at 0, worse at each severity, the same in any batch."""

import cv2
import jax
import numpy as np
import pytest
from scipy import ndimage

from medjax.errors import InputError
from medjax.evaluation import robustness
from medjax.evaluation.robustness import CORRUPTIONS, RANGE, SEVERITIES

pytestmark = pytest.mark.usefixtures("unoptimised")

KEY = jax.random.key(4)
SIDE = 48


def films(number=3):
    """Smooth patches with an edge and a fine pattern, [B, H, W, 1] in [0, 1]."""
    rng = np.random.default_rng(0)
    film = ndimage.gaussian_filter(rng.random((number, SIDE, SIDE)), (0, 3, 3))
    film = (film - film.min()) / np.ptp(film) * 0.5 + 0.2
    film[:, 10:20, 8:30] += 0.2
    film[:, 30:, ::4] -= 0.1
    return film[..., None].astype(np.float32)


def psnr(film, other):
    return -10 * np.log10(np.mean((np.asarray(other) - film) ** 2))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_worse_at_each_severity_and_the_film_s_own(name):
    film, ids = films(), np.array([5, 6, 7])
    found = [
        np.asarray(robustness.corrupt(name, KEY, film, ids, severity=severity))
        for severity in (0, *SEVERITIES)
    ]
    np.testing.assert_array_equal(found[0], film)
    for one in found[1:]:
        assert one.shape == film.shape and one.dtype == np.float32
        assert one.min() >= 0 and one.max() <= 1
    falls = [[psnr(film[n], one[n]) for one in found[1:]] for n in range(3)]
    assert (np.diff(np.mean(falls, axis=0)) < -0.2).all(), falls
    # In another batch, at another place, with padding.
    other = np.concatenate([film[2:], film[:1], np.zeros_like(film)])
    again = robustness.corrupt(
        name, KEY, other, np.array([7, 5, -1, -1, -1]), severity=3
    )
    np.testing.assert_array_equal(np.asarray(again)[:2], found[3][[2, 0]])
    if name not in ("blur", "contrast", "jpeg"):  # These draw nothing.
        same = robustness.corrupt(name, KEY, film[[0] * 3], ids, severity=3)
        assert len({np.asarray(one).tobytes() for one in same}) > 1


def corrupted(name, film, value, id=0):
    key = jax.random.fold_in(KEY, id)
    function = jax.jit(CORRUPTIONS[name].apply)
    return np.asarray(function(key, np.float32(film), np.float32(value)))


def test_quantum_noise_has_the_spread_of_counted_photons():
    photons = 8000
    for grey in (0.1, 0.5, 0.8):
        found = corrupted("quantum_noise", np.full((120, 120, 1), grey), photons)
        counts = photons * np.exp(-RANGE * grey)
        assert found.mean() == pytest.approx(grey, abs=2e-3)
        # ln of a Poisson count deviates by 1 / sqrt(its mean).
        assert found.std() == pytest.approx(1 / np.sqrt(counts) / RANGE, rel=0.05)


def test_electronic_noise_is_as_strong_as_it_says_everywhere():
    for grey in (0.3, 0.7):
        found = corrupted("electronic_noise", np.full((120, 120, 1), grey), 8)
        assert found.std() * 255 == pytest.approx(8, rel=0.03)


def test_blur_is_scipy_s_gaussian_away_from_the_edge():
    film = films(1)[0]
    found = corrupted("blur", film, 4.0)[..., 0]
    expected = ndimage.gaussian_filter(film[..., 0], 0.04 * SIDE, truncate=12)
    np.testing.assert_allclose(found[16:32, 16:32], expected[16:32, 16:32], atol=2e-5)
    np.testing.assert_allclose(corrupted("blur", 0 * film + 0.4, 4.0), 0.4, atol=1e-6)


def test_exposure_is_a_factor_of_what_the_film_received():
    film = films(1)[0]
    moved = {
        float(np.median(corrupted("exposure", film, 1, id) - film)) for id in range(8)
    }
    shift = np.log(2) / RANGE
    np.testing.assert_allclose(sorted(moved), [-shift, shift], atol=1e-6)


def test_scatter_takes_contrast_from_the_dense_most():
    film = np.full((10, 10, 1), 0.2, np.float32)
    film[5:] = 0.8
    found = corrupted("contrast", film, 0.5)[..., 0]
    dose = np.exp(-RANGE * np.array([0.2, 0.8]))
    expected = -np.log(0.5 * dose + 0.5 * dose.mean()) / RANGE
    np.testing.assert_allclose(found[[0, 9], 0], expected, atol=1e-6)
    assert 0.8 - expected[1] > expected[0] - 0.2 > 0


def test_a_jpeg_is_what_the_file_gives_back():
    film = films(1)[0]
    data = cv2.imencode(
        ".jpg",
        np.rint(film[..., 0] * 255).astype(np.uint8),
        [cv2.IMWRITE_JPEG_QUALITY, 30],
    )[1]
    expected = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) / 255
    found = robustness.jpeg(KEY, np.repeat(film, 2, axis=-1), 30)
    np.testing.assert_allclose(found, np.stack([expected] * 2, axis=-1), atol=1e-7)


def test_rotation_is_scipy_s_to_either_side():
    film = films(1)[0]
    sides = set()
    for id in range(6):
        found = corrupted("rotation", film, 20.0, id)[..., 0]
        for sign in (-1, 1):
            expected = ndimage.rotate(film[..., 0], sign * 20, reshape=False, order=1)
            if np.allclose(found[12:36, 12:36], expected[12:36, 12:36], atol=1e-4):
                sides.add(sign)
    assert sides == {-1, 1}


def test_a_plate_is_white_of_its_size_and_hides_no_other_pixel():
    film = films(1)[0]
    for id in range(5):
        found = corrupted("occlusion", film, 25.0, id)
        hidden = (found != film)[..., 0]
        assert (found[hidden] == 1).all()
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden.sum() == len(rows) * len(columns)
        assert max(len(rows), len(columns)) <= 13 and len(rows) > 0


def test_a_severity_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="severity=6"):
        robustness.corrupt("blur", KEY, films(), np.arange(3), severity=6)
