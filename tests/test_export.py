"""The command `export`: what others run gives what the run itself predicts."""

import functools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import small
from launching import ensemble, run_here
from scipy.special import expit

from configs import quickstart_mri
from medjax.commands import export
from medjax.config import read_config
from medjax.data import loader
from medjax.data.intensity_units import Channel
from medjax.errors import InputError
from medjax.evaluation import recalibration
from medjax.evaluation.mask_metrics import Post
from medjax.models import cpu, weights
from medjax.tasks import (
    exported,
    films,
    fixed,
    imbalance,
    parts,
    scans,
    segmentation,
    start,
)
from medjax.tasks.task import Finished
from medjax.training import step, workdir

NAMES = ("a", "b", "c")
LOGISTIC = recalibration.Logistic((0.7, 1.0, 1.3), (0.4, 0.0, -2.0))
ALONE = (
    "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv = sys.argv[2:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
OURS = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum")  # jax's own, too.


def run_beside(script, *arguments, cwd, monkeypatch):
    """Runs a script in this process, which has imported everything."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


def run_alone(script, *arguments, cwd):
    """Runs a script where only jax, numpy and what these need can be imported."""
    site, alone = Path(np.__file__).parents[1], cwd / "site"
    alone.mkdir()
    for path in site.iterdir():
        if re.split(r"[-.]", path.name)[0] in OURS:
            (alone / path.name).symlink_to(path)
    command = [sys.executable, "-I", "-S", "-c", ALONE, alone, script, *arguments]
    env = {k: v for k, v in os.environ.items() if k.startswith(("JAX_COMP", "JAX_PER"))}
    options = {"cwd": cwd, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([*map(str, command)], check=False, **options)
    assert done.returncode == 0, done.stderr


def state_of(config, network, output, *, steepness=1.0):
    """Random members, whose classifier has larger weights."""

    def member(number):
        variables = parts.fresh(config, network, number)
        params = variables["params"]
        if "classifier" in params:
            params["classifier"]["kernel"] *= steepness
        label = imbalance.any_label(output)
        return parts.initial_state(config, network, output, label, variables=variables)

    return step.replicated(parts.ensemble([member(m) for m in range(config.ensemble)]))


def classifier(fit=None, *, exclusive=False, bits=8, steepness=1.0, depth=0, **fields):
    """A run that was never trained, but whose choices were made."""
    config = small.get_config()
    config.update_from_flattened_dict(fields)
    output = films.FindingsOutput(NAMES, exclusive, (32, 32, 1), bits)
    if depth:
        config.unlock().intensity = {"name": "z_scores"}
        output = output._replace(shape=(depth, 32, 32, 1), spacing=(2.0, 1.0, 1.0))
    network = parts.classifier(config, output)
    state = state_of(config, network, output, steepness=steepness)
    method = fixed.UNCALIBRATED._replace(fit=fit)
    thresholds = dict(zip(NAMES, (0.3, float("nan"), 0.5), strict=True))
    chosen = fixed.Fixed(0, thresholds, "youden", None, method)
    return Finished(config, Path(), output, network, 0, state, chosen)


def images(count, bits=8, shape=(32, 32, 1)):
    draws = np.random.default_rng(0)
    return draws.integers(2**bits, size=(count, *shape), dtype=f"uint{bits}")


@pytest.mark.parametrize(
    "fit, options",
    [
        (None, {"bits": 16, "steepness": 100.0}),
        (LOGISTIC, {"ensemble": 2, "evaluation.flip": True}),
        (LOGISTIC, {"steepness": 100.0}),
        (LOGISTIC, {"bits": 16, "depth": 12}),
        (
            recalibration.Isotonic(
                ((0.1, 0.4, 0.6), (), (0.2, 0.8)),
                ((0.0, 0.5, 1.0), (), (0.3, 0.3)),
                *((1.0, 0.5, 1.0), (0.0, 0.1, 0.0)),
            ),
            {},
        ),
        (
            recalibration.Softmax((0.5,) * 3, (0.1, -2.0, 0.3)),
            {
                "exclusive": True,
                "steepness": 10.0,
                "loss.name": "softmax_cross_entropy",
            },
        ),
    ],
)
def test_the_module_gives_the_run_s_calibrated_probabilities_and_calls(
    fit, options, tmp_path
):
    run, bits = classifier(fit, **options), options.get("bits", 8)
    program = exported.of_images(run)
    numbers, places = stored(program, tmp_path)
    module = export.lowered(program, places, "cpu")
    for count in (1, 7):
        pixels = images(count, bits, run.output.shape)
        expected = run.fixed.calibrated(expit(run.log_odds(pixels[None])))[0]
        (table,) = map(np.asarray, module.call(numbers, pixels))
        probability, call = np.split(table, 2, axis=1)
        np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-6)
        if run.output.exclusive:
            called = np.eye(3, dtype=int)[expected.argmax(axis=1)]
        else:
            called = np.stack(
                [expected[:, 0] >= 0.3, -np.ones(count), expected[:, 2] >= 0.5], axis=1
            )
        np.testing.assert_array_equal(call, called)


def stored(program, folder):
    """The weights as a file holds them: the numbers, and each array's place."""
    path = folder / "weights.safetensors"
    weights.write(path, program.weights)
    places, data = weights.places(path), path.read_bytes()
    numbers = np.frombuffer(data, "<f4", offset=8 + int.from_bytes(data[:8], "little"))
    for name, (at, shape) in places.items():
        part = numbers[at : at + np.prod(shape, dtype=int)].reshape(shape)
        np.testing.assert_array_equal(part, program.weights[name])
    return numbers, places


def ops(module):
    """How often each operation occurs, but for calls and for constants of platforms."""
    names = re.findall(r"= stablehlo\.(\w+)", module.mlir_module())
    plain = {"constant", "case", "add", "subtract", "multiply", "maximum"}
    return pd.Series(names)[lambda s: ~s.isin(plain)].value_counts().to_dict()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_their_own_operations(platform, monkeypatch, tmp_path):
    program = exported.of_images(classifier(**{"model.stem": "imagenet"}))
    _, places = stored(program, tmp_path)
    module = export.lowered(program, places, platform)
    assert module.platforms == (platform,)
    calls = set(re.findall(r"custom_call @(\w+)", module.mlir_module()))
    assert calls <= {"shape_assertion"}
    host = ops(export.lowered(program, places, "cpu"))
    jax.clear_caches()
    monkeypatch.setattr(cpu, "_method", lambda *_: None)  # XLA's own everywhere.
    native = ops(export.lowered(program, places, platform))
    jax.clear_caches()
    assert ops(module) == native != host


def masks_run(**fields):
    config = quickstart_mri.get_config()
    config.model.update(widths=(4, 8), strides=(1, 2))
    config.update_from_flattened_dict(fields)
    output = scans.MasksOutput(("A", "B"), {"x": (1,), "y": (2,)}, (1.0, 1.0, 1.0))
    if config.patch.slices:
        channels = Channel(0, -0.5, 1.0, 0.2, 0.7), Channel(1, -9.0, 9.0, 0.0, 1.0)
        given = ("hounsfield", "z_scores")
        output = output._replace(units=given, channels=channels, exclusive=True)
    network = parts.segmenter(config, output)
    state = state_of(config, network, output)
    return Finished(config, Path(), output, network, 0, state, [Post()] * 2)


@pytest.mark.parametrize(
    "fields, shape",
    [
        pytest.param(
            {
                "patch.size": (8, 8, 8),
                "ensemble": 2,
                "evaluation.flips": (0, 2),
                "evaluation.overlap": 0.3,
            },
            (6, 12, 17),
            marks=pytest.mark.slow,
        ),
        (
            {"patch.size": (3, 8, 8), "patch.slices": True, "evaluation.flips": (2,)},
            (4, 7, 13),
        ),
    ],
)
def test_a_volume_s_windows_are_blended_as_the_run_does(
    fields, shape, tmp_path, monkeypatch
):
    run = masks_run(**fields)
    volume = np.random.default_rng(1).normal(size=(*shape, 2)).astype(np.float32)
    volume[:2] = 0
    expected, *_ = segmentation.probability(
        run.config, run.network, run.state, volume, run.output.channels
    )
    export.write(segmentation.TASK.program(run), tmp_path)
    np.save(tmp_path / "volume.npy", volume)
    if fields.get("ensemble"):
        run_alone("predict.py", "volume.npy", "out.npy", cwd=tmp_path)
    else:
        files = "predict.py", "volume.npy", "out.npy"
        run_beside(*files, cwd=tmp_path, monkeypatch=monkeypatch)
    probability = np.load(tmp_path / "out.npy")
    assert probability.shape == expected.shape
    np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of a small run and of what was exported of it."""
    run, out = ensemble(), tmp_path_factory.mktemp("export") / "out"
    assert read_config(run).evaluation.flip
    run_here("export", f"--workdir={run}", f"--out={out}")
    return run, out


def test_predict_py_alone_gives_the_run_s_predictions(trained, tmp_path):
    run, out = trained
    expected = pd.read_csv(run / "predictions/test.csv")
    data = films.data(read_config(run))
    ids = data.table.set_index("image").loc[expected["image"], "id"].to_numpy()
    batches = loader.evaluation_batches(data.films(ids), batch=len(ids), devices=1)
    np.save(tmp_path / "images.npy", next(iter(batches))["image"][0])
    shutil.copytree(out, tmp_path / "copy")
    facts = json.loads((out / "task.json").read_text())
    odd = facts | {"columns": [f'{name}, "≥1"\n' for name in facts["columns"]]}
    (tmp_path / "copy/task.json").write_text(json.dumps(odd))
    run_alone(tmp_path / "copy/predict.py", "images.npy", "out.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table) == odd["columns"]
    names = list(data.output.names)
    table.columns = [*names, *(f"{name}_call" for name in names)]
    assert list(table) == facts["columns"]
    np.testing.assert_allclose(table[names], expected[names], rtol=0, atol=1e-6)
    for name in names:
        call = expected[f"{name}_call"].fillna(-1)
        np.testing.assert_array_equal(table[f"{name}_call"], call)


def test_the_folder_says_what_was_measured_and_names_no_machine(trained):
    run, out = trained
    assert {path.name for path in out.iterdir()} == {
        *("model.cpu.stablehlo", "model.cuda.stablehlo", "model.tpu.stablehlo"),
        *("weights.safetensors", "task.json", "predict.py", "README.md"),
    }
    for path in out.iterdir():
        content = path.read_bytes()
        for place in (run.parent, Path(export.__file__).parents[2], Path.home()):
            assert str(place).encode() not in content, path
        assert b"medjax/" not in content or path.suffix == ".md", path
    results = json.loads((run / "report.json").read_text())
    card = (out / "README.md").read_text()
    for task in results["tasks"].values():
        assert f"| {task['metrics']['auroc']['estimate']:.3f}" in card
    task = json.loads((out / "task.json").read_text())
    chosen = json.loads((run / "thresholds.json").read_text())["tasks"]
    assert task["thresholds"] == chosen
    assert (task["shape"], task["greys"], task["members"]) == ([32, 32, 1], 256, 2)


def test_a_training_begins_with_the_exported_weights(trained):
    run, out = trained
    config = small.get_config()
    config.transfer.init = str(out)
    output = films.FindingsOutput(**workdir.read_task(run))
    config, weights = start.settle_weights(config, output, parts.classifier)
    network = parts.classifier(config, output)
    variables = start.variables(parts.fresh(config, network), weights, output)
    theirs = read_config(run)
    _, state = start.restore(theirs, run, parts.classifier(theirs, output), output)
    pixels = images(3) / np.float32(255)
    apply = jax.jit(functools.partial(network.apply, train=False))
    logits = [
        apply(each, pixels) for each in (variables, step.members(state)[0].averaged)
    ]
    np.testing.assert_array_equal(*logits)
    with pytest.raises(InputError, match="another kind of task: give one of segment"):
        start.settle_weights(
            config, scans.MasksOutput(("T1",), {"x": (1,)}), parts.segmenter
        )


def test_a_folder_that_isn_t_empty_and_an_unfinished_run_are_refused(trained, tmp_path):
    run, out = trained
    _, errors = run_here("export", f"--workdir={run}", f"--out={out}", code=2)
    assert "isn't empty" in errors
    _, errors = run_here("export", f"--workdir={tmp_path}", "--out=x", code=2)
    assert "no config.json" in errors


def test_augmented_copies_are_refused():
    for run, program in (
        (classifier(**{"evaluation.copies": 2}), exported.of_images),
        (masks_run(**{"evaluation.copies": 2}), segmentation.TASK.program),
    ):
        with pytest.raises(InputError, match="copies=2: augmented copies can't be"):
            program(run)
