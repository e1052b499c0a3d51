"""A U-Net begins with another run's weights, or says why it can't."""

import json
import types

import jax
import pytest
from test_start import assert_same, config_of, left_by, noise_like

from configs import quickstart_mri
from medjax import config as plain
from medjax.errors import InputError
from medjax.tasks import masks, start
from medjax.tasks import start as start_segmentation
from medjax.tasks.study import Task
from medjax.training import folder as workdir
from medjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("unoptimised")
SEQUENCES, REGIONS = ("flair", "t1"), {"whole": (1, 2), "core": (1,)}
TASK = Task(("a", "b", "c"), False, (16, 16, 1))


def unet_config(init="", **model):
    c = quickstart_mri.get_config()
    c.patch.size = (8, 8, 8)
    c.model.update(widths=(2, 4), strides=(1, 2), **model)
    c.transfer.init = str(init)
    return c


def prepared(sequences=SEQUENCES, regions=tuple(REGIONS)):
    return types.SimpleNamespace(sequences=sequences, regions=dict.fromkeys(regions))


def fresh_of(config, volumes):
    init = masks.network_of(config, volumes).init
    return noise_like(jax.eval_shape(init, jax.random.key(0)), seed=4)


def begun(config, volumes):
    fresh = fresh_of(config, volumes)
    return fresh, start_segmentation.variables_start_segmentation(
        config, fresh, volumes
    )


@pytest.fixture
def old(tmp_path):
    """The folder of a run, and its averaged weights, which are others than its last."""
    folder, config = tmp_path / "old", unet_config(deep=1)
    workdir.claim(folder, plain.as_json(config))
    meaning = {"sequences": SEQUENCES, "regions": REGIONS}
    (folder / "task.json").write_text(json.dumps(meaning))
    state = masks.initial_state(config, fresh_of(config, prepared()), 2)
    averaged = noise_like(state.averaged)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, state._replace(averaged=averaged), {"next": 0}, score=0.5)
    return folder, averaged["params"]


def test_a_run_begins_with_the_averaged_weights_of_another(old):
    folder, averaged = old
    fresh, found = begun(unet_config(folder, deep=1), prepared())
    assert_same(found["params"], averaged)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)


def test_the_heads_start_anew_for_other_regions(old, capsys):
    folder, averaged = old
    fresh, found = begun(unet_config(folder, deep=1), prepared(regions=("lesion",)))
    assert "head: starts anew" in capsys.readouterr().out
    for name, leaves in found["params"].items():
        heads = name in ("head", "head1")
        assert_same(leaves, fresh["params"][name] if heads else averaged[name])
    assert found["params"]["head"] and found["params"]["head1"]


def test_a_head_of_a_coarser_level_may_be_one_more_or_less(old):
    folder, averaged = old
    _, found = begun(unet_config(folder, deep=0), prepared())
    assert_same(found["params"], {k: v for k, v in averaged.items() if k != "head1"})


def test_other_sequences_are_told(old, capsys):
    folder, averaged = old
    _, found = begun(unet_config(folder, deep=1), prepared(("t1", "flair")))
    assert "trained on flair, t1, not on t1, flair" in capsys.readouterr().out
    assert_same(found["params"], averaged)


def test_without_weights_nothing_changes():
    fresh = {"params": {}}
    config = unet_config()
    assert (
        start_segmentation.variables_start_segmentation(config, fresh, prepared())
        is fresh
    )
    with config.unlocked():
        del config.transfer  # As in an older run's.
    assert (
        start_segmentation.variables_start_segmentation(config, fresh, prepared())
        is fresh
    )


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
        begun(unet_config(folder, **options), prepared(sequences))
    assert "\n" not in str(error.value)


def test_what_is_no_run_of_segmentation_is_refused_and_the_other_way_round(
    old, tmp_path
):
    folder, _ = old
    with pytest.raises(InputError, match=r"init='imagenet': give the folder of a run"):
        begun(unet_config("imagenet"), prepared())
    classifier = left_by(config_of(), tmp_path / "classifier")
    with pytest.raises(InputError, match=r"a classifier's run \(task='multilabel'\)"):
        begun(unet_config(classifier), prepared())
    with pytest.raises(InputError, match="a run of segmentation, .* give a classifier"):
        start.settle(config_of(folder), TASK)
    config = unet_config()
    with config.unlocked():
        config.transfer.mode = "head"
    with pytest.raises(InputError, match=r"transfer\.mode='head': .* use 'all'"):
        begun(config, prepared())
