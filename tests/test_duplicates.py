"""Duplicates: planted copies are found, other films are not, against all pairs."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import fft, ndimage

from medjax.cohort import duplicates
from medjax.data import image_files, nifti
from medjax.data.scan import make_scan

SHARED = Path(__file__).parents[1].parent / "shared/data"
NIH, HIPPOCAMPUS = SHARED / "nih-sample", SHARED / "hippocampus/imagesTr"
MIRRORED = {
    "": lambda p: p,
    "left-right": np.fliplr,
    "up-down": np.flipud,
    "both": lambda p: np.rot90(p, 2),
}
TURNED = {  # Undone by these views.
    "transposed": np.transpose,
    "left-right transposed": lambda p: np.rot90(p, -1),
    "up-down transposed": np.rot90,
    "both transposed": lambda p: np.rot90(p.T, 2),
    "inverted": lambda p: 255 - p,
    "left-right inverted": lambda p: 255 - np.fliplr(p),
    "up-down transposed inverted": lambda p: 255 - np.rot90(p),
}


def jpeg(quality):
    def again(picture):
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)

    return again


def resized(side):
    return lambda picture: cv2.resize(picture, (side, side))


def brighter(picture):
    return np.rint(255 * (picture / 255) ** 1.1).astype(np.uint8)


COPIES = [lambda p: p, jpeg(90), jpeg(50), resized(128), resized(300), brighter]


def picture(seed, side=200):
    """Soft random shapes: as little alike as any two of them."""
    rng = np.random.default_rng(seed)
    small = rng.random((24, 24), np.float32)
    large = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    return (255 * np.clip(large, 0, 1)).astype(np.uint8)


def find(pictures, **options):
    found = duplicates.candidates(np.stack([duplicates.hashes(p) for p in pictures]))
    return duplicates.confirm(found, lambda i: pictures[i], **options)


def random_hashes(rng, n):
    return rng.integers(0, 256, (n, 4, 32), dtype=np.uint8)


def with_errors(rng, code, bits):
    """The same [32] bytes with so many of their 256 bits turned."""
    turned = np.unpackbits(code)
    turned[rng.choice(256, bits, replace=False)] ^= 1
    return np.packbits(turned)


# -------------------------------------------------------------------- hashes


@pytest.mark.parametrize("seed", range(5))
def test_a_hash_is_the_signs_of_the_low_cosines_against_their_median(seed):
    small = picture(seed, 64)
    for row, mirror in zip(duplicates.hashes(small), MIRRORED.values(), strict=True):
        low = fft.dctn(mirror(small).astype(float), type=2)[:16, :16]
        expected = (low > np.median(low)).ravel()
        assert np.mean(np.unpackbits(row) == expected) > 0.99  # Ties may round.


def test_colour_counts_as_luminance_and_a_volume_as_its_middle_slice():
    grey = picture(0)
    code = duplicates.hashes(grey)
    assert code.shape == (4, 32) and code.dtype == np.uint8
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 256, (5, *grey.shape, 1), dtype=np.uint8)
    volume[2, ..., 0] = grey
    sequences = np.repeat(grey[..., None], 4, axis=2)
    sequences[..., 0], sequences[..., 1] = 0, 255 - grey
    for same in (grey[..., None], np.dstack([grey] * 3), volume):
        np.testing.assert_array_equal(duplicates.hashes(same), code)
    red, green, blue = (picture(seed) for seed in (1, 2, 3))
    luminance = np.rint(0.299 * red + 0.587 * green + 0.114 * blue).astype(np.uint8)
    apart = duplicates.hashes(np.dstack([red, green, blue]))[0]
    apart = apart ^ duplicates.hashes(luminance)[0]
    assert np.bitwise_count(apart).sum() <= 10  # Rounded before or after shrinking.


# ---------------------------------------------------------------- candidates


def all_pairs(hashes):
    """Every pair within the limit, one comparison at a time."""
    bits = np.unpackbits(hashes, axis=2).astype(int)
    found = {}
    for j in range(len(bits)):
        for name, (flip, turned, inverted) in duplicates.TRANSFORMS.items():
            view = bits[j, list(duplicates.FLIPS).index(flip)]
            view = view.reshape(16, 16).T.ravel() if turned else view
            apart = np.abs(bits[:j, 0] - (1 - view if inverted else view)).sum(1)
            for i in np.flatnonzero(apart <= duplicates.MAX_BITS_APART):
                found[i, j, name] = apart[i]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_all_the_pairs_within_the_limit(seed):
    rng = np.random.default_rng(seed)
    hashes = random_hashes(rng, 300)
    for j in range(150, 300):  # One to three near copies of the first half.
        flip = rng.integers(4)
        hashes[j, flip] = with_errors(rng, hashes[rng.integers(150), 0], j % 30)
    got = duplicates.candidates(hashes)
    expected = all_pairs(hashes)
    assert len(expected) > 100
    assert max(expected.values()) == duplicates.MAX_BITS_APART
    key = zip(got["id"], got["other"], got["flipped"])
    assert dict(zip(key, got["distance"])) == expected
    assert len(got) == len(expected)
    pd.testing.assert_frame_equal(duplicates.candidates(hashes), got)


def test_pairs_at_the_limit_are_missed_as_rarely_as_stated():
    """6,000 pairs at 1.5e-4: one is expected, six would be a fault."""
    rng = np.random.default_rng(0)
    hashes = random_hashes(rng, 12_000)
    for i in range(6_000):
        hashes[6_000 + i, 0] = with_errors(rng, hashes[i, 0], duplicates.MAX_BITS_APART)
    got = duplicates.candidates(hashes)
    assert (got["other"] - got["id"] == 6_000).all()
    assert (got["distance"] == duplicates.MAX_BITS_APART).all()
    assert 6_000 - 6 < len(got) <= 6_000


@pytest.mark.slow
def test_many_blank_films_are_linked_without_all_their_pairs():
    hashes = random_hashes(np.random.default_rng(0), 1_000)
    hashes[::2] = 255
    got = duplicates.candidates(hashes)
    assert len(got) <= 500 * 8 * duplicates.BUCKET_IMAGES
    linked = got[got["id"] == 0]
    assert set(linked["other"]) == set(range(2, 1_000, 2))
    assert set(linked["flipped"]) == {*list(duplicates.TRANSFORMS)[:8]}


@pytest.mark.parametrize("films", [0, 1, 2])
def test_few_films_are_no_trouble(films):
    hashes = random_hashes(np.random.default_rng(0), films)
    found = duplicates.candidates(hashes)
    assert list(found) == ["id", "other", "flipped", "distance"] and found.empty
    found = duplicates.confirm(found, lambda i: 1 / 0)
    assert list(found)[-1] == "correlation" and found.empty


# ------------------------------------------------------------------- confirm


def test_planted_copies_are_found_with_their_flip_and_nothing_else():
    originals = [picture(seed) for seed in range(60)]
    copies, flips = [], []
    for flip, mirror in (MIRRORED | TURNED).items():
        for copy in COPIES[: 6 if flip in MIRRORED else 4]:
            source = originals[len(copies)]
            copies.append(copy(np.ascontiguousarray(mirror(source))))
            flips.append(flip)
    found = find(originals + copies)
    assert found["id"].tolist() == list(range(len(copies)))
    assert (found["other"] - found["id"] == 60).all()
    assert found["flipped"].tolist() == flips
    assert found["correlation"].min() > 0.995


def test_a_pair_with_near_hashes_and_other_pixels_is_dropped(monkeypatch):
    pictures = [picture(0), brighter(picture(0)), picture(1)]
    pairs = pd.DataFrame(
        {"id": [0, 0, 0], "other": [1, 2, 1], "flipped": ["both", "", ""]}
    ).assign(distance=3)
    got = duplicates.confirm(pairs, lambda i: pictures[i])
    assert got[["id", "other", "flipped"]].values.tolist() == [[0, 1, ""]]
    one, other = (resized(64)(p).ravel() for p in pictures[:2])
    expected = np.corrcoef(one, other)[0, 1]
    assert got["correlation"][0] == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(duplicates, "MIN_CORRELATION", -1)
    loose = duplicates.confirm(pairs, lambda i: pictures[i])
    assert len(loose) == 2


def test_a_pair_near_in_two_flips_is_one_row_in_the_better_flip(monkeypatch):
    one = picture(0, 64)
    almost = np.where(np.arange(64) < 32, one, one[:, ::-1])  # Its own mirror image,
    almost[:8, :8] //= 2  # but for a corner.
    flips = ["left-right", "", "both"]
    pairs = pd.DataFrame({"id": 0, "other": 1, "flipped": flips, "distance": 3})
    assert (duplicates.confirm(pairs[:1], lambda i: almost)["correlation"] < 1).all()
    monkeypatch.setattr(duplicates, "MIN_CORRELATION", 0.5)
    got = duplicates.confirm(pairs, lambda i: almost)
    assert got["flipped"].tolist() == [""]
    assert got["correlation"].tolist() == pytest.approx([1])


def test_each_film_is_read_once_and_a_blank_one_is_nobodys_duplicate():
    asked = []
    pictures = [np.full((70, 70), value, np.uint8) for value in (0, 0, 9)]
    pictures += [picture(0)] * 3

    def pixels(i):
        asked.append(i)
        return pictures[i]

    found = duplicates.candidates(np.stack([duplicates.hashes(p) for p in pictures]))
    assert {(0, 1), (0, 2), (3, 4)} <= set(zip(found["id"], found["other"]))
    got = duplicates.confirm(found, pixels)
    assert list(zip(got["id"], got["other"])) == [(3, 4), (3, 5), (4, 5)]
    assert sorted(asked) == list(range(6))


# ----------------------------------------------------------------------- NIH


def test_copies_of_real_films_are_found_and_the_films_are_told_apart():
    if not NIH.exists():
        pytest.skip("nih-sample is not here")
    paths = sorted((NIH / "images").glob("*.png"))
    films = [
        np.rint(image_files.read(p, 1).pixels * 255).astype(np.uint8) for p in paths
    ]
    assert len(films) == 700
    originals = range(0, 700, 20)
    mirrors = list(MIRRORED.values())
    copies = [
        COPIES[n % 6](np.ascontiguousarray(mirrors[n % 4](films[i])))
        for n, i in enumerate(originals)
    ]
    found = find(films + copies)
    assert found["id"].tolist() == list(originals)
    assert found["other"].tolist() == list(range(700, 700 + len(copies)))
    assert found["flipped"].tolist() == [
        list(MIRRORED)[n % 4] for n in range(len(copies))
    ]


# ------------------------------------------------------------------- volumes


def body(seed, shape=(40, 48, 36)):
    """[D, H, W, 2]: smooth tissue of another person in a ball of one size."""
    rng = np.random.default_rng(seed)
    tissue = [ndimage.gaussian_filter(rng.normal(0, 1, shape), 2.5) for _ in range(2)]
    index = np.moveaxis(np.indices(shape), 0, -1)
    inside = np.sum(((index + 0.5) / shape - 0.5) ** 2, axis=-1) < 0.42**2
    return np.where(inside[..., None], np.stack(tissue, axis=-1) / 0.05, 0)


def resampled(factor):
    return lambda image: ndimage.zoom(image, (*factor, 1), order=1)


VOLUME_COPIES = {
    "the same": lambda image: image,
    "mirrored left to right": lambda image: image[:, :, ::-1],
    "mirrored twice": lambda image: image[::-1, ::-1],
    "saved as float16": lambda image: image.astype(np.float16),
    "rounded to 30 levels": lambda image: np.rint(image * 5) / 5,
    "inverted": lambda image: np.where(image, image.min() - image, 0),
    "inverted and mirrored": lambda image: -image[:, ::-1],
    "another window": lambda image: 3.7 * image,
    "a wider margin": lambda image: np.pad(image, ((5, 1), (0, 3), (2, 2), (0, 0))),
    "a narrower margin": lambda image: image[2:-3, 3:-2, 1:-2],
    "finer voxels": resampled((1.5, 1.3, 2)),
    "coarser slices": resampled((0.5, 1, 1)),
    "one sequence alone": lambda image: image * [1, 0],
    "turned by a right angle": lambda image: np.rot90(image, 1, (0, 2)),
    "turned and inverted": lambda image: -np.rot90(image, 1, (0, 1)),
    "turned twice and inverted": lambda image: -image.transpose(2, 0, 1, 3)[::-1],
    "turned twice": lambda image: image.transpose(2, 0, 1, 3)[:, ::-1],
}


@pytest.mark.parametrize("copy", VOLUME_COPIES)
def test_a_copy_of_a_volume_is_found_and_nothing_else(copy):
    volumes = [body(seed) for seed in range(12)]
    volumes.append(VOLUME_COPIES[copy](volumes[5]))
    found = duplicates.alike(np.stack([duplicates.thumbnail(v) for v in volumes]))
    assert found[["id", "other"]].values.tolist() == [[5, 12]]


def prepared_copies(volumes):
    """The pairs of duplicates of volumes of 4 mm as scans are prepared."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    scans = (make_scan(v.astype(np.float32), None, affine) for v in volumes)
    found = duplicates.alike(np.stack([duplicates.thumbnail(s.image) for s in scans]))
    return found[["id", "other"]].values.tolist()


def test_a_copy_is_found_although_cubic_splines_rang_at_its_rim():
    volumes = [np.where(body(seed) != 0, 6 + body(seed), 0) for seed in range(6)]
    volumes.append(ndimage.zoom(volumes[2], (0.8, 0.8, 0.8, 1)))
    assert prepared_copies(volumes) == [[2, 6]]


def test_people_with_a_bright_lesion_in_one_place_are_no_copies():
    volumes = [np.where(body(seed) != 0, 6 + body(seed), 0) for seed in range(6)]
    for volume in volumes:
        volume[18:24, 20:27, 12:18] = 60
    assert prepared_copies(volumes) == []


def test_a_thumbnail_holds_the_means_of_its_cells():
    """Of a box of 32 voxels a side, whose cells REACH makes as large as voxels can be."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0.5, 1, (32, 32, 32, 1))
    dark = rng.random(image.shape) < 0.03  # No tissue, and counts as the mean.
    image[rng.random(image.shape) < 0.03] = 9.0  # Counts as little more than tissue.
    image[dark] = 0.01
    middle = np.median(image)
    bright = middle + 3 * np.median(np.abs(image - middle))
    deviation = np.sqrt((32**2 - 1) / 12 + 1 / 12)
    edges = 16 + deviation * np.linspace(-2, 2, 17)
    cells = np.minimum(image, bright)
    cells = np.where(dark, 0, cells - cells[~dark].mean())[..., 0]
    at = np.clip(np.rint(20 * edges).astype(int), 0, 640)
    for axis in range(3):
        fine = cells.repeat(20, axis)
        sums = [fine.take(range(*ends), axis).sum(axis) for ends in pairwise(at)]
        cells = np.stack(sums, axis)
    got, inverted = duplicates.thumbnail(image)[0].astype(float)
    np.testing.assert_array_equal(duplicates.thumbnail(-image)[0], [inverted, got])
    assert np.corrcoef(got.ravel(), cells.ravel())[0, 1] > 0.995
    assert got.sum() == pytest.approx(0, abs=0.05)
    assert np.sum(got**2) == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(not HIPPOCAMPUS.exists(), reason="needs shared/data/hippocampus")
def test_crops_of_one_organ_are_told_apart_and_their_copies_found():
    """169 and 170 are the most alike of 202: two sides of one person, it seems."""
    paths = sorted(HIPPOCAMPUS.glob("*.nii.gz"))[:30]
    paths += [HIPPOCAMPUS / f"hippocampus_{n}.nii.gz" for n in (169, 170)]
    crops = [nifti.read(path).voxels[..., None] for path in paths]
    zooms = [(0.8, 0.8, 0.8, 1), (1.25, 1.25, 1.25, 1), (1 / 3, 1, 1, 1)]
    crops += [ndimage.zoom(crops[n], zooms[n % 3], order=n % 2) for n in range(6)]
    crops += [crops[n].max() - np.rot90(crops[n], n % 3) for n in range(6, 9)]
    assert prepared_copies(crops) == [[n, 32 + n] for n in range(9)]


def test_an_empty_volume_is_nobody_s_copy():
    thumbnails = np.stack([duplicates.thumbnail(np.zeros((4, 5, 6, 2)))] * 2)
    assert duplicates.alike(thumbnails).empty


def test_all_volumes_are_compared_in_blocks(monkeypatch):
    thumbnails = np.stack([duplicates.thumbnail(body(n % 4)) for n in range(7)])
    whole = duplicates.alike(thumbnails)
    monkeypatch.setattr(duplicates, "ROWS", 3)
    pd.testing.assert_frame_equal(duplicates.alike(thumbnails), whole)
    assert whole[["id", "other"]].values.tolist() == [[0, 4], [1, 5], [2, 6]]
