"""The U-Net's shapes, parts and gradients, and what it refuses."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shapes

from medjax.errors import InputError
from medjax.models import architectures, unet


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def small(**options):
    return architectures.unet(2, **{"widths": (4, 6), "strides": (1, 2), **options})


def filled(model, *shape):
    """Variables that are random, the norms' too."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
            if len(leaf.shape) > 1
            else rng.uniform(0.5, 1.5, leaf.shape)
        ),
        shapes(model, *shape),
    )


def applied(model, variables, image, train=False):
    return jax.jit(functools.partial(model.apply, train=train))(variables, image)


@pytest.mark.parametrize(
    ("shape", "fine"), [((2, 16, 24, 3), 1), ((1, 8, 16, 8, 4), 2)]
)
def test_logits_have_the_resolution_of_the_image(shape, fine):
    model = small(widths=(2, 3, 4), strides=(fine, 2, 2), deep=2)
    variables = filled(model, *shape)
    stages = {"stem", "down1", "down2", "up2", "up1", "head1", "head2", "head"}
    assert variables.keys() == {"params"} and variables["params"].keys() == stages
    full = applied(model, variables, draw(*shape))
    assert full.shape == (*shape[:-1], 2) and full.dtype == jnp.float32
    logits = applied(model, variables, draw(*shape), train=True)
    np.testing.assert_array_equal(logits[0], full)
    for level, coarse in enumerate(logits[1:], 1):
        lower = [n // (fine * 2**level) for n in shape[1:-1]]
        assert coarse.shape == (shape[0], *lower, 2)


def test_one_without_deep_supervision_gives_one_array_and_has_one_head():
    model = small()
    variables = filled(model, 1, 8, 8, 1)
    assert applied(model, variables, draw(1, 8, 8, 1), train=True).shape == (1, 8, 8, 2)
    assert not {"head1"} & variables["params"].keys()


def test_the_configs_name_finds_it():
    model = architectures.unet(tasks=3, axis_name="batch", dtype=jnp.float32)
    assert isinstance(model, type(architectures.unet(3))) and model.tasks == 3
    assert model.widths == (16, 32, 64, 128)


@pytest.mark.parametrize(
    ("strides", "attention"),
    [((1, 2), True), pytest.param((2, 2), False, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_volume_turned_with_its_kernels_is_segmented_the_same(strides, attention):
    model = small(strides=strides, attention=attention)
    image = draw(1, 4, 8, 12, 2)
    variables = filled(model, *image.shape)

    def turned(leaf):
        return leaf.transpose(1, 2, 0, 3, 4) if leaf.ndim == 5 else leaf

    expected = applied(model, variables, image).transpose(0, 2, 3, 1, 4)
    other = jax.tree.map(turned, variables)
    got = applied(model, other, image.transpose(0, 2, 3, 1, 4))
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())


def test_flat_kernels_see_each_slice_alone():
    """A volume of one slice, repeated, is segmented as the image is."""
    flat = small(groups=2, attention=True)
    image = draw(1, 16, 8, 2)
    variables = filled(flat, *image.shape)
    strides, kernels = ((1, 1, 1), (1, 2, 2)), ((1, 3, 3),) * 2
    deep = small(groups=2, attention=True, strides=strides, kernels=kernels)
    thick = jax.tree.map(lambda x: x[None] if x.ndim == 4 else x, variables)
    volume = np.repeat(image[:, None], 3, 1)
    assert jax.tree.map(np.shape, thick) == jax.tree.map(
        lambda leaf: leaf.shape, shapes(deep, *volume.shape)
    )
    expected = applied(flat, variables, image)
    for got in np.moveaxis(applied(deep, thick, volume), 1, 0):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_each_image_of_a_batch_is_segmented_as_if_alone():
    model = small()
    image = draw(3, 4, 4, 8, 2) * np.array([1, 5, 0.1]).reshape(3, 1, 1, 1, 1)
    image = image.astype(np.float32)
    variables = filled(model, *image.shape)
    together = applied(model, variables, image)
    alone = [applied(model, variables, one[None])[0] for one in image]
    scale = np.abs(together).max()
    np.testing.assert_allclose(together, alone, atol=1e-4 * scale)


@pytest.mark.parametrize("groups", [0, 1, 2, 6])
def test_the_norm_is_that_of_linen(groups):
    x = draw(2, 3, 4, 5, 6) * 2 + np.arange(6, dtype=np.float32)
    module = unet.Norm(groups, jnp.float32)
    variables = {"params": {"scale": draw(6) + 2, "bias": draw(6)}}
    theirs = nn.GroupNorm(num_groups=groups or 6, epsilon=1e-5)
    expected = jax.jit(theirs.apply)(variables, x)
    found = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    cut = jax.jit(functools.partial(module.apply, relu=True))(variables, x)
    np.testing.assert_allclose(cut, np.maximum(expected, 0), atol=1e-4)


def test_a_block_that_adds_nothing_is_the_identity_of_what_is_positive():
    block = unet.ConvBlock(3, (3, 3, 3), 0, jnp.float32)
    x = np.abs(draw(1, 4, 4, 4, 3))
    variables = jax.jit(block.init)(jax.random.key(0), x)
    assert "shortcut" not in variables["params"]
    variables["params"]["norm2"]["scale"] = np.zeros(3)
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), x)


def test_a_gate_lets_through_what_its_weight_says():
    """Oktay et al., eq. 1 and 2, in float64."""
    gate = unet.Gate(0, jnp.float32)
    x, g = draw(1, 4, 4, 4, 2), np.flip(draw(1, 4, 4, 4, 3))
    variables = jax.jit(gate.init)(jax.random.key(0), x, g)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    both = x @ p["across"]["kernel"][0, 0, 0] + g @ p["coarse"]["kernel"][0, 0, 0]
    mean, std = both.mean((1, 2, 3)), np.sqrt(both.var((1, 2, 3)) + 1e-5)
    seen = np.maximum((both - mean) / std, 0) @ p["weight"]["kernel"][0, 0, 0]
    expected = x / (1 + np.exp(-seen))
    found = jax.jit(gate.apply)(variables, x, g)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_weight_has_a_gradient():
    model = small(attention=True, deep=1, blocks=(0, 2), up_blocks=0)
    image = draw(1, 4, 8, 4, 2)
    variables = filled(model, *image.shape)

    @jax.jit
    @jax.grad
    def gradient(variables):
        logits = model.apply(variables, image, train=True)
        return sum(jnp.sum(jnp.sin(z)) for z in logits)

    found = jax.tree.leaves_with_path(gradient(variables))
    for path, leaf in found:
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path


@pytest.mark.slow
def test_levels_that_are_computed_again_give_the_same_and_keep_less():
    """Kept for the gradient; XLA doesn't heed it on CPUs, where memory is no measure."""
    image = draw(1, 16, 16, 1)
    params = filled(small(blocks=3), *image.shape)["params"]

    def loss(params, remat):
        model = small(remat=remat, blocks=3)
        return jnp.sum(model.apply({"params": params}, image, train=True) ** 2)

    def kept(remat):
        of = functools.partial(loss, remat=remat)
        arrays = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(of, p)[1], params))
        return sum(array.size for array in arrays)

    assert kept(remat=True) < 0.5 * kept(remat=False)
    again, once = (
        jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat)))(params)
        for remat in (True, False)
    )
    chex.assert_trees_all_close(again, once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_frozen_stages_have_no_gradient_and_change_no_logits(frozen):
    options = {"widths": (2, 3), "deep": 1, "attention": True}
    image = draw(1, 8, 8, 1)
    variables = filled(small(**options), *image.shape)
    names = small(**options).stage_names
    assert names == ("stem", "down1", "up1")
    assert variables["params"].keys() - set(names) == {"head", "head1"}

    def gradient(frozen):
        def loss(variables):
            logits = small(**options, frozen=frozen).apply(variables, image, train=True)
            return sum(jnp.sum(jnp.sin(z)) for z in logits)

        return jax.jit(jax.value_and_grad(loss))(variables)

    free, all_gradients = gradient(0)
    value, gradients = gradient(frozen)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    same(value, free)
    for name, leaves in gradients["params"].items():
        still = name in names[:frozen]
        for leaf in jax.tree.leaves(leaves):
            assert np.any(leaf != 0) != still, name
    head = all_gradients["params"]["head"]
    jax.tree.map(same, gradients["params"]["head"], head)


def test_bfloat16_computes_in_half_and_keeps_float32_parameters_and_logits():
    half, full = small(dtype=jnp.bfloat16, deep=1), small(deep=1)
    image = draw(1, 16, 16, 2)
    types = {leaf.dtype for leaf in jax.tree.leaves(shapes(half, *image.shape))}
    assert types == {jnp.dtype("float32")}
    variables = filled(full, *image.shape)
    got = applied(half, variables, image, train=True)
    expected = applied(full, variables, image, train=True)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.1 * np.abs(b).max())
        assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "shape", "match"),
    [
        (
            {"strides": (2, 2)},
            (1, 8, 10, 1),
            "8 x 10 can't be divided .* 4 x 4 in all; pad it to 8 x 12",
        ),
        ({"strides": ((1, 2, 2), (2, 2, 2))}, (1, 3, 8, 8, 1), "2 x 4 x 4"),
        ({"strides": (1, 2, 2)}, (1, 8, 8, 1), "model.strides: 3 of them for 2 levels"),
        ({"blocks": (1, 1, 1)}, (1, 8, 8, 1), "model.blocks: 3 of them for 2 levels"),
        ({"up_blocks": (1, 1)}, (1, 8, 8, 1), "model.up_blocks: 2 of them for 1"),
        (
            {"kernels": ((1, 3, 3),) * 2},
            (1, 8, 8, 1),
            "model.kernels: 3 of them for 2 axes",
        ),
        ({"kernels": 2}, (1, 8, 8, 1), "model.kernels: an even size"),
        ({"groups": 3}, (1, 8, 8, 1), "model.groups: 4 channels can't .* by 3"),
        ({"deep": 2}, (1, 8, 8, 1), "model.deep: 2; give 0 to 1"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(options, shape, match):
    with pytest.raises(InputError, match=match):
        shapes(small(**options), *shape)
