"""The same operations, written as XLA's CPU backend computes them fast.

What it does well are products of matrices, sums over rows and elementwise loops;
its convolutions, and more so their gradients, cost several times a product of the
same size. Other platforms keep the native convolution and moments:
`lax.platform_dependent` decides when the program is lowered, and only the chosen one
is compiled.

`normalise` and the gradient of `moments` need no such choice: they are elementwise
formulas and sums over rows, with no native operation that they would stand for, and
every compiler fuses them as it does what it derives from the definition. What they
choose is what is kept for the gradient, which saves memory everywhere.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
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
    *size, inner, outer = kernel.shape
    pads = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    named, still = isinstance(pads, str), set(strides) == {1}
    keeps = tuple((n // 2, n // 2) for n in size)
    dilations = (rest.get("lhs_dilation"), rest.get("rhs_dilation"))
    if rest["feature_group_count"] != 1 or any(set(d or [1]) != {1} for d in dilations):
        ours = None
    elif still and set(size) == {1} and (named or not np.any(pads)):
        ours = _product, _product_backward
    elif named or x.ndim != 4:
        ours = None
    elif still and outer < inner and all(n % 2 for n in size) and pads == keeps:
        ours = _native, _few_outputs_backward
    elif any(n > length for n, length in zip(size, x.shape[1:3], strict=True)):
        ours = _by_columns, _backward_of(_by_columns)
    elif inner <= 4:
        ours = _native, _few_inputs_backward
    else:
        ours = None
    if ours is None:
        return lax.conv_general_dilated(x, kernel, strides, padding, **rest)
    return _convolution(x, kernel, *ours, tuple(strides), pads)


# Jitted, it is traced once for each shape. Its gradient is given outside the choice of
# a platform: JAX would derive each of the choices, in half of the time of tracing.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _convolution(
    x: Array,
    kernel: Array,
    forward: Callable,
    backward: Callable,
    strides: tuple,
    padding: tuple | str,
) -> Array:
    """`forward` on the CPU, its gradient by `backward`; elsewhere XLA's own."""
    how = {"strides": strides, "padding": padding}
    return lax.platform_dependent(
        x, kernel, cpu=partial(forward, **how), default=partial(_native, **how)
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _convolution_backward(
    forward: Callable,
    backward: Callable,
    strides: tuple,
    padding: tuple | str,
    kept: tuple,
    g: Array,
) -> tuple[Array, Array]:
    how = {"strides": strides, "padding": padding}
    native = partial(_backward_of(_native), **how)
    return lax.platform_dependent(
        *kept, g, cpu=partial(backward, **how), default=native
    )


_convolution.defvjp(
    lambda x, kernel, *how: (_convolution(x, kernel, *how), (x, kernel)),
    _convolution_backward,
)


@cache
def _backward_of(forward: Callable) -> Callable:
    """The gradients of a convolution that XLA derives itself."""

    def backward(x: Array, kernel: Array, g: Array, **how: Any) -> tuple[Array, Array]:
        return jax.vjp(partial(forward, **how), x, kernel)[1](g)

    return backward


def _native(x: Array, kernel: Array, strides: tuple, padding: tuple | str) -> Array:
    axes = "DHW"[5 - x.ndim :]
    names = f"N{axes}C", f"{axes}IO", f"N{axes}C"
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=names
    )


def _product(x: Array, kernel: Array, **_: Any) -> Array:
    """A convolution by a kernel of size 1: [B, ..., I] -> [B, ..., O]."""
    # In two axes: with more of them the gradient's product transposes its operands.
    inner, outer = kernel.shape[-2:]
    flat = x.reshape(-1, inner) @ kernel.reshape(inner, outer)
    return flat.reshape(*x.shape[:-1], outer)


def _product_backward(
    x: Array, kernel: Array, g: Array, **_: Any
) -> tuple[Array, Array]:
    inner, outer = kernel.shape[-2:]
    g = g.reshape(-1, outer)
    d_x = g @ kernel.reshape(inner, outer).T
    return d_x.reshape(x.shape), (x.reshape(-1, inner).T @ g).reshape(kernel.shape)


def _by_columns(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """A kernel larger than the image, for which XLA has loops alone: 1 GFLOP/s."""
    *size, _, outer = kernel.shape
    places = [
        (length + sum(pads) - n) // stride + 1
        for length, pads, n, stride in zip(
            x.shape[1:3], padding, size, strides, strict=True
        )
    ]
    seen = columns(x, tuple(size), strides, padding)
    return (seen @ kernel.reshape(-1, outer)).reshape(len(x), *places, outer)


def columns(x: Array, size: tuple, strides: tuple, padding: tuple) -> Array:
    """What the kernel sees at each place, [B, H, W, C] -> [B h w, size C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ends = np.subtract(x.shape[1:3], size) + 1
    # Side by side and not as a gather, whose indices XLA computes for every element.
    seen = [  # [B, h, w, C] each
        lax.slice(
            x,
            (0, *corner, 0),
            (len(x), *(ends + corner), x.shape[-1]),
            (1, *strides, 1),
        )
        for corner in np.ndindex(size)
    ]
    return jnp.concatenate(seen, axis=-1).reshape(-1, np.prod(size) * x.shape[-1])


def _few_outputs_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    """Of an odd kernel at stride 1 that keeps the size.

    Both gradients are products with the columns of the output's gradient, which has
    the fewer channels.
    """
    *size, inner, outer = kernel.shape
    # Changes nothing, but a product's result is stored. Else the sum over all later
    # layers that g is in a dense block is computed again for each of its columns.
    g = (g.reshape(-1, outer) @ jnp.eye(outer, dtype=g.dtype)).reshape(g.shape)
    seen = columns(g, tuple(size), strides, padding)  # [B H W, size O]
    turned = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, inner)
    d_kernel = (x.reshape(-1, inner).T @ seen).reshape(inner, *size, outer)
    d_kernel = jnp.moveaxis(d_kernel, 0, 2)[::-1, ::-1]
    return (seen @ turned).reshape(x.shape), d_kernel


def _few_inputs_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    """The first layer's: the kernel's gradient by the columns of the image."""
    size, outer = kernel.shape[:2], kernel.shape[-1]

    def add(total: Array, pair: tuple) -> tuple[Array, None]:
        image, gradient = pair
        seen = columns(image[None], size, strides, padding)
        return total + seen.T @ gradient.reshape(-1, outer), None

    # One image after the other: the columns of all are large.
    start = jnp.zeros((kernel.size // outer, outer), g.dtype)
    d_kernel, _ = lax.scan(add, start, (x, g))
    _, back = jax.vjp(lambda x: _native(x, kernel, strides, padding), x)
    return *back(g), d_kernel.reshape(kernel.shape)


@jax.custom_vjp
@jax.jit
def moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each channel, [..., C] -> [C], [C] float32."""
    return lax.platform_dependent(x, cpu=_two_passes, default=_one_pass)


def _one_pass(x: Array) -> tuple[Array, Array]:
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def _two_passes(x: Array) -> tuple[Array, Array]:
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x - mean), axes)


def _moments_forward(x: Array) -> tuple:
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


@jax.jit
def _moments_backward(kept: tuple, gradients: tuple) -> tuple[Array]:
    (x, mean), (d_mean, d_variance) = kept, gradients
    number = x.size // x.shape[-1]
    # Not by x - mean: shared with the forward pass it would be kept, as large as x.
    slope = 2 / number * d_variance
    d_x = x.astype(jnp.float32) * slope + (d_mean / number - mean * slope)
    return (d_x.astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
@partial(jax.jit, static_argnums=4)
def normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """(x - mean) factor + bias, its negative part cut off by `relu`.

    Keeps x and the result for the gradient: those that the convolutions keep anyway.

    Args:
      x: [..., C], of any float type, which the result has too.
      mean, factor, bias: [C] float32.
      relu: whether to cut.
    """
    # Not by x - mean, nor in the backward pass, for the same reason as above.
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _normalise_forward(
    x: Array, mean: Array, factor: Array, bias: Array, relu: bool
) -> tuple:
    y = normalise(x, mean, factor, bias, relu)
    return y, (x, y, mean, factor)


@partial(jax.jit, static_argnums=0)
def _normalise_backward(relu: bool, kept: tuple, g: Array) -> tuple:
    (x, y, mean, factor), axes = kept, tuple(range(g.ndim - 1))
    g = (jnp.where(y > 0, g, 0) if relu else g).astype(jnp.float32)
    d_bias = jnp.sum(g, axes)
    d_factor = jnp.sum(x.astype(jnp.float32) * g, axes) - mean * d_bias
    return (g * factor).astype(x.dtype), -factor * d_bias, d_factor, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)
