"""What a command says where the user, or the machine, stands in its way."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time

import launching
import numpy as np
import pytest
from absl import flags
from launching import ROOT, SMALL, run_here

import launch
from configs import base, ms_lesions_unet3d, quickstart, quickstart_mri
from medjax.config import get_config
from medjax.data import prepared, records
from medjax.errors import InputError
from medjax.files import held, naming, write_text
from medjax.tasks import check, classification, segmentation
from medjax.training import workdir

OUT_OF_RANGE = [
    ("split.test", 1.0, "0 to less than 1"),
    ("split.test", -0.1, "0 to less than 1"),
    ("split.validation", float("nan"), "0 to less than 1"),
    ("split.minority", 0.5, "0 to less than 0.5"),
    ("seed", 2**32, r"0 to 2\*\*32 - 1"),
    ("split.seed", -2, r"-1 to 2\*\*32 - 1"),
    ("split.patients", -1, "0 or more"),
    ("optim.ema", 1.0, "0 to less than 1"),
    ("optim.ema", 1.5, "0 to less than 1"),
    ("optim.warmup", -1, "0 or more"),
    ("optim.learning_rate", float("inf"), "more than 0"),
    ("optim.clip", 0.0, "more than 0"),
    ("train.steps", 0, "1 or more"),
    ("train.threads", -1, "0 or more"),
    ("data.max_quarantined", 1.01, "0 to 1"),
    ("resampling.most", 0, "1 or more"),
    ("augment.random_affine.flip", 1.5, "0 to 1"),
    ("augment.brightness.strength", -0.1, "0 or more"),
    ("data.side", 100_000, "1 to 10,000"),
    ("data.prevalence", (0.1,) * 5 + (2.0,), "shares from 0 to 1"),
    ("data.prevalence", ("a",) * 6, "shares from 0 to 1"),
    ("evaluation.prevalence", ("a",), "shares from 0 to 1"),
    ("model.blocks", (2, 2.5), "whole numbers of 0 or more"),
    ("model.blocks", (2, (-1,)), "whole numbers of 0 or more"),
    ("data.tasks", (1,), "names"),
]


@pytest.mark.parametrize("field, value, words", OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_refused_by_its_field(field, value, words):
    config = quickstart.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(
        InputError, match=f"^{re.escape(f'{field}={value}')}: give {words}$"
    ):
        check.check_ranges(config)


@pytest.mark.parametrize("field", check.READ_BY)
def test_a_number_that_nothing_reads_is_refused(field):
    config = quickstart.get_config()
    default, other, choices = check.READ_BY[field]
    assert check.flatten(config.to_dict())[field] == default
    config.update_from_flattened_dict({field: default / 2 if default < 2 else 50})
    with pytest.raises(InputError, match=f"{field}=.*is of no use with {other}="):
        check.check_ranges(config)
    config.update_from_flattened_dict({other: choices[-1]})
    check.check_ranges(config)


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_a_loss_s_numbers_are_0_or_more(gamma):
    config = quickstart.get_config()
    config.loss = {"name": "compound", "parts": {"focal": {"gamma": gamma}}}
    said = f"loss.parts.focal.gamma={gamma}: give 0 or more"
    with pytest.raises(InputError, match=f"^{said}$"):
        check.check_ranges(config)
    config.loss = {"name": "focal", "gamma": 0.0}
    check.check_ranges(config)


@pytest.mark.parametrize("recipe", [quickstart, quickstart_mri])
def test_numbers_at_the_end_of_a_range_are_taken(recipe):
    config = recipe.get_config()
    config.optim.update(ema=0.0, warmup=0, weight_decay=0.0)
    config.split.update(test=0.0, validation=0.0)
    config.data.max_quarantined = 1.0
    check.check_ranges(config)
    config.split.update(test=0.6, validation=0.4)
    with pytest.raises(InputError, match="leave nobody to train on"):
        check.check_ranges(config)


@pytest.mark.parametrize(
    "field, value, why",
    [
        ("train.accumulate", 0, "train.accumulate=0: give 1 or more"),
        ("patch.each", 0, "patch.each=0: give 1 or more"),
        ("data.records", "", "data.records='': name the folder"),
        ("augment.ops", ("gamma", "gamma"), "name each op once"),
        ("data.sequences", (), r"data.sequences=\(\): name one or more"),
        ("data.regions", (), r"data.regions=\(\): name one or more"),
        ("data.clip", (99.0, 1.0), "data.clip=.*two percentiles"),
        ("data.clip", (1.0,), "data.clip=.*two percentiles"),
        ("data.clip", (0.0, 101.0), "data.clip=.*percentiles from 0 to 100"),
        ("data.clip", (float("nan"), 1.0), "data.clip=.*percentiles from 0 to 100"),
        ("data.clip", ("a", 1.0), "data.clip=.*percentiles from 0 to 100"),
        ("data.spacing", (1.0, 1.0), "data.spacing=.*three lengths"),
        ("data.spacing", (0.0, 1.0, 1.0), "data.spacing=.*three lengths"),
        ("model.widths", (0, 8, 8, 8), "model.widths=.*numbers of 1 or more"),
        ("patch.size", (16, 16), "patch.size=.*three sizes"),
        ("model.strides", (1, 0, 2), "model.strides=.*numbers of 1 or more"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_before_data_are_read(
    field, value, why
):
    config = ms_lesions_unet3d.get_config()
    config.data.folder = "nowhere"
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=why):
        segmentation.check(config, 1)


@pytest.mark.parametrize(
    "field, value, why",
    [
        ("model.stem", "Hyper", "model.name=.*stem='Hyper': use 'imagenet', 'half'"),
        ("model.growth", 0, "model.growth=0: give 1 or more"),
        ("model.features", -1, "model.features=-1: give 1 or more"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_before_data_are_read(
    field, value, why
):
    config = quickstart.get_config()
    config.model[field.split(".")[1]] = value
    with pytest.raises(InputError, match=why):
        classification.check(config, 1)


@pytest.mark.parametrize(
    "side, name", [(4, "densenet_small"), (2, "convnext_tiny"), (8, "vit_small")]
)
def test_a_side_that_a_network_leaves_nothing_of_is_refused(side, name):
    config = quickstart.get_config()
    config.model = {"name": name}
    config.data.side = side
    with pytest.raises(InputError, match=rf"\({side}, {side}\) are too small for "):
        classification.check(config, 1)
    config.data.side = 31 if name == "vit_small" else 32
    classification.check(config, 1)


@pytest.mark.parametrize(
    "task, tasks, good",
    [
        ("multilabel", ("none", "mild", "severe"), False),
        ("multiclass", (), False),  # They would be sorted: mild, none, severe.
        ("multiclass", ("none", "mild", "severe"), True),
    ],
)
@pytest.mark.parametrize("source", ["table", "volumes"])
def test_grades_are_ordered_by_the_user(source, task, tasks, good):
    config = base.classification(source)
    config.task, config.data.tasks, config.evaluation.ordered = task, tasks, True
    if task == "multiclass":
        config.update(imbalance="none", loss={"name": "softmax_cross_entropy"})
    if good:
        classification.check(config, 1)
    else:
        with pytest.raises(InputError, match="evaluation.ordered=True: is of classes"):
            classification.check(config, 1)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda c: c["optim"].pop("warmup"), "has no field optim.warmup"),
        (lambda c: c.pop("transfer"), "has no field transfer"),
        (lambda c: c.pop("adapt"), "has no field adapt"),
        (lambda c: c["model"].pop("name"), "has no field model.name"),
        (lambda c: c.update(loss="focal"), "loss='focal': give a value of type dict"),
        (lambda c: c["train"].update(steps="9"), "train.steps='9': give a value of ty"),
        (lambda c: c["train"].update(steps=None), "train.steps=None: give a value"),
        (lambda c: c.update(augment=[1]), "augment=(1,): give a value of type dict"),
        (lambda c: c.update(data=3), "data.source=None is unknown"),
    ],
)
def test_a_config_in_json_that_lacks_a_field_is_refused_by_it(tmp_path, change, why):
    values = json.loads(quickstart.get_config().to_json())
    change(values)
    (tmp_path / "c.json").write_text(json.dumps(values))
    _, errors = run_here("prepare", f"--config={tmp_path / 'c.json'}", code=2)
    assert f"error: --config: {why}" in errors and errors.count("\n") == 1


def test_a_config_in_json_has_each_name_once_and_may_have_a_mark(tmp_path):
    text = (
        quickstart.get_config().to_json().replace('"seed": 0', '"seed": 0, "seed": 5')
    )
    path = tmp_path / "c.json"
    path.write_text(text)
    _, errors = run_here("prepare", f"--config={path}", code=2)
    assert f"error: --config: {path}: not JSON ('seed' is there twice)" in errors
    path.write_text("\ufeff" + quickstart.get_config().to_json())
    config = get_config(str(path))
    assert config.to_dict() == quickstart.get_config().to_dict()


@pytest.mark.parametrize("body", ["return {}", "return", "pass"])
def test_a_recipe_that_returns_no_config_is_refused_as_such(tmp_path, body):
    path = tmp_path / "recipe.py"
    path.write_text(f"def get_config():\n    {body}\n")
    _, errors = run_here("prepare", f"--config={path}", code=2)
    assert "error: --config: the file has no get_config() that returns" in errors


RECIPE = "def get_config():\n    from configs import quickstart\n"
GOOD = RECIPE + "    return quickstart.get_config()\n"


@pytest.mark.parametrize(
    "text, command, line, why",
    [
        ("\nimport nothing_of_the_kind", "train", 2, "ModuleNotFoundError: No module"),
        ("import beside", "train", 1, "ZeroDivisionError: division by zero"),
        ("def get_config(:", "train", 1, "SyntaxError: invalid syntax"),
        (RECIPE + "    return {}['a']", "train", 3, "KeyError: a"),
        (RECIPE + "    quickstart.get_config().optm.x = 1", "train", 3, "Attr.*'optm'"),
        (RECIPE + "    b'\\xff'.decode()", "train", 3, "UnicodeDecodeError: 'utf-8'"),
        (GOOD + "def sweep():\n    yield {}[1]", "sweep", 5, "KeyError: 1"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_by_its_line(
    tmp_path, monkeypatch, text, command, line, why
):
    (tmp_path / "recipe.py").write_text(text)
    (tmp_path / "beside.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    config = f"--config={tmp_path / 'recipe.py'}"
    _, errors = run_here(command, config, f"--workdir={tmp_path / 'run'}", code=2)
    file = tmp_path / ("beside.py" if "beside" in text else "recipe.py")
    assert re.search(rf"^error: .*{file}, line {line}: {why}", errors), errors
    assert errors.count("\n") == 1


def test_arms_may_be_one_dict_that_changes(tmp_path):
    for seeds, code in (((0, 0), 2), ((0, 1), 3)):
        loop = f"    arm = {{}}\n    for arm['seed'] in {seeds}:\n        yield arm\n"
        (tmp_path / "recipe.py").write_text(f"{GOOD}def sweep():\n{loop}")
        named = f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"
        lost = "--config.data.records="  # Each of the runs is refused.
        here = "--executor=population"  # Without a process for each.
        out, errors = run_here("sweep", *named, lost, here, code=code)
        assert ("seed=0 is there twice" in errors) == (code == 2)
        assert ("seed=1: data.records=''" in out + errors) == (code == 3)
    assert not (ROOT / "images").exists()  # Nothing was prepared for them.


def test_help_is_no_error():
    for flag in ("--help", "-h"):
        out, _ = run_here(flag)
        assert "python launch.py prepare" in out


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, command):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    _, errors = run_here(command, *SMALL, f"--workdir={path}", code=2)
    assert f"--workdir={path}: is a file" in errors
    below = path / "run"
    if command == "train":
        _, errors = run_here(command, *SMALL, f"--workdir={below}", code=2)
        assert f"{below}: Not a directory" in errors
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("predict", "--images=gs://b/films"),
        ("train --config=small.py", "--config.data.records=s3://b/records"),
        ("evaluate", "--against=az://b/run"),
        ("train --config=small.py", "--profile=gs://b/trace"),
    ],
)
def test_the_address_of_a_bucket_makes_no_local_folder(
    tmp_path, monkeypatch, command, flag
):
    monkeypatch.setattr(launching, "ROOT", tmp_path)
    line = command.replace("small.py", f"{ROOT / 'tests/small.py'}").split()
    _, errors = run_here(*line, "--workdir=run", flag, code=2)
    assert f"error: {flag.removeprefix('--')}: is no folder" in errors.replace("--", "")
    assert errors.count("\n") == 1 and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("train --split=validation", "--split: is only for evaluate:"),
        ("train --corrupt --films=3", "--corrupt: is only for evaluate:"),
        ("predict --profile=p", "--profile: is only for train:"),
        ("predict --slurm=a=1", "--slurm: is only for sweep:"),
        ("predict --seed=1", "--seed: is only for gallery:"),
        ("gallery --workdir=w", "--workdir: is only for prepare, explore, train,"),
        ("join --config=tests/small.py", "--config: is only for prepare, explore,"),
        ("predict --method=grad_cam", "--method: only goes with --explain\n"),
        ("evaluate --corrupt --stage=x", "--stage: only goes with --localise\n"),
        ("evaluate --films=3", "--films: only goes with --corrupt\n"),
        ("convert --source=x --channels=1", "--channels: only goes with --model\n"),
        ("explore --audit-augment --config=tests/small.py", "leave out --config\n"),
        (
            "sweep --workdir=/x --config=configs/loss_weighting.py --slurm=a=1",
            "--slurm: ",
        ),
    ],
)
def test_a_flag_that_means_nothing_here_is_refused(line, why):
    _, errors = run_here(*line.split(), code=2)
    assert f"error: {why}" in errors or errors.endswith(why)
    assert errors.count("\n") == 1


def test_each_flag_is_of_some_command_and_each_command_lists_its_own():
    ours = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(launch)}
    taken = {name for _, names in launch.COMMANDS.values() for name in names}
    assert taken | {"deterministic"} == ours
    out, _ = run_here("join", "--help")
    assert "--run: " in out and "--slurm: " not in out.split(launch.__doc__)[1]


def test_a_run_that_was_refused_before_its_first_step_may_be_corrected(tmp_path):
    wrong, right = {"seed": 0, "model": {"name": "a"}}, {"seed": 1}
    workdir.claim(tmp_path, wrong)
    write_text(tmp_path / "splits.csv", "id\n1\n")
    write_text(tmp_path / "mine.txt", "kept")
    workdir.forget_unbegun(tmp_path)
    workdir.claim(tmp_path, right)
    assert not (tmp_path / "splits.csv").exists()
    assert (tmp_path / "mine.txt").exists()
    write_text(tmp_path / "metrics.jsonl", "")
    workdir.forget_unbegun(tmp_path)
    with pytest.raises(InputError, match="holds a run whose config.seed is 1, not 0"):
        workdir.claim(tmp_path, wrong)


def test_a_folder_that_holds_no_run_keeps_its_files(tmp_path):
    for name in ("config.json", "splits.csv", "explore.html"):
        write_text(tmp_path / name, "mine")
    assert not workdir.forget_unbegun(tmp_path)
    assert len([*tmp_path.iterdir()]) == 3
    (tmp_path / "config.json").unlink()
    workdir.claim(tmp_path, {"seed": 0})
    assert workdir.forget_unbegun(tmp_path)
    assert (tmp_path / "explore.html").read_text() == "mine"


def test_a_second_process_is_kept_out_until_the_first_one_ends(tmp_path):
    run = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from medjax.files import held\n"
        f"with held(Path({str(run)!r})): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1) as first:
        assert first.stdout.readline() == b"in\n"
        match = "run: another process is at work in it"
        with pytest.raises(InputError, match=match), held(run):
            pass
        first.kill()
    with held(run):
        write_text(run / "a", "")
    assert run.exists()
    with held(tmp_path / "refused"):
        pass
    assert not (tmp_path / "refused").exists()


def source_of(count, hold, begun):
    """A source of images; notes that it begins, and waits before its last one."""

    def items():
        begun.append(count)
        for n in range(count):
            if n == count - 1:
                hold.wait(20)
            row = dict.fromkeys(prepared.COLUMNS[1:], "") | {
                "image": f"{n}",
                "patient": n,
            }
            row |= dict.fromkeys(("age", "spacing_x", "spacing_y", "follow_up"), np.nan)
            row |= {"width": 4, "height": 4, "a": 1.0}
            yield prepared.Item(row, np.full((4, 4, 1), 9 * n, np.uint8))

    return records.Source(("a",), (4, 4, 1), count, items)


def test_two_that_prepare_the_same_data_wait_for_each_other(tmp_path):
    hold, folders, begun = threading.Event(), [], []
    left = records.folder(tmp_path, "x").with_name("x.partial")
    left.mkdir(parents=True)
    (left / "torn.csv").write_text("of a process that was killed")

    def prepare():
        options = {"records": tmp_path, "name": "x", "max_quarantined": 0.0}
        folders.append(records.prepare(source_of(3, hold, begun), **options))

    both = [threading.Thread(target=prepare) for _ in range(2)]
    both[0].start()
    while not begun:
        time.sleep(0.01)
    both[1].start()
    time.sleep(0.2)
    hold.set()
    for thread in both:
        thread.join()
    assert len(begun) == 1
    assert folders == [records.folder(tmp_path, "x")] * 2
    assert len(prepared.read_table(folders[0])) == 3
    assert {path.name for path in folders[0].parent.iterdir()} == {folders[0].name}
    assert not (folders[0] / "torn.csv").exists()


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EEXIST]
)
def test_what_the_system_refuses_is_one_line_with_the_file(tmp_path, number):
    path = tmp_path / "predictions.csv"
    try:
        with naming(path):
            raise OSError(number, os.strerror(number))
    except OSError as error:
        wrapped = ValueError("a library's own error")
        wrapped.__cause__ = error
    for error in (wrapped, wrapped.__cause__):
        text = launch.refusal(error)
        assert text.startswith(f"{path}: {os.strerror(number)}: ") and "\n" not in text
    as_text = RuntimeError(f"INTERNAL: writing /x/0/d\n failed: {os.strerror(number)}")
    assert launch.refusal(as_text).startswith("INTERNAL: writing /x/0/d failed: ")
    assert launch.refusal(KeyError("loss")) == ""
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "a").read_text()
    assert launch.refusal(missing.value) == ""


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "/dev/null/x"])
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--config=configs/quickstart.py", "--workdir=PLACE"),
        ("prepare", "--config=tests/small.py", "--config.data.records=PLACE"),
    ],
)
def test_a_place_where_no_folder_can_be_made_is_named(place, command):
    line = [part.replace("PLACE", place) for part in command]
    _, err = run_here(*line, code=2)
    assert err.count("\n") == 1 and "choose another place" in err
    assert err.startswith(f"error: {place[:7]}")
