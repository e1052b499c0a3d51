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

What a U-Net does to volumes, written as XLA's CPU backend computes it fast.

Its convolutions of volumes are several times slower than those of images, and the
gradients by their kernels slower still. Other platforms keep the native operations.

Max-pooling, written as XLA's CPU backend computes its gradient fast.

XLA looks every maximum up again, one after the other; here each place of the window
is compared for the whole image at once. Other platforms keep the native operation.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
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


CACHE = 2**21  # Bytes of columns that stay in the cache until they are multiplied.


def convolution_fast3d(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **rest: Any
) -> Array:
    """lax.conv_general_dilated as nn.Conv calls it: channels last.

    Args:
      x: [B, (D,) H, W, I].
      kernel: [(d,) h, w, I, O].
      strides: of the window, one for each axis of space.
      padding: pairs for each axis of space.
      rest: dimension_numbers and precision; neither groups nor dilations.
    """
    size = kernel.shape[:-2]
    pads = [tuple(pair) for pair in padding]
    if tuple(strides) == size and not np.any(pads):
        ours = shrink
    elif set(strides) == {1} and pads == [(n // 2, n // 2) for n in size]:
        ours = _keeping
    else:
        return convolution(x, kernel, strides, padding, **rest)
    native = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **rest
    )
    return lax.platform_dependent(x, kernel, cpu=ours, default=native)


def _keeping(x: Array, kernel: Array) -> Array:
    if x.ndim == 4:
        return _same(x[:, None], kernel[None])[:, 0]
    return _same(x, kernel)


@jax.custom_vjp
def _same(x: Array, kernel: Array) -> Array:
    """An odd kernel at stride 1 that keeps the size, [B, D, H, W, I] -> [..., O].

    As one convolution of images, the slices, that gives what each slice adds to each
    of its neighbours, and the sum of these.
    """
    depth, *size, inner, outer = kernel.shape
    flat = jnp.moveaxis(kernel, 0, 3).reshape(*size, inner, depth * outer)
    parts = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        flat,
        (1, 1),
        [(n // 2, n // 2) for n in size],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    parts = parts.reshape(*x.shape[:-1], depth, outer)
    shifted = [_shifted(parts[..., i, :], i - depth // 2) for i in range(depth)]
    return sum(shifted[1:], shifted[0])


def _same_backward(kept: tuple, g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    turned = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return _same(g, turned), _kernel_gradient(x, g, kernel.shape[:3])


_same.defvjp(lambda x, kernel: (_same(x, kernel), (x, kernel)), _same_backward)


def _kernel_gradient(x: Array, g: Array, size: tuple[int, ...]) -> Array:
    """Products of the columns of some slices with their neighbours' gradients."""
    inner, outer = x.shape[-1], g.shape[-1]
    if outer < inner:  # Columns of the smaller: the same sum, seen from the output.
        return _kernel_gradient(g, x, size)[::-1, ::-1, ::-1].swapaxes(3, 4)
    depth, height, width = size
    near = [_shifted(g, depth // 2 - i) for i in range(depth)]
    near = jnp.concatenate(near, axis=-1)
    slices = len(x) * x.shape[1]
    bytes_each = height * width * x[0, 0].size * x.dtype.itemsize
    pads = [(n // 2, n // 2) for n in (height, width)]
    chunk = max(n for n in _divisors(slices) if n == 1 or n * bytes_each <= CACHE)

    def add(total: Array, pair: tuple) -> tuple[Array, None]:
        images, gradient = pair
        patches = columns(images, (height, width), (1, 1), pads)
        return total + patches.T @ gradient.reshape(-1, depth * outer), None

    start = jnp.zeros((height * width * inner, depth * outer), jnp.float32)
    chunks = [a.reshape(-1, chunk, *a.shape[2:]) for a in (x, near)]
    total, _ = lax.scan(add, start, tuple(chunks))
    total = total.astype(g.dtype).reshape(height, width, inner, depth, outer)
    return jnp.moveaxis(total, 3, 0)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _shifted(x: Array, by: int) -> Array:
    """Slice d of the result is slice d + by of x, or 0: [B, D, H, W, C]."""
    pads = [(0, 0)] * x.ndim
    pads[1] = (max(-by, 0), max(by, 0))
    return lax.slice_in_dim(
        jnp.pad(x, pads), max(by, 0), x.shape[1] + max(by, 0), axis=1
    )


def shrink(x: Array, kernel: Array) -> Array:
    """A convolution whose stride is the kernel's size, the adjoint of `grow`."""
    *size, inner, outer = kernel.shape
    space = len(size)
    fewer = [n // k for n, k in zip(x.shape[1:-1], size, strict=True)]
    split = [n for pair in zip(fewer, size, strict=True) for n in pair]
    x = x.reshape(len(x), *split, inner)
    order = [0, *range(1, 2 * space, 2), *range(2, 2 * space + 1, 2), 2 * space + 1]
    columns = x.transpose(order).reshape(-1, np.prod(size) * inner)
    return (columns @ kernel.reshape(-1, outer)).reshape(len(x), *fewer, outer)


def grow(x: Array, kernel: Array) -> Array:
    """A transposed convolution whose stride is the kernel's size.

    Args:
      x: [B, (D,) H, W, I].
      kernel: [(d,) h, w, I, O].

    Returns:
      [B, (D d,) H h, W w, O].
    """
    return lax.platform_dependent(x, kernel, cpu=_grow, default=_native_grow)


def _native_grow(x: Array, kernel: Array) -> Array:
    axes = "DHW"[5 - x.ndim :]
    names = f"N{axes}C", f"{axes}IO", f"N{axes}C"
    # Turned about, as XLA has it stand for the adjoint of a correlation.
    turned = jnp.flip(kernel, range(len(axes)))
    return lax.conv_transpose(
        x, turned, kernel.shape[:-2], "VALID", dimension_numbers=names
    )


def _grow(x: Array, kernel: Array) -> Array:
    """As a product, and its results put beside each other."""
    *size, inner, outer = kernel.shape
    space = len(size)
    flat = x @ jnp.moveaxis(kernel, -2, 0).reshape(inner, -1)
    y = flat.reshape(*x.shape[:-1], *size, outer)
    order = [
        0,
        *(i for a in range(1, space + 1) for i in (a, a + space)),
        2 * space + 1,
    ]
    grown = [n * k for n, k in zip(x.shape[1:-1], size, strict=True)]
    return y.transpose(order).reshape(len(x), *grown, outer)


def moments_fast3d(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each image's channels, [B, ..., C] -> [B, C]."""
    return jax.vmap(moments)(x)


def normalise_fast3d(
    x: Array, mean: Array, factor: Array, bias: Array, relu: bool
) -> Array:
    """(x - mean) factor + bias, its negative part cut off by `relu`.

    Args:
      x: [B, ..., C].
      mean, factor: [B, C] float32.
      bias: [C] float32.
    """
    one = partial(normalise, relu=relu)
    return jax.vmap(one, (0, 0, 0, None))(x, mean, factor, bias)


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
