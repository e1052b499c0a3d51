"""A U-Net begins with another run's weights, or says why it can't."""

import jax
import numpy as np
import pytest
from test_start import TASK, assert_same, config_of, left_by, noise_like

from configs import quickstart_mri
from medjax.config import config_as_json
from medjax.errors import InputError
from medjax.tasks import parts, start
from medjax.tasks.scans import MasksOutput
from medjax.training import workdir
from medjax.training.checkpoint import Checkpoints

SEQUENCES, REGIONS = ("flair", "t1"), {"whole": (1, 2), "core": (1,)}
OUTPUT = MasksOutput(SEQUENCES, REGIONS, (1.0, 1.0, 1.0))
OTHER = OUTPUT._replace(regions={"lesion": (1,)})
LABEL = np.array([[0.5, 0.2]])


def unet_config(init="", **model):
    c = quickstart_mri.get_config()
    c.patch.size = (8, 8, 8)
    c.model.update(widths=(2, 4), strides=(1, 2), **model)
    c.transfer.init = str(init)
    return c


def fresh_of(config, output):
    init = parts.segmenter(config, output).init
    return noise_like(jax.eval_shape(init, jax.random.key(0)), seed=4)


def begun(config, output=OUTPUT):
    config, weights = start.settle_weights(config, output, parts.segmenter)
    fresh = fresh_of(config, output)
    return fresh, start.variables(fresh, weights, output)


@pytest.fixture
def old(tmp_path):
    """The folder of a run, and its averaged weights, which are others than its last."""
    folder, config = tmp_path / "old", unet_config(deep=1)
    workdir.claim(folder, config_as_json(config))
    workdir.write_task(folder, OUTPUT)
    state = parts.initial_state(
        *(config, parts.segmenter(config, OUTPUT), OUTPUT, LABEL),
        variables=fresh_of(config, OUTPUT),
    )
    averaged = noise_like(state.averaged)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, state._replace(averaged=averaged), {"next": 0}, score=0.5)
    return folder, averaged["params"]


def test_a_run_begins_with_the_averaged_weights_of_another(old):
    folder, averaged = old
    fresh, found = begun(unet_config(folder, deep=1))
    assert_same(found["params"], averaged)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)


def test_the_heads_start_anew_for_other_regions(old, capsys):
    folder, averaged = old
    fresh, found = begun(unet_config(folder, deep=1), OTHER)
    assert "head: starts anew" in capsys.readouterr().out
    for name, leaves in found["params"].items():
        heads = name in ("head", "head1")
        assert_same(leaves, fresh["params"][name] if heads else averaged[name])
    assert found["params"]["head"] and found["params"]["head1"]


def test_a_head_of_a_coarser_level_may_be_one_more_or_less(old):
    folder, averaged = old
    _, found = begun(unet_config(folder, deep=0))
    assert_same(found["params"], {k: v for k, v in averaged.items() if k != "head1"})


def test_other_sequences_are_told(old, capsys):
    folder, averaged = old
    _, found = begun(
        unet_config(folder, deep=1), OUTPUT._replace(sequences=("t1", "flair"))
    )
    assert "trained on flair, t1, not on t1, flair" in capsys.readouterr().out
    assert_same(found["params"], averaged)


@pytest.mark.parametrize(
    ("options", "sequences", "said"),
    [
        ({"groups": 2}, SEQUENCES, r"model\.groups=2: the weights of .* go with 0"),
        ({"up_blocks": 2}, SEQUENCES, r"model\.up_blocks=2"),
        (
            {},
            ("t1",),
            r"\['stem'\].*\(3, 3, 3, 2, 2\) in the weights, \(3, 3, 3, 1, 2\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(old, options, sequences, said):
    folder, _ = old
    with pytest.raises(InputError, match=said) as error:
        begun(unet_config(folder, **options), OUTPUT._replace(sequences=sequences))
    assert "\n" not in str(error.value)


def test_what_is_no_run_of_segmentation_is_refused_and_the_other_way_round(
    old, tmp_path
):
    folder, _ = old
    with pytest.raises(InputError, match=r"init='imagenet': give the folder of a run"):
        begun(unet_config("imagenet"))
    classifier = left_by(config_of(), tmp_path / "classifier")
    with pytest.raises(
        InputError, match=r"another kind of task: give one of segmentation"
    ):
        begun(unet_config(classifier))
    with pytest.raises(
        InputError, match="another kind of task: give one of classification"
    ):
        start.settle_weights(config_of(folder), TASK, parts.classifier)
