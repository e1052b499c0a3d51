"""Finds images that occur twice in the data: renamed, re-encoded, mirrored or resampled.

Also turned by right angles, and inverted, black for white. Films take three steps, each
on the output of the one before: a hash of every image, the pairs whose hashes are close,
and a comparison of the pixels of these pairs, because chest films resemble each other.
Volumes take one: each is shrunk to a thumbnail, and all thumbnails are compared.
tests/README.md says how far apart copies and others are.
"""

import itertools
from collections.abc import Callable

import chex
import cv2
import numpy as np
import pandas as pd
from scipy import fft, ndimage

# Raise it when `candidates`, `confirm` or `alike` finds other pairs than before: kept
# lists are then made again. Other hashes or thumbnails need another READER, of data/.
SEARCH = 1
HASH_SIDE = 64  # Pixels: what the hash reads, and what is correlated.
LOW = 16  # Frequencies along an axis.
BITS = LOW**2
MAX_BITS_APART = 24  # Bits of BITS in which the hashes of a pair may differ.
MIN_CORRELATION = 0.98  # Correlation.
FLIPS = {
    "": (slice(None), slice(None)),
    "left-right": (slice(None), slice(None, None, -1)),
    "up-down": (slice(None, None, -1), slice(None)),
    "both": (slice(None, None, -1), slice(None, None, -1)),
}
# How a copy may be shown: flipped, transposed after that, inverted.
TRANSFORMS = {
    " ".join(filter(None, (flip, "transposed" * turned, "inverted" * inverted))): (
        *(flip, turned, inverted),
    )
    for inverted, turned, flip in itertools.product((0, 1), (0, 1), FLIPS)
}
# A pair that differs in MAX_BITS_APART bits has equal keys in 13 % of the rounds: in none
# of them with a probability of 1.5e-4.
KEY_BITS, ROUNDS = 20, 64
BUCKET_IMAGES = 16  # Images of a bucket with which each of its images is compared.
CELLS = 16  # Of a volume's thumbnail, along each axis,
REACH = 2.0  # which reaches so many standard deviations to either side.
# In median absolute deviations from the median. Darker voxels may be a rim, and brighter
# ones, lesions or vessels, would outweigh all tissue.
DARK, BRIGHT = 2.0, 3.0
DETAIL_BLUR = 1.0  # Cells: what is finer than such a blur counts once more.
# Mean correlation of two volumes' thumbnails, and of their details.
MIN_THUMBNAIL_CORRELATION = 0.81
ROWS = 256  # Volumes that are compared with all others at once.


def hashes(pixels: np.ndarray) -> np.ndarray:
    """Hashes an image and its mirror images, [4, 32] uint8: 256 bits for each of FLIPS.

    The image is [H, W], [H, W, C] or [D, H, W, C] uint8; RGB counts as luminance, other
    channels as their mean, a volume as its middle slice.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions (2010), section 3.2.1: the signs of low cosine frequencies, here
    16 x 16 of them, against their median.
    """
    small = _shrink(pixels)
    views = np.stack([small[flip] for flip in FLIPS.values()]).astype(float)
    low = fft.dct(fft.dct(views, axis=1)[:, :LOW], axis=2)[..., :LOW].reshape(-1, BITS)
    return np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)


def candidates(hashes: np.ndarray) -> pd.DataFrame:
    """Finds the pairs whose hashes differ in at most MAX_BITS_APART bits.

    Each round samples KEY_BITS of the bits and compares the images that agree in all
    of them. Of a bucket with more than BUCKET_IMAGES such images (blank ones, say),
    only the first BUCKET_IMAGES are compared with all: each image is found, but not
    every pair.

    Args:
      hashes: [N, 4, 32] uint8, see `hashes`, in the order of the ids.

    Returns:
      A row per pair and view, by id: `id` < `other`, 0 to N - 1; `flipped`, one of
      TRANSFORMS, how to show `other` to get `id`; `distance` in bits. A pair that
      differs in MAX_BITS_APART bits is missed with a probability of 1.5e-4, one in 20
      with 2e-6.

    Source: Indyk, Motwani, Approximate Nearest Neighbors, STOC 1998, section 4.2:
    sampled bits.
    """
    chex.assert_shape(hashes, (None, len(FLIPS), BITS // 8))
    bits = np.unpackbits(hashes, axis=2).reshape(*hashes.shape[:2], 16, 16)
    # A transposed image has the transposed hash, an inverted one the complement.
    turned = np.packbits(bits.swapaxes(2, 3).reshape(*hashes.shape[:2], BITS), axis=2)
    hashes = np.concatenate([hashes, turned, ~hashes, ~turned], axis=1)
    words = np.ascontiguousarray(hashes).view(np.uint64)  # [N, V, 4]
    columns = np.ascontiguousarray(hashes.transpose(2, 1, 0))  # [32, V, N]
    rng = np.random.default_rng(0)
    shape = (len(hashes), len(hashes), len(TRANSFORMS))
    places = np.zeros(0, np.int64)  # Flat indices into this shape.
    for _ in range(ROUNDS):
        keys = np.zeros(columns.shape[1:], np.int32)  # [V, N]
        for bit in rng.choice(BITS, KEY_BITS, replace=False).tolist():
            keys = keys << 1 | columns[bit // 8] >> bit % 8 & 1
        order = np.argsort(keys[0], kind="stable")
        size = np.bincount(keys[0], minlength=2**KEY_BITS)
        first = np.concatenate([[0], np.cumsum(size)])
        new = []
        for view, key in enumerate(keys):
            id, other = _pairs(order, first[key], size[key])
            near = _distance(words, id, other, view) <= MAX_BITS_APART
            new.append(np.ravel_multi_index((id[near], other[near], view), shape))
        places = np.union1d(places, np.concatenate(new))
    id, other, view = np.unravel_index(places, shape)
    columns = {
        "id": id,
        "other": other,
        "flipped": np.array(list(TRANSFORMS))[view],
        "distance": _distance(words, id, other, view).astype(int),
    }
    return pd.DataFrame(columns)


def confirm(pairs: pd.DataFrame, pixels: Callable[[int], np.ndarray]) -> pd.DataFrame:
    """Keeps the pairs whose pixels correlate by MIN_CORRELATION or more in the same view.

    The correlation, at 64 x 64 pixels, ignores brightness and contrast. An image
    without contrast has none, and no duplicates. `pixels` gives the image of an id, as
    for `hashes`, and is called once for each.

    Returns:
      `pairs` with `correlation`, one row per pair: the view that correlates best.
    """
    ids = np.unique(pairs[["id", "other"]])
    small = {i: _shrink(pixels(i)) for i in ids.tolist()}
    views = zip(pairs["id"], pairs["other"], pairs["flipped"])
    values = [_correlation(small[i], _shown(small[j], name)) for i, j, name in views]
    pairs = pairs.assign(correlation=np.array(values, float))
    pairs = pairs[pairs["correlation"] >= MIN_CORRELATION]
    best = pairs.sort_values("correlation", ascending=False, kind="stable")
    best = best.drop_duplicates(["id", "other"])
    return best.sort_values(["id", "other"], ignore_index=True)


def across(pairs: pd.DataFrame, count: int) -> pd.DataFrame:
    """The pairs of one of the first `count` images, `id`, and a later one, `other`."""
    return pairs[(pairs["id"] < count) & (pairs["other"] >= count)]


def _shrink(pixels):
    """Shrinks an image to [64, 64] uint8: grey, one slice, averaged over area."""
    chex.assert_type(pixels, np.uint8)
    chex.assert_rank(pixels, {2, 3, 4})
    if pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    small = cv2.resize(pixels, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    if small.ndim == 3:  # Colour last: there are fewer pixels now.
        rgb = small.shape[2] == 3
        small = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY) if rgb else small.mean(2)
    return np.rint(small).astype(np.uint8)


def _shown(image: np.ndarray, name: str) -> np.ndarray:
    """An image [S, S] uint8 in one of TRANSFORMS."""
    flip, turned, inverted = TRANSFORMS[name]
    image = image[FLIPS[flip]]
    image = image.T if turned else image
    return 255 - image if inverted else image


def _distance(words, id, other, view):
    return np.bitwise_count(words[id, 0] ^ words[other, view]).sum(1)


def _pairs(order, first, size):
    """Pairs (id, other) of an image and each of the first BUCKET_IMAGES of its bucket.

    `order` are the [N] images by bucket, ascending within each. `first` and `size`, [N],
    say where in it the bucket of each image (or of its mirror image) lies.
    """
    count = np.minimum(size, BUCKET_IMAGES)
    other = np.repeat(np.arange(len(order)), count)
    within = np.arange(len(other)) - np.repeat(np.cumsum(count) - count, count)
    id = order[np.repeat(first, count) + within]
    return id[id < other], other[id < other]


def _correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return np.sum(a * b) / scale if scale else 0.0


# Volumes.


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrinks a volume [D, H, W, C], 0 outside of the head, to [C, 2, S, S, S] float16.

    The cells are laid about the body's centre, and scaled by its extent along each
    axis: so the voxels' size and a margin around the body don't matter, and a mirrored
    volume has the mirrored thumbnail. The body is what isn't dark, because resampling
    leaves dark voxels at the head's rim. Each sequence has mean 0 and norm 1, or is 0.
    The second of each is that of the inverted volume, which has other dark voxels.
    """
    both = [(values, -values) for values in np.moveaxis(image, -1, 0)]
    return np.stack([[*map(_thumbnail, pair)] for pair in both])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The same of one sequence."""
    inside = image != 0
    if not inside.any():
        return np.zeros([CELLS] * 3, np.float16)
    image = np.asarray(image, np.float32)
    middle = np.median(image[inside])
    spread = np.median(np.abs(image[inside] - middle))
    body = inside & (image >= middle - DARK * spread)
    cells = np.minimum(image, middle + BRIGHT * spread)
    cells = np.where(body, cells - cells[body].mean(), 0)
    for axis in range(3):
        share = _cells(body.sum(axis=tuple({0, 1, 2} - {axis})))
        cells = np.moveaxis(np.tensordot(share, cells, (1, axis)), 0, axis)
    cells -= cells.mean()
    norm = np.linalg.norm(cells)
    return (cells / norm if norm > 0 else cells).astype(np.float16)


def _cells(mass: np.ndarray) -> np.ndarray:
    """[S, n] float32: how much of each cell every slice of an axis covers.

    mass: [n], the body's voxels in each slice.
    """
    start, mass = np.arange(len(mass)), mass / mass.sum()
    centre = np.sum(mass * (start + 0.5))
    # A slice has an extent of its own: 1 / 12 is its variance.
    deviation = np.sqrt(np.sum(mass * (start + 0.5 - centre) ** 2) + 1 / 12)
    edges = centre + deviation * np.linspace(-REACH, REACH, CELLS + 1)[:, None]
    covered = np.minimum(edges[1:], start + 1) - np.maximum(edges[:-1], start)
    return (np.maximum(covered, 0) / np.diff(edges, axis=0)).astype(np.float32)


def alike(thumbnails: np.ndarray) -> pd.DataFrame:
    """Finds the pairs of volumes of which any sequence is the same image.

    It may be mirrored, turned by right angles and inverted. `thumbnails` are
    [N, C, 2, S, S, S]. A row per pair: `id` < `other`, 0 to N - 1, and the highest
    `correlation`, MIN_THUMBNAIL_CORRELATION or more: the mean of the thumbnails' and of
    their details', as people resemble each other in outline.
    """
    count = len(thumbnails)
    whole = thumbnails.astype(np.float32)
    blur = ndimage.gaussian_filter(whole, (0, 0, 0, *[DETAIL_BLUR] * 3))
    parts = np.stack([whole, whole - blur], axis=3)
    parts -= parts.mean(axis=(4, 5, 6), keepdims=True)
    norm = np.sqrt(2 * np.sum(parts**2, axis=(4, 5, 6), keepdims=True))
    parts = np.divide(parts, norm, where=norm > 0, out=np.zeros_like(parts))
    all_cells = np.moveaxis(parts, 0, 2)  # [C, 2, N, 2, S, S, S]
    flips = [a for n in range(4) for a in itertools.combinations((2, 3, 4), n)]
    turns = [*itertools.permutations((2, 3, 4))]
    pairs = []
    for start in range(0, count, ROWS):
        later = all_cells[:, :, start:]
        high = np.zeros((min(ROWS, count - start), count - start), np.float32)
        for both, turn, axes in itertools.product(later, turns, flips):
            rows = np.flip(both[0, :ROWS].transpose(0, 1, *turn), axes)
            for cells in both.reshape(2, count - start, -1):
                product = rows.reshape(len(rows), -1) @ cells.T
                np.maximum(high, product, out=high)
        id, other = np.nonzero(high >= MIN_THUMBNAIL_CORRELATION)
        pairs.append(np.stack([id + start, other + start, high[id, other]], axis=1))
    pairs = pd.DataFrame(
        np.concatenate(pairs), columns=["id", "other", "correlation"]
    ).astype({"id": int, "other": int})
    pairs = pairs[pairs["id"] < pairs["other"]]
    return pairs.sort_values(["id", "other"], ignore_index=True)
