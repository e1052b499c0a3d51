"""Max-pooling, written as XLA's CPU backend computes its gradient fast.

XLA looks every maximum up again, one after the other; here each place of the window
is compared for the whole image at once. Other platforms keep the native operation.
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax


def max_pool(
    x: Array, size: int, stride: int, *, padding: int, native: Callable
) -> Array:
    """The maximum over cubes, [B, ..., C]; of equal ones the first has the gradient.

    One axis after the other, the last one first: so the first maximum in the order of
    memory wins, as it does in `native`.

    Args:
      size, stride, padding: the same along each axis of space.
      native: the same by XLA's own operation, x -> y.
    """

    def ours(x: Array) -> Array:
        for axis in range(x.ndim - 2, 0, -1):
            x = _pool(x, axis, size, stride, padding)
        return x

    return lax.platform_dependent(x, cpu=ours, default=native)


def _taps(x: Array, axis: int, size: int, stride: int, padding: int) -> list[Array]:
    """x as each element of a window along the axis sees it."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (padding, padding)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    span = (x.shape[axis] - size) // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _pool(x: Array, axis: int, size: int, stride: int, padding: int) -> Array:
    return reduce(jnp.maximum, _taps(x, axis, size, stride, padding))


def _pool_forward(x: Array, *window: int) -> tuple:
    y = _pool(x, *window)
    return y, (x, y)


def _pool_backward(
    axis: int, size: int, stride: int, padding: int, kept: tuple, g: Array
) -> tuple[Array]:
    x, y = kept
    total, free = jnp.zeros_like(x), True
    for i, tap in enumerate(_taps(x, axis, size, stride, padding)):
        hit = (tap == y) & free
        free = free & ~hit
        low = i - padding
        high = x.shape[axis] - low - (y.shape[axis] - 1) * stride - 1
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (low, high, stride - 1)
        total += lax.pad(jnp.where(hit, g, 0), jnp.zeros((), g.dtype), pads)
    return (total,)


_pool.defvjp(_pool_forward, _pool_backward)
