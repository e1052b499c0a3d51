"""A classifier of volumes begins with a U-Net's encoder, or with inflated weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_volumes
from test_architectures import SMALL
from test_start import assert_same, noise_like
from test_start_unet import REGIONS, SEQUENCES, unet_config
from test_start_unet import old as segmentation  # noqa: F401

from medjax.errors import InputError
from medjax.models import architectures
from medjax.tasks import parts, start
from medjax.tasks.films import FindingsOutput
from medjax.tasks.scans import MasksOutput

OUTPUT = FindingsOutput(("a", "b"), False, (8, 8, 8, 2), 16, (1.0, 1.0, 1.0), SEQUENCES)


def config_of(init, **model):
    c = small_volumes.get_config()
    c.model, c.transfer.init = model, str(init)
    return c


def begun(config):
    config, weights = start.settle_weights(config, OUTPUT, parts.classifier)
    network = parts.classifier(config, OUTPUT)
    fresh = noise_like(jax.eval_shape(network.init, jax.random.key(0)), seed=4)
    return network, fresh, start.variables(fresh, weights, OUTPUT)


def test_a_run_of_segmentation_gives_its_encoder(segmentation, capsys):  # noqa: F811
    folder, averaged = segmentation
    network, fresh, found = begun(config_of(folder, name="unet_encoder"))
    params = found["params"]
    assert params.keys() == {"stem", "stage1", "classifier"}
    assert_same(params["stem"], averaged["stem"])
    assert_same(params["stage1"], averaged["down1"])
    assert_same(params["classifier"], fresh["params"]["classifier"])
    assert "classifier: starts anew" in capsys.readouterr().out
    # Both see the same in a volume.
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    how = {"train": False, "mutable": ["intermediates"]}
    _, sown = jax.jit(functools.partial(network.apply, **how))(found, image)
    unet = parts.segmenter(unet_config(deep=1), MasksOutput(SEQUENCES, REGIONS))
    how["capture_intermediates"] = lambda module, _: module.name == "down1"
    look = jax.jit(functools.partial(unet.apply, **how))
    _, kept = look({"params": averaged}, image)
    np.testing.assert_allclose(
        sown["intermediates"]["stages"][-1],
        kept["intermediates"]["down1"]["__call__"][0],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "densenet_small"}, "or set model.name='unet_encoder'"),
        ({"name": "unet_encoder", "widths": (2, 8)}, "model.widths=.*go with"),
    ],
)
def test_another_network_is_refused(segmentation, model, words):  # noqa: F811
    with pytest.raises(InputError, match=words):
        begun(config_of(segmentation[0], **model))


@pytest.mark.parametrize(
    "model",
    [
        architectures.resnet_small(2, stem="half"),
        SMALL["convnext"](2),
        *(
            pytest.param(model, marks=pytest.mark.slow)
            for model in (
                architectures.densenet_small(2, stem="half"),
                SMALL["lite"](2),
            )
        ),
    ],
)
def test_inflated_weights_answer_a_volume_of_equal_slices_as_the_image(model):
    """In the interior: at its ends a volume has zeros beside it, and an image none."""
    image = np.random.default_rng(0).random((1, 24, 20, 1), np.float32)
    volume = np.repeat(image[:, None], 64, 1)
    init = functools.partial(model.init, jax.random.key(0), train=False)
    flat, deep = (noise_like(jax.eval_shape(init, x)) for x in (image, volume))
    weights = start.Start(flat, ("a", "b"), {}, {})
    found = start.variables(deep, weights, OUTPUT)
    kernel = found["params"]["stem"]["conv"]["kernel"]
    assert kernel.shape[:2] == kernel.shape[1:3] and kernel.ndim == 5
    np.testing.assert_allclose(
        kernel.sum(axis=0), flat["params"]["stem"]["conv"]["kernel"], rtol=1e-5
    )
    how = {"train": False, "mutable": ["intermediates"]}
    stages = [
        jax.jit(functools.partial(model.apply, **how))(variables, x)[1]
        for variables, x in ((flat, image), (found, volume))
    ]
    two, three = (sown["intermediates"]["stages"][1] for sown in stages)
    middle = three[:, three.shape[1] // 2]
    np.testing.assert_allclose(middle, two, rtol=1e-4, atol=1e-4 * jnp.abs(two).max())
    assert not np.allclose(three[:, 0], two, rtol=5e-4)
