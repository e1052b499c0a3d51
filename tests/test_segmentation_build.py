"""Segmentation's parts are put together as the config says."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import config as plain
from medjax import losses
from medjax.errors import InputError
from medjax.tasks import augmentation, masks

CONFIGS = [
    path.stem
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    if path.stem != "base" and "base.segmentation(" in path.read_text()
]


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.fixture
def config():
    c = config_of("quickstart_mri")
    c.patch.size, c.model.widths = (8, 8, 8), (2, 4)
    c.model.strides = (1, 2)
    return c


def shapes(config, network, regions):
    return jax.eval_shape(
        lambda key: masks.initial_state(config, network.init(key), regions),
        jax.random.key(0),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_names_parts_that_exist_and_fit(name):
    config = config_of(name)
    network = masks.network(config, 4, 3)
    state = shapes(config, network, 3)
    patch = jax.ShapeDtypeStruct((2, *config.patch.size, 4), jnp.float32)
    found = jax.eval_shape(network.probability, state.averaged, patch)
    assert found.shape == (2, *config.patch.size, 3)
    masks.train_step(config, network)
    assert config.train.steps % config.train.evaluate_every == 0
    assert plain.schedule(config)["steps"] == config.train.steps
    augmentation.caveats(config)
    text = Path(f"configs/{name}.py")
    assert str(text) in (Path(__file__).parents[1] / text).read_text()  # Its command.


def test_slices_are_channels_of_a_network_of_planes(config):
    config.patch.size, config.patch.slices = (3, 8, 16), True
    network = masks.network(config, 4, 1)
    state = shapes(config, network, 1)
    plane = jax.ShapeDtypeStruct((1, 8, 16, 12), jnp.float32)
    found = jax.eval_shape(network.probability, state.averaged, plane)
    assert found.shape == (1, 8, 16, 1)


def test_a_volume_s_probabilities_are_the_network_s_where_one_window_holds_it(config):
    config.evaluation.flips = ()
    network = masks.network(config, 2, 1)
    variables = network.init(jax.random.key(1))
    state = masks.initial_state(config, variables, 1)
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
    found = masks.probability(config, network, state, image)
    logits = network.apply(variables, image[None], train=False)[0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.float64(logits))), atol=1e-5)


def test_parts_of_the_loss_get_their_numbers_and_equal_weights(config):
    config.loss.parts.weighted_bce.share = 0.5
    found = masks.loss_arguments(config, 3)["parts"]
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
        masks.network(config, 4, 3)


def test_a_number_that_the_loss_doesn_t_take_is_named(config):
    with config.loss.parts.unlocked():
        config.loss.parts.soft_dice.smoth = 1.0
    with pytest.raises(InputError, match="loss.smoth: soft_dice has no such number"):
        masks.loss_arguments(config, 3)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "auc_margin"])
def test_a_loss_that_isn_t_of_masks_is_refused(config, name):
    with config.unlocked():
        config.loss = {"name": "compound", "parts": {name: {}}}
    with pytest.raises(InputError, match=f"{name}': is not of masks"):
        masks.loss_arguments(config, 3)


def test_an_even_number_of_slices_is_refused(config):
    config.patch.size, config.patch.slices = (4, 8, 8), True
    with pytest.raises(InputError, match="has no middle one"):
        masks.network(config, 4, 3)
