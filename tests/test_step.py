import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from medjax import losses
from medjax.augment import intensity, policy
from medjax.data import modality
from medjax.models.densenet import densenet
from medjax.training import optim, step

TASKS, ROWS = 3, 8
KEY = jax.random.key(7)
# Adam divides by the gradient's size, noise in small ones included: plain descent.
OPTIMIZER = optax.with_extra_args_support(optax.sgd(0.1))
make = functools.partial(
    densenet, TASKS, blocks=(1, 1), growth=4, features=4, stem="half"
)
MODEL, ALONE = make(axis_name=step.AXIS), make()
PARTS = {
    "apply": MODEL.apply,
    "augment": functools.partial(
        policy.augment,
        ops=[functools.partial(intensity.noise, std=0.1)],
        prepare=functools.partial(modality.standardise, mean=0.5, std=0.25),
    ),
    "loss": losses.weighted_bce,
    "optimizer": OPTIMIZER,
}


def new_state(ema=0.9):
    init = jax.jit(functools.partial(MODEL.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    w = jnp.linspace(0.2, 0.9, TASKS)
    hyper = optim.Hyper(1e-2, 1e-2, ema, 0.1, {"w_pos": w, "w_neg": 1 - w})
    return step.init_state(variables, optimizer=OPTIMIZER, dual={}, hyper=hyper)


def model_of(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def batch(shards):
    rng = np.random.default_rng(0)
    weight = (rng.random((ROWS, TASKS)) < 0.6).astype(np.float32)
    weight[0] = 0  # One shard knows far fewer labels than the others.
    weight[1] = 0
    flat = {
        "image": rng.integers(0, 256, (ROWS, 16, 16, 1), np.uint8),
        "label": rng.integers(0, 2, (ROWS, TASKS)).astype(np.float32),
        "weight": weight,
        "id": np.arange(ROWS, dtype=np.int32),
        "epoch": np.zeros(ROWS, np.int32),
        "occurrence": np.zeros(ROWS, np.int32),
    }
    return {k: v.reshape(shards, -1, *v.shape[1:]) for k, v in flat.items()}


VMAPPED = jax.jit(
    jax.vmap(
        functools.partial(step.train_step, **PARTS),
        in_axes=(None, 0, None),
        axis_name=step.AXIS,
    )
)


def by_vmap(state, shards):
    return jax.tree.map(lambda x: x[0], VMAPPED(state, batch(shards), KEY))


def by_pmap(state, shards):
    assert shards == jax.local_device_count()  # conftest.py forces four.
    return step.compile_step(**PARTS)(state, batch(shards), KEY)


def by_shard_map(state, shards):
    mesh = Mesh(jax.local_devices()[:shards], (step.AXIS,))
    whole, part = PartitionSpec(), PartitionSpec(step.AXIS)

    def one(state, batch, key):
        flat = jax.tree.map(lambda x: x[0], batch)
        return step.train_step(state, flat, key, **PARTS)

    mapped = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(whole, part, whole),
        out_specs=whole,
        check_vma=False,
    )
    return jax.jit(mapped)(state, batch(shards), KEY)


@pytest.fixture(scope="module")
def whole():
    return by_vmap(new_state(), 1)


@pytest.mark.parametrize(
    ("way", "shards"),
    [(by_vmap, 2), (by_vmap, 4), (by_vmap, 8), (by_pmap, 4), (by_shard_map, 4)],
)
def test_an_update_does_not_depend_on_the_number_of_shards(whole, way, shards):
    state, scalars = way(new_state(), shards)
    chex.assert_trees_all_close(scalars, whole[1], rtol=1e-5)
    chex.assert_trees_all_close(state, whole[0], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_weighted_mean_over_images_that_know_a_label(whole):
    one = batch(1)
    image = PARTS["augment"](KEY, jax.tree.map(lambda x: x[0], one))
    state = new_state()
    variables = model_of(state)
    apply = functools.partial(ALONE.apply, train=True, mutable=["batch_stats"])
    logits, _ = jax.jit(apply)(variables, image)
    total, count = losses.weighted_bce(
        logits, one["label"][0], one["weight"][0], **state.hyper.loss
    )
    assert count == np.any(one["weight"][0] > 0, axis=1).sum()
    np.testing.assert_allclose(whole[1]["loss"], total / count, rtol=1e-5)


def test_unknown_labels_have_no_part_in_the_update(whole):
    other = batch(1)
    other["label"] = np.where(other["weight"] > 0, other["label"], np.nan)
    state, _ = jax.tree.map(lambda x: x[0], VMAPPED(new_state(), other, KEY))
    chex.assert_trees_all_equal(state, whole[0])


def test_the_average_starts_at_once_and_then_lags(whole):
    state, _ = whole
    old, new, averaged = (
        jax.tree.leaves(tree)
        for tree in (model_of(new_state()), model_of(state), state.averaged)
    )
    for a, b, c in zip(old, new, averaged, strict=True):
        np.testing.assert_allclose(c, 0.1 * a + 0.9 * b, rtol=1e-4, atol=1e-6)


def test_without_averaging_the_average_is_the_weights():
    state, _ = by_vmap(new_state(ema=0.0), 1)
    chex.assert_trees_all_close(state.averaged, model_of(state), rtol=1e-6)


def views(x):
    return jnp.stack([x, x[:, :, ::-1]])


def logits_of(state, image):
    apply = jax.jit(functools.partial(MODEL.apply, train=False))
    return np.asarray(apply(state.averaged, image), float)


@pytest.mark.parametrize(
    ("probability", "oracle"),
    [
        (jax.nn.sigmoid, lambda z: 1 / (1 + np.exp(-z))),
        (jax.nn.softmax, lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)),
    ],
)
def test_evaluation_averages_the_views_probabilities_by_the_averaged_weights(
    probability, oracle
):
    state = new_state()._replace(params=None, batch_stats=None)
    image = np.random.default_rng(1).random((4, 2, 16, 16, 1), np.float32)
    evaluate = step.compile_eval(
        step.eval_step, apply=MODEL.apply, views=views, probability=probability
    )
    got = np.reshape(evaluate(state, image), (8, TASKS))
    flat = image.reshape(8, 16, 16, 1)
    both = [oracle(logits_of(state, x)) for x in (flat, flat[:, :, ::-1])]
    np.testing.assert_allclose(got, np.mean(both, axis=0), atol=1e-5)


def test_the_classifier_maps_the_embedding_of_the_first_view_to_the_logits():
    state = new_state()._replace(params=None, batch_stats=None)
    image = np.random.default_rng(1).random((4, 2, 16, 16, 1), np.float32)
    embed = step.compile_eval(step.embed_step, apply=MODEL.apply, views=views)
    feature = np.reshape(embed(state, image), (8, -1))
    layer = state.averaged["params"]["classifier"]
    expected = logits_of(state, image.reshape(8, 16, 16, 1))
    got = feature @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_what_the_loss_learns_descends_and_alpha_ascends(shards):
    """The saddle's variables see the whole batch's gradient on every shard."""
    hyper = {"prevalence": jnp.full(TASKS, 0.3), "margin": 1.0}
    dual = {name: jnp.full(TASKS, 0.2) for name in ("a", "b", "alpha")}
    state = new_state()
    state = state._replace(dual=dual, hyper=state.hyper._replace(loss=hyper))
    mapped = jax.vmap(
        functools.partial(step.train_step, **{**PARTS, "loss": losses.auc_margin}),
        in_axes=(None, 0, None),
        axis_name=step.AXIS,
    )
    after, _ = jax.tree.map(lambda x: x[0], jax.jit(mapped)(state, batch(shards), KEY))

    one = jax.tree.map(lambda x: x[0], batch(1))
    apply = functools.partial(ALONE.apply, train=True, mutable=["batch_stats"])
    logits, _ = jax.jit(apply)(model_of(state), PARTS["augment"](KEY, one))

    def mean(dual):
        total, count = losses.auc_margin(
            logits, one["label"], one["weight"], **dual, **hyper
        )
        return total / count

    gradient = jax.grad(mean)(dual)
    for name, sign in (("a", -1), ("b", -1), ("alpha", 1)):
        expected = dual[name] + sign * 0.1 * gradient[name]
        np.testing.assert_allclose(after.dual[name], expected, rtol=1e-5)
