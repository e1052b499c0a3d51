"""Affine transforms in ITK's text files, as ITK, ANTs and 3D Slicer read them.

ITK maps *fixed* points to *moving* points, y = A (x - c) + c + t, in LPS
millimetres. Here both are the same map as one matrix, in NIfTI's RAS: x and y
change their sign.

Source: itk::MatrixOffsetTransformBase, itk::Euler3DTransform, itk::VersorTransform.
"""

from pathlib import Path

import numpy as np

from medjax.errors import InputError

HEADER = "#Insight Transform File V1.0"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
REMEDY = "save it as an ITK text file (.txt or .tfm) of one affine or rigid transform"


def read_itk(path) -> np.ndarray:
    """Reads an affine or rigid transform.

    Args:
      path: a text file of one AffineTransform, MatrixOffsetTransformBase,
        Euler3DTransform, VersorRigid3DTransform or TranslationTransform.

    Returns:
      [4, 4] float64, fixed to moving points in RAS millimetres.
    """
    name, parameters, fixed = _fields(Path(path))
    if name not in LINEAR:
        options = ", ".join(LINEAR)
        raise InputError(f"{path}: {name!r} is none of {options}; {REMEDY}")
    count, linear = LINEAR[name]
    if parameters.size != count + 3 or fixed.size not in (0, 3, 4):
        raise InputError(
            f"{path}: {parameters.size} parameters and {fixed.size} fixed ones, "
            f"where {name} has {count + 3} and 3; {REMEDY}"
        )
    a, shift = linear(parameters[:count], fixed), parameters[count:]
    centre = fixed[:3] if fixed.size else np.zeros(3)
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = a, shift + centre - a @ centre
    if not np.isfinite(lps).all() or abs(np.linalg.det(a)) < 1e-9:
        raise InputError(f"{path}: the matrix can't be inverted; {REMEDY}")
    return RAS_TO_LPS @ lps @ RAS_TO_LPS


def write_itk(path, matrix) -> None:
    """Writes an affine transform that `read_itk` returns to the last digit.

    Args:
      path: the file, .txt or .tfm.
      matrix: [4, 4], fixed to moving points in RAS millimetres.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(f"matrix: {matrix.shape}; give a finite [4, 4] one")
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    numbers = [*lps[:3, :3].ravel(), *lps[:3, 3]]
    lines = [
        HEADER,
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        f"Parameters: {' '.join(repr(float(x)) for x in numbers)}",
        "FixedParameters: 0 0 0",
    ]
    Path(path).write_text("\n".join(lines) + "\n")


def _fields(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """The transform's name without its types, its parameters and fixed parameters."""
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text; {REMEDY}") from error
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    names = [value for key, value in pairs if key == "Transform"]
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise InputError(f"{path}: does not begin with {HEADER!r}; {REMEDY}")
    if len(names) != 1:
        raise InputError(f"{path}: {len(names)} transforms, not one; {REMEDY}")
    values = dict(pairs)
    try:
        parameters, fixed = (
            np.array(values.get(key, "").split(), np.float64)
            for key in ("Parameters", "FixedParameters")
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from error
    return names[0].strip().split("_")[0], parameters, fixed


def _matrix(parameters, fixed) -> np.ndarray:
    return parameters.reshape(3, 3)


def _euler(parameters, fixed) -> np.ndarray:
    """Angles about x, y, z: Rz Rx Ry, or Rz Ry Rx where a fourth fixed one says so."""
    c, s = np.cos(parameters), np.sin(parameters)
    x = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    y = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    z = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    return z @ y @ x if fixed.size == 4 and fixed[3] else z @ x @ y


def _versor(parameters, fixed) -> np.ndarray:
    """The vector part of a unit quaternion, whose scalar part is positive."""
    w = np.sqrt(max(1 - parameters @ parameters, 0))
    x, y, z = parameters
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def _identity(parameters, fixed) -> np.ndarray:
    return np.eye(3)


# How many parameters stand before the translation, and the matrix that they make.
LINEAR = {
    "AffineTransform": (9, _matrix),
    "MatrixOffsetTransformBase": (9, _matrix),
    "Euler3DTransform": (3, _euler),
    "VersorRigid3DTransform": (3, _versor),
    "TranslationTransform": (0, _identity),
}
