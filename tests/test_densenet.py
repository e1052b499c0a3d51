import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shapes

from medjax.models import classifier, densenet


def size(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("blocks", "growth", "features", "parameters"),
    [  # torchvision's own counts: densenet121, 169, 201 and 161.
        ((6, 12, 24, 16), 32, 64, 7_978_856),
        pytest.param((6, 12, 32, 32), 32, 64, 14_149_480, marks=pytest.mark.slow),
        pytest.param((6, 12, 48, 32), 32, 64, 20_013_928, marks=pytest.mark.slow),
        pytest.param((6, 12, 36, 24), 48, 96, 28_681_000, marks=pytest.mark.slow),
    ],
)
def test_it_has_torchvisions_parameters(blocks, growth, features, parameters):
    model = densenet.densenet(1000, blocks=blocks, growth=growth, features=features)
    assert size(shapes(model, 1, 224, 224, 3)["params"]) == parameters


def test_a_grey_stem_has_a_third_of_the_stem_weights():
    params = shapes(densenet.densenet121(14), 1, 224, 224, 1)["params"]
    assert params["stem"]["conv"]["kernel"].shape == (7, 7, 1, 64)
    assert size(params) == 7_978_856 - 1000 * 1025 + 14 * 1025 - 7 * 7 * 2 * 64


def initial(model, image):
    make = jax.jit(functools.partial(model.init, train=False))
    return make(jax.random.key(0), image.astype(np.float32))


def applied(model, variables, image):
    apply = jax.jit(functools.partial(model.apply, train=False))
    return apply(variables, image.astype(np.float32))


def normalised(x, p, s):
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


def convolved(x, kernel, pad, stride=1):
    """A convolution by its definition, in float64: [H, W, I] x [k, k, I, O]."""
    k = kernel.shape[0]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[0] - k + 1, stride)
    columns = range(0, x.shape[1] - k + 1, stride)
    return np.array(
        [
            [np.tensordot(x[i : i + k, j : j + k], kernel, 3) for j in columns]
            for i in rows
        ]
    )


def pooled(x, size, stride, pad, reduce):
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    rows = range(0, x.shape[0] - size + 1, stride)
    columns = range(0, x.shape[1] - size + 1, stride)
    return np.array(
        [[reduce(x[i : i + size, j : j + size], (0, 1)) for j in columns] for i in rows]
    )


@pytest.mark.parametrize(
    ("stem", "bottleneck"), [("imagenet", 4), ("half", 4), ("quarter", 0)]
)
def test_it_computes_what_the_paper_says(stem, bottleneck):
    """Against the layers written out in numpy, with every weight and statistic random."""
    model = densenet.densenet(
        3,
        blocks=(2, 1),
        growth=4,
        features=6,
        stem=stem,
        bottleneck=bottleneck,
        pool="mean_max" if stem == "half" else "mean",
    )
    image = np.random.default_rng(0).normal(size=(16, 16, 2))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: (
            rng.uniform(0.3, 1.2, leaf.shape).astype(np.float32)
            * (rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1)
        ),
        shapes(model, 1, 224, 224, 2),
    )
    p, s = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables[name])
        for name in ("params", "batch_stats")
    )

    def norm_relu(x, stage, name):
        return np.maximum(normalised(x, p[stage][name], s[stage][name]), 0)

    kernel = p["stem"]["conv"]["kernel"]
    size, pad = (7, 3) if stem == "imagenet" else (5, 2)
    assert kernel.shape[0] == size
    x = norm_relu(convolved(image, kernel, pad, 2), "stem", "norm")
    if stem == "imagenet":
        x = pooled(x, 3, 2, 1, np.max)
    elif stem == "quarter":
        x = pooled(x, 2, 2, 0, np.mean)
    maps = {"stem": x}
    for stage, depth in (("stage1", 2), ("stage2", 1)):
        if stage == "stage2":
            x = norm_relu(x, stage, "transition_norm")
            x = convolved(x, p[stage]["transition_conv"]["kernel"], 0)
            x = pooled(x, 2, 2, 0, np.mean)
        for layer in range(1, depth + 1):
            new = norm_relu(x, stage, f"layer{layer}_norm1")
            if bottleneck:
                new = convolved(new, p[stage][f"layer{layer}_conv1"]["kernel"], 0)
                new = norm_relu(new, stage, f"layer{layer}_norm2")
            new = convolved(new, p[stage][f"layer{layer}_conv2"]["kernel"], 1)
            x = np.concatenate([x, new], axis=-1)
        if stage == "stage2":
            x = norm_relu(x, stage, "norm")
        maps[stage] = x
    pooled_max = [x.max((0, 1))] if stem == "half" else []
    x = np.concatenate([x.mean((0, 1)), *pooled_max])
    expected = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    got, sown = jax.jit(
        functools.partial(model.apply, train=False, mutable=["intermediates"])
    )(variables, image[None].astype(np.float32))
    np.testing.assert_allclose(got[0], expected, rtol=1e-4)
    pairs = zip(sown["intermediates"]["stages"], maps.values(), strict=True)
    for after, (found, wanted) in enumerate(pairs, start=1):
        atol = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=atol)
        apply = functools.partial(model.apply, train=False, after=after)
        again = jax.jit(apply)(variables, found)
        np.testing.assert_allclose(again, got, rtol=1e-5)


@pytest.mark.parametrize("space", [(5, 4), (3, 2, 4)])
def test_the_first_maximum_has_the_gradient(space):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (2, *space, 6)).astype(np.float32)  # Many are equal.
    g = rng.normal(size=(2, 6)).astype(np.float32)
    found, pull = jax.vjp(classifier.maximum, x)
    flat = x.reshape(2, -1, 6)
    np.testing.assert_array_equal(found, flat.max(1))
    expected = np.zeros_like(flat)
    np.put_along_axis(expected, flat.argmax(1)[:, None], g[:, None], 1)
    np.testing.assert_array_equal(pull(g)[0].reshape(flat.shape), expected)


def test_the_gradient_of_the_maximum_is_finite_however_xla_rounds():
    """Unoptimised, it rounds the last grid in two ways: none is then the maximum."""
    model = densenet.densenet_small(
        2, blocks=(1, 1), growth=8, features=8, pool="mean_max"
    )
    image = np.random.default_rng(0).normal(size=(8, 32, 32, 1)).astype(np.float32)
    variables = initial(model, image)

    def loss(params):
        variables_of = {**variables, "params": params}
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return (apply(variables_of, image)[0] ** 2).sum()

    found = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_bfloat16_computes_in_half_and_keeps_float32_parameters():
    make = functools.partial(densenet.densenet_small, 2, blocks=(1, 1), growth=4)
    image = np.ones((1, 16, 16, 1))
    variables = initial(make(dtype=jnp.bfloat16), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    half = applied(make(dtype=jnp.bfloat16), variables, image)
    full = applied(make(), variables, image)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.05)
    assert (half != full).any()


def test_an_unknown_stem_is_named():
    with pytest.raises(ValueError, match="huge"):
        shapes(densenet.densenet_small(2, stem="huge"), 1, 224, 224, 1)


@pytest.mark.parametrize("stem", ["imagenet", "half", "quarter"])
def test_a_volume_turned_with_its_kernels_says_the_same(stem):
    """No axis of a volume is treated otherwise than another."""
    model = densenet.densenet(2, blocks=(1, 1), growth=4, features=4, stem=stem)
    image = np.random.default_rng(0).random((2, 16, 20, 24, 1), np.float32)
    variables = initial(model, image)

    def turned(leaf):
        return leaf.transpose(1, 2, 0, 3, 4) if leaf.ndim == 5 else leaf

    other = {**variables, "params": jax.tree.map(turned, variables["params"])}
    assert variables["params"]["stem"]["conv"]["kernel"].ndim == 5
    np.testing.assert_allclose(
        applied(model, variables, image),
        applied(model, other, image.transpose(0, 2, 3, 1, 4)),
        rtol=1e-4,
        atol=1e-6,
    )
