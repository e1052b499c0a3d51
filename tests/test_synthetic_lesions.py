"""Synthetic lesions lie in the tissue of the real ones and change it as they do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medjax.augment import patches, synthetic_lesions

SHAPE = (24, 32, 28)
SPACING = np.array([2.0, 1.0, 1.0], np.float32)
# Near 0, as z-scores of tissue are: so air, which is 0, is not told by its intensity.
HOST, OTHER, LESION = np.array([[0.1, -0.1], [-1.0, 2.0], [1.6, 0.9]])
RIM = np.array([0.8, 0.4])  # Of the voxels that touch the lesion.
GRAIN = 0.1


@pytest.fixture(scope="module")
def volume():
    """Two tissues, one in front of the other; a lesion with a rim; and air."""
    rng = np.random.default_rng(0)
    side = np.arange(SHAPE[1])[:, None] < 20
    image = np.where(side[..., None], HOST, OTHER) * np.ones((*SHAPE, 2))
    label = np.zeros(SHAPE, np.float32)
    label[10:13, 6:12, 8:14] = 1
    rim = ndimage.binary_dilation(label, np.ones((1, 3, 3)))
    image = np.where(rim[..., None], RIM, image)
    image = np.where(label[..., None] > 0, LESION, image)
    image += GRAIN * rng.normal(size=image.shape)
    image[:, :, -4:] = 0  # Air.
    points = np.argwhere(label)
    points = points[rng.integers(len(points), size=512)]
    return image.astype(np.float32), label, points.astype(np.int32)


@pytest.fixture(scope="module")
def tissue(volume):
    return synthetic_lesions.surroundings(*map(jnp.asarray, (*volume, SPACING)))


@functools.cache
def compiled(probability):
    add = functools.partial(synthetic_lesions.add, probability=probability)
    return jax.jit(jax.vmap(add, (0, None, None, None, None)))


def add(volume, tissue, probability=1.0, count=12):
    keys = jax.random.split(jax.random.key(1), count)
    found = compiled(probability)(keys, volume[0], volume[1], tissue, SPACING)
    return tuple(map(np.asarray, found))


def test_tissue_is_measured_about_the_lesions(volume, tissue):
    """Against all voxels at 2 to 5 mm from a lesion's, in all directions alike."""
    image, label, points = volume
    voxels = np.argwhere((label == 0) & (image[..., 0] != 0))
    ways = (voxels[None] - points[:128, None]) * SPACING
    distance = np.linalg.norm(ways, axis=-1)
    share = np.where((distance >= 2) & (distance <= 5), distance**-2.0, 0).sum(axis=0)
    around = image[tuple(voxels.T)].astype(np.float64)
    median = weighted_median(around, share)
    np.testing.assert_allclose(tissue.median, median, atol=0.04)
    deviation = 1.48 * weighted_median(np.abs(around - median), share)
    np.testing.assert_allclose(tissue.deviation, deviation, rtol=0.25)
    lesion = image[tuple(points.T)].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(tissue.change, lesion - tissue.median, rtol=1e-4)
    assert np.abs(median - HOST).max() < 0.1 < np.abs(RIM - HOST).max()


def weighted_median(x, weight):
    order = np.argsort(x, axis=0)
    below = np.cumsum(weight[order], axis=0) / weight.sum()
    return np.array(
        [
            x[o[b.searchsorted(0.5)], c]
            for c, (o, b) in enumerate(zip(order.T, below.T, strict=True))
        ]
    )


def test_lesions_are_drawn_in_that_tissue_alone(volume, tissue):
    image, label, _ = volume
    drawn, mask = add(volume, tissue)
    new = (mask > 0) & (label == 0)
    assert new.any(axis=(1, 2, 3)).mean() > 0.5
    host = np.abs(image - HOST).max(axis=-1) < 5 * GRAIN
    host &= image[..., 0] != 0
    near = ndimage.binary_dilation(host, np.ones((3, 3, 3)))
    assert not new[:, ~near].any()
    assert not (drawn != image)[:, ~near].any()
    np.testing.assert_array_equal(drawn[:, image == 0], 0)
    assert not mask[:, image[..., 0] == 0].any()
    assert (mask[:, label > 0] == 1).all()


def test_they_change_it_as_real_ones_do_and_leave_its_grain(volume, tissue):
    image, label, _ = volume
    drawn, mask = add(volume, tissue)
    low, high = synthetic_lesions.CHANGE
    inside = 0
    for one, found in zip(drawn, mask, strict=True):
        core = ndimage.binary_erosion((found > 0) & (label == 0), np.ones((3, 3, 3)))
        change = (one - image)[core] / np.asarray(tissue.change)
        inside += len(change)
        assert (change < 1.001 * high).all()
        assert (change > 0.45 * low).all()
        if len(change) > 30:  # The grain would add 0.07 and 0.1 to these.
            assert np.median(np.abs(change - np.median(change, axis=0))) < 0.02
    assert inside > 500


def test_the_mask_is_what_has_half_the_change(volume, tissue):
    image, label, _ = volume
    drawn, mask = add(volume, tissue)
    low, _ = synthetic_lesions.CHANGE
    some = ((mask > 0) & (label == 0)).any(axis=(1, 2, 3))
    assert some.sum() > 3
    for one, found in zip(drawn[some], mask[some], strict=True):
        change = ((one - image) / np.asarray(tissue.change))[image[..., 0] != 0]
        inside = ((found > 0) & (label == 0))[image[..., 0] != 0]
        beside = ((found == 0) & (label == 0))[image[..., 0] != 0]
        assert (change[inside] > 0.49 * low).all()
        assert (change[beside].max(axis=0) <= change[inside].min(axis=0) + 1e-3).all()


def test_patches_have_few_small_lesions_and_many_large_ones():
    depth = jax.jit(
        lambda key: synthetic_lesions._depth(key, (48, 48, 48), jnp.ones(3))
    )
    keys = jax.random.split(jax.random.key(0), 40)
    volumes = [np.sum(np.asarray(depth(key)) > 0) for key in keys]
    assert min(volumes) < 500
    assert max(volumes) > 20_000


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_a_share_of_the_patches_gets_them(volume, tissue, probability):
    image, label, _ = volume
    drawn, mask = add(volume, tissue, probability, count=60)
    changed = (drawn != image).any(axis=(1, 2, 3, 4))
    assert abs(changed.mean() - probability) <= 0.15 * (probability > 0)
    np.testing.assert_array_equal(
        mask[~changed], np.tile(label, (60 - changed.sum(), 1, 1, 1))
    )


def test_without_a_lesion_or_a_sequence_nothing_is_drawn(volume):
    image, label, points = volume
    healthy = image, np.zeros_like(label), np.zeros_like(points)
    tissue = synthetic_lesions.surroundings(*map(jnp.asarray, (*healthy, SPACING)))
    drawn, mask = add(healthy, tissue, count=4)
    np.testing.assert_array_equal(drawn, np.tile(image, (4, 1, 1, 1, 1)))
    assert not mask.any()
    missing = image.copy()
    missing[..., 1] = 0
    tissue = synthetic_lesions.surroundings(
        *map(jnp.asarray, (missing, label, points, SPACING))
    )
    drawn, mask = add((missing, label), tissue, count=4)
    assert not drawn[..., 1].any()
    assert (mask.sum(axis=(1, 2, 3)) > label.sum()).any()


def test_a_patch_gets_its_own_whatever_the_batch(volume):
    """By the volume's facts and the patch's key, in any batch and at any place of it."""
    image, label, points = volume
    batch = {
        "image": np.stack([image, -image]).astype(np.float16),
        "label": np.stack([label, label])[..., None].astype(np.uint8),
        "size": np.tile(np.array(SHAPE, np.int32), (2, 1)),
        "points": np.stack([points, points])[:, None],
        "present": np.ones((2, 1), bool),
        "presence": np.ones((2, 2), np.float32),
        "spacing": np.tile(SPACING, (2, 1)),
        "id": np.array([7, 8], np.int32),
        "epoch": np.zeros(2, np.int32),
        "occurrence": np.zeros(2, np.int32),
    }
    place = {"size": (16, 16, 16), "each": 3, "foreground": 0.5, "slices": False}

    @functools.partial(jax.jit, static_argnames="lesions")
    def augment(batch, lesions):
        key = jax.random.key(2)
        return patches.augment(key, batch, ops=(), lesions=lesions, **place)

    whole = augment(batch, 1.0)
    turned = augment({name: x[::-1] for name, x in batch.items()}, 1.0)
    for name in ("image", "label"):
        both = [
            np.asarray(x[name]).reshape(2, 3, *x[name].shape[1:])
            for x in (whole, turned)
        ]
        np.testing.assert_array_equal(both[0], both[1][::-1])
    plain = augment(batch, 0.0)
    assert np.sum(whole["label"]) > np.sum(plain["label"])
    assert (np.asarray(whole["label"]) >= np.asarray(plain["label"])).all()
