"""Warnings of images unlike the training films: on films of ChestX-ray14 and made ones."""

import cv2
import launching
import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_images

from medjax.cohort import appearance
from medjax.data import image_files

SIDE = 32


def film(n):
    """A pale body with two dark lungs on black, as [64, 48] in [0, 1]."""
    rng = np.random.default_rng(n)
    y, x = np.mgrid[:64, :48] + rng.normal(0, 1.5, (2, 1, 1))
    body = np.clip(1.4 - ((x - 24) / 22) ** 2 - ((y - 36) / 34) ** 2, 0, 1)
    lungs = sum(
        np.exp(-(((x - at) / 6) ** 2 + ((y - 30) / 14) ** 2)) for at in (14, 34)
    )
    grey = 0.7 * body - 0.45 * lungs * body + rng.normal(0, 0.02, body.shape)
    return np.clip(grey * rng.uniform(0.85, 1.1), 0, 1).astype(np.float32)


def as_read(pixels, channels=1):
    image = image_files.resize(image_files.with_channels(pixels, channels), SIDE)
    return image.reshape(SIDE, SIDE, channels)


@pytest.fixture(scope="module")
def known():
    films = [as_read(film(n)) for n in range(120)]
    return appearance.reference(films, np.full(120, 48 / 64))


def warning(pixels, known):
    pixels = np.ascontiguousarray(pixels, np.float32)
    return appearance.warning(pixels, as_read(pixels), known)


def test_other_films_of_the_same_kind_pass(known):
    warned = [bool(warning(film(n), known)) for n in range(1000, 1100)]
    assert np.mean(warned) <= 0.02


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: 1 - x, "as if inverted"),
        (lambda x: x / 16, "spread"),  # 12 bits in a file of 16.
        (lambda x: 0 * x + 0.4, "spread"),
        (lambda x: np.clip(4 * x, 0, 1), "white"),
        (lambda x: x * 0.3, "brightness"),
        (lambda x: np.random.default_rng(0).random((64, 48)), "likeness"),
        (lambda x: x[:, :, None] * [1, 0.6, 0.4], "colour"),
        (lambda x: np.hstack([x] * 4), "aspect"),
        (lambda x: cv2.resize(x, (18, 24)), "18 x 24 pixels"),
    ],
)
def test_what_is_wrong_is_said(known, change, said):
    assert said in warning(change(film(2000)), known)
    assert warning(film(2000), known) == ""


def test_statistics_are_numpy_s():
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), np.uint8)
    image[:4] = 0
    found = appearance.greys(image)
    assert found["brightness"] == pytest.approx(image.mean() / 255)
    ends = np.percentile(image, [1, 99], method="inverted_cdf") / 255
    assert found["spread"] == pytest.approx(np.ptp(ends))
    assert found["black"] == pytest.approx((image <= 5).mean())
    assert found["white"] == pytest.approx((image >= 250).mean())
    small = cv2.resize(
        image[..., 0].astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA
    )
    flat = small.ravel() - small.mean()
    other = np.random.default_rng(1).normal(size=(16, 16))
    other -= other.mean()
    expected = np.corrcoef(flat, other.ravel())[0, 1]
    assert appearance.likeness(image, other) == pytest.approx(expected, abs=1e-5)
    assert appearance.likeness(0 * image, other) == 0


def test_colour_pictures_are_at_home_among_colour_pictures():
    rng = np.random.default_rng(0)
    pictures = [
        np.clip(film(n)[..., None] * [1, 0.5, 0.7] + rng.normal(0, 0.02, 3), 0, 1)
        for n in range(60)
    ]
    pictures = [picture.astype(np.float32) for picture in pictures]
    known = appearance.reference([as_read(p, 3) for p in pictures], np.full(60, np.nan))
    assert "aspect" not in known["statistics"]  # Nobody knows.
    one = pictures[7]
    assert appearance.warning(one, as_read(one, 3), known) == ""
    grey = one.mean(axis=-1)
    assert "colour" in appearance.warning(grey, as_read(grey, 3), known)


@pytest.mark.skipif(not launching.NIH.exists(), reason="no ../shared/data/nih-sample")
def test_on_real_films_alarms_are_rare_and_what_is_wrong_is_found():
    paths = sorted((launching.NIH / "images").glob("*.png"))
    films = [image_files.read(path, 1).pixels for path in paths]
    patient = pd.Series([path.name[:8] for path in paths])
    held = patient.isin(patient.drop_duplicates().sample(frac=0.3, random_state=0))
    train = [as_read(one) for one, out in zip(films, held, strict=True) if not out]
    known = appearance.reference(train, np.ones(len(train)))
    others = [one for one, out in zip(films, held, strict=True) if out]
    photos = [*load_sample_images().images]
    path = matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg"
    photos.append(cv2.imread(path)[..., ::-1])
    photos = [
        np.ascontiguousarray(photo[y : y + 150, x : x + 150], np.float32) / 255
        for photo in photos
        for y in range(0, photo.shape[0] - 150, 60)
        for x in range(0, photo.shape[1] - 150, 60)
    ]
    assert len(others) > 150 and len(photos) > 80
    assert np.mean([bool(warning(one, known)) for one in others]) <= 0.02
    assert np.mean(["inverted" in warning(1 - one, known) for one in others]) >= 0.95
    assert np.mean([bool(warning(one, known)) for one in photos]) >= 0.95


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(0.2, 0.3, (0.15, 0.35)), (0.0, 0.8, (-0.08, 0.88))]
)
def test_limits_lie_beyond_the_training_films_by_slack_or_by_share(low, high, ends):
    quantiles = {"0.005": low, "0.5": 0.25, "0.995": high}
    assert appearance.limits(quantiles, 0.05) == pytest.approx(ends)
