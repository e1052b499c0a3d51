"""Registration against a known motion: of a drawn head, and of a real one."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scans import itk_matrix, save, straight
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from medjax.data import brain_phantom, nifti, scan
from medjax.data.alignment import FLAT, placed
from medjax.errors import InputError
from medjax.geometry import grid, registration

OPTIMISED = pytest.mark.usefixtures("optimised")  # What computes for long.
RAW = Path(__file__).parents[2] / "shared/data/ms-raw-sample/patient01"


def moved(seed, about, degrees=15.0, millimetres=20.0):
    """A random motion of the world about a point, [4, 4]."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True)
    matrix = np.eye(4)
    matrix[:3, :3] = turn.as_matrix()
    shift = rng.uniform(-millimetres, millimetres, 3)
    matrix[:3, 3] = about + shift - matrix[:3, :3] @ about
    return matrix


def head(points):
    """Tissue of a head at points [..., 3] mm: skull, brain, ventricles, lesions."""
    labels = np.zeros(points.shape[:-1])
    for label, centre, radii in (
        (1, (0, 0, 0), (72, 90, 66)),  # scalp
        (2, (0, 0, 0), (66, 84, 60)),  # skull
        (3, (0, 2, 2), (60, 76, 53)),  # grey matter
        (4, (0, 4, 4), (50, 64, 43)),  # white matter
        (5, (9, 12, 10), (6, 24, 9)),  # ventricles
        (5, (-9, 10, 12), (6, 20, 8)),
        (6, (30, -22, 14), (8, 6, 9)),  # a lesion, on one side only
        (1, (0, 94, -12), (10, 14, 14)),  # nose
    ):
        inside = (((points - centre) / radii) ** 2).sum(-1) < 1
        labels[inside] = label
    # Folds of grey in the white, some 25 mm apart and nowhere the same.
    waves = np.random.default_rng(0).normal(0, 0.15, (3, 6))
    folds = np.sin(points @ waves + np.arange(6)).sum(-1) > 1
    labels[(labels == 4) & folds] = 3
    return labels.astype(int)


def drawn(shape, affine, colours, seed, matrix=None):
    """A head as a scanner sees it: colours of its tissues, blur and noise."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    points = grid.apply(affine, index)
    points = points if matrix is None else grid.apply(matrix, points)
    image = ndimage.gaussian_filter(np.array(colours, float)[head(points)], 0.6)
    noise = np.random.default_rng(seed).normal(0, 4, (2, *shape))
    return np.hypot(image + noise[0], noise[1])  # Rician


FIXED = (74, 90, 40)
FLAIR, T1 = (0, 200, 15, 140, 110, 20, 250), (0, 260, 20, 90, 150, 25, 95)


@functools.cache
def pair():
    """A FLAIR of 2.2 x 2.2 x 4 mm and a T1 of 1.8 x 2 x 3 mm of one head."""
    fixed_affine = straight(FIXED, (2.2, 2.2, 4.0), (3, -5, 8))
    shape = (90, 100, 48)
    moving_affine = straight(shape, (1.8, 2.0, 3.0), (-4, 2, 3))
    fixed = drawn(FIXED, fixed_affine, FLAIR, 0)
    return fixed, fixed_affine, drawn(shape, moving_affine, T1, 1), moving_affine


def brain(affine, shape=FIXED):
    points = grid.apply(affine, np.moveaxis(np.indices(shape), 0, -1))
    return points[head(points) >= 3]


def distance(found, truth, points):
    """The mean distance, in mm, of where two matrices take points."""
    apart = grid.apply(found, points) - grid.apply(truth, points)
    return np.linalg.norm(apart, axis=-1).mean()


def degrees(found, truth):
    turn = Rotation.from_matrix((found @ np.linalg.inv(truth))[:3, :3])
    return np.degrees(turn.magnitude())


@pytest.mark.slow
@OPTIMISED
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_a_turned_and_shifted_header_is_found_again(seed):
    fixed, fixed_affine, moving, moving_affine = pair()
    truth = moved(seed, about=np.array([5.0, -10.0, 20.0]))
    found = registration.register(fixed, fixed_affine, moving, truth @ moving_affine)
    points = brain(fixed_affine)
    assert distance(np.eye(4), truth, points) > 5
    assert degrees(found.matrix, truth) < 0.5
    middle = points.mean(0)
    gap = grid.apply(found.matrix, middle) - grid.apply(truth, middle)
    assert np.linalg.norm(gap) < 0.5
    assert distance(found.matrix, truth, points) < 0.5
    assert found.metric > found.start_metric + 0.05
    linear = found.matrix[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-5)


@pytest.fixture
def coarse(monkeypatch):
    """The last level takes a dozen seconds more."""
    monkeypatch.setattr(registration, "PYRAMID", registration.PYRAMID[:2])


def test_what_is_no_better_than_the_headers_says_so_and_keeps_them(monkeypatch, coarse):
    def astray(level, starts, rate):
        return starts + 9, registration._similarities(level, starts + 9)

    monkeypatch.setattr(registration, "_climb", astray)
    found = registration.register(*pair())
    assert found.metric == found.start_metric > 1.2
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def test_images_that_do_not_meet_are_moved_onto_each_other_always_alike(coarse):
    fixed, fixed_affine, moving, moving_affine = pair()
    away = moved(0, about=np.zeros(3))
    away[:3, 3] += 1000, -500, 300
    found, again = (
        registration.register(fixed, fixed_affine, moving, away @ moving_affine)
        for _ in range(2)
    )
    np.testing.assert_array_equal(found.matrix, again.matrix)
    assert found.start_metric == 0
    assert distance(found.matrix, away, brain(fixed_affine)) < 0.5


@pytest.mark.slow
@OPTIMISED
@pytest.mark.parametrize("sequence", ["T1W", "T2W"])
def test_real_sequences_come_within_a_millimetre_of_their_reference(sequence):
    """Foreground: FLAIR above a third of its bright tissue, 9 mm inside the head."""
    if not RAW.exists():
        pytest.skip(f"{RAW} is absent")
    nibabel = pytest.importorskip("nibabel")
    images = [nibabel.load(RAW / f"study1_{s}.nii.gz") for s in ("FLAIR", sequence)]
    fixed, moving = (np.asarray(image.dataobj, np.float32) for image in images)
    fixed_affine, moving_affine = (image.affine for image in images)
    tissue = fixed > 0.3 * np.quantile(fixed[fixed > 0], 0.9)
    tissue = ndimage.binary_fill_holes(ndimage.binary_opening(tissue, iterations=2))
    inner = ndimage.binary_erosion(tissue, np.ones((3, 3, 1)), iterations=12)
    points = grid.apply(fixed_affine, np.argwhere(inner)[::97])
    reference = itk_matrix(RAW / f"study1_{sequence}_intrastudy_to_FLAIR.txt")
    middle = (np.array(moving.shape) - 1) / 2
    spoil = moved(0, about=grid.apply(moving_affine, middle))
    truth = spoil @ reference
    found = registration.register(fixed, fixed_affine, moving, spoil @ moving_affine)
    assert distance(np.eye(4), truth, points) > 5
    assert distance(found.matrix, truth, points) < 1
    assert found.metric > found.start_metric


def mirrored(image, affine):
    """The image on the same grid, seen in a mirror across the first axis."""
    affine = affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] -= affine[:3, 0] * (image.shape[0] - 1)
    return image, affine


@pytest.mark.slow
@OPTIMISED
def test_only_a_patients_own_sequences_fit_sharply():
    """Sequences of the phantom: another person's and mirrored ones are refused."""

    def align(*images):
        fixed, moving = (
            nifti.Volume(voxels, affine, scan.Grid(voxels.shape, affine))
            for voxels, affine in zip(images[::2], images[1::2], strict=True)
        )
        placed(fixed, Path("first"), moving, Path("other"), "align", compare=False)

    patients = [
        brain_phantom.patient(n, seed=0, shape=(64, 80, 64), spacing=(2.5, 2.5, 2.5))
        for n in range(3)
    ]
    motion = moved(3, about=np.zeros(3), degrees=8.0, millimetres=8.0)
    for a, b in ((0, 1), (1, 2)):
        fixed = patients[a].image[..., 0], patients[a].affine
        for channel in (1, 3):
            own, other = (patients[n].image[..., channel] for n in (a, b))
            affine = motion @ patients[a].affine
            align(*fixed, own, affine)
            for moving in (mirrored(own, affine), (other, affine)):
                with pytest.raises(InputError, match="another person, a mirror image"):
                    align(*fixed, *moving)


FAR = ("other", "shifted")


def test_sequences_of_one_grid_are_compared_as_they_lie(tmp_path, caplog):
    """A phantom's own, another's, a mirrored and a shifted one: all but the own warn."""
    own, other = (
        brain_phantom.patient(n, seed=0, shape=(64, 80, 64), spacing=(2.5, 2.5, 2.5))
        for n in range(2)
    )
    first, t1 = own.image[..., 0], own.image[..., 1]
    for name, moving in {
        "own": t1,
        "other": other.image[..., 1],
        "mirrored": t1[:, :, ::-1],
        "shifted": np.roll(t1, 2, axis=1),
    }.items():
        files = {}
        for sequence, voxels in (("FLAIR", first), ("T1", moving)):
            path = save(tmp_path / name / f"{sequence}.nii.gz", voxels, own.affine)
            files[sequence] = nifti.SequenceFile(path)
        caplog.clear()
        (alignment,) = scan.read_scan(files, regions={}).alignments
        assert alignment.sequence == "T1"
        said = f"{name}/T1.nii.gz: may be of another person" in caplog.text
        assert said == (name != "own")
        twin = alignment.mirrored > alignment.before
        assert (twin, alignment.beside > 0.9) == (name == "mirrored", name in FAR)
    # The same share by plain joint histograms of the whole image.
    at, beside, mirrored = registration.compare(first, t1, own.affine)
    turned = registration.compare(first, t1[:, :, ::-1], own.affine)
    np.testing.assert_allclose((turned[2], turned[0]), (at, mirrored), rtol=1e-5)
    a, b = (np.clip(v / np.quantile(v, 0.998), 0, 1) for v in (first, t1))
    moves = [
        (0, 0, 0),
        *(s * 2 * np.eye(3, dtype=int)[k] for k in range(3) for s in (1, -1)),
    ]
    values = []
    for move in moves:
        joint, _, _ = np.histogram2d(a.ravel(), np.roll(b, move, (0, 1, 2)).ravel(), 16)
        h = [stats.entropy(p.ravel()) for p in (joint.sum(0), joint.sum(1), joint)]
        values.append((h[0] + h[1]) / h[2] - 1)
    assert beside == pytest.approx(np.mean(values[1:]) / values[0], abs=0.05)


def test_images_of_a_few_voxels_are_not_compared():
    image = np.random.default_rng(0).random((3, 40, 40))
    assert np.isnan(registration.compare(image, image, np.eye(4) * 2)).all()


@pytest.mark.slow
@OPTIMISED
def test_a_real_study_fits_sharply_and_its_mirror_image_does_not():
    if not RAW.exists():
        pytest.skip("needs shared/data/ms-raw-sample")
    fixed, moving = (
        (volume.voxels, volume.affine)
        for volume in (nifti.read(RAW / f"study1_{s}.nii.gz") for s in ("FLAIR", "T1W"))
    )
    assert registration.register(*fixed, *moving).beside < FLAT
    other_side = mirrored(moving[0].transpose(2, 1, 0), moving[1][:, [2, 1, 0, 3]])
    assert registration.register(*fixed, *other_side).beside > FLAT


@pytest.mark.slow
@OPTIMISED
def test_the_gradient_of_a_motion_is_that_of_finite_differences():
    """In float64, and of a smooth image: linear interpolation has kinks."""
    rng = np.random.default_rng(0)
    moving = ndimage.gaussian_filter(rng.random((20, 22, 12)), 3)
    with jax.enable_x64(True):
        level = registration.Level(
            points=jnp.asarray(rng.uniform(-15, 15, (16 * 27, 3))),
            fixed=jnp.asarray(rng.random(16 * 27)),
            weight=jnp.asarray(rng.random(16 * 27)),
            moving=jnp.asarray(registration._unit(moving)[..., None], float),
            base=jnp.asarray(np.linalg.inv(straight(moving.shape, (2.0, 1.5, 4.0)))),
            radius=jnp.asarray(20.0),
        )
        value = jax.jit(functools.partial(registration._similarity, level=level))
        p = jnp.asarray(rng.normal(size=6))
        gradient = jax.jit(jax.grad(value))(p)
        for axis in range(6):
            step = 1e-6 * np.eye(6)[axis]
            slope = (value(p + step) - value(p - step)) / 2e-6
            np.testing.assert_allclose(gradient[axis], slope, rtol=1e-4, atol=1e-7)
        assert np.abs(gradient).min() > 0


def test_a_motion_of_one_millimetre_moves_the_radius_by_one():
    radius, p = 50.0, np.eye(6, dtype=np.float32)[2]
    linear, shift = registration._motion(p, radius)
    point = np.array([radius, 0, 0])
    moved_by = linear @ point + shift - point
    np.testing.assert_allclose(np.linalg.norm(moved_by), 1, rtol=1e-3)
    linear, _ = registration._motion(np.float32([20, -30, 10, *[0] * 3]), radius)
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)


# ------------------------------------------- the similarity, against numpy's histogram


def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


def test_nmi_is_that_of_a_smoothed_histogram():
    """On the bins the spline is 1/6, 4/6, 1/6; the outer bins are left free."""
    rng = np.random.default_rng(0)
    inner = registration.BINS - 2
    fixed = rng.integers(0, inner, (40, 50))
    moving = (fixed // 2 + rng.integers(0, 9, fixed.shape)) % inner
    weight = rng.random(fixed.shape)
    edges = np.arange(registration.BINS + 1) - 0.5
    joint, _, _ = np.histogram2d(
        *(x.ravel() + 1.0 for x in (fixed, moving)), edges, weights=weight.ravel()
    )
    for axis in (0, 1):
        joint = ndimage.convolve1d(joint, [1 / 6, 4 / 6, 1 / 6], axis, mode="constant")
    joint /= joint.sum()
    apart = entropy(joint.sum(0)) + entropy(joint.sum(1))
    got = registration.nmi(
        *(jnp.asarray(x.ravel() / (inner - 1), jnp.float32) for x in (fixed, moving)),
        jnp.asarray(weight.ravel(), jnp.float32),
    )
    np.testing.assert_allclose(got, apart / entropy(joint), rtol=1e-5)


def test_nmi_ignores_colours_and_tells_nothing_from_everything():
    rng = np.random.default_rng(0)
    fixed = jnp.asarray(rng.random(200_000), jnp.float32)
    other = jnp.asarray(rng.random(200_000), jnp.float32)
    one = jnp.ones_like(fixed)
    np.testing.assert_allclose(registration.nmi(fixed, other, one), 1, atol=2e-3)
    same = registration.nmi(fixed, fixed, one)
    np.testing.assert_allclose(registration.nmi(fixed, 1 - fixed, one), same, rtol=1e-3)
    assert same > 1.4
    assert registration.nmi(fixed, other, 0 * one) == 0
