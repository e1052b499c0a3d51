"""The vision transformer, against its formulas in float64; timm's is in test_pretrained."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import oracles
import pytest
from PIL import Image
from scipy import special

from configs import quickstart
from medjax.errors import InputError
from medjax.evaluation import heatmaps
from medjax.models import vit
from medjax.models.weights import conversion
from medjax.tasks import explain, films, parts

TINY = {"width": 8, "heads": 2, "depth": 2, "patch": 4, "grid": 3}
IMAGE = np.random.default_rng(0).standard_normal((2, 12, 20, 3)).astype(np.float32)


def network(**options):
    """A tiny ViT of three findings, and its random variables."""
    net = vit.vit(3, **{**TINY, **options})
    init = functools.partial(net.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), IMAGE)
    rng = np.random.default_rng(1)

    def fill(leaf):
        return rng.normal(0, 0.5, leaf.shape).astype(np.float32)

    return net, jax.tree.map(fill, shapes)


def answers(net, variables, image):
    apply = functools.partial(net.apply, train=False, mutable=["intermediates"])
    logits, sown = jax.jit(apply)(variables, image)
    return np.asarray(logits), sown["intermediates"]


def normed(x, leaves):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * leaves["scale"] + leaves["bias"]


def dense(x, leaves):
    return x @ leaves["kernel"] + leaves["bias"]


def resized(position, shape):
    """Pillow's bicubic resizing of each channel, which is torch's antialiased one."""
    channels = [
        np.asarray(Image.fromarray(c).resize(shape[::-1], Image.Resampling.BICUBIC))
        for c in np.moveaxis(position, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def expected(params, image, *, heads=2, patch=4):
    """Tokens after the last block, and the attention of each."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    b, h, w = len(image), image.shape[1] // patch, image.shape[2] // patch
    cut = image[:, : h * patch, : w * patch].astype(np.float64)
    patches = cut.reshape(b, h, patch, w, patch, 3).swapaxes(2, 3)
    kernel = p["stem"]["conv"]["kernel"].reshape(-1, 8)
    x = patches.reshape(b, h * w, -1) @ kernel + p["stem"]["conv"]["bias"]
    x = x + resized(params["stem"]["position"], (h, w)).reshape(h * w, 8)
    tokens = p["stem"]["tokens"]
    x = np.concatenate([np.broadcast_to(tokens, (b, *tokens.shape)), x], axis=1)
    maps = []
    for name in ("stage1", "stage2"):
        q = p[name]
        new = dense(normed(x, q["norm1"]), q["qkv"]).reshape(b, -1, 3, heads, 4)
        query, key, value = np.moveaxis(new, (2, 3), (0, 2))  # [b, heads, n, 4]
        score = query @ key.swapaxes(-1, -2) / np.sqrt(4)
        maps.append(special.softmax(score, axis=-1))
        new = np.moveaxis(maps[-1] @ value, 1, 2).reshape(x.shape)
        x = x + q.get("scale1", 1) * dense(new, q["project"])
        new = dense(normed(x, q["norm2"]), q["widen"])
        new = new * special.ndtr(new)
        x = x + q.get("scale2", 1) * dense(new, q["narrow"])
    return x, maps


@pytest.mark.parametrize(
    "options",
    [{}, {"registers": 2, "layer_scale": True, "pool": "mean"}, {"pool": "mean_max"}],
)
def test_it_is_its_formulas(options):
    """Of an image of 3 x 5 patches, with positions learnt for 3 x 3."""
    net, variables = network(**options)
    logits, sown = answers(net, variables, IMAGE)
    x, maps = expected(variables["params"], IMAGE)
    np.testing.assert_allclose(sown["stages"][-1], x, atol=1e-4 * np.abs(x).max())
    for i, attention in enumerate(maps, start=1):
        got = sown[f"stage{i}"]["attention"][0]
        np.testing.assert_allclose(got, attention, atol=1e-5)
    first = 1 + options.get("registers", 0)
    pooled = {
        "token": x[:, 0],
        "mean": x[:, first:].mean(1),
        "mean_max": np.concatenate([x[:, first:].mean(1), x[:, first:].max(1)], axis=1),
    }[options.get("pool", "token")]
    params = jax.tree.map(np.float64, variables["params"])
    truth = dense(normed(pooled, params["top"]), params["classifier"])
    np.testing.assert_allclose(logits, truth, atol=1e-4 * np.abs(truth).max())


def test_positions_of_a_smaller_grid_are_smoothed():
    net, variables = network(grid=7)
    _, sown = answers(net, variables, IMAGE)
    truth = resized(variables["params"]["stem"]["position"], (3, 5))
    np.testing.assert_allclose(sown["stem"]["position"][0], truth, atol=1e-5)


def test_volumes_are_refused():
    with pytest.raises(InputError, match="positions in two dimensions"):
        jax.eval_shape(
            functools.partial(vit.vit(3, **TINY).init, train=False),
            jax.random.key(0),
            np.zeros((1, 8, 8, 8, 1)),
        )


def test_frozen_blocks_get_no_gradient():
    _, variables = network()
    net = vit.vit(3, **TINY, frozen=2)

    def loss(params):
        return net.apply({"params": params}, IMAGE, train=True).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    moving = {
        name: any(np.any(leaf) for leaf in jax.tree.leaves(leaves))
        for name, leaves in gradient.items()
    }
    still = {"stem", "stage1"}
    assert {name for name, moves in moving.items() if not moves} == still


# --------------------------------------------------------------------------- heatmaps


def explained(net, variables, **how):
    explain = functools.partial(heatmaps.heatmaps, apply=net.apply, **how)
    return jax.jit(explain)(variables, IMAGE)


@pytest.mark.parametrize(
    "pool", ["token", pytest.param("mean", marks=pytest.mark.slow)]
)
def test_grad_cam_is_of_the_patches(pool):
    net, variables = network(registers=1, pool=pool)
    got = explained(net, variables, stage=1)
    _, sown = answers(net, variables, IMAGE)
    feature = np.asarray(sown["stages"][1])

    def logits(tokens):
        return net.apply(variables, tokens, train=False, after=2)

    jacobian = np.asarray(jax.jit(jax.jacobian(logits))(feature))
    for b in range(2):
        weight = jacobian[b, :, b, 2:].mean(axis=1)  # [T, c], of the patches alone.
        truth = np.maximum(weight @ feature[b, 2:].T, 0).reshape(3, 3, 5)
        np.testing.assert_allclose(got[b], truth, atol=1e-4 * truth.max())
    last = explained(net, variables, stage=-1)
    assert bool(np.any(last)) == (pool == "mean")  # The token is all that is read.


@pytest.mark.parametrize("token", [True, False])
def test_rollout_follows_the_attention(token):
    """Over all paths through two blocks, of which each may be left out."""
    net, variables = network(registers=1)
    got = explained(net, variables, method=heatmaps.ROLLOUT, token=token)
    _, maps = expected(variables["params"], IMAGE)
    first, second = (m.mean(axis=1) for m in maps)
    eye = np.eye(17)
    paths = [
        second @ first,
        second @ eye,
        eye @ first,
        np.broadcast_to(eye, first.shape),
    ]
    total = sum(paths) / 4
    rows = total[:, 0] if token else total[:, 2:].mean(axis=1)
    truth = rows[:, 2:].reshape(2, 3, 5)
    assert got.shape == (2, 3, 3, 5)
    for t in range(3):
        np.testing.assert_allclose(got[:, t], truth, atol=1e-5)


# ------------------------------------------------------------------- files of weights


def renamed(arrays, **names):
    return {names.get(name, name): array for name, array in arrays.items()}


def converted(source, channels=3):
    table = conversion.recognise(source, model="vit_small")
    net = vit.vit(3, **{**TINY, **table.options})
    init = functools.partial(net.init, train=False)
    image = np.zeros((1, 64, 64, channels))
    target = jax.eval_shape(init, jax.random.key(0), image)
    return conversion.convert(source, target, model="vit_small")


@pytest.fixture(scope="module")
def timms():
    shapes = oracles.vit(width=8, depth=2, patch=4, grid=3)
    return oracles.filled(shapes)


def test_the_class_token_and_registers_are_one_array(timms):
    """DINOv2: each token with its own position, if the file has one for it."""
    rng = np.random.default_rng(0)
    registers = rng.standard_normal((1, 2, 8)).astype(np.float32)
    position = rng.standard_normal((1, 12, 8)).astype(np.float32)
    source = {k: v for k, v in timms.items() if not k.startswith("head.")}
    given = {"cls_token": timms["cls_token"][0], "pos_embed": position[0]}
    for first, name in ((1, "register_tokens"), (3, "reg_token"), (0, "reg_token")):
        extra = {name: registers, "pos_embed": position[:, : 9 + first]}
        extra["mask_token"] = np.ones((1, 8), np.float32)
        stem = converted({**source, **extra}).variables["params"]["stem"]
        truth = np.concatenate([given["cls_token"], registers[0]])
        truth[:first] += position[0, :first]
        np.testing.assert_array_equal(stem["tokens"], truth)
        grid = position[0, first : 9 + first].reshape(3, 3, 8)
        np.testing.assert_array_equal(stem["position"], grid)
    with pytest.raises(InputError, match="pos_embed: 12 positions are no square grid"):
        converted({**source, "pos_embed": position})


def test_what_only_the_pretext_task_needs_is_left_out(timms):
    """MAE's decoder, and DINO's head in a checkpoint of its training."""
    source = {k: v for k, v in timms.items() if not k.startswith("head.")}
    plain = converted(source)
    assert plain.framework == "DINO or MAE" and plain.head == "zeros"
    np.testing.assert_allclose(plain.standardise["mean"], [0.485, 0.456, 0.406])
    one = np.ones(1, np.float32)
    mae = {"mask_token": one, "decoder_pos_embed": one, "decoder_embed.weight": one}
    mae |= {"decoder_blocks.0.attn.qkv.bias": one, "decoder_norm.bias": one}
    mae |= {"decoder_blocks.0.norm1.weight": one, "decoder_pred.weight": one}
    dino = {f"backbone.{name}": array for name, array in source.items()}
    dino |= {"head.mlp.0.weight": one, "head.last_layer.weight_g": one}
    for more in ({**source, **mae}, dino):
        found = converted(more)
        assert len(found.dropped) == len(more) - len(source)
        jax.tree.map(np.testing.assert_array_equal, found.variables, plain.variables)


def test_which_norm_a_file_has_says_what_its_classifier_reads(timms):
    found = converted(timms)
    assert found.framework == "timm" and found.standardise["std"] == [0.5] * 3
    assert "pool" not in found.options and found.head == "source"
    mae = renamed(
        timms, **{"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}
    )
    found = converted(mae)
    assert found.options["pool"] == "mean" and found.standardise["std"][0] == 0.229


def test_one_grey_channel_sums_the_stem_over_the_colours(timms):
    grey, colour = converted(timms, 1), converted(timms)
    net, image = vit.vit(3, **TINY), IMAGE[..., :1]
    standard = [
        ((image.repeat(n, -1) - np.array(c.standardise["mean"])) / c.standardise["std"])
        for n, c in ((1, grey), (3, colour))
    ]
    got, truth = (
        answers(net, c.variables, np.float32(x))[0]
        for c, x in zip((grey, colour), standard, strict=True)
    )
    np.testing.assert_allclose(got, truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("pos_embed", np.zeros(8)),
        ("pos_embed", np.zeros((1, 0, 8))),
        ("pos_embed", np.zeros(())),
        ("cls_token", np.zeros((1, 1, 9))),
        ("patch_embed.proj.weight", np.zeros((8, 3, 0, 0))),
        ("patch_embed.proj.weight", np.zeros((8, 3, 4, 900))),
        ("blocks.1.attn.qkv.weight", np.zeros((8, 8))),
        ("blocks.2.norm1.weight", np.zeros(8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(timms, name, array):
    with pytest.raises(InputError, match=r"pos_embed|tokens|conv|proj|blocks|position"):
        converted({**timms, name: array.astype(np.float32)})


# --------------------------------------------------------------------- in a run's parts


def run_of(**model):
    """What `explainer` needs of a run."""
    config = quickstart.get_config().unlock()
    config.model = model
    task = films.FindingsOutput(("a", "b"), False, (12, 20, 1))
    network = parts.classifier(config, task)
    return SimpleNamespace(config=config, output=task, network=network, state=None)


def test_stages_without_a_gradient_by_patches_are_refused():
    run = run_of(name="vit_small", **TINY)
    assert run.network.stages == ("stem", "stage1", "stage2")
    assert explain.stages(run) == ("stem", "stage1")
    with pytest.raises(
        InputError, match="--stage='stage2' is unknown: use 'stem', 'stage1'$"
    ):
        explain.explainer(run, stage="stage2")
    assert explain.explainer(run, method=heatmaps.ROLLOUT)
    with pytest.raises(InputError, match=f"--stage=stem: {heatmaps.ROLLOUT} explains"):
        explain.explainer(run, method=heatmaps.ROLLOUT, stage="stem")
    mean = run_of(name="vit_small", **TINY, pool="mean")
    assert explain.stages(mean) == mean.network.stages
    other = run_of(name="densenet_small", blocks=(1, 1))
    with pytest.raises(
        InputError, match=f"--method='{heatmaps.ROLLOUT}' is unknown: use"
    ):
        explain.explainer(other, method=heatmaps.ROLLOUT)
