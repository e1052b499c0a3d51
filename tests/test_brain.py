"""The phantom's claims: nested truth, contrasts as in the clinic, files as BraTS's."""

import nibabel
import numpy as np
import pytest
from scans import save_phantoms
from scipy import ndimage

from medjax.data import brain_phantom, nifti
from medjax.errors import InputError

SMALL = {"shape": (40, 48, 40), "spacing": (4.0, 4.2, 4.0)}
TINY = {"shape": (20, 25, 20), "spacing": (8.0, 8.0, 8.0)}


@pytest.fixture(scope="module")
def cohort():
    return [brain_phantom.patient(n, seed=3) for n in range(6)]


def draw(number, **options):
    return brain_phantom.patient(number, **{"seed": 3} | SMALL | options)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_arrays_are_as_promised(cohort):
    for one in cohort:
        assert (
            one.image.shape == (*brain_phantom.SHAPE, 4)
            and one.image.dtype == np.float32
        )
        assert (
            one.label.shape == (*brain_phantom.SHAPE, 3) and one.label.dtype == np.uint8
        )
        assert (one.image == np.rint(one.image)).all() and one.image.max() < 2**15
        inside = (one.image > 0).all(axis=-1)
        np.testing.assert_array_equal(inside, (one.image > 0).any(axis=-1))
        assert ndimage.label(inside)[1] == 1
        edge = inside.copy()
        edge[1:-1, 1:-1, 1:-1] = False
        assert edge.sum() < 30  # Of the cord at most: the brain fits in.
        assert 1100 < inside.sum() * np.prod(brain_phantom.SPACING) / 1000 < 1800  # ml


def test_the_regions_are_nested_and_lie_in_the_brain(cohort):
    for one in cohort:
        whole, core, enhancing = np.moveaxis(one.label > 0, -1, 0)
        assert not (core & ~whole).any() and not (enhancing & ~core).any()
        assert (one.image[whole] > 0).all()
        assert whole.sum() > core.sum() > enhancing.sum()


def test_the_enhancing_part_is_a_rim_around_necrosis(cohort):
    rims = [one.label > 0 for one in cohort if one.label[..., 2].any()]
    assert len(rims) > 3
    for _, core, enhancing in (np.moveaxis(rim, -1, 0) for rim in rims):
        deep = ndimage.distance_transform_edt(core)
        assert enhancing[deep == 1].mean() > 0.8  # The core's surface,
        necrosis = deep[core & ~enhancing]
        assert necrosis.mean() > deep[enhancing].mean() + 0.1  # not its middle.


def test_the_whole_tumour_is_between_half_and_five_percent_of_the_voxels():
    share = [draw(n, **TINY).label[..., 0].mean() for n in range(30)]
    assert 0.005 < min(share) and max(share) < 0.06 and 0.015 < np.mean(share) < 0.03


def test_a_patient_depends_on_seed_and_number_alone():
    alone = draw(5)
    draw(4)
    np.random.seed(1)
    assert same(alone, draw(5))
    assert not np.array_equal(alone.label, draw(6).label)
    assert not np.array_equal(alone.label, draw(5, seed=4).label)


def test_the_truth_is_the_same_at_every_resolution():
    shape = tuple(3 * n for n in SMALL["shape"])  # A voxel's centre stays one.
    fine = draw(1, shape=shape, spacing=tuple(s / 3 for s in SMALL["spacing"]))
    coarse = draw(1)
    middle = fine.label[1::3, 1::3, 1::3]
    overlap = 2 * (middle & coarse.label).sum((0, 1, 2))
    overlap = overlap / (middle.sum((0, 1, 2)) + coarse.label.sum((0, 1, 2)))
    assert (overlap > 0.98).all()
    at = fine.affine @ (1, 1, 1, 1)
    np.testing.assert_allclose(coarse.affine @ (0, 0, 0, 1), at, atol=1e-9)


def medians(number, monkeypatch):
    """The median of each sequence in voxels that are of one tissue, by tissue."""
    kept, original = [], brain_phantom._shares
    monkeypatch.setattr(
        brain_phantom, "_shares", lambda *a: kept.append(original(*a)) or kept[0]
    )
    image = brain_phantom.patient(number, seed=3, without_enhancing=0).image
    monkeypatch.undo()
    pure = {t: s > 0.8 for t, s in zip(brain_phantom.TISSUES, kept[0], strict=True)}
    pure = {t: mask & (image[..., 0] > 0) for t, mask in pure.items()}
    return {t: np.median(image[m], axis=0) for t, m in pure.items() if m.sum() > 20}


def test_tissues_differ_on_each_sequence_as_in_the_clinic(monkeypatch):
    patients = [medians(number, monkeypatch) for number in range(6)]
    assert sum("spot" in one for one in patients) > 3
    for sequence, *tissues in (
        ("t1", "white", "grey", "csf"),
        ("t1", "white", "necrosis", "csf"),
        ("t1ce", "enhancing", "white", "grey", "csf"),
        ("t1ce", "enhancing", "oedema", "necrosis"),
        ("t2", "csf", "grey", "white"),
        ("t2", "csf", "oedema", "white"),
        ("flair", "grey", "white", "csf"),
        ("flair", "oedema", "grey"),
        ("flair", "oedema", "necrosis", "csf"),
        ("flair", "spot", "grey"),  # It misleads a threshold.
    ):
        channel = brain_phantom.SEQUENCES.index(sequence)
        for one in patients:
            values = [one[tissue][channel] for tissue in tissues if tissue in one]
            assert values == sorted(values, reverse=True), (sequence, tissues, values)


def test_scanners_differ():
    brightness = np.array(
        [np.median(p.image[p.image[..., 0] > 0], axis=0) for p in map(draw, range(8))]
    )
    ratio = np.log(brightness)
    assert (ratio.std(axis=0) > 0.2).all()  # In each sequence,
    assert np.abs(np.corrcoef(ratio.T)[np.triu_indices(4, 1)]).max() < 0.95  # alone.


def test_no_threshold_on_flair_finds_the_whole_tumour(cohort):
    best = []
    for one in cohort:
        inside = one.image[..., 3] > 0
        value, truth = one.image[..., 3][inside], one.label[..., 0][inside]
        order = np.argsort(-value)
        found = np.cumsum(truth[order])
        best.append(np.max(2 * found / (np.arange(1, len(found) + 1) + truth.sum())))
    assert np.mean(best) < 0.75


def test_the_shares_without_tumour_or_enhancing_are_obeyed():
    some = [draw(n, without_tumour=0.5, **TINY).label[..., 0].any() for n in range(24)]
    assert 5 <= sum(some) <= 19
    assert not draw(0, without_tumour=1.0).label.any()
    for number in range(3):
        solid, ring = (draw(number, without_enhancing=s).label for s in (1.0, 0.0))
        np.testing.assert_array_equal(solid[..., :2], ring[..., :2])
        assert not solid[..., 2].any() and ring[..., 2].any()
    solid = [
        not draw(n, without_enhancing=0.5, **TINY).label[..., 2].any()
        for n in range(24)
    ]
    assert 5 <= sum(solid) <= 19


def test_a_brain_without_a_tumour_is_the_one_that_would_have_it():
    ill, healthy = draw(2), draw(2, without_tumour=1.0)
    far = ndimage.distance_transform_edt(ill.label[..., 0] == 0) > 15
    np.testing.assert_array_equal(ill.image[far], healthy.image[far])
    assert not np.array_equal(ill.image, healthy.image)


def test_without_a_tumour_nothing_is_pushed_aside(monkeypatch):
    healthy = draw(2, without_tumour=1.0, **TINY)
    monkeypatch.setitem(brain_phantom.TUMOUR, "push", (0.0, 0.0))
    assert same(healthy, draw(2, without_tumour=1.0, **TINY))
    monkeypatch.setitem(brain_phantom.TUMOUR, "push", (7.0, 7.0))
    moved = draw(2, **TINY)
    monkeypatch.setitem(brain_phantom.TUMOUR, "push", (0.0, 0.0))
    assert not same(moved, draw(2, **TINY))


def test_the_darkest_tissue_is_told_from_the_outside(monkeypatch):
    usual = draw(0, **TINY).image
    monkeypatch.setitem(brain_phantom.TISSUES, "csf", (0.0,) * 4)
    monkeypatch.setitem(brain_phantom.SCANNER, "noise", (0.0, 0.0))
    dark = draw(0, **TINY).image
    np.testing.assert_array_equal(dark > 0, usual > 0)
    assert dark[dark > 0].min() == 1


def test_files_are_read_back_by_nibabel_and_by_us(tmp_path):
    folders = save_phantoms(tmp_path, [7, 2], seed=3, **SMALL)
    assert [f.name for f in folders] == ["brain_007", "brain_002"]
    one = draw(7)
    files = sorted(f.name for f in folders[0].iterdir())
    assert files == sorted(
        f"brain_007_{part}.nii.gz" for part in (*brain_phantom.SEQUENCES, "seg")
    )
    for channel, name in enumerate(brain_phantom.SEQUENCES):
        path = folders[0] / f"brain_007_{name}.nii.gz"
        image = nibabel.load(path)
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        voxels = np.asarray(image.dataobj)
        np.testing.assert_array_equal(voxels.T, one.image[..., channel])
        volume = nifti.read(path)
        np.testing.assert_array_equal(volume.voxels, one.image[..., channel])
        np.testing.assert_allclose(volume.affine, one.affine, atol=1e-5)
    seg = nifti.read(folders[0] / "brain_007_seg.nii.gz").voxels
    assert set(np.unique(seg)) <= {0, 1, 2, 4}
    regions = [seg > 0, (seg == 1) | (seg == 4), seg == 4]
    np.testing.assert_array_equal(np.stack(regions, axis=-1), one.label)


def test_a_size_that_is_none_is_an_error():
    for wrong in ({"shape": (2, 80, 64)}, {"spacing": (0.0, 1.0, 1.0)}):
        with pytest.raises(InputError, match="give three sizes"):
            brain_phantom.patient(0, seed=0, **wrong)
