"""Measured on cases whose numbers are known, and on real and synthetic brains."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medjax.data import brain_phantom, fingerprint, nifti
from medjax.evaluation import bootstrap

MS = Path(__file__).parents[2] / "shared/data/ms-lesion-sample"
RNG = np.random.default_rng(0)


def case(image, label=None, spacing=(1.0, 1.0, 1.0)):
    return SimpleNamespace(
        foreground="body", image=image, label=label, spacing=np.array(spacing)
    )


def some(number=4, channels=2, regions=2):
    """Cases of noise in a box of varied size, with 0 around it."""
    cases = []
    for n in range(number):
        image = np.zeros((6 + n, 9, 12, channels), np.float32)
        image[1:4, 2:7, 3:] = RNG.normal(5, 1, (3, 5, 9, channels))
        label = RNG.random((*image.shape[:3], regions)) < 0.1
        cases.append(case(image, label.astype(np.uint8), (1.0 + n, 0.5, 0.25)))
    return cases


def measure(cases, sequences=("a", "b"), regions=("x", "y")):
    return fingerprint.measure(cases, sequences=sequences, regions=regions)


def test_the_moments_are_those_of_all_voxels_at_once():
    cases = some()
    found = measure(iter(cases))
    for pool, inside in (
        (found.inside, [c.image.any(axis=-1) for c in cases]),
        (found.foreground, [c.label.any(axis=-1) for c in cases]),
    ):
        values = [c.image[m] for c, m in zip(cases, inside, strict=True)]
        values = np.concatenate(values).astype(float)
        np.testing.assert_allclose(pool[:, 0], values.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(pool[:, 1], values.std(axis=0), rtol=1e-6)
        ranks = np.percentile(values, (0.5, 50, 99.5), axis=0)
        np.testing.assert_allclose(pool[:, 2:].T, ranks, rtol=1e-6)


def test_the_sample_of_many_voxels_has_their_percentiles():
    image = RNG.normal(3, 2, (40, 40, 40, 1)).astype(np.float32)
    found = measure([case(image)] * 2, ("a",), ())
    exact = np.percentile(image, (0.5, 50, 99.5))
    np.testing.assert_allclose(found.inside[0, 2:], exact, atol=0.8)
    assert abs(found.inside[0, 3] - exact[1]) < 0.15


def test_sizes_and_boxes_are_kept_case_by_case():
    found = measure(some())
    np.testing.assert_array_equal(found.shape[:, 0], (6, 7, 8, 9))
    np.testing.assert_array_equal(found.box, [[3, 5, 9]] * 4)
    np.testing.assert_array_equal(found.spacing[:, 0], (1, 2, 3, 4))


def test_volumes_are_in_ml_and_lesions_touch_by_corners():
    label = np.zeros((10, 10, 10, 1), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    label[3, 3, 3] = 1  # By a corner only.
    label[7, 7, 7] = 1
    image = np.ones((10, 10, 10, 1), np.float32)
    found = measure([case(image, label, (2.0, 5.0, 10.0))], ("a",), ("x",))
    assert found.volume[0, 0] == 10 * 0.1  # Ten voxels of 100 mm^3.
    assert found.lesions[0, 0] == 2


def test_missing_labels_and_sequences_are_counted_as_such():
    cases = some()
    cases[0].label = None
    cases[1].label[..., 1] = 0
    cases[2].image[..., 1] = 0
    found = measure(cases)
    assert np.isnan(found.volume[0]).all() and np.isfinite(found.volume[1:]).all()
    np.testing.assert_array_equal(found.present[:, 1], (1, 1, 0, 1))
    text = "\n".join(fingerprint.describe(found))
    assert "x: in 3 of 3 labelled scans" in text
    assert "y: in 2 of 3 labelled scans" in text
    assert "a: in 4 scans" in text and "b: in 3 scans" in text
    for one in cases:
        one.label = None
    text = "\n".join(fingerprint.describe(measure(cases)))
    assert "in the regions" not in text and "0 of 0 labelled" in text


def test_only_one_case_is_held_at_a_time():
    given, alive = [], []

    def stream():
        for _ in range(3):
            one = some(1)[0]
            given.append(weakref.ref(one.image))
            yield one
            del one
            gc.collect()
            alive.append(sum(image() is not None for image in given))

    measure(stream())
    assert alive == [1, 1, 1]  # The one that the loop has just used.


def test_what_is_written_is_json_without_nan():
    cases = some()
    cases[0].label = None
    found = measure(cases)
    for one in (found, fingerprint.propose(found)):
        back = json.loads(json.dumps(bootstrap.as_json(one), allow_nan=False))
        assert list(back) == list(one._fields)
    back = bootstrap.as_json(found)
    assert back["volume"][0] == [None, None]
    np.testing.assert_array_equal(back["box"], found.box)


def test_the_proposal_covers_the_phantoms_brain():
    size = {"shape": (32, 40, 32), "spacing": (5.0, 5.0, 5.0)}
    people = (brain_phantom.patient(n, seed=0, **size) for n in range(3))
    cases = (case(person.image, person.label, size["spacing"]) for person in people)
    found = measure(cases, brain_phantom.SEQUENCES, brain_phantom.REGIONS)
    one = fingerprint.propose(found)
    assert one.spacing == (5, 5, 5) and (np.array(one.shape) <= (32, 40, 32)).all()
    assert (found.lesions[:, 0] >= 1).all() and (found.volume[:, 0] > 20).all()
    t1ce = brain_phantom.SEQUENCES.index("t1ce")
    assert found.foreground[t1ce, 1] > found.inside[t1ce, 1] / 2


@pytest.mark.slow
@pytest.mark.skipif(not MS.exists(), reason="the shared MS sample isn't here")
def test_real_brains_have_many_small_lesions():
    names = ("FLAIR", "T1", "T1POST", "T2")

    def cases():
        for folder in sorted(MS.iterdir()):
            read = [nifti.read(folder / f"{name}.nii.gz") for name in names]
            lesion = nifti.read(folder / "lesion.nii.gz").voxels[..., None]
            image = np.stack([volume.voxels for volume in read], axis=-1)
            yield case(image, lesion, read[0].spacing)

    found = measure(cases(), names, ("lesion",))
    assert (found.shape == (182, 218, 182)).all()
    assert (found.lesions > 5).all() and (found.volume > 0.5).all()
    flair = found.foreground[0, 0], found.inside[0, 0]
    assert flair[0] > flair[1]  # Lesions are bright on FLAIR.
    one = fingerprint.propose(found)
    assert one.spacing == (1, 1, 1) and np.prod(one.patch) <= 128**3
