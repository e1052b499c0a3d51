"""Convolutions and max-pooling, rewritten for XLA's CPU backend alone.

That backend is fast at products of matrices, sums over rows and elementwise loops. Its
convolutions, and even more their gradients, take several times as long as a product of
the same size. Other platforms keep XLA's own operations: `lax.platform_dependent`
chooses when the program is lowered, and only the chosen operation is compiled.
tests/README.md has the speed beside PyTorch and MONAI.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax

CACHE = 2**21  # Bytes of columns that stay in the cache until they are multiplied.
FEW_VOXELS = 64  # Of a volume: the columns of so few are fast, and quickly compiled.


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """lax.conv_general_dilated as nn.Conv calls it: x [B, ..., I], kernel [..., I, O]."""
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    pads = tuple(map(tuple, pads))
    method = _method(x.shape, kernel.shape, tuple(strides), pads, options)
    if method is None:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolution(x, kernel, method, tuple(strides), pads)


def _method(
    shape: tuple, kernel: tuple, strides: tuple, padding: tuple, options: dict
) -> Callable | None:
    """The convolution on the CPU, or None where XLA's is best."""
    *size, inner, outer = kernel
    dilations = (options.get("lhs_dilation"), options.get("rhs_dilation"))
    if any(set(d or [1]) != {1} for d in dilations):
        return None
    groups = options.get("feature_group_count", 1)
    if groups != 1:
        depthwise = groups == shape[-1] == outer
        return _by_channels if depthwise else None
    fits = not any(n % k for n, k in zip(shape[1:-1], size, strict=True))
    if strides == tuple(size) and not np.any(padding) and fits:
        return _by_blocks
    centred = padding == tuple((n // 2, n // 2) for n in size)
    centred &= all(n % 2 for n in size)
    same = centred and set(strides) == {1}
    if len(shape) == 5:
        if centred and inner <= 4:
            return _by_depth
        if same and outer < inner and np.prod(shape[1:-1]) <= FEW_VOXELS:
            return _few_outputs_by_columns
        if same:
            return _by_slices
        return _by_strides if centred else None
    if len(shape) != 4:
        return None
    if same and outer < inner:
        return _few_outputs
    if any(n > length for n, length in zip(size, shape[1:3], strict=True)):
        return _by_columns
    return _few_inputs if inner <= 4 else None


# Jitted, so that each shape is traced once. The gradient is defined outside the choice
# of a platform: JAX would differentiate every choice, which took half of the tracing.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
@partial(jax.jit, static_argnums=(2, 3, 4))
def _convolution(x, kernel, method, strides, padding) -> Array:
    """`method` on the CPU, elsewhere XLA's own."""

    def of(function: Callable) -> Callable:
        return lambda x, kernel: function(x, kernel, strides, padding)

    return lax.platform_dependent(x, kernel, cpu=of(method), default=of(_native))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _convolution_backward(method, strides, padding, operands, g) -> tuple:
    def of(function: Callable) -> Callable:
        def forward(x: Array, kernel: Array) -> Array:
            return function(x, kernel, strides, padding)

        return lambda x, kernel, g: jax.vjp(forward, x, kernel)[1](g)

    return lax.platform_dependent(*operands, g, cpu=of(method), default=of(_native))


_convolution.defvjp(
    lambda x, kernel, *how: (_convolution(x, kernel, *how), (x, kernel)),
    _convolution_backward,
)


def _with_gradients(forward: Callable, backward: Callable) -> Callable:
    """A convolution with gradients of its own, (x, kernel, g, strides, padding) -> both."""
    function = jax.custom_vjp(forward, nondiff_argnums=(2, 3))
    function.defvjp(
        lambda x, kernel, *window: (forward(x, kernel, *window), (x, kernel)),
        lambda strides, padding, kept, g: backward(*kept, g, strides, padding),
    )
    return function


def _native(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_dimensions(x),
        feature_group_count=x.shape[-1] // kernel.shape[-2],
    )


def _dimensions(x: Array) -> tuple[str, str, str]:
    axes = "DHW"[5 - x.ndim :]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


# ------------------------------------------------- blocks: the stride is the kernel's size


def _by_blocks(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """A kernel whose size is its stride, 1 x 1 too: a product with each block."""
    *size, _, outer = kernel.shape
    places = [n // k for n, k in zip(x.shape[1:-1], size, strict=True)]
    y = _to_blocks(x, size) @ kernel.reshape(-1, outer)
    return y.reshape(x.shape[0], *places, outer)


def grow(x: Array, kernel: Array) -> Array:
    """A transposed convolution whose stride is the kernel's size.

    [B, (D,) H, W, I] and [(d,) h, w, I, O] -> [B, (D d,) H h, W w, O].
    """
    return lax.platform_dependent(x, kernel, cpu=_grow, default=_native_grow)


def _grow(x: Array, kernel: Array) -> Array:
    *size, inner, _ = kernel.shape
    blocks = x @ jnp.moveaxis(kernel, -2, 0).reshape(inner, -1)
    return _from_blocks(blocks, x.shape[:-1], size)


def _native_grow(x: Array, kernel: Array) -> Array:
    # XLA's transposed convolution is the adjoint of a correlation: flip the kernel.
    flipped = jnp.flip(kernel, range(x.ndim - 2))
    return lax.conv_transpose(
        x, flipped, kernel.shape[:-2], "VALID", dimension_numbers=_dimensions(x)
    )


def _to_blocks(x: Array, size: Sequence[int]) -> Array:
    """[B, H h, W w, C] -> [B H W, h w C]: the voxels of each block side by side."""
    space = len(size)
    pairs = [(n // k, k) for n, k in zip(x.shape[1:-1], size, strict=True)]
    x = x.reshape(x.shape[0], *(n for pair in pairs for n in pair), x.shape[-1])
    order = [0, *range(1, 2 * space, 2), *range(2, 2 * space + 1, 2), 2 * space + 1]
    # Two axes: with more of them the gradient's product transposes its operands.
    return x.transpose(order).reshape(-1, np.prod(size) * x.shape[-1])


def _from_blocks(blocks: Array, places: Sequence[int], size: Sequence[int]) -> Array:
    """[..., h w C] of places (B, H, W) -> [B, H h, W w, C]."""
    space = len(size)
    x = blocks.reshape(*places, *size, -1)
    pairs = [axis for i in range(1, space + 1) for axis in (i, i + space)]
    grown = [n * k for n, k in zip(places[1:], size, strict=True)]
    return x.transpose(0, *pairs, 2 * space + 1).reshape(places[0], *grown, -1)


# ------------------------------------------------------- columns: images of a few channels


def columns(x: Array, size: tuple, strides: tuple, padding: tuple) -> Array:
    """The pixels under the kernel at each place, [B, ..., C] -> [B h w, size C]."""
    pixels = _views(x, size, strides, padding)
    return jnp.concatenate(pixels, axis=-1).reshape(-1, np.prod(size) * x.shape[-1])


def _views(x: Array, size: tuple, strides: tuple, padding: tuple) -> list[Array]:
    """The image as each element of the kernel sees it, each [B, ..., C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ends = np.subtract(x.shape[1:-1], size) + 1
    views = []  # Slices: XLA computes the indices of a gather for every element.
    for corner in np.ndindex(size):
        stops = (x.shape[0], *(ends + corner), x.shape[-1])
        views.append(lax.slice(x, (0, *corner, 0), stops, (1, *strides, 1)))
    return views


def _by_columns(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """Convolves small images, or by larger kernels, by columns: XLA's loops are slow."""
    *size, _, outer = kernel.shape
    room = np.add(x.shape[1:-1], np.sum(padding, axis=1)) - size
    places = room // strides + 1
    pixels = columns(x, tuple(size), strides, padding)
    return (pixels @ kernel.reshape(-1, outer)).reshape(x.shape[0], *places, outer)


def _few_outputs_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    """Both gradients by the columns of the output's gradient: fewer than the input's.

    Of an odd kernel at stride 1 that keeps the size.
    """
    *size, inner, outer = kernel.shape
    # A product by the identity, because XLA stores a product's result. Without it, in
    # a dense block, the sum over all later layers that g is would be computed again
    # for each column.
    g = (g.reshape(-1, outer) @ jnp.eye(outer, dtype=g.dtype)).reshape(g.shape)
    pixels = columns(g, tuple(size), strides, padding)  # [B H W, size O]
    space = range(len(size))
    flipped = jnp.flip(kernel, space).swapaxes(-2, -1).reshape(-1, inner)
    d_kernel = (x.reshape(-1, inner).T @ pixels).reshape(inner, *size, outer)
    d_kernel = jnp.flip(jnp.moveaxis(d_kernel, 0, -2), space)
    return (pixels @ flipped).reshape(x.shape), d_kernel


_few_outputs = _with_gradients(_native, _few_outputs_backward)
_few_outputs_by_columns = _with_gradients(_by_columns, _few_outputs_backward)


def _few_inputs_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    """Of a network's first layer: the kernel's gradient by the image's columns."""
    d_kernel = _by_chunks(x, g, kernel.shape[:2], strides, padding, chunk=1)
    _, back = jax.vjp(lambda x: _native(x, kernel, strides, padding), x)
    return *back(g), d_kernel.reshape(kernel.shape)


_few_inputs = _with_gradients(_native, _few_inputs_backward)


def _by_chunks(
    x: Array, g: Array, size: tuple, strides: tuple, padding: tuple, *, chunk: int
) -> Array:
    """The columns of x times g, summed over all places, [size I, O].

    A few images at a time, because the columns of a whole batch are large.
    """

    def add(total: Array, pair: tuple) -> tuple[Array, None]:
        images, gradient = pair
        pixels = columns(images, size, strides, padding)
        return total + pixels.T @ gradient.reshape(-1, g.shape[-1]), None

    start = jnp.zeros((np.prod(size) * x.shape[-1], g.shape[-1]), jnp.float32)
    chunks = [a.reshape(-1, chunk, *a.shape[-3:]) for a in (x, g)]
    total, _ = lax.scan(add, start, tuple(chunks))
    return total.astype(g.dtype)


# ---------------------------------------------------- channels: depthwise convolutions


def _filtered(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """Each channel has a kernel of its own: a sum over its elements, in one loop."""
    views = _views(x, kernel.shape[:-2], strides, padding)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return reduce(jnp.add, map(jnp.multiply, views, weights))


def _by_channels_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    size = kernel.shape[:-2]
    views = _views(x, size, strides, padding)
    d_kernel = jnp.stack([jnp.sum(view * g, range(g.ndim - 1)) for view in views])
    # The image's gradient: g, spread by the strides, under the flipped kernel.
    spread = [
        (n - 1 - before, length + before - 1 - stride * (places - 1), stride - 1)
        for n, (before, _), length, places, stride in zip(
            size, padding, x.shape[1:-1], g.shape[1:-1], strides, strict=True
        )
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    flipped = jnp.flip(kernel, range(len(size)))
    d_x = _filtered(g, flipped, (1,) * len(size), ((0, 0),) * len(size))
    return d_x, d_kernel.reshape(kernel.shape)


_by_channels = _with_gradients(_filtered, _by_channels_backward)


# ------------------------------------------------------- slices: 3-D convolutions as 2-D


def _sliced(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """A kernel at stride 1 that keeps the size, [B, D, H, W, I] -> [..., O].

    One 2-D convolution of all slices computes what each slice adds to each of its
    neighbours; the sum of these is the result.
    """
    depth, *size, inner, outer = kernel.shape
    flat = jnp.moveaxis(kernel, 0, 3).reshape(*size, inner, depth * outer)
    slices = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    parts = _native(slices, flat, (1, 1), padding[1:])
    parts = parts.reshape(*x.shape[:-1], depth, outer)
    shifted = [_shifted(parts[..., i, :], i - padding[0][0]) for i in range(depth)]
    return sum(shifted[1:], shifted[0])


def _by_slices_backward(
    x: Array, kernel: Array, g: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    d_x = _sliced(g, flipped, strides, _mirrored(padding))
    return d_x, _kernel_gradient(x, g, kernel.shape[:3], padding)


_by_slices = _with_gradients(_sliced, _by_slices_backward)


def _by_depth(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """Of a network's first layer: the slices under the kernel become channels.

    [B, D, H, W, I] -> [B, d, h, w, O] by one 2-D convolution.
    """
    slices, flat = _as_slices(x, kernel, strides, padding)
    y = _few_inputs(slices, flat, strides[1:], padding[1:])
    depth = (x.shape[1] + sum(padding[0]) - len(kernel)) // strides[0] + 1
    return y.reshape(x.shape[0], depth, *y.shape[1:])


def _as_slices(
    x: Array, kernel: Array, strides: tuple, padding: tuple
) -> tuple[Array, Array]:
    """[B d, H, W, depth I], what each slice of the result sees; and such a kernel."""
    depth, *size, inner, outer = kernel.shape
    x = jnp.pad(x, ((0, 0), padding[0], *((0, 0),) * 3))
    stop = x.shape[1] - depth + 1
    near = [x[:, i : stop + i : strides[0]] for i in range(depth)]
    near = jnp.concatenate(near, axis=-1)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(*size, depth * inner, outer)
    slices = near.shape[0] * near.shape[1]  # None of a volume that is too small.
    return near.reshape(slices, *near.shape[2:]), kernel


def _by_strides(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """An odd kernel of larger strides: of the image's blocks, the stride is 1."""
    blocks = _around(kernel, strides)
    return _by_slices(*_as_blocks(x, kernel, strides, blocks), (1, 1, 1), blocks)


def _around(kernel: Array, strides: tuple) -> tuple[tuple[int, int], ...]:
    """How many blocks along each axis the kernel sees before its own, and after."""
    halves = [n // 2 for n in kernel.shape[:-2]]
    return tuple(
        (-(-half // n), half // n) for half, n in zip(halves, strides, strict=True)
    )


def _as_blocks(
    x: Array, kernel: Array, strides: tuple, blocks: tuple
) -> tuple[Array, Array]:
    """The voxels of each block as channels, and the kernel that sees whole blocks."""
    size, outer, end = kernel.shape[:-2], kernel.shape[-1], (0, 0)
    rest = [(0, -n % stride) for n, stride in zip(x.shape[1:-1], strides)]
    x = jnp.pad(x, [end, *rest, end])
    places = [n // stride for n, stride in zip(x.shape[1:-1], strides)]
    pads = [
        (before * stride - n // 2, (after + 1) * stride - 1 - n // 2)
        for (before, after), stride, n in zip(blocks, strides, size)
    ]
    kernel = _to_blocks(
        jnp.moveaxis(jnp.pad(kernel, [*pads, end, end]), -1, 0), strides
    )
    kernel = kernel.reshape(outer, *(1 + sum(pair) for pair in blocks), -1)
    x = _to_blocks(x, strides).reshape(x.shape[0], *places, -1)
    return x, jnp.moveaxis(kernel, 0, -1)


def _kernel_gradient(
    x: Array, g: Array, size: tuple[int, ...], padding: tuple
) -> Array:
    """Products of some slices' columns with the gradients of their neighbours."""
    inner, outer = x.shape[-1], g.shape[-1]
    if outer < inner:  # Columns of the smaller: the same sum, seen from the output.
        seen = _kernel_gradient(g, x, size, _mirrored(padding))
        return seen[::-1, ::-1, ::-1].swapaxes(3, 4)
    depth, height, width = size
    near = [_shifted(g, padding[0][0] - i) for i in range(depth)]
    near = jnp.concatenate(near, axis=-1)
    slices = x.shape[0] * x.shape[1]
    slice_bytes = height * width * x[0, 0].size * x.dtype.itemsize
    divisors = [n for n in range(1, slices + 1) if slices % n == 0]
    chunk = max(n for n in divisors if n == 1 or n * slice_bytes <= CACHE)
    total = _by_chunks(x, near, (height, width), (1, 1), padding[1:], chunk=chunk)
    return jnp.moveaxis(total.reshape(height, width, inner, depth, outer), 3, 0)


def _mirrored(padding: tuple) -> tuple:
    return tuple((after, before) for before, after in padding)


def _shifted(x: Array, by: int) -> Array:
    """[B, D, H, W, C] whose slice d is slice d + by of x, or 0 outside."""
    pads = [(0, 0)] * x.ndim
    pads[1] = (max(-by, 0), max(by, 0))
    start = max(by, 0)
    return lax.slice_in_dim(jnp.pad(x, pads), start, start + x.shape[1], axis=1)


# --------------------------------------------------------------------- max-pooling


def max_pool(x: Array) -> Array:
    """The maximum over cubes of 3 at stride 2, [B, ..., C]; a border of 1 never wins.

    Of equal values the first has the gradient. For it, XLA searches each window again,
    one after the other; here each place of the window is compared for the whole image
    at once. The axes are pooled one after the other, the last one first, so that the
    first maximum in memory wins, as it does in XLA's operation.
    """
    space = x.ndim - 2
    window = {"window_shape": (3,) * space, "strides": (2,) * space}

    def by_axes(x: Array) -> Array:
        for axis in range(space, 0, -1):
            x = _pool(x, axis)
        return x

    native = partial(nn.max_pool, **window, padding=((1, 1),) * space)
    return lax.platform_dependent(x, cpu=by_axes, default=native)


def _taps(x: Array, axis: int) -> list[Array]:
    """For each element of a window along the axis, x as that element sees it."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 1)
    span = (x.shape[axis] - 1) // 2 * 2 + 1
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    return [lax.slice_in_dim(x, i, i + span, 2, axis) for i in range(3)]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: Array, axis: int) -> Array:
    return reduce(jnp.maximum, _taps(x, axis))


def _pool_forward(x: Array, axis: int) -> tuple:
    y = _pool(x, axis)
    return y, (x, y)


def _pool_backward(axis: int, kept: tuple, g: Array) -> tuple[Array]:
    x, y = kept
    total, free = jnp.zeros_like(x), True
    for i, tap in enumerate(_taps(x, axis)):
        hit = (tap == y) & free
        free = free & ~hit
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (i - 1, x.shape[axis] - i - (y.shape[axis] - 1) * 2, 1)
        total += lax.pad(jnp.where(hit, g, 0), jnp.zeros((), g.dtype), pads)
    return (total,)


_pool.defvjp(_pool_forward, _pool_backward)
