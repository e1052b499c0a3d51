import functools
import inspect

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.special import logsumexp

from medjax import losses
from medjax.errors import InputError
from medjax.training import optim

T = 3
PER_TASK = {"w_pos": [0.25, 1.0, 0.0], "w_neg": [0.75, 0.1, 2.0]}
SADDLE = {"a": [0.7, 0.1, 0.0], "b": [0.2, 0.3, 0.0], "alpha": [0.4, 0.0, 1.5]}
# Two sets of arguments for each loss, the second at the ends of what is allowed.
ARGUMENTS = {
    "weighted_bce": (PER_TASK, {"w_pos": [0.0] * T, "w_neg": [0.0] * T}),
    "focal": ({**PER_TASK, "gamma": 2.0}, {**PER_TASK, "gamma": 0.0}),
    "asymmetric": (
        {**PER_TASK, "gamma_pos": 0.5, "gamma_neg": [0.5, 1.0, 4.0], "clip": 0.05},
        {**PER_TASK, "gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.0},
    ),
    "softmax_cross_entropy": (
        {"w": [0.2, 1.0, 3.0], "smoothing": 0.1},
        {"w": [0.0, 1.0, 1.0], "smoothing": 0.0},
    ),
    "balanced_softmax": (
        {"w": [0.2, 1.0, 3.0], "prevalence": [0.05, 0.15, 0.8], "tau": 1.0},
        {"w": [1.0, 1.0, 1.0], "prevalence": [0.0, 0.5, 0.5], "tau": 0.0},
    ),
    "ldam": (
        {**PER_TASK, "prevalence": [0.01, 0.5, 0.9], "margin": 2.0},
        {**PER_TASK, "prevalence": [0.0, 1.0, 0.3], "margin": 0.5},
    ),
    "ldam_softmax": (
        {"w": [0.2, 1.0, 3.0], "prevalence": [0.01, 0.19, 0.8], "margin": 2.0},
        {"w": [1.0, 1.0, 1.0], "prevalence": [0.0, 0.5, 0.5], "margin": 1.0},
    ),
    "auc_margin": (
        {**SADDLE, "prevalence": [0.1, 0.5, 0.9], "margin": 1.0},
        {**SADDLE, "prevalence": [0.0, 1.0, 0.5], "margin": 0.0},
    ),
    "soft_dice": ({"smooth": 1.0}, {"smooth": 0.0}),
    "tversky": (
        {"alpha": 0.3, "beta": 0.7, "smooth": 1.0, "gamma": 0.75},
        {"alpha": [0.0, 0.5, 1.0], "beta": 0.5, "smooth": 0.0, "gamma": [0.5, 1, 2]},
    ),
}
CASES = [(name, case) for name, both in ARGUMENTS.items() for case in both]
each_loss = pytest.mark.parametrize("name", ARGUMENTS)
each_case = pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{n}-{i}" for n in ARGUMENTS for i in ("mid", "end")]
)


def arrays(case):
    return {name: jnp.asarray(value, jnp.float32) for name, value in case.items()}


def compute(name, logits, label, weight, case):
    return compiled(name)(*map(jnp.asarray, (logits, label, weight)), arrays(case))


@functools.cache
def compiled(name):
    """The loss, its arguments traced."""
    loss = getattr(losses, name)
    return jax.jit(lambda z, y, w, case: loss(z, y, w, **case))


@functools.cache
def compiled_gradient(name):
    """Of the total; both in one program."""
    loss = getattr(losses, name)
    return jax.jit(jax.value_and_grad(lambda z, y, w, case: loss(z, y, w, **case)[0]))


# ----------------------------------------------------- the formulas, in float64


def log_p(z):
    return -np.logaddexp(0, -z)


def sigmoid(z):
    return np.exp(log_p(z))


def bce(z, y, w_pos, w_neg):
    return -w_pos * y * log_p(z) - w_neg * (1 - y) * log_p(-z)


def focal(z, y, w_pos, w_neg, gamma):
    present = -w_pos * y * (1 - sigmoid(z)) ** gamma * log_p(z)
    return present - w_neg * (1 - y) * sigmoid(z) ** gamma * log_p(-z)


def asymmetric(z, y, w_pos, w_neg, gamma_pos, gamma_neg, clip):
    present = -w_pos * y * sigmoid(-z) ** gamma_pos * log_p(z)
    q = np.maximum(sigmoid(z) - clip, 0)
    rest = np.where(q > 0, sigmoid(-z) + clip, 1)  # 1 - q
    return present - w_neg * (1 - y) * q**gamma_neg * np.log(rest)


def ldam(z, y, w_pos, w_neg, prevalence, margin):
    absent, present = margins(np.array([1 - prevalence, prevalence]), margin)
    positive = w_pos * y * log_p(z - present)
    return -positive - w_neg * (1 - y) * log_p(-z - absent)


def margins(prevalence, margin):
    """By the counts of 1000 images, as the authors' code has them."""
    some = prevalence > 0
    m = np.zeros(len(prevalence))
    m[some] = 1 / np.sqrt(np.sqrt(1000 * prevalence[some]))
    return m * (margin / m.max())


def auc_margin(z, y, a, b, alpha, prevalence, margin):
    """LibAUC's AUCMLoss 'v1' of one image, its mean over the batch taken apart."""
    h, p, positive, negative = sigmoid(z), prevalence, y, 1 - y
    return (
        (1 - p) * (h - a) ** 2 * positive
        + p * (h - b) ** 2 * negative
        + 2 * alpha * (p * (1 - p) * margin)
        + 2 * alpha * (p * h * negative - (1 - p) * h * positive)
        - p * (1 - p) * alpha**2
    )


def soft_dice(z, g, smooth):
    p = sigmoid(z)
    size = (p**2).sum() + (g**2).sum()
    return 1 - (2 * (p * g).sum() + smooth) / (size + smooth)


def tversky(z, g, alpha, beta, smooth, gamma):
    p = sigmoid(z)
    tp, fp, fn = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
    size = tp + alpha * fp + beta * fn + smooth
    return np.maximum(1 - (tp + smooth) / size, 0) ** gamma if size > 0 else 0.0


def softmax_part(z, y, w, smoothing):
    """One voxel; z and y are [K]."""
    target = (1 - smoothing) * y + smoothing / len(y)
    return -(w * target * (z - np.logaddexp.reduce(z))).sum()


def balanced(z, y, w, prevalence, tau):
    """Ren et al.'s n_k exp(z_k) / sum_j n_j exp(z_j); with tau, n^tau."""
    return softmax_part(z + tau * np.log(np.maximum(prevalence, 1e-18)), y, w, 0)


def ldam_classes(z, y, w, prevalence, margin):
    return softmax_part(z - y * margins(prevalence, margin), y, w, 0)


OF_CLASSES = {
    "softmax_cross_entropy": softmax_part,
    "balanced_softmax": balanced,
    "ldam_softmax": ldam_classes,
}
FORMULAS = {
    "ldam": ldam,
    "weighted_bce": bce,
    "focal": focal,
    "asymmetric": asymmetric,
    "auc_margin": auc_margin,
    "soft_dice": soft_dice,
    "tversky": tversky,
}


def reference(name, logits, label, weight, case):
    """Total and count, one image and one task at a time."""
    if weight.ndim < logits.ndim:
        weight = weight.reshape(len(weight), *[1] * (logits.ndim - 2), T)
    logits, label, weight = (
        np.broadcast_to(x, logits.shape).reshape(len(x), -1, T).astype(np.float64)
        for x in (logits, label, weight)
    )
    case = {argument: np.broadcast_to(value, T) for argument, value in case.items()}
    total, count = 0.0, 0
    for z, y, w in zip(logits, label, weight, strict=True):  # [V, T]
        count += bool((w > 0).any())
        if name in OF_CLASSES:
            known = w.max(axis=1) > 0
            parts = [
                w[v].max() * OF_CLASSES[name](z[v], y[v], **case)
                for v in np.flatnonzero(known)
            ]
            total += np.mean(parts) if parts else 0.0
            continue
        for t in range(T):
            known = w[:, t] > 0
            if known.any():
                case_t = {key: value[t] for key, value in case.items()}
                part = FORMULAS[name](z[known, t], y[known, t], **case_t)
                total += np.mean(w[known, t] * part)
    return total, count


# ------------------------------------------------------------------- all losses


def batch(name, seed=0, images=4, space=(), voxelwise=False):
    """Random logits, labels and weights; unknown labels are NaN."""
    rng = np.random.default_rng(seed)
    shape = (images, *space, T)
    logits, label = rng.normal(0, 2, shape), rng.random(shape)
    weight = rng.choice([0.0, 1, 2], shape if voxelwise else (images, T))
    if name in OF_CLASSES:
        label /= label.sum(axis=-1, keepdims=True)
        weight = np.broadcast_to(weight[..., :1], weight.shape).copy()
    weight[0] = 0
    weight[1] = 1
    spread = weight if voxelwise else weight.reshape(images, *[1] * len(space), T)
    label = np.where(spread > 0, label, np.nan)
    return tuple(x.astype(np.float32) for x in (logits, label, weight))


# Without s, the ratio of two sums that are both too small for a float32 is lost.
UNIT = st.just(0) | st.floats(2**-10, 1, width=32)


@each_case
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_is_the_formula_in_float64(name, case, data):
    space = data.draw(st.sampled_from([(), (3, 2)]))
    shape = (3, *space, T)
    # 1 - p and p^2 must not vanish in the reference, nor p where s = 0.
    largest = 30 if name not in ("soft_dice", "tversky") else 12
    floats = st.floats(-largest, largest, width=32)
    logits = data.draw(hnp.arrays(np.float32, shape, elements=floats))
    label = data.draw(hnp.arrays(np.float32, shape, elements=UNIT))
    known = data.draw(st.sampled_from([shape, (3, T)]))
    weight = data.draw(
        hnp.arrays(np.float32, known, elements=st.sampled_from([0, 1, 2]))
    )
    if name in OF_CLASSES:
        label = (label + 0.1) / (label + 0.1).sum(axis=-1, keepdims=True)
        weight = (weight[..., :1] > 0) * (weight + 1)
    got = compute(name, logits, label, weight, case)
    expected = reference(name, logits, label, weight, case)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-5)


@each_case
def test_the_gradient_is_that_of_finite_differences(name, case):
    logits, label, weight = batch(name, images=3, space=(2, 1), voxelwise=True)
    _, gradient = compiled_gradient(name)(logits, label, weight, arrays(case))
    step = 1e-5
    for index in np.ndindex(logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.astype(np.float64)
            moved[index] += sign * step
            ends.append(reference(name, moved, label, weight, case)[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[index], slope, rtol=2e-4, atol=2e-6)


@each_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saturated_logits_and_unknown_labels_stay_finite(name, case, dtype):
    logits, label, weight = batch(name, space=(2, 2), voxelwise=True)
    label = label.round() if name not in OF_CLASSES else label
    label[2] *= 0  # Of one image all masks are empty.
    assert np.isnan(label).any()
    for extreme in (-1e4, -100, -25, 0, 100, 1e4):
        logits = jnp.full(logits.shape, extreme, dtype)
        got = compiled_gradient(name)(logits, label, weight, arrays(case))
        chex.assert_tree_all_finite(got)
        assert got[1].dtype == dtype
        assert (np.asarray(got[1])[weight == 0] == 0).all()


@each_loss
def test_bfloat16_is_summed_in_float32(name):
    logits, label, weight = batch(name, space=(3,))
    rounded = jnp.asarray(logits, jnp.bfloat16)
    got = compute(name, rounded, label, weight, ARGUMENTS[name][0])
    exact = rounded.astype(jnp.float32)
    expected = compute(name, exact, label, weight, ARGUMENTS[name][0])
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    assert {x.dtype for x in got} == {jnp.dtype("float32")}


@each_case
@pytest.mark.parametrize("shards", [2, 4])
def test_shards_add_up_to_the_batch(name, case, shards):
    rows = batch(name, images=8, space=(2,), voxelwise=True)
    whole = compute(name, *rows, case)
    slices = zip(*(np.split(x, shards) for x in rows), strict=True)
    parts = [compute(name, *shard, case) for shard in slices]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5)


@each_loss
def test_a_weight_of_the_image_is_that_of_all_its_voxels(name):
    logits, label, weight = batch(name, space=(2, 3, 2))
    case = ARGUMENTS[name][0]
    spread = np.broadcast_to(weight[:, None, None, None], logits.shape)
    np.testing.assert_allclose(  # Two programs, that may round in two ways.
        compute(name, logits, label, weight, case),
        compute(name, logits, label, spread, case),
        rtol=1e-6,
    )


@each_loss
def test_arguments_are_arrays_that_vmap_over_arms(name):
    rows = batch(name, space=(2,))
    cases = [
        {argument: np.broadcast_to(value, T) for argument, value in case.items()}
        for case in ARGUMENTS[name]
    ]
    arms = jax.tree.map(lambda *x: jnp.stack(x), *map(arrays, cases))
    together = jax.vmap(lambda case: compute(name, *rows, case))(arms)
    alone = [compute(name, *rows, case) for case in cases]
    np.testing.assert_allclose(np.transpose(together), alone, rtol=1e-6)


@each_loss
def test_nothing_known_is_nothing_lost(name):
    logits, label, weight = batch(name)
    got = compute(name, logits, label * np.nan, weight * 0, ARGUMENTS[name][1])
    np.testing.assert_array_equal(got, (0, 0))


# ------------------------------------------------------------- binary and softmax


def test_six_of_eight_positives_weigh_as_much_as_the_two_negatives():
    label = jnp.array([1, 1, 1, 1, 1, 1, 0, 0], jnp.float32)[:, None]
    weights = {"w_pos": jnp.array([2 / 8]), "w_neg": jnp.array([6 / 8])}
    logits, ones = jnp.zeros((8, 1)), jnp.ones((8, 1))
    positives, _ = losses.weighted_bce(logits, label, ones * label, **weights)
    negatives, _ = losses.weighted_bce(logits, label, ones * (1 - label), **weights)
    np.testing.assert_allclose(positives, negatives, rtol=1e-6)
    np.testing.assert_allclose(positives, 6 * 2 / 8 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_a_saturated_mistake_costs_its_logit(extreme):
    logits, label = jnp.full((2, 1), extreme), jnp.array([[1.0], [0.0]])
    ones = jnp.ones(1)
    arguments = {"w_pos": ones, "w_neg": ones}
    for total, _ in (
        losses.weighted_bce(logits, label, label * 0 + 1, **arguments),
        losses.focal(logits, label, label * 0 + 1, **arguments, gamma=2.0),
    ):
        np.testing.assert_allclose(total, 1e4, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("focal", {"gamma": 0.0}),
        ("asymmetric", {"gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.0}),
    ],
)
def test_without_focus_it_is_weighted_bce(name, arguments):
    logits, label, weight = batch(name, images=40)
    logits = 20 * logits

    case = arrays({**PER_TASK, **arguments})
    got = compiled_gradient(name)(logits, label, weight, case)
    expected = compiled_gradient("weighted_bce")(
        logits, label, weight, arrays(PER_TASK)
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_torch_agrees():
    """torch's weighted mean divides by the weights of the true classes: sum, then."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, T)).astype(np.float32)
    z = torch.tensor(logits)
    ones = np.ones((6, T), np.float32)
    label = rng.integers(0, 2, (6, T)).astype(np.float32)
    case = {"w_pos": [0.2, 1.0, 5.0], "w_neg": [1.0] * T}
    expected = functional.binary_cross_entropy_with_logits(
        z,
        torch.tensor(label),
        reduction="sum",
        pos_weight=torch.tensor(case["w_pos"]),
    )
    got, _ = compute("weighted_bce", logits, label, ones, case)
    np.testing.assert_allclose(got, expected, rtol=1e-5)

    truth = rng.integers(0, T, 6)
    case = {"w": [0.2, 1.0, 5.0], "smoothing": 0.1}
    arguments = {"weight": torch.tensor(case["w"]), "label_smoothing": 0.1}
    target = torch.tensor(truth)
    total, count = compute(
        "softmax_cross_entropy", logits, np.eye(T, dtype=np.float32)[truth], ones, case
    )
    expected = functional.cross_entropy(z, target, reduction="sum", **arguments)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 6
    mean = functional.cross_entropy(z, target, **arguments)
    np.testing.assert_allclose(total / np.take(case["w"], truth).sum(), mean, rtol=1e-5)


# ------------------------------------------------------------------------- AUC-M


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_the_saddle_is_the_square_loss_over_pairs(margin):
    """Both means, the distance to the margin, and 0 once the margin is kept."""
    rng = np.random.default_rng(0)
    label = (rng.random((200, 2)) < [0.2, 0.5]).astype(np.float32)
    logits = (rng.normal(size=(200, 2)) + label * [0.5, 4.0]).astype(np.float32)
    prevalence = label.mean(axis=0)
    one = jnp.ones((200, 2))

    def mean(variables):
        total, count = losses.auc_margin(
            logits, label, one, **variables, prevalence=prevalence, margin=margin
        )
        return total / count

    def step(variables, _):
        gradient = jax.grad(mean)(variables)
        return optim.saddle_step(variables, gradient, rate=1.0), None

    start = losses.auc_margin_variables(2)
    found, _ = jax.lax.scan(step, start, length=200)

    surrogate, h = 0.0, sigmoid(logits.astype(np.float64))
    for t in range(2):
        positive, negative = h[label[:, t] == 1, t], h[label[:, t] == 0, t]
        gap = positive.mean() - negative.mean()
        alpha = max(margin - gap, 0)
        expected = [positive.mean(), negative.mean(), alpha]
        got = [found[name][t] for name in ("a", "b", "alpha")]
        np.testing.assert_allclose(got, expected, atol=1e-5)
        if alpha > 0:
            pairs = (margin - (positive[:, None] - negative)) ** 2
            value = pairs.mean()
        else:
            value = positive.var() + negative.var()
        surrogate += prevalence[t] * (1 - prevalence[t]) * value
    assert (found["alpha"][1] > 0) == (margin == 1.0)  # Both branches are tried.
    np.testing.assert_allclose(mean(found), surrogate, rtol=1e-5)


def test_the_saddle_variables_have_the_gradient_of_finite_differences():
    rows = batch("auc_margin", images=5)
    case = ARGUMENTS["auc_margin"][0]
    variables = {name: np.array(case[name]) for name in SADDLE}
    gradient = jax.grad(lambda v: compute("auc_margin", *rows, {**case, **v})[0])(
        arrays(variables)
    )
    for name, value in variables.items():
        for t in range(T):
            ends = []
            for step in (1e-5, -1e-5):
                moved = value.copy()
                moved[t] += step
                moved = {**case, name: moved}
                ends.append(reference("auc_margin", *rows, moved)[0])
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(gradient[name][t], slope, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------- overlaps


@pytest.mark.parametrize("space", [(6, 5), (3, 4, 2)])
def test_dice_is_monai_squared_dice_summed_over_classes(space):
    """DiceLoss(sigmoid=True, squared_pred=True), a mean over images and classes."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, *space, T)).astype(np.float32)
    label = rng.integers(0, 2, (2, *space, T)).astype(np.float32)
    p, g = (np.moveaxis(x, -1, 1) for x in (sigmoid(logits.astype(float)), label))
    axes = tuple(range(2, p.ndim))
    intersection = np.sum(g * p, axis=axes)
    denominator = np.sum(g**2, axis=axes) + np.sum(p**2, axis=axes)
    f = 1.0 - (2.0 * intersection + 1e-5) / (denominator + 1e-5)
    total, count = compute(
        "soft_dice", logits, label, np.ones((2, T)), {"smooth": 1e-5}
    )
    np.testing.assert_allclose(total / count, T * f.mean(), rtol=1e-5)


@pytest.mark.parametrize("smooth", [0.0, 1e-5, 1.0])
def test_no_prediction_where_there_is_no_mask_costs_nothing(smooth):
    logits, empty = np.full((1, 4, 4, T), -1e4), np.zeros((1, 4, 4, T))
    known = np.ones((1, T))
    got, _ = compute("soft_dice", logits, empty, known, {"smooth": smooth})
    assert got == 0
    case = {"alpha": 0.5, "beta": 0.5, "smooth": smooth, "gamma": 0.5}
    got, _ = compute("tversky", logits, empty, known, case)
    assert got == 0


def test_even_tversky_is_the_dice_of_plain_sums():
    """And of squared ones where the prediction is 0 or 1."""
    logits, label, _ = batch("tversky", images=2, space=(4, 4))
    label = np.random.default_rng(0).integers(0, 2, label.shape)
    known = np.ones((2, T))
    case = {"alpha": 0.5, "beta": 0.5, "smooth": 1.0, "gamma": 1.0}
    p, g = sigmoid(logits.astype(float)), label
    dice = (2 * (p * g).sum((1, 2)) + 2) / (p.sum((1, 2)) + g.sum((1, 2)) + 2)
    got, _ = compute("tversky", logits, label, known, case)
    np.testing.assert_allclose(got, (1 - dice).sum(), rtol=1e-5)

    hard = np.sign(logits) * 100
    got, _ = compute("tversky", hard, label, known, case)
    expected, _ = compute("soft_dice", hard, label, known, {"smooth": 2.0})
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# ----------------------------------------------------------------------- compound


def test_compound_is_the_sum_of_its_shares():
    rows = batch("soft_dice", space=(2, 2))
    parts = {
        name: {"share": share, **arrays(ARGUMENTS[name][0])}
        for name, share in {"soft_dice": 1.0, "focal": 0.5, "tversky": 2.0}.items()
    }
    got = jax.jit(lambda parts: losses.compound(*rows, parts=parts))(parts)
    each = [compute(name, *rows, ARGUMENTS[name][0]) for name in parts]
    expected = each[0][0] + 0.5 * each[1][0] + 2 * each[2][0]
    np.testing.assert_allclose(got, (expected, each[0][1]), rtol=1e-6)


def test_compound_of_nothing_names_the_remedy():
    with pytest.raises(InputError, match="empty; give one loss at least"):
        losses.compound(*batch("soft_dice"), parts={})


DICE_AND_BCE = {
    "soft_dice": {"share": 1.0, "smooth": 1.0},
    "weighted_bce": {"share": 1.0, "w_pos": 1.0, "w_neg": 1.0},
}


@pytest.mark.parametrize("voxelwise", [False, True])
def test_deep_supervision_shares_out_the_losses_of_the_largest_labels(voxelwise):
    rng = np.random.default_rng(0)
    label = (rng.random((2, 4, 4, 8, T)) > 0.8).astype(np.float32)
    logits = [
        rng.normal(size=(2, *space, T)).astype(np.float32)
        for space in [(4, 4, 8), (4, 2, 4), (2, 1, 2)]
    ]
    weight = np.ones((2, T))
    weight[0, 1] = 0
    if voxelwise:
        weight = (rng.random(label.shape) > 0.3) * weight[:, None, None, None]
        label = np.where(weight > 0, label, np.nan)

    @jax.jit
    def loss(logits, label, weight):
        return losses.compound(logits, label, weight, parts=DICE_AND_BCE)

    got = jax.jit(losses.deep(loss))(tuple(logits), label, weight)
    expected = 0
    for share, z in zip([4 / 7, 2 / 7, 1 / 7], logits, strict=True):
        coarse, known = np.zeros(z.shape), np.zeros(z.shape)
        for place in np.ndindex(z.shape[:-1]):
            b, *low = place
            box = [
                slice(i * n // m, (i + 1) * n // m)
                for i, n, m in zip(low, (4, 4, 8), z.shape[1:-1], strict=True)
            ]
            seen = label[b, *box].reshape(-1, T)
            sure = weight[b, *box].reshape(-1, T) if voxelwise else weight[b][None]
            known[place] = sure.max(0)
            coarse[place] = np.where(sure > 0, seen, 0).max(0)
        expected += share * loss(z, coarse, known)[0]
    np.testing.assert_allclose(got, (expected, 2), rtol=1e-6)


@pytest.mark.parametrize("logit", [0.0, -100.0, 100.0])
def test_a_patch_without_foreground_has_a_finite_loss_that_quiets_it(logit):
    z, empty = jnp.full((1, 4, 4, 4, 1), logit), jnp.zeros((1, 4, 4, 4, 1))

    @jax.jit
    @jax.value_and_grad
    def loss(z):
        known = jnp.ones((1, 1))
        return losses.compound(z, empty, known, parts=DICE_AND_BCE)[0]

    value, gradient = loss(z)
    size = 64 * sigmoid(logit) ** 2
    np.testing.assert_allclose(
        value, size / (size + 1) - log_p(-logit), rtol=1e-6, atol=1e-9
    )
    assert np.all(np.isfinite(gradient)) and np.all(gradient >= 0)
    assert np.all(gradient > 0) or logit < 0


# --------------------------------------------------- regions that exclude each other


def organs(regions, extreme=1.0):
    """Logits [2, 3, 4, 2, K], their masks, which exclude each other, and weights."""
    rng = np.random.default_rng(regions)
    logits = extreme * rng.normal(size=(2, 3, 4, 2, regions))
    value = rng.integers(0, regions + 1, logits.shape[:-1])
    label = value[..., None] == np.arange(regions)
    return logits.astype(np.float32), label.astype(np.float32), np.ones((2, regions))


@pytest.mark.parametrize("regions", [1, 2, 5])
@pytest.mark.parametrize("extreme", [1.0, 40.0])
def test_masks_that_exclude_each_other_have_the_cross_entropy_of_a_softmax(
    regions, extreme
):
    """Value and gradient, by the formula in float64."""
    logits, label, weight = organs(regions, extreme)
    w = np.linspace(0.5, 2, regions + 1, dtype=np.float32)  # The background's last.
    loss = losses.exclusive(losses.softmax_cross_entropy)
    total = jax.jit(jax.value_and_grad(lambda z: loss(z, label, weight, w=w)[0]))
    z = np.append(logits, 0 * logits[..., :1], -1).astype(float)
    true = np.append(label, 1 - label.sum(-1, keepdims=True), -1)
    log_p = z - logsumexp(z, axis=-1, keepdims=True)
    each = (true @ w)[..., None] / label[0, ..., 0].size
    value, slopes = total(logits)
    np.testing.assert_allclose(value, -(each * true * log_p).sum(), rtol=1e-5)
    expected = (each * (np.exp(log_p) - true))[..., :-1]
    np.testing.assert_allclose(slopes, expected, atol=1e-6)


@pytest.mark.parametrize("regions", [1, 3])
def test_other_losses_see_the_softmax_of_masks_that_exclude_each_other(regions):
    logits, label, weight = organs(regions)
    z = np.append(logits, 0 * logits[..., :1], -1).astype(float)
    p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True))[..., :-1]
    space = (1, 2, 3)
    overlap, size = (p * label).sum(space), (p**2 + label**2).sum(space)
    dice = np.sum(1 - (2 * overlap + 1) / (size + 1))
    entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(space).sum()
    ones = {"w_pos": np.ones(regions), "w_neg": np.ones(regions)}
    parts = {
        "soft_dice": {"share": 1.0, "smooth": 1.0},
        "weighted_bce": {"share": 0.5, **ones},
    }
    loss = losses.exclusive(losses.compound)
    got, count = jax.jit(lambda z: loss(z, label, weight, parts=parts))(logits)
    np.testing.assert_allclose(got, dice + 0.5 * entropy, rtol=1e-5)
    assert count == 2
    far, _, _ = organs(regions, 1e4)
    slopes = jax.jit(jax.grad(lambda z: loss(z, label, weight, parts=parts)[0]))(far)
    assert np.isfinite(slopes).all()


def test_a_coarse_voxel_of_two_regions_is_half_of_each():
    logits = (np.zeros((1, 2, 2, 2)), np.float32([[[[3.0, 1.0]]]]))
    label = np.zeros((1, 2, 2, 2))
    label[0, 0, 0, 0] = label[0, 1, 1, 1] = 1
    loss = losses.exclusive(losses.softmax_cross_entropy)
    got, _ = losses.deep(loss)(logits, label, np.ones((1, 2)), w=np.ones(3))
    coarse = np.log(np.exp([3.0, 1.0, 0.0]).sum()) - 2.0
    np.testing.assert_allclose(got, 2 / 3 * np.log(3) + coarse / 3, rtol=1e-6)


def test_every_public_loss_is_a_part_and_is_tested_above():
    public = {
        name
        for name, loss in vars(losses).items()
        if inspect.isfunction(loss) and not name.startswith("_")
        if list(inspect.signature(loss).parameters)[:3] == ["logits", "label", "weight"]
    }
    assert public - {"compound"} == ARGUMENTS.keys()
