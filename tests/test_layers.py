"""What the layers compute on the CPU is what XLA's own operations do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medjax.models import cpu, layers

SPACE = {1: "H", 2: "HW", 3: "DHW"}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_gradients(function, *args):
    """A random combination of the results' gradients by all arguments, and results."""
    results, back = jax.vjp(function, *args)
    leaves, tree = jax.tree.flatten(results)
    weights = [
        normal(i, *leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return [*leaves, *back(jax.tree.unflatten(tree, weights))]


def assert_same(ours, native, *args, rtol=1e-5):
    """Results and gradients, relative to the largest value of each array."""
    found, expected = (
        jax.jit(functools.partial(with_gradients, f))(*args) for f in (ours, native)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def convolutions(kernel, stride, padding, groups=1):
    axes = SPACE[kernel.ndim - 2]
    names = f"N{axes}C", f"{axes}IO", f"N{axes}C"
    how = {
        "dimension_numbers": names,
        "feature_group_count": groups,
        "lhs_dilation": (1,) * len(axes),
        "rhs_dilation": (1,) * len(axes),
    }
    return [
        lambda x, w, op=op: op(x, w, (stride,) * len(axes), padding, **how)
        for op in (cpu.convolution, lax.conv_general_dilated)
    ]


def replaced(function, *args):
    return "platform_index" in str(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize(
    ("space", "inner", "outer", "size", "stride", "padding", "ours"),
    [
        ((5, 7), 3, 4, 1, 1, ((0, 0),) * 2, True),
        ((3, 4, 5), 2, 3, 1, 1, "SAME", True),
        ((5, 7), 3, 4, 1, 1, ((0, 1),) * 2, True),  # Few inputs.
        ((5, 7), 6, 4, 1, 2, ((0, 0),) * 2, False),
        ((7, 6), 5, 2, 3, 1, ((1, 1),) * 2, True),
        ((7, 6), 4, 1, 5, 1, ((2, 2),) * 2, True),
        ((7, 6), 5, 2, 3, 1, ((0, 1),) * 2, False),
        ((7, 6), 5, 2, 2, 1, ((1, 1),) * 2, False),
        ((9, 8), 3, 8, 7, 2, ((3, 3),) * 2, True),
        ((9, 8), 1, 2, 4, 3, ((0, 2), (1, 0)), True),
        ((7, 6), 5, 5, 3, 1, ((1, 1),) * 2, False),
        ((2, 2), 5, 6, 3, 1, ((1, 1),) * 2, True),  # Larger than the image.
        ((1, 6), 5, 6, 3, 2, ((1, 2), (0, 1)), True),
        ((7, 6), 5, 2, 3, 1, "SAME", True),
        ((4, 5, 6), 3, 2, 3, 1, ((1, 1),) * 3, True),
        ((4, 5, 6), 3, 2, 3, 1, ((0, 1),) * 3, False),
        ((8, 6), 3, 4, 2, 2, ((0, 0),) * 2, True),
        ((8, 7), 5, 4, 2, 2, ((0, 0),) * 2, False),  # Leaves a row out.
    ],
)
def test_a_convolution_is_xlas(space, inner, outer, size, stride, padding, ours):
    x = normal(1, 2, *space, inner)
    kernel = normal(2, *(size,) * len(space), inner, outer)
    pair = convolutions(kernel, stride, padding)
    assert replaced(pair[0], x, kernel) == ours
    if ours:
        assert_same(*pair, x, kernel)


def test_groups_are_left_to_xla():
    x, kernel = normal(1, 2, 5, 5, 4), normal(2, 1, 1, 2, 4)
    pair = convolutions(kernel, 1, "SAME", groups=2)
    assert not replaced(pair[0], x, kernel)
    assert_same(*pair, x, kernel)


@pytest.mark.parametrize("shape", [(3, 9), (4, 8), (5, 6, 7)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_first_maximum_has_the_gradient(shape, ties):
    space = len(shape)
    x = normal(0, 2, *shape, 3)
    x = np.round(x) if ties else x
    native = functools.partial(
        nn.max_pool,
        window_shape=(3,) * space,
        strides=(2,) * space,
        padding=((1, 1),) * space,
    )
    assert_same(cpu.max_pool, native, x)


def test_dropped_values_are_a_share_of_an_image_s_own():
    """The rest is weighted so that the mean stays; order and neighbours don't matter."""
    x, keys = normal(3, 4, 5000), jax.random.split(jax.random.key(1), 4)
    got = layers.drop(x, keys, 0.2, whole=False)
    gone = got == 0
    np.testing.assert_allclose(gone.mean(axis=1), 0.2, atol=0.025)
    np.testing.assert_allclose(got, np.where(gone, 0, x / 0.8), rtol=1e-6)
    turned = layers.drop(x[::-1], keys[::-1], 0.2, whole=False)
    np.testing.assert_array_equal(turned[::-1], got)
    assert not np.array_equal(gone[0], gone[1])
    assert layers.drop(x, None, 0.2, whole=False) is x


def norms(train=True, dtype=jnp.float32, axis_name=None):
    """Ours and Linen's, each (x, scale, bias) -> (relu(y), new statistics)."""
    linen = nn.BatchNorm(
        not train, momentum=0.9, epsilon=1e-3, dtype=dtype, axis_name=axis_name
    )
    ours = layers.BatchNorm(train=train, dtype=dtype, axis_name=axis_name, epsilon=1e-3)

    def run(module, x, scale, bias, **rest):
        stats = {"mean": jnp.full_like(scale, 0.5), "var": jnp.full_like(scale, 2.0)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"], **rest)

    def native(*args):
        y, stats = run(linen, *args)
        return jax.nn.relu(y), stats

    return functools.partial(run, ours, relu=True), native


def of_norm(*shape):
    scale = normal(1, shape[-1])
    scale[0] = 0  # As a residual branch may begin.
    return normal(0, *shape) + 1, scale, normal(2, shape[-1])


@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 3, 4, 5, 3), (6, 1, 1, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_a_normalisation_is_linens(shape, train):
    ours, native = norms(train)
    assert_same(ours, native, *of_norm(*shape), rtol=2e-5)
    names = [jax.eval_shape(f, *of_norm(*shape))[1] for f in (ours, native)]
    assert names[0] == names[1]


def test_without_relu_nothing_is_cut():
    x, scale, bias = of_norm(3, 5, 7, 4)
    ours, _ = norms()
    y, _ = ours(x, scale, bias, relu=False)
    assert y.min() < 0
    got, _ = ours(x, scale, bias)
    np.testing.assert_allclose(got, jnp.maximum(y, 0), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_normalised_in_float32():
    ours, native = norms(dtype=jnp.bfloat16)
    x, scale, bias = of_norm(3, 5, 7, 4)
    assert_same(ours, native, x.astype(jnp.bfloat16), scale, bias, rtol=2**-7)


def test_moments_keep_their_digits_far_from_zero():
    x = 10 + normal(0, 16, 28, 28, 8) * np.linspace(0.5, 2, 8, dtype=np.float32)
    mean, variance = jax.jit(layers.moments)(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=2e-6)


def by_pmap(function):
    return jax.pmap(function, axis_name="rows", in_axes=(0, None, None))


def by_vmap(function):
    return jax.jit(jax.vmap(function, axis_name="rows", in_axes=(0, None, None)))


@pytest.mark.parametrize("mapped", [by_pmap, by_vmap])
def test_shards_share_their_statistics(mapped):
    x, scale, bias = of_norm(4, 2, 5, 5, 3)
    x += np.arange(4).reshape(4, 1, 1, 1, 1)  # Their means differ.

    def gradients(norm, x, scale, bias):
        def value(x, scale, bias):
            y, stats = norm(x, scale, bias)
            return jnp.sum(y**3), stats

        return jax.grad(value, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

    ours, native = norms(axis_name="rows")
    found = mapped(functools.partial(gradients, ours))(x, scale, bias)
    expected = mapped(functools.partial(gradients, native))(x, scale, bias)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
    whole, stats = norms()[0](x.reshape(-1, 5, 5, 3), scale, bias)
    assert whole.shape == (8, 5, 5, 3)
    for name, value in stats["batch_stats"].items():
        shared = found[1]["batch_stats"][name][2]
        np.testing.assert_allclose(shared, value, rtol=1e-5)


class Small(nn.Module):
    """One of each operation."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(layers.conv, dtype=jnp.float32)
        norm = layers.BatchNorm(
            train=False, dtype=jnp.float32, axis_name=None, name="norm"
        )
        x = cpu.max_pool(norm(conv(x, 6, 5, 2, name="first"), relu=True))
        return conv(conv(x, 8, 1, name="wide"), 2, 3, name="few")


def test_mapping_and_computing_again_change_nothing():
    model, x = Small(), normal(0, 3, 2, 17, 13, 1)
    variables = jax.jit(model.init)(jax.random.key(0), x[0])

    def loss(variables, x):
        return jnp.sum(model.apply(variables, x) ** 2)

    each = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss)), in_axes=(None, 0)))
    found = each(variables, x)
    one = jax.jit(jax.grad(loss))
    expected = jax.tree.map(
        lambda *g: np.stack(g), *(one(variables, part) for part in x)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_other_platforms_keep_their_operations():
    model, x = Small(), jnp.ones((2, 17, 13, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def text(platform):
        loss = jax.grad(lambda variables: jnp.sum(model.apply(variables, x)))
        traced = jax.jit(loss).trace(variables)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    for platform in ("cuda", "tpu"):
        native = text(platform)
        assert "select_and_scatter" in native and "concatenate" not in native
    ours = text("cpu")
    assert "select_and_scatter" not in ours and "concatenate" in ours
