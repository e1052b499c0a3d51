"""Segmentation's parts are put together as the config says."""

import functools
import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import special

from configs import base
from medjax import losses
from medjax.errors import InputError
from medjax.tasks import check, imbalance, parts, scans, segmentation
from medjax.tasks.scans import MasksOutput, ScanData
from medjax.training import step

CONFIGS = [
    path.stem
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    if "base.segmentation(" in path.read_text()
]


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.fixture
def config():
    c = config_of("quickstart_mri")
    c.patch.size, c.model.widths = (8, 8, 8), (2, 4)
    c.model.strides = (1, 2)
    return c


def output(sequences, regions):
    names = {f"r{number}": (number + 1,) for number in range(regions)}
    return MasksOutput(tuple(f"s{number}" for number in range(sequences)), names)


def shapes(config, network, output):
    label = np.eye(max(2, len(output.names)))[:, : len(output.names)]
    return jax.eval_shape(
        lambda key: parts.initial_state(
            config, network, output, label, variables=network.init(key)
        ),
        jax.random.key(0),
    )


def loss_arguments(config, label=((0.5, 0.5, 0.5),)):
    return imbalance.loss_arguments(config, output(4, 3), np.array(label))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_names_parts_that_exist_and_fit(name):
    config = config_of(name)
    masks = output(4, 3)._replace(exclusive=config.data.get("exclusive", False))
    network = parts.segmenter(config, masks)
    state = shapes(config, network, masks)
    patch = jax.ShapeDtypeStruct((2, *config.patch.size, 4), jnp.float32)
    found = jax.eval_shape(network.predict, state.averaged, patch)
    assert found.shape == (2, *config.patch.size, 3)
    step.compile_step(**parts.step_parts(config, network))
    assert config.train.steps % config.train.evaluate_every == 0
    assert parts.schedule(config)["steps"] == config.train.steps
    parts.caveats(config)
    text = Path(f"configs/{name}.py")
    assert str(text) in (Path(__file__).parents[1] / text).read_text()  # Its command.


def test_slices_are_channels_of_a_network_of_planes(config):
    config.patch.size, config.patch.slices = (3, 8, 16), True
    network = parts.segmenter(config, output(4, 1))
    state = shapes(config, network, output(4, 1))
    plane = jax.ShapeDtypeStruct((1, 8, 16, 12), jnp.float32)
    found = jax.eval_shape(network.predict, state.averaged, plane)
    assert found.shape == (1, 8, 16, 1)


def test_a_volume_s_probabilities_are_the_network_s_where_one_window_holds_it(config):
    config.evaluation.flips = ()
    network = parts.segmenter(config, output(2, 1))
    variables = network.init(jax.random.key(1))
    label = np.array([[1.0], [0.0]])
    state = parts.initial_state(
        config, network, output(2, 1), label, variables=variables
    )
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
    found, *_ = segmentation.probability(config, network, state, image)
    apply = jax.jit(functools.partial(network.apply, train=False))
    logits = apply(variables, image[None])[0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.float64(logits))), atol=1e-5)


def test_parts_of_the_loss_get_their_numbers_and_equal_weights(config):
    config.loss.parts.weighted_bce.share = 0.5
    found = loss_arguments(config)["parts"]
    assert found["soft_dice"] == {"share": 1.0, "smooth": 1.0}
    assert found["weighted_bce"]["share"] == 0.5
    np.testing.assert_array_equal(found["weighted_bce"]["w_pos"], np.ones(3))
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 1, 4, 4, 3)), rng.integers(0, 2, (1, 4, 4, 3))
    weight = np.ones((1, 3))
    total, _ = losses.compound(logits[0], label, weight, parts=found)
    dice, _ = losses.soft_dice(logits[0], label, weight, smooth=1.0)
    p = 1 / (1 + np.exp(-logits[0]))
    bce = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(axis=(1, 2)).sum()
    np.testing.assert_allclose(total, dice + 0.5 * bce, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "densenet121"}, "makes no masks: take 'unet'"),
        ({"model.name": "unett"}, "model.name='unett'"),
    ],
)
def test_a_network_without_masks_is_refused(config, changes, message):
    config.update_from_flattened_dict(changes)
    with config.unlocked():
        config.model = {"name": config.model.name}
    with pytest.raises(InputError, match=message):
        parts.segmenter(config, output(4, 3))


def test_a_number_that_the_loss_doesn_t_take_is_named(config):
    with config.loss.parts.unlocked():
        config.loss.parts.soft_dice.smoth = 1.0
    with pytest.raises(InputError, match="loss.smoth: soft_dice has no such number"):
        loss_arguments(config)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "auc_margin"])
def test_a_loss_that_isn_t_of_masks_is_refused(config, name):
    with config.unlocked():
        config.loss = {"name": "compound", "parts": {name: {}}}
    with pytest.raises(InputError, match=f"{name}': is not of masks"):
        loss_arguments(config)


@pytest.fixture
def organs():
    """A config of two organs that exclude each other, and its output."""
    c = base.segmentation("folders")
    c.data.regions, c.data["values"] = (
        ("liver", "spleen"),
        {"liver": (1, 4), "spleen": (2,)},
    )
    c.data.exclusive, c.evaluation.flips = True, ()
    c.patch.size, c.model.widths, c.model.strides = (8, 8, 8), (2, 4), (1, 2)
    return c, scans.expected(c)


def test_exclusive_regions_have_the_probabilities_of_a_softmax(organs):
    config, output = organs
    network = parts.segmenter(config, output)
    states = [
        parts.initial_state(
            config, network, output, np.eye(3)[:, :2], variables=variables
        )
        for variables in map(network.init, jax.random.split(jax.random.key(1)))
    ]
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
    found, *_ = segmentation.probability(config, network, tuple(states), image)
    expected, apply = 0, jax.jit(functools.partial(network.apply, train=False))
    for state in states:
        logits = apply(state.averaged, image[None])[0]
        logits = np.append(logits, 0 * logits[..., :1], axis=-1)
        expected += special.softmax(logits, axis=-1)[..., :2] / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = parts.segmenter(config, output._replace(exclusive=False))
    assert other is not network


def test_masks_of_exclusive_regions_are_of_the_likeliest(config, tmp_path):
    config.data.update(patients=1, shape=(12, 12, 12), spacing=(14.0, 14.0, 14.0))
    config.data.records = str(tmp_path)
    data = scans.data(config)
    data = data._replace(output=data.output._replace(exclusive=True))
    blank = step.State(*[None] * len(step.State._fields))
    members = ((0.1, 0.35, 0.3), (0.5, 0.3, 0.1))  # The mean is 0.3, 0.325, 0.2.
    states = tuple(blank._replace(averaged=np.float32(p)) for p in members)

    def predict(p, image):
        return jnp.broadcast_to(p, (*image.shape[:-1], 3))

    network = SimpleNamespace(predict=predict)
    answer = next(segmentation.answers(config, network, states, data, [0]))
    for found, k in ((answer.probability, 1), *zip(answer.members, (1, 0))):
        np.testing.assert_array_equal(found, np.broadcast_to(np.eye(3)[k], found.shape))


def test_the_loss_of_exclusive_regions_weights_the_background_too(organs):
    config, output = organs
    config.imbalance = "balanced"
    with config.unlocked():
        config.loss = {
            "name": "compound",
            "parts": {"softmax_cross_entropy": {}, "weighted_bce": {}},
        }
    found = imbalance.loss_arguments(config, output, np.array([[0.1, 0.2]] * 2))[
        "parts"
    ]
    shares = np.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(
        found["softmax_cross_entropy"]["w"], 1 / (3 * shares), rtol=1e-6
    )
    np.testing.assert_allclose(
        found["weighted_bce"]["w_pos"], 1 / (2 * shares[:2]), rtol=1e-6
    )
    segmentation.check(config, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"values": {"liver": (1, 2), "spleen": (2,)}},
            "2 is in data.background too, or",
        ),
        ({"background": (0, 4)}, "4 is in data.background too"),
        ({"values": {"liver": (1,), "spleen": ()}}, "spleen .* has no value"),
    ],
)
def test_values_that_no_exclusive_map_can_hold_are_refused(organs, changes, message):
    config, _ = organs
    for name, value in changes.items():
        with config.unlocked():
            config.data[name] = value
    with pytest.raises(InputError, match=message):
        segmentation.check(config, 1)


def test_an_even_number_of_slices_is_refused(config):
    config.patch.size, config.patch.slices = (4, 8, 8), True
    with pytest.raises(InputError, match="has no middle one"):
        parts.segmenter(config, output(4, 3))


@pytest.mark.parametrize("regions, slices", [(("a", "b"), False), (("a",), True)])
def test_synthetic_lesions_of_several_regions_or_of_slices_are_refused(regions, slices):
    c = base.segmentation("folders")
    with c.unlocked():
        c.data.regions = regions
        c.data["values"] = {name: (k + 1,) for k, name in enumerate(regions)}
        c.patch.update(lesions=0.5, slices=slices, size=(3, 8, 8))
    with pytest.raises(InputError, match="patch.lesions=0.5: .* of one region, in"):
        segmentation.check(c, 1)


def test_a_threshold_of_regions_that_exclude_each_other_is_refused():
    c = base.segmentation("folders")
    c.data.exclusive = True
    c.evaluation.threshold = 0.3
    with pytest.raises(InputError, match="threshold=0.3: .* the likeliest region"):
        segmentation.check(c, 1)


@pytest.mark.parametrize("split", ["patients", "all"])
def test_a_threshold_that_validation_overrules_is_warned_of(split):
    c = base.segmentation("folders")
    c.data.split = split
    assert check.threshold(c) == ""
    c.evaluation.threshold = 0.3
    assert ("choose=False" in check.threshold(c)) is (split == "patients")
    c.evaluation.choose = False
    assert check.threshold(c) == ""


def test_class_weights_are_of_the_regions_voxels(config):
    config.imbalance = "balanced"
    rows = {"id": [0, 1], "voxels_a": [10, 20], "voxels_b": [0, np.nan]}
    sizes = {"depth": [10, 5], "height": [10, 10], "width": [1, 1]}
    table = pd.DataFrame(rows | sizes)
    volumes = ScanData(None, table, MasksOutput(("t1",), {"a": (1,), "b": (2,)}), None)
    label = volumes.weighted(np.array([1, 0]))
    np.testing.assert_allclose(label[:, 0], [0.2, 0.2])
    assert np.isnan(label[0, 1]) and label[1, 1] == 0
    label[:, 1] = 0.5
    found = imbalance.loss_arguments(config, volumes.output, label)["parts"]
    found = found["weighted_bce"]
    np.testing.assert_allclose(found["w_pos"], [150 / (2 * 30), 1], rtol=1e-5)
    np.testing.assert_allclose(found["w_neg"], [150 / (2 * 120), 1], rtol=1e-5)


def test_class_weights_may_be_of_the_patients_with_a_region(config):
    config.imbalance, config.resampling.count = "ratio", "patients"
    rows = {"id": range(4), "a": [1, 0, 0, 0], "b": [0, 1, 1, np.nan]}
    regions = {"a": (1,), "b": (2,)}
    volumes = ScanData(None, pd.DataFrame(rows), MasksOutput(("t1",), regions), None)
    label = imbalance.counted(config, volumes, np.arange(4))
    found = imbalance.loss_arguments(config, volumes.output, label)["parts"]
    found = found["weighted_bce"]
    np.testing.assert_allclose(found["w_pos"], [3 / 4, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(found["w_neg"], [1 / 4, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "frozen"), [("stem", 1), ("down1", 2), ("up1", 3), ("head", 3)]
)
def test_a_mode_freezes_levels_from_the_image_on(config, mode, frozen):
    config.transfer.mode = mode
    network = parts.segmenter(config, output(4, 3))
    assert network.stages == ("stem", "down1", "up1")
    assert network.frozen == network.stages[:frozen]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("imbalance", "smote", "no embedding .* over-sample"),
        ("imbalance", "decoupled", "no embedding .* over-sample"),
        ("resampling.count", "voxel", "use 'voxels', 'patients'"),
        ("transfer.mode", "features", "transfer.mode='head'"),
        ("transfer.mode", "stage1", "freeze up to one of stem, down1"),
        ("adapt.name", "adabn", "without batch statistics"),
        ("adapt.name", "coral", "no embedding"),
        ("patch.size", (7, 8, 8), "patch.size or .*can't be divided"),
        ("train.batch", 6, "give a multiple of 8"),
        ("optim.name", "adam", "optim.name='adam'"),
        ("evaluation.checkpoint", "first", "use 'best', 'last'"),
        ("data.split", "random", "data.split='random' is unknown: use"),
        ("data.split", "all", "evaluation.checkpoint='best'.*'last'"),
        ("transfer.init", "nowhere", "nowhere.*give 'imagenet'"),
        ("evaluation.flips", (3,), "flips=.3,.: the axes are"),
        ("evaluation.overlap", 1.0, "overlap=1.0"),
        ("augment.ops", ("elastic",), "copies=2: .* an elastic move has no inverse"),
        ("augment.ops", (), "copies=2: .* name other ops in augment.ops"),
        ("evaluation.replicates", 0, "evaluation.replicates=0: give 1"),
    ],
)
def test_a_mistake_is_refused_before_any_data_are_read(config, field, value, said):
    config.train.batch, config.evaluation.copies = 8, 2
    segmentation.check(config, 4)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=said):
        segmentation.check(config, 4)


def test_what_depends_on_the_side_is_mirrored_nowhere(config):
    config.modality = ""
    config.augment.ops = ("random_affine",)
    config.augment.sided = True
    network, named = parts.segmenter(config, output(4, 1)), output(4, 1)
    for flip, flips, said in (
        (0.5, (), "augment.random_affine"),
        (0.0, (0, 2), r"evaluation.flips=\(0, 2\)"),
    ):
        config.augment.random_affine.flip, config.evaluation.flips = flip, flips
        with pytest.raises(InputError, match=f"{said}: mirrors left and right"):
            check.check_parts(config, network, named, batch=1)
    config.evaluation.flips = (0, 1)
    check.check_parts(config, network, named, batch=1)


def test_names_of_sides_are_warned_of(config):
    sided = (
        "left_kidney",
        "Kidney Right",
        "kidneyRight",
        "1_left",
        "hippocampus_L",
        "rh",
    )
    others = "Bright", "slight", "leftover", "upright", "L1", "lung", "IgR", "fright2"
    for name in sided:
        assert f"{name!r} names a side" in check.sides(config, (*others, name))
    assert check.sides(config, others) == ""
    config.augment.sided = True
    assert check.sides(config, sided) == ""


@pytest.mark.parametrize("name", ["patient", "mean", "background", ""])
def test_a_region_is_not_called_as_what_tables_and_pages_add(name):
    c = base.segmentation("folders")
    c.data.regions, c.data["values"] = (name,), {name: (1,)}
    with pytest.raises(InputError, match=f"'{name}' is a name of ours"):
        scans.expected(c)
    c.data.regions, c.data["values"] = ("a", "a"), {"a": (1,)}
    with pytest.raises(InputError, match="name each of them once"):
        scans.expected(c)
