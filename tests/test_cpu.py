"""The CPU's rewrites of convolutions are XLA's own operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medjax.models import cpu, layers

NUMBERS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradients(function, *arguments):
    """The value, and the gradients of its product with something random."""

    def run(*arguments):
        value, back = jax.vjp(function, *arguments)
        return value, *back(draw(*value.shape, seed=1).astype(value.dtype))

    return jax.jit(run)(*arguments)


def assert_same(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def convolutions(strides, padding, space):
    how = {"padding": padding, "dimension_numbers": NUMBERS[space]}
    native = functools.partial(lax.conv_general_dilated, window_strides=strides, **how)
    ours = functools.partial(cpu.convolution, strides=strides, **how)
    return ours, native


@pytest.mark.parametrize(
    ("shape", "size", "features"),
    [
        ((2, 5, 6, 7, 4), (3, 3, 3), 6),  # of few channels, as the image has
        ((2, 5, 6, 7, 6), (3, 3, 3), 2),  # to few channels
        ((2, 3, 4, 5, 6), (3, 3, 3), 2),  # the same of few voxels
        ((1, 4, 6, 6, 5), (1, 3, 3), 5),  # slices far apart
        ((1, 6, 5, 4, 3), (3, 1, 5), 4),
        ((1, 6, 5, 4, 5), (3, 1, 5), 6),
        ((2, 2, 2, 2, 5), (5, 3, 3), 5),  # wider than the volume
        ((3, 8, 9, 2), (3, 5), 4),
    ],
)
def test_a_convolution_and_its_gradients_are_the_native_ones(shape, size, features):
    padding = [(n // 2, n // 2) for n in size]
    ours, native = convolutions((1,) * len(size), padding, len(size))
    kernel = draw(*size, shape[-1], features)
    expected = with_gradients(native, draw(*shape), kernel)
    assert_same(with_gradients(ours, draw(*shape), kernel), expected)


@pytest.mark.parametrize(
    ("shape", "size", "strides", "features"),
    [
        ((2, 8, 7, 6, 1), (5, 5, 5), (2, 2, 2), 6),  # a stem
        ((1, 9, 7, 8, 2), (7, 3, 1), (3, 2, 2), 3),
        ((1, 9, 8, 7, 5), (3, 3, 3), (1, 2, 2), 2),  # slices far apart
        ((2, 5, 4, 5, 6), (1, 1, 1), (2, 2, 2), 3),
        ((1, 9, 7, 8, 5), (7, 3, 1), (3, 2, 2), 6),
        ((1, 7, 8, 6, 5), (5, 7, 3), (2, 3, 2), 3),
    ],
)
def test_a_strided_convolution_of_volumes_is_the_native_one(
    shape, size, strides, features
):
    padding = [(n // 2, n // 2) for n in size]
    ours, native = convolutions(strides, padding, 3)
    kernel = draw(*size, shape[-1], features)
    expected = with_gradients(native, draw(*shape), kernel)
    assert_same(with_gradients(ours, draw(*shape), kernel), expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "both"])
@pytest.mark.parametrize(
    ("shape", "size", "strides"),
    [
        ((2, 6, 9, 3), (3, 5), (1, 1)),
        ((2, 6, 9, 3), (5, 3), (2, 2)),
        ((1, 5, 6, 7, 2), (3, 3, 3), (1, 2, 2)),
    ],
)
def test_a_depthwise_convolution_and_its_gradients_are_the_native_ones(
    shape, size, strides, padding
):
    if padding == "both":
        padding = [(n // 2, n // 2) for n in size]
    how = {"feature_group_count": shape[-1]}
    ours, native = (
        functools.partial(function, **how)
        for function in convolutions(strides, padding, len(size))
    )
    kernel = draw(*size, 1, shape[-1])
    expected = with_gradients(native, draw(*shape), kernel)
    assert_same(with_gradients(ours, draw(*shape), kernel), expected)
    here, _ = texts(ours, draw(*shape), kernel)
    assert "stablehlo.convolution" not in here


def test_a_kernel_gradient_in_many_chunks_is_that_in_one(monkeypatch):
    ours, native = convolutions((1,) * 3, [(1, 1)] * 3, 3)
    x, kernel = draw(2, 6, 4, 4, 5), draw(3, 3, 3, 5, 6)
    expected = with_gradients(native, x, kernel)
    for cache in (0, 5000, 10**9):  # a slice, a few, all
        monkeypatch.setattr(cpu, "CACHE", cache)
        assert_same(with_gradients(ours, x, kernel), expected)


@pytest.mark.parametrize("size", [(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 3)])
def test_shrinking_is_the_convolution_whose_stride_is_its_size(size):
    ours, native = convolutions(size, [(0, 0)] * len(size), len(size))
    x = draw(2, *(n * m for n, m in zip(size, (3, 2, 4), strict=False)), 3)
    kernel = draw(*size, 3, 5)
    expected = with_gradients(native, x, kernel)
    assert_same(with_gradients(ours, x, kernel), expected)


@pytest.mark.parametrize("size", [(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 3)])
def test_growing_is_the_transposed_convolution(size):
    x, kernel = draw(2, *(3, 2, 4)[: len(size)], 5), draw(*size, 5, 3)

    def native(x, kernel):
        # Of a kernel turned about, as it stands for the adjoint of a correlation.
        numbers = NUMBERS[len(size)]
        turned = jnp.flip(kernel, range(len(size)))
        return lax.conv_transpose(x, turned, size, "VALID", dimension_numbers=numbers)

    expected = with_gradients(native, x, kernel)
    assert_same(with_gradients(cpu.grow, x, kernel), expected)
    # Also what other platforms run, which on this one is never chosen.
    assert_same(with_gradients(cpu._native_grow, x, kernel), expected)
    assert_same(with_gradients(cpu._grow, x, kernel), expected)


def test_growing_is_the_adjoint_of_shrinking():
    kernel = draw(2, 1, 2, 3, 5)
    x, y = draw(1, 4, 3, 4, 3), draw(1, 2, 3, 2, 5)
    shrunk = cpu.convolution(
        x, kernel, (2, 1, 2), [(0, 0)] * 3, dimension_numbers=NUMBERS[3]
    )
    grown = cpu.grow(y, kernel.swapaxes(3, 4))
    np.testing.assert_allclose(np.vdot(shrunk, y), np.vdot(x, grown), rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_each_image_is_normalised_by_its_own_moments(relu):
    x = draw(3, 4, 5, 6, 2) * 3 + 10 * np.arange(1, 4).reshape(3, 1, 1, 1, 1)
    bias = np.array([0.5, -0.25], np.float32)

    def ours(x, bias):
        mean, variance = jax.vmap(layers.moments)(x)
        normalise = jax.vmap(
            functools.partial(layers.normalise, relu=relu), (0, 0, 0, None)
        )
        return normalise(x, mean, lax.rsqrt(variance), bias)

    def plain(x, bias):
        centred = x - x.mean((1, 2, 3), keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True)) + bias
        return jnp.maximum(y, 0) if relu else y

    x = x.astype(np.float32)
    assert_same(with_gradients(ours, x, bias), with_gradients(plain, x, bias), 1e-4)


def texts(function, *arguments):
    """What is lowered for the CPU, and for a GPU."""
    lowered = jax.jit(function).trace(*arguments)
    return [
        lowered.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")
    ]


def test_other_platforms_keep_the_native_operations():
    ours, _ = convolutions((1,) * 3, [(1, 1)] * 3, 3)
    volumes = "[b, 0, 1, 2, f]"  # A convolution over three axes.
    here, other = texts(ours, draw(1, 4, 4, 4, 2), draw(3, 3, 3, 2, 2))
    assert volumes in other and volumes not in here
    here, other = texts(cpu.grow, draw(1, 4, 4, 4, 2), draw(2, 2, 2, 2, 3))
    assert volumes in other and "dot_general" not in other
    assert volumes not in here and "dot_general" in here


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_type_stays(dtype):
    x, kernel = jnp.ones((1, 4, 4, 4, 2), dtype), jnp.ones((3, 3, 3, 2, 2), dtype)
    ours, _ = convolutions((1,) * 3, [(1, 1)] * 3, 3)
    assert {a.dtype for a in with_gradients(ours, x, kernel)} == {jnp.dtype(dtype)}
