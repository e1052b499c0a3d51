import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medjax.evaluation import heatmaps
from medjax.models.densenet import densenet


def feature_of(rng, *shape):
    return np.maximum(rng.normal(size=shape), 0)


@pytest.mark.parametrize("space", [(5, 4), (3, 4, 2)])
def test_grad_cam_of_a_mean_is_the_class_activation_map(space):
    rng = np.random.default_rng(0)
    feature, weight = feature_of(rng, 2, *space, 6), rng.normal(size=(6, 3))
    axes = tuple(range(1, 1 + len(space)))
    with jax.enable_x64(True):
        found = heatmaps.grad_cam(
            jnp.asarray(feature), lambda x: x.mean(axes) @ jnp.asarray(weight)
        )
    # Zhou et al., CVPR 2016, eq. 2; the mean's gradient is the weight by the pixels.
    expected = np.moveaxis(np.maximum(feature @ weight, 0), -1, 1) / np.prod(space)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def curved(feature, weight):
    """Logits that are curved in the feature, [B, h, w, c] and [c, T]; NumPy or JAX."""
    return ((feature**2 + feature).sum(axis=(1, 2)) / 7) @ weight


def test_grad_cam_weighs_by_the_mean_of_a_curved_head_s_gradient():
    rng = np.random.default_rng(1)
    feature, weight = feature_of(rng, 2, 3, 4, 5), rng.normal(size=(5, 3))
    with jax.enable_x64(True):
        found = heatmaps.grad_cam(jnp.asarray(feature), lambda x: curved(x, weight))
    for b, t in np.ndindex(2, 3):
        gradient = (2 * feature[b] + 1) / 7 * weight[:, t]
        alpha = gradient.mean(axis=(0, 1))
        expected = np.maximum((feature[b] * alpha).sum(axis=-1), 0)
        np.testing.assert_allclose(found[b, t], expected, rtol=1e-12, atol=1e-15)


def test_grad_cam_plus_plus_is_the_paper_s_formula_written_out():
    rng = np.random.default_rng(2)
    feature, weight = feature_of(rng, 2, 3, 4, 5), rng.normal(size=(5, 3))
    feature[0, :, :, 2] = 0  # A dead channel.
    weight[3, 1] = 0  # A channel that says nothing: 0 / 0.
    with jax.enable_x64(True):
        found = heatmaps.grad_cam_plus_plus(
            jnp.asarray(feature), lambda x: curved(x, weight)
        )
    for b, t in np.ndindex(2, 3):
        expected = np.zeros((3, 4))
        for k in range(5):
            w = 0.0
            for i, j in np.ndindex(3, 4):
                g = (2 * feature[b, i, j, k] + 1) / 7 * weight[k, t]
                below = 2 * g**2
                for a, c in np.ndindex(3, 4):
                    below += feature[b, a, c, k] * g**3
                w += (g**2 / below if below else 0.0) * max(g, 0.0)
            expected += w * feature[b, :, :, k]
        expected = np.maximum(expected, 0)
        np.testing.assert_allclose(found[b, t], expected, rtol=1e-10, atol=1e-14)


def test_grad_cam_plus_plus_uses_the_derivatives_of_the_exponential():
    rng = np.random.default_rng(3)
    feature, weight = feature_of(rng, 1, 2, 3, 1), rng.uniform(0.5, 1, (2, 3, 1))
    with jax.enable_x64(True):
        found = heatmaps.grad_cam_plus_plus(
            jnp.asarray(feature), lambda x: (x * weight).sum((1, 2))
        )

        def score(value, i, j):  # exp(S) as a function of one pixel alone
            return jnp.exp((feature[0] * weight).sum() + value * weight[i, j, 0])

        total = feature.sum()
        w = 0.0
        for i, j in np.ndindex(2, 3):
            first, second, third = (
                derivative(0.0, i, j)
                for derivative in itertools.islice(derivatives(score), 3)
            )
            w += second / (2 * second + total * third) * first  # eq. 10 and 5
        expected = w * feature[0, ..., 0] / score(0.0, 0, 0)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-10)


def test_a_channel_that_no_relu_has_cut_cannot_burst_grad_cam_plus_plus():
    rng = np.random.default_rng(3)
    feature, weight = rng.normal(size=(1, 4, 4, 3)), rng.uniform(1, 2, (3, 1))
    feature -= feature.mean(axis=(1, 2), keepdims=True) + 2 / weight[:, 0] / 16
    with jax.enable_x64(True):  # 2 g^2 + total g^3 is 0, or as good as 0.
        found = heatmaps.grad_cam_plus_plus(
            jnp.asarray(feature), lambda x: x.sum((1, 2)) @ weight
        )
    expected = np.maximum((feature[0] * (16 * weight[:, 0] / 2)).sum(axis=-1), 0)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-10)


def derivatives(function):
    while True:
        function = jax.grad(function)
        yield function


def test_integrated_gradients_of_a_cubic_are_its_terms(monkeypatch):
    monkeypatch.setattr(heatmaps, "STEPS", 500)
    rng = np.random.default_rng(4)
    image, weight = rng.normal(size=(2, 4, 3, 1)), rng.normal(size=(12, 2))
    with jax.enable_x64(True):
        found = heatmaps.integrated_gradients(
            jnp.asarray(image),
            lambda x: (x**3).reshape(len(x), -1) @ weight,
        )
    expected = np.moveaxis((image**3).reshape(2, 12, 1) * weight, -1, 1)
    np.testing.assert_allclose(found.reshape(2, 2, 12), expected, rtol=2e-6)


@pytest.fixture(
    scope="module",
    params=[2, pytest.param(3, marks=pytest.mark.slow)],
    ids=["2-D", "3-D"],
)
def model(request):
    """A small network of four stages, its variables and two images."""
    net = densenet(
        tasks=3, blocks=(1, 1, 1), growth=4, bottleneck=0, features=4, stem="half"
    )
    key = jax.random.key(0)
    size = {2: 16, 3: 8}[request.param]
    image = jax.random.normal(key, (2, *(size,) * request.param, 1))
    variables = jax.jit(functools.partial(net.init, train=False))(key, image)
    # A trained classifier has a bias, and statistics that aren't 0 and 1.
    shake = lambda x: x + 0.3 * jax.random.uniform(key, x.shape)
    return net, jax.tree.map(shake, variables), image


def with_stages(net, variables, image):
    """The logits, and what the network has sown."""
    apply = functools.partial(net.apply, train=False, mutable=["intermediates"])
    return jax.jit(apply)(variables, image)


def test_integrated_gradients_add_up_to_the_logits(model):
    net, variables, image = model

    @jax.jit
    def logits(x):
        return net.apply(variables, x, train=False)

    integrate = jax.jit(heatmaps.integrated_gradients, static_argnums=1)
    found = integrate(image, logits)
    total = found.sum(axis=tuple(range(2, found.ndim)))
    expected = logits(image) - logits(jnp.zeros_like(image))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(total, expected, atol=0.02 * np.abs(expected).max())


def test_the_last_stage_s_heatmap_is_its_feature_times_the_classifier(model):
    net, variables, image = model
    found = jax.jit(functools.partial(heatmaps.heatmaps, apply=net.apply))(
        variables, image
    )
    _, sown = with_stages(net, variables, image)
    feature = np.asarray(sown["intermediates"]["stages"][-1], np.float64)
    weight = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)
    pixels = np.prod(feature.shape[1:-1])
    expected = np.moveaxis(np.maximum(feature @ weight, 0), -1, 1) / pixels
    assert found.shape == expected.shape and expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("method", heatmaps.METHODS)
def test_an_image_s_heatmaps_are_its_own(model, method):
    net, variables, image = model
    explain = jax.jit(
        lambda image: heatmaps.heatmaps(
            variables, image, apply=net.apply, method=method, stage=1
        )
    )
    both, alone = explain(image), explain(image[1:])
    assert both.dtype == jnp.float32 and both.min() >= 0 and both.shape[:2] == (2, 3)
    np.testing.assert_allclose(both[1:], alone, atol=1e-4 * float(both.max()))
    assert not np.allclose(both[0], both[1], atol=1e-2 * float(both.max()))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_s_heatmap_has_its_gradient(model, stage):
    net, variables, image = model
    explain = functools.partial(heatmaps.heatmaps, apply=net.apply, stage=stage)
    found = jax.jit(explain)(variables, image)
    told, sown = with_stages(net, variables, image)
    stages = sown["intermediates"]["stages"]

    @jax.jit
    def logits(x):  # through the stages above, by their own numbers
        return net.apply(variables, x, train=False, after=len(stages[: stage + 1]))

    feature = stages[stage]
    np.testing.assert_allclose(logits(feature), told, atol=1e-5)
    jacobian = jax.jit(jax.jacobian(logits))(feature)  # [B, T, B, h, w, c]
    for b in range(2):
        own = np.asarray(jacobian)[b, :, b]  # [T, h, w, c]
        weight = own.mean(axis=tuple(range(1, own.ndim - 1)))
        expected = np.maximum(np.asarray(feature)[b] @ weight.T, 0)
        expected = np.moveaxis(expected, -1, 0)
        np.testing.assert_allclose(
            found[b], expected, atol=1e-4 * max(expected.max(), 1e-6)
        )


TEMPLATES = np.array([[[1, 1], [1, 1]], [[1, -1], [-1, 1]], [[1, 1], [-1, -1]]])


def lit(image, templates=TEMPLATES):
    """Where each template is seen: [B, H, W, 1] -> [B, H, W, T], by one convolution."""
    kernel = jnp.moveaxis(jnp.asarray(templates, jnp.float32), 0, -1)[..., None, :]
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    return jax.nn.relu(found - 3)  # Only the whole template gives 4.


def known(variables, image, *, train, mutable=(), after=0):
    """A network whose evidence is known: task t sees template t, anywhere."""
    assert not train
    feature = image if after else lit(image)
    logits = variables * feature.sum(axis=(1, 2))
    return (logits, {"intermediates": {"stages": (feature,)}}) if mutable else logits


@pytest.mark.parametrize("method", heatmaps.METHODS)
@pytest.mark.parametrize("at", [(2, 3), (7, 5), (9, 9)])
def test_a_task_lights_up_where_its_evidence_is_and_moves_with_it(method, at):
    image = np.zeros((1, 14, 14, 1), np.float32)
    places = [at, (at[0] - 1, (at[1] + 5) % 12), ((at[0] + 4) % 12, at[1] - 2)]
    for (y, x), template in zip(places, TEMPLATES, strict=True):
        image[0, y : y + 2, x : x + 2, 0] = template
    found = np.asarray(
        heatmaps.heatmaps(np.ones(3), jnp.asarray(image), apply=known, method=method)
    )[0]
    for t, (y, x) in enumerate(places):
        where = np.argwhere(found[t] > 0)
        assert len(where) and np.all((where - (y, x) >= 0) & (where - (y, x) <= 1))
        if method != "integrated_gradients":
            assert where.tolist() == [[y, x]]


def test_evidence_against_a_task_lights_nothing_up():
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[0, 3:5, 3:5, 0] = TEMPLATES[0]
    against = np.array([-1.0, 1, 1])
    for method in heatmaps.METHODS:
        found = heatmaps.heatmaps(
            against, jnp.asarray(image), apply=known, method=method
        )
        assert not found[0, 0].any()


def test_the_network_runs_once_for_all_tasks():
    calls = []

    def counted(*arguments, after=0, **options):
        calls.append(after)
        return known(*arguments, after=after, **options)

    heatmaps.heatmaps(np.ones(3), jnp.ones((2, 8, 8, 1)), apply=counted)
    assert calls == [0, 1]


def test_heatmaps_of_half_precision_are_single():
    feature = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    found = heatmaps.grad_cam(feature, lambda x: x.astype(jnp.float32).mean((1, 2)))
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(12, 20), (7, 9), (6, 8, 10)])
def test_enlarging_is_linear_between_the_middles_of_the_pixels(shape):
    small = np.random.default_rng(0).random((2, 3, *(4, 5, 3)[: len(shape)]))
    found = heatmaps.enlarge(jnp.asarray(small, jnp.float32), shape)
    factor = np.divide(shape, small.shape[2:])
    for one, other in zip(small.reshape(6, *small.shape[2:]), found.reshape(6, *shape)):
        expected = ndimage.zoom(one, factor, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(other, expected, atol=1e-6)


def test_the_step_explains_the_averaged_model_and_the_image_as_it_is():
    class State:
        averaged = np.array([1.0, 2, 3])

    image = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 1)), jnp.float32) * 3
    found = heatmaps.heatmap_step(
        State, image, apply=known, views=lambda x: jnp.stack([x + 1, x[:, :, ::-1]])
    )
    expected = heatmaps.heatmaps(State.averaged, image + 1, apply=known)
    assert found.any()
    np.testing.assert_array_equal(found, expected)
