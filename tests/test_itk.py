"""ITK's transform files by hand, and against SimpleITK."""

import numpy as np
import pytest

from medjax.errors import InputError
from medjax.geometry import grid, itk

MATRIX = np.eye(4)
MATRIX[:3] += np.random.default_rng(0).normal(0, [0.1, 0.1, 0.1, 20], (3, 4))


def test_an_itk_file_holds_fixed_to_moving_in_lps(tmp_path):
    """A = turn of 90 degrees about z, c = (1, 2, 3), t = (10, 20, 30), by hand."""
    path = tmp_path / "t.txt"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 0 -1 0 1 0 0 0 0 1 10 20 30\nFixedParameters: 1 2 3\n"
    )
    # LPS (5, 2, 3) -> A (4, 0, 0) + c + t = (11, 26, 33); in RAS x and y negated.
    got = grid.apply(itk.read_itk(path), np.array([-5.0, -2.0, 3.0]))
    np.testing.assert_allclose(got, [-11, -26, 33])


def test_what_is_written_is_read_to_the_last_digit(tmp_path):
    itk.write_itk(tmp_path / "t.tfm", MATRIX)
    np.testing.assert_array_equal(itk.read_itk(tmp_path / "t.tfm"), MATRIX)


def test_simpleitk_reads_and_writes_the_same(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    itk.write_itk(tmp_path / "ours.txt", MATRIX)
    points = rng.uniform(-80, 80, (10, 3))
    flip = np.array([-1.0, -1, 1])

    def theirs(transform):
        return np.array([transform.TransformPoint(p) for p in points * flip]) * flip

    ours = sitk.ReadTransform(str(tmp_path / "ours.txt"))
    np.testing.assert_allclose(theirs(ours), grid.apply(MATRIX, points), rtol=1e-12)

    euler, zyx = sitk.Euler3DTransform(), sitk.Euler3DTransform()
    zyx.SetComputeZYX(True)
    versor, affine = sitk.VersorRigid3DTransform(), sitk.AffineTransform(3)
    versor.SetRotation((1.0, 2.0, -0.5), 2.8)
    versor.SetTranslation((4.0, -5.0, 6.0))
    affine.SetMatrix((np.eye(3) + rng.normal(0, 0.1, (3, 3))).ravel().tolist())
    for transform in (euler, zyx):
        transform.SetRotation(0.3, -0.5, 0.9)
        transform.SetTranslation((7.0, 8.0, -9.0))
    for transform in (euler, zyx, versor, affine):
        transform.SetCenter((10.0, -20.0, 30.0))
    shift = sitk.TranslationTransform(3, (1.0, 2.0, 3.0))
    for transform in (euler, zyx, versor, affine, shift):
        sitk.WriteTransform(transform, str(tmp_path / "theirs.txt"))
        got = grid.apply(itk.read_itk(tmp_path / "theirs.txt"), points)
        np.testing.assert_allclose(got, theirs(transform), atol=1e-9)


GOOD = (
    "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3"
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Parameters: 1 2 3\n", "does not begin with '#Insight"),
        ("", "does not begin"),
        (f"{GOOD}\nParameters: 1 0 0\n", "3 parameters and 0 fixed ones"),
        (f"{GOOD}\nParameters: one 0 0\n", "could not convert"),
        (f"{GOOD}\nParameters: {'0 ' * 12}\n", "can't be inverted"),
        (f"{GOOD}\nParameters: {'nan ' * 12}\n", "can't be inverted"),
        (f"{GOOD}\n#Transform 1\n{GOOD.splitlines()[2]}\n", "2 transforms, not one"),
        (GOOD.replace("Affine", "BSpline"), "'BSplineTransform' is none of"),
        (GOOD + "\u00e9", "is not text"),
    ],
)
def test_a_bad_transform_file_is_named(tmp_path, text, match):
    path = tmp_path / "bad.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=match) as error:
        itk.read_itk(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_transform_file_and_a_bad_matrix_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.txt: can't be read \(No such file"):
        itk.read_itk(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"matrix: \(3, 4\); give a finite \[4, 4\]"):
        itk.write_itk(tmp_path / "t.txt", np.eye(4)[:3])
