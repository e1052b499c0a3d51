"""The floor of masks that `explore` prints: what logistic regression reads off voxels."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from configs import base
from medjax.data import volumes
from medjax.tasks import scans, voxel_floor

SHAPE, SPACING = (9, 11, 12), (1.0, 2.0, 1.5)
PATIENTS = np.array([1, 1, 2, 3, 4, 5, 6])  # 6 is the test.
REGIONS = {"bright": (1,), "behind": (2,)}


def example(folder):
    """Volumes [N, D, H, W, 2] of noise, their masks, and both as `floor` reads them."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(len(PATIENTS), *SHAPE, 2)).astype(np.float16)
    image[:, :, :, :2] = 0  # Background.
    noise = 0.5 * rng.normal(size=(2, len(PATIENTS), *SHAPE))
    around = ndimage.gaussian_filter(image[..., 1].astype(float), (0, 1, 1, 1)) * 4
    bright = image[..., 0] + around + noise[0] > 2.6
    behind = np.arange(SHAPE[1])[:, None] / 3 + noise[1] > 3.6
    label = np.stack([bright, behind], axis=-1) & (image != 0).any(-1, keepdims=True)
    label[-1] = ~label[-1]
    for n in range(len(PATIENTS)):
        np.save(folder / f"{n}.image.npy", image[n])
        np.save(folder / f"{n}.label.npy", label[n].astype(np.uint8))
    ids, axes = np.arange(len(PATIENTS)), zip(volumes.SPACING_COLUMNS, SPACING)
    table = pd.DataFrame({"id": ids, "image": ids.astype(str), "patient": PATIENTS})
    table = table.assign(**dict(axes), volume=ids, half="whole", bright=1.0, behind=1.0)
    prepared = volumes.Prepared(folder, table, ("T1", "T2"), REGIONS)
    output = scans.MasksOutput(("T1", "T2"), REGIONS)
    return image, label, scans.ScanData(folder, table, output, prepared)


def floor(data):
    split = np.where(PATIENTS == 6, "test", "train")
    config = base.segmentation("folders")
    return voxel_floor.floor(config, data, data.table.assign(split=split))


def features(image):
    """[D, H, W, F] in float64: intensities, their mean about them, and the place."""
    image = image.astype(float)
    around = [
        ndimage.gaussian_filter(image[..., c], np.divide(2, SPACING)) for c in (0, 1)
    ]
    d, h, w = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    place = [d, h, w, d * d, h * h, w * w, d * h, d * w, h * w]
    return np.concatenate([image, np.stack([*around, *place], axis=-1)], axis=-1)


def dice(score, threshold, label):
    drawn = score >= threshold
    return 2 * (drawn & label).sum() / (drawn.sum() + label.sum())


def oracle(image, label):
    """[N, 2, K]: scikit-learn's, by all voxels of all other patients but the test."""
    inside = (image != 0).any(axis=-1)
    feature = [features(i)[at] for i, at in zip(image, inside)]
    label = [true[at] for true, at in zip(label, inside)]
    rows = []
    for n in np.flatnonzero(PATIENTS != 6):
        learnt = np.flatnonzero((PATIENTS != 6) & (PATIENTS != PATIENTS[n]))
        x, y = (np.concatenate([part[m] for m in learnt]) for part in (feature, label))
        scaler = StandardScaler().fit(x)
        row = []
        for k in range(2):
            model = LogisticRegression(C=1e3, max_iter=2000).fit(
                scaler.transform(x), y[:, k]
            )
            score, own = (
                model.decision_function(scaler.transform(f)) for f in (x, feature[n])
            )
            best = max(np.unique(score), key=lambda t: dice(score, t, y[:, k]))
            highest = max(dice(own, t, label[n][:, k]) for t in own)
            row.append((dice(own, best, label[n][:, k]), highest))
        rows.append(np.transpose(row))
    return np.array(rows)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    image, label, data = example(tmp_path_factory.mktemp("scans"))
    return data, oracle(image, label)


def check(found, expected, tolerance):
    expected = expected.mean(axis=0)  # Over volumes: [2, K].
    for n, name in enumerate(("dice", "best_dice")):
        both = [found[region][name].estimate for region in REGIONS]
        np.testing.assert_allclose(both, expected[n], atol=tolerance)
        assert found["mean"][name].estimate == pytest.approx(np.mean(both))


def test_the_floor_of_masks_is_that_of_scikit_learn_and_sees_no_test_volume(known):
    data, expected = known
    assert 0.3 < expected.min() and expected.max() < 0.9
    check(floor(data), expected, 0.01)


def test_a_sample_of_the_voxels_has_the_floor_of_all(known, monkeypatch):
    """Few of them are in a region, so thresholds must know what each stands for."""
    data, expected = known
    monkeypatch.setattr(voxel_floor, "VOXELS", 100)
    check(floor(data), expected, 0.05)


def test_where_no_patient_has_a_region_none_is_drawn(tmp_path):
    _, label, data = example(tmp_path)
    for n in range(len(PATIENTS)):
        np.save(
            tmp_path / f"{n}.label.npy", (label[n] * [False, True]).astype(np.uint8)
        )
    bright = floor(data)["bright"]
    assert bright["dice"].estimate == bright["best_dice"].estimate == 1


def test_one_patient_has_no_floor(known):
    data, _ = known
    first = data._replace(table=data.table[data.table["patient"] == 1])
    manifest = first.table.assign(split="train")
    assert voxel_floor.floor(base.segmentation("folders"), first, manifest) == {}
    assert "none" in voxel_floor.describe({})
