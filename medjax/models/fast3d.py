"""What a U-Net does to volumes, written as XLA's CPU backend computes it fast.

Its convolutions of volumes are several times slower than those of images, and the
gradients by their kernels slower still. Other platforms keep the native operations.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax

from medjax.models import fast

CACHE = 2**21  # Bytes of columns that stay in the cache until they are multiplied.


def convolution(
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
        return fast.convolution(x, kernel, strides, padding, **rest)
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
        columns = fast.columns(images, (height, width), (1, 1), pads)
        return total + columns.T @ gradient.reshape(-1, depth * outer), None

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


def moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each image's channels, [B, ..., C] -> [B, C]."""
    return jax.vmap(fast.moments)(x)


def normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """(x - mean) factor + bias, its negative part cut off by `relu`.

    Args:
      x: [B, ..., C].
      mean, factor: [B, C] float32.
      bias: [C] float32.
    """
    one = partial(fast.normalise, relu=relu)
    return jax.vmap(one, (0, 0, 0, None))(x, mean, factor, bias)
