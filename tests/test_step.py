import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from medjax import losses
from medjax.augment import pixel_ops, policy
from medjax.data import normalisation
from medjax.models import layers
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
        policy.augment_batch,
        ops=[functools.partial(pixel_ops.noise, std=0.1)],
        prepare=functools.partial(normalisation.standardise, mean=0.5, std=0.25),
    ),
    "loss": losses.weighted_bce,
    "optimizer": OPTIMIZER,
}


@functools.cache
def first_variables():
    """On the host: a step may delete the state that it is given."""
    init = jax.jit(functools.partial(MODEL.init, train=False))
    return jax.device_get(init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))


def new_state(ema=0.9):
    variables = jax.tree.map(jnp.asarray, first_variables())
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
    [
        (by_vmap, 2),
        pytest.param(by_vmap, 4, marks=pytest.mark.slow),
        pytest.param(by_vmap, 8, marks=pytest.mark.slow),
        (by_pmap, 4),
        (by_shard_map, 4),
    ],
)
def test_an_update_does_not_depend_on_the_number_of_shards(whole, way, shards):
    state, scalars = way(new_state(), shards)
    chex.assert_trees_all_close(scalars, whole[1], rtol=1e-5)
    chex.assert_trees_all_close(state, whole[0], rtol=1e-5, atol=1e-6)


def test_gradients_of_a_batchs_parts_add_up_to_the_batchs():
    """With a network that doesn't normalise by the batch: a linear one."""

    def apply(variables, image, *, train, mutable):
        counted = {"seen": variables["batch_stats"]["seen"] + len(image)}
        flat = image.reshape(len(image), -1)
        return flat @ variables["params"]["head"]["w"], {"batch_stats": counted}

    w = np.random.default_rng(3).normal(size=(256, TASKS)).astype(np.float32)
    variables = {"params": {"head": {"w": w}}, "batch_stats": {"seen": 0.0}}
    hyper = new_state().hyper._replace(loss={}, dual_rate=0.1)
    dual = losses.auc_margin_variables(TASKS)
    p = np.full(TASKS, 0.3, np.float32)
    hyper = hyper._replace(loss={"prevalence": p, "margin": 1.0})
    state = step.init_state(variables, optimizer=OPTIMIZER, dual=dual, hyper=hyper)
    program = {**PARTS, "apply": apply, "loss": losses.auc_margin}

    def updated(accumulate):
        update = functools.partial(step.train_step, **program, accumulate=accumulate)
        mapped = jax.vmap(update, (None, 0, None), axis_name=step.AXIS)
        return jax.tree.map(lambda x: x[0], jax.jit(mapped)(state, batch(1), KEY))

    whole = updated(1)
    for accumulate in (2, 8):
        parts = updated(accumulate)
        assert parts[0].batch_stats["seen"] == ROWS
        chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole[0].dual["alpha"], dual["alpha"])


def test_what_an_image_drops_depends_on_its_own_key_alone():
    """The update is the same for any number of shards and parts of the batch."""

    def apply(variables, image, *, train, mutable, keys):
        flat = layers.drop(image.reshape(len(image), -1), keys, 0.5, whole=False)
        return flat @ variables["params"]["head"]["w"], {}

    w = np.random.default_rng(3).normal(size=(256, TASKS)).astype(np.float32)
    variables = {"params": {"head": {"w": w}}}
    state = step.init_state(
        variables, optimizer=OPTIMIZER, dual={}, hyper=new_state().hyper
    )
    program = {**PARTS, "apply": apply, "random": True}

    @functools.cache
    def compiled(accumulate):
        update = functools.partial(step.train_step, **program, accumulate=accumulate)
        return jax.jit(jax.vmap(update, (None, 0, None), axis_name=step.AXIS))

    def updated(shards, accumulate=1, key=KEY):
        done, _ = compiled(accumulate)(state, batch(shards), key)
        return done.params["head"]["w"][0]

    whole = updated(1)
    np.testing.assert_allclose(updated(4), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updated(2, accumulate=2), whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(updated(1, key=jax.random.key(8)), whole, atol=1e-4)


def test_the_loss_is_the_weighted_mean_over_images_that_know_a_label(whole):
    one = batch(1)
    image = PARTS["augment"](KEY, jax.tree.map(lambda x: x[0], one))["image"]
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


APPLIED = jax.jit(functools.partial(MODEL.apply, train=False))


def logits_of(state, image):
    return np.asarray(APPLIED(state.averaged, image), float)


@pytest.mark.parametrize(
    ("exclusive", "oracle"),
    [
        (False, lambda z: 1 / (1 + np.exp(-z))),
        (True, lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)),
    ],
)
def test_evaluation_averages_the_views_probabilities_by_the_averaged_weights(
    exclusive, oracle
):
    state = new_state()._replace(params=None, batch_stats=None)
    image = np.random.default_rng(1).random((4, 2, 16, 16, 1), np.float32)
    evaluate = step.compile_eval(
        step.eval_step, apply=MODEL.apply, views=views, exclusive=exclusive
    )
    got = np.reshape(evaluate(state, image), (8, TASKS))
    flat = image.reshape(8, 16, 16, 1)
    both = [oracle(logits_of(state, x)) for x in (flat, flat[:, :, ::-1])]
    np.testing.assert_allclose(1 / (1 + np.exp(-got)), np.mean(both, axis=0), atol=1e-5)


def test_an_ensemble_s_mean_is_left_on_the_device():
    """Its caller begins the next batch before it fetches."""
    log_odds = np.random.default_rng(0).normal(0, 4, (2, 3, TASKS)).astype(np.float32)
    mean = step.mean_of_members(lambda member, shift: member + shift)
    got = mean((*jnp.asarray(log_odds),), 1.0)
    assert isinstance(got, jax.Array)
    expected = np.mean(1 / (1 + np.exp(-log_odds - 1.0)), axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-got)), expected, rtol=1e-5)


def test_the_classifier_maps_the_embedding_of_the_first_view_to_the_logits():
    state = new_state()._replace(params=None, batch_stats=None)
    image = np.random.default_rng(1).random((4, 2, 16, 16, 1), np.float32)
    embed = step.compile_eval(step.embed_step, apply=MODEL.apply, views=views)
    feature = np.reshape(embed(state, image), (8, -1))
    layer = state.averaged["params"]["classifier"]
    expected = logits_of(state, image.reshape(8, 16, 16, 1))
    got = feature @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.slow
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
    logits, _ = jax.jit(apply)(model_of(state), PARTS["augment"](KEY, one)["image"])

    def mean(dual):
        total, count = losses.auc_margin(
            logits, one["label"], one["weight"], **dual, **hyper
        )
        return total / count

    gradient = jax.grad(mean)(dual)
    for name, sign in (("a", -1), ("b", -1), ("alpha", 1)):
        expected = dual[name] + sign * 0.1 * gradient[name]
        np.testing.assert_allclose(after.dual[name], expected, rtol=1e-5)


# ------------------------------------------------------------------ stages that stay

STAGES = ("stem", "stage1", "stage2")
ADAMW = optim.adamw(steps=100, warmup=1, clip=1.0)


def paced(frozen, optimizer, **pace):
    """A state of which so many stages are frozen, and its compiled step."""
    stay = STAGES[:frozen]
    parts = {**PARTS, "optimizer": optimizer, "frozen": stay}
    parts["apply"] = MODEL.clone(frozen=frozen).apply
    first = new_state()
    statistics = jax.tree.map(lambda x: x + 0.37, first.batch_stats)
    state = step.init_state(
        {"params": first.params, "batch_stats": statistics},
        optimizer=optimizer,
        dual={},
        hyper=first.hyper._replace(**pace),
        frozen=stay,
    )
    mapped = jax.vmap(
        functools.partial(step.train_step, **parts),
        in_axes=(None, 0, None),
        axis_name=step.AXIS,
    )

    def update(state):
        return jax.tree.map(lambda x: x[0], mapped(state, batch(1), KEY))[0]

    return state, jax.jit(update).lower(state).compile()


@pytest.fixture(scope="module")
def freezing():
    return {number: paced(number, ADAMW) for number in (0, 1, 3)}


def leaves_of(state):
    """The leaves of each stage of the weights, the statistics and their averages."""
    averaged = {f"averaged {part}": tree for part, tree in state.averaged.items()}
    return {
        (part, stage): jax.tree.leaves(leaves)
        for part, tree in {**model_of(state), **averaged}.items()
        for stage, leaves in tree.items()
    }


def is_same(one, other):
    return [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_frozen_stages_stay_to_the_bit_and_the_others_move(freezing, number):
    state, update = freezing[number]
    old = leaves_of(state)
    for _ in range(3):
        state = update(state)
    new = leaves_of(state)
    assert old.keys() == new.keys() >= {("params", "classifier"), ("params", "stem")}
    for part, stage in old:
        same = is_same(old[part, stage], new[part, stage])
        stays = stage in STAGES[:number]
        assert all(same) if stays else not any(same), (part, stage)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_optimiser_knows_nothing_of_frozen_stages(freezing, number):
    state, _ = freezing[number]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    known = {part.key for path in paths for part in path if hasattr(part, "key")}
    assert not known & set(STAGES[:number])
    assert known >= {*STAGES[number:], "classifier"}


def test_the_less_moves_the_less_is_computed_and_kept(freezing):
    steps = [update for _, update in freezing.values()]
    flops = [update.cost_analysis()["flops"] for update in steps]
    memory = [update.memory_analysis().temp_size_in_bytes for update in steps]
    for numbers in (flops, memory):
        assert numbers == sorted(set(numbers), reverse=True)


@pytest.fixture(scope="module")
def by_descent():
    """Plain descent: (share, start) -> a state, and the step of all of them."""
    ones, zeros = (dict.fromkeys(STAGES, value) for value in (1.0, 0.0))
    state, update = paced(0, OPTIMIZER, share=ones, start=zeros)

    def begin(share=ones, start=zeros):
        pace = jax.tree.map(jnp.float32, {"share": share, "start": start})
        return state._replace(hyper=state.hyper._replace(**pace))

    return begin, update


def test_a_stage_moves_by_its_share_of_the_rate(by_descent):
    begin, update = by_descent
    share = {"stem": 0.125, "stage1": 0.25, "stage2": 0.5}
    first, whole, part = (
        leaves_of(state)
        for state in (begin(), update(begin()), update(begin(share=share)))
    )
    for (kind, stage), start in first.items():
        if kind != "params":
            assert kind != "batch_stats" or all(
                is_same(whole[kind, stage], part[kind, stage])
            )
            continue
        moved = []
        for old, new, less in zip(
            start, whole[kind, stage], part[kind, stage], strict=True
        ):
            old, new, less = (np.asarray(x, float) for x in (old, new, less))
            expected = share.get(stage, 1.0) * (new - old)
            rounding = 1.2e-7 * np.abs(old).max() + 1e-12  # Of the sum.
            np.testing.assert_allclose(less - old, expected, rtol=0, atol=rounding)
            moved.append(np.abs(new - old).max() / rounding)
        assert max(moved) > 100


def test_a_stage_moves_from_its_start_on_and_its_statistics_at_once(by_descent):
    begin, update = by_descent
    start = {"stem": 3, "stage1": 2, "stage2": 1}
    state = begin(start=start)
    for number in range(4):
        old, state = leaves_of(state), update(state)
        for (part, stage), leaves in leaves_of(state).items():
            waits = part == "params" and number < start.get(stage, 0)
            same = is_same(old[part, stage], leaves)
            if waits:
                assert all(same), (number, stage)
            elif not part.startswith("averaged"):
                assert not all(same), (number, part, stage)


@pytest.mark.parametrize(("calls", "traced"), [(3, 0), (8, 1), (20, 1)])
def test_ten_steps_are_traced_or_those_that_come(tmp_path, calls, traced):
    with step.profiled(jax.jit(lambda x: x + 1), str(tmp_path)) as update:
        x = jnp.zeros(())
        for _ in range(calls):
            x = update(x)
        files = list(tmp_path.rglob("perfetto_trace.json.gz"))
        assert len(files) == (calls >= step.PROFILED[-1])
    assert x == calls
    assert len(list(tmp_path.rglob("perfetto_trace.json.gz"))) == traced


def test_of_several_processes_the_first_alone_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with step.profiled(lambda x: x + 1, str(tmp_path)) as update:
        assert [update(x) for x in range(20)] == [*range(1, 21)]
    assert not list(tmp_path.iterdir())
