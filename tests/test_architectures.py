import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shapes

from medjax.models import architectures, convnext, densenet, efficientnet, resnet

SMALL = {
    "basic": partial(resnet.resnet, blocks=(1, 1), bottleneck=False),
    "bottleneck": partial(resnet.resnet, blocks=(1, 1), bottleneck=True),
    "efficientnet": partial(
        efficientnet.efficientnet,
        table=((1, 3, 1, 8, 1), (4, 5, 2, 8, 2)),
        stem=8,
        top=16,
    ),
    "lite": partial(
        efficientnet.efficientnet,
        table=((1, 3, 1, 8, 1), (4, 5, 2, 8, 2)),
        stem=8,
        top=16,
        lite=True,
    ),
    "convnext": partial(convnext.convnext, blocks=(1, 1), widths=(8, 16)),
}


def quick(*names):
    """The small networks as parameters; the others than these are slow."""
    slow = pytest.mark.slow
    return [n if n in names else pytest.param(n, marks=slow) for n in SMALL]


def size(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # As torchvision publishes them, and timm EfficientNet-Lite0 and ViTs.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("efficientnet_b0", 5_288_548),
        ("efficientnet_lite0", 4_652_008),
        ("convnext_tiny", 28_589_128),
        # The class token's position is added to it.
        ("vit_small", 22_050_664 - 384),
        ("vit_base", 86_567_656 - 768),
    ],
)
def test_it_has_the_published_parameters(name, parameters):
    model = getattr(architectures, name)(1000)
    assert size(shapes(model, 1, 64, 64, 3)["params"]) == parameters


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [  # As Keras publishes them, without the moving statistics.
        ("resnet50", {"stride_first": True, "use_bias": True}, 25_583_592),
        ("efficientnet_b0", {"padding": "SAME"}, 5_288_548),
    ],
)
def test_keras_options_have_its_parameters(name, options, parameters):
    model = getattr(architectures, name)(1000, **options)
    assert size(shapes(model, 1, 64, 64, 3)["params"]) == parameters


def filled(model, image):
    """Variables that are random, the scales of ConvNeXt's blocks and the norms too."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(0, 0.2, leaf.shape)
            if len(leaf.shape) > 1
            else rng.uniform(0.5, 1.5, leaf.shape)
        ),
        shapes(model, *image.shape),
    )


def applied(model, variables, image, **how):
    return jax.jit(functools.partial(model.apply, train=False, **how))(variables, image)


@pytest.mark.parametrize("name", quick("basic"))
def test_a_volume_turned_with_its_kernels_says_the_same(name):
    """No axis of a volume is treated otherwise than another."""
    model = SMALL[name](2)
    image = np.random.default_rng(0).random((2, 16, 24, 32, 1), np.float32)
    variables = filled(model, image)

    def turned(leaf):
        return leaf.transpose(1, 2, 0, 3, 4) if leaf.ndim == 5 else leaf

    other = {**variables, "params": jax.tree.map(turned, variables["params"])}
    assert variables["params"]["stem"]["conv"]["kernel"].ndim == 5
    got = applied(model, variables, image)
    again = applied(model, other, image.transpose(0, 2, 3, 1, 4))
    np.testing.assert_allclose(got, again, rtol=1e-4, atol=1e-4 * np.abs(got).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", quick("efficientnet", "convnext"))
def test_a_flat_volume_says_what_its_slice_does(name):
    """A kernel with weights in one slice alone sees each slice as an image."""
    model = SMALL[name](2)
    image = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    flat = filled(model, image)
    volume = np.repeat(image[:, None], 32, 1)

    def deepened(leaf):
        if leaf.ndim != 4:
            return leaf
        side = leaf.shape[0]
        deep = np.zeros((side, *leaf.shape), np.float32)
        deep[side // 2] = leaf
        return deep

    deep = {**flat, "params": jax.tree.map(deepened, flat["params"])}
    np.testing.assert_allclose(
        applied(model, flat, image), applied(model, deep, volume), rtol=1e-4
    )


@pytest.mark.parametrize("name", quick("basic"))
def test_bfloat16_computes_in_half_and_keeps_float32_parameters(name):
    image = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    half, full = SMALL[name](2, dtype=jnp.bfloat16), SMALL[name](2)
    types = {leaf.dtype for leaf in jax.tree.leaves(shapes(half, *image.shape))}
    assert types == {jnp.dtype("float32")}
    variables = filled(full, image)
    got, sown = applied(half, variables, image, mutable=["intermediates"])
    assert {x.dtype for x in sown["intermediates"]["stages"]} == {jnp.dtype("bfloat16")}
    assert got.dtype == jnp.float32
    expected = applied(full, variables, image)
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("densenet", marks=pytest.mark.slow),
        "bottleneck",
        pytest.param("efficientnet", marks=pytest.mark.slow),
    ],
)
def test_computing_stages_again_changes_nothing(name):
    """Logits, statistics and gradients are equal; less is kept for the gradients."""
    make = {**SMALL, "densenet": partial(densenet.densenet, blocks=(1, 1))}[name]
    image = np.random.default_rng(0).random((4, 32, 32, 1), np.float32)
    variables = filled(make(2), image)

    def loss(params, **how):
        given = {**variables, "params": params}
        apply = partial(make(2, **how).apply, train=True, mutable=["batch_stats"])
        logits, stats = apply(given, image)
        return jnp.sum(jnp.sin(logits)), (logits, stats)

    def answers(**how):
        both = jax.value_and_grad(partial(loss, **how), has_aux=True)
        return jax.jit(both).trace(variables["params"])

    plain, again = answers(), answers(remat=True)
    assert ["remat" in str(traced.jaxpr) for traced in (plain, again)] == [False, True]
    expected, got = (
        traced.lower().compile()(variables["params"]) for traced in (plain, again)
    )
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # Some gradients are 0 but for rounding: of what shifts a norm's input.
        atol = 1e-5 * np.abs(b).max() + 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["efficientnet", "convnext"])
def test_training_leaves_a_block_out_or_weighs_it_more(name):
    """One block of two may go, half of the time: an image has one of two outputs."""
    table = {"table": ((2, 3, 1, 8, 2),)}
    sizes = table if name == "efficientnet" else {"blocks": (2,), "widths": (8,)}
    model = SMALL[name](2, **sizes, stochastic_depth=0.5)
    image = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    variables = filled(model, image)

    @jax.jit
    def stage(params, keys=None):
        how = {"train": True, "mutable": ["batch_stats", "intermediates"]}
        given = variables | {"params": params}
        _, updates = model.apply(given, image, keys=keys, **how)
        return updates["intermediates"]["stages"][1]

    last = {"efficientnet": "block2_project_norm", "convnext": "block2_scale"}[name]
    stages = variables["params"]["stage1"]
    nothing = jax.tree.map(np.zeros_like, {last: stages[last]})
    without = stage(variables["params"] | {"stage1": stages | nothing})
    twice = without + 2 * (stage(variables["params"]) - without)
    got = stage(variables["params"], jax.random.split(jax.random.key(0), len(image)))

    def equal(expected):
        near = np.isclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        return near.reshape(len(image), -1).all(axis=1)

    assert np.array_equal(equal(without), ~equal(twice))
    assert 20 <= equal(without).sum() <= 44  # of 64, binomial: 3 standard deviations


@pytest.mark.parametrize(
    "name", ["bottleneck", pytest.param("efficientnet", marks=pytest.mark.slow)]
)
def test_shards_share_their_batch_statistics(name):
    image = np.random.default_rng(0).random((4, 32, 32, 1), np.float32)
    alone, shared = SMALL[name](2), SMALL[name](2, axis_name="shards")
    variables = filled(alone, image)
    apply = functools.partial(alone.apply, train=True, mutable=["batch_stats"])
    expected, wanted = jax.jit(apply)(variables, image)
    apply = functools.partial(shared.apply, train=True, mutable=["batch_stats"])
    mapped = jax.jit(jax.vmap(apply, (None, 0), axis_name="shards"))
    got, found = mapped(variables, image.reshape(2, 2, 32, 32, 1))
    got = got.reshape(4, 2)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-3),
        found["batch_stats"],
        wanted["batch_stats"],
    )
