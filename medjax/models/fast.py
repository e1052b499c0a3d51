"""The same operations, written as XLA's CPU backend computes them fast.

What it does well are products of matrices, sums over rows and elementwise loops;
its convolutions, and more so their gradients, cost several times a product of the
same size. Other platforms keep the native operation: `lax.platform_dependent`
decides when the program is lowered, and only the chosen one is compiled.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **rest: Any
) -> Array:
    """lax.conv_general_dilated as nn.Conv calls it: channels last.

    Args:
      x: [B, ..., I].
      kernel: [..., I / groups, O].
      strides: of the window, one for each axis of space.
      padding: pairs for each axis of space, or a name.
      rest: dilations, groups, dimension_numbers, precision.
    """
    native = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **rest
    )
    *size, inner, outer = kernel.shape
    dilations = (rest.get("lhs_dilation"), rest.get("rhs_dilation"))
    if rest["feature_group_count"] != 1 or any(set(d or [1]) != {1} for d in dilations):
        return native(x, kernel)
    pads = None if isinstance(padding, str) else tuple(map(tuple, padding))
    still, keeps = set(strides) == {1}, tuple((n // 2, n // 2) for n in size)
    if still and set(size) == {1} and (pads is None or not np.any(pads)):
        ours = _product
    elif pads is None or x.ndim != 4:
        return native(x, kernel)
    elif still and outer < inner and all(n % 2 for n in size) and pads == keeps:
        ours = _of_few_outputs
    elif any(n > length for n, length in zip(size, x.shape[1:3], strict=True)):
        ours = partial(_by_columns, strides=tuple(strides), padding=pads)
    elif inner <= 4:
        ours = partial(_of_few_inputs, strides=tuple(strides), padding=pads)
    else:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=ours, default=native)


def _product(x: Array, kernel: Array) -> Array:
    """A convolution by a kernel of size 1: [B, ..., I] -> [B, ..., O]."""
    *space, inner = x.shape
    # In two axes: with more of them the gradient's product transposes its operands.
    flat = x.reshape(-1, inner) @ kernel.reshape(inner, -1)
    return flat.reshape(*space, -1)


def _by_columns(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """A kernel larger than the image, for which XLA has loops alone: 1 GFLOP/s."""
    *size, _, outer = kernel.shape
    places = [
        (length + sum(pads) - n) // stride + 1
        for length, pads, n, stride in zip(
            x.shape[1:3], padding, size, strides, strict=True
        )
    ]
    columns = _columns(x, tuple(size), strides, padding)
    return (columns @ kernel.reshape(-1, outer)).reshape(len(x), *places, outer)


def _native(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _columns(x: Array, size: tuple, strides: tuple, padding: tuple) -> Array:
    """What the kernel sees at each place, [B, H, W, C] -> [B h w, size C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        np.arange(0, length - k + 1, stride)[:, None] + np.arange(k)
        for length, k, stride in zip(x.shape[1:3], size, strides, strict=True)
    )
    seen = x.at[:, rows[:, None, :, None], columns[:, None, :]]  # [B, h, w, k, k, C]
    return seen.get(mode="promise_in_bounds").reshape(-1, np.prod(size) * x.shape[-1])


@jax.custom_vjp
def _of_few_outputs(x: Array, kernel: Array) -> Array:
    """An odd kernel at stride 1 that keeps the size.

    Both gradients are products with the columns of the output's gradient, which has
    the fewer channels.
    """
    pads = tuple((n // 2, n // 2) for n in kernel.shape[:2])
    return _native(x, kernel, (1, 1), pads)


def _of_few_outputs_backward(kept: tuple, g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    *size, inner, outer = kernel.shape
    # Changes nothing, but a product's result is stored. Else the sum over all later
    # layers that g is in a dense block is computed again for each of its columns.
    g = (g.reshape(-1, outer) @ jnp.eye(outer, dtype=g.dtype)).reshape(g.shape)
    pads = tuple((n // 2, n // 2) for n in size)
    columns = _columns(g, tuple(size), (1, 1), pads)  # [B H W, size O]
    turned = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, inner)
    d_kernel = (x.reshape(-1, inner).T @ columns).reshape(inner, *size, outer)
    d_kernel = jnp.moveaxis(d_kernel, 0, 2)[::-1, ::-1]
    return (columns @ turned).reshape(x.shape), d_kernel


_of_few_outputs.defvjp(
    lambda x, kernel: (_of_few_outputs(x, kernel), (x, kernel)),
    _of_few_outputs_backward,
)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _of_few_inputs(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """The first layer's: the kernel's gradient by the columns of the image."""
    return _native(x, kernel, strides, padding)


def _of_few_inputs_backward(
    strides: tuple, padding: tuple, kept: tuple, g: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    size, outer = kernel.shape[:2], kernel.shape[-1]

    def add(total: Array, pair: tuple) -> tuple[Array, None]:
        image, gradient = pair
        columns = _columns(image[None], size, strides, padding)
        return total + columns.T @ gradient.reshape(-1, outer), None

    # One image after the other: the columns of all are large.
    start = jnp.zeros((kernel.size // outer, outer), g.dtype)
    d_kernel, _ = lax.scan(add, start, (x, g))
    _, back = jax.vjp(lambda x: _native(x, kernel, strides, padding), x)
    return *back(g), d_kernel.reshape(kernel.shape)


_of_few_inputs.defvjp(
    lambda x, kernel, *how: (_of_few_inputs(x, kernel, *how), (x, kernel)),
    _of_few_inputs_backward,
)


def moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each channel, [..., C] -> [C], [C] float32."""
    return lax.platform_dependent(x, cpu=_two_passes, default=_one_pass)


def _one_pass(x: Array) -> tuple[Array, Array]:
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def _two_passes(x: Array) -> tuple[Array, Array]:
    return _moments(x.reshape(-1, x.shape[-1]))


@jax.custom_vjp
def _moments(x: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, 0)
    return mean, jnp.mean(jnp.square(x - mean), 0)


def _moments_forward(x: Array) -> tuple:
    mean, variance = _moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(kept: tuple, gradients: tuple) -> tuple[Array]:
    (x, mean), (d_mean, d_variance) = kept, gradients
    # Not by x - mean: shared with the forward pass it would be kept, as large as x.
    slope = 2 / len(x) * d_variance
    d_x = x.astype(jnp.float32) * slope + (d_mean / len(x) - mean * slope)
    return (d_x.astype(x.dtype),)


_moments.defvjp(_moments_forward, _moments_backward)


def normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """(x - mean) factor + bias, its negative part cut off by `relu`.

    Args:
      x: [..., C], of any float type, which the result has too.
      mean, factor, bias: [C] float32.
      relu: whether to cut.
    """

    def native(x: Array, *numbers: Array) -> Array:
        y = _affine(x, *numbers)
        return jax.nn.relu(y) if relu else y

    def ours(x: Array, *numbers: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        return _normalise(flat, *numbers, relu).reshape(x.shape)

    return lax.platform_dependent(x, mean, factor, bias, cpu=ours, default=native)


def _affine(x: Array, mean: Array, factor: Array, bias: Array) -> Array:
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """Keeps x and y for the gradient: those that the convolutions keep anyway."""
    # Not by x - mean, nor in the backward pass, for the same reason as above.
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _normalise_forward(
    x: Array, mean: Array, factor: Array, bias: Array, relu: bool
) -> tuple:
    y = _normalise(x, mean, factor, bias, relu)
    return y, (x, y, mean, factor)


def _normalise_backward(relu: bool, kept: tuple, g: Array) -> tuple:
    x, y, mean, factor = kept
    g = (jnp.where(y > 0, g, 0) if relu else g).astype(jnp.float32)
    d_bias = jnp.sum(g, 0)
    d_factor = jnp.sum(x.astype(jnp.float32) * g, 0) - mean * d_bias
    return (g * factor).astype(x.dtype), -factor * d_bias, d_factor, d_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


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
