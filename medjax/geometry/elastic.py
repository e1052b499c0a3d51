"""Smooth, invertible displacements, interpolated between control points.

u(x) = sum over the control points g of c_g times the product over the axes of
B(x / distance - (g - 1)), with B the cubic B-spline: u has two continuous derivatives
and no entry larger than the largest c. The control points are `distance` pixels apart,
from one before the image to at least one behind it.

Source: Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI
18 (1999) 712, eq. 1 to 4.
"""

import math

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

# x + u(x) is invertible if every |c| is below this share of the distance: 1 / K2 in 2-D
# and 1 / K3 in 3-D, with K2 = 2.0464 and K3 = 2.4795. Source: Choi & Lee, Injectivity
# conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 62 (2000)
# 411.
INVERTIBLE = {2: 0.488, 3: 0.403}


def control_shape(shape: tuple[int, ...], distance: tuple[float, ...]) -> tuple:
    """The number of control points on each axis of an image of this shape."""
    return tuple(
        math.ceil((size - 1) / step) + 3
        for size, step in zip(shape, distance, strict=True)
    )


def on_grid(
    control: Array, shape: tuple[int, ...], distance: tuple[float, ...]
) -> list[Array]:
    """u at every pixel, by one small matrix product for each axis.

    Args:
      control: [*control_shape, n].
      shape: n sizes.
      distance: n distances of the control points, in pixels.

    Returns:
      n arrays of that shape.
    """
    field = jnp.moveaxis(control, -1, 0)
    for axis, (size, step) in enumerate(zip(shape, distance, strict=True), start=1):
        weight = _weights(jnp.arange(size) / step, field.shape[axis])
        field = jnp.tensordot(field, weight, [[axis], [1]], precision="highest")
        field = jnp.moveaxis(field, -1, axis)
    return list(field)


def at_point(control: Array, point: Array, distance: tuple[float, ...]) -> Array:
    """u at one point.

    Args:
      control: [*control_shape, n].
      point: [n], in pixels; outside the image u decreases to 0.
      distance: n distances of the control points, in pixels.

    Returns:
      [n].
    """
    for x, step in zip(point, distance, strict=True):
        weight = _weights(x / step, control.shape[0])
        control = jnp.tensordot(weight, control, 1, precision="highest")
    return control


def invert(control: Array, point: Array, distance: tuple[float, ...]) -> Array:
    """The x with x + u(x) = point, [n] in pixels, by Newton's method.

    Eight steps leave less than a thousandth of a pixel at any invertible strength.
    """

    def step(_, x):
        slope = jax.jacfwd(at_point, argnums=1)(control, x, distance)
        error = x + at_point(control, x, distance) - point
        return x - solve(jnp.eye(len(point)) + slope, error)

    return lax.fori_loop(0, 8, step, point)


def solve(a: Array, b: Array) -> Array:
    """The x with a x = b, [n] of 2 or 3, by Cramer's rule, which is few operations."""
    parts = [
        jnp.linalg.det(jnp.where(jnp.arange(len(b)) == column, b[:, None], a))
        for column in range(len(b))
    ]
    return jnp.stack(parts) / jnp.linalg.det(a)


def _weights(position: Array, points: int) -> Array:
    """B of the distance to each control point, [..., points]."""
    t = jnp.abs(position[..., None] - (jnp.arange(points) - 1))
    near = 2 / 3 - t**2 + t**3 / 2
    far = jnp.maximum(2 - t, 0) ** 3 / 6
    return jnp.where(t < 1, near, far)
